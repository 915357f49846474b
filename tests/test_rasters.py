"""Windows of pictures: the same pixels as the whole picture's, and no more of it read than they need."""

import gc
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from swindow import rasters
from swindow.errors import DataError, MissingExtra, ShapeError
from swindow.images import ImageLimits, ImageTooLarge, read_image
from swindow.rasters import InMemory, Mapped, Raster, Tiles, open_raster

tifffile = pytest.importorskip("tifffile", reason="pip install 'swindow[large]'")
WINDOWS = [(0, 0, 5, 7), (30, 40, 33, 50), (99, 129, 1, 1), (0, 0, 100, 130), (31, 0, 2, 130)]


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Values over the whole range of a type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.fixture
def small(monkeypatch):
    """Has every TIFF file read by its tiles."""
    monkeypatch.setattr(rasters, "BIG", 0)


def same_windows(raster: Raster, wanted: torch.Tensor) -> None:
    assert isinstance(raster, Raster)
    assert (raster.channels, raster.height, raster.width) == tuple(wanted.shape)
    for top, left, height, width in WINDOWS:
        found = raster.window(top, left, height, width)
        assert found.dtype == torch.uint8
        assert torch.equal(found, wanted[:, top : top + height, left : left + width])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_files_that_are_decoded_whole(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(100, 130, 3)).save(path)
    raster = open_raster(path)
    assert isinstance(raster, InMemory)
    same_windows(raster, read_image(path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("array", [noise(100, 130), noise(100, 130, 3), noise(100, 130, dtype=np.uint16),
                                   noise(100, 130, 3) / 255])  # fmt: skip
def test_arrays_are_mapped(tmp_path, array, channels):
    np.save(tmp_path / "a.npy", array)
    raster = open_raster(tmp_path / "a.npy", channels=channels)
    assert isinstance(raster, Mapped)
    same_windows(raster, read_image(array, channels=channels))


def test_arrays_of_any_number_of_channels(tmp_path):
    np.save(tmp_path / "a.npy", noise(100, 130, 5))
    same_windows(open_raster(tmp_path / "a.npy", channels=5), torch.from_numpy(noise(100, 130, 5)).permute(2, 0, 1))


FORMS = {
    "tiles": {"tile": (32, 48)},
    "deflate": {"tile": (32, 48), "compression": "zlib"},
    "predicted": {"tile": (16, 16), "compression": "zlib", "predictor": True},
    "lzma": {"tile": (64, 64), "compression": "lzma"},
    "strips": {"rowsperstrip": 7},
    "one strip": {"rowsperstrip": 100},
    "planes": {"tile": (32, 32), "planarconfig": "separate"},
    "big": {"tile": (32, 32), "bigtiff": True},
    "other order": {"tile": (32, 32), "byteorder": ">"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_files_by_their_tiles(tmp_path, small, form, dtype):
    array = noise(100, 130, 3, dtype=dtype)
    stored = array.transpose(2, 0, 1) if form == "planes" else array
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **FORMS[form])
    raster = open_raster(tmp_path / "a.tif")
    assert isinstance(raster, Tiles)
    same_windows(raster, read_image(array))
    raster.close()


def test_packed_bits_and_grey_and_many_channels(tmp_path, small):
    Image.fromarray(noise(100, 130)).save(tmp_path / "grey.tif", compression="packbits")
    for channels in (1, 3):
        raster = open_raster(tmp_path / "grey.tif", channels=channels)
        assert isinstance(raster, Tiles)
        same_windows(raster, read_image(noise(100, 130), channels=channels))
        raster.close()
    tifffile.imwrite(tmp_path / "five.tif", noise(100, 130, 5), tile=(32, 32), photometric="minisblack",
                     planarconfig="contig")  # fmt: skip
    raster = open_raster(tmp_path / "five.tif", channels=5)
    same_windows(raster, torch.from_numpy(noise(100, 130, 5)).permute(2, 0, 1))
    raster.close()


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_a_window_of_intensities(tmp_path, small, kind):
    values = noise(100, 130, dtype=np.uint16)
    path = tmp_path / f"a.{kind}"
    np.save(path, values) if kind == "npy" else tifffile.imwrite(path, values, tile=(32, 32))
    raster = open_raster(path, channels=1, intensity=(1000.0, 30000.0))
    same_windows(raster, read_image(values, channels=1, intensity=(1000.0, 30000.0)))
    assert raster.window(0, 0, 100, 130).float().mean() > 120


def test_what_tiles_cannot_give_is_decoded_whole(tmp_path, small):
    turned = Image.fromarray(noise(130, 100, 3)).getexif()
    turned[274] = 6
    Image.fromarray(noise(130, 100, 3)).save(tmp_path / "turned.tif", exif=turned)
    Image.fromarray(noise(100, 130, 4), "RGBA").save(tmp_path / "alpha.tif")
    Image.fromarray(noise(100, 130)).convert("P").save(tmp_path / "palette.tif")
    Image.fromarray(noise(100, 130, 3)).save(tmp_path / "jpeg.tif", compression="jpeg")
    for path in sorted(tmp_path.iterdir()):
        raster = open_raster(path)
        assert isinstance(raster, InMemory)
        same_windows(raster, read_image(path))


def test_a_compression_without_its_decoder_is_named_where_tiles_are_the_only_way(tmp_path, monkeypatch):
    Image.fromarray(noise(100, 130, 3)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None, 8: None})  # as without imagecodecs
    assert isinstance(open_raster(tmp_path / "lzw.tif"), InMemory)
    with pytest.raises(DataError, match=r"lzw\.tif: tiles compressed by LZW need imagecodecs"):
        open_raster(tmp_path / "lzw.tif", channels=5)


def test_without_tifffile_files_are_decoded_whole(tmp_path, small, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(100, 130, 3), tile=(32, 32))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(open_raster(tmp_path / "a.tif"), InMemory)
    with pytest.raises(MissingExtra, match=r"pip install 'swindow\[large\]'"):
        open_raster(tmp_path / "a.tif", channels=4)


def test_few_tiles_are_kept_and_few_are_read_twice(tmp_path, small, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(256, 256, 3), tile=(32, 32))
    monkeypatch.setattr(rasters, "_KEPT", 16 * 32 * 32 * 3)
    raster = open_raster(tmp_path / "a.tif")
    read = []
    monkeypatch.setattr(raster, "_decode", lambda number, decode=raster._decode: read.append(number) or decode(number))
    for left in range(0, 193, 24):  # a window of 64 that slides through a row
        raster.window(0, left, 64, 64)
        assert len(raster._kept) <= 16
    assert sorted(read) == list(range(16))
    raster.close()


def test_threads_may_share_a_raster(tmp_path, small):
    array = noise(200, 200, 3)
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(32, 32), compression="zlib")
    raster, wanted = open_raster(tmp_path / "a.tif"), torch.from_numpy(array).permute(2, 0, 1)
    places = [(top, left) for top in range(0, 150, 25) for left in range(0, 150, 25)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: raster.window(*place, 50, 50), places))
    assert all(
        torch.equal(part, wanted[:, top : top + 50, left : left + 50])
        for part, (top, left) in zip(found, places, strict=True)
    )
    raster.close()


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 101, 1), (0, 129, 1, 2), (0, 0, 0, 1)])
def test_windows_lie_inside(window):
    with pytest.raises(ShapeError, match="does not lie inside of a picture of 100 × 130"):
        InMemory(torch.zeros(3, 100, 130, dtype=torch.uint8)).window(*window)


