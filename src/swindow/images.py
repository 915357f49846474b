"""The one image gate: every picture that enters swindow, to train, judge or predict, comes through `read_image`.

A file passes these doors, in this order:

1. it is a regular file of at most `ImageLimits.max_file_bytes`;
2. its *content* is JPEG, PNG, WebP, BMP, GIF, TIFF or PNM, whatever its name says;
3. its header promises at most `ImageLimits.max_pixels` (read before a pixel is decoded, or its memory asked for);
4. it decodes completely: a truncated file is refused, never filled up with grey;
5. of an animation the first frame counts, and the EXIF orientation is applied (values outside 1-8 are ignored);
6. the table in `_plain` turns its mode into 8-bit grey or RGB: 16-bit values are divided by 257 (Pillow's own
   ``convert`` would saturate them to white), alpha is laid over white, colour profiles are ignored;
7. grey is made with the ITU-R 601 weights.

Whatever goes wrong is a `DataError` of one line that names the file.
"""

import contextlib
import io
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from swindow.errors import ConfigError, DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)
MAX_SCANS = 100  # a progressive JPEG has about ten; each more is another pass over all pixels for a few bytes of file

# Blemishes of metadata (EXIF, multi-picture and animation tables) do not touch a pixel of the first frame.
METADATA_WARNINGS = r"(possibly )?corrupt EXIF|metadata warning|tag |image appears to be a malformed MPO|invalid APNG"

# Pillow's pixel limit and Python's warning filters belong to the whole process. Both are set only while this lock is
# held, and put back: concurrent readers never see each other's. Opening is short; decoding, which is not, needs neither
# (except TIFF, which looks at the limit again), so threads decode side by side.
_PILLOW = threading.Lock()

_ORIENTATION = 0x0112
_TURNING = frozenset({"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"})  # what may say how to turn
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageTooLarge(DataError):
    """An image over `ImageLimits`, refused before it was decoded."""


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """How large an image may be: in its file, in its header, and in between while it is resized."""

    max_pixels: int = 200_000_000
    """Width × height that the header may promise; more is refused before decoding."""
    max_resized_pixels: int = 50_000_000
    """Pixels of any intermediate image while resizing; more is refused before it is made."""
    max_file_bytes: int = 512 * 2**20
    """Size of the file; more is refused before reading."""

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_resized_pixels", "max_file_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


LIMITS = ImageLimits()


class ImageHeader(NamedTuple):
    """What a file's header promises: its upright size, Pillow mode, 1 (grey) or 3 channels, and format."""

    width: int
    height: int
    mode: str
    channels: int
    format: str


@runtime_checkable
class Readable(Protocol):
    """A binary file that is open for reading."""

    def read(self, size: int = -1, /) -> bytes: ...


Source = str | Path | bytes | Readable | Image.Image | np.ndarray | Tensor


def read_image(
    source: Source,
    *,
    channels: int = 3,
    limits: ImageLimits = LIMITS,
    intensity: tuple[float, float] | None = None,
    name: str | None = None,
) -> UInt8[Tensor, "C h w"]:
    """Any picture as 8-bit pixels; files, bytes and Pillow images go through the gate described above.

    Arrays are ``h w`` or ``h w C``, tensors ``h w`` or ``C h w``, of bool, uint8, uint16 or finite floats in 0..1. A
    count of channels that equals `channels` passes as it is; else a second or fourth channel is alpha, and grey and RGB
    are turned into each other.

    `intensity` is a window, for values of more than 8 bits: its lower value becomes 0, its upper 255, linearly, and
    what lies beyond is clipped. With it, arrays may be of any real type and range; 8-bit values stay what they are.

    The strides are those of the decoder (channels last); call ``contiguous()`` where that matters. `name` is what
    messages call bytes that come from somewhere, such as a shard.

    Raises:
        DataError: the picture cannot be used; the message names it.
        ImageTooLarge: it is over `limits`.
    """
    if isinstance(source, (np.ndarray, Tensor)):
        return _with_channels(_from_array(source, _window(intensity)), channels)
    if channels not in (1, 3):
        raise DataError(
            f"{name_of(source)}: an image file gives 1 or 3 channels, not {channels}; pass an array instead"
        )
    window = _window(intensity)
    with _decoded(source, limits, name) as image:
        return _to_tensor(_in_mode(_plain(image, window), "L" if channels == 1 else "RGB"))


