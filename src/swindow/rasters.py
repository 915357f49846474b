"""Pictures that are read a window at a time: pixels in memory, arrays mapped from a file, TIFF files by their tiles.

What a window costs is the window, and what its format makes it decode besides:

- ``.npy`` arrays, ``h w`` or ``h w C``, are mapped: a window reads its own pixels from the disk.
- TIFF files of more than `BIG` pixels are read by their tiles or strips, the last 64 MiB of which are kept, if tifffile
  is installed (``pip install 'swindow[large]'``) and each tile is plain: grey or RGB (or as many channels as are
  wanted), of 8 or 16 bits or floats, upright, without alpha. tifffile itself reads uncompressed, Deflate, LZMA and
  PackBits tiles, and with imagecodecs beside it LZW, Zstandard and more.
- Everything else is decoded whole, as 8-bit pixels, within `ImageLimits`.

Values become 8-bit as in `read_image`, whichever way they are read.
"""

import contextlib
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from swindow.errors import DataError, ShapeError, need, require
from swindow.images import LIMITS, ImageLimits, ImageTooLarge, name_of, read_image

BIG = 2**24
"""Pixels up to which a TIFF file is simply decoded whole."""
_KEPT = 64 * 2**20  # bytes of decoded tiles: a row of windows of 512 pixels through 40,000 columns of RGB
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@runtime_checkable
class Raster(Protocol):
    """A picture whose pixels can be had a rectangle at a time, from several threads if need be."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...
    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "C h w"]:
        """The pixels of a rectangle that lies inside of the picture.

        Raises:
            DataError: they cannot be read; the message names the file.
            ShapeError: the rectangle does not lie inside.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """A picture that is there already; its windows are views."""

    pixels: UInt8[Tensor, "C h w"]

    @property
    def height(self) -> int:
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        return self.pixels.shape[2]

    @property
    def channels(self) -> int:
        return self.pixels.shape[0]

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "C h w"]:
        _refuse_outside(self, top, left, height, width)
        return self.pixels[:, top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class Mapped:
    """An array in a file, ``h w`` or ``h w C``, of which only the windows asked for are read."""

    name: str
    array: np.ndarray
    channels: int
    intensity: tuple[float, float] | None = None

    @property
    def height(self) -> int:
        return self.array.shape[0]

    @property
    def width(self) -> int:
        return self.array.shape[1]

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "C h w"]:
        _refuse_outside(self, top, left, height, width)
        values = self.array[top : top + height, left : left + width]
        return _pixels(values, self.name, self.channels, self.intensity)


