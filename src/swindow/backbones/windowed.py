"""What the windowed families share: windows on a map of any size, attention in them, stages, the pyramid's frame.

A family hands in its blocks and merges; nothing here knows which one it is.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from swindow.backbones.geometry import (
    Sides,
    SmallMaps,
    Windowing,
    check_channels,
    check_pyramid,
    check_rates,
    grids_of_stages,
    valid_stages,
    windowings,
    windows_of_stages,
)
from swindow.backbones.hiding import Hidden
from swindow.errors import ConfigError
from swindow.layers import Linear, PatchEmbed, drop_path_rates, init_weights, on_norm
from swindow.ops import reference
from swindow.ops.attention import Backend, window_attention
from swindow.ops.linear import keeps_for_backward
from swindow.ops.pieces import by_pieces, in_company
from swindow.ops.windows import Size, crop, pad_to_windows, relative_position_index
from swindow.shapes import Images, Pyramid, Tokens


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

    def forward(self, x: Tokens, norm: nn.Module | None = None) -> Tokens:
        """Attention of `x`, or of its `norm`."""
        height, width = x.shape[1], x.shape[2]
        attended = window_attention(self.project(x, norm), backend=self.backend, **self.setting(height, width))
        return self.dropout(self.proj(crop(attended, (height, width)).flatten(3)))

    def attention_weights(self, x: Tokens) -> Float[Tensor, "B G N T T"]:
        """What every token takes from every token of its window, from the oracle; windows in the rolled map's order."""
        return reference.attention_weights(self.project(x), **self.setting(x.shape[1], x.shape[2]))

    def project(self, x: Tokens, norm: nn.Module | None = None) -> Float[Tensor, "B H2 W2 3 N D"]:
        """Queries, keys and values on the map; padded first, so that padded tokens carry qkv's bias, as published."""
        qkv = on_norm(self.qkv, norm, x, lambda x: pad_to_windows(x, self.window))
        return qkv.unflatten(-1, (3, self.num_heads, -1))

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
            x = _inputs_kept(block, x) if self.checkpointing and self.training else block(x)
        return x


_PIECE = 2**19
"""Values of a map that a checkpointed block takes at a time on a CPU; what it computes again is twenty times that."""


