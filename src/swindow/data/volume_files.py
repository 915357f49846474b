"""Volumes in files: NumPy arrays and NIfTI, their headers read and their size allowed before a voxel is."""

import gzip
import io
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from swindow.errors import DataError, SwindowError, require
from swindow.images import ImageLimits, name_of

VOLUME_SUFFIXES = (".npz", ".npy", ".nii", ".nii.gz")
IMAGE_KEYS = ("image", "img", "data", "x")
MASK_KEYS = ("label", "mask", "seg", "labels", "segmentation", "y")
MAX_BYTES = 4 * 2**30
"""Of one array, expanded; more is refused by its header."""
MAX_HEADER = 10_000
MAX_EXTENSION = 64 * 2**20

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Header:
    """What a file promises of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    spacing: Spacing | None = None
    """Millimetres along the first three axes."""


def volume_suffix(path: str | Path) -> str:
    """The suffix by which a file is a volume, or nothing."""
    name = str(path).lower()
    return next((suffix for suffix in (".nii.gz", ".nii", ".npz", ".npy") if name.endswith(suffix)), "")


def volume_stem(path: str | Path) -> str:
    """A volume file's name without folder and suffix."""
    name = Path(path).name
    return name[: len(name) - len(volume_suffix(name))]


def read_header(path: str | Path, keys: Sequence[str], limits: ImageLimits) -> Header:
    """The shape, type and spacing of the array that a file holds, in a ``.npz`` under the first of `keys` there is.

    NIfTI axes are given as z, y, x and then channels: the order of NumPy's slices, as SimpleITK reads them.

    Raises:
        DataError: it is no such file, has no such key, holds Python objects, or promises more than `MAX_BYTES`.
    """
    with _named(path):
        _refuse_odd_file(path, limits)
        if volume_suffix(path).startswith(".nii"):
            header = _nifti_header(_nifti(path))
        else:
            with _member(path, keys) as stream:
                header = _array_header(stream, path)
        _refuse_large(header, path)
        return header


def read_array(path: str | Path, keys: Sequence[str], limits: ImageLimits) -> np.ndarray:
    """That array itself, in the type of the file (NIfTI's scaled where it says so).

    Raises:
        DataError: as `read_header`, or it is damaged.
    """
    header = read_header(path, keys, limits)
    with _named(path):
        if volume_suffix(path).startswith(".nii"):
            array = np.asanyarray(_nifti(path).dataobj)
            return np.transpose(array, (2, 1, 0, *range(3, array.ndim))) if array.ndim > 2 else array.T
        with _member(path, keys) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise ValueError("more bytes than its header says")
    if array.shape != header.shape:
        raise DataError(f"{name_of(path)}: changed while it was read; try again")
    return array


def read_spacing(path: str | Path, limits: ImageLimits) -> Spacing | None:
    """The millimetres between slices, rows and columns, from a NIfTI header or the ``spacing`` of a ``.npz``."""
    suffix = volume_suffix(path)
    if suffix.startswith(".nii"):
        return read_header(path, (), limits).spacing
    if suffix != ".npz" or "spacing" not in keys_of(path):
        return None
    header = read_header(path, ("spacing",), limits)
    if header.shape != (3,) or header.dtype.kind not in "fiu":
        raise DataError(f"{name_of(path)}: its spacing has the shape {header.shape}; give three numbers in millimetres")
    z, y, x = (float(value) for value in read_array(path, ("spacing",), limits))
    if not (math.isfinite(z + y + x) and min(z, y, x) > 0):
        raise DataError(f"{name_of(path)}: its spacing is {z:g}, {y:g}, {x:g}; millimetres are positive")
    return z, y, x


def keys_of(path: str | Path) -> list[str]:
    """The arrays of a ``.npz``."""
    with _named(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Whatever fails inside is a `DataError` with the file's name."""
    try:
        yield
    except SwindowError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name_of(path)}: no such file; check the path") from error
    except Exception as error:  # a damaged file makes a decoder raise anything; all mean the same
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DataError(f"{name_of(path)}: cannot be read ({reason}); replace or remove the file") from error


