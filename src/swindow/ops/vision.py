"""Torchvision's operations on boxes, imported when first called: importing it takes a second, and ``--help`` none."""

import functools
from types import ModuleType
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from swindow.errors import ShapeError


@functools.cache
def _torchvision() -> ModuleType:
    import torchvision.ops

    return torchvision.ops


def batched_nms(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int64[Tensor, " N"], threshold: float
) -> Int64[Tensor, " M"]:
    """Which boxes stay when, within each group, the less sure of two that overlap more leaves; the surest first."""
    return _torchvision().batched_nms(boxes, scores, groups, threshold)


def box_iou(boxes: Float[Tensor, "N 4"], others: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection by union of each of the boxes with each of the others."""
    return _torchvision().box_iou(boxes, others)


def generalized_box_iou(boxes: Float[Tensor, "N 4"], others: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """The same less the share of their hull that neither covers (Rezatofighi et al. 2019), in -1..1."""
    return _torchvision().generalized_box_iou(boxes, others)


def generalized_box_iou_loss(
    boxes: Float[Tensor, "*N 4"], others: Float[Tensor, "*N 4"], *, reduction: str = "none", eps: float = 1e-7
) -> Float[Tensor, "..."]:
    """1 less the generalized IoU of each box with its counterpart.

    Raises:
        ShapeError: not as many of the one as of the other.
    """
    if boxes.shape != others.shape:
        raise ShapeError(f"boxes are {tuple(boxes.shape)} and their counterparts {tuple(others.shape)}; give one each")
    return _torchvision().generalized_box_iou_loss(boxes, others, reduction=reduction, eps=eps)


def sigmoid_focal_loss(
    logits: Float[Tensor, "..."], targets: Float[Tensor, "..."], **settings: Any
) -> Float[Tensor, "..."]:
    """The focal loss of Lin et al. 2017, equation 5; `settings` are alpha, gamma and reduction."""
    return _torchvision().sigmoid_focal_loss(logits, targets, **settings)


def roi_align(
    maps: Float[Tensor, "B C H W"],
    regions: Float[Tensor, "R 5"],
    size: int,
    scale: float = 1.0,
    samples: int = -1,
    aligned: bool = False,
) -> Float[Tensor, "R C s s"]:
    """RoIAlign: see `swindow.ops.regions.region_align`, which is this or, on a CPU, a kernel of our own."""
    return _torchvision().roi_align(maps, regions, size, scale, samples, aligned)
