"""Classes drawn over their picture: filled and outlined, explained by a legend, truth beside prediction.

Areas are tinted in the colours of their classes and outlined in the same colour, so that a region of few pixels is seen
as well. Where one class is the background, it is left as the picture is and the others are tinted lightly. Pixels that
do not count are hatched in grey.

Small pictures are enlarged by whole factors with their pixels visible. Large ones are reduced, a strip of rows at a
time; in a displayed pixel that holds several classes the rarest of the mask is shown, so nothing small is lost.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer
from PIL import Image, ImageDraw
from torch import Tensor

from swindow import sheets
from swindow.data.legends import BACKGROUND, RGB, palette
from swindow.errors import ConfigError, ShapeError
from swindow.overlays.keys import GREY, legend
from swindow.rasters import InMemory, Raster
from swindow.shapes import IGNORE, Pixels
from swindow.sheets import CARD, FAINT, GAP, PAD, PAPER, to_picture

TINT, LIGHT_TINT = 0.5, 0.3
"""How much of an area's colour is that of its class; the second where the background is left alone."""
SIDE = 320
"""Longest side of a picture in a comparison."""
STRIP = 2**20  # pixels of a picture or mask in the works at once

Labels = Int[Tensor, "rows columns"] | Integer[np.ndarray, "rows columns"]


class Compared(NamedTuple):
    """A picture with what is true of it and what was answered."""

    pixels: Pixels | Raster
    truth: Labels
    answer: Labels
    title: str = ""
    note: str = ""


def overlay(
    pixels: Pixels | Raster,
    mask: Labels,
    colours: Sequence[RGB],
    *,
    side: int | None = None,
    background: int | None = None,
) -> Image.Image:
    """The classes of `mask` (indices into `colours`, and `IGNORE`) over the picture that they belong to.

    `side` is the longest side in pixels that the result may have; None keeps the picture's size. `background` is the
    class to leave as it is.

    Raises:
        ShapeError: a mask of another size than the picture.
        ConfigError: a mask with more classes than there are colours.
    """
    raster = pixels if isinstance(pixels, Raster) else InMemory(pixels)
    if tuple(mask.shape) != (raster.height, raster.width):
        raise ShapeError(
            f"a mask of {_sides(*mask.shape)} on a picture of {_sides(raster.height, raster.width)} pixels"
        )
    values = _array(mask)
    if values.max() >= len(colours) or values.min() < IGNORE:
        raise ConfigError(f"a mask with labels from {values.min()} to {values.max()} for {len(colours)} colours")
    shown = reduced(raster, side).convert("RGB")
    labels = _labels_at(values, (shown.height, shown.width))
    paint = Image.fromarray(np.array([*colours, GREY], np.uint8)[labels])
    return Image.composite(paint, shown, Image.fromarray(_strength(labels, len(colours), background)))


