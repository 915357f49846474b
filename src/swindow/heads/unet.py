"""Swin-Unet's decoder (Cao et al. 2021, arXiv 2105.05537): patches expanded step by step, joined with what the encoder
had at the same size, and attention in windows on each size."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from swindow.backbones import SwinConfig, SwinV2Config
from swindow.backbones.windowed import Stage
from swindow.errors import ConfigError
from swindow.heads.enlarging import enlarged
from swindow.heads.pyramid import SimplePyramid, is_flat, strides_of
from swindow.heads.segment import SegmenterConfig, SegmenterOutputs, losses_of, right_of
from swindow.layers import Linear, drop_path_rates, init_weights
from swindow.ops.windows import Size, crop
from swindow.shapes import Pyramid, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(SegmenterConfig):
    """The shape of a Swin-Unet decoder."""

    kind: ClassVar[str] = "unet"

    num_classes: int = 9
    """How many classes a pixel can be of."""
    cross_entropy: float = 0.4
    """Weight of the cross-entropy."""
    dice: float = 0.6
    """Weight of the Dice loss."""
    decoder_depths: tuple[int, ...] = (2, 2, 2)
    """Blocks on each size that the decoder joins, the coarsest first."""
    decoder_block: Literal["auto", "swin", "swin_v2"] = "auto"
    """Whose blocks: those of the backbone where it is a Swin, else Swin V1's."""
    decoder_window: int | None = None
    """Side of the windows in tokens; None is that of the backbone's blocks where they are its own kind, else 7."""
    final_width: int | None = None
    """Channels of each pixel before it is classified; None is as many as the finest tokens have, as published."""
    decoder_drop_path: float = 0.1
    """Stochastic depth of the coarsest block; falls linearly to 0 at the finest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.decoder_depths, default=0) < 1:
            raise ConfigError(f"decoder_depths {self.decoder_depths} must name at least 1 block for each size")
        if not 0 <= self.decoder_drop_path < 1:
            raise ConfigError(f"decoder_drop_path is {self.decoder_drop_path}; it must lie in [0, 1)")
        if self.final_width is not None and self.final_width < 1:
            raise ConfigError(f"final_width is {self.final_width}; a pixel has at least 1 channel")
        if self.decoder_window is not None and self.decoder_window < 1:
            raise ConfigError(f"decoder_window is {self.decoder_window}; a window has at least 1 token a side")

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None) -> "UNet":
        """The head that this describes, for a pyramid with these channels and strides, of a backbone with this config.

        Raises:
            ConfigError: another number of depths than there are sizes to join.
        """
        if len(self.decoder_depths) != len(channels) - 1:
            raise ConfigError(
                f"decoder_depths {self.decoder_depths} names {len(self.decoder_depths)} sizes; a pyramid of "
                f"{len(channels)} maps has {len(channels) - 1} to join"
            )
        return UNet(self, channels, strides, backbone)


class PatchExpand(nn.Module):
    """Each token to `factor` × `factor` tokens of `out_channels`: a linear layer, its channels dealt out, a norm."""

    def __init__(self, channels: int, out_channels: int, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.linear = Linear(channels, factor * factor * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tokens) -> Float[Tensor, "B H2 W2 D"]:
        x = self.linear(x).unflatten(-1, (self.factor, self.factor, -1))  # B H W row column D
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


class UNet(nn.Module):
    """Pyramid to logits of every pixel (section 3.5), for images of any size: what padding added is cut off again."""

    def __init__(
        self, config: UNetConfig, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        flat = is_flat(strides)
        self.pyramid = SimplePyramid(channels) if flat else None
        self.stride = strides_of(strides[0], len(strides))[0] if flat else strides[0]
        sizes = range(len(channels) - 2, -1, -1)  # coarsest first
        rates = drop_path_rates(config.decoder_drop_path, config.decoder_depths[::-1])
        # Enlarged all at once a map has half the channels and twice the sides; the encoder's may have any number.
        self.expands = nn.ModuleList(PatchExpand(channels[size + 1], channels[size]) for size in sizes)
        self.joins = nn.ModuleList(Linear(2 * channels[size], channels[size]) for size in sizes)
        self.stages = nn.ModuleList(
            _stage(config, channels[size], size, rates[size], depth, backbone)
            for size, depth in zip(sizes, config.decoder_depths, strict=True)
        )
        self.norm = nn.LayerNorm(channels[0])
        width = config.final_width or channels[0]
        self.final = PatchExpand(channels[0], width, max(1, math.ceil(self.stride)))
        self.classifier = nn.Conv2d(width, config.num_classes, 1, bias=False)
        for module in (self.expands, self.joins, self.norm, self.final):
            module.apply(init_weights)

    def forward(self, pyramid: Pyramid) -> SegmenterOutputs:
        maps = pyramid if self.pyramid is None else self.pyramid(pyramid)
        x = maps[-1]
        steps = zip(self.expands, self.joins, self.stages, reversed(maps[:-1]), strict=True)
        for expand, join, stage, skip in steps:
            enlarged = crop(expand(x), (skip.shape[1], skip.shape[2]))
            x = stage(join(torch.cat([enlarged, skip], dim=-1)))
        x = self.final(self.norm(x))
        return SegmenterOutputs(logits=self.classifier(x.permute(0, 3, 1, 2)))

    def loss(self, outputs: SegmenterOutputs, targets: Int64[Tensor, "B h w"]) -> dict[str, Tensor]:
        """The configured losses."""
        return losses_of(self.decode(outputs, (targets.shape[1], targets.shape[2])), targets, self.config)

    def decode(self, outputs: SegmenterOutputs, size: tuple[int, int]) -> Float[Tensor, "B K h w"]:
        """Logits of every pixel of images of this height and width: the padding's are cut off.

        Where a cell is no whole number of pixels, as of a pyramid out of patches of 14, bilinearly resized before.
        """
        logits, stride, factor = outputs.logits, self.stride, self.final.factor
        if stride != factor:
            logits = enlarged(logits, tuple(int(side // factor * stride) for side in logits.shape[-2:]))
        return crop(logits.permute(0, 2, 3, 1), size).permute(0, 3, 1, 2)

    def right(self, outputs: SegmenterOutputs, targets: Int64[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
        """How many answers are right, of how many that count."""
        return right_of(self.decode(outputs, (targets.shape[1], targets.shape[2])), targets)


def _stage(config: UNetConfig, channels: int, size: int, rates: list[float], depth: int, backbone: Any) -> Stage:
    """Blocks for one size: those of the encoder's stage on it, as many as the decoder has there."""
    like = _like(config, channels, size, depth, backbone)
    stage = like.stage(0, rates)
    stage.apply(like.initialise)
    return stage


