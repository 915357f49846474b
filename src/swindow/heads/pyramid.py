"""A pyramid out of maps that all have one stride, as plain transformers give (Li et al. 2022, ViTDet, section 3)."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.shapes import Pyramid, Tokens


def is_flat(strides: tuple[int, ...]) -> bool:
    """Whether maps of these strides are no pyramid: several, of which none is coarser than the one before."""
    return len(strides) > 1 and not all(finer < coarser for finer, coarser in itertools.pairwise(strides))


class SimplePyramid(nn.Module):
    """Maps of one stride to maps of strides 1/4, 1/2, 1 and 2 times theirs: enlarged by learned kernels, or pooled.

    For another number than four the last is twice as coarse, and each before it half as coarse as the next.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        powers = range(2 - len(channels), 2)  # of two: -2, -1, 0, 1
        self.scalers = nn.ModuleList(_scaler(wide, power) for wide, power in zip(channels, powers, strict=True))

    def forward(self, maps: Pyramid) -> Pyramid:
        return tuple(
            scale(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for scale, x in zip(self.scalers, maps, strict=True)
        )


class NormMap(nn.Module):
    """A layer norm over the channels of a ``B C H W`` map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HalvedMap(nn.Module):
    """The maximum of every 2x2 cell; an odd last row or column makes cells of its own."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        return torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)


def _scaler(channels: int, power: int) -> nn.Module:
    if power > 0:
        return HalvedMap()
    steps: list[nn.Module] = []
    for step in range(-power):
        steps += [NormMap(channels), nn.GELU()] if step else []
        steps.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*steps)


def strides_of(stride: int, count: int) -> tuple[float, ...]:
    """Strides of the maps that `SimplePyramid` makes of `count` maps of one stride."""
    return tuple(stride * 2.0**power for power in range(2 - count, 2))


def as_map(x: Tokens) -> Float[Tensor, "B C H W"]:
    """Tokens as convolutions see them."""
    return x.permute(0, 3, 1, 2)
