"""The files of an explanation: PNG pictures and one page that needs nothing beside itself."""

import base64
import html
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from swindow.errors import DataError, require
from swindow.explanation.canvas import DARK, DPI, HEADER, LIGHT, Picture, figure
from swindow.explanation.marks import percent, place_in_picture
from swindow.explanation.pictures import pictures
from swindow.explanation.results import Detected, Explanation, Segmented

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawings = dict[str, tuple[Image.Image, Image.Image]]  # by name, on light and on dark paper


def write(e: Explanation, folder: Path) -> list[Path]:
    """What `Explanation.save` does."""
    require("matplotlib", extra="train")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = _files(e)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise DataError(f"{folder}: cannot write an explanation here ({error.strerror or error})") from error
    return [folder / name for name in files]


def _files(e: Explanation) -> dict[str, bytes]:
    """The page and its pictures, by name."""
    shown = pictures(e)
    drawings = {picture.name: (_pixels(figure(picture, LIGHT)), _pixels(figure(picture, DARK))) for picture in shown}
    page = {"index.html": _page(e, shown, drawings).encode()}
    return page | {f"{name}.png": _encoded(light, "png") for name, (light, _) in drawings.items()}


def _pixels(drawn: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawing = FigureCanvasAgg(drawn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a class name may be in any script
        drawing.draw()
    return Image.fromarray(np.asarray(drawing.buffer_rgba())).convert("RGB")


def _encoded(pixels: Image.Image, format: Literal["png", "webp"]) -> bytes:
    buffer = io.BytesIO()
    pixels.save(buffer, format, quality=84, method=2)
    return buffer.getvalue()


def _page(e: Explanation, shown: list[Picture], drawings: Drawings) -> str:
    sections = {picture.name: _section(picture, *drawings[picture.name]) for picture in shown}
    first = "\n".join(section for name, section in sections.items() if not name.startswith("heads-"))
    heads = "\n".join(section for name, section in sections.items() if name.startswith("heads-"))
    details = f"<details><summary>Every head of every stage</summary>\n{heads}\n</details>" if heads else ""
    name = html.escape(Path(e.name).name)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} explained</title>
<style>{STYLE}</style>
<main>
<header>
<h1>{name}</h1>
<p>{_facts(e)}</p>
</header>
<section class="top">
<div><h2>{_heading(e)}</h2>{_bars(e)}</div>
<div><h2>Stages</h2>{_table(e) if e.stages else f"<p>{html.escape(e.note)}</p>"}</div>
</section>
{first}
{details}
<footer>Made by swindow. Pictures show what the model computed; they are evidence about the model, not about the world.
{WARNING if e.stages or (e.detected is not None and e.detected.attention) else ""}</footer>
</main>
</html>
"""


def _section(picture: Picture, light: Image.Image, dark: Image.Image) -> str:
    title, subtitle, meaning = map(html.escape, (picture.title, picture.subtitle, picture.meaning))
    light, dark = (_untitled(pixels) for pixels in (light, dark))
    return f"""<section>
<h2>{title}</h2>
<p>{meaning}<br><small>{subtitle}</small></p>
<picture><source srcset="{_data(dark)}" media="(prefers-color-scheme: dark)"><img src="{_data(light)}" alt="{title}">
</picture>
</section>"""


def _untitled(pixels: Image.Image) -> Image.Image:
    """A picture less its title, which the page says itself."""
    return pixels.crop((0, round(HEADER * DPI), *pixels.size))


def _data(pixels: Image.Image) -> str:
    return "data:image/webp;base64," + base64.b64encode(_encoded(pixels, "webp")).decode()


def _heading(e: Explanation) -> str:
    """What the bars are of."""
    if e.detected is not None:
        count = len(e.detected.found)
        return "The one object found" if count == 1 else f"The surest of {count:,} objects found"
    return "Prediction" if e.segmented is None else f"Prediction at {place_in_picture(e)}"


def _facts(e: Explanation) -> str:
    if e.segmented is not None:
        return _facts_of_pixel(e, e.segmented)
    if e.detected is not None:
        return _facts_of_object(e, e.detected)
    (height, width), (rows, columns) = e.frame.photo, e.frame.input
    x, y = e.point.x, e.point.y
    seen = float(e.frame.seen().mean())
    part = "all of it" if seen == 1 else f"{100 * seen:.0f} % of it"
    how = "as chosen" if e.point.chosen else "where Grad-CAM is strongest" if e.gradcam.any() else "the middle"
    return (
        f"The photo has {width} × {height} pixels. The model saw {part}, as {columns} × {rows} pixels. "
        f"The point followed below is ({x}, {y}), {how}."
    )


def _facts_of_pixel(e: Explanation, answer: Segmented) -> str:
    (height, width), (tall, wide), (rows, columns) = answer.picture, e.frame.photo, e.frame.input
    part = (
        f"That is large for this model, which saw the window of {wide} × {tall} pixels that begins at "
        f"{answer.origin}, around the pixel, as"
        if answer.windowed
        else "The model saw all of it, as"
    )
    target, pixel = f"“{html.escape(e.target)}”", f"the pixel {place_in_picture(e)}"
    region = f"the largest region of {target}" + (" in the whole picture" if answer.windowed else "")
    how = f"the most confident one of {region}"
    if e.point.chosen:
        how = "as chosen"
    elif not answer.windowed and answer.classes.index(e.target) not in answer.mask:
        how = f"where {target}, which is predicted nowhere, is most probable"
    asked = f"{target} at {pixel}"
    if answer.region:
        followed = "attention is that of" if e.stages else "marked is"
        asked = f"all pixels predicted as {target}; {followed} {pixel}"
    return (
        f"The picture has {width} × {height} pixels. {part} {columns} × {rows} pixels. Explained below: {asked}, {how}."
    )


def _facts_of_object(e: Explanation, answer: Detected) -> str:
    (height, width), (rows, columns) = e.frame.photo, e.frame.input
    x1, y1, x2, y2 = (f"{side:.1f}" for side in answer.box)
    rank = "the surest of all" if answer.chosen == 0 else f"object {answer.chosen}, the surest being 0"
    followed = " Window attention is followed from the middle of its box." if e.stages else ""
    return (
        f"The photo has {width} × {height} pixels. The model saw all of it, as {columns} × {rows} pixels. Explained "
        f"below: “{html.escape(e.target)}” from ({x1}, {y1}) to ({x2}, {y2}), {rank}, with a score of "
        f"{percent(e.probability)}.{followed}"
    )


def _bars(e: Explanation) -> str:
    rows = []
    for name, value in e.prediction:
        name, width = html.escape(name), f"{100 * value:.1f}%"
        rows.append(
            f'<tr><th scope="row" title="{name}">{name}</th><td class="bar"><i style="width:{width}"></i></td>'
            f"<td>{percent(value)}</td></tr>"
        )
    return f'<table class="bars">{"".join(rows)}</table>'


def _table(e: Explanation) -> str:
    named = [*((str(number), stage) for number, stage in enumerate(e.stages, start=1))]
    named += [(f"decoder {number}", stage) for number, stage in enumerate(e.decoder, start=1)]
    rows = "".join(
        f"<tr><td>{name}</td><td>{stage.grid[1]} × {stage.grid[0]}</td><td>{stage.window[1]} × {stage.window[0]}"
        f"</td><td>{len(stage.received)}</td><td>{len(stage.received[0])}</td>"
        f"<td>{100 * sum(share.mean() for share in stage.padding) / len(stage.padding):.1f} %</td></tr>"
        for name, stage in named
    )
    names = ("stage", "tokens", "window", "blocks", "heads", "padding share")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{rows}</table>"


WARNING = "Attention says where information came from, not what it was used for."

STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --card: #ffffff; --ink: #1a1f26; --faint: #5b6470;
  --line: #dfe3e8; --bar: #c8471f; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e8edf3; --faint: #9aa5b1;
  --line: #2b323b; --bar: #f58b3c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 0 0 6px; }
p { margin: 0 0 14px; color: var(--faint); max-width: 82ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 18px 0; }
.top { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 24px 40px; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; white-space: nowrap; padding: 4px 10px 4px 0; font-weight: normal;
  border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; } th { color: var(--faint); } .bars th { color: var(--ink); width: 1%; }
.bars th { max-width: 16em; overflow: hidden; text-overflow: ellipsis; }
.bars td:last-child { text-align: right; width: 1%; }
.bar i { display: block; height: 12px; min-width: 2px; border-radius: 3px; background: var(--bar); }
summary { cursor: pointer; font-weight: 600; padding: 8px 2px; }
footer { color: var(--faint); font-size: .88rem; margin-top: 26px; }
"""
