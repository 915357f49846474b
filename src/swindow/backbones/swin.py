"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030): a pyramid from attention in shifted local windows."""

import dataclasses
from typing import ClassVar

from torch import nn

from swindow.backbones.geometry import Windowing
from swindow.backbones.windowed import RelativeBias, Stage, WindowAttention, WindowedConfig
from swindow.layers import DropPath, Linear, Mlp, PatchMerge
from swindow.shapes import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig(WindowedConfig):
    """The shape of a Swin V1."""

    kind: ClassVar[str] = "swin"

    relative_bias: bool = True
    """Add a learned bias for each offset between two tokens (equation 4)."""
    qkv_bias: bool = True
    """Biases on queries, keys and values."""

    def stage(self, number: int, rates: list[float]) -> Stage:
        """Blocks with windows unshifted and shifted in turn, and a merge unless it is the last stage."""
        cuts = zip(self.windowings(number), rates, strict=True)
        blocks = [Block(self, number, cut, drop_path=rate) for cut, rate in cuts]
        last = number == len(self.depths) - 1
        return Stage(blocks, None if last else PatchMerge(self.channels[number]))


class Block(nn.Module):
    """Pre-norm Swin block: window attention, then MLP, each on a residual (section 3.2, equation 3)."""

    norm_first: ClassVar[bool] = True

    def __init__(self, config: SwinConfig, stage: int, windowing: Windowing, *, drop_path: float) -> None:
        super().__init__()
        dim, num_heads = config.channels[stage], config.num_heads[stage]
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim,
            num_heads,
            windowing,
            qkv=Linear(dim, 3 * dim, bias=config.qkv_bias),
            position_bias=RelativeBias(windowing.window, num_heads) if config.relative_bias else None,
            dropout=config.dropout,
        )
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim), config.dropout)

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.drop_path(self.attn(x, self.norm1))
        return x + self.drop_path(self.mlp(x, self.norm2))


_TINY, _SMALL = (2, 2, 6, 2), (2, 2, 18, 2)

VARIANTS = {
    "swin_tiny": SwinConfig(dim=96, depths=_TINY, num_heads=(3, 6, 12, 24), drop_path=0.2),
    "swin_small": SwinConfig(dim=96, depths=_SMALL, num_heads=(3, 6, 12, 24), drop_path=0.3),
    "swin_base": SwinConfig(dim=128, depths=_SMALL, num_heads=(4, 8, 16, 32), drop_path=0.5),
    "swin_large": SwinConfig(dim=192, depths=_SMALL, num_heads=(6, 12, 24, 48), drop_path=0.2),
    "swin_base_384": SwinConfig(
        dim=128, depths=_SMALL, num_heads=(4, 8, 16, 32), window=12, image_size=384, drop_path=0.5
    ),
    "swin_large_384": SwinConfig(
        dim=192, depths=_SMALL, num_heads=(6, 12, 24, 48), window=12, image_size=384, drop_path=0.2
    ),
    # Found by search over depths, widths and windows (AutoFormerV2; Chen et al. 2021, arXiv 2111.14725, table 7).
    "swin_s3_tiny": SwinConfig(dim=96, depths=_TINY, num_heads=(3, 6, 12, 24), window=(7, 7, 14, 7), drop_path=0.2),
    "swin_s3_small": SwinConfig(dim=96, depths=_SMALL, num_heads=(3, 6, 12, 24), window=(14, 14, 14, 7), drop_path=0.3),
    "swin_s3_base": SwinConfig(
        dim=96, depths=(2, 2, 30, 2), num_heads=(3, 6, 12, 24), window=(7, 7, 14, 7), drop_path=0.5
    ),
    # For images of 28 to 64 pixels: small patches and windows keep enough tokens for every stage to be worth its while.
    "swin_nano": SwinConfig(dim=96, depths=(2, 2), num_heads=(3, 6), window=4, patch=2, image_size=32),
    "swin_micro": SwinConfig(dim=64, depths=(2, 2, 2), num_heads=(2, 4, 8), window=4, patch=2, image_size=32),
}
