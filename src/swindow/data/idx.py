"""Pairs of IDX files, the format of MNIST and its descendants: the pixels and the labels of each split."""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from swindow.data.inventory import SPLIT_NAMES, Inventory, Rows
from swindow.errors import DataError
from swindow.images import ImageLimits, name_of

IMAGES = re.compile(r"(?P<split>[a-z0-9]+)-images[-.]idx3-ubyte(\.gz)?")
PREFIXES = SPLIT_NAMES | {"t10k": "test"}
MAX_BYTES = 8 * 2**30
_MAGIC = {3: 0x00000803, 1: 0x00000801}


def holds_idx(folder: Path) -> bool:
    """Whether a folder is an IDX source: it has an image file by its name."""
    return any(IMAGES.fullmatch(path.name) for path in folder.iterdir())


def read_idx(folder: Path, limits: ImageLimits) -> Inventory:
    """The splits of a folder, pixels in memory; class names from ``classes.txt`` (one a line) if there is one.

    Raises:
        DataError: a file that is missing, damaged, of another shape than it says, or too large.
    """
    found = Inventory(kind="idx", root=str(folder), classes=_class_names(folder))
    for path in sorted(folder.iterdir()):
        match = IMAGES.fullmatch(path.name)
        split = PREFIXES.get(match["split"]) if match else None
        if match is None or split is None:
            continue
        if split in found.splits:
            raise DataError(f"{name_of(folder)}: more than one file of {split} images; keep one, packed or not")
        pixels = _read(path, 3, limits)
        labels = _read(_label_file(path), 1, limits)
        if len(pixels) != len(labels):
            raise DataError(
                f"{name_of(path)}: {len(pixels):,} images but {len(labels):,} labels; use files that belong together"
            )
        names = [f"{split}[{index}]" for index in range(len(labels))]
        found.splits[split] = Rows(names, _named(labels, found.classes), torch.from_numpy(pixels)[:, None])
    if "train" not in found.splits and "test" not in found.splits:
        allowed = ", ".join(PREFIXES)
        raise DataError(
            f"{name_of(folder)}: no split of the IDX files has a known name; begin the names with {allowed}"
        )
    return found


def _class_names(folder: Path) -> tuple[str, ...] | None:
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(set(names)) != len(names):
        raise DataError(f"{name_of(path)}: a class name occurs twice; give every class its own")
    return names


def _named(labels: np.ndarray, classes: tuple[str, ...] | None) -> list[str]:
    """Class names; a number that has none stays a number, and is reported as out of range."""
    names = [classes[n] if classes and n < len(classes) else str(n) for n in range(256)]
    return [names[label] for label in labels.tolist()]


def _label_file(images: Path) -> Path:
    name = images.name.replace("-images", "-labels").replace("idx3", "idx1").removesuffix(".gz")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file():
            return candidate
    raise DataError(f"{name_of(images)}: its labels, {name} or {name}.gz, are not beside it; put them there")


def _read(path: Path, dimensions: int, limits: ImageLimits) -> np.ndarray:
    """The bytes of one file, shaped as its header says, and exactly as many as it says."""
    name = name_of(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            magic, *shape = struct.unpack(f">I{dimensions}I", stream.read(4 + 4 * dimensions))
            if magic != _MAGIC[dimensions]:
                raise DataError(
                    f"{name}: begins with {magic:#010x}, not {_MAGIC[dimensions]:#010x}; it is no such IDX file"
                )
            count = math.prod(shape)
            if not count or count > MAX_BYTES or math.prod(shape[1:]) > limits.max_pixels:
                raise DataError(
                    f"{name}: says {' × '.join(map(str, shape))}, from 1 to {MAX_BYTES:,} bytes are allowed"
                )
            data = stream.read(count + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        reason = "it ends early" if isinstance(error, (EOFError, struct.error)) else str(error)
        raise DataError(f"{name}: cannot be read ({reason}); fetch it again") from error
    if len(data) != count:
        raise DataError(
            f"{name}: {'more' if len(data) > count else 'fewer'} bytes than its header says; fetch it again"
        )
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)
