"""Which query answers for which object: the assignment of least cost (Carion et al. 2020, section 3.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from swindow.errors import require
from swindow.ops.boxes import cornered
from swindow.ops.vision import generalized_box_iou


class Costs(NamedTuple):
    """What a pair of a query and an object costs; each is a weight."""

    classes: float = 1.0
    """Of the probability of the object's class, which lowers the cost."""
    l1: float = 5.0
    """Of the difference between the boxes' centres, widths and heights, as shares of the picture."""
    giou: float = 2.0
    """Of the boxes' generalised IoU, which lowers the cost."""


class Matches(NamedTuple):
    """Pairs of queries and objects, as many in every layer: for each picture the lesser number of the two."""

    images: Int64[Tensor, " M"]
    """Which picture a pair is of."""
    queries: Int64[Tensor, "L M"]
    """Rising within each picture."""
    objects: Int64[Tensor, "L M"]
    """Indices among the objects of all pictures, one picture after another."""


@torch.no_grad()
def match(
    logits: Float[Tensor, "L B Q K"],
    boxes: Float[Tensor, "L B Q 4"],
    labels: Sequence[Int64[Tensor, " _"]],
    truth: Sequence[Float[Tensor, "_ 4"]],
    costs: Costs,
) -> Matches:
    """The best assignment for every picture, in every layer on its own.

    Boxes are centres, widths and heights as shares of the picture.

    Args:
        logits: of each class, that of no object last.
        boxes: of each query.
        labels: of the objects of each picture.
        truth: their boxes.
        costs: what is to be low.

    Raises:
        MissingExtra: scipy is not installed.
    """
    tables = [
        pair_costs(logits[:, image], boxes[:, image], label, box, costs)
        for image, (label, box) in enumerate(zip(labels, truth, strict=True))
    ]
    flat = torch.cat([table.flatten() for table in tables]).cpu()  # the device is waited for once
    images, queries, objects, start = [], [], [], 0
    for image, (table, part) in enumerate(zip(tables, flat.split([x.numel() for x in tables]), strict=True)):
        pairs = torch.stack([assigned(layer) for layer in part.view(table.shape)])  # L 2 M
        images.append(torch.full(pairs.shape[2:], image))
        queries.append(pairs[:, 0])
        objects.append(pairs[:, 1] + start)
        start += table.shape[2]
    found = (torch.cat(parts, dim=-1) for parts in (images, queries, objects))
    return Matches(*(part.to(logits.device) for part in found))


def pair_costs(
    logits: Float[Tensor, "L Q K"],
    boxes: Float[Tensor, "L Q 4"],
    labels: Int64[Tensor, " N"],
    truth: Float[Tensor, "N 4"],
    costs: Costs,
) -> Float[Tensor, "L Q N"]:
    """What every pair of a picture costs; more than all others together where that is no finite number."""
    likely = logits.softmax(-1)[..., labels]
    far = torch.cdist(boxes.flatten(0, 1), truth, p=1).view_as(likely)
    near = generalized_box_iou(cornered(boxes.flatten(0, 1)), cornered(truth)).view_as(likely)
    cost = costs.l1 * far - costs.classes * likely - costs.giou * near
    highest = torch.finfo(cost.dtype).max ** 0.5  # sums of it are finite too
    return cost.nan_to_num(nan=highest, posinf=highest, neginf=highest)


def assigned(costs: Float[Tensor, "Q N"]) -> Int64[Tensor, "2 M"]:
    """The pairs of least cost in all, each query and each object in one at most: queries, rising, and their objects.

    Raises:
        MissingExtra: scipy is not installed.
    """
    assignment = require("scipy.optimize", extra="detect").linear_sum_assignment
    rows, columns = assignment(costs.numpy())
    return torch.stack([torch.as_tensor(rows), torch.as_tensor(columns)]).long()
