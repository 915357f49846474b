"""Overlays: every class in its colour where its pixels are, small things seen at any size, legends that say all."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from swindow.errors import ConfigError, ShapeError
from swindow.overlays import (
    GREY,
    LIGHT_TINT,
    TINT,
    Compared,
    background_of,
    colours_of,
    comparison,
    comparison_sheet,
    legend,
    overlay,
    reduced,
    with_legend,
)
from swindow.rasters import InMemory
from swindow.shapes import IGNORE

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def grey(height, width, value=100, channels=3):
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def places(picture, colour):
    """Rows and columns of the pixels that have exactly this colour."""
    return np.argwhere((np.asarray(picture) == colour).all(axis=2))


def blend(colour, below, tint):
    """As Pillow's composite does, within rounding."""
    return tuple(pytest.approx(below + (value - below) * round(255 * tint) / 255, abs=1) for value in colour)


def test_areas_are_tinted_and_outlined_in_their_own_colour():
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 20:40] = 1
    drawn = overlay(grey(40, 50), mask, COLOURS)
    assert drawn.size == (50, 40)
    assert drawn.getpixel((30, 20)) == blend(COLOURS[1], 100, TINT)
    assert drawn.getpixel((5, 5)) == blend(COLOURS[0], 100, TINT)
    rows, columns = np.array(places(drawn, COLOURS[1])).T
    assert {(10, 20), (29, 39)} <= set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(rows) == 2 * 20 + 2 * 18  # one pixel wide, within the area
    assert len(places(drawn, COLOURS[0])) == 2 * 20 + 2 * 20  # and one around it, in the other's colour


def test_the_background_is_left_as_it_is():
    mask = torch.zeros(40, 40, dtype=torch.int64)
    mask[10:30, 10:30] = 2
    drawn = overlay(grey(40, 40, channels=1), mask, COLOURS, background=0)
    assert drawn.getpixel((9, 9)) == drawn.getpixel((0, 0)) == (100, 100, 100)
    assert drawn.getpixel((20, 20)) == blend(COLOURS[2], 100, LIGHT_TINT)
    assert drawn.getpixel((10, 10)) == COLOURS[2]
    assert overlay(grey(9, 9), np.zeros((9, 9), np.uint8), COLOURS, background=0).getcolors() == [(81, (100,) * 3)]


def test_what_does_not_count_is_hatched_in_grey():
    mask = torch.full((32, 32), IGNORE)
    mask[:, :8] = 0
    drawn = np.asarray(overlay(grey(32, 32, 255), mask, COLOURS))[:, 10:]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 2  # stripes and between
    assert (drawn[..., 0] == drawn[..., 1]).all()
    assert abs(int(drawn.min()) - GREY[0]) < 15
    assert (drawn[:-8] == drawn[8:]).all()


def test_small_pictures_are_enlarged_with_their_pixels_visible():
    mask = np.zeros((5, 8), np.uint8)
    mask[2, 3] = 1
    pixels = torch.randint(256, (3, 5, 8), dtype=torch.uint8)
    drawn = overlay(pixels, mask, COLOURS, side=100, background=0)
    assert drawn.size == (96, 60)
    rows, columns = places(drawn, COLOURS[1]).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 35, 36, 47)
    assert len(rows) == 4 * 12 - 4  # an outline, not a block
    np.testing.assert_array_equal(np.asarray(drawn)[::12, ::12], np.where(
        (mask == 1)[..., None], COLOURS[1], pixels.permute(1, 2, 0).numpy()))  # fmt: skip