def _inputs_kept(block: nn.Module, x: Tokens) -> Tokens:
    """A block of which training keeps the input alone; on a CPU, where nothing is launched, a few images at a time."""
    parameters = dict(block.named_parameters())
    alone = x.numel() <= _PIECE or x.shape[0] == 1 or not keeps_for_backward((x, *parameters.values()))
    if alone or x.device.type != "cpu" or in_company():
        return checkpoint(block, x, use_reentrant=False)
    # What is dropped at random is drawn piece by piece: other images than without checkpointing, no more and no fewer.

    def run(x: Tensor, *learned: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(parameters, learned, strict=True)), (x,))

    return by_pieces(run, x, tuple(parameters.values()), max(1, _PIECE * x.shape[0] // x.numel()))


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


Frame = TypeVar("Frame", bound="WindowedBackbone")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowedConfig:
    """The shape that the windowed families share; a family adds its own fields and says what a stage is made of."""

    kind: ClassVar[str]

    dim: int
    """Channels of the first stage; each later stage has twice as many."""
    depths: tuple[int, ...]
    """Blocks per stage; odd blocks of a stage shift their windows."""
    num_heads: tuple[int, ...]
    """Attention heads per stage, or groups of channels with spatial weights of their own."""
    window: Sides = 7
    """Side of the windows in tokens; or one entry per stage, each a side or (height, width)."""
    patch: int = 4
    """Side of the image patches that become tokens, in pixels."""
    image_size: int | tuple[int, int] = 224
    """Pixels that the model is made for, side or (height, width): what `absolute_position` and ``shrink`` go by."""
    small_maps: SmallMaps = "pad"
    """Windows on maps no larger than they: ``pad`` the map and do not shift (torchvision); ``pad_shift`` all the same
    (the detection and segmentation forks); ``shrink`` them to the map of `image_size` when built (the original)."""
    shifted: bool = True
    """Shift every second block's windows; False is the paper's ablation (Swin, table 4)."""
    absolute_position: bool = False
    """Add a learned embedding of each place to the patches (``ape``; Swin, section 4.4)."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP per channel of the block."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout after the patches, after projections and in the MLP."""

    def __post_init__(self) -> None:
        check_pyramid(self.dim, self.depths, self.num_heads, self.patch)
        check_rates(self.drop_path, self.dropout)
        if not 1 <= self.mlp_ratio * self.dim < math.inf:
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
    def grids(self) -> tuple[Size, ...]:
        """Height and width of each stage's map at `image_size`, in tokens."""
        return grids_of_stages(self.image_size, self.patch, len(self.depths))

    @property
    def windows(self) -> tuple[Size, ...]:
        """Height and width of the windows per stage, as built."""
        return windows_of_stages(self.window, self.grids if self.small_maps == "shrink" else None, len(self.depths))

    def windowings(self, stage: int) -> list[Windowing]:
        """How the blocks of a stage cut their maps."""
        keep = self.small_maps == "pad_shift"
        return windowings(self.windows[stage], self.depths[stage], shifted=self.shifted, keep_shift=keep)

    def stage(self, number: int, rates: list[float]) -> Stage:
        """A stage's blocks, each with its rate of stochastic depth, and its merge unless it is the last."""
        raise NotImplementedError  # every family has its own

    def initialise(self, module: nn.Module) -> None:
        """For `nn.Module.apply`: what fresh parameters are."""
        init_weights(module)

    def build(self, *, in_channels: int, out_stages: tuple[int, ...], entries: bool = False) -> "WindowedBackbone":
        """The backbone that this describes, freshly initialised; `entries` as in `WindowedBackbone`."""
        body = self.assemble(WindowedBackbone, in_channels, out_stages)
        return body.giving_entries() if entries else body

    def assemble(self, frame: type[Frame], in_channels: int, out_stages: tuple[int, ...]) -> Frame:
        """The stages in a frame."""
        rates = drop_path_rates(self.drop_path, self.depths)
        body = frame(
            self,
            [self.stage(number, rates[number]) for number in range(len(self.depths))],
            in_channels=in_channels,
            out_stages=out_stages,
            absolute_position=AbsolutePosition(self.grids[0], self.dim) if self.absolute_position else None,
        )
        return body.apply(self.initialise)


class WindowedBackbone(nn.Module):
    """Image to pyramid: one ``B H W C`` map for each of `out_stages`, finest first, each through a norm of its own.

    A classifier asks for the last stage only, whose norm is the paper's final norm. Height and width are free. With
    `hidden`, a token stands in place of some patches.
    """

    entries = False
    """Give what enters each stage but the last, as it is, in place of what the stage makes of it: Swin-Unet's skips."""

    def __init__(
        self,
        config: WindowedConfig,
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

    def giving_entries(self) -> "WindowedBackbone":
        """This backbone, changed so that only the last of `out_stages` gives its own map, normed: see `entries`."""
        self.entries = True
        self.norms = nn.ModuleDict({str(self.out_stages[-1]): self.norms[str(self.out_stages[-1])]})
        return self

    def forward(self, images: Images, hidden: Hidden | None = None) -> Pyramid:
        if self.entries:
            entries, maps = self._walk(images, hidden)
            last = self.out_stages[-1]
            return (*(entries[stage] for stage in self.out_stages[:-1]), self.norms[str(last)](maps[last]))
        maps = self.stage_maps(images) if hidden is None else self._walk(images, hidden)[1]
        return tuple(self.norms[str(stage)](maps[stage]) for stage in self.out_stages)

    def stage_maps(self, images: Images) -> Pyramid:
        """The map of every stage up to the last one asked for, before any output norm."""
        return self._walk(images)[1]

    def _walk(self, images: Images, hidden: Hidden | None = None) -> tuple[Pyramid, Pyramid]:
        """What enters every stage up to the last one asked for, and what it makes of it."""
        x, entries, maps = self.embed(images, hidden), [], []
        for stage in self.each_stage()[: self.out_stages[-1] + 1]:
            entries.append(x)
            x = stage(x)
            maps.append(x)
            if stage.merge is not None:
                x = stage.merge(x)
        return tuple(entries), tuple(maps)

    def embed(self, images: Images, hidden: Hidden | None = None) -> Float[Tensor, "B H W D"]:
        """Images as the tokens that the first stage takes.

        Raises:
            ShapeError: another number of channels than the model's.
        """
        check_channels(images, self.in_channels)
        x = self.patch_embed(images)
        x = x if hidden is None else hidden.over(x)
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
