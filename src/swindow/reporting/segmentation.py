"""The page of a segmenter: how well each class and case is found, what is taken for what, and how that looks."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from swindow.charts import MOST_OF_SHARES, confusion_chart, shown_classes
from swindow.data import align_classes
from swindow.data.scenes import Scenes
from swindow.evaluation import CaseScore, SegmentationEvaluation
from swindow.metrics import PixelScore, mean_of_known
from swindow.reporting.page import (
    LEARNING_RATE,
    Curve,
    curves,
    environment,
    figure,
    headline,
    meter,
    page,
    run_figures,
    run_title,
    section,
    settings,
    short_count,
    short_name,
    swatch,
    table,
    text,
)
from swindow.reporting.panels import batch_section, course_section, extremes_section, key_to_pixels
from swindow.reporting.progress import Answer, read_progress

MOST_CASES = 200
MOST_CASE_CLASSES = 4
"""Classes up to which a case's row has the Dice of each."""
MOST_PAIRS = 10
CURVES = (
    Curve("Loss", "loss", "loss", "{:.3g}"),
    Curve("Mean Dice", "", "mean_dice", "{:.0%}"),
    Curve("Mean IoU", "", "mean_iou", "{:.0%}"),
    Curve("Pixel accuracy", "accuracy", "pixel_accuracy", "{:.0%}"),
    LEARNING_RATE,
)
REMARK = " The training loss is the sum that training lowers, the validation loss the mean cross-entropy of a pixel."


def run_page(
    run: Path,
    evaluation: SegmentationEvaluation,
    scenes: Scenes,
    batch: Tensor | None,
    labels: Tensor | None,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    answer: Answer,
) -> str:
    """All that a run folder and its last evaluation tell."""
    title = run_title(facts, run)
    painted = dict(zip(evaluation.classes, evaluation.colours, strict=True))
    colours = [painted[name] for name in classes]  # a batch's classes are the training data's, in its order
    background = (
        None if evaluation.background is None else list(classes).index(evaluation.classes[evaluation.background])
    )
    return page(
        title,
        [
            headline(title, [*_scores(evaluation), *run_figures(facts)], facts),
            curves(run / "metrics.jsonl", CURVES, remark=REMARK),
            *_judgement(evaluation, scenes, answer),
            course_section(read_progress(run), key_to_pixels(evaluation)),
            batch_section(batch, labels, classes, colours, background),
            settings(run / "config.toml"),
            environment(run / "environment.json"),
        ],
        style=_style(),
    )


def evaluation_page(
    title: str, evaluation: SegmentationEvaluation, scenes: Scenes, facts: Mapping[str, Any], answer: Answer
) -> str:
    """What one evaluation tells, without a run around it."""
    figures = [*_scores(evaluation), *run_figures(facts)]
    top = headline(text(title), figures, facts, eyebrow="evaluation")
    return page(text(title), [top, *_judgement(evaluation, scenes, answer)], style=_style())


def tables(evaluation: SegmentationEvaluation) -> dict[str, list[dict[str, Any]]]:
    """Rows of every image and of every case, by the name of the file to write them to."""
    names = evaluation.classes
    cases = [
        {"case": case.case}
        | {f"dice {name}": share for name, share in zip(names, case.dice, strict=True)}
        | ({f"hd95 {name}": far for name, far in zip(names, case.hd95, strict=True)} if evaluation.hd95_unit else {})
        for case in evaluation.per_case
    ]
    return {"per_image.csv": [dataclasses.asdict(row) for row in evaluation.per_image], "per_case.csv": cases}


def _judgement(evaluation: SegmentationEvaluation, scenes: Scenes, answer: Answer) -> list[str]:
    if scenes.classes != evaluation.classes:
        order = align_classes(scenes.classes, evaluation.classes)
        scenes = scenes.aligned(order, evaluation.classes, evaluation.colours)
    return [
        _per_class(evaluation),
        extremes_section(evaluation, scenes, answer),
        _per_case(evaluation, scenes),
        _confusion(evaluation),
    ]


def _scores(evaluation: SegmentationEvaluation) -> list[str]:
    """The score that training maximised first, then the others."""
    cases, pixels = len(evaluation.per_case), int(evaluation.confusion.sum())
    of = {
        "mean IoU": f"{evaluation.count:,} images, {short_count(pixels)} pixels",
        "mean Dice": f"over {cases:,} cases" + ("" if cases == evaluation.count else f", {evaluation.count:,} images"),
    }
    main = evaluation.score_name
    figures = [figure(f"{main} on {text(evaluation.split)}", f"{evaluation.score:.2%}", of[main], cls="main")]
    if main != "mean IoU":
        figures.append(figure("mean IoU", f"{evaluation.mean_iou:.1%}"))
    elif evaluation.mean_dice is not None:
        figures.append(figure("mean Dice", f"{evaluation.mean_dice:.1%}", of["mean Dice"]))
    figures.append(figure("pixel accuracy", f"{evaluation.pixel_accuracy:.1%}"))
    far = _mean_distance(evaluation)
    if far is not None:
        figures.append(figure("HD95", f"{far:.1f} {_unit(evaluation)}", "95% Hausdorff distance"))
    return figures