@dataclass(eq=False)
class Tiles:
    """A TIFF file that is read tile by tile or strip by strip, the last ones kept; `open_raster` says which can be."""

    name: str
    file: Any
    page: Any
    channels: int
    intensity: tuple[float, float] | None = None
    _kept: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    @property
    def height(self) -> int:
        return int(self.page.imagelength)

    @property
    def width(self) -> int:
        return int(self.page.imagewidth)

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "C h w"]:
        _refuse_outside(self, top, left, height, width)
        values = np.empty((height, width, int(self.page.samplesperpixel)), self.page.dtype)
        with self._lock:  # one file, one reading place
            for tile, y, x, plane in self._touched(top, left, height, width):
                part = self._decoded(tile)
                above, before = max(y, top), max(x, left)
                below, behind = min(y + part.shape[0], top + height), min(x + part.shape[1], left + width)
                inside = part[above - y : below - y, before - x : behind - x]
                values[above - top : below - top, before - left : behind - left, plane] = inside
        return _pixels(values, self.name, self.channels, self.intensity)

    def close(self) -> None:
        """Let the file go."""
        self.file.close()

    def _touched(self, top: int, left: int, height: int, width: int) -> list[tuple[int, int, int, slice]]:
        """Tiles under a rectangle: number, first row, first column, and which channels are in it."""
        tall, wide = _tile_size(self.page)
        rows, columns = -(-self.height // tall), -(-self.width // wide)
        apart = int(self.page.planarconfig) == 2
        planes = [slice(k, k + 1) for k in range(self.page.samplesperpixel)] if apart else [slice(None)]
        return [
            (number * rows * columns + row * columns + column, row * tall, column * wide, plane)
            for number, plane in enumerate(planes)
            for row in range(top // tall, (top + height - 1) // tall + 1)
            for column in range(left // wide, (left + width - 1) // wide + 1)
        ]

    def _decoded(self, number: int) -> np.ndarray:
        """One tile, ``h w C``, cut where the picture ends."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        tile = self._decode(number)
        self._kept[number] = tile
        while sum(part.nbytes for part in self._kept.values()) > _KEPT and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return tile

    def _decode(self, number: int) -> np.ndarray:
        where = f"{self.name}: tile {number + 1:,} of {len(self.page.dataoffsets):,}"
        count = self.page.databytecounts[number]
        if not count:
            raise DataError(f"{where} is missing; write the file again without leaving tiles out")
        self.file.filehandle.seek(self.page.dataoffsets[number])
        data = self.file.filehandle.read(count)
        if len(data) < count:
            raise DataError(f"{where} is cut off after {len(data):,} of {count:,} bytes; replace or remove the file")
        try:
            tile, _, shape = self.page.decode(data, number)
        except Exception as error:  # a damaged file makes a decoder raise anything; all mean the same
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            raise DataError(f"{where} cannot be read: {reason}; replace or remove the file") from error
        return tile[0, : shape[1], : shape[2]]


def open_raster(
    path: str | Path, *, channels: int = 3, limits: ImageLimits = LIMITS, intensity: tuple[float, float] | None = None
) -> InMemory | Mapped | Tiles:
    """The picture in a file, read by windows where its format allows (see above), else decoded.

    `intensity` is what becomes 0 and 255 of values of more than 8 bits, as in `read_image`.

    Raises:
        DataError: the file cannot be used; the message names it.
        ImageTooLarge: it has more pixels than `limits` allow, whichever way it is read.
        MissingExtra: a TIFF file of other than 1 or 3 channels, and tifffile is not installed.
    """
    path, name = Path(path), name_of(path)
    start = _start(path, name)
    if start.startswith(b"\x93NUMPY"):
        return _mapped(path, name, channels, limits, intensity)
    if start[:4] in _TIFF:
        tiles = _tiles(path, name, channels, limits, intensity)
        if tiles is not None:
            return tiles
    return InMemory(read_image(path, channels=channels, limits=limits, intensity=intensity))


def _start(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():
            return b""  # `read_image` says what is wrong
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}; check the path") from error


def _mapped(path: Path, name: str, channels: int, limits: ImageLimits, intensity: tuple[float, float] | None) -> Mapped:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DataError(f"{name}: cannot be read: {reason}; write it again with numpy.save") from error
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{name}: an array of shape {array.shape} is no picture; give h w or h w C")
    _refuse_size(name, array.shape[0], array.shape[1], limits)
    return Mapped(name, array, channels, intensity)


def _tiles(
    path: Path, name: str, channels: int, limits: ImageLimits, intensity: tuple[float, float] | None
) -> Tiles | None:
    """The file to be read by its tiles, or None where it is to be decoded whole."""
    only_so = channels not in (1, 3)
    try:
        need("tifffile", extra="large")
    except ImportError:
        if only_so:
            raise
        return None
    tifffile = require("tifffile", extra="large")
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(tifffile.TiffFile(path))
            page = file.pages[0]
        except Exception as error:  # as above; what Pillow makes of it may be better
            if not only_so:
                return None
            raise DataError(f"{name}: cannot be read: {error}; replace or remove the file") from error
        _refuse_size(name, page.imagelength, page.imagewidth, limits)
        hindrance = _hindrance(page, channels, tifffile)
        if hindrance and only_so:
            raise DataError(f"{name}: {hindrance}; convert the file, or pass an array instead")
        if hindrance or (not only_so and page.imagelength * page.imagewidth <= BIG):
            return None
        opened.pop_all()
    return Tiles(name, file, page, channels, intensity)


def _hindrance(page: Any, channels: int, tifffile: Any) -> str:
    """Why a TIFF's tiles are not plain pixels; empty where they are."""
    kinds, turned = tifffile.PHOTOMETRIC, page.tags.get(274)
    samples, kind = int(page.samplesperpixel), page.photometric
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        return f"tiles compressed by {page.compression.name} need imagecodecs (pip install imagecodecs)"
    if page.dtype is None or np.dtype(page.dtype) not in (np.uint8, np.uint16, np.float32) or page.imagedepth != 1:
        return f"has pixels of {page.dtype}, where uint8, uint16 and float32 are read by tiles"
    if turned is not None and turned.value not in (0, 1):
        return f"is turned (orientation {turned.value})"
    plain = (kind == kinds.MINISBLACK and samples == 1) or (kind == kinds.RGB and samples == 3)
    if not plain and not (samples == channels and kind in (kinds.MINISBLACK, kinds.RGB)):
        return f"has {samples} channels of kind {kind.name}, where {channels} are wanted"
    return ""


def _tile_size(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _pixels(
    values: np.ndarray, name: str, channels: int, intensity: tuple[float, float] | None
) -> UInt8[Tensor, "C h w"]:
    """Values as they are in a file, ``h w`` or ``h w C``, as 8-bit pixels."""
    if values.dtype == np.uint8 and values.ndim == 3 and values.shape[2] == channels:
        return torch.from_numpy(np.array(values)).permute(2, 0, 1)
    try:
        return read_image(np.asarray(values), channels=channels, intensity=intensity)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _refuse_size(name: str, height: int, width: int, limits: ImageLimits) -> None:
    if height * width > limits.max_pixels:
        raise ImageTooLarge(
            f"{name}: promises {height * width:,} pixels, over the limit of {limits.max_pixels:,}; "
            f"remove it, or raise the limit (--max-pixels) if you trust it"
        )


def _refuse_outside(raster: Raster, top: int, left: int, height: int, width: int) -> None:
    inside = 0 <= top < top + height <= raster.height and 0 <= left < left + width <= raster.width
    if not inside:
        raise ShapeError(
            f"a window of {height} × {width} pixels at row {top}, column {left} does not lie inside of a picture of "
            f"{raster.height} × {raster.width}"
        )
