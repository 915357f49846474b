"""Images with masks: each picture read when asked for, with a class index for every pixel."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from swindow.data.legends import RGB, Legend
from swindow.data.masks import MaskReader, SceneError
from swindow.images import LIMITS, ImageLimits, name_of, probe_image, read_image
from swindow.shapes import IGNORE


@runtime_checkable
class SceneReader(Protocol):
    """Where pictures and masks come from, by row."""

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """The picture."""

    def mask(self, row: int) -> Int64[Tensor, "h w"]:
        """Its classes."""

    def mask_name(self, row: int) -> str:
        """The file of its mask."""

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the picture, by its header."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """Pictures of one split with their masks, read when asked for."""

    names: Sequence[str]
    """Path of each, or the volume's path and the slice's number: ``brain.nii.gz[17]``."""
    classes: tuple[str, ...]
    channels: int
    colours: tuple[RGB, ...]
    """One of each class."""
    cases: tuple[str, ...]
    """What each picture is a part of: a volume, a patient, or itself alone."""
    spacings: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Millimetres between slices, rows and columns of each case, where that is known."""
    background: int | None = None
    """Index of the class that is no object."""
    limits: ImageLimits = LIMITS
    reader: SceneReader
    rows: np.ndarray
    """int64: the reader's number of each picture."""
    order: np.ndarray | None = None
    """int64: for each of the reader's classes its index in `classes`, where they are others (`aligned`)."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> UInt8[Tensor, "C h w"]:
        """The pixels of one picture.

        Raises:
            DataError: it cannot be used; the message names it.
        """
        return self.reader.read(int(self.rows[index]), self.channels)

    def mask(self, index: int) -> Int64[Tensor, "h w"]:
        """Class indices of its pixels, `IGNORE` where nothing counts.

        Raises:
            DataError: it cannot be read, has values of no class, or another size than its picture.
        """
        mask = self._mask(index)
        self._refuse_other_size(index, self.reader.size(int(self.rows[index])), mask)
        return mask

    def pair(self, index: int) -> tuple[UInt8[Tensor, "C h w"], Int64[Tensor, "h w"]]:
        """Picture and mask, of one size.

        Raises:
            DataError: as `read` and `mask`.
        """
        pixels, mask = self.read(index), self._mask(index)
        self._refuse_other_size(index, (pixels.shape[1], pixels.shape[2]), mask)
        return pixels, mask

    def mask_name(self, index: int) -> str:
        """The file that one picture's mask comes from."""
        return self.reader.mask_name(int(self.rows[index]))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Scenes":
        """Some of the pictures, in the order given; a boolean mask keeps the order there is."""
        places = np.arange(len(self))[np.asarray(indices)].tolist()
        return dataclasses.replace(
            self,
            names=[self.names[place] for place in places],
            cases=tuple(self.cases[place] for place in places),
            rows=self.rows[places],
        )

    def aligned(self, order: np.ndarray, classes: Sequence[str], colours: Sequence[RGB]) -> "Scenes":
        """The same pictures with masks in the classes of a model: `order` has the new index of each class here."""
        order = np.asarray(order, np.int64)
        return dataclasses.replace(
            self,
            classes=tuple(classes),
            colours=tuple(colours),
            background=None if self.background is None else int(order[self.background]),
            order=order if self.order is None else order[self.order],
        )

    def _mask(self, index: int) -> Tensor:
        mask = self.reader.mask(int(self.rows[index]))
        if self.order is None:
            return mask
        return torch.from_numpy(np.append(self.order, IGNORE))[mask]  # IGNORE is -1: the last place

    def _refuse_other_size(self, index: int, size: tuple[int, int], mask: Tensor) -> None:
        height, width = mask.shape
        if (height, width) != size:
            raise other_size(self.mask_name(index), self.names[index], (height, width), size)


def other_size(mask: str, image: str, mask_size: tuple[int, int], image_size: tuple[int, int]) -> SceneError:
    """The error of a mask that is not as large as its picture; sizes are heights and widths."""
    (height, width), (tall, wide) = mask_size, image_size
    return SceneError(
        f"{name_of(mask)}: the mask has {width} × {height} pixels, its image {name_of(image)} {wide} × {tall}; make "
        f"them alike (resize masks without smoothing)",
        "mask-size",
    )


class FilePairs:
    """Pictures and masks that are files beside each other."""

    def __init__(
        self,
        images: Sequence[str],
        masks: Sequence[str],
        legend: Legend,
        limits: ImageLimits,
        intensity: tuple[float, float] | None,
    ) -> None:
        self.images, self.masks = list(images), list(masks)
        self.limits, self.intensity = limits, intensity
        self.masks_reader = MaskReader(legend, limits)

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """The picture, decoded anew."""
        return read_image(self.images[row], channels=channels, limits=self.limits, intensity=self.intensity)

    def mask(self, row: int) -> Int64[Tensor, "h w"]:
        """Its classes, decoded anew."""
        return self.masks_reader.read(self.masks[row])

    def mask_name(self, row: int) -> str:
        """The file of its mask."""
        return self.masks[row]

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the picture, by its header."""
        header = probe_image(self.images[row], limits=self.limits)
        return header.height, header.width


class InMemory:
    """Pictures and masks at hand, for tests and for what other programs made."""

    def __init__(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self.images, self.masks = list(images), list(masks)

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """A copy of the picture."""
        return read_image(self.images[row], channels=channels)

    def mask(self, row: int) -> Int64[Tensor, "h w"]:
        """A copy of its classes."""
        return self.masks[row].clone()

    def mask_name(self, row: int) -> str:
        """What messages call it."""
        return f"mask[{row}]"

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the picture."""
        height, width = self.images[row].shape[-2:]
        return height, width


def scenes_in_memory(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    classes: Sequence[str],
    colours: Sequence[RGB] = (),
    cases: Sequence[str] = (),
    background: int | None = None,
    spacings: Mapping[str, tuple[float, float, float]] | None = None,
) -> Scenes:
    """Scenes of uint8 ``C h w`` pictures and int64 ``h w`` masks at hand; without `cases` each is one."""
    from swindow.data.legends import palette

    names = [f"image[{index}]" for index in range(len(images))]
    return Scenes(
        names=names,
        classes=tuple(classes),
        channels=images[0].shape[0],
        colours=tuple(colours) or palette(len(classes), background),
        cases=tuple(cases) or tuple(names),
        background=background,
        spacings=spacings or {},
        reader=InMemory(images, masks),
        rows=np.arange(len(images)),
    )


def file_of(name: str) -> str:
    """The file that a picture's name begins with: ``brain.nii.gz[17]`` is a slice of ``brain.nii.gz``."""
    return re.sub(r"\[\d+\]$", "", name)
