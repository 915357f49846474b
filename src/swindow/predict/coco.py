"""Detections in COCO's forms: rows of a results file, and the file of images and categories that they speak of."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from swindow.metrics import detection_in_runs
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
    """``size`` and ``counts`` of a mask in its picture, as `Detections.mask` has it, in words that JSON takes.

    Raises:
        MissingExtra: faster_coco_eval is not installed.
    """
    runs = detection_in_runs(found, index)
    return {"size": list(found.size), "counts": runs["counts"].decode("ascii")}
