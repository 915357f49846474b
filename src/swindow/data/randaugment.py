"""RandAugment in the form that Swin and DeiT were trained with: timm's ``rand-m9-mstd0.5-inc1``, by Pillow's operators.

It differs from the paper's (arXiv 1909.13719): all changes grow with the magnitude, the magnitude is drawn around the
one asked for, and each change happens every other time only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

STRONGEST = 10
"""The largest magnitude."""
CHANCE = 0.5
"""How often a chosen operation is carried out."""
MIDDLE = 128
"""Brightness below which ``solarize_add`` acts."""

Fill = int | tuple[int, ...]
Moved = tuple[float, float, float, float, float, float]
"""Where an output pixel (x, y) comes from: ``(a x + b y + c, d x + e y + f)``."""


class RandAugment:
    """So many operations drawn for each image, in the order that they were drawn; one may come twice.

    Draws come from torch's generator.
    """

    def __init__(self, count: int, magnitude: float, noise: float, *, fill: Fill, resample: Image.Resampling) -> None:
        """`magnitude` in 0..10, the deviation `noise` of what is drawn around it, the colour of what comes in at edges.

        `fill` is one value for grey images and three for colour.
        """
        self.count, self.magnitude, self.noise = count, magnitude, noise
        self.fill, self.resample = fill, resample

    def __call__(self, image: UInt8[Tensor, "C H W"]) -> UInt8[Tensor, "C H W"]:
        """Another image of the same size, grey or RGB as before."""
        which = torch.randint(len(OPERATIONS), (self.count,)).tolist()
        chances, signs = torch.rand(2, self.count).tolist()
        magnitudes = (self.magnitude + self.noise * torch.randn(self.count)).clamp(0, STRONGEST).tolist()
        names = list(OPERATIONS)
        picture = _picture(image)
        for place, chance, sign, magnitude in zip(which, chances, signs, magnitudes, strict=True):
            if chance < CHANCE:
                way = 1 if sign < 0.5 else -1
                picture = changed(picture, names[place], magnitude, way, self.fill, self.resample)
        return _pixels(picture)


def changed(
    image: Image.Image, name: str, magnitude: float, sign: int, fill: Fill, resample: Image.Resampling
) -> Image.Image:
    """One of `OPERATIONS` on a grey or RGB image; `magnitude` in 0..10, `sign` is -1 or 1 where there are two ways."""
    return OPERATIONS[name](image, magnitude / STRONGEST, sign, fill, resample)


def _enhanced(enhancer: Callable[[Image.Image], Any]) -> Callable[..., Image.Image]:
    """Away from the image as it is, at 1, to either side: to 0.1 or 1.9 at the most."""
    return lambda image, share, sign, *_: enhancer(image).enhance(max(0.1, 1 + sign * share * 0.9))


def _affine(mapped: Callable[[Image.Image, float], Moved]) -> Callable[..., Image.Image]:
    def apply(image: Image.Image, share: float, sign: int, fill: Fill, resample: Image.Resampling) -> Image.Image:
        where = mapped(image, sign * share)
        return image.transform(image.size, Image.Transform.AFFINE, where, resample=resample, fillcolor=fill)

    return apply


def _rotate(image: Image.Image, share: float, sign: int, fill: Fill, resample: Image.Resampling) -> Image.Image:
    return image.rotate(sign * share * 30.0, resample=resample, fillcolor=fill)


def _posterize(image: Image.Image, share: float, *_: object) -> Image.Image:
    kept = 256 - 2 ** (4 + int(share * 4))  # at the largest magnitude nothing, which newer Pillows refuse to do
    return image.point([level & kept for level in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, share: float, *_: object) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(share * 256)))


def _solarize_add(image: Image.Image, share: float, *_: object) -> Image.Image:
    add = min(128, int(share * 110))
    table = [min(255, level + add) if level < MIDDLE else level for level in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: dict[str, Callable[..., Image.Image]] = {
    "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "invert": lambda image, *_: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda image, share: (1, share * 0.3, 0, 0, 1, 0)),
    "shear_y": _affine(lambda image, share: (1, 0, 0, share * 0.3, 1, 0)),
    "translate_x": _affine(lambda image, share: (1, 0, share * 0.45 * image.size[0], 0, 1, 0)),
    "translate_y": _affine(lambda image, share: (1, 0, 0, 0, 1, share * 0.45 * image.size[1])),
}
"""By name: from an image, the magnitude as a share of the largest, a sign, a fill and an interpolation."""


def _picture(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels)


def _pixels(picture: Image.Image) -> UInt8[Tensor, "C H W"]:
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
