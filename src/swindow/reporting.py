"""A training run as one page that needs nothing else: what was learned, how it went, where it fails."""

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from swindow._version import __version__
from swindow.charts import Number, Series, confusion_chart, line_chart, reliability_chart, shown_classes
from swindow.checkpoints.files import write_atomic
from swindow.data import Images
from swindow.errors import DataError
from swindow.evaluation import Evaluation
from swindow.metrics import ClassScore, accuracy_interval, reliability
from swindow.progress import clock
from swindow.shapes import Pixels
from swindow.sheets import clean, label_texts, to_picture

MOST_MISTAKES = 24
MOST_BATCH = 24
PICTURE_SIDE = 192
"""Largest side of an embedded picture, in pixels; at most 48 of them keep the page well below 3 MB."""


def write_report(
    run: str | Path,
    *,
    evaluation: Evaluation,
    images: Images,
    batch: UInt8[Tensor, "B C h w"] | None,
    labels: Int64[Tensor, " B"] | Float[Tensor, "B K"] | None,
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` into a run folder, from its files and what is handed in; return its path.

    `images` are those of `evaluation`, in its order. `batch` is a training batch after augmentation, in pixels, with
    its `labels`. Of `facts` the page tells: data, model, recipe, parameters, seconds, steps, epochs, stopped_by,
    skipped_images, peak_memory_gib, device.

    Raises:
        DataError: `images` are not those that were evaluated.
    """
    run = Path(run)
    if len(images) != evaluation.count:
        raise DataError(f"{len(images)} images for an evaluation of {evaluation.count}; give the split that it judged")
    body = [
        _headline(evaluation, facts, run),
        _curves(run / "metrics.jsonl"),
        _confusion(evaluation),
        _per_class(evaluation),
        _calibration(evaluation),
        _mistakes(evaluation, images),
        _batch(batch, labels, classes),
        _settings(run / "config.toml"),
        _environment(run / "environment.json"),
    ]
    template = resources.files("swindow").joinpath("report_template.html").read_text(encoding="utf-8")
    page = Template(template).substitute(title=_title(facts, run), body="\n".join(body), version=__version__)
    write_atomic(run / "report.html", page)
    return run / "report.html"


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Measurements of a run by their kind, in rising step, each step once; torn lines are left out."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows.setdefault(row["kind"], {})[row["step"]] = row
        except (ValueError, KeyError, TypeError):  # a crash tore the line; the run took the step again
            continue
    return {kind: [by_step[step] for step in sorted(by_step)] for kind, by_step in rows.items()}


def _title(facts: Mapping[str, Any], run: Path) -> str:
    return _text(f"{facts['model']}: {run.name}" if "model" in facts else run.name)


def _headline(evaluation: Evaluation, facts: Mapping[str, Any], run: Path) -> str:
    right = round(evaluation.accuracy * evaluation.count)
    low, high = accuracy_interval(right, evaluation.count)
    figures = [
        _figure(
            f"accuracy on {_text(evaluation.split)}",
            f"{evaluation.accuracy:.2%}",
            f"{right:,} of {evaluation.count:,} images; 95% interval {low:.1%} to {high:.1%}",
            cls="main",
        )
    ]
    if evaluation.top5 is not None:
        figures.append(_figure("top five", f"{evaluation.top5:.2%}"))
    figures.append(
        _figure("cross-entropy", f"{evaluation.loss:.3f}", f"{math.log(len(evaluation.classes)):.2f} by chance")
    )
    figures.append(_figure("calibration error", f"{evaluation.calibration_error:.1%}"))
    if "parameters" in facts:
        figures.append(_figure("parameters", _count(facts["parameters"]), _text(facts.get("model", ""))))
    if "seconds" in facts:
        figures.append(_figure("training time", clock(float(facts["seconds"])), _work(facts)))
    if facts.get("peak_memory_gib"):  # 0 where the system keeps no such figure
        figures.append(_figure("peak memory", f"{facts['peak_memory_gib']:.2f} GiB", _held_by(facts.get("device", ""))))
    return (
        f'<header><p class="eyebrow">training run</p><h1>{_title(facts, run)}</h1>'
        f'<p>{_text(facts.get("data", ""))}</p><dl class="figures">{"".join(figures)}</dl></header>'
    )


def _figure(name: str, value: str, note: str = "", *, cls: str = "") -> str:
    return f'<div class="{cls}"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'


def _work(facts: Mapping[str, Any]) -> str:
    """How much was done, and whether that was all that was meant to be."""
    parts = [f"{facts[name]:,} {name}" for name in ("epochs", "steps") if name in facts]
    if facts.get("stopped_by", "finished") != "finished":
        parts.append(f"stopped by {facts['stopped_by']}")
    if facts.get("skipped_images"):
        parts.append(f"{facts['skipped_images']:,} unreadable images skipped")
    return _text(", ".join(parts))


def _held_by(device: str) -> str:
    """Whose memory it is that `swindow.devices.peak_memory` tells."""
    holders = {"cpu": "the whole process", "cuda": "tensors", "mps": "the driver"}
    return _text(f"{holders.get(device.split(':')[0], '')} on {device}" if device else "")


def _curves(path: Path) -> str:
    rows = read_metrics(path)
    train, val = rows.get("train", []), rows.get("val", [])
    charts = {
        "Loss": _line_chart("loss", train, val, "{:.3g}"),
        "Accuracy": _line_chart("accuracy", train, val, "{:.0%}"),
        "Learning rate, share of the peak": _line_chart("lr_share", train, [], "{:.2g}", floor=0.0),
    }
    drawn = [f"<div><h3>{name}</h3>{chart}</div>" for name, chart in charts.items() if chart]
    note = "By step. Training values are means over augmented images, as the model saw them; hence they can be worse."
    return _section(
        "How it learned", note, f'<div class="charts">{"".join(drawn)}</div>' if drawn else _none("No measurements.")
    )


def _line_chart(
    key: str, train: list[dict[str, Any]], val: list[dict[str, Any]], form: str, *, floor: float | None = None
) -> str:
    series = [Series("training", "train", _points(train, key)), Series("validation", "val", _points(val, key))]
    return line_chart(key, series, form=form.format, floor=floor)


def _points(rows: Iterable[dict[str, Any]], key: str) -> list[tuple[Number, Number]]:
    pairs = [(row["step"], row.get(key)) for row in rows]
    return [(step, value) for step, value in pairs if isinstance(value, (int, float)) and math.isfinite(value)]


def _confusion(evaluation: Evaluation) -> str:
    shown = len(shown_classes(evaluation.confusion))
    numbers = "numbers are images" if shown <= 25 else "point at a cell for its number"
    note = f"Rows are true classes, columns the model's answers. Colour is the share of the row; {numbers}."
    if shown < len(evaluation.classes):
        note += f" The {shown} classes with the most mistakes, of {len(evaluation.classes)}."
    pairs = [
        f"<li><b>{pair.count}</b> × {_text(pair.truth)} taken for {_text(pair.predicted)}</li>"
        for pair in evaluation.confusions()[:10]
    ]
    chart = f'<div class="wide">{confusion_chart(evaluation.confusion, evaluation.classes)}</div>'
    beside = f'<ul class="pairs">{"".join(pairs)}</ul>' if pairs else ""
    return _section("What is taken for what", note, f'<div class="matrix">{chart}{beside}</div>')


def _per_class(evaluation: Evaluation) -> str:
    order = sorted(evaluation.per_class, key=lambda score: (score.count == 0, score.f1 or 0.0))
    taken_for: dict[str, str] = {}
    for pair in evaluation.confusions():
        taken_for.setdefault(pair.truth, f"{pair.predicted} ({pair.count})")
    rows = "".join(_score_row(score, taken_for.get(score.name, "")) for score in order)
    names = ("class", "images", "found", "right when said", "F1", "most often taken for")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    note = "The hardest first. Found is recall, right when said is precision."
    return _section("Class by class", note, f'<div class="wide{" scroll" if len(order) > 25 else ""}">{table}</div>')


def _score_row(score: ClassScore, taken_for: str) -> str:
    shares = "".join(f'<td class="share">{_meter(share)}</td>' for share in (score.recall, score.precision, score.f1))
    return (
        f'<tr><td class="name">{_text(score.name)}</td><td class="number">{score.count:,}</td>{shares}'
        f'<td class="name">{_text(taken_for)}</td></tr>'
    )


def _meter(share: float | None) -> str:
    if share is None:
        return "<span>–</span>"
    return f'<span>{share:.1%}</span><b class="meter"><i style="width:{share:.1%}"></i></b>'


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
    return _section(
        "How far to trust its confidence", "", f'<div class="side"><div>{chart}</div><div>{words}</div></div>'
    )


def _mistakes(evaluation: Evaluation, images: Images) -> str:
    rows = evaluation.mistakes()
    if not rows:
        return _section("Most confident mistakes", "", _none("None: every image was answered rightly."))
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
            _picture(
                images.read(row),
                f"{evaluation.names[row]}: {truth}, taken for {answer}",
                f'<b>{_text(truth)}</b><br><span class="said">{_text(answer)} {share:.1%}</span>'
                f"<small>{_text(_short_name(evaluation.names[row]))}</small>",
            )
        )
    return _section("Most confident mistakes", note, f'<div class="pictures">{"".join(figures)}</div>')


def _batch(batch: Tensor | None, labels: Tensor | None, classes: Sequence[str]) -> str:
    if batch is None or labels is None:
        return ""
    texts = label_texts(labels[:MOST_BATCH], classes)
    figures = [
        _picture(pixels, f"training image of {text}", _text(text))
        for pixels, text in zip(batch[:MOST_BATCH], texts, strict=True)
    ]
    note = (
        f"{len(figures)} of {len(batch)} images of a training batch, cropped, changed and mixed as the model gets them."
    )
    return _section("What the model saw", note, f'<div class="pictures">{"".join(figures)}</div>')


def _settings(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    shown = f"<details><summary>config.toml</summary><pre>{html.escape(text)}</pre></details>"
    return _section("Settings", "All of them; the file runs again with swindow train --config.", shown) if text else ""


def _environment(path: Path) -> str:
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = "".join(f"<tr><th>{_text(key)}</th><td>{_text(_plain(value))}</td></tr>" for key, value in facts.items())
    return _section("Where it ran", "", f'<div class="wide"><table class="facts">{rows}</table></div>') if rows else ""


def _section(title: str, note: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{f'<p>{note}</p>' if note else ''}{content}</section>"


def _none(words: str) -> str:
    return f"<p>{words}</p>"


def _picture(pixels: Pixels, alt: str, caption: str) -> str:
    """A picture inside the page: small ones as they are, with their pixels visible, others reduced."""
    picture = to_picture(pixels)
    small = max(picture.size) <= 64
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), reducing_gap=2.0)
    content = io.BytesIO()
    picture.save(content, "PNG" if small else "JPEG", optimize=True, **({} if small else {"quality": 82}))
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return (
        f'<figure><div class="box"><img class="{"pixels" if small else "photo"}" alt="{_text(alt)}" '
        f'src="data:image/{"png" if small else "jpeg"};base64,{data}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _text(value: object) -> str:
    """Any value as text that is safe between tags and in quotes."""
    return html.escape(clean(str(value)), quote=True)


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


def _short_name(name: str) -> str:
    """The last two parts of a path: folders above the class say nothing here."""
    return "/".join(Path(name).parts[-2:])


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