class Stored(NamedTuple):
    """The numbers of an image file as it stores them, ``h w`` or ``h w C``, and what they mean."""

    values: np.ndarray
    mode: str
    """Pillow's: 1, L, P, I;16, RGB, …"""
    palette: np.ndarray | None
    """uint8 ``N 3``: the colours that a palette gives to the numbers."""
    format: str


def read_stored(source: str | Path | bytes, *, limits: ImageLimits = LIMITS) -> Stored:
    """What a file says, unchanged: for masks, whose numbers are indices; a palette's colours stay apart.

    Raises:
        DataError: as `read_image`.
    """
    with _decoded(source, limits) as image:
        colours = image.getpalette("RGB") if image.mode == "P" else None
        palette = None if colours is None else np.asarray(colours, np.uint8).reshape(-1, 3)
        return Stored(np.array(image), image.mode, palette, image.format or "")


@contextlib.contextmanager
def _decoded(
    source: str | Path | bytes | Readable | Image.Image, limits: ImageLimits, name: str | None = None
) -> Iterator[Image.Image]:
    """The whole image, the right way up, in the mode of its file."""
    with _opened(source, limits, name) as image:
        kind = image.format
        _refuse_damage(image)
        with _pillow_limits(limits) if kind == "TIFF" else contextlib.nullcontext():
            image.load()
        upright = _upright(image)
        upright.format = kind
        yield upright


def probe_image(source: str | Path | bytes, *, limits: ImageLimits = LIMITS) -> ImageHeader:
    """What the header says, without decoding a pixel.

    Raises:
        DataError: as `read_image`, as far as the header can tell.
    """
    with _opened(source, limits) as image:
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):  # Pillow turns TIFF itself
            width, height = height, width
        grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
        return ImageHeader(width, height, image.mode, 1 if grey else 3, image.format or "")


def name_of(source: object) -> str:
    """How messages call a source: its path on one line, unprintable characters escaped, or what it is."""
    if isinstance(source, (bytes, bytearray)):
        return f"image of {len(source)} bytes"
    if not isinstance(source, (str, Path)):
        source = getattr(source, "filename", None) or getattr(source, "name", None) or "image"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(source))


@contextlib.contextmanager
def _opened(
    source: str | Path | bytes | Readable | Image.Image, limits: ImageLimits, name: str | None = None
) -> Iterator[Image.Image]:
    """The image, its header read and its size allowed; whatever fails inside is a `DataError` with its name."""
    name = name_of(source if name is None else name)
    with contextlib.ExitStack() as stack:
        try:
            with _pillow_limits(limits):
                image = _open(source, name, limits, stack)
            if image.width * image.height > limits.max_pixels:  # Pillow images; files were refused while opening
                raise Image.DecompressionBombWarning(f"Image size ({image.width * image.height} pixels)")
            yield image
        except DataError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            pixels = next((int(digits) for digits in re.findall(r"\d+", str(error))), 0)
            raise ImageTooLarge(
                f"{name}: promises {pixels:,} pixels, over the limit of {limits.max_pixels:,}; "
                f"remove it, or raise the limit (--max-pixels) if you trust it"
            ) from error
        except FileNotFoundError as error:
            raise DataError(f"{name}: no such file; check the path") from error
        except Exception as error:  # a damaged file makes a decoder raise anything; all mean the same
            raise DataError(f"{name}: {_reason(error)}; replace or remove the file") from error


