"""Images with objects: each picture read when asked for, with the boxes, classes and perhaps masks of what it shows."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from swindow.data.annotations import Part
from swindow.errors import DataError
from swindow.images import LIMITS, ImageLimits, name_of, read_image
from swindow.objects import Objects, Size


@runtime_checkable
class ObjectReader(Protocol):
    """Where pictures and their objects come from, by row."""

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """The picture."""

    def objects(self, row: int, *, masks: bool) -> Objects:
        """What it shows, in classes of the source; without masks unless they are asked for."""

    def labels(self, row: int) -> np.ndarray:
        """The classes of its objects (int64), crowds too."""

    def size(self, row: int) -> Size:
        """Height and width of the picture, as its objects have them."""

    def image_id(self, row: int) -> int:
        """The number of the picture in results."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Annotated:
    """Pictures of one split with their objects, read when asked for."""

    names: Sequence[str]
    """Path of each."""
    classes: tuple[str, ...]
    channels: int
    has_masks: bool
    """Whether every object has one."""
    category_ids: tuple[int, ...]
    """The file's own number of each class, for results."""
    limits: ImageLimits = LIMITS
    reader: ObjectReader
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

    def objects(self, index: int) -> Objects:
        """What one picture shows, in its own pixels; with masks if `has_masks`."""
        found = self.reader.objects(int(self.rows[index]), masks=self.has_masks)
        if self.order is None:
            return found
        return dataclasses.replace(found, labels=torch.from_numpy(self.order)[found.labels])

    def pair(self, index: int) -> tuple[UInt8[Tensor, "C h w"], Objects]:
        """A picture and what it shows.

        Raises:
            DataError: it cannot be read, or has another size than its annotations say.
        """
        pixels = self.read(index)
        size = pixels.shape[1], pixels.shape[2]
        if size != self.size(index):
            raise DataError(other_size(self.names[index], self.size(index), size))
        return pixels, self.objects(index)

    def labels(self, index: int) -> np.ndarray:
        """The classes of what one picture shows (int64), without reading anything else."""
        labels = self.reader.labels(int(self.rows[index]))
        return labels if self.order is None else self.order[labels]

    def size(self, index: int) -> Size:
        """Height and width of one picture, as its annotations have them."""
        return self.reader.size(int(self.rows[index]))

    def image_id(self, index: int) -> int:
        """The file's own number of one picture, for results."""
        return self.reader.image_id(int(self.rows[index]))

    def count_objects(self) -> int:
        """Objects of all pictures, crowds too."""
        return sum(len(self.labels(index)) for index in range(len(self)))

    def rarest(self) -> np.ndarray:
        """The rarest class that each picture shows (int64); `len(classes)` for those that show nothing."""
        shown = [self.labels(index) for index in range(len(self))]
        counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *shown]), minlength=len(self.classes))
        return np.asarray(
            [min(labels, key=counts.__getitem__, default=len(self.classes)) for labels in shown], np.int64
        )

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Annotated":
        """Some of the pictures, in the order given; a boolean mask keeps the order there is."""
        places = np.arange(len(self))[np.asarray(indices)].tolist()
        return dataclasses.replace(self, names=[self.names[place] for place in places], rows=self.rows[places])

    def aligned(self, order: np.ndarray, classes: Sequence[str]) -> "Annotated":
        """The same pictures in the classes of a model: `order` has the new index of each class here.

        Classes that only the model knows get numbers after those of the file.
        """
        order = np.asarray(order, np.int64)
        known = dict(zip(order.tolist(), self.category_ids, strict=True))
        after = max(self.category_ids, default=0) + 1
        fresh = {place: after + rank for rank, place in enumerate(p for p in range(len(classes)) if p not in known)}
        return dataclasses.replace(
            self,
            classes=tuple(classes),
            category_ids=tuple((known | fresh)[place] for place in range(len(classes))),
            order=order if self.order is None else order[self.order],
        )


