"""Image to pyramid. `FAMILIES` is the whole registry: a family is a module with a `VARIANTS` table."""

from swindow.backbones import hybrid, resnet, swin, swin_mlp, swin_moe, swin_v2, vit
from swindow.backbones.hybrid import HybridConfig
from swindow.backbones.resnet import ResNet, ResNetConfig
from swindow.backbones.swin import SwinConfig
from swindow.backbones.swin_mlp import SwinMlpConfig
from swindow.backbones.swin_moe import SwinMoe, SwinMoeConfig
from swindow.backbones.swin_v2 import SwinV2Config
from swindow.backbones.vit import ViT, ViTConfig
from swindow.backbones.windowed import WindowedBackbone

FAMILIES = (swin, swin_v2, swin_mlp, swin_moe, vit, hybrid, resnet)
VARIANTS: dict[str, "BackboneConfig"] = {
    name: config for family in FAMILIES for name, config in family.VARIANTS.items()
}

Backbone = WindowedBackbone | ViT | ResNet
BackboneConfig = SwinConfig | SwinV2Config | SwinMlpConfig | SwinMoeConfig | ViTConfig | HybridConfig | ResNetConfig

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "Backbone",
    "BackboneConfig",
    "HybridConfig",
    "ResNet",
    "ResNetConfig",
    "SwinConfig",
    "SwinMlpConfig",
    "SwinMoe",
    "SwinMoeConfig",
    "SwinV2Config",
    "ViT",
    "ViTConfig",
    "WindowedBackbone",
]
