"""Images with a label each, read when asked for."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from swindow.errors import DataError
from swindow.images import LIMITS, ImageLimits, read_image


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

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> UInt8[Tensor, "C h w"]:
        """The pixels of one image.

        Raises:
            DataError: it cannot be used; the message names it.
        """
        if self.pixels is None:
            return read_image(self.names[index], channels=self.channels, limits=self.limits)
        return self.batch(np.asarray([index]))[0]

    def batch(self, indices: np.ndarray) -> UInt8[Tensor, "B C h w"]:
        """Pixels of several images in memory, as a copy."""
        if self.pixels is None:
            raise DataError("these images are files of different sizes; read them one by one")
        return self.pixels[torch.from_numpy(np.asarray(indices, np.int64))]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Images":
        """Some of the images, in the order given; a boolean mask keeps the order there is."""
        places = np.arange(len(self))[np.asarray(indices)]
        pixels = None if self.pixels is None else self.pixels[torch.from_numpy(places)]
        names = [self.names[place] for place in places]
        return dataclasses.replace(self, names=names, labels=self.labels[places], pixels=pixels)
