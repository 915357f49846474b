"""The page of a detector: how well objects are found, at what price in false alarms, and how that looks."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from swindow.charts import Recalls, confusion_chart, recall_chart, shown_classes
from swindow.data import Annotated, align_classes
from swindow.evaluation import DetectionEvaluation, ObjectScore
from swindow.evaluation.detection import BACKGROUND
from swindow.metrics import AveragePrecision
from swindow.objects import Targets
from swindow.reporting.found import Finder, batch_section, comparison_section
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
    swatch,
    table,
    text,
)
from swindow.reporting.panels import colour_key, course_section
from swindow.reporting.progress import SURE, read_progress

MOST_CURVES = 12
MOST_PAIRS = 10
CURVES = (
    Curve("Loss", "loss", "", "{:.3g}"),
    Curve("Box AP", "", "box_ap", "{:.0%}"),
    Curve("Box AP at IoU 0.5", "", "box_ap50", "{:.0%}"),
    Curve("Mask AP", "", "mask_ap", "{:.0%}"),
    Curve("Mask AP at IoU 0.5", "", "mask_ap50", "{:.0%}"),
    Curve("Right answers in training", "accuracy", "", "{:.0%}"),
    LEARNING_RATE,
)
AP_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR 1": "ar1",
    "AR 10": "ar10",
    "AR 100": "ar100",
    "AR small": "ar_small",
    "AR medium": "ar_medium",
    "AR large": "ar_large",
}


def run_page(
    run: Path,
    evaluation: DetectionEvaluation,
    images: Annotated,
    batch: Tensor | None,
    targets: Targets | None,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    finder: Finder,
) -> str:
    """All that a run folder and its last evaluation tell."""
    title = run_title(facts, run)
    painted = dict(zip(evaluation.classes, evaluation.colours, strict=True))
    objects = Counter({k: score.objects for k, score in enumerate(evaluation.per_class)})
    key = colour_key(evaluation.classes, evaluation.colours, objects)
    return page(
        title,
        [
            headline(title, [*_scores(evaluation), *run_figures(facts)], facts),
            curves(run / "metrics.jsonl", CURVES),
            *_judgement(evaluation, images, finder),
            course_section(read_progress(run), key, remark=f" Detections with a score of at least {SURE} are drawn."),
            batch_section(batch, targets, classes, [painted[name] for name in classes]),
            settings(run / "config.toml"),
            environment(run / "environment.json"),
        ],
        style=_style(),
    )


def evaluation_page(
    title: str, evaluation: DetectionEvaluation, images: Annotated, facts: Mapping[str, Any], finder: Finder
) -> str:
    """What one evaluation tells, without a run around it."""
    figures = [*_scores(evaluation), *run_figures(facts)]
    top = headline(text(title), figures, facts, eyebrow="evaluation")
    return page(text(title), [top, *_judgement(evaluation, images, finder)], style=_style())


def tables(evaluation: DetectionEvaluation) -> dict[str, list[dict[str, Any]]]:
    """Rows of every class that is judged, of every image, of AP, and of the curves, by the name of their file."""
    kinds = _kinds(evaluation)
    points = [
        {
            "of": kind,
            "class": evaluation.classes[k],
            "recall": f"{step / 100:.2f}",
            "precision at IoU 0.5": found.precision[0, step, k],
            "score at IoU 0.5": found.scores[0, step, k],
            "precision at IoU 0.5 to 0.95": found.precision[:, step, k].mean(),
        }
        for kind, found in kinds.items()
        for k in _with_objects(evaluation)
        for step in range(found.precision.shape[1])
    ]
    return {
        "per_class.csv": [dataclasses.asdict(evaluation.per_class[k]) for k in evaluation.judged],
        "per_image.csv": [dataclasses.asdict(row) for row in evaluation.per_image],
        "average_precision.csv": [
            {"of": kind} | {column: getattr(found, name) for column, name in AP_COLUMNS.items()}
            for kind, found in kinds.items()
        ],
        "precision_recall.csv": points,
    }


def aligned(images: Annotated, evaluation: DetectionEvaluation) -> Annotated:
    """The images in the classes of their evaluation."""
    if images.classes == evaluation.classes:
        return images
    return images.aligned(align_classes(images.classes, evaluation.classes), evaluation.classes)


def _judgement(evaluation: DetectionEvaluation, images: Annotated, finder: Finder) -> list[str]:
    return [
        _average_precision(evaluation),
        _per_class(evaluation),
        comparison_section(evaluation, aligned(images, evaluation), finder),
        _recalls(evaluation),
        _confusion(evaluation),
    ]


def _kinds(evaluation: DetectionEvaluation) -> dict[str, AveragePrecision]:
    return {"boxes": evaluation.boxes} | ({} if evaluation.masks is None else {"masks": evaluation.masks})


def _with_objects(evaluation: DetectionEvaluation) -> list[int]:
    return [k for k in evaluation.judged if evaluation.per_class[k].objects]


def _scores(evaluation: DetectionEvaluation) -> list[str]:
    """The score that training maximised first, then the others."""
    of = f"{evaluation.count:,} images, {evaluation.objects:,} objects"
    main = figure(f"{evaluation.score_name} on {text(evaluation.split)}", f"{evaluation.score:.1%}", of, cls="main")
    shown = [main]
    for kind, found in reversed(_kinds(evaluation).items()):
        name = "mask" if kind == "masks" else "box"
        if name not in evaluation.score_name and found.ap is not None:
            shown.append(figure(f"{name} AP", f"{found.ap:.1%}"))
        if found.ap50 is not None:
            shown.append(figure(f"{name} AP50", f"{found.ap50:.1%}", "at IoU 0.5"))
    hits = sum(image.hits for image in evaluation.per_image)
    alarms = sum(image.false_alarms for image in evaluation.per_image)
    at = f"{alarms:,} false alarms at a score of {evaluation.threshold:.2f}"
    return [*shown, figure("objects found", f"{hits / evaluation.objects:.1%}", at)]


def _average_precision(evaluation: DetectionEvaluation) -> str:
    rows = []
    for kind, found in _kinds(evaluation).items():
        values = [getattr(found, name) for name in AP_COLUMNS.values()]
        cells = "".join(f'<td class="number">{_percent(value)}</td>' for value in values)
        rows.append(f'<tr><td class="name">{kind}</td>{cells}</tr>')
    note = (
        "COCO's figures: AP is the mean precision over recalls and over IoU 0.5 to 0.95, AP50 at IoU 0.5 alone, AR the "
        "mean recall with so many detections of a class in an image. Small objects have up to 32² pixels, medium ones "
        "up to 96²."
    )
    content = f'<div class="wide ap">{table(["of", *AP_COLUMNS], rows, numbers=tuple(AP_COLUMNS))}</div>'
    return section("Average precision", note, content)


def _per_class(evaluation: DetectionEvaluation) -> str:
    order = sorted(evaluation.judged, key=lambda k: _hardness(evaluation.per_class[k]))
    taken_for: dict[str, str] = {}
    for pair in evaluation.confusions():
        if BACKGROUND not in (pair.truth, pair.predicted):
            taken_for.setdefault(pair.truth, f"{pair.predicted} ({pair.count:,})")
    names = ["class", "objects", "box AP", "box AP50", "mask AP", "mask AP50", "found", "right when said", "taken for"]
    if evaluation.masks is None:
        del names[4:6]
    rows = [_class_row(evaluation, k, taken_for.get(evaluation.classes[k], "")) for k in order]
    note = (
        f"The hardest first. Found is recall, right when said is precision, at IoU 0.5 of boxes and a score of at "
        f"least {evaluation.threshold:.2f}"
        + (", which has the best F1 on these images." if evaluation.best_f1 else ".")
    )
    content = table(names, rows, numbers=("objects",))
    return section("Class by class", note, f'<div class="wide{" scroll" if len(rows) > 25 else ""}">{content}</div>')


def _class_row(evaluation: DetectionEvaluation, k: int, taken_for: str) -> str:
    score = evaluation.per_class[k]
    shares = [score.box_ap, score.box_ap50]
    shares += [] if evaluation.masks is None else [score.mask_ap, score.mask_ap50]
    cells = "".join(f'<td class="share">{meter(share)}</td>' for share in (*shares, score.recall, score.precision))
    return (
        f'<tr><td class="name"><span class="named">{swatch(evaluation.colours[k])}{text(score.name)}</span></td>'
        f'<td class="number">{score.objects:,}</td>{cells}<td class="name">{text(taken_for)}</td></tr>'
    )


def _recalls(evaluation: DetectionEvaluation) -> str:
    there = _with_objects(evaluation)
    shown = sorted(sorted(there, key=lambda k: -evaluation.per_class[k].objects)[:MOST_CURVES])
    note = "At IoU 0.5, each point the best precision at that recall or a higher one; before the names the area below."
    if len(shown) < len(there):
        note += f" The {len(shown)} classes with the most objects, of {len(there)}."
    charts = []
    for kind, found in _kinds(evaluation).items():
        lines = [
            Recalls(_curve_name(found.per_class50[k], evaluation.classes[k]), found.precision[0, :, k], colour)
            for k, colour in ((k, evaluation.colours[k]) for k in shown)
        ]
        every = found.precision[:, :, there]
        if len(there) > 1:
            lines.append(Recalls(_curve_name(found.ap50, "all classes"), every[0].mean(axis=1), style="mean"))
        lines.append(Recalls(_curve_name(found.ap, "IoU 0.5 to 0.95"), every.mean(axis=(0, 2)), style="means"))
        charts.append(f"<div><h3>{kind.capitalize()}</h3>{recall_chart(lines)}</div>")
    return section("What it costs to find more", note, f'<div class="charts recalls">{"".join(charts)}</div>')


def _curve_name(area: float | None, name: str) -> str:
    return f"{_percent(area)} {name}"


def _confusion(evaluation: DetectionEvaluation) -> str:
    places = [*evaluation.judged, len(evaluation.classes)]
    confusion = evaluation.confusion[np.ix_(places, places)]
    names = [*(evaluation.classes[k] for k in evaluation.judged), BACKGROUND]
    shown = len(shown_classes(confusion))
    note = (
        f"Boxes with a score of at least {evaluation.threshold:.2f}, each with the object that it overlaps most, at "
        "IoU 0.5. In the last column objects that were missed, in the last row boxes where there is nothing."
    )
    if shown < len(names):
        note += f" The {shown} classes with the most mistakes, of {len(names)}."
    pairs = [f"<li><b>{pair.count:,}</b> × {_said(pair)}</li>" for pair in evaluation.confusions()[:MOST_PAIRS]]
    chart = f'<div class="wide">{confusion_chart(confusion, names)}</div>'
    beside = f'<ul class="pairs">{"".join(pairs)}</ul>' if pairs else ""
    return section("What is taken for what", note, f'<div class="matrix">{chart}{beside}</div>')


def _said(pair: Any) -> str:
    if pair.predicted == BACKGROUND:
        return f"{text(pair.truth)} missed"
    if pair.truth == BACKGROUND:
        return f"{text(pair.predicted)} where there is nothing"
    return f"{text(pair.truth)} taken for {text(pair.predicted)}"


def _hardness(score: ObjectScore) -> tuple[bool, float]:
    return score.box_ap is None, score.box_ap or 0.0


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _style() -> str:
    """What pages of pictures share, and what is only here."""
    folder = resources.files("swindow.reporting")
    return "\n".join(
        folder.joinpath(f"{name}.css").read_text(encoding="utf-8") for name in ("segmentation", "detection")
    )
