"""Masks of many objects drawn into few pictures: to resize or to turn a hundred of them costs what a few cost.

Objects whose boxes do not overlap share a layer, in which each has a number of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

MOST = 255  # numbers of a layer: 8 bits, 0 is nobody


class MaskLayers(NamedTuple):
    """Where the masks of objects are drawn."""

    maps: UInt8[Tensor, "L h w"]
    """The number of the object that each pixel belongs to, or 0."""
    places: tuple[tuple[int, int], ...]
    """Layer and number of each object."""


class Cutout(NamedTuple):
    """The part of a mask that has pixels, as small as it can be; nothing at all for a mask without any."""

    left: int
    top: int
    pixels: np.ndarray
    """bool ``a b``."""

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        rows, columns = self.pixels.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Around the pixels; zeros where there are none."""
        rows, columns = self.pixels.shape
        return self.left, self.top, self.left + columns, self.top + rows


def trimmed(pixels: np.ndarray, left: int, top: int) -> Cutout:
    """The cutout of a part of a mask, whose first column and row are given."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Cutout(0, 0, np.zeros((0, 0), bool))
    inner = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cutout(left + int(columns[0]), top + int(rows[0]), inner)


def extents(masks: Bool[Tensor, "N h w"]) -> Float[Tensor, "N 4"]:
    """The boxes around the pixels of masks; zeros for a mask without any."""
    values: np.ndarray = masks.numpy()
    x1, x2 = _ends(np.any(values, axis=1))
    y1, y2 = _ends(np.any(values, axis=2))
    return torch.from_numpy(np.stack([x1, y1, x2, y2], axis=1).astype(np.float32))


def layered(masks: Sequence[Bool[Tensor, "h w"]], around: Float[Tensor, "N 4"], size: tuple[int, int]) -> MaskLayers:
    """Masks of one picture, none of which reaches out of its box in `around`, as layers."""
    low, high = _pixels(around, size)
    levels: list[list[int]] = []
    places = []
    for index in range(len(masks)):
        level = next((n for n, o in enumerate(levels) if _is_free(low[index], high[index], low[o], high[o])), -1)
        if level < 0:
            level = len(levels)
            levels.append([])
        levels[level].append(index)
        places.append((level, len(levels[level])))
    maps = np.zeros((len(levels), *size), np.uint8)
    for mask, (level, number), (x1, y1), (x2, y2) in zip(masks, places, low, high, strict=True):
        maps[level, y1:y2, x1:x2][mask[y1:y2, x1:x2].numpy()] = number
    return MaskLayers(torch.from_numpy(maps), tuple(places))


def cutouts(layers: MaskLayers, around: Float[Tensor, "N 4"]) -> list[Cutout]:
    """The masks again; what an object has out of its box in `around` is not looked for."""
    maps = layers.maps.numpy()
    low, high = _pixels(around, maps.shape[1:])
    return [
        trimmed(maps[level, y1:y2, x1:x2] == number, int(x1), int(y1))
        for (level, number), (x1, y1), (x2, y2) in zip(layers.places, low, high, strict=True)
    ]


def drawn(parts: Sequence[Cutout], size: tuple[int, int]) -> Bool[Tensor, "N h w"]:
    """Cutouts as masks of a picture of this size."""
    # numpy has the system clear these pages when they are first written to: most of a hundred masks never is
    masks = np.zeros((len(parts), *size), bool)
    for mask, part in zip(masks, parts, strict=True):
        mask[part.place] = part.pixels
    return torch.from_numpy(masks)


def _pixels(boxes: Tensor, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """First pixels, and those after the last, that boxes touch: x and y of each."""
    values = boxes.numpy().clip(0, [*size[::-1]] * 2)
    return np.floor(values[:, :2]).astype(np.int64), np.ceil(values[:, 2:]).astype(np.int64)


def _ends(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first place of each row that is true, and the one after the last; zeros where none is."""
    some, count = lines.any(axis=1), lines.shape[1]
    return np.where(some, lines.argmax(axis=1), 0), np.where(some, count - lines[:, ::-1].argmax(axis=1), 0)


def _is_free(low: np.ndarray, high: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> bool:
    apart = (highs <= low) | (lows >= high)
    return len(lows) < MOST and bool(apart.any(axis=1).all())
