"""One tiny model of every kind that `torch.compile` and checkpointing have to cope with, each of its own make."""

from typing import Any

from swindow.backbones import ResNetConfig
from swindow.model import Model, build

_WINDOWS: dict[str, Any] = {"dim": 8, "depths": (2, 1), "num_heads": (2, 4), "window": 4, "patch": 2}
_ENCODER: dict[str, Any] = {"dim": 16, "depths": (1, 1), "num_heads": 2, "image_size": 16}
_TRUNK = ResNetConfig(depths=(1, 1), width=64, norm="group")

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_micro", _WINDOWS),
    "swin, places": ("swin_micro", {**_WINDOWS, "absolute_position": True, "image_size": 16}),
    "swin, always shifted": ("swin_micro", {**_WINDOWS, "small_maps": "pad_shift"}),
    "swin_v2": ("swin_v2_tiny_w8", {**_WINDOWS, "image_size": 32, "extra_norm_every": 1}),
    "swin_mlp": ("swin_mlp_tiny_c24", _WINDOWS),
    "swin_moe": ("swin_moe_small_e8", {**_WINDOWS, "routed": ((1,), (0,)), "experts": 3, "image_size": 32}),
    "vit": ("vit_tiny", {**_ENCODER, "patch": 4}),
    "vit, normed mean": ("vit_tiny", {**_ENCODER, "patch": 4, "pool": "mean_norm", "class_token": False}),
    "deit, distilled": ("deit_tiny_distilled", {**_ENCODER, "patch": 4}),
    "hybrid": ("hybrid_small_r26_32", {**_ENCODER, "trunk": _TRUNK}),
    "resnet": ("resnet_18", {"depths": (1, 2), "width": 8}),
    "resnet, groups": ("resnet_50", {"depths": (1, 1), "width": 64, "norm": "group"}),
}


def tiny_of(family: str, *, noise: float = 0.0, **fields: Any) -> Model:
    """The model, in eval mode; `noise` is the share that stochastic depth and dropout drop, where there are any."""
    name, shape = FAMILIES[family]
    drawn = {} if name.startswith("resnet") else {"drop_path": noise, "dropout": noise}
    return build(name, num_classes=5, **{"head_dropout": noise, **drawn, **shape, **fields}).eval()
