"""Sections of pictures with their objects: what was found and missed in the worst and the best, a training batch."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from swindow import sheets
from swindow.data import Annotated
from swindow.data.legends import RGB
from swindow.evaluation import DetectionEvaluation
from swindow.metrics import matches
from swindow.metrics.matching import CROWD, NONE
from swindow.objects import Detections, Objects, Targets
from swindow.overlays import OUTCOMES, Outcome, draw_detections, draw_objects, outcome_key
from swindow.reporting.page import SMALL, compressed, framed, none, section, short_name, swatch, text
from swindow.reporting.panels import colour_key
from swindow.sheets import CARD, FAINT, GAP, PAD, PAPER

MOST_WORST, MOST_BEST, MOST_BATCH, MOST_SHEET = 6, 2, 12, 12
SIDE, BATCH_SIDE = 512, 340
"""Longest side of a picture, in pixels: about as large as it is shown, since lines and letters are drawn for that."""
MOST_BYTES, MOST_BATCH_BYTES = 56_000, 30_000
"""Of a picture: 16 of the first and 12 of the second are below 2 MB in the page."""

Finder = Callable[[int], Detections]
"""What a detector finds in one image of a split, by its row, in the image's own pixels."""


class Compared(NamedTuple):
    """One image with its objects and what was found above the threshold, and what became of each."""

    name: str
    note: str
    pixels: Tensor
    truth: Objects
    there: list[Outcome]
    found: Detections
    said: list[Outcome]


def compared(evaluation: DetectionEvaluation, images: Annotated, row: int, finder: Finder) -> Compared:
    """One image of `images`, which have the evaluation's classes, as the evaluation counts it."""
    (pixels, truth), found, score = images.pair(row), finder(row), evaluation.per_image[row]
    judged = found.labels.new_tensor(evaluation.judged)[:, None].eq(found.labels).any(dim=0)
    found = found[judged & (found.scores >= evaluation.threshold)]
    places = matches(truth, found).tolist()
    ignored = {NONE: "false alarm", CROWD: "ignored"}
    said: list[Outcome] = [ignored.get(place, "hit") for place in places]  # type: ignore[misc]
    there: list[Outcome] = [
        "ignored" if crowd else "hit" if place in places else "missed"
        for place, crowd in enumerate(truth.crowd.tolist())
    ]
    alarms = f"{score.false_alarms} false alarm{'' if score.false_alarms == 1 else 's'}"
    note = f"{score.hits} of {score.hits + score.misses} found, {alarms}"
    return Compared(score.name, note, pixels, truth, there, found, said)


def comparison_section(evaluation: DetectionEvaluation, images: Annotated, finder: Finder) -> str:
    """The images with the most mistakes and the best ones: their objects beside what was found."""
    groups = {"Worst": evaluation.worst(MOST_WORST), "Best": evaluation.best(MOST_BEST)}
    groups["Best"] = [row for row in groups["Best"] if row not in groups["Worst"]]
    parts = []
    for name, rows in groups.items():
        drawn = [_side_by_side(compared(evaluation, images, row, finder), evaluation) for row in rows]
        parts.append(f'<h3>{name}</h3><div class="scenes">{"".join(drawn)}</div>' if drawn else "")
    key = "".join(f"<li>{swatch(colour)}{name}</li>" for name, colour in OUTCOMES.items())
    note = (
        f"By the F1 of the image, of detections with a score of at least {evaluation.threshold:.2f}. On the left what "
        "is there, dashed where it was missed; on the right what was found."
    )
    return section("Worst and best", note, f'<ul class="key">{key}</ul>' + ("".join(parts) or none("No image.")))


