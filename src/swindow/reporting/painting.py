"""The page of a model that is pretrained: how well it paints what is hidden, and how that looks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from swindow import sheets
from swindow.data import Images
from swindow.evaluation import Painted, PaintingEvaluation
from swindow.reporting.page import (
    LEARNING_RATE,
    Curve,
    compressed,
    curves,
    environment,
    figure,
    framed,
    headline,
    none,
    page,
    picture,
    run_figures,
    run_title,
    section,
    settings,
    short_name,
    text,
)
from swindow.reporting.panels import course_section
from swindow.reporting.progress import covered, read_progress
from swindow.shapes import Pixels
from swindow.sheets import CARD, FAINT, GAP, PAD, PAPER

Painter = Callable[[int], Painted]
"""What a model paints of one image of a split, by its row."""

MOST_EXTREMES, MOST_EVEN, MOST_BATCH, MOST_SHEET = 3, 6, 24, 8
SIDE = 224
"""Largest side of a picture, in pixels."""
MOST_BYTES = 16_000
"""Of a picture: 36 of them are below 1 MB in the page."""
COLUMNS = ("image", "what the model sees", "what it paints")
CURVES = (
    Curve("L1 on hidden pixels", "loss", "loss", "{:.3g}"),
    Curve("Explained", "accuracy", "explained", "{:.0%}"),
    Curve("PSNR, dB", "", "psnr", "{:.1f}"),
    LEARNING_RATE,
)
REMARK = (
    " Explained is the share of a flat painting's error that the model's does not have; a flat painting is in the mean "
    "colour of what is seen."
)


def run_page(
    run: Path,
    evaluation: PaintingEvaluation,
    images: Images,
    batch: Tensor | None,
    facts: Mapping[str, Any],
    painter: Painter,
) -> str:
    """All that a run folder and its last evaluation tell."""
    title = run_title(facts, run)
    return page(
        title,
        [
            headline(title, [*_scores(evaluation), *run_figures(facts)], facts, eyebrow="pretraining run"),
            curves(run / "metrics.jsonl", CURVES, remark=REMARK),
            _paintings(evaluation, painter),
            course_section(read_progress(run), "", truth="hidden"),
            _batch(batch),
            settings(run / "config.toml"),
            environment(run / "environment.json"),
        ],
        style=_style(),
    )


def evaluation_page(
    title: str, evaluation: PaintingEvaluation, images: Images, facts: Mapping[str, Any], painter: Painter
) -> str:
    """What one evaluation tells, without a run around it."""
    figures = [*_scores(evaluation), *run_figures(facts)]
    top = headline(text(title), figures, facts, eyebrow="evaluation")
    return page(text(title), [top, _paintings(evaluation, painter)], style=_style())


def tables(evaluation: PaintingEvaluation) -> dict[str, list[dict[str, Any]]]:
    """Rows of every image, by the name of the file to write them to."""
    rows = [
        {"name": score.name, "explained": score.explained, "l1": score.l1, "flat": score.flat, "psnr": score.psnr}
        for score in evaluation.per_image
    ]
    return {"per_image.csv": rows}


def painting_sheet(evaluation: PaintingEvaluation, painter: Painter, *, most: int = MOST_SHEET) -> Image.Image:
    """Images spread over the split, one a row: as they are, what the model sees of them, what it paints."""
    rows = _spread(evaluation, most)
    drawn = [[sheets.thumbnail(pixels, SIDE) for pixels in _three(painter(row))] for row in rows]
    top, width = PAD + 50, 3 * SIDE + 2 * GAP
    height = top + sum(22 + max(one.height for one in three) + GAP for three in drawn) + PAD
    paper = Image.new("RGB", (width + 2 * PAD, height), PAPER)
    draw = ImageDraw.Draw(paper)
    heading = f"{evaluation.split}: {evaluation.explained:.1%} explained"
    sheets.write(draw, (PAD, PAD), heading, width, size=16)
    for place, name in enumerate(COLUMNS):
        sheets.write(draw, (PAD + place * (SIDE + GAP), top - 20), name, SIDE, size=12, colour=FAINT)
    for row, three in zip(rows, drawn, strict=True):
        score = evaluation.per_image[row]
        draw.line((PAD, top, PAD + width, top), fill=CARD, width=2)
        words = f"{short_name(score.name)}: {score.explained:.1%} explained"
        sheets.write(draw, (PAD, top + 3), words, width, size=11, colour=FAINT)
        for place, one in enumerate(three):
            paper.paste(one, (PAD + place * (SIDE + GAP), top + 22))
        top += 22 + max(one.height for one in three) + GAP
    return paper


def _scores(evaluation: PaintingEvaluation) -> list[str]:
    figures = [
        figure(
            f"explained on {text(evaluation.split)}",
            f"{evaluation.explained:.2%}",
            f"of a flat painting's error, {evaluation.count:,} images",
            cls="main",
        ),
        figure("L1 on hidden pixels", f"{evaluation.l1:.4f}", f"{evaluation.flat:.4f} if painted flat"),
    ]
    if evaluation.psnr is not None:
        figures.append(figure("PSNR", f"{evaluation.psnr:.2f} dB"))
    return figures


def _paintings(evaluation: PaintingEvaluation, painter: Painter) -> str:
    groups = {
        "Over the split": _spread(evaluation, MOST_EVEN),
        "Best": evaluation.best(MOST_EXTREMES),
        "Worst": evaluation.worst(MOST_EXTREMES),
    }
    parts = [f"<h3>{name}</h3>{''.join(_rows(evaluation, rows, painter))}" for name, rows in groups.items()]
    note = "Left: the image. Middle: what the model sees of it. Right: the hidden parts as it paints them."
    if evaluation.psnr is None:
        note += " The model paints differences from local means; those means are taken from the image."
    return section("What it paints", note, "".join(parts) or none("No image."))


def _rows(evaluation: PaintingEvaluation, rows: Sequence[int], painter: Painter) -> Iterable[str]:
    for row in rows:
        score = evaluation.per_image[row]
        named = zip(COLUMNS, _three(painter(row)), strict=True)
        figures = [_shown(pixels, f"{score.name}: {name}", name) for name, pixels in named]
        note = f"{score.explained:.1%} explained" + ("" if score.psnr is None else f", {score.psnr:.1f} dB")
        heading = f"<h4>{text(short_name(score.name))} <small>{note}</small></h4>"
        yield f'{heading}<div class="pictures four three">{"".join(figures)}</div>'


def _three(painted: Painted) -> tuple[Pixels, Pixels, Pixels]:
    """Image, what is seen of it, and that with the painting in the hidden parts."""
    return painted.image, covered(painted), painted.completed


def _spread(evaluation: PaintingEvaluation, most: int) -> list[int]:
    """Rows spread evenly over the split."""
    count = min(most, evaluation.count)
    return [(2 * place + 1) * evaluation.count // (2 * count) for place in range(count)]


def _shown(pixels: Pixels, alt: str, caption: str) -> str:
    return framed(compressed(sheets.thumbnail(pixels, SIDE), MOST_BYTES), alt, caption, cls="photo")


def _batch(batch: Tensor | None) -> str:
    if batch is None:
        return ""
    figures = [picture(pixels, "training image", "") for pixels in batch[:MOST_BATCH]]
    note = f"{len(figures)} of {len(batch)} images of a training batch, before parts of them are hidden."
    return section("What there was to paint", note, f'<div class="pictures">{"".join(figures)}</div>')


def _style() -> str:
    """What pages of pictures share, and rows of three in place of four."""
    shared = resources.files("swindow.reporting").joinpath("segmentation.css").read_text(encoding="utf-8")
    return f"{shared}\n.three {{ grid-template-columns: repeat(3, minmax(0, {SIDE}px)) }}"
