"""What the pixels of training images depend on, in plain values: whoever keeps answers about them goes by this."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from swindow._version import __version__
from swindow.config import to_dict
from swindow.data.augment import AugmentConfig
from swindow.data.labelled import Images
from swindow.data.splits import digest
from swindow.errors import ConfigError, DataError
from swindow.preprocess import Preprocess


class Stream(NamedTuple):
    """Training images as one run sees them: given (epoch, index), everything about their pixels follows from this."""

    images: Images
    augment: AugmentConfig
    preprocess: Preprocess | None
    seed: int
    batch: int
    """Images of a batch of all processes; that, and the two below, matter where images are mixed with neighbours."""
    accumulate: int = 1
    """Batches of a step."""
    world: int = 1
    """Processes."""
    precision: str = "fp32"
    """In which whoever is asked about them answers."""

    def facts(self) -> dict[str, Any]:
        """The same in plain values; of images in files their names, sizes and times of change, not their content.

        Raises:
            ConfigError: an epoch shows images several times, each time otherwise: (epoch, index) says too little.
            DataError: images that are no local files any more.
        """
        import torchvision

        if self.augment.repeats > 1:
            raise ConfigError(
                f"augment repeats is {self.augment.repeats} and answers are kept by epoch and image; set it to 1, or "
                "leave out distillation.cache"
            )
        facts = {
            "images": _identity(self.images),
            "augment": to_dict(self.augment),
            "preprocess": str(self.preprocess),
            "seed": self.seed,
            "precision": self.precision,
            "versions": [__version__, torch.__version__, torchvision.__version__],
        }
        if self.augment.mixes:
            facts["mixed"] = {"batch": self.batch, "accumulate": self.accumulate, "world": self.world}
        return facts


def _identity(images: Images) -> str:
    """SHA-256 of pixels that are in memory; else of files' names, sizes and times, or of what shards tell of images."""
    if images.pixels is not None:
        pixels = np.ascontiguousarray(images.pixels.numpy())
        return hashlib.sha256(str(pixels.shape).encode() + pixels.data).hexdigest()
    if images.encoded is not None and images.rows is not None:
        told = [f"{images.encoded.name(row)} {images.encoded.digest(row)}" for row in images.rows.tolist()]
        return digest([str(images.channels), *told])
    return digest([str(images.channels), *(_stamp(Path(name)) for name in images.names)])


def _stamp(file: Path) -> str:
    try:
        facts = file.stat()
    except OSError as error:
        raise DataError(
            f"{file}: not a local file ({error.strerror or error}), and answers about images go by their files' sizes "
            "and times; leave out distillation.cache"
        ) from error
    return f"{file} {facts.st_size} {facts.st_mtime_ns}"
