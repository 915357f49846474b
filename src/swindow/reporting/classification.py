"""The page of a classifier: what it takes for what, how far to trust it, which mistakes it is surest of."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from swindow.charts import confusion_chart, reliability_chart, shown_classes
from swindow.data import Images
from swindow.evaluation import Evaluation
from swindow.metrics import ClassScore, accuracy_interval, reliability
from swindow.reporting.page import (
    LEARNING_RATE,
    Curve,
    curves,
    environment,
    figure,
    headline,
    meter,
    none,
    page,
    picture,
    run_figures,
    run_title,
    section,
    settings,
    short_name,
    table,
    text,
)
from swindow.sheets import label_texts

MOST_MISTAKES = 24
MOST_BATCH = 24
CURVES = (Curve("Loss", "loss", "loss", "{:.3g}"), Curve("Accuracy", "accuracy", "accuracy", "{:.0%}"), LEARNING_RATE)


def run_page(
    run: Path,
    evaluation: Evaluation,
    images: Images,
    batch: Tensor | None,
    labels: Tensor | None,
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """All that a run folder and its last evaluation tell."""
    title = run_title(facts, run)
    return page(
        title,
        [
            headline(title, [*_scores(evaluation), *run_figures(facts)], facts),
            curves(run / "metrics.jsonl", CURVES),
            *_judgement(evaluation, images),
            _batch(batch, labels, classes),
            settings(run / "config.toml"),
            environment(run / "environment.json"),
        ],
    )


def evaluation_page(title: str, evaluation: Evaluation, images: Images, facts: Mapping[str, Any]) -> str:
    """What one evaluation tells, without a run around it."""
    figures = [*_scores(evaluation), *run_figures(facts)]
    return page(
        text(title), [headline(text(title), figures, facts, eyebrow="evaluation"), *_judgement(evaluation, images)]
    )


def _judgement(evaluation: Evaluation, images: Images) -> list[str]:
    return [_confusion(evaluation), _per_class(evaluation), _calibration(evaluation), _mistakes(evaluation, images)]


def _scores(evaluation: Evaluation) -> list[str]:
    right = round(evaluation.accuracy * evaluation.count)
    low, high = accuracy_interval(right, evaluation.count)
    figures = [
        figure(
            f"accuracy on {text(evaluation.split)}",
            f"{evaluation.accuracy:.2%}",
            f"{right:,} of {evaluation.count:,} images; 95% interval {low:.1%} to {high:.1%}",
            cls="main",
        )
    ]
    if evaluation.top5 is not None:
        figures.append(figure("top five", f"{evaluation.top5:.2%}"))
    figures.append(
        figure("cross-entropy", f"{evaluation.loss:.3f}", f"{math.log(len(evaluation.classes)):.2f} by chance")
    )
    figures.append(figure("calibration error", f"{evaluation.calibration_error:.1%}"))
    return figures


def _confusion(evaluation: Evaluation) -> str:
    shown = len(shown_classes(evaluation.confusion))
    numbers = "numbers are images" if shown <= 25 else "point at a cell for its number"
    note = f"Rows are true classes, columns the model's answers. Colour is the share of the row; {numbers}."
    if shown < len(evaluation.classes):
        note += f" The {shown} classes with the most mistakes, of {len(evaluation.classes)}."
    pairs = [
        f"<li><b>{pair.count}</b> × {text(pair.truth)} taken for {text(pair.predicted)}</li>"
        for pair in evaluation.confusions()[:10]
    ]
    chart = f'<div class="wide">{confusion_chart(evaluation.confusion, evaluation.classes)}</div>'
    beside = f'<ul class="pairs">{"".join(pairs)}</ul>' if pairs else ""
    return section("What is taken for what", note, f'<div class="matrix">{chart}{beside}</div>')


def _per_class(evaluation: Evaluation) -> str:
    order = sorted(evaluation.per_class, key=lambda score: (score.count == 0, score.f1 or 0.0))
    taken_for: dict[str, str] = {}
    for pair in evaluation.confusions():
        taken_for.setdefault(pair.truth, f"{pair.predicted} ({pair.count})")
    names = ("class", "images", "found", "right when said", "F1", "most often taken for")
    scores = table(names, [_score_row(score, taken_for.get(score.name, "")) for score in order])
    note = "The hardest first. Found is recall, right when said is precision."
    return section("Class by class", note, f'<div class="wide{" scroll" if len(order) > 25 else ""}">{scores}</div>')


def _score_row(score: ClassScore, taken_for: str) -> str:
    shares = "".join(f'<td class="share">{meter(share)}</td>' for share in (score.recall, score.precision, score.f1))
    return (
        f'<tr><td class="name">{text(score.name)}</td><td class="number">{score.count:,}</td>{shares}'
        f'<td class="name">{text(taken_for)}</td></tr>'
    )


def _calibration(evaluation: Evaluation) -> str:
    bins = reliability(evaluation.probabilities, evaluation.labels)
    confidence = float(evaluation.probabilities.max(axis=1).mean())
    lean = "more" if confidence > evaluation.accuracy else "less"
    words = (
        f"<p>On average the model is {confidence:.1%} sure and right in {evaluation.accuracy:.1%} of cases: "
        f"{lean} sure than it should be, by {abs(confidence - evaluation.accuracy):.1%}.</p>"
        f"<p>Expected calibration error: {evaluation.calibration_error:.1%}, the gap between confidence and accuracy "
        "averaged over all images in 15 bins.</p>"
        "<p>On the dashed line, an answer that is 80% sure is right 8 times in 10. "
        "A red top is where the model is surer than it is right, a pale one where it is right more often than it is "
        "sure. The small bars below count the answers.</p>"
    )
    chart = reliability_chart(bins)
    return section(
        "How far to trust its confidence", "", f'<div class="side"><div>{chart}</div><div>{words}</div></div>'
    )


def _mistakes(evaluation: Evaluation, images: Images) -> str:
    rows = evaluation.mistakes()
    if not rows:
        return section("Most confident mistakes", "", none("None: every image was answered rightly."))
    note = (
        f"The {min(len(rows), MOST_MISTAKES)} surest of {len(rows):,} wrong answers: bold the label, red the answer. "
        "Now and then it is the label that is wrong."
    )
    figures = []
    for row in rows[:MOST_MISTAKES]:
        said = int(evaluation.probabilities[row].argmax())
        truth, answer = evaluation.classes[evaluation.labels[row]], evaluation.classes[said]
        share = evaluation.probabilities[row, said]
        figures.append(
            picture(
                images.read(row),
                f"{evaluation.names[row]}: {truth}, taken for {answer}",
                f'<b>{text(truth)}</b><br><span class="said">{text(answer)} {share:.1%}</span>'
                f"<small>{text(short_name(evaluation.names[row]))}</small>",
            )
        )
    return section("Most confident mistakes", note, f'<div class="pictures">{"".join(figures)}</div>')


def _batch(batch: Tensor | None, labels: Tensor | None, classes: Sequence[str]) -> str:
    if batch is None or labels is None:
        return ""
    texts = label_texts(labels[:MOST_BATCH], classes)
    figures = [
        picture(pixels, f"training image of {words}", text(words))
        for pixels, words in zip(batch[:MOST_BATCH], texts, strict=True)
    ]
    note = (
        f"{len(figures)} of {len(batch)} images of a training batch, cropped, changed and mixed as the model gets them."
    )
    return section("What the model saw", note, f'<div class="pictures">{"".join(figures)}</div>')
