"""Outlines of objects, polygons and run-length codes, kept as their file spells them and made masks when asked for."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from swindow.errors import require
from swindow.objects import Size

NEAR = 30  # polygons reaching further than so many sides of their picture are cut: filling takes as long as they are


class Outlines:
    """The outline of each object as JSON text: COCO's polygons, or its run-length codes; none where it is empty.

    A file's own text is several times smaller than the same numbers as Python objects, and exact.
    """

    def __init__(self, text: bytes, starts: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.starts, self.ends = text, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: np.ndarray) -> "Outlines":
        """Those of some objects, over the same text."""
        return Outlines(self.text, self.starts[rows], self.ends[rows])

    @property
    def given(self) -> np.ndarray:
        """Which objects have one (bool)."""
        return self.ends > self.starts

    def masks(self, boxes: np.ndarray, size: Size) -> Bool[Tensor, "N h w"]:
        """The pixels of every object in a picture of height and width `size`; without an outline, those of its box."""
        mask = require("faster_coco_eval.core.mask", extra="detect")
        if not len(self):
            return torch.zeros(0, *size, dtype=torch.bool)
        codes = [
            _code(mask, json.loads(self.text[start:end]), size) if end > start else _code(mask, [_corners(box)], size)
            for start, end, box in zip(self.starts.tolist(), self.ends.tolist(), boxes.tolist(), strict=True)
        ]
        return torch.from_numpy(mask.decode(codes)).permute(2, 0, 1).contiguous().view(torch.bool)


def polygon_fault(polygons: Sequence[Sequence[float]]) -> str:
    """What is wrong with an object's polygons, ``x y x y …`` each; empty if nothing is."""
    for polygon in polygons:
        if len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers, where x and y alternate"
        if len(polygon) < 6:
            return f"a polygon of {len(polygon) // 2} points, of which 3 are the fewest"
    return ""


def run_fault(runs: np.ndarray | None, code_size: Sequence[int], size: Size) -> str:
    """What is wrong with the runs of a code for a picture of height and width `size`; empty if nothing is."""
    if tuple(code_size) != size:
        return f"a run-length code of {code_size[1]} × {code_size[0]} in a picture of {size[1]} × {size[0]}"
    if runs is None or (len(runs) and runs.min() < 0):
        return "a run-length code that is damaged"
    pixels = runs.sum(dtype=np.float64)  # which does not wrap around
    if pixels != size[0] * size[1]:
        return f"a run-length code of {int(pixels):,} pixels in a picture of {size[0] * size[1]:,}"
    return ""


def runs_of(counts: str | Sequence[int]) -> np.ndarray | None:
    """The lengths of a code's runs, beside and on the object by turns; None where a packed code is damaged."""
    return _unpacked(counts) if isinstance(counts, str) else np.asarray(counts, np.float64)


def _unpacked(text: str) -> np.ndarray | None:
    """The runs of COCO's packed code, int64; None where it is damaged.

    Each run is some digits of 5 bits, the lowest first, a sixth bit saying that more follow, the fifth bit of the last
    one being the sign; from the fourth run on they are differences to the run before the last (pycocotools,
    maskApi.c).
    """
    digits = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not len(digits):
        return np.zeros(0, np.int64)
    last = (digits & 32) == 0
    if digits.min() < 0 or digits.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        return None
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _code(mask: Any, outline: Any, size: Size) -> dict[str, Any]:
    """The run-length code of an outline in the form that the library decodes."""
    height, width = size
    if isinstance(outline, list):
        polygons = [_near(list(map(float, polygon)), size) for polygon in outline]
        return mask.merge(mask.frPyObjects([polygon for polygon in polygons if polygon] or [[0.0] * 6], height, width))
    if isinstance(outline["counts"], list):
        return mask.frPyObjects(outline, height, width)
    return outline


def _corners(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _near(polygon: list[float], size: Size) -> list[float]:
    """The polygon, cut to the neighbourhood of the picture if it reaches far beyond it."""
    far = NEAR * max(size)
    if max(polygon) <= far and min(polygon) >= -far:
        return polygon
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    for axis, limit in enumerate((size[1], size[0])):
        points = _cut(points, axis, -1.0, 1.0)
        points = _cut(points, axis, limit + 1.0, -1.0)
    return [number for point in points for number in point]


def _cut(points: list[tuple[float, float]], axis: int, limit: float, side: float) -> list[tuple[float, float]]:
    """What lies on one side of a line (Sutherland & Hodgman 1974): above `limit` along `axis` where `side` is 1."""
    kept = []
    for before, after in zip(points[-1:] + points[:-1], points, strict=True):
        ins, outs = (side * (point[axis] - limit) >= 0 for point in (before, after))
        if ins != outs:
            share = (limit - before[axis]) / (after[axis] - before[axis])
            other = before[1 - axis] + share * (after[1 - axis] - before[1 - axis])
            kept.append((limit, other) if axis == 0 else (other, limit))
        if outs:
            kept.append(after)
    return kept