@contextlib.contextmanager
def _pillow_limits(limits: ImageLimits) -> Iterator[None]:
    with _PILLOW, warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"PIL\.")
        warnings.filterwarnings("ignore", METADATA_WARNINGS, module=r"PIL\.")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = limits.max_pixels  # Pillow checks it wherever it is about to allocate
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open(
    source: str | Path | bytes | Readable | Image.Image, name: str, limits: ImageLimits, stack: contextlib.ExitStack
) -> Image.Image:
    if isinstance(source, Image.Image):
        image = source
    else:
        stream = stack.enter_context(_stream(source, name, limits))
        start = stream.read(12)
        if not start:
            raise DataError(f"{name}: is empty (0 bytes); replace or remove the file")
        stream.seek(0)
        try:
            image = stack.enter_context(Image.open(cast(IO[bytes], stream), formats=FORMATS))
        except UnidentifiedImageError as error:
            raise DataError(
                f"{name}: is damaged, or none of JPEG, PNG, WebP, BMP, GIF, TIFF, PNM (it begins with {start!r}); "
                f"replace, convert or remove the file"
            ) from error
    if 0 in image.size:
        raise DataError(f"{name}: has no pixels ({image.width} × {image.height}); replace or remove the file")
    return image


def _stream(source: str | Path | bytes | Readable, name: str, limits: ImageLimits) -> io.BufferedIOBase:
    if isinstance(source, (str, Path)):
        status = Path(source).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{name}: is not a regular file; give the path of an image file")
        _refuse_bytes(status.st_size, name, limits)
        return Path(source).open("rb")
    data = source if isinstance(source, bytes) else source.read(limits.max_file_bytes + 1)
    _refuse_bytes(len(data), name, limits)
    return io.BytesIO(data)


def _refuse_bytes(count: int, name: str, limits: ImageLimits) -> None:
    if count > limits.max_file_bytes:
        raise ImageTooLarge(f"{name}: more than {limits.max_file_bytes:,} bytes (the limit); resize or remove the file")


def _reason(error: BaseException) -> str:
    """One line of the decoder's own words, without the memory addresses that Pillow puts in them."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "cannot be read: " + re.sub(r"<[^>]*>|0x[0-9a-f]+", "", words.splitlines()[0]).strip()[:160]


def _refuse_damage(image: Image.Image) -> None:
    """What Pillow would let pass: pixel chunks of a PNG with a wrong checksum, a JPEG that is mostly passes."""
    stream = getattr(image, "fp", None)
    if stream is None:
        return
    position = stream.tell()
    if image.format == "PNG":
        stream.seek(8)
        while (head := stream.read(8))[4:] not in (b"", b"IEND"):
            length, kind = struct.unpack(">I4s", head)
            found, promised = zlib.crc32(kind + stream.read(length)).to_bytes(4, "big"), stream.read(4)
            if kind == b"IDAT" and len(promised) == 4 and found != promised:
                raise ValueError("wrong checksum of its pixel data")
    elif image.info.get("progressive"):
        stream.seek(0)
        scans = stream.read().count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise ValueError(f"progressive JPEG of {scans} scans, over the limit of {MAX_SCANS}")
    stream.seek(position)


def _orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and not _TURNING.intersection(
        image.info
    ):  # nothing to parse, which saves as much as opening costs
        return 1
    try:
        with _pillow_limits(LIMITS):
            value = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - metadata that cannot be parsed says nothing; the pixels are as good
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, window: tuple[float, float] | None) -> Image.Image:
    """The mode table: an image of any mode as L or RGB."""
    mode = image.mode
    if window is not None and (mode in ("I", "F") or mode.startswith("I;16")):
        return Image.fromarray(windowed(np.asarray(image), *window))
    if mode.startswith("I;16"):
        return Image.fromarray(_from_16_bit(np.asarray(image)))
    if mode == "I":  # 16-bit PNM and signed TIFF
        return Image.fromarray(_from_16_bit(_within(np.asarray(image), 65535.0)))
    if mode == "F":  # float TIFF and PFM
        return Image.fromarray(_from_unit(np.asarray(image)))
    if mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA").convert("RGBA") if mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return cast(Image.Image, ImageCms.applyTransform(image, to_rgb))
    if mode in ("1", "L"):
        return _in_mode(image, "L")
    if mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return _in_mode(image, "RGB")
    raise ValueError(f"pixels of mode {mode!r}; convert the image to RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert copies even where there is nothing to do


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "C h w"]:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _from_array(array: np.ndarray | Tensor, window: tuple[float, float] | None) -> UInt8[Tensor, "C h w"]:
    what = "array" if isinstance(array, np.ndarray) else "tensor"
    values = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
    if values.ndim not in (2, 3) or 0 in values.shape:
        layout = "h w or h w C" if what == "array" else "h w or C h w"
        raise DataError(f"{what} of shape {tuple(values.shape)} is no image; give {layout}")
    if window is not None and values.dtype.kind in "iuf" and values.dtype != np.uint8:
        try:
            values = windowed(values, *window)
        except ValueError as error:
            raise DataError(f"{what} with {error}; repair it") from error
    elif values.dtype == np.uint16:
        values = _from_16_bit(values)
    elif np.issubdtype(values.dtype, np.floating):
        try:
            values = _from_unit(values)
        except ValueError as error:
            raise DataError(f"{what} with {error}; repair or rescale it") from error
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif values.dtype != np.uint8:
        raise DataError(f"{what} of {values.dtype} is no image; give uint8, uint16, bool, or floats in 0..1")
    pixels = torch.from_numpy(np.array(values))  # a copy: the caller may go on writing in theirs
    if pixels.ndim == 2:
        return pixels[None]
    return pixels.permute(2, 0, 1) if what == "array" else pixels


def windowed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 of the same shape: `low` and less becomes 0, `high` and more 255, linearly in between.

    Raises:
        ValueError: values that are not finite.
    """
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    if not np.isfinite(scaled).all():
        raise ValueError("pixels that are not finite")
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)