def other_size(image: str, said: Size, size: Size) -> str:
    """What is said of a picture of another height and width than its annotations have."""
    turned = " as it is before its EXIF orientation is applied" if said == size[::-1] else ""
    return (
        f"{name_of(image)}: is {size[1]} × {size[0]}, by its annotations {said[1]} × {said[0]}{turned}; annotate the "
        f"picture as it is shown, or correct width and height"
    )


class PartReader:
    """Pictures that are files, with objects from a table."""

    def __init__(self, part: Part, limits: ImageLimits) -> None:
        self.part, self.limits = part, limits

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """The picture, decoded anew."""
        return read_image(self.part.names[row], channels=channels, limits=self.limits)

    def objects(self, row: int, *, masks: bool) -> Objects:
        """What it shows; masks are decoded anew, and areas that the file lacks are those of masks or boxes."""
        table = self.part.objects
        of = table.of(row)
        boxes = torch.from_numpy(table.boxes[of].copy())
        outlines = None
        if masks and table.outlines is not None:
            outlines = table.outlines[np.arange(of.start, of.stop)].masks(table.boxes[of], self.size(row))
        areas = torch.from_numpy(table.areas[of].copy())
        if bool(areas.isnan().any()):
            own = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) if outlines is None else outlines.sum(dim=(1, 2)).float()
            areas = torch.where(areas.isnan(), own, areas)
        return Objects(
            boxes=boxes,
            labels=torch.from_numpy(table.labels[of].copy()),
            masks=outlines,
            crowd=torch.from_numpy(table.crowd[of].copy()),
            areas=areas,
        )

    def labels(self, row: int) -> np.ndarray:
        """The classes of its objects."""
        return self.part.objects.labels[self.part.objects.of(row)]

    def size(self, row: int) -> Size:
        """Height and width by the annotations."""
        height, width = self.part.sizes[row].tolist()
        return height, width

    def image_id(self, row: int) -> int:
        """The file's own number."""
        return int(self.part.image_ids[row])


class ObjectsInMemory:
    """Pictures and objects at hand, for tests and for what other programs made."""

    def __init__(self, images: Sequence[Tensor], objects: Sequence[Objects]) -> None:
        self.images, self.given = list(images), list(objects)

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """A copy of the picture."""
        return read_image(self.images[row], channels=channels)

    def objects(self, row: int, *, masks: bool) -> Objects:
        """A copy of what it shows."""
        given = self.given[row]
        kept = given if masks else dataclasses.replace(given, masks=None)
        return kept[torch.arange(len(given))]

    def labels(self, row: int) -> np.ndarray:
        """The classes of its objects."""
        return self.given[row].labels.numpy()

    def size(self, row: int) -> Size:
        """Height and width of the picture."""
        height, width = self.images[row].shape[-2:]
        return height, width

    def image_id(self, row: int) -> int:
        """Its row, from 1."""
        return row + 1


def annotated_in_memory(images: Sequence[Tensor], objects: Sequence[Objects], *, classes: Sequence[str]) -> Annotated:
    """Uint8 ``C h w`` pictures at hand with their objects; masks are used if each picture has them.

    Raises:
        DataError: not one `Objects` for each picture, or a label that is no class.
    """
    if len(images) != len(objects):
        raise DataError(f"{len(images)} images have {len(objects)} objects; give one Objects for each image")
    for place, one in enumerate(objects):
        if len(one) and not 0 <= int(one.labels.min()) <= int(one.labels.max()) < len(classes):
            raise DataError(f"objects[{place}]: labels {one.labels.tolist()} are not all in 0..{len(classes) - 1}")
    return Annotated(
        names=[f"image[{index}]" for index in range(len(images))],
        classes=tuple(classes),
        channels=images[0].shape[0],
        has_masks=bool(objects) and all(one.masks is not None for one in objects),
        category_ids=tuple(range(1, len(classes) + 1)),
        reader=ObjectsInMemory(images, objects),
        rows=np.arange(len(images)),
    )
