"""Models whose weights are set by hand, so that what they look at is known."""

from typing import Any

import numpy as np
import torch
from torch import nn

from swindow.model import Model
from swindow.preprocess import Preprocess


def ready(model: Model, size: tuple[int, int] = (16, 16), **fields: Any) -> Model:
    """A model that takes pixels as they are, in 0..1."""
    channels = model.config.in_channels
    model.preprocess = Preprocess(size=size, mean=(0.0,) * channels, std=(1.0,) * channels, **fields)
    return model


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def blank(model: Model) -> Model:
    """No token prefers any other: no queries, no keys, no position bias."""
    for block in model.backbone.blocks():
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias, block.attn.position_bias.table):
            nn.init.zeros_(parameter)
    return model


def looking_right(model: Model) -> Model:
    """Every token attends to its right neighbour, if that is in its window, and else to all alike."""
    for block in blank(model).backbone.blocks():
        height, width = block.attn.window
        row = (height - 1) * (2 * width - 1) + width - 2  # query - key = (0, -1)
        with torch.no_grad():
            block.attn.position_bias.table[row] = 60.0
    return model


def colour_blobs(model: Model) -> Model:
    """Blocks do nothing; channel 0 lights where a patch is red, 1 where green; the classes read those two channels."""
    with torch.no_grad():
        for block in model.backbone.blocks():
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_(), layer.bias.zero_()
        embed = model.backbone.patch_embed.proj
        embed.weight.zero_(), embed.bias.zero_()
        embed.weight[0, 0] = embed.weight[1, 1] = 1.0
        for stage in list(model.backbone.stages)[:-1]:
            outer, inner = stage.merge.reduction.weight.shape
            stage.merge.reduction.weight.copy_(torch.eye(inner // 4).repeat(2, 4) * (torch.arange(outer) < 2)[:, None])
        model.head.linear.weight.zero_(), model.head.linear.bias.zero_()
        model.head.linear.weight[0, 0] = model.head.linear.weight[1, 1] = 1.0
    model.classes = ("red", "green", "neither")
    return model
