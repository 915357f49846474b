"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030): a pyramid from attention in shifted local windows."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swindow.errors import ConfigError, ShapeError
from swindow.layers import DropPath, Linear, Mlp, PatchEmbed, PatchMerge, drop_path_rates, init_weights
from swindow.ops import reference
from swindow.ops.attention import Backend, window_attention
from swindow.ops.windows import Size, pad_to_windows, relative_position_index
from swindow.shapes import Images, Pyramid, Tokens


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
    window: int = 7
    """Side of the attention windows, in tokens."""
    patch: int = 4
    """Side of the image patches that become tokens, in pixels."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP per channel of the block."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout after projections and in the MLP."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ConfigError(
                f"depths {self.depths} and num_heads {self.num_heads} must name the same stages; give each one number"
            )
        if min(self.dim, self.window, self.patch, *self.depths, *self.num_heads) < 1:
            raise ConfigError("dim, window, patch and every entry of depths and num_heads must be at least 1")
        if self.mlp_ratio * self.dim < 1:
            raise ConfigError(
                f"mlp_ratio is {self.mlp_ratio}; the MLP needs at least 1 hidden channel for dim {self.dim}"
            )
        for channels, heads in zip(self.channels, self.num_heads, strict=True):
            if channels % heads:
                raise ConfigError(f"{channels} channels cannot be split over {heads} heads; change dim or num_heads")
        if not (0 <= self.drop_path < 1 and 0 <= self.dropout < 1):
            raise ConfigError(f"drop_path {self.drop_path} and dropout {self.dropout} must lie in [0, 1)")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per token side, per stage."""
        return tuple(self.patch * 2**stage for stage in range(len(self.depths)))

    def build(self, *, in_channels: int, out_stages: tuple[int, ...]) -> "Swin":
        """The backbone that this describes, freshly initialised."""
        return Swin(self, in_channels=in_channels, out_stages=out_stages)


class WindowAttention(nn.Module):
    """Multi-head self-attention in shifted windows with a learned relative position bias (section 3.2, equation 4)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: Size, shift: Size, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.scale = (dim // num_heads) ** -0.5
        self.backend: Backend = "auto"
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def forward(self, x: Tokens) -> Tokens:
        height, width = x.shape[1], x.shape[2]
        attended = window_attention(
            self.project(x),
            self.bias(),
            window=self.window,
            shift=self.shift_at(height, width),
            scale=self.scale,
            backend=self.backend,
        )
        if attended.shape[1:3] != x.shape[1:3]:
            attended = attended[:, :height, :width]
        return self.dropout(self.proj(attended.flatten(3)))

    def attention_weights(self, x: Tokens) -> Float[Tensor, "B G N T T"]:
        """What every token takes from every token of its window, from the oracle; windows in the rolled map's order."""
        shift = self.shift_at(x.shape[1], x.shape[2])
        return reference.attention_weights(
            self.project(x), self.bias(), window=self.window, shift=shift, scale=self.scale
        )

    def project(self, x: Tokens) -> Float[Tensor, "B H2 W2 3 N D"]:
        """Queries, keys and values on the map; padded first, so that padded tokens carry qkv's bias, as published."""
        return self.qkv(pad_to_windows(x, self.window)).unflatten(-1, (3, self.num_heads, -1))

    def bias(self) -> Float[Tensor, "N T T"]:
        """The position bias of each head for each pair of a window's tokens."""
        tokens = self.window[0] * self.window[1]
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return table.view(tokens, tokens, self.num_heads).permute(2, 0, 1)

    def shift_at(self, height: int, width: int) -> Size:
        """The shift on a map of this size: none along an axis that a single window covers."""
        return (self.shift[0] if height > self.window[0] else 0, self.shift[1] if width > self.window[1] else 0)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window={self.window}, shift={self.shift}, backend={self.backend!r}"