def _window(intensity: tuple[float, float] | None) -> tuple[float, float] | None:
    """The window, if it is one."""
    if intensity is not None and not (np.isfinite(intensity).all() and intensity[0] < intensity[1]):
        raise ConfigError(f"intensity {intensity} is not a lower and a higher value")
    return intensity


def _from_16_bit(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.int32) + 128) // 257).astype(np.uint8)


def _from_unit(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    return np.rint(_within(values, 1.0) * 255).astype(np.uint8)


def _within(values: np.ndarray, top: float) -> np.ndarray:
    """`values` if they lie in 0..top: guessing another scale per image would make two images incomparable."""
    low, high, slack = values.min(), values.max(), 1e-3 if values.dtype.kind == "f" else 0
    if low < -slack or high > top + slack:
        raise ValueError(f"pixels from {low:g} to {high:g}, where {values.dtype} must lie in 0..{top:g}")
    return np.clip(values, 0, top)


def _with_channels(image: UInt8[Tensor, "C h w"], channels: int) -> UInt8[Tensor, "D h w"]:
    have = len(image)
    if have == channels:
        return image
    if channels not in (1, 3) or have > 4:
        raise DataError(
            f"image of {have} channels where {channels} are wanted; arrays are h w C, tensors C h w, "
            f"and only 1 to 4 channels can be turned into grey or RGB"
        )
    if have in (2, 4):
        image = _over_white(image[:-1], image[-1:])
    if len(image) == channels:
        return image
    return image.expand(3, -1, -1) if channels == 3 else _grey(image)


def _over_white(colour: UInt8[Tensor, "C h w"], alpha: UInt8[Tensor, "1 h w"]) -> UInt8[Tensor, "C h w"]:
    opaque = alpha.int()
    return ((colour.int() * opaque + 255 * (255 - opaque) + 127) // 255).to(torch.uint8)


def _grey(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "1 h w"]:
    red, green, blue = image.int()
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[None]  # Pillow's integers
