"""Small Swin V2s whose norms, biases and scales are all at work."""

from typing import Any

from torch import nn

from swindow.backbones.swin_v2 import SwinV2Config
from swindow.heads import ClassifierConfig
from swindow.model import Model, ModelConfig


def model_of(config: SwinV2Config, num_classes: int = 5) -> Model:
    return ModelConfig(name="swin_v2", backbone=config, head=ClassifierConfig(num_classes=num_classes)).build().eval()


def tiny(**fields: Any) -> SwinV2Config:
    """Two small stages; 16x16 pixels make two windows a side, then one."""
    shape = {"dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2, "image_size": 16}
    return SwinV2Config(**(shape | {"drop_path": 0.0} | fields))


def drawn(module: nn.Module) -> Any:
    """Every parameter drawn anew, that no norm silences its branch and no bias is zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
    return module
