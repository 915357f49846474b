"""Small data sources of every form, made on the spot."""

import gzip
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import hostile

Classes = Mapping[str, int]
MakeFolder = Callable[[Path, Classes], Path]


def make_classes(folder: Path, classes: Classes) -> Path:
    """Class folders with so many different small pictures each."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = hostile.picture(1000 * number + index + sum(map(ord, folder.name)), height=12, width=16)
            (folder / name / f"{index}.png").write_bytes(hostile.encode(pixels, "PNG"))
    return folder


def make_idx(folder: Path, split: str, labels: list[int], *, packed: bool = False, side: int = 8) -> None:
    """An IDX pair with random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(labels))
    pixels = draw.integers(0, 256, (len(labels), side, side), dtype=np.uint8).tobytes()
    files = {
        f"{split}-images-idx3-ubyte": struct.pack(">IIII", 0x803, len(labels), side, side) + pixels,
        f"{split}-labels-idx1-ubyte": struct.pack(">II", 0x801, len(labels)) + bytes(labels),
    }
    for name, data in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)


@pytest.fixture(name="classes")
def classes_fixture() -> MakeFolder:
    return make_classes


@pytest.fixture(name="idx")
def idx_fixture() -> Callable[..., None]:
    return make_idx