class Block(nn.Module):
    """Pre-norm Swin block: window attention, then MLP, each on a residual (section 3.2, equation 3)."""

    def __init__(self, config: SwinConfig, stage: int, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        dim, side = config.channels[stage], config.window
        shift = side // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.num_heads[stage], (side, side), (shift, shift), config.dropout)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim), config.dropout)

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks on one grid, unshifted and shifted in turn, and the merge that leads to the next stage."""

    def __init__(self, config: SwinConfig, stage: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config, stage, shifted=index % 2 == 1, drop_path=rate) for index, rate in enumerate(drop_path)
        )
        last = stage == len(config.depths) - 1
        self.merge = None if last else PatchMerge(config.channels[stage])
        self.checkpointing = False

    def forward(self, x: Tokens) -> Tokens:
        """The stage's map, before merging."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return x


class Swin(nn.Module):
    """Image to pyramid: one ``B H W C`` map for each of `out_stages`, finest first, each through a norm of its own.

    A classifier asks for the last stage only, whose norm is the paper's final norm. Height and width are free.
    """

    def __init__(self, config: SwinConfig, *, in_channels: int = 3, out_stages: tuple[int, ...] = (3,)) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.out_stages = _valid_stages(out_stages, len(config.depths))
        self.channels = tuple(config.channels[stage] for stage in self.out_stages)
        self.strides = tuple(config.strides[stage] for stage in self.out_stages)
        self.patch_embed = PatchEmbed(in_channels, config.dim, config.patch)
        self.dropout = nn.Dropout(config.dropout)
        rates = drop_path_rates(config.drop_path, config.depths)
        self.stages = nn.ModuleList(Stage(config, stage, rates[stage]) for stage in range(len(config.depths)))
        self.norms = nn.ModuleDict({str(stage): nn.LayerNorm(config.channels[stage]) for stage in self.out_stages})
        self.apply(init_weights)

    def forward(self, images: Images) -> Pyramid:
        maps = self.stage_maps(images)
        return tuple(self.norms[str(stage)](maps[stage]) for stage in self.out_stages)

    def stage_maps(self, images: Images) -> Pyramid:
        """The map of every stage up to the last one asked for, before any output norm."""
        if images.shape[1] != self.in_channels:
            raise ShapeError(
                f"images have {images.shape[1]} channels and the model takes {self.in_channels}; "
                "convert them, or build the model with in_channels"
            )
        x = self.dropout(self.patch_embed(images))
        maps = []
        for stage in self.each_stage()[: self.out_stages[-1] + 1]:
            x = stage(x)
            maps.append(x)
            if stage.merge is not None:
                x = stage.merge(x)
        return tuple(maps)

    def blocks(self) -> Iterator[Block]:
        """Every block, first to last: the unit of checkpointing, compilation and sharding."""
        for stage in self.each_stage():
            yield from cast(Iterable[Block], stage.blocks)

    def each_stage(self) -> list["Stage"]:
        """The stages, finest first, with their type: a ModuleList forgets it."""
        return [cast(Stage, stage) for stage in self.stages]

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """In training, keep only the blocks' inputs and compute the rest again in the backward pass."""
        for stage in self.each_stage():
            stage.checkpointing = enabled


def _valid_stages(stages: tuple[int, ...], count: int) -> tuple[int, ...]:
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 0 or stages[-1] >= count:
        raise ConfigError(f"out_stages {tuple(stages)} must be ascending stage numbers from 0 to {count - 1}")
    return tuple(stages)


VARIANTS = {
    "swin_tiny": SwinConfig(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path=0.2),
    "swin_small": SwinConfig(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path=0.3),
    "swin_base": SwinConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path=0.5),
    "swin_large": SwinConfig(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path=0.2),
    # For images of 28 to 64 pixels: small patches and windows keep enough tokens for every stage to be worth its while.
    "swin_nano": SwinConfig(dim=96, depths=(2, 2), num_heads=(3, 6), window=4, patch=2),
    "swin_micro": SwinConfig(dim=64, depths=(2, 2, 2), num_heads=(2, 4, 8), window=4, patch=2),
}
