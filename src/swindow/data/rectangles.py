"""The random resized crop of classification: a rectangle of the picture, of random area and aspect, at one size.

The distribution is that of "Going deeper with convolutions" (arXiv 1409.4842) as torchvision and timm draw it: up to
ten tries, then the largest centred rectangle whose aspect is allowed. The draws come from a hash of the sample's seed,
which is faster than torch's generator, put aside and put back for every image.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from swindow.data.seeds import uniforms

TRIES = 10
_APART = np.uint64(0x72656374)  # these draws are not those that flip and move


class ResizedCrop:
    """Some rectangle of a picture, at the model's size; which one is a function of the seed."""

    def __init__(
        self, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], interpolation: str
    ) -> None:
        self.size, self.scale, self.ratio, self.interpolation = size, scale, ratio, interpolation

    def __call__(self, image: UInt8[Tensor, "C h w"], seed: int) -> UInt8[Tensor, "C H W"]:
        """The rectangle of `seed`, resized with antialiasing."""
        top, left, height, width = self.rectangle(image.shape[-2], image.shape[-1], seed)
        part = image[None, :, top : top + height, left : left + width]
        if (height, width) == self.size:
            return part[0].contiguous()
        if image.stride(0) == 1:  # pixel by pixel, as decoders leave it: torch's fast way, which a view does not take
            part = part.contiguous(memory_format=torch.channels_last)
        exact = self.size[1] == 1  # torch's 8-bit resampling is wrong for one column
        out = F.interpolate(part.float() if exact else part, size=self.size, mode=self.interpolation, antialias=True)
        if exact:
            out = out.round_().clamp_(0, 255).to(torch.uint8)
        return out[0].contiguous()

    def rectangle(self, height: int, width: int, seed: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a part of a picture of that size, in whole pixels."""
        draws = uniforms(np.asarray([seed], np.uint64) ^ _APART, 4 * TRIES)[0].tolist()
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for start in range(0, 4 * TRIES, 4):
            of_area, of_ratio, of_top, of_left = draws[start : start + 4]
            area = height * width * (self.scale[0] + of_area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + of_ratio * (high - low))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                return int(of_top * (height - tall + 1)), int(of_left * (width - wide + 1)), tall, wide
        return _centred(height, width, self.ratio)


def _centred(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int, int, int]:
    """The largest centred rectangle of an aspect that is allowed."""
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        wide = max(1, min(width, round(height * ratio[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
