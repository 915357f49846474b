"""Images with a label each, read when asked for."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from swindow.errors import DataError
from swindow.images import LIMITS, ImageLimits, read_image


@runtime_checkable
class Encoded(Protocol):
    """Where images that are neither files nor in memory get their bytes: shards. Goes to other processes as it is."""

    def name(self, row: int) -> str:
        """How an image is called: shard and member."""

    def read(self, rows: Sequence[int]) -> list[bytes | DataError]:
        """The encoded bytes of some images, asked for together; an error in the place of each that cannot be read."""

    def digest(self, row: int) -> int | None:
        """What equals another image's only if its bytes do; None where that is not known without reading."""

    def order(self, rows: np.ndarray, window: int) -> Callable[[int, int], np.ndarray]:
        """(seed, epoch) to a permutation of some rows' places that goes from shard to shard."""

    def damaged(self) -> Iterator[tuple[str, str]]:
        """Place and one line of every shard that is not what its index says; reads all of them."""

    def cached(self, folder: str | Path) -> "Encoded":
        """The same, through copies of whole shards in a folder of this machine."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one split, read when asked for."""

    names: Sequence[str]
    """Path of each, or its place in a data set in memory, such as ``digits[17]``."""
    labels: np.ndarray
    """int64, index into `classes`."""
    classes: tuple[str, ...]
    channels: int
    limits: ImageLimits = LIMITS
    pixels: Tensor | None = None
    """uint8 ``N C h w`` where the images are in memory, all of one size."""
    encoded: Encoded | None = None
    """Where the images are in shards."""
    rows: np.ndarray | None = None
    """int64: the row of each in `encoded`."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> UInt8[Tensor, "C h w"]:
        """The pixels of one image.

        Raises:
            DataError: it cannot be used; the message names it.
        """
        if self.pixels is None:
            return self.decoded(self.sources([index])[0], index)
        return self.batch(np.asarray([index]))[0]

    def sources(self, indices: Sequence[int]) -> list[Any]:
        """What `decoded` takes for some images: paths, or bytes that are read here, together; errors in their place."""
        if self.encoded is None or self.rows is None:
            return [self.names[index] for index in indices]
        return list(self.encoded.read([int(self.rows[index]) for index in indices]))

    def decoded(self, source: Any, index: int) -> UInt8[Tensor, "C h w"]:
        """The pixels of one image, of which `sources` gave `source`.

        Raises:
            DataError: it cannot be used; the message names it.
        """
        if isinstance(source, DataError):
            raise source
        name = None if self.encoded is None else self.names[index]
        return read_image(source, channels=self.channels, limits=self.limits, name=name)

    def batch(self, indices: np.ndarray) -> UInt8[Tensor, "B C h w"]:
        """Pixels of several images in memory, as a copy."""
        if self.pixels is None:
            raise DataError("these images are files of different sizes; read them one by one")
        return self.pixels[torch.from_numpy(np.asarray(indices, np.int64))]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Images":
        """Some of the images, in the order given; a boolean mask keeps the order there is."""
        places = np.arange(len(self))[np.asarray(indices)]
        pixels = None if self.pixels is None else self.pixels[torch.from_numpy(places)]
        rows = None if self.rows is None else self.rows[places]
        names = [self.names[place] for place in places] if rows is None else _Names(self.encoded, rows)
        return dataclasses.replace(self, names=names, labels=self.labels[places], pixels=pixels, rows=rows)

    def cached(self, folder: str) -> "Images":
        """The same images, whole shards kept in a folder of this machine as they are needed.

        Raises:
            DataError: the images are not in shards.
        """
        if self.encoded is None or self.rows is None:
            raise DataError("only shards are cached, and these images are files or in memory; leave out --cache")
        encoded = self.encoded.cached(folder)
        return dataclasses.replace(self, encoded=encoded, names=_Names(encoded, self.rows))


class _Names(Sequence[str]):
    """Names of images in shards, made when asked for: millions of texts would be copied to every reading process."""

    def __init__(self, encoded: Any, rows: np.ndarray) -> None:
        self.encoded, self.rows = encoded, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Names(self.encoded, self.rows[place])
        return self.encoded.name(int(self.rows[place]))


def in_shards(encoded: Encoded, count: int) -> Sequence[str]:
    """The names of all `count` rows."""
    return _Names(encoded, np.arange(count))