def test_bad_files_are_named(tmp_path, small):
    (tmp_path / "cut.npy").write_bytes(npy(noise(50, 50))[:900])
    (tmp_path / "objects.npy").write_bytes(npy(np.array([{}]), allow_pickle=True))
    (tmp_path / "volume.npy").write_bytes(npy(noise(2, 5, 5, 5)))
    tifffile.imwrite(tmp_path / "a.tif", noise(100, 130, 3), tile=(32, 32), compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "hurt.tif").write_bytes(whole.replace(whole[9000:9050], bytes(50)))
    for name, reason in {"cut.npy": "cannot be read", "objects.npy": "cannot be read", "volume.npy": "h w or h w C",
                         "absent.tif": "no such file"}.items():  # fmt: skip
        with pytest.raises(DataError, match=rf"{name}: .*{reason}") as caught:
            open_raster(tmp_path / name)
        assert "\n" not in str(caught.value)
    raster = open_raster(tmp_path / "hurt.tif")
    with pytest.raises(DataError, match=r"hurt\.tif: tile \d+ of 20 cannot be read"):
        raster.window(0, 0, 100, 130)
    raster.close()


def test_a_missing_and_a_cut_tile_are_named(tmp_path, small):
    tifffile.imwrite(tmp_path / "a.tif", noise(100, 130, 3), tile=(32, 32))
    raster = open_raster(tmp_path / "a.tif")
    raster.page.databytecounts = (*raster.page.databytecounts[:19], 10**6)
    with pytest.raises(DataError, match="tile 20 of 20 is cut off"):
        raster.window(99, 129, 1, 1)
    raster.page.databytecounts = (0, *raster.page.databytecounts[1:])
    with pytest.raises(DataError, match="tile 1 of 20 is missing"):
        raster.window(0, 0, 1, 1)
    raster.close()


def test_a_raster_that_nobody_holds_closes_its_file(tmp_path, small):
    tifffile.imwrite(tmp_path / "a.tif", noise(100, 130, 3), tile=(32, 32))
    raster = open_raster(tmp_path / "a.tif")
    handle = raster.file.filehandle
    del raster
    gc.collect()
    assert handle.closed


def test_floats_beyond_one_are_refused_with_the_files_name(tmp_path):
    np.save(tmp_path / "hot.npy", np.full((4, 4), 3.5, np.float32))
    with pytest.raises(DataError, match=r"hot\.npy: .*0\.\.1"):
        open_raster(tmp_path / "hot.npy").window(0, 0, 2, 2)


def test_the_limit_of_pixels_holds_whichever_way_a_picture_is_read(tmp_path, small):
    np.save(tmp_path / "a.npy", noise(100, 130))
    tifffile.imwrite(tmp_path / "a.tif", noise(100, 130), tile=(32, 32))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ImageTooLarge, match=r"13,000 pixels, over the limit of 12,999"):
            open_raster(path, limits=ImageLimits(max_pixels=12_999))


def test_a_window_of_a_large_file_costs_a_window(tmp_path):
    path = tmp_path / "large.tif"
    tiles = (np.zeros((512, 512, 3), np.uint8) for _ in range(400))
    large = {"shape": (10_000, 10_000, 3), "dtype": np.uint8, "tile": (512, 512), "photometric": "rgb"}
    tifffile.imwrite(path, tiles, compression="zlib", **large)
    program = f"""
import tifffile, torch
from swindow.devices import peak_memory
from swindow.rasters import open_raster
before = peak_memory(torch.device("cpu"))
raster = open_raster({str(path)!r})
assert type(raster).__name__ == "Tiles"
assert sum(int(raster.window(top, left, 512, 512).sum()) for top in (0, 9488) for left in (0, 5000, 9488)) == 0
print(peak_memory(torch.device("cpu")) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 2**20  # decoded whole: 300 MB


def npy(array: np.ndarray, **options: bool) -> bytes:
    """The bytes of an array's file."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()
