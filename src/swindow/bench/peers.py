"""Other libraries' models of the same shape as ours, freshly initialised. None of these libraries is needed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swindow.backbones import VARIANTS
from swindow.bench.work import Work
from swindow.checkpoints.facts import huggingface_config
from swindow.checkpoints.hub import NAMED
from swindow.errors import ConfigError, require
from swindow.model import Model, ModelConfig

_OF_TRAINING = ("drop_path", "dropout", "image_size")  # fields that leave the variant what it is


def timm_model(config: ModelConfig, work: Work) -> nn.Module:
    """timm's, with our stochastic depth and made for the size of the work.

    Raises:
        MissingExtra: timm is not installed.
        ConfigError: timm has no model of this shape.
    """
    timm = require("timm", extra="interop")
    backbone: Any = config.backbone
    asked = {"img_size": work.size, "drop_path_rate": getattr(backbone, "drop_path", 0.0)}
    return timm.create_model(
        architecture(config, "timm"), num_classes=config.head.num_classes, in_chans=config.in_channels, **asked
    )


def torchvision_model(config: ModelConfig, work: Work) -> nn.Module:
    """torchvision's, with the stochastic depth that it has by itself: that of the published recipe, like ours.

    Raises:
        ConfigError: torchvision has no model of this shape.
    """
    models = require("torchvision.models", extra="train")
    name = architecture(config, "torchvision")
    if config.in_channels != 3:
        raise ConfigError(f"torchvision's {name} takes 3 image channels, not {config.in_channels}")
    if not name.startswith("vit"):
        return models.get_model(name, weights=None, num_classes=config.head.num_classes)
    height, width = work.size
    if height != width:
        raise ConfigError(f"torchvision's {name} takes square images, not {height}x{width}")
    return models.get_model(name, weights=None, num_classes=config.head.num_classes, image_size=height)


def transformers_model(config: ModelConfig, work: Work) -> nn.Module:
    """transformers', from the configuration that we write when a model is converted to its format.

    Raises:
        MissingExtra: transformers is not installed.
        ConfigError: transformers has no model of this shape.
    """
    same_windows = isinstance(getattr(config.backbone, "window", 0), int)  # transformers has one for all stages
    if config.backbone.kind not in ("swin", "swin_v2", "vit") or not same_windows:
        raise ConfigError(f"transformers has no counterpart of {config.name}")
    transformers = require("transformers", extra="interop")
    with torch.device("meta"):
        about = huggingface_config(Model(config))
    (architecture,) = about.pop("architectures")
    about["image_size"] = list(work.size) if work.size[0] != work.size[1] else work.size[0]
    theirs = transformers.AutoConfig.for_model(about.pop("model_type"), **about)
    return Logits(getattr(transformers, architecture)(theirs))


class Logits(nn.Module):
    """A model of transformers that returns logits alone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).logits


def architecture(config: ModelConfig, library: str) -> str:
    """What timm or torchvision calls this shape, by the table of published weights.

    Raises:
        ConfigError: there is no such model, or fields were changed so that it is no longer that model.
    """
    variant = VARIANTS.get(config.name)
    untouched = {name: getattr(variant, name) for name in _OF_TRAINING if hasattr(variant, name)}
    if variant is None or dataclasses.replace(config.backbone, **untouched) != variant:
        raise ConfigError(f"{library} has no counterpart: fields of {config.name} were changed")
    for published in NAMED.values():
        if published.format == library and published.name.split(".")[0] == config.name:
            return _theirs(published.source, library)
    raise ConfigError(f"{library} has no counterpart of {config.name}")


def _theirs(source: str, library: str) -> str:
    if library == "timm":  # timm/swin_tiny_patch4_window7_224.ms_in1k
        return source.removeprefix("timm/").split(".")[0]
    return source.split("_Weights")[0].lower()  # Swin_T_Weights.IMAGENET1K_V1


PEERS: Mapping[str, Callable[[ModelConfig, Work], nn.Module]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
    "transformers": transformers_model,
}
