"""Mask R-CNN (He et al. 2017, arXiv 1703.06870) on a feature pyramid; without masks, Faster R-CNN (arXiv 1506.01497).

The network is that of `swindow.heads.rcnn` with one stage.
"""

import dataclasses
from typing import Any, ClassVar

from swindow.heads.rcnn import Rcnn
from swindow.heads.rcnn_config import RcnnConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRcnnConfig(RcnnConfig):
    """The shape of a Mask R-CNN; the defaults are those of the published Swin models.

    torchvision's are got with ``convention="torchvision"`` and ``regions=RegionConfig(proposals=(2000, 1000))``.
    """

    kind: ClassVar[str] = "mask_rcnn"

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None) -> Rcnn:
        """The head that this describes, for a pyramid with these channels and strides."""
        return Rcnn(self, channels, strides)
