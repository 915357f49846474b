"""Small data sources of every form, made on the spot."""

import gzip
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def save_mask(path: Path, values: np.ndarray, palette: Sequence[tuple[int, int, int]] = ()) -> Path:
    """A mask as PNG: 8 or 16 bits, colours, or indices with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([channel for colour in palette for channel in colour])
    image.save(path)
    return path


def make_scenes(
    root: Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    count: int = 6,
    size: tuple[int, int] = (20, 24),
    classes: int = 3,
) -> dict[str, np.ndarray]:
    """``root/images/SPLIT`` and ``root/masks/SPLIT`` of random pictures and index masks; the masks by their file."""
    written = {}
    for split in splits:
        for number in range(count):
            place = f"{split}/{number:02d}" if split else f"{number:02d}"
            draw = np.random.default_rng([number, sum(map(ord, split))])
            values = draw.integers(0, classes, size, dtype=np.uint8)
            mask = save_mask(root / "masks" / f"{place}.png", values)
            picture = hostile.picture(number + 100 * len(split), height=size[0], width=size[1])
            (root / "images" / place).parent.mkdir(parents=True, exist_ok=True)
            (root / "images" / f"{place}.png").write_bytes(hostile.encode(picture, "PNG"))
            written[str(mask)] = values
    return written


def make_volume(path: Path, *, shape: tuple[int, ...] = (5, 8, 10), seed: int = 0, **more: np.ndarray) -> np.ndarray:
    """An ``.npz`` of a random uint8 image and its label of 3 classes, which is also returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 3, shape, dtype=np.uint8)
    arrays = {"image": draw.integers(0, 256, shape, dtype=np.uint8), "label": label} | more
    np.savez_compressed(path, **arrays)
    return label


@pytest.fixture(name="mask")
def mask_fixture() -> Callable[..., Path]:
    return save_mask


@pytest.fixture(name="scenes")
def scenes_fixture() -> Callable[..., dict[str, np.ndarray]]:
    return make_scenes


@pytest.fixture(name="volume")
def volume_fixture() -> Callable[..., np.ndarray]:
    return make_volume
