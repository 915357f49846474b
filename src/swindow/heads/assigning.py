"""Which box is to find which object: by overlap (IoU), as R-CNNs and RetinaNet do (Ren et al. 2015, section 3.1.2)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from swindow.objects import Objects
from swindow.ops.boxes import covered
from swindow.ops.vision import box_iou

BACKGROUND = -1
NEITHER = -2
"""Boxes that are asked nothing: neither clearly an object nor clearly none, or of a crowd."""
_OF_A_CROWD = 0.5
"""The share of a box in a region of many objects from which on it is not background."""
_AT_ONCE = 32
"""Objects compared at a time: their overlaps with every anchor would not fit where there are hundreds."""


def assigned(
    boxes: Float[Tensor, "A 4"],
    objects: Objects,
    *,
    over: float,
    under: float,
    weak: float | None = None,
    claims: bool = False,
) -> Int64[Tensor, " A"]:
    """For each box the index of the object that it is to find, or `BACKGROUND`, or `NEITHER`.

    Args:
        over: from this overlap on a box finds the object that it overlaps most.
        under: below it a box is background, unless half of it or more lies in a crowd.
        weak: from this overlap on the boxes that overlap an object most find one, whatever `over` says; None: never.
        claims: those find that object, the last of several; otherwise each the one that it overlaps most.
    """
    known = (~objects.crowd).nonzero()[:, 0]
    best, which, claimed = _best(boxes, objects.boxes[known], weak)
    answer = torch.where(best < over, torch.where(best < under, BACKGROUND, NEITHER), which)
    if weak is not None:
        answer = torch.where(claimed != BACKGROUND, claimed if claims else which, answer)
    if len(known) < len(objects):
        crowded = covered(boxes, objects.boxes[objects.crowd]).amax(1) >= _OF_A_CROWD
        answer = torch.where(crowded & (answer == BACKGROUND), NEITHER, answer)
        answer = torch.where(answer >= 0, known[answer.clamp_min(0)] if len(known) else answer, answer)
    return answer


def _best(boxes: Tensor, objects: Tensor, weak: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each box's highest overlap, the object that it is with, and the last object whose highest overlap it has."""
    best = boxes.new_full((len(boxes),), -1.0)
    which = torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
    claimed = which.clone()
    if len(boxes) == 0:
        return best, which, claimed
    for first in range(0, len(objects), _AT_ONCE):
        overlaps = box_iou(objects[first : first + _AT_ONCE], boxes)
        highest, index = overlaps.max(dim=0)
        which = torch.where(highest > best, index + first, which)
        best = torch.maximum(highest, best)
        if weak is None:
            continue
        most = overlaps.amax(dim=1, keepdim=True)
        hits = (overlaps == most) & (most >= weak) & (most > 0)
        numbers = torch.arange(first, first + len(overlaps), device=boxes.device)[:, None]
        claimed = torch.maximum(claimed, torch.where(hits, numbers, BACKGROUND).amax(0))
    return best, which, claimed


def drawn(found: Int64[Tensor, " A"], count: int, share: float) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " N"]]:
    """At random, `count` boxes to learn from: indices of those that find objects, at most `share`; of background."""
    objects = _some((found >= 0).nonzero()[:, 0], int(count * share))
    return objects, _some((found == BACKGROUND).nonzero()[:, 0], count - len(objects))


def _some(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]


def right_of(found: Int64[Tensor, " A"], logits: Float[Tensor, " A"]) -> tuple[Int64[Tensor, ""], Int64[Tensor, ""]]:
    """How many boxes are judged rightly, of how many: those that find objects, and as much background, spread evenly.

    There is hundreds of times as much background, which would be all that a share of all boxes speaks of.
    """
    objects = (found >= 0).nonzero()[:, 0]
    background = (found == BACKGROUND).nonzero()[:, 0]
    background = background[:: max(1, len(background) // max(1, len(objects)))][: len(objects)]
    right = (logits[objects] > 0).sum() + (logits[background] <= 0).sum()
    return right, torch.full_like(right, len(objects) + len(background))
