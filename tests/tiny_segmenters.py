"""One tiny segmenter of every head and every kind of backbone."""

from typing import Any

import torch
from torch import nn

from swindow.model import Model, build
from tiny_families import FAMILIES

HEADS: dict[str, dict[str, Any]] = {
    "upernet": {"decoder_width": 8, "auxiliary_width": 4, "pools": (1, 2, 3)},
    "unet": {"decoder_depths": (2,)},  # two maps, of which one is joined
}
SEGMENTERS = [(head, family) for head in HEADS for family in FAMILIES]


def segmenter(head: str, family: str = "swin", *, noise: float = 0.0, **fields: Any) -> Model:
    """The model, in eval mode; `noise` is the share that stochastic depth and dropout drop, where there are any."""
    name, shape = FAMILIES[family]
    drawn = {} if name.startswith("resnet") else {"drop_path": noise, "dropout": noise}
    drawn |= {"head_dropout": noise} if head == "upernet" else {"decoder_drop_path": noise}
    return build(f"{head}_{name}", **({"num_classes": 5} | drawn | shape | HEADS[head] | fields)).eval()


def stirred(model: Model) -> Model:
    """`model` with parameters and statistics none of which is zero or one, so that each of them matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model
