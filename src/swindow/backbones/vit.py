"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) and DeiT (Touvron et al. 2021, arXiv 2012.12877).

Blocks see a sequence of tokens, learned ones before those of the patches, held as a map of one row ``B 1 T C``.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.backbones.geometry import check_channels, check_rates, valid_stages
from swindow.backbones.hiding import Hidden
from swindow.backbones.windowed import Stage
from swindow.errors import ConfigError
from swindow.layers import DropPath, Linear, Mlp, drop_path_rates, init_weights, on_norm
from swindow.ops import reference, resample
from swindow.ops.attention import Backend, window_attention
from swindow.ops.windows import Size, count, pad_to_windows
from swindow.shapes import Images, Pyramid, Tokens

Sequence = Float[Tensor, "B 1 T D"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of a ViT or DeiT."""

    kind: ClassVar[str] = "vit"

    dim: int
    """Channels."""
    depths: tuple[int, ...]
    """Blocks per stage; stages share one grid and differ in nothing, but each can put out its map."""
    num_heads: int
    """Attention heads of every block."""
    patch: int = 16
    """Side of the image patches that become tokens, in pixels."""
    image_size: int | tuple[int, int] = 224
    """Pixels that the position embedding is made for, side or (height, width); any other size resamples it."""
    pool: Literal["token", "tokens", "mean", "mean_norm"] = "token"
    """What a classifier reads: the class token, or both tokens with a classifier each (DeiT, section 4), or the mean
    over patches, normed before it is taken (``mean``) or after (``mean_norm``, timm's average pooling)."""
    class_token: bool = True
    """Put a learned token before the patches."""
    distillation_token: bool = False
    """Put a second one after the class token, to learn from a teacher (DeiT, section 4)."""
    qkv_bias: bool = True
    """Biases on queries, keys and values."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP per channel."""
    norm_eps: float = 1e-6
    """What norms add to the variance; Hugging Face's models have 1e-12."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout after the position embedding and projections, and in the MLP."""

    def __post_init__(self) -> None:
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if not self.depths or min(self.dim, self.num_heads, self.patch, *self.depths, *sides) < 1:
            raise ConfigError("dim, num_heads, patch, image_size and every entry of depths must be at least 1")
        if self.dim % self.num_heads:
            raise ConfigError(
                f"{self.dim} channels cannot be split over {self.num_heads} heads; change dim or num_heads"
            )
        if not 1 <= self.mlp_ratio * self.dim < math.inf:
            raise ConfigError(
                f"mlp_ratio is {self.mlp_ratio}; the MLP needs at least 1 hidden channel for dim {self.dim}"
            )
        check_rates(self.drop_path, self.dropout)
        if not 0 < self.norm_eps < math.inf:
            raise ConfigError(f"norm_eps is {self.norm_eps}; give a number above 0")
        if self.pool in ("token", "tokens") and not self.class_token:
            raise ConfigError(f"pool {self.pool!r} reads the class token; set class_token, or pool='mean'")
        if self.distillation_token and not self.class_token:
            raise ConfigError("a distillation token comes after a class token; set class_token")
        if self.pool == "tokens" and not self.distillation_token:
            raise ConfigError("pool 'tokens' reads a class and a distillation token; set distillation_token")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per stage: the same for all."""
        return (self.dim,) * len(self.depths)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per token side, per stage: the same for all."""
        return (self.patch,) * len(self.depths)

    @property
    def grid(self) -> Size:
        """Rows and columns of patches that the position embedding is made for."""
        height, width = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return count(height, self.strides[0]), count(width, self.strides[0])

    @property
    def num_prefix(self) -> int:
        """Learned tokens before those of the patches."""
        return int(self.class_token) + int(self.distillation_token)

    def build(self, *, in_channels: int, out_stages: tuple[int, ...], prefix: bool = False) -> "ViT":
        """The backbone that this describes, freshly initialised; with `prefix`, its learned tokens come out too."""
        patches = Patches(in_channels, self.dim, self.patch)
        return ViT(self, patches, in_channels=in_channels, out_stages=out_stages, prefix=prefix)


class Patches(nn.Module):
    """Non-overlapping patches of the image, or of a trunk's last map, to tokens by a strided convolution (equation 1).

    What is not a multiple of the patch is padded with zeros to the right and below.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W D"]:
        source = images.permute(0, 2, 3, 1) if self.trunk is None else self.trunk(images)[-1]
        height, width = self.proj.kernel_size
        padded = pad_to_windows(source, (height, width))
        return self.proj(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens (ViT, appendix A): window attention with one window, unshifted."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend: Backend = "auto"
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tokens, norm: nn.Module | None = None) -> Tokens:
        """Attention of `x`, or of its `norm`."""
        attended = window_attention(self.project(x, norm), None, backend=self.backend, **self.setting(x))
        return self.dropout(self.proj(attended.flatten(3)))

    def attention_weights(self, x: Tokens) -> Float[Tensor, "B N T T"]:
        """What every token takes from every token, from the oracle."""
        return reference.attention_weights(self.project(x), None, **self.setting(x))[:, 0]

    def project(self, x: Tokens, norm: nn.Module | None = None) -> Float[Tensor, "B H W 3 N D"]:
        """Queries, keys and values."""
        return on_norm(self.qkv, norm, x).unflatten(-1, (3, self.num_heads, -1))

    def setting(self, x: Tokens) -> dict[str, Any]:
        """Everything but queries, keys and values that the operation needs: one window as large as the map."""
        scale = (self.proj.in_features // self.num_heads) ** -0.5
        return {"window": (x.shape[1], x.shape[2]), "shift": (0, 0), "scale": scale}

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, backend={self.backend!r}"


class Block(nn.Module):
    """Pre-norm encoder block: attention, then MLP, each on a residual (ViT, equations 2 and 3)."""

    def __init__(self, config: ViTConfig, *, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config.dim, config.num_heads, qkv_bias=config.qkv_bias, dropout=config.dropout)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config.dim, int(config.mlp_ratio * config.dim), config.dropout)

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.drop_path(self.attn(x, self.norm1))
        return x + self.drop_path(self.mlp(x, self.norm2))


class ViT(nn.Module):
    """Image to one ``B H W C`` map for each of `out_stages`, all on the grid of patches, each through its own norm.

    A classifier asks for the last stage only, whose norm is the paper's final norm; with ``mean_norm`` pooling the head
    has that one. Height and width are free. With `prefix`, the learned tokens ``B 1 P C`` of the last stage asked for,
    class token first, come before the maps. With `hidden`, a token stands in place of some patches.
    """

    def __init__(
        self, config: ViTConfig, patches: nn.Module, *, in_channels: int, out_stages: tuple[int, ...], prefix: bool
    ) -> None:
        super().__init__()
        self.config, self.in_channels, self.prefix = config, in_channels, prefix
        if prefix and not config.class_token:
            raise ConfigError("prefix asks for learned tokens and the model has none; set class_token")
        self.out_stages = valid_stages(out_stages, len(config.depths))
        self.channels = tuple(config.channels[stage] for stage in self.out_stages)
        self.strides = tuple(config.strides[stage] for stage in self.out_stages)
        self.class_token = _learned(1, config.dim) if config.class_token else None
        self.distillation_token = _learned(1, config.dim) if config.distillation_token else None
        self.position_embedding = _learned(config.num_prefix + config.grid[0] * config.grid[1], config.dim)
        self.patch_embed = patches
        self.dropout = nn.Dropout(config.dropout)
        rates = drop_path_rates(config.drop_path, config.depths)
        self.stages = nn.ModuleList(Stage((Block(config, drop_path=rate) for rate in group), None) for group in rates)
        without = len(config.depths) - 1 if config.pool == "mean_norm" else None
        normed = [stage for stage in self.out_stages if stage != without]
        self.norms = nn.ModuleDict({str(stage): nn.LayerNorm(config.dim, eps=config.norm_eps) for stage in normed})
        self.stages.apply(init_weights)

    def forward(self, images: Images, hidden: Hidden | None = None) -> Pyramid:
        sequences, grid = self.sequences(images, hidden)
        outputs = [self.norm(sequences[stage], stage) for stage in self.out_stages]
        maps = tuple(self.as_map(x, grid) for x in outputs)
        return (outputs[-1][:, :, : self.config.num_prefix], *maps) if self.prefix else maps

    def stage_maps(self, images: Images) -> Pyramid:
        """The map of every stage up to the last one asked for, before any output norm."""
        sequences, grid = self.sequences(images)
        return tuple(self.as_map(x, grid) for x in sequences)

    def sequences(self, images: Images, hidden: Hidden | None = None) -> tuple[tuple[Tensor, ...], Size]:
        """What every stage up to the last one asked for puts out, ``B 1 T C``, and the grid of the patches in it."""
        (x, grid), outputs = self.embed(images, hidden), []
        for stage in self.each_stage()[: self.out_stages[-1] + 1]:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs), grid

    def norm(self, x: Sequence, stage: int) -> Sequence:
        """What a stage puts out through the norm of its own, if it has one."""
        return self.norms[str(stage)](x) if str(stage) in self.norms else x

    def embed(self, images: Images, hidden: Hidden | None = None) -> tuple[Sequence, Size]:
        """Images as the sequence that the first stage takes, and the grid of the patches in it.

        Raises:
            ShapeError: another number of channels than the model's.
        """
        check_channels(images, self.in_channels)
        patches = self.patch_embed(images)
        patches = patches if hidden is None else hidden.over(patches)
        grid = (patches.shape[1], patches.shape[2])
        learned = [x for x in (self.class_token, self.distillation_token) if x is not None]
        x = torch.cat([*(token.expand(patches.shape[0], -1, -1) for token in learned), patches.flatten(1, 2)], dim=1)
        return self.dropout(x + self.position_at(grid))[:, None], grid

    def position_at(self, grid: Size) -> Float[Tensor, "1 T C"]:
        """The position embedding for a grid of patches: bicubically resampled, except that of the learned tokens."""
        config = self.config
        return resample.sequence_table(self.position_embedding, config.grid, grid, prefix=config.num_prefix)

    def as_map(self, x: Sequence, grid: Size) -> Tokens:
        """The patches of a sequence on their grid."""
        return x[:, 0, self.config.num_prefix :].unflatten(1, grid)

    def blocks(self) -> Iterator[nn.Module]:
        """Every block, a trunk's before the encoder's: the unit of checkpointing, compilation and sharding."""
        for module in self.modules():
            if isinstance(module, Stage):
                yield from module.blocks

    def each_stage(self) -> list[Stage]:
        """The stages, first to last, with their type: a ModuleList forgets it."""
        return [cast(Stage, stage) for stage in self.stages]

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """In training, keep only the blocks' inputs and compute the rest again in the backward pass."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = enabled


def _learned(tokens: int, dim: int) -> nn.Parameter:
    """Vectors for so many tokens, from the same distribution as linear weights (DeiT's code)."""
    parameter = nn.Parameter(torch.empty(1, tokens, dim))
    nn.init.trunc_normal_(parameter, std=0.02)
    return parameter


TINY: dict[str, Any] = {"dim": 192, "depths": (3, 3, 3, 3), "num_heads": 3}
SMALL: dict[str, Any] = {"dim": 384, "depths": (3, 3, 3, 3), "num_heads": 6}
BASE: dict[str, Any] = {"dim": 768, "depths": (3, 3, 3, 3), "num_heads": 12}
LARGE: dict[str, Any] = {"dim": 1024, "depths": (6, 6, 6, 6), "num_heads": 16}
HUGE: dict[str, Any] = {"dim": 1280, "depths": (8, 8, 8, 8), "num_heads": 16}
_DEIT: dict[str, Any] = {"drop_path": 0.1}
_DISTILLED: dict[str, Any] = {"drop_path": 0.1, "distillation_token": True, "pool": "tokens"}

VARIANTS = {
    "vit_tiny": ViTConfig(**TINY),
    "vit_tiny_384": ViTConfig(**TINY, image_size=384),
    "vit_small": ViTConfig(**SMALL),
    "vit_small_384": ViTConfig(**SMALL, image_size=384),
    "vit_base": ViTConfig(**BASE),
    "vit_base_384": ViTConfig(**BASE, image_size=384),
    "vit_base_32": ViTConfig(**BASE, patch=32),
    "vit_base_32_384": ViTConfig(**BASE, patch=32, image_size=384),
    "vit_large": ViTConfig(**LARGE),
    "vit_large_384": ViTConfig(**LARGE, image_size=384),
    "vit_large_32": ViTConfig(**LARGE, patch=32),
    "vit_large_32_384": ViTConfig(**LARGE, patch=32, image_size=384),
    "vit_huge": ViTConfig(**HUGE),
    "vit_huge_14": ViTConfig(**HUGE, patch=14),
    "deit_tiny": ViTConfig(**TINY, **_DEIT),
    "deit_tiny_distilled": ViTConfig(**TINY, **_DISTILLED),
    "deit_small": ViTConfig(**SMALL, **_DEIT),
    "deit_small_distilled": ViTConfig(**SMALL, **_DISTILLED),
    "deit_base": ViTConfig(**BASE, **_DEIT),
    "deit_base_distilled": ViTConfig(**BASE, **_DISTILLED),
    "deit_base_384": ViTConfig(**BASE, **_DEIT, image_size=384),
    "deit_base_distilled_384": ViTConfig(**BASE, **_DISTILLED, image_size=384),
}
