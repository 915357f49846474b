"""Random changes to training images: torchvision's transforms on 8-bit pixels, driven by one seed a sample."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from swindow.data.erasing import NoisyErasing
from swindow.data.randaugment import STRONGEST, RandAugment
from swindow.data.rectangles import ResizedCrop
from swindow.data.seeds import uniforms
from swindow.errors import ConfigError
from swindow.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What may happen to a training image, in this order; the defaults change nothing."""

    crop: Literal["none", "shift", "resized", "scale", "sides", "jitter"] = "none"
    """The evaluation's view; the same, moved by some pixels; a random rectangle of the picture, resized; with masks, a
    rectangle of the model's size out of the picture resized at random. With objects: the whole picture with a short
    side drawn from `sides`; or large-scale jitter (arXiv 2012.07177), resized by `scale` and cut to the model's size.
    """
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """``resized``: area of the rectangle as a part of the picture's."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """``resized``: width / height of the rectangle."""
    shift: int = 0
    """``shift``: at most so many pixels up or down and left or right."""
    shift_fill: Literal["zero", "reflect"] = "zero"
    """``shift``: what comes in at the edge."""
    hflip: float = 0.0
    """Probability of left for right."""
    vflip: float = 0.0
    """Probability of top for bottom."""
    affine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Random affine map: at most so many degrees, so large a share of the side moved, so large a share zoomed."""
    randaugment_ops: int = 0
    """RandAugment (arXiv 1909.13719): operations per image; 0 is off."""
    randaugment_magnitude: int = 9
    """RandAugment: strength, 0..30; 0..10 in timm's form."""
    randaugment_form: Literal["torchvision", "timm"] = "torchvision"
    """RandAugment: torchvision's, of a fixed strength; or timm's with growing strength (``inc1``), each operation
    carried out every other time, which Swin and DeiT were trained with."""
    randaugment_noise: float = 0.0
    """RandAugment in timm's form: deviation of the strength from image to image (``mstd``)."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Colour jitter: brightness, contrast, saturation, hue (at most 0.5)."""
    erasing: float = 0.0
    """Random erasing (arXiv 1708.04896): probability that a rectangle is painted over."""
    erasing_fill: Literal["mean", "noise"] = "mean"
    """What with: the mean colour; or, for every pixel, one drawn with the mean and deviation of the model's pixels,
    within 0..255 (timm's ``pixel`` mode, which draws after normalisation and so beyond what a picture can hold)."""
    mixup: float = 0.0
    """mixup (arXiv 1710.09412): alpha of the Beta distribution; 0 is off. Per batch."""
    cutmix: float = 0.0
    """CutMix (arXiv 1905.04899): alpha; 0 is off. With both on, each batch takes one or the other."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed at all."""
    repeats: int = 1
    """Repeated augmentation (arXiv 1901.09335): so many variants of an image in an epoch of as many images as before,
    which therefore shows only a part of them; the variants lie in one batch."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Of the resized crop (antialiased)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """``scale``, ``jitter``: smallest and largest zoom, relative to the evaluation's size."""
    crop_most: float = 0.75
    """``scale``: no class may fill a larger share of a crop, if ten tries find one; 1 takes the first."""
    quarter_turns: float = 0.0
    """With masks or objects: probability of a turn by 90, 180 or 270 degrees."""
    elastic: float = 0.0
    """With masks: typical displacement of an elastic deformation, as a share of the shorter side (0.02 is gentle)."""
    gamma: float = 0.0
    """With masks or objects: brightness to the power of exp(-gamma) to exp(gamma), at random."""
    sides: tuple[int, ...] = ()
    """``sides``: short sides in pixels, one drawn for each picture; the long one is at most that of the evaluation.
    Empty for the evaluation's size."""
    detr_crop: float = 0.0
    """``sides``: probability that a part of the picture is taken, and resized as if it were all: 384 to 600 pixels a
    side of the picture with a short side of 400, 500 or 600 (arXiv 2005.12872, appendix A.4)."""
    paste: float = 0.0
    """Copy-paste (arXiv 2012.07177): probability that objects of another picture are put on this one, by their masks.
    """

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "erasing", "mix_prob", "quarter_turns", "detr_crop", "paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment {name} is {getattr(self, name)}; a probability lies in 0..1")
        for name in ("shift", "randaugment_ops", "randaugment_noise", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(f"augment {name} is {getattr(self, name)}; it must not be negative")
        if self.repeats < 1:
            raise ConfigError(f"augment repeats is {self.repeats}; every image that is shown is shown at least once")
        self._check_choices()
        self._check_ranges()
        self._check_pixel_tasks()

    def _check_choices(self) -> None:
        crops = ("none", "shift", "resized", "scale", "sides", "jitter")
        if self.crop not in crops:
            raise ConfigError(f"augment crop {self.crop!r} is not one of {', '.join(crops)}")
        if self.shift_fill not in ("zero", "reflect"):
            raise ConfigError(f"augment shift_fill {self.shift_fill!r} is not one of zero, reflect")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"augment interpolation {self.interpolation!r} is not one of bilinear, bicubic")
        if self.randaugment_form not in ("torchvision", "timm"):
            raise ConfigError(f"augment randaugment_form {self.randaugment_form!r} is not one of torchvision, timm")
        if self.erasing_fill not in ("mean", "noise"):
            raise ConfigError(f"augment erasing_fill {self.erasing_fill!r} is not one of mean, noise")

    def _check_ranges(self) -> None:
        most = STRONGEST if self.randaugment_form == "timm" else 30
        if not 0 <= self.randaugment_magnitude <= most:
            raise ConfigError(f"augment randaugment_magnitude is {self.randaugment_magnitude}; it lies in 0..{most}")
        if self.randaugment_noise and self.randaugment_form != "timm":
            raise ConfigError(
                "augment randaugment_noise is for randaugment_form timm; torchvision's has a fixed strength"
            )
        if min(self.affine) < 0 or max(self.affine[1:]) >= 1:
            raise ConfigError(f"augment affine {self.affine} must not be negative, and its shares must be below 1")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ConfigError(f"augment jitter {self.jitter} must not be negative, and hue at most 0.5")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"augment crop_scale {self.crop_scale} is not a range within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"augment crop_ratio {self.crop_ratio} is not a range above 0")

    def _check_pixel_tasks(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 100:
            raise ConfigError(f"augment scale {self.scale} is not a range within (0, 100]")
        if not 0 < self.crop_most <= 1:
            raise ConfigError(f"augment crop_most is {self.crop_most}; a share lies in (0, 1]")
        if not 0 <= self.elastic <= 0.25:
            raise ConfigError(f"augment elastic is {self.elastic}; it is a share of the side, in 0..0.25")
        if not 0 <= self.gamma <= 2:
            raise ConfigError(f"augment gamma is {self.gamma}; it lies in 0..2")
        if self.sides and min(self.sides) < 1:
            raise ConfigError(f"augment sides {self.sides} are not numbers of pixels, at least 1")

    @property
    def mixes(self) -> bool:
        """Whether batches may be mixed, so that targets become soft."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class Augment:
    """A config made to act: the result is a function of the pixels and the seed, whatever else is drawn elsewhere."""

    def __init__(self, config: AugmentConfig, preprocess: Preprocess) -> None:
        of_pixels = ("quarter_turns", "elastic", "gamma", "paste", "sides", "detr_crop")
        needs_masks = [name for name in of_pixels if getattr(config, name)]
        if config.crop in ("scale", "sides", "jitter") or needs_masks:
            field = needs_masks[0] if needs_masks else f"crop = {config.crop!r}"
            raise ConfigError(f"augment {field} is for pictures with masks or objects; leave it out for classification")
        self.config = config
        self.preprocess = preprocess
        self._crop = _resized_crop(config, preprocess)
        self._colour = colour_changes(config, preprocess)

    def __call__(self, image: UInt8[Tensor, "C h w"], seed: int) -> UInt8[Tensor, "C H W"]:
        """One image of any size, at the model's size."""
        return self._augmented([image], np.asarray([seed], np.uint64))[0]

    def batch(self, images: UInt8[Tensor, "B C h w"], seeds: np.ndarray) -> UInt8[Tensor, "B C H W"]:
        """Images of one size, a seed each; the same as one by one, and much faster where no colour changes."""
        return self._augmented(images, seeds)

    def _augmented(self, images: UInt8[Tensor, "B C h w"] | list[Tensor], seeds: np.ndarray) -> Tensor:
        if self._crop is not None:
            cropped = [self._crop(image, seed) for image, seed in zip(images, seeds.tolist(), strict=True)]
            images = cropped[0][None] if len(cropped) == 1 else torch.stack(cropped)
        elif isinstance(images, list):
            images = torch.stack([self.preprocess.resize(image) for image in images])
        else:
            images = self.preprocess.resize(images)
        images = _moved(images, uniforms(seeds, 4), self.config)
        if self._colour is None:
            return images
        return _each(self._colour, images, ~seeds)  # other seeds than the crop's: its draws must not come again


def build_augment(config: AugmentConfig, preprocess: Preprocess) -> Augment:
    """The augmentation of `config`, ending at the size of `preprocess`.

    Raises:
        ConfigError: RandAugment or colour jitter for images that are neither grey nor RGB, or what needs masks.
    """
    return Augment(config, preprocess)


def mix_batch(
    images: Float[Tensor, "B C H W"], targets: Float[Tensor, "B K"], config: AugmentConfig, seed: int
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """mixup or CutMix of each image with its neighbour in the batch, targets alike; one strength for the batch."""
    from torchvision.transforms import v2

    if not config.mixes or len(images) < 2:
        return images, targets
    chance, which = uniforms(np.asarray([seed], np.uint64), 2)[0]
    if chance >= config.mix_prob:
        return images, targets
    cut = config.mixup == 0 or (config.cutmix > 0 and which < 0.5)
    mix = v2.CutMix(alpha=config.cutmix) if cut else v2.MixUp(alpha=config.mixup)
    mixed, soft = seeded(lambda pair: mix(*pair), (images, targets), seed)
    return mixed, soft


def _each(transform: Any, images: Tensor | list[Tensor], seeds: np.ndarray) -> Tensor:
    return torch.stack([seeded(transform, image, seed) for image, seed in zip(images, seeds.tolist(), strict=True)])


def seeded(transform: Any, image: Any, seed: int) -> Any:
    """`transform` under its own seed; torch's generator, from which torchvision draws, is put back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reset the accelerator's
        return transform(image)


def brightened(pixels: UInt8[Tensor, "*B C h w"], gamma: float, draw: float) -> UInt8[Tensor, "*B C h w"]:
    """Brightness to the power that `draw` in [0, 1) chooses between exp(-gamma) and exp(gamma)."""
    if not gamma:
        return pixels
    power = math.exp(gamma * (2 * draw - 1))
    table = torch.linspace(0, 1, 256, dtype=torch.float64).pow_(power).mul_(255).round_().to(torch.uint8)
    return table[pixels.int()]


def _resized_crop(config: AugmentConfig, preprocess: Preprocess) -> ResizedCrop | None:
    if config.crop != "resized":
        return None
    return ResizedCrop(preprocess.size, config.crop_scale, config.crop_ratio, config.interpolation)


def colour_changes(config: AugmentConfig, preprocess: Preprocess, *, affine: bool = True) -> Any:
    """Affine map (unless it is done elsewhere), RandAugment, jitter and erasing as one torchvision transform, or None.

    Raises:
        ConfigError: RandAugment or colour jitter for images that are neither grey nor RGB.
    """
    affine = affine and any(config.affine)
    if not (affine or config.randaugment_ops or any(config.jitter) or config.erasing):
        return None
    if preprocess.channels not in (1, 3) and (config.randaugment_ops or any(config.jitter)):
        raise ConfigError(
            f"RandAugment and colour jitter need 1 or 3 channels, not {preprocess.channels}; "
            f"set randaugment_ops = 0 and jitter = [0, 0, 0, 0]"
        )
    from torchvision.transforms import v2

    mean = [round(255 * mean) for mean in preprocess.mean]
    steps: list[Any] = []
    if affine:
        degrees, move, zoom = config.affine
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(degrees, (move, move), (1 - zoom, 1 + zoom), interpolation=bilinear, fill=mean))
    if config.randaugment_ops and config.randaugment_form == "timm":
        steps.append(_timm_randaugment(config, mean))
    elif config.randaugment_ops:
        bilinear = v2.InterpolationMode.BILINEAR  # as good for tensors as it gets, and no slower than the nearest pixel
        steps.append(v2.RandAugment(config.randaugment_ops, config.randaugment_magnitude, 31, bilinear, mean))
    if any(config.jitter):
        steps.append(v2.ColorJitter(*config.jitter))
    if config.erasing and config.erasing_fill == "noise":
        steps.append(NoisyErasing(config.erasing, preprocess.mean, preprocess.std))
    elif config.erasing:
        steps.append(v2.RandomErasing(config.erasing, value=mean))
    return v2.Compose(steps)


def _timm_randaugment(config: AugmentConfig, mean: list[int]) -> RandAugment:
    resample = Image.Resampling.BICUBIC if config.interpolation == "bicubic" else Image.Resampling.BILINEAR
    fill = mean[0] if len(mean) == 1 else tuple(mean)
    return RandAugment(
        config.randaugment_ops,
        float(config.randaugment_magnitude),
        config.randaugment_noise,
        fill=fill,
        resample=resample,
    )


def _moved(images: UInt8[Tensor, "B C H W"], draws: np.ndarray, config: AugmentConfig) -> UInt8[Tensor, "B C H W"]:
    """Shifts and flips of a whole batch: every output row and column says which source row and column it shows."""
    reach = config.shift if config.crop == "shift" else 0
    flip_rows, flip_columns = draws[:, 2] < config.vflip, draws[:, 3] < config.hflip
    if not reach:
        return _flipped(_flipped(images, -2, flip_rows), -1, flip_columns)
    rows, above = shifted_lines(images.shape[-2], reach, config.shift_fill, draws[:, 0], flip_rows)
    columns, beside = shifted_lines(images.shape[-1], reach, config.shift_fill, draws[:, 1], flip_columns)
    moved = images.gather(-2, rows[:, None, :, None].expand(images.shape))
    moved = moved.gather(-1, columns[:, None, None, :].expand(images.shape))
    if config.shift_fill == "zero":
        moved.masked_fill_((above[:, :, None] | beside[:, None, :])[:, None], 0)
    return moved


def _flipped(images: UInt8[Tensor, "B C H W"], axis: int, flip: np.ndarray) -> UInt8[Tensor, "B C H W"]:
    if flip.all():
        return images.flip(axis)
    if not flip.any():
        return images
    return torch.where(torch.from_numpy(flip)[:, None, None, None], images.flip(axis), images)


def shifted_lines(
    count: int, reach: int, fill: str, draw: np.ndarray, flip: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Per image, the source line that each line shows (``B count``), and whether it lies outside the picture."""
    offset = np.floor(draw * (2 * reach + 1)).astype(np.int64) - reach
    lines = np.arange(count) + offset[:, None]
    outside = (lines < 0) | (lines >= count)
    if fill == "reflect" and count > 1:
        period = 2 * (count - 1)
        lines = np.abs((lines + count - 1) % period - (count - 1))
    lines = np.clip(lines, 0, count - 1)
    if flip is None:
        return torch.from_numpy(lines), torch.from_numpy(outside)
    lines = np.where(flip[:, None], lines[:, ::-1], lines)
    outside = np.where(flip[:, None], outside[:, ::-1], outside)
    return torch.from_numpy(lines), torch.from_numpy(outside)
