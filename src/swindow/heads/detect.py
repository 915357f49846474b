"""What heads that find objects share: their config, the two published sets of details, the last choice among boxes."""

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from swindow.errors import ConfigError
from swindow.ops.boxes import LARGEST
from swindow.ops.vision import batched_nms

Convention = Literal["openmmlab", "torchvision"]

_ENOUGH = 8192
"""Boxes that are compared at once."""


class Details(NamedTuple):
    """What published detectors do differently without telling: see `CONVENTIONS`."""

    rounded: bool
    """Anchors' sizes are cut to whole pixels and their corners rounded."""
    whole_strides: bool
    """Anchors lie ``canvas // grid`` pixels apart, instead of as far as the map's stride says."""
    padding_counts: bool
    """Anchors in the padding of a batch are background to learn and candidates to judge, instead of nothing at all."""
    aligned: bool
    """RoIAlign knows that a pixel's value belongs to its middle."""
    samples: int
    """Points along each side of a RoIAlign's cell; 0 is as many as cells of the map."""
    weak: float
    """The overlap that the best anchor of an object needs to be its anchor if none is over the threshold."""
    claims: bool
    """An object takes its best anchors even from an object that they overlap more."""
    claims_regions: bool
    """Objects claim regions, too, if any overlaps enough."""
    beta: float
    """Where a box's loss turns from a square into a line; 0 is L1."""
    region_beta: float
    """The same of the region proposals' boxes."""
    smallest_growth: float
    """The least logarithm by which a layer can shrink a box."""
    smallest_region: float
    """Sides in pixels that a proposal needs, and, below, a detection."""
    smallest_box: float
    hard_masks: bool
    """Masks to learn are 0 or 1 in every cell, instead of the share of a cell that an object covers."""
    inside: bool
    """Only anchors that do not stick out of their picture are learned."""


CONVENTIONS: dict[Convention, Details] = {
    "openmmlab": Details(
        rounded=False,
        whole_strides=False,
        padding_counts=False,
        aligned=True,
        samples=0,
        weak=0.3,
        claims=True,
        claims_regions=True,
        beta=0.0,
        region_beta=0.0,
        smallest_growth=-LARGEST,
        smallest_region=0.0,
        smallest_box=0.0,
        hard_masks=True,
        inside=False,
    ),
    "torchvision": Details(
        rounded=True,
        whole_strides=True,
        padding_counts=True,
        aligned=False,
        samples=2,
        weak=0.0,
        claims=False,
        claims_regions=False,
        beta=1 / 9,
        region_beta=1 / 9,
        smallest_growth=-math.inf,
        smallest_region=1e-3,
        smallest_box=1e-2,
        hard_masks=False,
        inside=False,
    ),
}
"""The details of mmdetection 2.x, with which the Swin paper's detectors were trained, and those of torchvision.

| detail                       | openmmlab                               | torchvision                       |
|------------------------------|-----------------------------------------|-----------------------------------|
| anchors                      | exact                                   | whole sizes, rounded corners      |
| anchors' distance            | the map's stride                        | canvas // grid                    |
| anchors in padding           | neither learned nor judged              | background                        |
| RoIAlign                     | aligned, as many samples as cells       | half a cell off, 2 x 2 samples    |
| an object's best anchor      | its own from an overlap of 0.3 on       | any; stays with what it overlaps most |
| an object's best region      | its own where it overlaps enough        | no such rule                      |
| loss of boxes                | L1                                      | smooth L1, beta 1/9               |
| shrinking                    | to 16/1000 of a side at most            | without bound                     |
| smallest proposal, detection | any with an area                        | 0.001 and 0.01 pixels             |
| masks to learn               | 0 or 1                                  | the covered share of each cell    |

A Cascade R-CNN of openmmlab has three more: its proposals learn by smooth L1 of beta 1/9 and from anchors inside their
picture alone, and no object claims a region; its class-agnostic form learns boxes by smooth L1 of beta 1.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The classes of a detector and what it answers with."""

    task: ClassVar[str] = "detect"

    num_classes: int = 80
    """How many classes an object can be of; background is none of them."""
    score_threshold: float = 0.05
    """Detections below this score are left out."""
    nms: float = 0.5
    """Of two boxes of one class that overlap more than this (IoU), the surer one stays."""
    most_detections: int = 100
    """At most so many answers for a picture, the surest."""
    divisor: int = 32
    """Sides of a batch are padded to multiples of this many pixels."""

    def __post_init__(self) -> None:
        if min(self.num_classes, self.most_detections, self.divisor) < 1:
            raise ConfigError(
                f"num_classes {self.num_classes}, most_detections {self.most_detections} and divisor {self.divisor} "
                "must be at least 1"
            )
        if not (0 <= self.score_threshold < 1 and 0 < self.nms <= 1):
            raise ConfigError(f"score_threshold {self.score_threshold} must lie in [0, 1) and nms {self.nms} in (0, 1]")

    def stages(self, count: int) -> tuple[int, ...]:
        """The stages of a backbone of so many that the head reads."""
        return tuple(range(count))


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Values in fp32, or as they are where they have more digits: what losses and boxes are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def best_of(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int64[Tensor, " N"], nms: float, most: int
) -> Int64[Tensor, " M"]:
    """Which boxes stay when, within each group, the less sure of two that overlap leaves; the surest first.

    No box depends on less sure ones: of many only as many are compared, the surest, as it takes for `most` to stay.
    """
    count = max(_ENOUGH, 2 * most)
    if len(boxes) <= count:  # as they are: the order of equal scores is torchvision's
        return batched_nms(boxes, scores, groups, nms)[:most]
    order = scores.argsort(descending=True, stable=True)
    while True:
        surest = order[:count]
        kept = surest[batched_nms(boxes[surest], scores[surest], groups[surest], nms)[:most]]
        if len(kept) == most or count >= len(order):
            return kept
        count *= 4
