"""Segmentation models of any layers, to ask about pictures of any size."""

import math

import torch
from torch import Tensor, nn

from swindow.inference import ReadyModel, ready
from swindow.model import Model, model_config
from swindow.preprocess import Preprocess

TINY = {"dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window": 4, "patch": 2, "decoder_depths": (1,)}


class Layers(Model):
    """A model whose logits are those of the layers it is given; the backbone and head that it has are not asked."""

    def __init__(self, layers: nn.Module, num_classes: int, channels: int = 3) -> None:
        super().__init__(model_config("unet_swin_micro", num_classes=num_classes, in_channels=channels, **TINY))
        self.layers = layers
        self.inputs: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.inputs.append(tuple(images.shape))
        return self.layers(images)


class Ramps(nn.Module):
    """Logits that depend on where in its window a pixel lies, so that windows disagree."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = (torch.arange(side).float() for side in images.shape[2:])
        return self.layers(images) + torch.sin(rows[:, None] * 0.3) + torch.cos(columns * 0.2)


def segmenter(
    layers: nn.Module, *, classes: int = 4, size: tuple[int, int] = (16, 24), channels: int = 3, **preprocess: object
) -> ReadyModel:
    """A model of these layers, ready to be asked in fp32, with windows of `size`."""
    model = Layers(layers, classes, channels).eval()
    model.classes = tuple(f"class {k}" for k in range(classes))
    model.preprocess = Preprocess(
        **({"size": size, "mean": (0.5,) * channels, "std": (0.25,) * channels, "fit": "native"} | preprocess)
    )
    return ready(model, precision="fp32")


def pointwise(classes: int = 4, channels: int = 3) -> nn.Module:
    """Each pixel by itself."""
    return nn.Conv2d(channels, classes, 1)


def local(classes: int = 4, channels: int = 3, reach: int = 2) -> nn.Module:
    """Each pixel with its neighbours up to `reach` away, zeros beyond the border."""
    layer = nn.Conv2d(channels, classes, 2 * reach + 1, padding=reach)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(channels * (2 * reach + 1) ** 2))
    return layer


def picture(height: int, width: int, *, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 noise, ``C h w``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, height, width), generator=generator, dtype=torch.uint8)
