"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030): a pyramid from attention in shifted local windows."""

import dataclasses
from typing import ClassVar

from torch import nn

from swindow.backbones.windowed import (
    AbsolutePosition,
    RelativeBias,
    Sides,
    SmallMaps,
    Stage,
    WindowAttention,
    WindowedBackbone,
    Windowing,
    check_pyramid,
    check_rates,
    grids_of_stages,
    windowings,
    windows_of_stages,
)
from swindow.errors import ConfigError
from swindow.layers import DropPath, Linear, Mlp, PatchMerge, drop_path_rates, init_weights
from swindow.ops.windows import Size
from swindow.shapes import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """The shape of a Swin V1."""

    kind: ClassVar[str] = "swin"

    dim: int
    """Channels of the first stage; each later stage has twice as many."""
    depths: tuple[int, ...]
    """Blocks per stage; odd blocks of a stage shift their windows."""
    num_heads: tuple[int, ...]
    """Attention heads per stage."""
    window: Sides = 7
    """Side of the attention windows in tokens; or one entry per stage, each a side or (height, width)."""
    patch: int = 4
    """Side of the image patches that become tokens, in pixels."""
    image_size: int | tuple[int, int] = 224
    """Pixels that the model is made for, side or (height, width): what `absolute_position` and ``shrink`` go by."""
    small_maps: SmallMaps = "pad"
    """Windows on maps no larger than they: ``pad`` the map and do not shift (torchvision); ``pad_shift`` all the same
    (the detection and segmentation forks); ``shrink`` them to the map of `image_size` when built (the original)."""
    shifted: bool = True
    """Shift every second block's windows; False is the paper's ablation (table 4)."""
    relative_bias: bool = True
    """Add a learned bias for each offset between two tokens (equation 4)."""
    absolute_position: bool = False
    """Add a learned embedding of each place to the patches (``ape``, section 4.4)."""
    qkv_bias: bool = True
    """Biases on queries, keys and values."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP per channel of the block."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout after projections and in the MLP."""

    def __post_init__(self) -> None:
        check_pyramid(self.dim, self.depths, self.num_heads, self.patch)
        check_rates(self.drop_path, self.dropout)
        if self.mlp_ratio * self.dim < 1:
            raise ConfigError(
                f"mlp_ratio is {self.mlp_ratio}; the MLP needs at least 1 hidden channel for dim {self.dim}"
            )
        if min(self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)) < 1:
            raise ConfigError(f"image_size is {self.image_size}; it must be at least 1 pixel")
        _ = self.windows

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per token side, per stage."""
        return tuple(self.patch * 2**stage for stage in range(len(self.depths)))

    @property
    def windows(self) -> tuple[Size, ...]:
        """Height and width of the windows per stage, as built."""
        grids = grids_of_stages(self.image_size, self.patch, len(self.depths))
        return windows_of_stages(self.window, grids if self.small_maps == "shrink" else None, len(self.depths))

    def build(self, *, in_channels: int, out_stages: tuple[int, ...]) -> WindowedBackbone:
        """The backbone that this describes, freshly initialised."""
        rates = drop_path_rates(self.drop_path, self.depths)
        grid = grids_of_stages(self.image_size, self.patch, 1)[0]
        body = WindowedBackbone(
            self,
            [_stage(self, number, rates[number]) for number in range(len(self.depths))],
            in_channels=in_channels,
            out_stages=out_stages,
            absolute_position=AbsolutePosition(grid, self.dim) if self.absolute_position else None,
        )
        return body.apply(init_weights)


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
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _stage(config: SwinConfig, number: int, rates: list[float]) -> Stage:
    """Blocks with windows unshifted and shifted in turn, and a merge unless it is the last stage."""
    keep = config.small_maps == "pad_shift"
    cuts = windowings(config.windows[number], len(rates), shifted=config.shifted, keep_shift=keep)
    blocks = (Block(config, number, cut, drop_path=rate) for cut, rate in zip(cuts, rates, strict=True))
    last = number == len(config.depths) - 1
    return Stage(blocks, None if last else PatchMerge(config.channels[number]))


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
