"""Anchors: boxes of a few shapes around every cell of every map, which a detector is asked about (Ren et al. 2015)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from swindow.heads.detect import Details
from swindow.objects import Frames, Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorShapes:
    """The anchors of one cell."""

    scales: tuple[float, ...] = (8.0,)
    """Sides of a square anchor in strides of its map."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights by widths; each scale comes in each ratio, of one area."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.scales) * len(self.ratios)


def anchors(
    grids: Sequence[Size],
    strides: Sequence[float],
    canvas: Size,
    shapes: AnchorShapes,
    details: Details,
    *,
    device: Any = None,
) -> tuple[Float[Tensor, "_ 4"], ...]:
    """The anchors of each map, row by row, in pixels of a canvas; those of one cell lie together, ratios outermost.

    Args:
        grids: rows and columns of each map.
        strides: pixels between its cells.
        canvas: height and width of the batch.
    """
    found = []
    for (rows, columns), stride in zip(grids, strides, strict=True):
        steps = (canvas[0] // rows, canvas[1] // columns) if details.whole_strides else (stride, stride)
        down, across = (
            torch.arange(count, dtype=torch.float32, device=device) * step
            for count, step in zip((rows, columns), steps, strict=True)
        )
        y, x = torch.meshgrid(down, across, indexing="ij")
        corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        found.append((corners + _of_one_cell(stride, shapes, details, device)).reshape(-1, 4))
    return tuple(found)


def outside(anchors: Float[Tensor, "A 4"], frames: Frames) -> Bool[Tensor, "B A"]:
    """Which anchors have their middle in no picture."""
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    sizes = anchors.new_tensor([(width, height) for height, width in frames.sizes])
    return (middle[None] >= sizes[:, None]).any(-1)


def protruding(anchors: Float[Tensor, "A 4"], size: Size) -> Bool[Tensor, " A"]:
    """Which anchors stick out of a picture of this height and width."""
    highest = anchors.new_tensor([size[1], size[0]])
    return (anchors[:, :2] < 0).any(-1) | (anchors[:, 2:] > highest).any(-1)


def _of_one_cell(stride: float, shapes: AnchorShapes, details: Details, device: Any) -> Float[Tensor, "N 4"]:
    sizes = [scale * stride for scale in shapes.scales]
    if details.rounded:
        sizes = [float(int(size)) for size in sizes]
    sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in shapes.ratios for size in sizes]
    found = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=torch.float32)
    return (found.round() if details.rounded else found).to(device)
