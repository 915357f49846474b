"""Pyramid to answer. A head owns its outputs, its loss and its decoding; `HEADS` is the whole registry.

A head's config says what it is for (`task`) and which stages it reads (`stages`); its `build` takes the channels and
strides of their maps and the backbone's config. A head has `forward(pyramid)`, `loss(outputs, targets)`,
`decode(outputs, size)` and `right(outputs, targets)`.
"""

from swindow.heads import cascade, classify, detr, mask_rcnn, retinanet, simmim, unet, upernet
from swindow.heads.cascade import CascadeMaskRcnnConfig
from swindow.heads.classify import Classifier, ClassifierConfig, ClassifierOutputs
from swindow.heads.detr import Detr, DetrConfig, DetrOutputs
from swindow.heads.mask_rcnn import MaskRcnnConfig
from swindow.heads.rcnn import Rcnn, RcnnOutputs
from swindow.heads.rcnn_config import RcnnConfig
from swindow.heads.regions import RegionConfig
from swindow.heads.retinanet import RetinaNet, RetinaNetConfig, RetinaNetOutputs
from swindow.heads.segment import SegmenterConfig, SegmenterOutputs
from swindow.heads.simmim import Covered, SimMim, SimMimConfig, SimMimOutputs
from swindow.heads.unet import UNet, UNetConfig
from swindow.heads.upernet import UperNet, UperNetConfig

HEADS = (classify, upernet, unet, detr, retinanet, mask_rcnn, cascade, simmim)

Head = Classifier | UperNet | UNet | Detr | RetinaNet | Rcnn | SimMim
HeadConfig = (
    ClassifierConfig
    | UperNetConfig
    | UNetConfig
    | DetrConfig
    | RetinaNetConfig
    | MaskRcnnConfig
    | CascadeMaskRcnnConfig
    | SimMimConfig
)

__all__ = [
    "HEADS",
    "CascadeMaskRcnnConfig",
    "Classifier",
    "ClassifierConfig",
    "ClassifierOutputs",
    "Covered",
    "Detr",
    "DetrConfig",
    "DetrOutputs",
    "Head",
    "HeadConfig",
    "MaskRcnnConfig",
    "Rcnn",
    "RcnnConfig",
    "RcnnOutputs",
    "RegionConfig",
    "RetinaNet",
    "RetinaNetConfig",
    "RetinaNetOutputs",
    "SegmenterConfig",
    "SegmenterOutputs",
    "SimMim",
    "SimMimConfig",
    "SimMimOutputs",
    "UNet",
    "UNetConfig",
    "UperNet",
    "UperNetConfig",
]
