"""Random erasing with noise."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

AREA = (0.02, 1 / 3)
"""Of the rectangle, as a share of the image's."""
LOG_ASPECT = math.log(0.3)
"""Of height / width, the smallest; the largest is its inverse."""
TRIES = 10
"""Rectangles drawn until one lies within the image; none is painted otherwise."""


class NoisyErasing:
    """Paint noise over a rectangle of an image at random (arXiv 1708.04896, as timm draws it in ``pixel`` mode)."""

    def __init__(self, chance: float, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` of the noise per channel, for pixels in 0..1."""
        self.chance = chance
        self.mean, self.std = (torch.tensor(list(values))[:, None, None] for values in (mean, std))

    def __call__(self, image: UInt8[Tensor, "C H W"]) -> UInt8[Tensor, "C H W"]:
        """The image, or a copy with a rectangle painted over; draws come from torch's generator."""
        if torch.rand(()).item() >= self.chance:
            return image
        height, width = image.shape[-2:]
        for _ in range(TRIES):
            area, aspect = torch.rand(2, dtype=torch.float64).tolist()
            pixels = (AREA[0] + (AREA[1] - AREA[0]) * area) * height * width
            ratio = math.exp(LOG_ASPECT * (1 - 2 * aspect))
            tall, wide = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if tall < height and wide < width:
                return self._painted(image, tall, wide)
        return image

    def _painted(self, image: UInt8[Tensor, "C H W"], tall: int, wide: int) -> UInt8[Tensor, "C H W"]:
        channels, height, width = image.shape
        top = int(torch.randint(height - tall + 1, ()))
        left = int(torch.randint(width - wide + 1, ()))
        noise = torch.randn(channels, tall, wide) * self.std + self.mean
        image = image.clone()
        image[:, top : top + tall, left : left + wide] = (noise * 255).round().clamp(0, 255).to(torch.uint8)
        return image
