"""Random changes to a picture and its objects together: what moves a pixel moves the boxes and masks over it.

Cuts, resizing, flips and deformations are torchvision's (transforms.v2 on ``tv_tensors``). What is random follows from
one seed a sample. Objects of which little is left are left out; pictures without any stay, as they say where none are.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from swindow.data.augment import AugmentConfig, brightened, colour_changes, seeded
from swindow.data.geometry import warp
from swindow.data.moving import Arrived, arrived, cut, turned, warped
from swindow.data.pasting import pasted
from swindow.data.seeds import sample_seed, uniforms
from swindow.errors import ConfigError
from swindow.objects import Objects, Size
from swindow.preprocess import Preprocess

DETR_SIDES = (400, 500, 600)
DETR_CROP = (384, 600)
_DRAWS = 16
_PASTE = 0x7061737465  # keeps what is pasted apart from what happens to the picture itself


class View(NamedTuple):
    """A rectangle of whole pixels inside a picture, and the size that it is resized to."""

    top: int
    left: int
    height: int
    width: int
    size: Size


class ObjectAugment:
    """A config made to act on pictures with objects: the result is a function of both and the seed.

    Objects of which a crop leaves less than a tenth are left out, crowds only with nothing left; boxes are those of
    what is left. More of this in `swindow.data.moving`.
    """

    def __init__(self, config: AugmentConfig, preprocess: Preprocess) -> None:
        """Raises ConfigError for what has no meaning with objects, or does not go together."""
        _refuse(config, preprocess)
        self.config, self.preprocess = config, preprocess
        self._colour = colour_changes(config, preprocess, affine=False)
        self._mean = [float(round(255 * mean)) for mean in preprocess.mean]

    @property
    def canvas(self) -> Size:
        """Height and width that every batch has at least."""
        return self.preprocess.size if self.config.crop == "jitter" else (1, 1)

    def check(self, *, masks: bool) -> None:
        """Raises ConfigError for what needs masks, if the data has boxes alone."""
        for name in ("paste", "elastic"):
            if getattr(self.config, name) and not masks:
                raise ConfigError(
                    f"augment {name} is {getattr(self.config, name)}, but the data has boxes without masks; set it to 0"
                )

    def partner(self, seed: int, count: int) -> int | None:
        """Which of `count` pictures lends objects to the one with this seed; None for none."""
        chance, which = uniforms(np.asarray([seed ^ _PASTE], np.uint64), 2)[0]
        return int(which * count) if chance < self.config.paste else None

    def __call__(
        self,
        pixels: UInt8[Tensor, "C h w"],
        objects: Objects,
        seed: int,
        lender: tuple[UInt8[Tensor, "C a b"], Objects] | None = None,
    ) -> tuple[UInt8[Tensor, "C H W"], Objects]:
        """A picture of any size at a size of its own, with its objects; `lender` is the `partner` and its objects."""
        self.check(masks=objects.masks is not None)
        scene = self._moved(pixels, objects, seed)
        if lender is not None:
            scene = pasted(scene, self._moved(*lender, sample_seed(seed, 0, 1)), seed ^ _PASTE)
        image, found = scene.pair()
        return self._coloured(image, seed), found

    def _moved(self, pixels: Tensor, objects: Objects, seed: int) -> Arrived:
        chance, which, across, down, _, *others = uniforms(np.asarray([seed], np.uint64), _DRAWS)[0].tolist()
        turns = 1 + int(which * 3) if chance < self.config.quarter_turns else 0
        view = self._view((pixels.shape[1], pixels.shape[2]), turns % 2 == 1, others[4:])
        scene = cut(pixels, objects, view[:4], view.size, self.preprocess.interpolation)
        scene = turned(scene, turns=turns, hflip=across < self.config.hflip, vflip=down < self.config.vflip)
        if any(self.config.affine) or self.config.elastic:
            size = scene.pixels.shape[1], scene.pixels.shape[2]
            scene = warped(scene, warp(size, self.config, others[:4], seed), self._mean)
        return arrived(scene)

    def _view(self, size: Size, turned: bool, draws: Sequence[float]) -> View:
        whole = View(0, 0, *size, self.preprocess.input_size(*size))
        if self.config.crop == "jitter":
            height, width = self.preprocess.size
            return self._jittered(whole, (width, height) if turned else (height, width), draws)
        if self.config.crop == "sides":
            return self._sides(whole, draws)
        return whole

    def _jittered(self, whole: View, canvas: Size, draws: Sequence[float]) -> View:
        """The picture resized by a random factor, and as much of it as the canvas holds."""
        low, high = self.config.scale
        zoom = low + (high - low) * draws[0]
        spans = [
            _span(have, max(1, round(usual * zoom)), most, draw)
            for have, usual, most, draw in zip(
                (whole.height, whole.width), whole.size, canvas, (draws[1], draws[2]), strict=True
            )
        ]
        (top, height, tall), (left, width, wide) = spans
        return View(top, left, height, width, (tall, wide))

    def _sides(self, whole: View, draws: Sequence[float]) -> View:
        """The picture, or a part of it, with a random short side."""
        view = whole
        if draws[0] < self.config.detr_crop:
            view = self._part(whole, DETR_SIDES[int(draws[1] * len(DETR_SIDES))], draws[2:6])
        sides = self.config.sides
        if not sides:
            return view._replace(size=self.preprocess.input_size(view.height, view.width))
        return view._replace(size=self._within((view.height, view.width), sides[int(draws[6] * len(sides))]))

    def _part(self, whole: View, side: int, draws: Sequence[float]) -> View:
        """A rectangle of 384 to 600 pixels a side (or all there are) of the picture with a short side of `side`."""
        resized = self._within((whole.height, whole.width), side)
        least, most = DETR_CROP
        spans = []
        for have, there, size, place in zip((whole.height, whole.width), resized, draws[:2], draws[2:], strict=True):
            low, high = min(there, least), min(there, most)
            spans.append(_span(have, there, low + int(size * (high - low + 1)), place))
        (top, height, _), (left, width, _) = spans
        return View(top, left, height, width, whole.size)

    def _within(self, size: Size, short: int) -> Size:
        within = dataclasses.replace(self.preprocess, fit="within", size=(short, max(self.preprocess.size)))
        return within.input_size(*size)

    def _coloured(self, pixels: Tensor, seed: int) -> Tensor:
        pixels = brightened(pixels, self.config.gamma, float(uniforms(np.asarray([seed], np.uint64), 5)[0, 4]))
        if self._colour is None:
            return pixels
        return seeded(self._colour, pixels, ~seed & (2**64 - 1))  # another seed than the deformation's


def _span(have: int, resized: int, most: int, draw: float) -> tuple[int, int, int]:
    """Along one side of `have` pixels, resized to so many: first pixel and number of those of which `most` pixels are
    made, somewhere inside, and how many pixels they make; all, if all of them make fewer."""
    if resized <= most:
        return 0, have, resized
    count = min(max(1, round(most * have / resized)), have)
    return int(draw * (have - count + 1)), count, most


def _refuse(config: AugmentConfig, preprocess: Preprocess) -> None:
    for name, none in {"randaugment_ops": 0, "mixup": 0, "cutmix": 0, "repeats": 1}.items():
        if getattr(config, name) != none:
            raise ConfigError(f"augment {name} is {getattr(config, name)}; with objects it must be {none}")
    if config.crop not in ("none", "sides", "jitter"):
        raise ConfigError(f"augment crop {config.crop!r} is not for objects; choose none, sides or jitter")
    if preprocess.fit in ("crop", "pad"):
        raise ConfigError(
            f"preprocess fit {preprocess.fit!r} is not for objects, which may lie anywhere; "
            f"choose within, native, short or squash"
        )
    longest = max(preprocess.size)
    if config.crop == "jitter":
        return  # which knows no sides, whatever a recipe has of them
    if (config.sides or config.detr_crop) and config.crop != "sides":
        name = "sides" if config.sides else "detr_crop"
        raise ConfigError(f"augment {name} is {getattr(config, name)}, but crop is {config.crop!r}; set crop = 'sides'")
    if (config.sides or config.detr_crop) and preprocess.fit != "within":
        name = "sides" if config.sides else "detr_crop"
        raise ConfigError(f"augment {name} needs preprocess fit 'within', not {preprocess.fit!r}, for the longest side")
    if config.detr_crop and longest < DETR_CROP[1]:
        raise ConfigError(
            f"augment detr_crop cuts parts of {DETR_CROP[0]} to {DETR_CROP[1]} pixels, and pictures become {longest} "
            f"at most; set it to 0 and perhaps crop = 'jitter'"
        )
    if config.sides and max(config.sides) > longest:
        raise ConfigError(
            f"augment sides {config.sides} go beyond {longest} pixels, the longest side of the preprocess"
        )
