"""What pages are made of: headline figures, sections, tables, pictures and curves, as HTML that names cannot break.

Everything that comes from outside goes through `text`; what the other functions take and give is HTML already.
"""

import base64
import html
import io
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from PIL import Image

from swindow._version import __version__
from swindow.charts import Number, Series, line_chart
from swindow.progress import clock
from swindow.shapes import Pixels
from swindow.sheets import clean, to_picture

PICTURE_SIDE = 192
"""Largest side of an embedded picture, in pixels; at most 48 of them keep the page well below 3 MB."""
SMALL = 64
"""Largest side of a picture that is shown as it is, with its pixels visible."""


class Curve(NamedTuple):
    """One chart of what metrics.jsonl holds."""

    heading: str
    train: str
    """What training calls it; empty where only evaluations measure it."""
    val: str
    """What evaluations call it; empty where only training measures it."""
    form: str
    floor: float | None = None
    """Where the axis begins; None: at the least value."""


LEARNING_RATE = Curve("Learning rate, share of the peak", "lr_share", "", "{:.2g}", floor=0.0)


def page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """The whole file; `style` is added to the style sheet that all pages share."""
    template = resources.files("swindow").joinpath("report_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=title, body="\n".join(parts), version=__version__, style=style)


def run_title(facts: Mapping[str, Any], folder: Path) -> str:
    """The model and the folder's name."""
    return text(f"{facts['model']}: {folder.name}" if "model" in facts else folder.name)


def headline(title: str, figures: Sequence[str], facts: Mapping[str, Any], *, eyebrow: str = "training run") -> str:
    """The top of the page."""
    return (
        f'<header><p class="eyebrow">{eyebrow}</p><h1>{title}</h1>'
        f'<p>{text(facts.get("data", ""))}</p><dl class="figures">{"".join(figures)}</dl></header>'
    )


def figure(name: str, value: str, note: str = "", *, cls: str = "") -> str:
    """One number of the headline."""
    return f'<div class="{cls}"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'


def run_figures(facts: Mapping[str, Any]) -> list[str]:
    """What the run took: parameters, time and memory, as far as they are known."""
    figures = []
    if "parameters" in facts:
        figures.append(figure("parameters", short_count(facts["parameters"]), text(facts.get("model", ""))))
    if "seconds" in facts:
        figures.append(figure("training time", clock(float(facts["seconds"])), _work(facts)))
    if facts.get("peak_memory_gib"):  # 0 where the system keeps no such figure
        figures.append(figure("peak memory", f"{facts['peak_memory_gib']:.2f} GiB", _held_by(facts.get("device", ""))))
    return figures


def curves(path: Path, charts: Iterable[Curve], *, remark: str = "") -> str:
    """The section that says how a run went, from its metrics.jsonl; charts without a value are left out."""
    rows = read_metrics(path)
    train, val = rows.get("train", []), rows.get("val", [])
    drawn = [
        f"<div><h3>{curve.heading}</h3>{chart}</div>" for curve in charts if (chart := _line_chart(curve, train, val))
    ]
    note = "By step. Training values are means over augmented images, as the model saw them; hence they can be worse."
    return section(
        "How it learned",
        note + remark,
        f'<div class="charts">{"".join(drawn)}</div>' if drawn else none("No measurements."),
    )


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


def settings(path: Path) -> str:
    """The section that holds a run's config.toml; nothing where there is none."""
    content = path.read_text(encoding="utf-8") if path.exists() else ""
    shown = f"<details><summary>config.toml</summary><pre>{html.escape(content)}</pre></details>"
    note = "All of them; the file runs again with swindow train --config."
    return section("Settings", note, shown) if content else ""


def environment(path: Path) -> str:
    """The section that holds a run's environment.json; nothing where there is none."""
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = "".join(f"<tr><th>{text(key)}</th><td>{text(_plain(value))}</td></tr>" for key, value in facts.items())
    return section("Where it ran", "", f'<div class="wide"><table class="facts">{rows}</table></div>') if rows else ""


def section(title: str, note: str, content: str) -> str:
    """A card of the page."""
    return f"<section><h2>{title}</h2>{f'<p>{note}</p>' if note else ''}{content}</section>"


def none(words: str) -> str:
    """What a section says instead of what it would hold."""
    return f"<p>{words}</p>"


def table(names: Iterable[str], rows: Iterable[str], *, numbers: Container[str] = ()) -> str:
    """Rows under the names of their columns, of which those in `numbers` stand on the right."""
    head = "".join(f'<th class="number">{name}</th>' if name in numbers else f"<th>{name}</th>" for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def meter(share: float | None) -> str:
    """A share of 0..1 as a number and a bar; a dash where there is none."""
    if share is None:
        return "<span>–</span>"
    return f'<span>{share:.1%}</span><b class="meter"><i style="width:{share:.1%}"></i></b>'


def swatch(colour: tuple[int, int, int] | None) -> str:
    """A square in the colour of a class; without one it is hatched."""
    return f'<i class="swatch" style="background:rgb{colour}"></i>' if colour else '<i class="swatch hatched"></i>'


def picture(pixels: Pixels, alt: str, caption: str) -> str:
    """A picture inside the page: small ones as they are, with their pixels visible, others reduced."""
    shown = to_picture(pixels)
    small = max(shown.size) <= SMALL
    shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE), reducing_gap=2.0)
    content = io.BytesIO()
    shown.save(content, "PNG" if small else "JPEG", optimize=True, **({} if small else {"quality": 82}))
    return framed(content.getvalue(), alt, caption, cls="pixels" if small else "photo")


