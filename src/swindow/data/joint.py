"""Random changes to a picture and its mask together: what moves a pixel moves its label, what colours it does not.

Geometry and colours are torchvision's (transforms.v2, masks as ``tv_tensors.Mask``); where it moves labels it takes the
nearest one, so that no label is ever a blend. What is random follows from one seed a sample.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from swindow.data.augment import AugmentConfig, brightened, colour_changes, seeded, shifted_lines
from swindow.data.geometry import resampled, warp
from swindow.data.seeds import uniforms
from swindow.errors import ConfigError
from swindow.preprocess import Preprocess
from swindow.shapes import IGNORE

TRIES = 10
COUNTED = 64  # rows and columns of a crop that are looked at to see which classes fill it
_DRAWS = 16 + 2 * TRIES


class Window(NamedTuple):
    """A rectangle in the pixels of a picture; it may reach outside."""

    top: float
    left: float
    height: float
    width: float


class JointAugment:
    """A config made to act on pictures with masks: the result is a function of both and the seed."""

    def __init__(self, config: AugmentConfig, preprocess: Preprocess) -> None:
        """Raises ConfigError for what has no meaning with masks: RandAugment, mixup, CutMix and what needs objects."""
        for name in ("randaugment_ops", "mixup", "cutmix", "paste", "sides", "detr_crop"):
            if getattr(config, name):
                raise ConfigError(f"augment {name} is {getattr(config, name)}; with masks it must be 0 or empty")
        if config.repeats > 1:
            raise ConfigError(f"augment repeats is {config.repeats}; with masks it must be 1")
        if config.crop in ("sides", "jitter"):
            raise ConfigError(f"augment crop {config.crop!r} is for pictures with objects; with masks choose 'scale'")
        self.config, self.preprocess = config, preprocess
        self._colour = colour_changes(config, preprocess, affine=False)
        self._mean = [float(round(255 * mean)) for mean in preprocess.mean]

    def __call__(
        self, pixels: UInt8[Tensor, "C h w"], mask: Int64[Tensor, "h w"], seed: int
    ) -> tuple[UInt8[Tensor, "C H W"], Int64[Tensor, "H W"]]:
        """Picture and mask of any size, at the model's size; mean colour and `IGNORE` where the picture ends."""
        draws = uniforms(np.asarray([seed], np.uint64), _DRAWS)[0]
        chance, which, across, down, gamma, *warp = draws[:11]
        turns = 1 + int(which * 3) if chance < self.config.quarter_turns else 0
        size = self.preprocess.size[::-1] if turns % 2 else self.preprocess.size
        window = self._window(mask, size, draws[11:])
        pixels, mask = self._cut(pixels, mask, window, size)
        if turns:
            pixels, mask = pixels.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
        axes = [axis for axis, flip in ((-1, across < self.config.hflip), (-2, down < self.config.vflip)) if flip]
        if axes:
            pixels, mask = pixels.flip(axes), mask.flip(axes)
        if self.config.crop == "shift" and self.config.shift:
            pixels, mask = self._shifted(pixels, mask, draws[-2:])
        if any(self.config.affine) or self.config.elastic:
            pixels, mask = self._warped(pixels, mask, warp, seed)
        return self._coloured(pixels, gamma, seed).contiguous(), mask.contiguous()

    def _window(self, mask: Tensor, size: tuple[int, int], draws: np.ndarray) -> Window:
        height, width = mask.shape
        if self.config.crop == "resized":
            return self._resized(height, width, draws)
        down, across = _scale(self.preprocess, size, height, width)
        if self.config.crop != "scale":
            tall, wide = size[0] / down, size[1] / across
            return Window((height - tall) / 2, (width - wide) / 2, tall, wide)
        low, high = self.config.scale
        zoom = low + (high - low) * float(draws[0])
        tall, wide = size[0] / (down * zoom), size[1] / (across * zoom)
        return self._balanced(mask, tall, wide, draws[1:])

    def _balanced(self, mask: Tensor, tall: float, wide: float, draws: np.ndarray) -> Window:
        """A place for a window where no class fills more of it than may be; after ten tries, the best of them."""
        height, width = mask.shape
        best, least = Window(0.0, 0.0, tall, wide), math.inf
        for down, across in draws[: 2 * TRIES].reshape(TRIES, 2):
            # A window larger than the picture has it somewhere inside; one that is smaller lies inside it.
            window = Window(float(down * (height - tall)), float(across * (width - wide)), tall, wide)
            if self.config.crop_most >= 1:
                return window
            share = _largest_share(mask, window)
            if share < least:
                best, least = window, share
            if share <= self.config.crop_most or (tall >= height and wide >= width):
                break
        return best

    def _resized(self, height: int, width: int, draws: np.ndarray) -> Window:
        """A random rectangle of the picture, as torchvision's RandomResizedCrop chooses it."""
        area, (thin, flat) = height * width, np.log(self.config.crop_ratio)
        small, large = self.config.crop_scale
        for share, ratio in draws[2 : 2 + 2 * TRIES].reshape(-1, 2):
            target, aspect = area * (small + (large - small) * share), math.exp(thin + (flat - thin) * ratio)
            rows, columns = round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect))
            if 0 < rows <= height and 0 < columns <= width:
                return Window(
                    float(draws[0] * (height - rows)), float(draws[1] * (width - columns)), float(rows), float(columns)
                )
        ratio = float(np.clip(width / height, *self.config.crop_ratio))
        tall, wide = min(float(height), width / ratio), min(float(width), height * ratio)
        return Window((height - tall) / 2, (width - wide) / 2, tall, wide)

    def _cut(self, pixels: Tensor, mask: Tensor, window: Window, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What a window shows, at `size`: cut out first, so that only what is kept is resampled."""
        rows, to_rows = _part(window.top, window.height, mask.shape[0], size[0])
        columns, to_columns = _part(window.left, window.width, mask.shape[1], size[1])
        inner = (to_rows.stop - to_rows.start, to_columns.stop - to_columns.start)
        labels = mask[rows, columns]
        for axis, want in enumerate(inner):
            if labels.shape[axis] != want:
                labels = labels.index_select(axis, _nearest(labels.shape[axis], want))
        resized = self.config.crop == "resized"
        how = self.config.interpolation if resized else self.preprocess.interpolation
        image = resampled(pixels[:, rows, columns], inner, how)
        if inner == tuple(size):
            return image, labels
        canvas = image.new_tensor(self._mean)[:, None, None].expand(-1, *size).clone()
        canvas[:, to_rows, to_columns] = image
        whole = mask.new_full(size, IGNORE)
        whole[to_rows, to_columns] = labels
        return canvas, whole

    def _shifted(self, pixels: Tensor, mask: Tensor, draws: np.ndarray) -> tuple[Tensor, Tensor]:
        reach, fill = self.config.shift, self.config.shift_fill
        rows, above = shifted_lines(mask.shape[0], reach, fill, draws[:1])
        columns, beside = shifted_lines(mask.shape[1], reach, fill, draws[1:2])
        pixels, mask = pixels[:, rows[0][:, None], columns[0]], mask[rows[0][:, None], columns[0]]
        if fill == "zero":
            outside = above[0][:, None] | beside[0]
            pixels, mask = pixels.masked_fill(outside, 0), mask.masked_fill(outside, IGNORE)
        return pixels, mask

    def _warped(self, pixels: Tensor, mask: Tensor, draws: list[float], seed: int) -> tuple[Tensor, Tensor]:
        """The affine map and the elastic one, as one displacement: each pixel is resampled once."""
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional

        moves = warp((mask.shape[0], mask.shape[1]), self.config, draws[:4], seed).moves
        image = functional.elastic(tv_tensors.Image(pixels), moves, fill=self._mean)
        labels = functional.elastic(tv_tensors.Mask(mask), moves, fill=float(IGNORE))
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)

    def _coloured(self, pixels: Tensor, draw: float, seed: int) -> Tensor:
        pixels = brightened(pixels, self.config.gamma, draw)
        if self._colour is None:
            return pixels
        return seeded(self._colour, pixels, ~seed & (2**64 - 1))  # another seed than the deformation's


def _scale(preprocess: Preprocess, size: tuple[int, int], height: int, width: int) -> tuple[float, float]:
    """Pixels of the input for each of the picture's, down and across, as the evaluation has it."""
    if preprocess.fit == "squash":
        return size[0] / height, size[1] / width
    return (dataclasses.replace(preprocess, size=size).scale(height, width),) * 2


def _part(start: float, extent: float, whole: int, size: int) -> tuple[slice, slice]:
    """Along one axis: the pixels of the picture that a window shows, and the pixels of the output that they fill.

    Both are whole numbers, at least one, so that picture and mask are cut alike; what the window shows of it is moved
    and stretched for that by less than a pixel.
    """
    first = min(max(round(start), 0), whole - 1)
    last = min(max(round(start + extent), first + 1), whole)
    scale = size / extent
    to_first = min(max(round((first - start) * scale), 0), size - 1) if start < 0 else 0
    to_last = min(max(round((last - start) * scale), to_first + 1), size) if start + extent > whole else size
    return slice(first, last), slice(to_first, to_last)


def _nearest(have: int, want: int) -> Tensor:
    """For each of `want` pixels the one of `have` that its centre lies in."""
    return ((torch.arange(want) * 2 + 1) * have).div(2 * want, rounding_mode="floor")


def _largest_share(mask: Tensor, window: Window) -> float:
    """How much of a window's labelled pixels the most frequent class has, by every so many rows and columns."""
    rows, _ = _part(window.top, window.height, mask.shape[0], 1)
    columns, _ = _part(window.left, window.width, mask.shape[1], 1)
    step = max(1, (rows.stop - rows.start) // COUNTED), max(1, (columns.stop - columns.start) // COUNTED)
    labels = mask.numpy()[rows.start : rows.stop : step[0], columns.start : columns.stop : step[1]]
    counts = np.bincount(labels.ravel() - IGNORE)[1:]  # IGNORE itself is the first
    return float(counts.max() / counts.sum()) if counts.any() else 1.0
