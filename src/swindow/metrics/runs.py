"""Masks in runs, COCO's compressed form: pixels out of it, in it, out of it … down the columns of a picture."""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from swindow.errors import require
from swindow.objects import Detections, Size

EXTRA = "detect"

Rle = dict[str, Any]
"""``size``, height and width, and ``counts``, bytes (which JSON takes as ASCII)."""


def mask_in_runs(mask: Bool[Tensor, "h w"]) -> Rle:
    """A mask of a whole picture.

    Raises:
        MissingExtra: faster_coco_eval is not installed.
    """
    height, width = mask.shape
    return _compressed(mask.cpu().numpy(), 0, (height, width))


def detection_in_runs(found: Detections, index: int) -> Rle:
    """The pixels of one detection, as `Detections.mask` has them; of a mask over a box only the box is looked at.

    Raises:
        ShapeError: the head makes no masks.
        MissingExtra: faster_coco_eval is not installed.
    """
    one = found[torch.tensor([index], device=found.boxes.device)]
    x1, _, x2, _ = one.boxes[0].tolist()
    left, right = max(int(x1), 0), min(int(x2) + 1, found.size[1])
    if found.whole or left >= right:
        return mask_in_runs(one.mask(0))
    # Moving by whole pixels leaves every rounding as it is: the numbers become smaller, not finer.
    boxes = one.boxes.float() - one.boxes.new_tensor([left, 0, left, 0])
    columns = dataclasses.replace(one, boxes=boxes, size=(found.size[0], right - left)).mask(0)
    return _compressed(columns.cpu().numpy(), left, found.size)


def _compressed(columns: np.ndarray, left: int, size: Size) -> Rle:
    """From the columns that a mask lies in, of which the first has so many to its left."""
    coding = require("faster_coco_eval.core.mask", extra=EXTRA)
    inside = columns.ravel(order="F").view(np.int8)
    turns = np.flatnonzero(np.diff(inside, prepend=0, append=0)) + left * size[0]
    counts = np.diff(turns, prepend=0, append=size[0] * size[1])
    if len(counts) > 1 and not counts[-1]:
        counts = counts[:-1]
    return coding.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
