"""ResNet (He et al. 2016, arXiv 1512.03385) as torchvision has it, and as Big Transfer has it (arXiv 1912.11370).

Maps are ``B H W C`` as everywhere; convolutions see them as channels-last images. Strides are in the 3x3 convolution.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from swindow.backbones.geometry import check_channels, valid_stages
from swindow.backbones.windowed import Stage
from swindow.errors import ConfigError
from swindow.ops.windows import between_zeros, count, undecided
from swindow.shapes import Images, Pyramid, Tokens

Norm = Literal["batch", "group", "frozen"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The shape of a ResNet."""

    kind: ClassVar[str] = "resnet"

    depths: tuple[int, ...]
    """Blocks per stage."""
    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Two 3x3 convolutions, or a 3x3 between two 1x1 of which the last has four times the channels."""
    width: int = 64
    """Channels of the stem and inside the first stage's blocks; each later stage has twice as many."""
    norm: Norm = "batch"
    """``batch`` is torchvision's ResNet; ``group`` is Big Transfer's and the ViT hybrids': norms over groups of
    channels, kernels standardised before use, zeros put around maps as TensorFlow's "SAME" does. ``frozen`` is
    ``batch`` with statistics, scale and shift that never change, as detectors that start from ImageNet have it."""
    frozen_stages: int = 0
    """How many stages do not learn, the stem with the first of them; published detectors have 1."""
    norm_eps: float = 1e-5
    """What norms add to the variance; torchvision's first published detectors have 0."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.width, *self.depths) < 1:
            raise ConfigError("width and every entry of depths must be at least 1")
        if self.norm == "group" and self.width % (2 * _GROUPS):  # a group of one value would have nothing to norm
            raise ConfigError(f"width is {self.width}; norm='group' needs a multiple of {2 * _GROUPS} for its groups")
        if not 0 <= self.norm_eps < math.inf:
            raise ConfigError(f"norm_eps is {self.norm_eps}; give 0 or a number above it")
        if not 0 <= self.frozen_stages <= len(self.depths):
            raise ConfigError(f"frozen_stages is {self.frozen_stages}; there are {len(self.depths)} stages to freeze")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per stage."""
        expansion = 4 if self.block == "bottleneck" else 1
        return tuple(expansion * self.width * 2**stage for stage in range(len(self.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per map cell, per stage."""
        return tuple(4 * 2**stage for stage in range(len(self.depths)))

    def build(self, *, in_channels: int, out_stages: tuple[int, ...]) -> "ResNet":
        """The backbone that this describes, freshly initialised."""
        return ResNet(self, in_channels=in_channels, out_stages=out_stages)


_GROUPS = 32


class StandardizedConv(nn.Conv2d):
    """Convolution by a kernel whose every output channel has mean 0 and variance 1 (Qiao et al. 2019, section 3).

    A map is padded so that a side of n becomes ceil(n / stride), an odd row or column of zeros at the end.
    """

    def forward(self, input: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        # As a batch norm of one sample with a kernel per channel: in fp32 that rounds as the published models do.
        kernels = F.batch_norm(self.weight.flatten(1)[None], None, None, training=True, eps=1e-8).view_as(self.weight)
        padded = pad_same(input, self.kernel_size[0], self.stride[0])
        return F.conv2d(padded, kernels, self.bias, self.stride)


def pad_same(x: Float[Tensor, "B C h w"], kernel: int, stride: int) -> Float[Tensor, "B C H W"]:
    """`x` with zeros around it for ceil(side / stride) places of the kernel; an odd one more goes right and below.

    What TensorFlow calls "SAME": where the kernel comes to lie depends on the side.
    """
    if kernel == 1:
        return x
    height, width = x.shape[2:]
    rows, columns = ((count(side, stride) - 1) * stride + kernel for side in (height, width))
    if kernel < stride:  # otherwise the places cover every row and column, and a compiler need not ask
        rows, columns = max(rows, height), max(columns, width)
    above, left = (rows - height) // 2, (columns - width) // 2
    if undecided(rows, height) or undecided(columns, width):
        return between_zeros(between_zeros(x, 2, rows, above), 3, columns, left)
    if rows == height and columns == width:
        return x
    return F.pad(x, (left, columns - width - left, above, rows - height - above))


class FrozenNorm(nn.Module):
    """A batch norm that never changes: what it would learn and measure are buffers, under the same names."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, fill in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((channels,), fill))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)  # type: ignore[arg-type]


class ConvNorm(nn.Module):
    """A convolution without a bias and the norm after it, on a ``B H W C`` map."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, *, stride: int = 1, norm: Norm, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if norm == "group":
            self.conv: nn.Conv2d = StandardizedConv(in_channels, channels, kernel, stride=stride, bias=False)
            self.norm: nn.Module = nn.GroupNorm(_GROUPS, channels, eps)
        else:
            self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
            self.norm = FrozenNorm(channels, eps) if norm == "frozen" else nn.BatchNorm2d(channels, eps)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tokens) -> Float[Tensor, "B H2 W2 D"]:
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class Stem(nn.Module):
    """Images to a map of a quarter of their sides: a 7x7 convolution and a maximum over 3x3, each of stride 2."""

    def __init__(self, in_channels: int, config: ResNetConfig) -> None:
        super().__init__()
        self.unit = ConvNorm(in_channels, config.width, 7, stride=2, norm=config.norm, eps=config.norm_eps)
        self.same = config.norm == "group"

    def forward(self, images: Images) -> Float[Tensor, "B H W D"]:
        x = F.relu(self.unit(images.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = pad_same(x, 3, 2) if self.same else x  # after a ReLU, zeros raise no maximum
        return F.max_pool2d(x, 3, stride=2, padding=0 if self.same else 1).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Convolutions on a residual, a ReLU between them and after the sum; `shortcut` fits the residual to the sum."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        kind: dict[str, Any] = {"norm": config.norm, "eps": config.norm_eps}
        if config.block == "basic":
            shapes = [(in_channels, channels, 3, stride), (channels, channels, 3, 1)]
        else:
            inner = channels // 4
            shapes = [(in_channels, inner, 1, 1), (inner, inner, 3, stride), (inner, channels, 1, 1)]
        self.units = nn.ModuleList(
            ConvNorm(before, after, kernel, stride=step, **kind) for before, after, kernel, step in shapes
        )
        fits = stride == 1 and in_channels == channels
        self.shortcut = None if fits else ConvNorm(in_channels, channels, 1, stride=stride, **kind)

    def forward(self, x: Tokens) -> Float[Tensor, "B H2 W2 D"]:
        residual = x if self.shortcut is None else self.shortcut(x)
        for index, unit in enumerate(self.units):
            x = unit(x if index == 0 else F.relu(x))
        return F.relu(x + residual)


class ResNetStage(Stage):
    """Blocks of which the first halves the grid, except in the first stage.

    Computed again for the backward pass, they do not move their running statistics again.
    """

    def __init__(self, config: ResNetConfig, number: int) -> None:
        channels = config.channels[number]
        before = config.channels[number - 1] if number else config.width
        first = Block(before, channels, stride=2 if number else 1, config=config)
        rest = (Block(channels, channels, stride=1, config=config) for _ in range(1, config.depths[number]))
        super().__init__([first, *rest], None)

    def forward(self, x: Tokens) -> Float[Tensor, "B H2 W2 D"]:
        for block in self.blocks:
            x = _checkpoint(block, x) if self.checkpointing and self.training else block(x)
        return x


class ResNet(nn.Module):
    """Image to pyramid: one ``B H W C`` map for each of `out_stages`, finest first. Height and width are free."""

    def __init__(self, config: ResNetConfig, *, in_channels: int, out_stages: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.out_stages = valid_stages(out_stages, len(config.depths))
        self.channels = tuple(config.channels[stage] for stage in self.out_stages)
        self.strides = tuple(config.strides[stage] for stage in self.out_stages)
        self.patch_embed = Stem(in_channels, config)
        self.stages = nn.ModuleList(ResNetStage(config, number) for number in range(len(config.depths)))
        self.norms = nn.ModuleDict()  # its blocks end in norms
        for part in [self.patch_embed, *self.stages][: config.frozen_stages + 1 if config.frozen_stages else 0]:
            part.requires_grad_(False)

    def forward(self, images: Images) -> Pyramid:
        maps = self.stage_maps(images)
        return tuple(maps[stage] for stage in self.out_stages)

    def stage_maps(self, images: Images) -> Pyramid:
        """The map of every stage up to the last one asked for.

        Raises:
            ShapeError: another number of channels than the model's.
        """
        check_channels(images, self.in_channels)
        x, maps = self.patch_embed(images), []
        for stage in self.each_stage()[: self.out_stages[-1] + 1]:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

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


def _checkpoint(block: nn.Module, x: Tensor) -> Tensor:
    """A graph as a whole computes again what is read again, and moves statistics once; it takes no contexts."""
    if torch.compiler.is_compiling():
        return cast(Tensor, checkpoint(block, x, use_reentrant=False))
    contexts = functools.partial(_once_and_again, block)
    return cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))


def _once_and_again(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _statistics_at_rest(block)


@contextlib.contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """While it lasts, batch norms in training leave their running statistics as they are."""
    moving = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(module.momentum, cast(Tensor, module.num_batches_tracked).clone()) for module in moving]
    for module in moving:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, (momentum, batches) in zip(moving, before, strict=True):
            module.momentum = momentum
            cast(Tensor, module.num_batches_tracked).copy_(batches)


VARIANTS = {
    "resnet_18": ResNetConfig(depths=(2, 2, 2, 2), block="basic"),
    "resnet_34": ResNetConfig(depths=(3, 4, 6, 3), block="basic"),
    "resnet_50": ResNetConfig(depths=(3, 4, 6, 3)),
    "resnet_101": ResNetConfig(depths=(3, 4, 23, 3)),
}
