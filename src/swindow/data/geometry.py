"""How pixels move: resizing, affine maps and elastic deformations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from swindow.data.augment import AugmentConfig
from swindow.errors import DataError
from swindow.images import LIMITS

WAVES = 4  # bumps of an elastic deformation along a side


def resampled(image: UInt8[Tensor, "C h w"], size: tuple[int, int], interpolation: str) -> UInt8[Tensor, "C H W"]:
    """A picture at another size, antialiased, as `Preprocess.resize` does it.

    Raises:
        DataError: a picture so long and thin that it would take too many pixels on the way.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    if tuple(image.shape[-2:]) == size:
        return image
    if image.shape[-2] * size[1] > LIMITS.max_resized_pixels:  # rows first: the largest image on the way
        raise DataError(
            f"resizing {image.shape[-2]} × {image.shape[-1]} pixels to {size[0]} × {size[1]} takes too many "
            f"pixels on the way; cut the picture into parts"
        )
    mode = InterpolationMode(interpolation)
    if size[1] == 1:  # 8-bit resampling is wrong for one column
        return functional.resize(image.float(), list(size), mode).round_().clamp_(0, 255).to(torch.uint8)
    return functional.resize(image, list(size), mode, antialias=True)


class Warp(NamedTuple):
    """An affine map and an elastic deformation of a picture as one field, so that each pixel is resampled once."""

    moves: Float[Tensor, "1 H W 2"]
    """What torchvision's `elastic` takes: how far away, across and down, lies what each pixel shows; 2 is a side."""
    matrix: Float[Tensor, "2 2"]
    """Of the affine map: what is seen at `p`, an x and a y from the middle, lay at ``matrix @ (p - shift)``."""
    shift: Float[Tensor, " 2"]
    reach: float
    """How far the elastic deformation moves things at most, in pixels."""

    def boxes(self, boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
        """The boxes around all that boxes may hold after it, which may reach outside."""
        middle = torch.tensor([self.moves.shape[2] / 2, self.moves.shape[1] / 2])
        corners = torch.stack([boxes[:, [x, y]] for x in (0, 2) for y in (1, 3)], dim=1) - middle
        there = corners @ torch.linalg.inv(self.matrix).T + self.shift + middle
        return torch.cat([there.amin(1) - self.reach, there.amax(1) + self.reach], dim=1)


def warp(size: tuple[int, int], config: AugmentConfig, draws: Sequence[float], seed: int) -> Warp:
    """The affine map that four draws choose, and the elastic deformation that a seed does, of a picture's size."""
    height, width = size
    degrees, move, zoom = config.affine
    turn, right, below, scale = (2 * float(draw) - 1 for draw in draws)
    angle, larger = math.radians(turn * degrees), 1 + zoom * scale
    cos, sin = math.cos(angle) / larger, math.sin(angle) / larger
    x = torch.arange(width) - (width - 1) / 2
    y = (torch.arange(height) - (height - 1) / 2)[:, None]
    across, down = right * move * width, below * move * height
    source = cos * (x - across) + sin * (y - down), cos * (y - down) - sin * (x - across)
    moves, reach = torch.stack([source[0] - x, source[1] - y], dim=-1), 0.0
    if config.elastic:
        waves = config.elastic * min(height, width) * _waves(height, width, seed)
        moves, reach = moves + waves, float(waves.abs().max()) * larger * math.sqrt(2)
    matrix, shift = torch.tensor([[cos, sin], [-sin, cos]]), torch.tensor([across, down])
    return Warp((moves * torch.tensor([2 / width, 2 / height]))[None], matrix, shift, reach)


def _waves(height: int, width: int, seed: int) -> Float[Tensor, "H W 2"]:
    """A smooth random field with a standard deviation of about 1: normal numbers on a coarse grid, interpolated."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 2, WAVES + 1, WAVES + 1, generator=generator)
    fine = F.interpolate(coarse, scale_factor=8, mode="bicubic", align_corners=True)
    return F.interpolate(fine, size=(height, width), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