def reduced(pixels: Pixels | Raster, side: int | None) -> Image.Image:
    """The picture with its longest side at most `side`: smaller ones enlarged by a whole factor, larger ones reduced.

    Two channels show as the first in grey, four or more as the first three in colour.
    """
    raster = pixels if isinstance(pixels, Raster) else InMemory(pixels)
    size = _drawn_size(raster.height, raster.width, side)
    down, across = max(1, raster.height // size[0]), max(1, raster.width // size[1])
    rows = down * max(1, STRIP // (down * raster.width))
    strips = [
        to_picture(raster.window(top, 0, min(rows, raster.height - top), raster.width)).reduce((across, down))
        for top in range(0, raster.height, rows)
    ]
    small = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        small.paste(strip, (0, top))
        top += strip.height
    how = Image.Resampling.NEAREST if size[0] > raster.height else Image.Resampling.LANCZOS
    part = (0, 0, raster.width / across, raster.height / down)  # the last cells may reach beyond the picture
    return small if small.size == size[::-1] == part[2:] else small.resize(size[::-1], how, box=part)


def thinned(pixels: Pixels | Raster, mask: Labels, side: int) -> tuple[InMemory, np.ndarray]:
    """A picture and its mask with a longest side of at most `side`, to draw several overlays of a large one."""
    raster = pixels if isinstance(pixels, Raster) else InMemory(pixels)
    if max(raster.height, raster.width) <= side:
        return InMemory(raster.window(0, 0, raster.height, raster.width)), _array(mask)
    small = np.array(reduced(raster, side))
    channels = torch.from_numpy(small)[None] if small.ndim == 2 else torch.from_numpy(small).permute(2, 0, 1)
    return InMemory(channels), _labels_at(_array(mask), small.shape[:2])


def comparison(
    pixels: Pixels | Raster,
    truth: Labels,
    answer: Labels,
    colours: Sequence[RGB],
    *,
    side: int = SIDE,
    background: int | None = None,
) -> Image.Image:
    """Side by side: the picture, the true classes over it, the answered ones over it."""
    panels = _panels(pixels, truth, answer, colours, side, background)
    return _side_by_side(panels, panels[0].width)


def comparison_sheet(
    rows: Iterable[Compared],
    classes: Sequence[str],
    colours: Sequence[RGB],
    *,
    side: int = SIDE,
    background: int | None = None,
    heading: str = "",
) -> Image.Image:
    """Truth beside prediction: one picture a row, under its title and note, and a legend of the classes that occur."""
    drawn, seen = [], np.zeros(len(classes) + 1, np.int64)
    for row in rows:
        panels = _panels(row.pixels, row.truth, row.answer, colours, side, background)
        drawn.append((row.title, row.note, panels))
        seen += _counted(_array(row.truth), len(classes)) + _counted(_array(row.answer), len(classes))
    column = max([panels[0].width for *_, panels in drawn] + [150])
    width = 3 * column + 2 * GAP
    there = [place for place in range(len(classes)) if seen[place]]
    key = legend([classes[i] for i in there], [colours[i] for i in there], width=width, ignored=float(seen[-1] > 0))
    top = PAD + (30 if heading else 0) + 20
    height = top + sum(46 + panels[0].height + GAP for *_, panels in drawn) + key.height + PAD
    paper = Image.new("RGB", (width + 2 * PAD, height), PAPER)
    draw = ImageDraw.Draw(paper)
    sheets.write(draw, (PAD, PAD), heading, width, size=16)
    for place, name in enumerate(("picture", "truth", "prediction")):
        sheets.write(draw, (PAD + place * (column + GAP), top - 20), name, column, size=12, colour=FAINT)
    for title, note, panels in drawn:
        draw.line((PAD, top, PAD + width, top), fill=CARD, width=2)
        sheets.write(draw, (PAD, top + 4), title, width)
        sheets.write(draw, (PAD, top + 22), note, width, size=11, colour=FAINT)
        paper.paste(_side_by_side(panels, column), (PAD, top + 44))
        top += 46 + panels[0].height + GAP
    paper.paste(key, (PAD, top))
    return paper


def colours_of(classes: Sequence[str], colours: Sequence[RGB] | None) -> tuple[RGB, ...]:
    """A model's colours, or where it has none, different ones for its classes; the background is black then."""
    return tuple(colours) if colours is not None else palette(len(classes), background_of(classes))


def background_of(classes: Sequence[str]) -> int | None:
    """The class that is no object, by its name."""
    return next((place for place, name in enumerate(classes) if name.lower() in BACKGROUND), None)


def _panels(
    pixels: Pixels | Raster, truth: Labels, answer: Labels, colours: Sequence[RGB], side: int, background: int | None
) -> list[Image.Image]:
    drawn = [overlay(pixels, mask, colours, side=side, background=background) for mask in (truth, answer)]
    return [reduced(pixels, side).convert("RGB"), *drawn]


def _side_by_side(panels: Sequence[Image.Image], column: int) -> Image.Image:
    paper = Image.new("RGB", (len(panels) * (column + GAP) - GAP, panels[0].height), PAPER)
    for place, panel in enumerate(panels):
        paper.paste(panel, (place * (column + GAP), 0))
    return paper


def _drawn_size(height: int, width: int, side: int | None) -> tuple[int, int]:
    longest = max(height, width)
    if side is None:
        return height, width
    if longest <= side:
        return height * (side // longest), width * (side // longest)
    return max(1, round(height * side / longest)), max(1, round(width * side / longest))


def _labels_at(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """int32 labels at the size of a picture that was enlarged by a whole factor or reduced."""
    if size[0] >= mask.shape[0] and size[1] >= mask.shape[1]:
        return mask.repeat(size[0] // mask.shape[0], 0).repeat(size[1] // mask.shape[1], 1).astype(np.int32)
    count = int(mask.max()) + 1
    labels = np.array([IGNORE, *np.argsort(-_counted(mask, count)[:-1], kind="stable")], np.int32)
    ranks = np.empty(count + 1, np.int32)  # of IGNORE and of each class: the rarer, the higher
    ranks[labels + 1] = np.arange(count + 1, dtype=np.int32)
    rows, columns = (np.arange(cells) * side // cells for cells, side in zip(size, mask.shape, strict=True))
    found = np.empty(size, np.int32)
    group = max(1, STRIP // (mask.shape[1] * (mask.shape[0] // size[0] + 1)))
    for first in range(0, size[0], group):
        starts = rows[first : first + group]
        end = rows[first + group] if first + group < size[0] else mask.shape[0]
        strip = ranks[mask[starts[0] : end].astype(np.int32) + 1]
        found[first : first + group] = np.maximum.reduceat(
            np.maximum.reduceat(strip, starts - starts[0], axis=0), columns, axis=1
        )
    return labels[found]


def _counted(mask: np.ndarray, count: int) -> np.ndarray:
    """Pixels of each of `count` classes, and of `IGNORE` last; in strips, since counting needs eight bytes a pixel."""
    total = np.zeros(count + 1, np.int64)
    rows = max(1, STRIP // mask.shape[1])
    for top in range(0, mask.shape[0], rows):
        values = mask[top : top + rows].astype(np.int64).ravel()
        total += np.bincount(np.where(values < 0, count, values), minlength=count + 1)
    return total


def _strength(labels: np.ndarray, ignored: int, background: int | None) -> np.ndarray:
    """How much the paint covers of each pixel, uint8: areas by their tint, outlines wholly, hatching."""
    tint = round(255 * (TINT if background is None else LIGHT_TINT))
    strength = np.full(labels.shape, tint, np.uint8)
    strength[_edges(labels, 1 if max(labels.shape) < 400 else 2)] = 255
    if background is not None:
        strength[labels == background] = 0
    out = labels == IGNORE
    if out.any():
        rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
        strength[out] = np.where((rows + columns) % 8 < 2, 230, 90).astype(np.uint8)[out]
    return strength


def _edges(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Where another label is at most `thickness` pixels away along a row or column."""
    edges = np.zeros(labels.shape, bool)
    for step in range(1, thickness + 1):
        down, across = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        edges[step:] |= down
        edges[:-step] |= down
        edges[:, step:] |= across
        edges[:, :-step] |= across
    return edges


def _array(mask: Labels) -> np.ndarray:
    return mask.cpu().numpy() if isinstance(mask, Tensor) else mask


def _sides(height: int, width: int) -> str:
    return f"{height} × {width}"
