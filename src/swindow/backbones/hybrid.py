"""Hybrids (Dosovitskiy et al. 2021, section 3.1): a ViT whose patches are cut from the last map of another backbone."""

import dataclasses
from typing import ClassVar

from swindow.backbones.resnet import ResNetConfig
from swindow.backbones.swin import SwinConfig
from swindow.backbones.swin_v2 import SwinV2Config
from swindow.backbones.vit import BASE, LARGE, SMALL, Patches, ViT, ViTConfig

Trunk = ResNetConfig | SwinConfig | SwinV2Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig(ViTConfig):
    """The shape of a ViT, and of the backbone before it."""

    kind: ClassVar[str] = "hybrid"

    trunk: Trunk
    """The backbone whose last map the encoder reads."""
    patch: int = 1
    """Side of the patches that become tokens, in cells of the trunk's last map."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per token side, per stage of the encoder: the same for all."""
        return (self.trunk.strides[-1] * self.patch,) * len(self.depths)

    def build(self, *, in_channels: int, out_stages: tuple[int, ...], prefix: bool = False) -> ViT:
        """The backbone that this describes, freshly initialised; with `prefix`, its learned tokens come out too."""
        trunk = self.trunk.build(in_channels=in_channels, out_stages=(len(self.trunk.channels) - 1,))
        patches = Patches(trunk.channels[-1], self.dim, self.patch, trunk)
        return ViT(self, patches, in_channels=in_channels, out_stages=out_stages, prefix=prefix)


_R26 = ResNetConfig(depths=(2, 2, 2, 2), norm="group")
_R50 = ResNetConfig(depths=(3, 4, 6, 3), norm="group")
# The last stage's blocks added to the one before it: as deep as R50, at half its stride (section 4.1).
_R50_16 = ResNetConfig(depths=(3, 4, 9), norm="group")

VARIANTS = {
    "hybrid_small_r26_32": HybridConfig(**SMALL, trunk=_R26),
    "hybrid_small_r26_32_384": HybridConfig(**SMALL, trunk=_R26, image_size=384),
    "hybrid_base_r50_16": HybridConfig(**BASE, trunk=_R50_16),
    "hybrid_base_r50_16_384": HybridConfig(**BASE, trunk=_R50_16, image_size=384),
    "hybrid_large_r50_32": HybridConfig(**LARGE, trunk=_R50),
    "hybrid_large_r50_32_384": HybridConfig(**LARGE, trunk=_R50, image_size=384),
}
