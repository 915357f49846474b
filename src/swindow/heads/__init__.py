"""Pyramid to answer. A head owns its outputs, its loss and its decoding; `HEADS` is the whole registry.

A head's config says what it is for (`task`) and which stages it reads (`stages`); its `build` takes the channels and
strides of their maps and the backbone's config. A head has `forward(pyramid)`, `loss(outputs, targets)`,
`decode(outputs, size)` and `right(outputs, targets)`.
"""

from swindow.heads import classify, unet, upernet
from swindow.heads.classify import Classifier, ClassifierConfig, ClassifierOutputs
from swindow.heads.segment import SegmenterConfig, SegmenterOutputs
from swindow.heads.unet import UNet, UNetConfig
from swindow.heads.upernet import UperNet, UperNetConfig

HEADS = (classify, upernet, unet)

Head = Classifier | UperNet | UNet
HeadConfig = ClassifierConfig | UperNetConfig | UNetConfig

__all__ = [
    "HEADS",
    "Classifier",
    "ClassifierConfig",
    "ClassifierOutputs",
    "Head",
    "HeadConfig",
    "SegmenterConfig",
    "SegmenterOutputs",
    "UNet",
    "UNetConfig",
    "UperNet",
    "UperNetConfig",
]
