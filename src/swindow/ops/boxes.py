"""Boxes as numbers: ``x1 y1 x2 y2`` in pixels, as `swindow.objects` has them, unless a name says otherwise.

Overlaps, NMS and RoIAlign are torchvision's.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from swindow.objects import Frames

Deviations = tuple[float, float, float, float]
"""What deltas of x, y, width and height are divided by, so that a layer learns numbers of about 1."""

PLAIN: Deviations = (1.0, 1.0, 1.0, 1.0)
LARGEST = math.log(1000 / 16)
"""No delta of a width or a height enlarges a box by more than e to this: both published conventions have it."""


def encode(
    boxes: Float[Tensor, "*N 4"], anchors: Float[Tensor, "*N 4"], deviations: Deviations = PLAIN
) -> Float[Tensor, "*N 4"]:
    """Deltas that lead from `anchors` to `boxes`: shifts in an anchor's sides, logarithms of growth (R-CNN, app. C)."""
    to, sides = centred(boxes), centred(anchors)
    shift = (to[..., :2] - sides[..., :2]) / sides[..., 2:]
    growth = (to[..., 2:] / sides[..., 2:]).log()
    return torch.cat([shift, growth], dim=-1) / boxes.new_tensor(deviations)


def decode(
    deltas: Float[Tensor, "*N 4"],
    anchors: Float[Tensor, "*N 4"],
    deviations: Deviations = PLAIN,
    *,
    smallest: float = -LARGEST,
) -> Float[Tensor, "*N 4"]:
    """The boxes that `deltas` lead to from `anchors`: the way back of `encode`.

    Args:
        smallest: the least logarithm of a growth, as `LARGEST` is the greatest; ``-math.inf`` is none.
    """
    shift, growth = (deltas * deltas.new_tensor(deviations)).split(2, dim=-1)
    sides = anchors[..., 2:] - anchors[..., :2]
    middles = anchors[..., :2] + 0.5 * sides + shift * sides
    halves = 0.5 * growth.clamp(min=smallest, max=LARGEST).exp() * sides
    return torch.cat([middles - halves, middles + halves], dim=-1)


def centred(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """``x1 y1 x2 y2`` as the middle's x and y, width, height."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([0.5 * (low + high), high - low], dim=-1)


def cornered(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """The middle's x and y, width, height as ``x1 y1 x2 y2``."""
    middle, sides = boxes.split(2, dim=-1)
    return torch.cat([middle - 0.5 * sides, middle + 0.5 * sides], dim=-1)


def limits(frames: Frames, *, like: Tensor) -> Float[Tensor, "B 4"]:
    """The largest ``x1 y1 x2 y2`` inside each picture: its width, height, width, height."""
    return like.new_tensor([(width, height, width, height) for height, width in frames.sizes])


def clipped(boxes: Float[Tensor, "*N 4"], limit: Float[Tensor, "*M 4"]) -> Float[Tensor, "*N 4"]:
    """Boxes without what lies outside of a picture; `limit` is one of `limits`, or one for each box."""
    return torch.minimum(boxes.clamp_min(0), limit)


def covered(boxes: Float[Tensor, "N 4"], regions: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """The share of each box's own area that lies in each region; 0 for a box without an area."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    own = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return (high - low).clamp_min(0).prod(-1) / own.clamp_min(torch.finfo(own.dtype).tiny)[:, None]
