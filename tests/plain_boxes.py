"""Overlaps and non-maximum suppression as the papers say them, box by box in fp64."""

import torch
from torch import Tensor


def iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both) if both else 0.0


def giou(a: list[float], b: list[float]) -> float:
    """The same less the share of the smallest box around both that neither covers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union - (around - union) / around


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, over: float, most: int) -> list[int]:
    """Indices of the boxes that stay, the surest first."""
    rows, kinds = boxes.double().tolist(), groups.tolist()
    kept: list[int] = []
    for index in torch.argsort(scores.double(), descending=True, stable=True).tolist():
        if all(kinds[one] != kinds[index] or iou(rows[one], rows[index]) <= over for one in kept):
            kept.append(index)
    return kept[:most]