def _refuse_odd_file(path: str | Path, limits: ImageLimits) -> None:
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(path)
    if not file.is_file():
        raise DataError(f"{name_of(path)}: is not a regular file; give the path of a volume")
    if file.stat().st_size == 0:
        raise DataError(f"{name_of(path)}: is empty (0 bytes); replace or remove the file")
    if file.stat().st_size > max(limits.max_file_bytes, MAX_BYTES):
        raise DataError(f"{name_of(path)}: more than {MAX_BYTES:,} bytes (the limit); cut it into parts")


@contextmanager
def _member(path: str | Path, keys: Sequence[str]) -> Iterator[io.BufferedIOBase]:
    """The ``.npy`` stream of a file, or of one array of a ``.npz``."""
    if volume_suffix(path) == ".npy":
        with Path(path).open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        key = next((key for key in keys if f"{key}.npy" in names), None)
        if key is None:
            there = ", ".join(name.removesuffix(".npy") for name in names) or "none"
            raise DataError(f"{name_of(path)}: no array named {' or '.join(keys)}; there are {there}; rename one")
        with archive.open(f"{key}.npy") as stream:
            yield cast(io.BufferedIOBase, stream)


def _array_header(stream: io.BufferedIOBase, path: str | Path) -> Header:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise DataError(f"{name_of(path)}: an array file of version {version}; save it with numpy.save")
    place = stream.tell()
    length = int.from_bytes(stream.read(2 * version[0]), "little")
    if length > MAX_HEADER:  # NumPy looks at it only once it has read it all
        raise DataError(
            f"{name_of(path)}: a header of {length:,} bytes, over the limit of {MAX_HEADER:,}; remove the file"
        )
    stream.seek(place)
    shape, _, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise DataError(
            f"{name_of(path)}: an array of {dtype}, not of numbers; save numbers (Python objects are never loaded)"
        )
    return Header(tuple(shape), dtype)


def _nifti(path: str | Path) -> Any:
    nibabel = require("nibabel", extra="medical")
    with gzip.open(path) if volume_suffix(path) == ".nii.gz" else Path(path).open("rb") as stream:
        start = stream.read(176)
    order = "<" if struct.unpack_from("<i", start)[0] in (348, 540) else ">"  # the header's own size comes first
    second = start[4:7] in (b"n+2", b"ni2")
    offset = (
        struct.unpack_from(f"{order}q", start, 168)[0] if second else struct.unpack_from(f"{order}f", start, 108)[0]
    )
    if not offset <= MAX_EXTENSION:  # all bytes before the voxels are read at once
        raise DataError(f"{name_of(path)}: extensions of more than {MAX_EXTENSION:,} bytes; save it without them")
    return nibabel.load(path)


def _nifti_header(image: Any) -> Header:
    shape, zooms = image.shape, image.header.get_zooms()
    if len(shape) < 3:
        return Header(tuple(shape[::-1]), image.get_data_dtype())
    z, y, x = (float(zoom) for zoom in reversed(zooms[:3]))
    known = all(math.isfinite(step) and step > 0 for step in (z, y, x))
    return Header((*shape[2::-1], *shape[3:]), image.get_data_dtype(), (z, y, x) if known else None)


def _refuse_large(header: Header, path: str | Path) -> None:
    count = math.prod(header.shape) * header.dtype.itemsize
    text = " × ".join(map(str, header.shape)) or "a single number"
    if 0 in header.shape:
        raise DataError(f"{name_of(path)}: an array of {text} has no values; replace or remove the file")
    if min(header.shape, default=1) < 0 or count > MAX_BYTES:
        raise DataError(
            f"{name_of(path)}: promises {text} {header.dtype} ({count:,} bytes), over the limit of {MAX_BYTES:,}; "
            f"cut it into parts, or remove it"
        )
