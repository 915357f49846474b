"""Image files that are damaged, lying or unusual, made on the spot; `BAD` must be refused and `ODD` must be read.

Each maker returns the bytes of one file; `write_bad` and `write_odd` put them into a folder.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


class Odd(NamedTuple):
    """A file that is unusual but whole, the pixels it must give (``h w 3`` uint8), and how far off it may be."""

    name: str
    data: bytes
    pixels: np.ndarray
    tolerance: int = 0


def picture(seed: int = 0, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth colour picture with a different value in every corner, and some noise."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 8, (height, width, 3))
    planes = np.stack([y * 200 // height, x * 200 // width, (y + x) * 200 // (height + width)], -1)
    return (planes + noise).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """An image as a file's bytes."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, extra: bytes = b"", rows: bytes = b"") -> bytes:
    """A PNG that promises any size, whatever pixels follow."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def cut(kind: str, part: float) -> bytes:
    """The first part of a file."""
    data = encode(picture(), kind)
    return data[: int(len(data) * part)]


def jpeg_of_size(width: int, height: int, *, precision: int = 8) -> bytes:
    """A JPEG whose frame header is rewritten."""
    data = bytearray(encode(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = precision
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last pass is repeated."""
    data = encode(picture(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def webp_of_size(width: int, height: int) -> bytes:
    """An animated WebP with a huge canvas and a small frame."""
    bitstream = encode(picture()[:8, :8], "WEBP", lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x12\0\0\0" + _24_bit(width - 1) + _24_bit(height - 1)
    frame = bytes(6) + _24_bit(7) + _24_bit(7) + bytes(4) + bitstream
    body = b"WEBP" + canvas + b"ANIM\6\0\0\0" + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of_size(width: int, height: int) -> bytes:
    """A TIFF whose size tags are rewritten."""
    data = bytearray(encode(picture(), "TIFF"))
    for tag, value in ((256, width), (257, height)):
        place = next(i for i in range(len(data) - 8) if data[i : i + 8] == struct.pack("<HHI", tag, 4, 1))
        data[place + 8 : place + 12] = struct.pack("<I", value)
    return bytes(data)


def gif_of_size(width: int, height: int) -> bytes:
    """A GIF with a huge canvas."""
    data = bytearray(encode(picture(), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_of_size(width: int, height: int) -> bytes:
    """A BMP whose header is rewritten."""
    data = bytearray(encode(picture(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def flipped_byte(data: bytes, place: int) -> bytes:
    """One byte of a file inverted."""
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _24_bit(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _png_with_profile(size: int) -> bytes:
    return png(4, 4, extra=chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(size), 9)), rows=bytes(20))


def _png_with_text(size: int) -> bytes:
    return png(4, 4, extra=chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 9)), rows=bytes(20))


def _float_tiff(value: float) -> bytes:
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[3, 3] = value
    return encode(Image.fromarray(pixels), "TIFF")


TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "one-bit-30000.png": lambda: png(30_000, 30_000, depth=1, rows=bytes(30_000 * 375)),
    "just-over.png": lambda: png(20_000, 10_001, rows=b""),
    "header-65500.jpg": lambda: jpeg_of_size(65_500, 65_500),
    "canvas-16383.webp": lambda: webp_of_size(16_383, 16_383),
    "tags-100000.tif": lambda: tiff_of_size(100_000, 100_000),
    "canvas-65535.gif": lambda: gif_of_size(65_535, 65_535),
    "header-100000.bmp": lambda: bmp_of_size(100_000, 100_000),
    "header-100000.ppm": lambda: b"P6 100000 100000 255\n" + bytes(300),
}
"""Refused by their header."""

UNREADABLE: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "text.jpg": lambda: b"this is a note, not a picture\n" * 20,
    "not-found.png": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "noise.png": lambda: np.random.default_rng(1).bytes(4096),
    "signature-only.png": lambda: b"\x89PNG\r\n\x1a\n",
    "jpeg-10.jpg": lambda: cut("JPEG", 0.1),
    "jpeg-50.jpg": lambda: cut("JPEG", 0.5),
    "jpeg-90.jpg": lambda: cut("JPEG", 0.9),
    "jpeg-99.jpg": lambda: cut("JPEG", 0.99),
    "jpeg-no-end.jpg": lambda: encode(picture(), "JPEG")[:-2],
    "png-10.png": lambda: cut("PNG", 0.1),
    "png-50.png": lambda: cut("PNG", 0.5),
    "png-99.png": lambda: cut("PNG", 0.99),
    "webp-50.webp": lambda: cut("WEBP", 0.5),
    "gif-50.gif": lambda: cut("GIF", 0.5),
    "bmp-90.bmp": lambda: cut("BMP", 0.9),
    "tiff-50.tif": lambda: cut("TIFF", 0.5),
    "ppm-90.ppm": lambda: cut("PPM", 0.9),
    "bad-header-checksum.png": lambda: flipped_byte(encode(picture(), "PNG"), 29),
    "bad-pixel-checksum.png": lambda: flipped_byte(encode(picture(), "PNG"), -13),
    "flipped-pixel-bit.png": lambda: flipped_byte(encode(picture(), "PNG"), 2000),
    "no-width.png": lambda: png(0, 4, rows=bytes(20)),
    "twelve-bit.jpg": lambda: jpeg_of_size(WIDTH, HEIGHT, precision=12),
    "thousand-scans.jpg": lambda: many_scans(1000),
    "profile-bomb.png": lambda: _png_with_profile(50_000_000),
    "text-bomb.png": lambda: _png_with_text(50_000_000),
    "nan.tif": lambda: _float_tiff(float("nan")),
    "beyond-one.tif": lambda: _float_tiff(812.0),
    "postscript.jpg": lambda: encode(picture(), "EPS"),
    "document.jpg": lambda: encode(picture(), "PDF"),
    "icon.png": lambda: encode(picture(), "ICO"),
    "drawing.png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "photoshop.tif": lambda: b"8BPS\0\1" + bytes(60),
    "phone.jpg": lambda: b"\0\0\0\x18ftypheic" + bytes(60),
    "jpeg2000.jpg": lambda: encode(picture(), "JPEG2000"),
    "targa.bmp": lambda: encode(picture(), "TGA"),
}
"""Refused by what is in them."""


def write_bad(folder: Path) -> dict[Path, str]:
    """All bad files, and four that only a file system can have; each with the kind that ``data check`` must give it."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {}
    for kind, makers in (("too-large", TOO_LARGE), ("unreadable", UNREADABLE)):
        for name, make in makers.items():
            (folder / name).write_bytes(make())
            kinds[folder / name] = kind
    with (folder / "gigabyte.jpg").open("wb") as stream:
        stream.truncate(2**30)  # takes no room on the disk
    (folder / "nowhere.jpg").symlink_to(folder / "missing.jpg")
    (folder / "line\nbreak.png").write_bytes(b"?")
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for ever
    extra = {"gigabyte.jpg": "too-large", "nowhere.jpg": "unreadable", "line\nbreak.png": "unreadable", "pipe.jpg": ""}
    return kinds | {folder / name: kind or "unreadable" for name, kind in extra.items()}


def odd_files() -> list[Odd]:
    """All unusual files that must be read."""
    return [*_odd_modes(), *_odd_depths(), *_odd_transparency(), *_odd_orientations(), *_odd_containers()]


def write_odd(folder: Path) -> list[Odd]:
    """The same, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    odd = odd_files()
    for file in odd:
        (folder / file.name).write_bytes(file.data)
    return odd


def grey(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601 grey, ``h w``."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def three(plane: np.ndarray) -> np.ndarray:
    """A grey plane as ``h w 3``."""
    return np.repeat(plane[..., None], 3, -1)


def _odd_modes() -> list[Odd]:
    rgb = picture()
    image = Image.fromarray(rgb)
    plane = grey(rgb)
    palette = image.quantize(64)
    lab = Image.merge("LAB", [Image.fromarray(plane), *(Image.new("L", image.size, 128) for _ in range(2))])
    cmyk = Image.fromarray(np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], -1), "CMYK")
    black = np.where(plane > 100, 255, 0).astype(np.uint8)
    return [
        Odd("bilevel.png", encode(Image.fromarray(black).convert("1"), "PNG"), three(black)),
        Odd("grey.png", encode(plane, "PNG"), three(plane)),
        Odd("grey.jpg", encode(plane, "JPEG", quality=100), three(plane), 3),
        Odd("palette.png", encode(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        Odd("palette.bmp", encode(palette, "BMP"), np.asarray(palette.convert("RGB"))),
        Odd("cmyk.tif", encode(cmyk, "TIFF"), rgb, 1),
        Odd("cmyk.jpg", encode(cmyk, "JPEG", quality=100, subsampling=0), rgb, 6),
        Odd("ycbcr.tif", encode(image.convert("YCbCr"), "TIFF"), rgb, 3),
        Odd("lab.tif", encode(lab, "TIFF"), np.asarray(_lab_grey(plane)), 3),
        Odd("colour.jpg", encode(rgb, "JPEG", quality=100, subsampling=0), rgb, 3),
        Odd("progressive.jpg", encode(rgb, "JPEG", quality=100, subsampling=0, progressive=True), rgb, 3),
    ]


def _lab_grey(plane: np.ndarray) -> np.ndarray:
    """sRGB of CIE lightness, by its definition."""
    lightness = plane / 255 * 100
    y = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    srgb = np.where(y <= 0.0031308, 12.92 * y, 1.055 * np.maximum(y, 1e-9) ** (1 / 2.4) - 0.055)
    return three(np.rint(srgb * 255).astype(np.uint8))


def _odd_depths() -> list[Odd]:
    plane = grey(picture())
    deep = plane.astype(np.uint16) * 257
    pfm = b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + (plane[::-1] / 255).astype("<f4").tobytes()
    return [
        Odd("deep.png", encode(Image.fromarray(deep), "PNG"), three(plane)),
        Odd("deep-big-endian.tif", encode(_16_big_endian(deep), "TIFF"), three(plane)),
        Odd("deep.tif", encode(Image.fromarray(deep), "TIFF"), three(plane)),
        Odd("deep.pgm", b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes(), three(plane)),
        Odd("integer.tif", encode(Image.fromarray(deep.astype(np.int32)), "TIFF"), three(plane)),
        Odd("float.tif", encode(Image.fromarray((plane / 255).astype(np.float32)), "TIFF"), three(plane)),
        Odd("float.pfm", pfm, three(plane)),
        Odd("deep-colour.png", _deep_colour(picture()), picture()),
    ]


def _16_big_endian(deep: np.ndarray) -> Image.Image:
    return Image.frombytes("I;16B", (deep.shape[1], deep.shape[0]), deep.astype(">u2").tobytes())


def _deep_colour(rgb: np.ndarray) -> bytes:
    deep = (rgb.astype(np.uint16) * 257).astype(">u2")
    return png(WIDTH, HEIGHT, depth=16, colour=2, rows=b"".join(b"\0" + row.tobytes() for row in deep))


def _odd_transparency() -> list[Odd]:
    rgb, plane = picture(), grey(picture())
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    white = np.rint((rgb * (alpha[..., None] / 255)) + 255 - alpha[..., None]).astype(np.uint8)
    white_grey = np.rint(plane * (alpha / 255) + 255 - alpha).astype(np.uint8)
    rgba = np.concatenate([rgb, alpha[..., None]], -1)
    palette = Image.fromarray(rgb).quantize(16)
    shown = np.asarray(palette.convert("RGB")).copy()
    shown[np.asarray(palette) == 3] = 255
    keyed = rgb.copy()
    keyed[:10, :10] = (1, 2, 3)
    keyed_white = keyed.copy()
    keyed_white[:10, :10] = 255
    return [
        Odd("alpha.png", encode(rgba, "PNG"), white, 1),
        Odd("alpha.webp", encode(rgba, "WEBP", lossless=True, exact=True), white, 1),
        Odd("grey-alpha.png", encode(np.stack([plane, alpha], -1), "PNG"), three(white_grey), 1),
        Odd("palette-hole.png", encode(palette, "PNG", transparency=3), shown),
        Odd("palette-alpha.png", encode(palette, "PNG", transparency=bytes([255, 255, 255, 0])), shown),
        Odd("palette-hole.gif", encode(palette, "GIF", transparency=3), shown),
        Odd("colour-key.png", encode(keyed, "PNG", transparency=(1, 2, 3)), keyed_white),
    ]


def _odd_orientations() -> list[Odd]:
    """Stored as a camera would hold it, so that all give the same upright picture; and EXIF that makes no sense."""
    rgb = picture()
    turned = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb, -1),
        0: rgb,
        9: rgb,
        65535: rgb,
    }
    files = []
    for value, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = value
        stored = np.ascontiguousarray(stored)
        for kind, suffix in (("PNG", "png"), ("TIFF", "tif"), ("WEBP", "webp")):
            options = {"lossless": True} if kind == "WEBP" else {}
            files.append(Odd(f"turned-{value}.{suffix}", encode(stored, kind, exif=exif, **options), rgb))
        jpeg = encode(stored, "JPEG", exif=exif, quality=100, subsampling=0)
        files.append(Odd(f"turned-{value}.jpg", jpeg, rgb, 3))
    for name, exif_bytes in (
        ("garbage", b"Exif\0\0" + b"\x7f" * 40),
        ("cut", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        ("far", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\xff\0\0\xff\xff\xff\0\0\0\0\0"),
        ("loop", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
    ):
        jpeg = encode(rgb, "JPEG", exif=exif_bytes, quality=100, subsampling=0)
        files.append(Odd(f"exif-{name}.jpg", jpeg, rgb, 3))
    return files


def _odd_containers() -> list[Odd]:
    rgb = picture()
    others = [Image.fromarray(picture(seed)[::-1]) for seed in (1, 2)]
    series: dict[str, Any] = {"save_all": True, "append_images": others}
    palette = Image.fromarray(rgb).quantize(64)
    gif = encode(palette, "GIF", save_all=True, append_images=[other.quantize(64) for other in others])
    return [
        Odd("png-called.jpg", encode(rgb, "PNG"), rgb),
        Odd("no-suffix-needed.gif", encode(rgb, "PNG"), rgb),
        Odd("interlaced.png", _interlaced(rgb), rgb),
        Odd("animated.gif", gif, np.asarray(palette.convert("RGB"))),
        Odd("animated.png", encode(rgb, "PNG", **series), rgb),
        Odd("animated.webp", encode(rgb, "WEBP", lossless=True, **series), rgb),
        Odd("pages.tif", encode(rgb, "TIFF", **series), rgb),
        Odd("packed.tif", encode(rgb, "TIFF", compression="tiff_lzw"), rgb),
        Odd("two-pictures.jpg", encode(rgb, "MPO", quality=100, subsampling=0, **series), rgb, 3),
        Odd("sliver.png", encode(rgb[:1], "PNG"), rgb[:1]),
        Odd("dot.png", encode(rgb[:1, :1], "PNG"), rgb[:1, :1]),
    ]


def _interlaced(rgb: np.ndarray) -> bytes:
    """Adam7: seven passes over a grid, each a small picture."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    rows = [
        b"\0" + np.ascontiguousarray(row).tobytes()
        for top, down, left, right in passes
        for row in rgb[top::down, left::right]
    ]
    plain = png(rgb.shape[1], rgb.shape[0], colour=2, rows=b"".join(rows))
    header = bytearray(plain[12:29])
    header[16] = 1
    return plain[:12] + bytes(header) + struct.pack(">I", zlib.crc32(bytes(header))) + plain[33:]
