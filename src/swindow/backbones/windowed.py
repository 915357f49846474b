"""What the windowed families share: windows on a map of any size, attention in them, stages, the pyramid's frame.

A family hands in its blocks and merges; nothing here knows which one it is.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from swindow.errors import ConfigError, ShapeError
from swindow.layers import Linear, PatchEmbed
from swindow.ops import reference
from swindow.ops.attention import Backend, window_attention
from swindow.ops.windows import Size, count, pad_to_windows, relative_position_index
from swindow.shapes import Images, Pyramid, Tokens

SmallMaps = Literal["shrink", "pad", "pad_shift"]
Sides = int | tuple[int | tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Windowing:
    """How a block cuts maps of any size: height and width of its windows in tokens, and how far they are shifted."""

    window: Size
    shift: Size = (0, 0)
    keep_shift: bool = False
    """Shift also along an axis that a single window covers."""

    def shift_at(self, height: int, width: int) -> Size:
        """The shift on a map of this size."""
        if self.keep_shift:
            return self.shift
        return (self.shift[0] if height > self.window[0] else 0, self.shift[1] if width > self.window[1] else 0)


def windows_of_stages(sides: Sides, grids: Sequence[Size] | None, stages: int) -> tuple[Size, ...]:
    """The window of each stage: one side for all, or an entry a stage; no larger than the stage's grid, if given.

    Raises:
        ConfigError: another number of entries than stages, or a side below 1.
    """
    entries = (sides,) * stages if isinstance(sides, int) else sides
    if len(entries) != stages:
        raise ConfigError(
            f"window {sides} names {len(entries)} stages of {stages}; give one side for all, or an entry per stage, "
            "each a side or (height, width)"
        )
    pairs = [(side, side) if isinstance(side, int) else side for side in entries]
    if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
        raise ConfigError(f"window {sides}: every entry must be a side or (height, width) of at least 1")
    if grids is None:
        return tuple(pairs)
    return tuple((min(window[0], grid[0]), min(window[1], grid[1])) for window, grid in zip(pairs, grids, strict=True))


def grids_of_stages(image_size: int | Size, patch: int, stages: int) -> tuple[Size, ...]:
    """Height and width in tokens of each stage's map for images of this size in pixels."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid, grids = (count(height, patch), count(width, patch)), []
    for _ in range(stages):
        grids.append(grid)
        grid = (count(grid[0], 2), count(grid[1], 2))
    return tuple(grids)


def windowings(window: Size, depth: int, *, shifted: bool, keep_shift: bool) -> list[Windowing]:
    """How the blocks of a stage cut their maps: every second one shifted by half a window (Swin, section 3.2)."""
    half = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    return [Windowing(window, half if index % 2 else (0, 0), keep_shift) for index in range(depth)]


