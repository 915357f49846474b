"""The shape of a detector in two steps, and how it learns: see `swindow.heads.rcnn`."""

import dataclasses
from typing import Literal

from swindow.errors import ConfigError
from swindow.heads.detect import CONVENTIONS, Convention, Details, DetectorConfig
from swindow.heads.regions import RegionConfig
from swindow.ops.boxes import Deviations

_REGIONS = RegionConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RcnnConfig(DetectorConfig):
    """What one stage and several share."""

    masks: bool = True
    """Whether to find each object's mask, too; without, it is a Faster or a Cascade R-CNN."""
    convention: Convention = "openmmlab"
    """Whose details, where two sets of them are published: `swindow.heads.detect.CONVENTIONS`."""
    pyramid_width: int = 256
    """Channels of the feature pyramid."""
    regions: RegionConfig = _REGIONS
    """How regions are proposed."""
    overlaps: tuple[float, ...] = (0.5,)
    """For each stage, from which overlap on with an object a region is to find it; below, it is background."""
    deviations: tuple[Deviations, ...] = ((0.1, 0.1, 0.2, 0.2),)
    """For each stage, what deltas are divided by to be learned."""
    stage_weights: tuple[float, ...] = (1.0,)
    """For each stage, the weight of its losses."""
    samples: int = 512
    """Regions of a picture that a step learns from."""
    share: float = 0.25
    """At most this share of them is to find objects."""
    box_convs: int = 0
    """3x3 convolutions with batch norm in a box head."""
    box_conv_width: int = 256
    """Their channels."""
    box_linears: int = 2
    """Linear layers after them."""
    box_width: int = 1024
    """Their channels."""
    class_agnostic: bool = False
    """One set of deltas for all classes, instead of one for each."""
    box_loss: Literal["delta", "giou"] = "delta"
    """What is compared: deltas, or boxes by their generalized IoU (Rezatofighi et al. 2019)."""
    box_weight: float = 1.0
    """Weight of that loss."""
    mask_convs: int = 4
    """3x3 convolutions in a mask head."""
    mask_width: int = 256
    """Its channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = len(self.overlaps)
        if not stages or len(self.deviations) != stages or len(self.stage_weights) != stages:
            raise ConfigError(
                f"overlaps {self.overlaps}, deviations {self.deviations} and stage_weights {self.stage_weights} need "
                "one value for each stage"
            )
        if not all(0 < overlap <= 1 for overlap in self.overlaps) or not 0 < self.share <= 1:
            raise ConfigError(f"every entry of overlaps {self.overlaps} and share {self.share} must lie in (0, 1]")
        if min(self.pyramid_width, self.samples, self.box_conv_width, self.box_width, self.mask_width) < 1:
            raise ConfigError("pyramid_width, samples, box_conv_width, box_width and mask_width must be at least 1")
        if min(self.box_convs, self.box_linears, self.mask_convs) < 0:
            raise ConfigError("box_convs, box_linears and mask_convs must not be below 0")

    @property
    def details(self) -> Details:
        """What the convention says."""
        return CONVENTIONS[self.convention]
