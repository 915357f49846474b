"""Cascade Mask R-CNN (Cai and Vasconcelos 2019, arXiv 1906.09756): each stage judges the boxes that the last one found.

The network is that of `swindow.heads.rcnn`. A detection's logits are the mean over all stages, its mask's probabilities
likewise, its box is the last stage's.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from swindow.heads.detect import Details
from swindow.heads.rcnn import Rcnn
from swindow.heads.rcnn_config import RcnnConfig
from swindow.heads.regions import RegionConfig
from swindow.ops.boxes import Deviations

_REGIONS = RegionConfig(proposals=(2000, 1000))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeMaskRcnnConfig(RcnnConfig):
    """The shape of a cascade; the defaults are those of the published Swin models.

    Their box heads are four convolutions with batch norm, which several processes may synchronise, and one linear
    layer; their boxes are learned by ten times the generalized IoU. The classic cascade has ``box_convs=0``,
    ``box_linears=2``, ``class_agnostic=True``, ``box_loss="delta"`` and ``box_weight=1.0``.
    """

    kind: ClassVar[str] = "cascade_mask_rcnn"

    regions: RegionConfig = _REGIONS
    """How regions are proposed."""
    overlaps: tuple[float, ...] = (0.5, 0.6, 0.7)
    """For each stage, from which overlap on with an object a region is to find it; below, it is background."""
    deviations: tuple[Deviations, ...] = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
    """For each stage, what deltas are divided by to be learned."""
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """For each stage, the weight of its losses."""
    box_convs: int = 4
    """3x3 convolutions with batch norm in a box head."""
    box_linears: int = 1
    """Linear layers after them."""
    box_loss: Literal["delta", "giou"] = "giou"
    """What is compared: deltas, or boxes by their generalized IoU (Rezatofighi et al. 2019)."""
    box_weight: float = 10.0
    """Weight of that loss."""

    @property
    def details(self) -> Details:
        """What the convention says, and a cascade's own part of it; torchvision has no cascade."""
        details = super().details
        if self.convention == "torchvision":
            return details
        return details._replace(beta=1.0, region_beta=1 / 9, claims_regions=False, inside=True)

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None) -> Rcnn:
        """The head that this describes, for a pyramid with these channels and strides."""
        return Rcnn(self, channels, strides)