class RelativeBias(nn.Module):
    """A learned bias for each head and each offset between two tokens of a window (Swin, equation 4)."""

    index: Tensor

    def __init__(self, window: Size, num_heads: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", relative_position_index(window), persistent=False)

    def forward(self) -> Float[Tensor, "N T T"]:
        tokens = self.index.shape[0]
        return self.table[self.index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Multi-head self-attention in shifted windows (Swin, section 3.2); what makes a family its own is handed in.

    Args:
        qkv: tokens ``… C`` to queries, keys and values ``… 3C``, each head-major.
        position_bias: gives ``N T T`` without arguments, or None for no position bias.
        logit_scale: gives a scale per head, and attention compares directions (V2); None is 1/sqrt(D), and products.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        windowing: Windowing,
        *,
        qkv: nn.Module,
        position_bias: nn.Module | None,
        logit_scale: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.windowing = num_heads, windowing
        self.backend: Backend = "auto"
        self.position_bias, self.logit_scale = position_bias, logit_scale
        self.qkv = qkv
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    @property
    def window(self) -> Size:
        """Height and width of the windows, in tokens."""
        return self.windowing.window

    def forward(self, x: Tokens) -> Tokens:
        height, width = x.shape[1], x.shape[2]
        attended = window_attention(self.project(x), backend=self.backend, **self.setting(height, width))
        if attended.shape[1:3] != x.shape[1:3]:
            attended = attended[:, :height, :width]
        return self.dropout(self.proj(attended.flatten(3)))

    def attention_weights(self, x: Tokens) -> Float[Tensor, "B G N T T"]:
        """What every token takes from every token of its window, from the oracle; windows in the rolled map's order."""
        return reference.attention_weights(self.project(x), **self.setting(x.shape[1], x.shape[2]))

    def project(self, x: Tokens) -> Float[Tensor, "B H2 W2 3 N D"]:
        """Queries, keys and values on the map; padded first, so that padded tokens carry qkv's bias, as published."""
        return self.qkv(pad_to_windows(x, self.window)).unflatten(-1, (3, self.num_heads, -1))

    def setting(self, height: int, width: int) -> dict[str, Any]:
        """Everything but queries, keys and values that the operation needs on a map of this size."""
        return {
            "bias": None if self.position_bias is None else self.position_bias(),
            "window": self.window,
            "shift": self.windowing.shift_at(height, width),
            "scale": (self.proj.in_features // self.num_heads) ** -0.5
            if self.logit_scale is None
            else self.logit_scale(),
            "cosine": self.logit_scale is not None,
        }

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, {self.windowing}, backend={self.backend!r}"


class Stage(nn.Module):
    """Blocks on one grid and the merge that leads to the next stage; the last stage has none."""

    def __init__(self, blocks: Iterable[nn.Module], merge: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge
        self.checkpointing = False

    def forward(self, x: Tokens) -> Tokens:
        """The stage's map, before merging."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        return x


class AbsolutePosition(nn.Module):
    """A learned embedding of each place of the grid that the model is made for, resampled to any other grid."""

    def __init__(self, grid: Size, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(*grid, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tokens) -> Tokens:
        if x.shape[1:3] == self.table.shape[:2]:
            return x + self.table
        table = self.table.permute(2, 0, 1)[None]
        resampled = F.interpolate(table, size=x.shape[1:3], mode="bicubic", align_corners=False)
        return x + resampled[0].permute(1, 2, 0)


class WindowedBackbone(nn.Module):
    """Image to pyramid: one ``B H W C`` map for each of `out_stages`, finest first, each through a norm of its own.

    A classifier asks for the last stage only, whose norm is the paper's final norm. Height and width are free.
    `config` is the family's, with `dim`, `patch`, `dropout`, `channels` and `strides`.
    """

    def __init__(
        self,
        config: Any,
        stages: Iterable[Stage],
        *,
        in_channels: int,
        out_stages: tuple[int, ...],
        absolute_position: AbsolutePosition | None = None,
    ) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.out_stages = valid_stages(out_stages, len(config.channels))
        self.channels = tuple(config.channels[stage] for stage in self.out_stages)
        self.strides = tuple(config.strides[stage] for stage in self.out_stages)
        self.patch_embed = PatchEmbed(in_channels, config.dim, config.patch)
        self.absolute_position = absolute_position
        self.dropout = nn.Dropout(config.dropout)
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleDict({str(stage): nn.LayerNorm(config.channels[stage]) for stage in self.out_stages})

    def forward(self, images: Images) -> Pyramid:
        maps = self.stage_maps(images)
        return tuple(self.norms[str(stage)](maps[stage]) for stage in self.out_stages)

    def stage_maps(self, images: Images) -> Pyramid:
        """The map of every stage up to the last one asked for, before any output norm."""
        x, maps = self.embed(images), []
        for stage in self.each_stage()[: self.out_stages[-1] + 1]:
            x = stage(x)
            maps.append(x)
            if stage.merge is not None:
                x = stage.merge(x)
        return tuple(maps)

    def embed(self, images: Images) -> Float[Tensor, "B H W D"]:
        """Images as the tokens that the first stage takes.

        Raises:
            ShapeError: another number of channels than the model's.
        """
        if images.shape[1] != self.in_channels:
            raise ShapeError(
                f"images have {images.shape[1]} channels and the model takes {self.in_channels}; "
                "convert them, or build the model with in_channels"
            )
        x = self.patch_embed(images)
        return self.dropout(x if self.absolute_position is None else self.absolute_position(x))

    def blocks(self) -> Iterator[nn.Module]:
        """Every block, first to last: the unit of checkpointing, compilation and sharding."""
        for stage in self.each_stage():
            yield from stage.blocks

    def each_stage(self) -> list[Stage]:
        """The stages, finest first, with their type: a ModuleList forgets it."""
        return [cast(Stage, stage) for stage in self.stages]

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """In training, keep only the blocks' inputs and compute the rest again in the backward pass."""
        for stage in self.each_stage():
            stage.checkpointing = enabled


def check_pyramid(dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], patch: int) -> None:
    """Whether these numbers can be a pyramid of attention stages.

    Raises:
        ConfigError: they cannot; the message says why.
    """
    if len(depths) != len(num_heads) or not depths:
        raise ConfigError(f"depths {depths} and num_heads {num_heads} must name the same stages; give each one number")
    if min(dim, patch, *depths, *num_heads) < 1:
        raise ConfigError("dim, patch and every entry of depths and num_heads must be at least 1")
    for stage, heads in enumerate(num_heads):
        if dim * 2**stage % heads:
            raise ConfigError(f"{dim * 2**stage} channels cannot be split over {heads} heads; change dim or num_heads")


def check_rates(drop_path: float, dropout: float) -> None:
    """Whether both are shares of what is dropped.

    Raises:
        ConfigError: one is not in [0, 1).
    """
    if not (0 <= drop_path < 1 and 0 <= dropout < 1):
        raise ConfigError(f"drop_path {drop_path} and dropout {dropout} must lie in [0, 1)")


def valid_stages(stages: tuple[int, ...], number: int) -> tuple[int, ...]:
    """`stages` as they are.

    Raises:
        ConfigError: they are not ascending numbers of the `number` stages that there are.
    """
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 0 or stages[-1] >= number:
        raise ConfigError(f"out_stages {tuple(stages)} must be ascending stage numbers from 0 to {number - 1}")
    return tuple(stages)