def batch_section(
    batch: UInt8[Tensor, "B C h w"] | None, targets: Targets | None, classes: Sequence[str], colours: Sequence[RGB]
) -> str:
    """Training images with their objects after augmentation, without padding; nothing where there is no batch."""
    if batch is None or targets is None:
        return ""
    figures, seen = [], Counter[int]()
    shown = zip(batch[:MOST_BATCH], targets.objects, targets.frames.sizes, strict=False)
    for pixels, objects, (height, width) in shown:
        seen.update(objects.labels.tolist())
        masks = None if objects.masks is None else objects.masks[:, :height, :width]
        picture = pixels[:, :height, :width]
        drawn = draw_objects(
            picture, objects.boxes, objects.labels, None, masks, classes, colours, side=BATCH_SIDE, tags=False
        )
        words = ", ".join(f"{count} {classes[k]}" for k, count in Counter(objects.labels.tolist()).most_common(3))
        words = words or "no object"
        figures.append(_figure(drawn, picture, f"training image with {words}", text(words), MOST_BATCH_BYTES))
    note = f"{len(figures)} of {len(batch)} images of a training batch with their objects, changed together."
    pictures = f'<div class="pictures crops">{"".join(figures)}</div>'
    return section("What the model saw", note, colour_key(classes, colours, seen) + pictures)


def worst_sheet(evaluation: DetectionEvaluation, images: Annotated, finder: Finder) -> Image.Image:
    """The images with the most mistakes on one sheet: truth beside what was found, and what their colours mean."""
    rows = evaluation.worst(MOST_SHEET) or evaluation.best(MOST_SHEET)
    tiles = [_tile(compared(evaluation, images, row, finder), evaluation) for row in rows]
    column = max([first.width for _, _, (first, _), _ in tiles] + [220])
    width = 2 * column + GAP
    outcomes: list[Outcome] = [one for *_, seen in tiles for one in seen]
    key = outcome_key(outcomes, width=width)
    top = PAD + 50
    height = top + sum(46 + max(picture.height for picture in both) + GAP for _, _, both, _ in tiles) + key.height + PAD
    paper = Image.new("RGB", (width + 2 * PAD, height), PAPER)
    draw = ImageDraw.Draw(paper)
    heading = f"{evaluation.split}: {evaluation.score_name} {evaluation.score:.1%}, score ≥ {evaluation.threshold:.2f}"
    sheets.write(draw, (PAD, PAD), heading, width, size=16)
    for place, name in enumerate(("what is there", "what was found")):
        sheets.write(draw, (PAD + place * (column + GAP), top - 20), name, column, size=12, colour=FAINT)
    for title, note, both, _ in tiles:
        draw.line((PAD, top, PAD + width, top), fill=CARD, width=2)
        sheets.write(draw, (PAD, top + 4), title, width)
        sheets.write(draw, (PAD, top + 22), note, width, size=11, colour=FAINT)
        for place, picture in enumerate(both):
            paper.paste(picture, (PAD + place * (column + GAP), top + 44))
        top += 46 + max(picture.height for picture in both) + GAP
    paper.paste(key, (PAD, top))
    return paper


def _tile(
    one: Compared, evaluation: DetectionEvaluation
) -> tuple[str, str, tuple[Image.Image, Image.Image], list[Outcome]]:
    seen: list[Outcome] = [*one.there, *(said for said in one.said if said != "hit")]
    return short_name(one.name), one.note, _drawn(one, evaluation), seen


def _side_by_side(one: Compared, evaluation: DetectionEvaluation) -> str:
    names = ("what is there", "what was found")
    figures = [
        _figure(picture, one.pixels, f"{one.name}: {name}", name)
        for picture, name in zip(_drawn(one, evaluation), names, strict=True)
    ]
    heading = f"<h4>{text(short_name(one.name))} <small>{one.note}</small></h4>"
    return f'<div>{heading}<div class="pictures two">{"".join(figures)}</div></div>'


def _drawn(one: Compared, evaluation: DetectionEvaluation) -> tuple[Image.Image, Image.Image]:
    order = sorted(range(len(one.there)), key=lambda place: one.there[place] != "missed")
    truth, names, colours = one.truth[torch.tensor(order, dtype=torch.int64)], evaluation.classes, evaluation.colours
    there = draw_objects(
        one.pixels,
        truth.boxes,
        truth.labels,
        None,
        truth.masks,
        names,
        colours,
        side=SIDE,
        outcomes=[one.there[place] for place in order],
    )
    return there, draw_detections(one.pixels, one.found, names, colours, side=SIDE, outcomes=one.said)


def _figure(drawn: Image.Image, source: Tensor, alt: str, caption: str, most: int = MOST_BYTES) -> str:
    cls = "pixels" if max(source.shape[1:]) <= SMALL else "photo"
    return framed(compressed(drawn, most), alt, caption, cls=cls)
