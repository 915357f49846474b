"""UPerNet (Xiao et al. 2018, arXiv 1807.10221): pooled context into the coarsest map, then a feature pyramid, fused."""

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.heads.enlarging import convolved, convolved_plainly, enlarged
from swindow.heads.pyramid import SimplePyramid, as_map, is_flat
from swindow.heads.segment import SegmenterConfig, SegmenterOutputs, losses_of, right_of, wide
from swindow.shapes import Pyramid

Norm = Literal["batch", "group"]
_GROUPS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig(SegmenterConfig):
    """The shape of a UPerNet decoder; the defaults are those of the published Swin models."""

    kind: ClassVar[str] = "upernet"

    decoder_width: int = 512
    """Channels of the feature pyramid."""
    pools: tuple[int, ...] = (1, 2, 3, 6)
    """Sides of the grids that the coarsest map is pooled to (pyramid pooling; Zhao et al. 2017, section 3.2)."""
    decoder_norm: Norm = "batch"
    """``batch``, which one process of many may synchronise; or ``group``, for batches of few images."""
    head_dropout: float = 0.1
    """Dropout of whole channels before the classifier."""
    auxiliary: float = 0.4
    """Weight of the loss of the auxiliary classifier on the map before the last; 0 builds none."""
    auxiliary_width: int = 256
    """Its channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.decoder_width, self.auxiliary_width, *self.pools, 1) < 1:
            raise ConfigError(
                f"decoder_width {self.decoder_width}, auxiliary_width {self.auxiliary_width} and every entry of pools "
                f"{self.pools} must be at least 1"
            )
        if not 0 <= self.head_dropout < 1 or self.auxiliary < 0:
            raise ConfigError(
                f"head_dropout {self.head_dropout} must lie in [0, 1), and auxiliary {self.auxiliary} not be below 0"
            )

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None) -> "UperNet":
        """The head that this describes, for a pyramid with these channels and strides."""
        return UperNet(self, channels, strides)


class ConvNorm(nn.Module):
    """A convolution without a bias, a norm and a ReLU, on a ``B C H W`` map and coarser ones enlarged beside it."""

    as_published = False
    """Enlarge coarser maps before the convolution, for the counting of what that costs; the answer is the same."""

    def __init__(self, in_channels: int, channels: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm: nn.Module = (
            nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(_groups(channels), channels)
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"], *coarser: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B D H W"]:
        """The unit on a map and on coarser ones, their channels after its own.

        Raises:
            ShapeError: training's batch norm on a single value for each channel, which has no variance.
        """
        alone = isinstance(self.norm, nn.BatchNorm2d) and self.training and x[:, 0].numel() == 1
        if alone:
            raise ShapeError(
                "batch norm over a single value: one image in a batch, pooled to one cell; give a batch of 2 or more, "
                "or decoder_norm='group'"
            )
        return F.relu(self.norm(self.convolved(x, coarser)), inplace=not self.training)

    def convolved(self, x: Tensor, coarser: tuple[Tensor, ...]) -> Float[Tensor, "B D H W"]:
        """What is normed."""
        if not coarser:
            return self.conv(x)
        run = convolved_plainly if self.as_published else convolved
        return run(x, coarser, self.conv.weight, self.conv.bias)


class Auxiliary(nn.Module):
    """A classifier of one convolution on an early map (FCN; Long et al. 2015)."""

    def __init__(self, config: UperNetConfig, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, config.auxiliary_width, 3, config.decoder_norm)
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.classifier = _classifier(config.auxiliary_width, config.num_classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        return self.classifier(self.dropout(self.conv(x)))


class UperNet(nn.Module):
    """Pyramid to logits at the finest map's grid, enlarged bilinearly to the image's in `decode` and `loss`."""

    def __init__(self, config: UperNetConfig, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        width, norm = config.decoder_width, config.decoder_norm
        self.pyramid = SimplePyramid(channels) if is_flat(strides) else None
        self.pooled = nn.ModuleList(ConvNorm(channels[-1], width, 1, norm) for _ in config.pools)
        self.bottleneck = ConvNorm(channels[-1] + len(config.pools) * width, width, 3, norm)
        self.laterals = nn.ModuleList(ConvNorm(wide, width, 1, norm) for wide in channels[:-1])
        self.smooths = nn.ModuleList(ConvNorm(width, width, 3, norm) for _ in channels[:-1])
        self.fuse = ConvNorm(len(channels) * width, width, 3, norm)
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.classifier = _classifier(width, config.num_classes)
        self.auxiliary = Auxiliary(config, channels[max(len(channels) - 2, 0)]) if config.auxiliary else None

    def forward(self, pyramid: Pyramid) -> SegmenterOutputs:
        maps = [as_map(x) for x in (pyramid if self.pyramid is None else self.pyramid(pyramid))]
        logits = self.classifier(self.dropout(self.fuse(*self.levels(maps))))
        if self.auxiliary is None or not self.training:  # it answers nothing
            return SegmenterOutputs(logits=logits)
        return SegmenterOutputs(logits=logits, auxiliary=self.auxiliary(maps[max(len(maps) - 2, 0)]))

    def levels(self, maps: list[Tensor]) -> list[Tensor]:
        """The feature pyramid, finest first: what each map says, and what the coarser ones add."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.context(maps[-1]))
        for finer in range(len(levels) - 2, -1, -1):
            levels[finer] = levels[finer] + enlarged(levels[finer + 1], levels[finer].shape[-2:])
        return [*(smooth(x) for smooth, x in zip(self.smooths, levels[:-1], strict=True)), levels[-1]]

    def context(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """The coarsest map with what its surroundings are, seen at several scales."""
        pools = zip(self.config.pools, self.pooled, strict=True)
        return self.bottleneck(x, *(unit(F.adaptive_avg_pool2d(x, side)) for side, unit in pools))

    def loss(self, outputs: SegmenterOutputs, targets: Int64[Tensor, "B h w"]) -> dict[str, Tensor]:
        """The configured losses of the enlarged logits, and those of the auxiliary classifier in one."""
        size = targets.shape[-2:]
        found = losses_of(enlarged(wide(outputs.logits), size), targets, self.config)
        if outputs.auxiliary is not None:
            early = losses_of(enlarged(wide(outputs.auxiliary), size), targets, self.config)
            found["auxiliary"] = self.config.auxiliary * torch.stack(list(early.values())).sum()
        return found

    def decode(self, outputs: SegmenterOutputs, size: tuple[int, int]) -> Float[Tensor, "B K h w"]:
        """Logits of every pixel of images of this height and width."""
        return enlarged(outputs.logits, size)

    def right(self, outputs: SegmenterOutputs, targets: Int64[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
        """How many answers are right, of how many that count: on the grid of the logits."""
        return right_of(outputs.logits, targets)


def _groups(channels: int) -> int:
    """As many groups as there are up to 32 of two channels or more: a single one pooled to one cell has no variance."""
    return next((groups for groups in range(min(_GROUPS, channels // 2), 0, -1) if channels % groups == 0), 1)


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # a Conv2d has one unless told otherwise
    return layer
