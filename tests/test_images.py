"""The image gate: damaged and lying files are refused by name, unusual ones give the pixels they should."""

import io
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import hostile
from swindow.errors import ConfigError, DataError
from swindow.images import ImageLimits, ImageTooLarge, name_of, probe_image, read_image, read_stored

ODD = hostile.odd_files()


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(int)


@pytest.fixture(scope="module", name="bad")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    return hostile.write_bad(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_an_unusual_file_gives_the_pixels_of_its_plain_twin(odd: hostile.Odd) -> None:
    image = read_image(odd.data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, *odd.pixels.shape[:2])
    assert np.abs(as_array(image) - odd.pixels).max() <= odd.tolerance
    grey = read_image(odd.data, channels=1)
    assert grey.shape == (1, *odd.pixels.shape[:2])
    assert np.abs(as_array(grey)[..., 0] - hostile.grey(odd.pixels).astype(int)).max() <= odd.tolerance
    header = probe_image(odd.data)
    assert (header.height, header.width) == odd.pixels.shape[:2]


def test_sixteen_bits_are_scaled_and_not_saturated() -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    image = read_image(hostile.encode(Image.fromarray(ramp), "PNG"))
    expected = np.rint(ramp / 257).astype(int)
    np.testing.assert_array_equal(as_array(image)[..., 0], expected)
    assert len(np.unique(image)) == 256


@pytest.mark.parametrize("name", [*hostile.TOO_LARGE, *hostile.UNREADABLE, "gigabyte.jpg", "nowhere.jpg", "pipe.jpg"])
def test_a_bad_file_is_refused_in_one_line_that_names_it(bad: dict[Path, str], name: str) -> None:
    path = next(path for path in bad if path.name == name)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert (type(caught.value) is ImageTooLarge) == (bad[path] == "too-large")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert " at 0x" not in message


def test_a_name_with_a_line_break_stays_on_one_line(bad: dict[Path, str]) -> None:
    path = next(path for path in bad if "\n" in path.name)
    with pytest.raises(DataError, match=r"line\\nbreak\.png: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert name_of("caf\u00e9.jpg") == "café.jpg"
    assert name_of("\udcff.jpg") == "\\udcff.jpg"  # bytes that are not UTF-8


@pytest.mark.parametrize("name", [*hostile.TOO_LARGE, "gigabyte.jpg", "profile-bomb.png", "text-bomb.png"])
def test_a_bomb_is_refused_at_once_and_without_memory(bad: dict[Path, str], name: str) -> None:
    path = next(path for path in bad if path.name == name)

    def refuse() -> None:
        with pytest.raises(DataError):
            read_image(path)

    refuse()  # imports what the format needs
    seconds = min(_seconds(refuse) for _ in range(3))
    assert seconds <= 0.1
    grown = _grown(refuse)
    assert grown is None or grown <= 50 * 2**20


def _seconds(act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _grown(act: Callable[[], None]) -> int | None:
    """Bytes by which the resident set peaks above its start, where the system says so."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = _peak(status)
        act()
        return _peak(status) - before
    except OSError:
        return None


def _peak(status: Path) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_the_limit_is_ours_whatever_pillow_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would warn above its own limit and refuse above twice that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pixels = hostile.HEIGHT * hostile.WIDTH
    for kind in ("PNG", "TIFF", "WEBP", "GIF"):
        data = hostile.encode(hostile.picture(), kind)
        assert read_image(data).shape == (3, hostile.HEIGHT, hostile.WIDTH)
        assert read_image(data, limits=ImageLimits(max_pixels=pixels)).shape[0] == 3
        with pytest.raises(ImageTooLarge, match=f"promises {pixels:,} pixels, over the limit of {pixels - 1:,}"):
            read_image(data, limits=ImageLimits(max_pixels=pixels - 1))
        with pytest.raises(ImageTooLarge, match="--max-pixels"):
            probe_image(data, limits=ImageLimits(max_pixels=pixels - 1))
    with pytest.raises(ImageTooLarge, match="over the limit"):
        read_image(Image.new("L", (64, 64)), limits=ImageLimits(max_pixels=4095))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_nothing_global_is_left_changed(bad: dict[Path, str]) -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES
    read_image(ODD[0].data)
    for path in bad:
        with pytest.raises(DataError):
            read_image(path)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES) == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_threads_with_different_limits_do_not_meet() -> None:
    data = hostile.encode(hostile.picture(), "TIFF")
    wrong: list[str] = []

    def read(limit: int, allowed: bool) -> None:
        for _ in range(40):
            try:
                read_image(data, limits=ImageLimits(max_pixels=limit))
                outcome = True
            except ImageTooLarge:
                outcome = False
            if outcome != allowed:
                wrong.append(f"{limit}: {outcome}")

    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    threads = [threading.Thread(target=read, args=args) for args in ((3072, True), (3071, False)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_a_file_over_the_byte_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "fine.png"
    path.write_bytes(hostile.encode(hostile.picture(), "PNG"))
    size = path.stat().st_size
    assert read_image(path, limits=ImageLimits(max_file_bytes=size)).shape[0] == 3
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(ImageTooLarge, match=f"more than {size - 1:,} bytes"):
            read_image(source, limits=ImageLimits(max_file_bytes=size - 1))


def test_every_way_to_hand_a_picture_over_gives_the_same(tmp_path: Path) -> None:
    rgb = hostile.picture()
    path = tmp_path / "picture.png"
    path.write_bytes(hostile.encode(rgb, "PNG"))
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    with path.open("rb") as stream:
        from_stream = read_image(stream)
    sources: list[Any] = [str(path), path, path.read_bytes(), Image.open(path), rgb, tensor]
    sources += [rgb.astype(np.uint16) * 257, (rgb / 255).astype(np.float32), tensor.float() / 255, tensor / 255]
    for image in (from_stream, *(read_image(source) for source in sources)):
        np.testing.assert_array_equal(as_array(image), rgb)
    with pytest.raises(DataError, match="not a regular file"):
        read_image(tmp_path)
    with pytest.raises(DataError, match=r"absent\.png: no such file; check the path"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="cannot be read"):
        read_image("nul\0byte.png")


def test_a_tensor_read_is_a_copy() -> None:
    source = torch.zeros(3, 4, 4, dtype=torch.uint8)
    read_image(source)[0, 0, 0] = 9
    assert source.sum() == 0
    frozen = np.zeros((4, 4), np.uint8)
    frozen.setflags(write=False)
    assert read_image(frozen[::-1, ::-1]).shape == (3, 4, 4)


def test_arrays_change_channels_as_files_do() -> None:
    rgb = hostile.picture()
    plane = hostile.grey(rgb)
    alpha = np.tile(np.arange(hostile.WIDTH, dtype=np.uint8) * 4, (hostile.HEIGHT, 1))[..., None]
    rgba = np.concatenate([rgb, alpha], -1)
    np.testing.assert_array_equal(as_array(read_image(rgb, channels=1))[..., 0], plane)
    np.testing.assert_array_equal(as_array(read_image(plane)), hostile.three(plane))
    np.testing.assert_array_equal(as_array(read_image(plane > 99, channels=1))[..., 0], (plane > 99) * 255)
    over_white = as_array(read_image(Image.fromarray(rgba)))
    assert np.abs(as_array(read_image(rgba)) - over_white).max() <= 1
    grey_alpha = np.concatenate([plane[..., None], alpha], -1)
    over_white = as_array(read_image(Image.fromarray(grey_alpha), channels=1))
    assert np.abs(as_array(read_image(grey_alpha, channels=1)) - over_white).max() <= 1
    for channels in (2, 4, 5):
        many = np.zeros((4, 6, channels), np.uint8)
        assert read_image(many, channels=channels).shape == (channels, 4, 6)


@pytest.mark.parametrize(
    ("source", "channels", "message"),
    [
        (np.full((4, 4), np.nan), 3, "array with pixels that are not finite"),
        (torch.full((1, 4, 4), torch.inf), 3, "tensor with pixels that are not finite"),
        (np.full((4, 4), 255.0), 3, "array with pixels from 255 to 255, where float64 must lie in 0..1"),
        (np.full((4, 4), -0.5), 3, "must lie in 0..1; repair or rescale"),
        (np.zeros((4, 4), np.int64), 3, "array of int64 is no image; give uint8"),
        (np.zeros((4, 0), np.uint8), 3, "is no image; give h w or h w C"),
        (torch.zeros(1, 3, 4, 4), 3, r"tensor of shape \(1, 3, 4, 4\) is no image; give h w or C h w"),
        (np.zeros((3, 64, 64), np.uint8), 3, "image of 64 channels where 3 are wanted; arrays are h w C"),
        (np.zeros((4, 4, 3), np.uint8), 5, "image of 3 channels where 5 are wanted"),
        (b"GIF89a", 4, "an image file gives 1 or 3 channels, not 4"),
    ],
)
def test_arrays_that_are_no_images(source: Any, channels: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_image(source, channels=channels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_pillow_images_of_every_mode(mode: str) -> None:
    """Grey 102 in the middle of its range, in every mode that can hold it."""
    value: Any = {"I": 102 * 257, "I;16": 102 * 257, "F": 102 / 255, "1": 1, "LA": (102, 255), "La": (102, 255)}
    full = {"RGB": 0, "RGBA": 255, "RGBa": 255, "RGBX": 0, "CMYK": 0}
    colour = value.get(mode, 102)
    if mode in ("PA", "P"):
        image = Image.new("L", (4, 4), 102).convert("P").convert(mode)
    elif mode == "CMYK":
        image = Image.new(mode, (4, 4), (153, 153, 153, 0))
    elif mode == "YCbCr":
        image = Image.new(mode, (4, 4), (102, 128, 128))
    elif mode == "HSV":
        image = Image.new(mode, (4, 4), (0, 0, 102))
    else:
        image = Image.new(mode, (4, 4), (102, 102, 102, full[mode])[: len(mode)] if mode in full else colour)
    expected = 255 if mode == "1" else 102
    assert (read_image(image) == expected).all()
    assert (read_image(image, channels=1) == expected).all()


def test_a_pillow_image_of_a_mode_that_has_no_meaning_is_refused() -> None:
    with pytest.raises(DataError, match=r"pixels from -5 to -5, where int32 must lie in 0\.\.65535"):
        read_image(Image.new("I", (4, 4), -5))


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"has no pixels \(0 × 4\); replace"):
        read_image(Image.new("RGB", (0, 4)))


def test_headers_say_grey_or_colour(tmp_path: Path) -> None:
    path = tmp_path / "grey.jpg"
    path.write_bytes(hostile.encode(hostile.grey(hostile.picture()), "JPEG"))
    assert probe_image(path) == (hostile.WIDTH, hostile.HEIGHT, "L", 1, "JPEG")
    assert probe_image(hostile.encode(hostile.picture(), "PNG")).channels == 3


def test_a_thousand_mutants_end_in_pixels_or_a_data_error() -> None:
    """Random bytes of good files changed, cut out or doubled; warnings are errors here, so those count too."""
    draw = np.random.default_rng(7)
    files = [odd.data for odd in ODD if len(odd.data) < 20_000 and not odd.name.startswith("turned-2")]
    refused = []
    for trial in range(1000):
        data = bytearray(files[trial % len(files)])
        for place in draw.integers(0, len(data), draw.integers(1, 6)):
            data[place] = draw.integers(256)
        start = draw.integers(len(data))
        if trial % 4 == 0:
            del data[start : start + draw.integers(1, 50)]
        elif trial % 4 == 1:
            data[start:start] = data[start : start + draw.integers(1, 50)]
        try:
            read_image(bytes(data), limits=ImageLimits(max_pixels=2_000_000))
        except DataError as error:
            refused.append(str(error))
    assert 200 < len(refused) < 1000
    assert not any("\n" in message for message in refused)


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        ImageLimits(max_pixels=0)


def test_a_window_of_intensities() -> None:
    """What has more than 8 bits is mapped from the window to 0..255 and clipped; 8 bits stay what they are."""
    values = np.array([[0, 1000, 2000], [3000, 40_000, 65_535]], np.uint16)
    expected = np.rint(np.clip((values.astype(float) - 1000) / 2000, 0, 1) * 255)
    window = (1000.0, 3000.0)
    for image in (
        values,
        values.astype(np.float32),
        values.astype(np.int32),
        torch.from_numpy(values.astype(np.float64)),
        hostile.encode(Image.fromarray(values), "PNG"),
        hostile.encode(Image.fromarray(values.astype(np.float32)), "TIFF"),
        hostile.encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
    ):
        np.testing.assert_array_equal(read_image(image, channels=1, intensity=window)[0], expected)
    five = np.dstack([values] * 5)
    assert read_image(five, channels=5, intensity=window).shape == (5, 2, 3)
    small = hostile.picture(height=4, width=5)
    for image in (small, hostile.encode(small, "PNG")):
        np.testing.assert_array_equal(as_array(read_image(image, intensity=window)), small)
    with pytest.raises(DataError, match="array with pixels that are not finite; repair it"):
        read_image(np.array([[np.nan, 1.0]]), intensity=window)
    with pytest.raises(DataError, match="not finite"):
        read_image(hostile.UNREADABLE["nan.tif"](), intensity=window)
    for odd in ((2.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(ConfigError, match="is not a lower and a higher value"):
            read_image(values, intensity=odd)


def test_what_a_file_stores() -> None:
    """Masks need the numbers, not their colours."""
    indices = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([9, 8, 7, 6, 5, 4, *[1] * 762])
    stored = read_stored(hostile.encode(image, "PNG"))
    assert (stored.mode, stored.format) == ("P", "PNG")
    np.testing.assert_array_equal(stored.values, indices)
    assert stored.palette is not None
    assert stored.palette[:2].tolist() == [[9, 8, 7], [6, 5, 4]]
    deep = np.array([[0, 300, 65_535]], np.uint16)
    stored = read_stored(hostile.encode(Image.fromarray(deep), "PNG"))
    assert stored.palette is None
    np.testing.assert_array_equal(stored.values, deep)
    for name in ("png-50.png", "empty.jpg", "bad-pixel-checksum.png"):
        with pytest.raises(DataError):
            read_stored(hostile.UNREADABLE[name]())
    with pytest.raises(ImageTooLarge):
        read_stored(hostile.TOO_LARGE["one-bit-30000.png"]())