def _like(config: UNetConfig, channels: int, size: int, depth: int, backbone: Any) -> SwinConfig:
    """A Swin of one stage that has the width, heads and windows wanted."""
    families: dict[str, type[SwinConfig]] = {"swin": SwinConfig, "swin_v2": SwinV2Config}
    kind = getattr(backbone, "kind", "swin") if config.decoder_block == "auto" else config.decoder_block
    cls = families.get(kind, SwinConfig)
    window: int | Size = 7 if config.decoder_window is None else config.decoder_window
    if type(backbone) is not cls:
        return cls(dim=channels, depths=(depth,), num_heads=(_heads(channels),), window=(window,), patch=1)
    fields: dict[str, Any] = {"extra_norm_every": 0} if cls is SwinV2Config else {}
    if config.decoder_window is None:
        window = backbone.windows[size]
        fields |= (
            {"pretrained_window": (backbone.pretrained_windows[size],)} if isinstance(backbone, SwinV2Config) else {}
        )
    elif cls is SwinV2Config:
        fields["pretrained_window"] = 0
    return dataclasses.replace(
        backbone,
        dim=channels,
        depths=(depth,),
        num_heads=(backbone.num_heads[size],),
        window=(window,),
        patch=1,
        image_size=backbone.grids[size],
        absolute_position=False,
        **fields,
    )


def _heads(channels: int) -> int:
    """Heads of about 32 channels each."""
    return next(heads for heads in range(max(channels // 32, 1), 0, -1) if channels % heads == 0)