@pytest.mark.parametrize("size", [(1000, 1000), (997, 1313), (2000, 30), (1, 5000)])
def test_nothing_small_is_lost_in_a_large_picture(size):
    mask = np.zeros(size, np.uint8)
    place = size[0] // 3, 2 * size[1] // 3
    mask[place] = 1  # a single pixel
    mask[: size[0] // 3] = 2
    drawn = overlay(grey(*size), mask, COLOURS, side=120, background=0)
    assert max(drawn.size) == 120
    there = places(drawn, COLOURS[1])
    assert len(there) == 1
    scale = np.array(drawn.size[::-1]) / size
    assert (np.abs(there[0] - np.array(place) * scale) <= 1).all()


def test_a_reduced_picture_is_the_mean_of_its_pixels():
    pixels = torch.randint(256, (3, 640, 500), dtype=torch.uint8)
    small = np.asarray(reduced(pixels, 64), np.float64)
    assert small.shape == (64, 50, 3)
    blocks = pixels.permute(1, 2, 0).numpy().reshape(64, 10, 50, 10, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 1
    whole = torch.arange(9 * 7, dtype=torch.uint8).reshape(1, 9, 7)
    np.testing.assert_array_equal(np.asarray(reduced(whole, None)), whole[0].numpy())


def test_a_large_picture_is_read_in_strips():
    asked = []

    class Watched(InMemory):
        def window(self, top, left, height, width):
            asked.append(height * width)
            return super().window(top, left, height, width)

    pixels, mask = grey(6000, 4000, channels=1), np.zeros((6000, 4000), np.uint8)
    mask[100:200, 100:200] = 1
    overlay(Watched(pixels), mask, COLOURS, side=200)
    asked.clear()
    tracemalloc.start()
    overlay(Watched(pixels), mask, COLOURS, side=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(asked) == 6000 * 4000
    assert max(asked) <= 2**20
    assert peak < 40e6  # 24 Mpixel of float32 would be 96 MB


def test_a_mask_that_does_not_belong_is_refused():
    with pytest.raises(ShapeError, match="a mask of 4 × 5 on a picture of 5 × 4 pixels"):
        overlay(grey(5, 4), np.zeros((4, 5), np.uint8), COLOURS)
    with pytest.raises(ConfigError, match="labels from 0 to 3 for 3 colours"):
        overlay(grey(1, 4), np.array([[0, 1, 2, 3]], np.uint8), COLOURS)
    with pytest.raises(ConfigError, match="labels from -2"):
        overlay(grey(1, 2), torch.tensor([[0, -2]]), COLOURS)


def test_a_legend_names_what_is_there_the_largest_first():
    classes, shares = ("a", "b", "c"), (0.25, 0.0, 0.75)
    drawn = legend(classes, COLOURS, shares, width=90)
    assert drawn.size == (90, 38)
    first, second = places(drawn, COLOURS[2])[:, 0], places(drawn, COLOURS[0])[:, 0]
    assert first.max() < second.min()
    assert not len(places(drawn, COLOURS[1]))
    assert legend(classes, COLOURS, shares, width=90, ignored=0.1).height == 57
    assert legend(classes, COLOURS, width=400).height == 19  # side by side where there is room
    assert legend((), (), width=40).size == (40, 1)


def test_a_long_legend_says_how_many_more():
    many = tuple(f"class {number}" for number in range(150))
    colours = colours_of(many, None)
    assert len(set(colours)) == 150
    drawn = legend(many, colours, width=90)
    assert drawn.height == 19 * 41
    shown = {tuple(pixel) for pixel in np.asarray(drawn)[8::19, 4].tolist()}
    assert shown == {*colours[:40], (255, 255, 255)}


@pytest.mark.parametrize("name", ["", "wide " * 60, "一" * 80, "\u202eabc", "a\nb\x1b[3m", "\udcff"])
def test_any_name_fits_into_a_legend(name):
    drawn = np.asarray(legend((name, "b"), COLOURS[:2], (0.5, 0.5), width=200))
    assert drawn.shape[1] == 200
    assert (drawn[:, 182:] == 255).all()


def test_picture_title_and_legend_stand_below_each_other():
    picture, key = Image.new("RGB", (60, 50), (9, 8, 7)), Image.new("RGB", (200, 19), (1, 2, 3))
    drawn = with_legend(picture, key, title="x" * 900)
    assert drawn.size == (224, 24 + 50 + 19 + 36)
    assert drawn.getpixel((12, 36)) == (9, 8, 7)
    assert drawn.getpixel((12, 36 + 50 + 12)) == (1, 2, 3)
    assert (np.asarray(drawn)[:30, 212:] == 255).all()


def test_truth_stands_beside_the_prediction():
    truth, answer = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[:, :10], answer[:, 20:] = 1, 2
    drawn = comparison(grey(20, 30), torch.from_numpy(truth).long(), answer, COLOURS, side=30, background=0)
    assert drawn.height == 20
    assert drawn.width == 3 * 30 + 2 * 18
    assert drawn.getpixel((0, 0)) == (100, 100, 100)
    assert (places(drawn, COLOURS[1])[:, 1] // 48 == 1).all()
    assert (places(drawn, COLOURS[2])[:, 1] // 48 == 2).all()


def test_a_sheet_of_comparisons_has_a_row_for_each_and_one_legend():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    hidden = torch.full((20, 20), IGNORE)

    def rows():
        yield Compared(grey(20, 20), mask, mask, "best: one", "mean IoU 100 %")
        yield Compared(grey(20, 20), hidden, mask, "worst: two")

    drawn = comparison_sheet(rows(), ("background", "thing", "absent"), COLOURS, side=20, background=0, heading="all")
    found = places(drawn, COLOURS[1])
    columns = found[:, 1] - 24
    assert {int(column) // 168 for column in columns} == {0, 1, 2}  # truth, prediction; 0 is the legend's
    assert len(places(drawn, COLOURS[0])) == 12 * 12  # the legend's square: the background itself is not painted
    assert not len(places(drawn, COLOURS[2]))
    assert comparison_sheet([], ("a",), COLOURS[:1]).width > 400


def test_backgrounds_and_colours_by_default():
    assert background_of(("left ventricle", "Background")) == 1
    assert background_of(("sky", "road")) is None
    assert colours_of(("background", "x"), None)[0] == (0, 0, 0)
    assert colours_of(("a", "b"), COLOURS[:2]) == COLOURS[:2]