def _per_class(evaluation: SegmentationEvaluation) -> str:
    order = sorted(range(len(evaluation.classes)), key=lambda k: _hardness(evaluation.per_class[k]))
    total = max(int(evaluation.confusion.sum()), 1)
    taken_for: dict[str, str] = {}
    for pair in evaluation.confusions():
        share = pair.count / max(int(evaluation.confusion[evaluation.classes.index(pair.truth)].sum()), 1)
        taken_for.setdefault(pair.truth, f"{pair.predicted} ({share:.1%})")
    names = ["class", "pixels", "IoU", "found", "Dice", "most often taken for"]
    if evaluation.hd95_unit:
        names.insert(5, _far(evaluation))
    rows = [_class_row(evaluation, k, total, taken_for.get(evaluation.classes[k], "")) for k in order]
    means = "Dice and HD95 are means" if evaluation.hd95_unit else "Dice is the mean"
    note = (
        "The hardest first. IoU and found, the share of its pixels that are called so (accuracy, recall), are over all "
        f"images; {means} over cases."
    )
    return section("Class by class", note, _wide(table(names, rows, numbers=("pixels", _far(evaluation))), len(rows)))


def _class_row(evaluation: SegmentationEvaluation, k: int, total: int, taken_for: str) -> str:
    score = evaluation.per_class[k]
    shares = "".join(f'<td class="share">{meter(share)}</td>' for share in (score.iou, score.accuracy, score.dice))
    far = f'<td class="number">{_distance(score.hd95)}</td>' if evaluation.hd95_unit else ""
    return (
        f'<tr><td class="name"><span class="named">{swatch(evaluation.colours[k])}{text(score.name)}</span></td>'
        f'<td class="number">{score.pixels:,} <small>{score.pixels / total:.1%}</small></td>{shares}{far}'
        f'<td class="name">{text(taken_for)}</td></tr>'
    )


def _per_case(evaluation: SegmentationEvaluation, scenes: Scenes) -> str:
    """Case by case, where cases are more than single images."""
    cases = evaluation.per_case
    if len(cases) == evaluation.count:
        return ""
    images = Counter(scenes.cases)
    objects = [k for k in range(len(evaluation.classes)) if k != evaluation.background]
    each = objects if len(objects) <= MOST_CASE_CLASSES else []
    dice, far = ({c.case: mean_of_known(values(c)[k] for k in objects) for c in cases} for values in (_dice, _hd95))
    order = sorted(cases, key=lambda c: (dice[c.case] is None, dice[c.case] or 0.0))[:MOST_CASES]
    names = ["case", "images", "mean Dice", *(f"Dice, {text(evaluation.classes[k])}" for k in each if len(each) > 1)]
    if evaluation.hd95_unit:
        names.append(_far(evaluation))
    rows = []
    for case in order:
        shares = [dice[case.case], *(case.dice[k] for k in each if len(each) > 1)]
        cells = "".join(f'<td class="share">{meter(share)}</td>' for share in shares)
        cells += f'<td class="number">{_distance(far[case.case])}</td>' if evaluation.hd95_unit else ""
        count = f'<td class="number">{images[case.case]:,}</td>'
        rows.append(f'<tr><td class="name">{text(short_name(case.case))}</td>{count}{cells}</tr>')
    note = "The hardest first; the pixels of a case are taken together."
    note += f" The first {len(order):,} of {len(cases):,}." if len(order) < len(cases) else ""
    return section("Case by case", note, _wide(table(names, rows, numbers=("images", _far(evaluation))), len(rows)))


def _confusion(evaluation: SegmentationEvaluation) -> str:
    shown = len(shown_classes(evaluation.confusion, MOST_OF_SHARES))
    note = "Rows are true classes, columns the model's answers, in shares of the row's pixels"
    note += "." if shown <= 25 else "; point at a cell for its number."
    if shown < len(evaluation.classes):
        note += f" The {shown} classes with the most mistakes, of {len(evaluation.classes)}."
    confusion, wrong = evaluation.confusion, int(evaluation.confusion.sum() - evaluation.confusion.trace())
    pairs = [
        f"<li><b>{pair.count / wrong:.0%}</b> {text(pair.truth)} taken for {text(pair.predicted)}</li>"
        for pair in evaluation.confusions()[:MOST_PAIRS]
        if pair.count >= wrong / 200
    ]
    chart = f'<div class="wide">{confusion_chart(confusion, evaluation.classes, shares=True)}</div>'
    beside = f'<div class="beside"><h3>Of all wrong pixels</h3><ul class="pairs">{"".join(pairs)}</ul></div>'
    return section("What is taken for what", note, f'<div class="matrix">{chart}{beside if pairs else ""}</div>')


def _mean_distance(evaluation: SegmentationEvaluation) -> float | None:
    return mean_of_known(score.hd95 for k, score in enumerate(evaluation.per_class) if k != evaluation.background)


def _unit(evaluation: SegmentationEvaluation) -> str:
    return "px" if evaluation.hd95_unit == "pixels" else str(evaluation.hd95_unit)


def _far(evaluation: SegmentationEvaluation) -> str:
    return f"HD95, {_unit(evaluation)}"


def _hardness(score: PixelScore) -> tuple[bool, bool, float]:
    """Classes that occur first, then those that are only answered, then those that are nowhere."""
    return not score.pixels, score.iou is None, score.iou or 0.0


def _dice(case: CaseScore) -> tuple[float | None, ...]:
    return case.dice


def _hd95(case: CaseScore) -> tuple[float | None, ...]:
    return case.hd95


def _distance(far: float | None) -> str:
    return "–" if far is None else f"{far:.2f}"


def _wide(content: str, rows: int) -> str:
    return f'<div class="wide{" scroll" if rows > 25 else ""}">{content}</div>'


def _style() -> str:
    return resources.files("swindow.reporting").joinpath("segmentation.css").read_text(encoding="utf-8")
