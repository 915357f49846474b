"""Sheets of small pictures with a caption under each: what a model said, or what it was shown."""

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from swindow.shapes import Pixels

PAPER, CARD, INK, FAINT, ACCENT, ALARM = "#ffffff", "#f1f3f5", "#1b1f24", "#6b7480", "#2f6fde", "#c4382b"
SIDE, GAP, PAD, LINE = 168, 18, 24, 19


class Tile(NamedTuple):
    """One picture and its caption; without a picture, a card that says why."""

    picture: Image.Image | None
    title: str
    note: str = ""
    share: float | None = None
    """In 0..1: written beside the title and drawn as a bar."""


def sheet(
    tiles: Sequence[Tile],
    *,
    side: int = SIDE,
    heading: str = "",
    footer: str = "",
    key: Callable[[int], Image.Image] | None = None,
) -> Image.Image:
    """Tiles in reading order on a grid about as wide as high, of at most eight columns.

    `key` draws what explains their colours, at a width that it is given; it stands below them.
    """
    columns = min(8, max(1, math.ceil(math.sqrt(len(tiles)))))
    rows = math.ceil(len(tiles) / columns)
    noted = any(tile.note for tile in tiles)
    height = side + 14 + LINE * (2 if noted else 1) + GAP
    width = max(columns * (side + GAP) - GAP, 360)
    top = PAD + (LINE + 12 if heading else 0)
    below = LINE + 6 if footer else 0
    legend = key(width) if key else Image.new("RGB", (1, 0))
    under = top + rows * height - GAP + (LINE if key else 0)
    paper = Image.new("RGB", (width + 2 * PAD, under + legend.height + below + PAD), PAPER)
    paper.paste(legend, (PAD, under))
    draw = ImageDraw.Draw(paper)
    write(draw, (PAD, PAD), heading, width, size=16)
    for index, tile in enumerate(tiles):
        left, above = PAD + index % columns * (side + GAP), top + index // columns * height
        _draw_tile(paper, draw, tile, left, above, side)
    write(draw, (PAD, paper.height - PAD - LINE + 4), footer, width, colour=FAINT)
    return paper


def thumbnail(pixels: Pixels, side: int) -> Image.Image:
    """A picture that fits a square: small ones enlarged by whole factors with their pixels visible, others reduced.

    Two channels show as the first in grey, four or more as the first three in colour.
    """
    picture = to_picture(pixels)
    factor = side // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return picture


def to_picture(pixels: Pixels) -> Image.Image:
    """8-bit pixels as a grey or colour picture."""
    shown = pixels[:3] if len(pixels) >= 3 else pixels[:1]
    array = shown.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def augmented_batch(
    images: UInt8[Tensor, "B C h w"],
    labels: Int64[Tensor, " B"] | Float[Tensor, "B K"],
    classes: Sequence[str],
    *,
    most: int = 32,
    side: int = 128,
) -> Image.Image:
    """A batch as the model saw it, each image with its label."""
    tiles = [
        Tile(thumbnail(image, side), label)
        for image, label in zip(images[:most], label_texts(labels[:most], classes), strict=True)
    ]
    rest = len(images) - len(tiles)
    return sheet(tiles, side=side, footer=f"{len(tiles)} of {len(images)} images of the batch" if rest else "")


def label_texts(labels: Int64[Tensor, " B"] | Float[Tensor, "B K"], classes: Sequence[str]) -> list[str]:
    """Labels in words: a class, or the classes that a mixed image consists of with their shares."""
    if labels.ndim == 1:
        return [classes[int(label)] for label in labels]
    return [_mixture(shares, classes) for shares in labels]


def clean(text: str) -> str:
    """Any text on one line that can be drawn and encoded: control characters and lone surrogates are replaced."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(encodable.split()))


def _mixture(shares: Float[Tensor, " K"], classes: Sequence[str]) -> str:
    top = torch.topk(shares, min(2, len(classes)))
    parts = [(classes[int(index)], float(share)) for share, index in zip(*top, strict=True) if share >= 0.005]
    if len(parts) == 1 or parts[0][1] > 0.995:
        return parts[0][0]
    return " + ".join(f"{share:.0%} {name}" for name, share in parts)


def _draw_tile(paper: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, side: int) -> None:
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill=CARD)
    if tile.picture is None:
        draw.line((left + side * 0.4, top + side * 0.4, left + side * 0.6, top + side * 0.6), fill=ALARM, width=3)
        draw.line((left + side * 0.6, top + side * 0.4, left + side * 0.4, top + side * 0.6), fill=ALARM, width=3)
    else:
        inset = (side - tile.picture.width) // 2, (side - tile.picture.height) // 2
        paper.paste(tile.picture, (left + inset[0], top + inset[1]))
    below, room = top + side + 5, side
    if tile.share is not None:
        draw.rectangle((left, below, left + side - 1, below + 2), fill=CARD)
        draw.rectangle((left, below, left + max(round(side * tile.share), 1) - 1, below + 2), fill=ACCENT)
        percent = f"{tile.share:.0%}"
        taken = font(13).getlength(percent)
        draw.text((left + side - taken, below + 6), percent, font=font(13), fill=INK)
        room = round(side - taken - 8)
    write(draw, (left, below + 6), tile.title, room, colour=ALARM if tile.picture is None else INK)
    write(draw, (left, below + 6 + LINE), tile.note, side, size=11, colour=FAINT)


def write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int, *, size: int = 13, colour: str = INK
) -> None:
    """Any text on one line of at most `room` pixels."""
    draw.text(place, shortened(clean(text), room, font(size)), font=font(size), fill=colour)


def shortened(text: str, room: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text if it fits, else as much of its start as does, with an ellipsis."""
    if font.getlength(text) <= room:
        return text
    fits = [end for end in range(min(len(text), 200)) if font.getlength(text[:end].rstrip() + "…") <= room]
    return text[: fits[-1]].rstrip() + "…" if fits else ""


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans where matplotlib brings it, for its Greek, Cyrillic and Arabic; else Pillow's own Latin."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
