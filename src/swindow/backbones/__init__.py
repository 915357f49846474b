"""Image to pyramid. `FAMILIES` is the whole registry: a family is a module with a `VARIANTS` table."""

from swindow.backbones import swin
from swindow.backbones.swin import SwinConfig
from swindow.backbones.windowed import WindowedBackbone

FAMILIES = (swin,)
VARIANTS = {name: config for family in FAMILIES for name, config in family.VARIANTS.items()}

Backbone = WindowedBackbone
BackboneConfig = SwinConfig

__all__ = ["FAMILIES", "VARIANTS", "Backbone", "BackboneConfig", "SwinConfig", "WindowedBackbone"]