def framed(content: bytes, alt: str, caption: str, *, cls: str) -> str:
    """A PNG or JPEG file inside the page, with what stands below it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><div class="box"><img class="{cls}" alt="{text(alt)}" '
        f'src="data:image/{kind};base64,{data}"></div><figcaption>{caption}</figcaption></figure>'
    )


def compressed(shown: Image.Image, most: int) -> bytes:
    """As PNG if that takes at most `most` bytes, else as the best JPEG that does, or as the smallest.

    Without Pillow's ``optimize``, whose buffer is too small for noisy pictures ("broken data stream").
    """
    content = io.BytesIO()
    shown.save(content, "PNG", optimize=True)
    for quality in (88, 76, 60, 40, 15):
        if content.tell() <= most:
            break
        content = io.BytesIO()
        shown.save(content, "JPEG", quality=quality, subsampling=0)  # borders of classes stay sharp
    return content.getvalue()


def text(value: object) -> str:
    """Any value as text that is safe between tags and in quotes."""
    return html.escape(clean(str(value)), quote=True)


def short_name(name: str) -> str:
    """The last two parts of a path: folders above the class say nothing here."""
    return "/".join(Path(name).parts[-2:])


def short_count(number: int) -> str:
    """Millions with one digit behind the point, smaller numbers in full."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def _work(facts: Mapping[str, Any]) -> str:
    """How much was done, and whether that was all that was meant to be."""
    parts = [f"{facts[name]:,} {name}" for name in ("epochs", "steps") if name in facts]
    if facts.get("stopped_by", "finished") != "finished":
        parts.append(f"stopped by {facts['stopped_by']}")
    if facts.get("skipped_images"):
        parts.append(f"{facts['skipped_images']:,} unreadable images skipped")
    return text(", ".join(parts))


def _held_by(device: str) -> str:
    """Whose memory it is that `swindow.devices.peak_memory` tells."""
    holders = {"cpu": "the whole process", "cuda": "tensors", "mps": "the driver"}
    return text(f"{holders.get(device.split(':')[0], '')} on {device}" if device else "")


def _line_chart(curve: Curve, train: list[dict[str, Any]], val: list[dict[str, Any]]) -> str:
    series = [
        Series("training", "train", _points(train, curve.train)),
        Series("validation", "val", _points(val, curve.val)),
    ]
    return line_chart(curve.val or curve.train, series, form=curve.form.format, floor=curve.floor)


def _points(rows: Iterable[dict[str, Any]], key: str) -> list[tuple[Number, Number]]:
    pairs = [(row["step"], row.get(key)) for row in rows]
    return [(step, value) for step, value in pairs if isinstance(value, (int, float)) and math.isfinite(value)]


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
