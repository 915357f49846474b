"""What a feature pyramid says of a region, on a grid of fixed size (He et al. 2017, arXiv 1703.06870, section 3)."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from swindow.heads.detect import Details
from swindow.ops.regions import region_align

_USUAL = 224.0
"""A region of this side is read from the third of four maps of strides 4, 8, 16, 32 (FPN, equation 1)."""
_USUAL_STRIDE = 16.0


def extracted(
    maps: tuple[Tensor, ...],
    strides: tuple[float, ...],
    regions: tuple[Float[Tensor, "_ 4"], ...],
    size: int,
    details: Details,
) -> Float[Tensor, "R C s s"]:
    """RoIAlign of each picture's regions, each from the map whose cells fit its size; picture after picture.

    Args:
        maps: ``B C H W`` each, finest first.
        strides: pixels per cell of each map.
        size: side of the grid.
    """
    rows = numbered(regions)
    level = levels_of(rows[:, 1:], strides)
    order = level.argsort(stable=True)
    parts = rows[order].split(torch.bincount(level, minlength=len(maps)).tolist())
    cells = [
        region_align(x, part, size, scale=1 / stride, samples=details.samples, aligned=details.aligned)
        for x, part, stride in zip(maps, parts, strides, strict=True)
        if len(part) or len(rows) == 0
    ]
    return torch.cat(cells)[order.argsort()]


def numbered(regions: tuple[Float[Tensor, "_ 4"], ...]) -> Float[Tensor, "R 5"]:
    """Regions of several pictures one after the other, before each the number of its picture."""
    numbers = [torch.full_like(one[:, :1], picture) for picture, one in enumerate(regions)]
    return torch.cat([torch.cat(numbers), torch.cat(regions)], dim=1)


def levels_of(regions: Float[Tensor, "R 4"], strides: tuple[float, ...]) -> Int64[Tensor, " R"]:
    """The index of the map that each region is read from."""
    sides = (regions[:, 2:] - regions[:, :2]).clamp_min(0).prod(-1).sqrt()
    fit = torch.floor(math.log2(_USUAL_STRIDE / strides[0]) + (sides / _USUAL).log2() + 1e-6)
    return fit.clamp(0, len(strides) - 1).long()
