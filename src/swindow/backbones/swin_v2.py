"""Swin Transformer V2 (Liu et al. 2022, arXiv 2111.09883): cosine attention, continuous position bias, norms last."""

import dataclasses
import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.backbones.geometry import Sides, SmallMaps, Windowing
from swindow.backbones.swin import SwinConfig
from swindow.backbones.windowed import Stage, WindowAttention
from swindow.errors import ConfigError
from swindow.layers import DropPath, Linear, Mlp, PatchMerge, init_weights
from swindow.ops.windows import Size, relative_position_index
from swindow.shapes import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinV2Config(SwinConfig):
    """The shape of a Swin V2: that of a V1, with other defaults and two fields more."""

    kind: ClassVar[str] = "swin_v2"

    window: Sides = 8
    """Side of the attention windows in tokens; or one entry per stage, each a side or (height, width)."""
    pretrained_window: Sides = 0
    """Window that the position bias was trained for, by which offsets are measured (section 3.4); 0 is `window`."""
    image_size: int | tuple[int, int] = 256
    """Pixels that the model is made for, side or (height, width): what `absolute_position` and ``shrink`` go by."""
    small_maps: SmallMaps = "shrink"
    """Windows on maps no larger than they: ``shrink`` them to the map of `image_size` when built (the original);
    ``pad`` the map and do not shift (torchvision); ``pad_shift`` all the same."""
    extra_norm_every: int = 0
    """Norm the main branch too after every so many blocks of a stage (section 3.2, for the largest models); 0: never.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extra_norm_every < 0:
            raise ConfigError(f"extra_norm_every is {self.extra_norm_every}; give a number of blocks, or 0 for never")
        _ = self.pretrained_windows

    @property
    def pretrained_windows(self) -> tuple[Size, ...]:
        """Height and width per stage of the windows by which offsets are measured."""
        given = self.pretrained_window
        entries = (given,) * len(self.depths) if isinstance(given, int) else given
        pairs = [(entry, entry) if isinstance(entry, int) else entry for entry in entries]
        if len(pairs) != len(self.depths) or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
            raise ConfigError(
                f"pretrained_window is {given}; give one side for all, or an entry for each of {len(self.depths)} "
                "stages, a side or (height, width), where 0 is the window itself"
            )
        return tuple((h or own[0], w or own[1]) for (h, w), own in zip(pairs, self.windows, strict=True))

    def stage(self, number: int, rates: list[float]) -> Stage:
        """Blocks with windows unshifted and shifted in turn, and a merge unless it is the last stage."""
        every = self.extra_norm_every
        blocks = [
            Block(self, number, cut, drop_path=rate, extra_norm=every > 0 and count % every == 0)
            for count, (cut, rate) in enumerate(zip(self.windowings(number), rates, strict=True), start=1)
        ]
        last = number == len(self.depths) - 1
        return Stage(blocks, None if last else PatchMerge(self.channels[number], norm_last=True))

    def initialise(self, module: nn.Module) -> None:
        """As `init_weights`; and a block starts as the identity (the original's `_init_respostnorm`)."""
        init_weights(module)
        if isinstance(module, Block):
            for norm in (module.norm1, module.norm2):
                nn.init.zeros_(norm.weight)
                nn.init.zeros_(norm.bias)


def log_spaced_offsets(window: Size, pretrained: Size) -> Float[Tensor, "_ _ 2"]:
    """Every offset (dy, dx) between two tokens of a window, on a logarithmic scale (V2, equation 4).

    Scaled so that the farthest offset of the `pretrained` window is ±log2(9)/3 and a larger window extrapolates little.
    In fp32 and in this order of operations whatever the model's precision: the published weights know these values.
    """
    axes = [
        torch.arange(1 - side, side, dtype=torch.float32) / max(by - 1, 1) * 8
        for side, by in zip(window, pretrained, strict=True)
    ]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return offsets.sign() * torch.log2(offsets.abs() + 1.0) / math.log2(8)


class LogSpacedBias(nn.Module):
    """A bias in (0, 16) for each head and each offset between two tokens of a window, from a small network.

    The network sees offsets and no table has a row for them: it serves windows of any size (V2, section 3.4).
    """

    offsets: Tensor
    index: Tensor

    def __init__(self, window: Size, pretrained: Size, num_heads: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))
        offsets = log_spaced_offsets(window, pretrained).flatten(0, 1)
        self.register_buffer("offsets", offsets.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("index", relative_position_index(window), persistent=False)

    def forward(self) -> Float[Tensor, "N T T"]:
        table = 16 * torch.sigmoid(self.mlp(self.offsets))
        return table[self.index].permute(2, 0, 1)


class LogitScale(nn.Module):
    """A learned scale per head for cosines, at most 100 (V2, section 3.3: a temperature of at least 0.01)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((num_heads,), math.log(10.0)))

    def forward(self) -> Float[Tensor, " N"]:
        return self.log.clamp(max=math.log(100.0)).exp()


class QkvLinear(Linear):
    """Queries, keys and values, with biases on queries and values only."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def offset(self) -> Tensor:
        """Biases of queries and values, zeros for keys."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


class Block(nn.Module):
    """Res-post-norm block: window attention, then MLP, each normed before it joins the residual (V2, section 3.2)."""

    norm_first: ClassVar[bool] = False

    def __init__(
        self, config: SwinV2Config, stage: int, windowing: Windowing, *, drop_path: float, extra_norm: bool
    ) -> None:
        super().__init__()
        dim, num_heads = config.channels[stage], config.num_heads[stage]
        bias = LogSpacedBias(windowing.window, config.pretrained_windows[stage], num_heads)
        self.attn = WindowAttention(
            dim,
            num_heads,
            windowing,
            qkv=QkvLinear(dim) if config.qkv_bias else Linear(dim, 3 * dim, bias=False),
            position_bias=bias if config.relative_bias else None,
            logit_scale=LogitScale(num_heads),
            dropout=config.dropout,
        )
        self.norm1 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim), config.dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.drop_path(self.norm1(self.attn(x)))
        x = x + self.drop_path(self.norm2(self.mlp(x)))
        return x if self.norm3 is None else self.norm3(x)


_TINY: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path": 0.2}
_SMALL: dict[str, Any] = {"dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "drop_path": 0.3}
_BASE: dict[str, Any] = {"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path": 0.5}
_LARGE: dict[str, Any] = {"dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "drop_path": 0.2}
# Trained on ImageNet-22k at 192 pixels, then on larger images with larger windows.
_W12: dict[str, Any] = {"window": 12, "image_size": 192, "drop_path": 0.2}
_W12TO16: dict[str, Any] = {"window": 16, "pretrained_window": (12, 12, 12, 6), "drop_path": 0.2}
_W12TO24: dict[str, Any] = _W12TO16 | {"window": 24, "image_size": 384}
# Too large for a stable main branch; 32 channels a head as everywhere, which for these nobody has published.
_HUGE: dict[str, Any] = {"dim": 352, "depths": (2, 2, 18, 2), "num_heads": (11, 22, 44, 88), "extra_norm_every": 6}
_GIANT: dict[str, Any] = {"dim": 448, "depths": (2, 2, 18, 2), "num_heads": (14, 28, 56, 112), "extra_norm_every": 6}
_G: dict[str, Any] = {"dim": 512, "depths": (2, 2, 42, 4), "num_heads": (16, 32, 64, 128), "extra_norm_every": 6}

VARIANTS = {
    "swin_v2_tiny_w8": SwinV2Config(**_TINY),
    "swin_v2_tiny_w16": SwinV2Config(**_TINY, window=16),
    "swin_v2_small_w8": SwinV2Config(**_SMALL),
    "swin_v2_small_w16": SwinV2Config(**_SMALL, window=16),
    "swin_v2_base_w8": SwinV2Config(**_BASE),
    "swin_v2_base_w16": SwinV2Config(**_BASE, window=16),
    "swin_v2_base_w12": SwinV2Config(**_BASE | _W12),
    "swin_v2_base_w12to16": SwinV2Config(**_BASE | _W12TO16),
    "swin_v2_base_w12to24": SwinV2Config(**_BASE | _W12TO24),
    "swin_v2_large_w12": SwinV2Config(**_LARGE | _W12),
    "swin_v2_large_w12to16": SwinV2Config(**_LARGE | _W12TO16),
    "swin_v2_large_w12to24": SwinV2Config(**_LARGE | _W12TO24),
    "swin_v2_huge": SwinV2Config(**_HUGE | _W12),
    "swin_v2_giant": SwinV2Config(**_GIANT | _W12),  # SimMIM's (Xie et al. 2023, arXiv 2206.04664)
    "swin_v2_g": SwinV2Config(**_G | _W12),  # the paper's
}
