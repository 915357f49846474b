"""Detections in COCO's forms: rows of a results file, and the file of images and categories that they speak of."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from swindow.errors import require
from swindow.objects import Detections, Size

FIRST_CATEGORY = 1
"""The category of class 0: COCO counts from 1, and some readers take 0 for the background."""


def result_rows(found: Detections, image_id: int, file_name: str) -> Iterator[dict[str, Any]]:
    """One row for each detection: box as left, top, width and height, and its mask in compressed runs.

    Raises:
        MissingExtra: there are masks, and faster_coco_eval is not installed.
    """
    corners = found.boxes.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    for index, (label, score, box) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), boxes, strict=True)):
        row = {
            "image_id": image_id,
            "category_id": label + FIRST_CATEGORY,
            "bbox": [round(side, 3) for side in box],
            "score": round(score, 6),
        }
        if found.masks is not None:
            row["segmentation"] = mask_in_runs(found, index)
        yield row | {"file_name": file_name}


def image_row(image_id: int, file_name: str, size: Size) -> dict[str, Any]:
    """A picture as COCO files have it."""
    return {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}


def category_rows(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Classes as COCO files have them."""
    return [{"id": place + FIRST_CATEGORY, "name": name} for place, name in enumerate(classes)]


def mask_in_runs(found: Detections, index: int) -> dict[str, Any]:
    """``size`` and ``counts`` of a mask in its picture, as `Detections.mask` has it; only its box is looked at.

    Raises:
        MissingExtra: faster_coco_eval is not installed.
    """
    coding = require("faster_coco_eval.core.mask", extra="detect")
    top, left, part = _part(found, index)
    runs = coding.frPyObjects(
        {"size": list(found.size), "counts": run_lengths(part, top, left, found.size)}, *found.size
    )
    return {"size": list(found.size), "counts": runs["counts"].decode("ascii")}


def run_lengths(part: np.ndarray, top: int, left: int, size: Size) -> list[int]:
    """Pixels out of a mask, in it, out of it … down the columns of a picture; `part` is what is not empty of it."""
    height, width = size
    edges = np.pad(part, ((1, 0), (0, 0))) != np.pad(part, ((0, 1), (0, 0)))
    columns, rows = np.nonzero(edges.T)
    places = (left + columns).astype(np.int64) * height + top + rows
    same = places[1:] == places[:-1]  # to the end of a column and on at the start of the next
    places = places[~np.isin(places, places[1:][same])]
    counts = np.diff(places, prepend=0, append=height * width)
    return counts[: len(counts) - int(counts[-1] == 0 and len(counts) > 1)].tolist()


def _part(found: Detections, index: int) -> tuple[int, int, np.ndarray]:
    """Top, left and the pixels of the rectangle that a mask lies in."""
    one = found[torch.tensor([index])]
    if found.whole:
        return 0, 0, one.mask(0).cpu().numpy()
    x1, y1, x2, y2 = one.boxes[0].tolist()
    left, top = max(int(x1), 0), max(int(y1), 0)
    right, below = min(int(x2) + 1, found.size[1]), min(int(y2) + 1, found.size[0])
    if left >= right or top >= below:
        return 0, 0, np.zeros((1, 1), bool)
    boxes = one.boxes - one.boxes.new_tensor([left, top, left, top])
    near = dataclasses.replace(one, boxes=boxes, size=(below - top, right - left))
    return top, left, near.mask(0).cpu().numpy()
