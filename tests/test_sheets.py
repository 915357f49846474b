"""Sheets: pictures where they belong, captions that fit whatever they say."""

import numpy as np
import pytest
import torch
from PIL import Image

from swindow.sheets import Tile, augmented_batch, clean, label_texts, sheet, thumbnail, to_picture

RED, BLUE = (220, 20, 30), (10, 20, 230)


def solid(colour, size=(40, 40)):
    return Image.new("RGB", size, colour)


def found(paper, colour):
    """Rows and columns that hold the colour."""
    there = (np.asarray(paper) == colour).all(axis=2)
    return np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))


def test_tiles_stand_in_reading_order():
    paper = sheet([Tile(solid(RED), "a"), Tile(solid(BLUE), "b"), Tile(solid(RED), "c")], side=40)
    rows, columns = found(paper, BLUE)
    red_rows, red_columns = found(paper, RED)
    assert (len(rows), len(columns)) == (40, 40)
    assert rows[0] == red_rows[0]
    assert columns[0] > red_columns[-1]
    assert len(red_rows) == 80
    assert len(red_columns) == 40


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (5, 3), (17, 5), (64, 8), (100, 8)])
def test_the_grid_is_about_as_wide_as_high(count, columns):
    paper = sheet([Tile(solid(BLUE), "x")] * count, side=40)
    edges = np.diff(np.concatenate([[0], (np.asarray(paper) == BLUE).all(axis=2).any(axis=0).astype(int), [0]]))
    assert (edges == 1).sum() == columns


def test_a_bar_is_as_long_as_its_share():
    paper = np.asarray(sheet([Tile(solid(RED, (200, 200)), "a", share=0.25)], side=200))
    bar = (paper == (0x2F, 0x6F, 0xDE)).all(axis=2)
    assert bar.any(axis=0).sum() == 50


def test_a_caption_never_leaves_its_tile():
    for title in ("wide " * 40, "一" * 80, "m" * 500, "f" * 30):
        paper = np.asarray(sheet([Tile(None, "", share=0.5), Tile(None, title, title, 1.0), Tile(None, "")], side=200))
        below = paper[24 + 205 :, :]
        assert (below[:, 24 + 200 : 24 + 218] == 255).all()
        assert (below[:, 24 + 418 :] == 255).all()
        assert (below[:, 24 + 218 : 24 + 418] != 255).any()


@pytest.mark.parametrize(
    "text", ["", "\n", "a\nb\tc", "\x00\x1b[31m", "\udcff", "עברית العربية", "👩‍👩‍👧 🏳️‍🌈", "é" * 9, "\u202e"]
)
def test_any_text_can_be_written(text):
    paper = sheet([Tile(solid(RED), text, text, 0.5), Tile(None, text, text)], heading=text, footer=text)
    assert paper.getpixel((24 + 84, paper.height // 3)) is not None
    assert "\n" not in clean(text)
    clean(text).encode("utf-8")


def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink():
    pixels = torch.randint(256, (3, 5, 8), dtype=torch.uint8)
    grown = np.asarray(thumbnail(pixels, 50))
    assert grown.shape == (30, 48, 3)
    np.testing.assert_array_equal(grown[3::6, 3::6], pixels.permute(1, 2, 0).numpy())
    assert thumbnail(torch.zeros(3, 400, 100, dtype=torch.uint8), 50).size == (12, 50)
    assert thumbnail(torch.zeros(3, 1, 5000, dtype=torch.uint8), 50).size == (50, 1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB"), (7, "RGB")])
def test_any_number_of_channels_can_be_shown(channels, mode):
    pixels = torch.randint(256, (channels, 4, 6), dtype=torch.uint8)
    picture = to_picture(pixels)
    assert (picture.mode, picture.size) == (mode, (6, 4))
    first = np.asarray(picture) if mode == "L" else np.asarray(picture)[..., 0]
    np.testing.assert_array_equal(first, pixels[0].numpy())


def test_labels_in_words():
    classes = ("cat", "dog", "owl")
    assert label_texts(torch.tensor([2, 0]), classes) == ["owl", "cat"]
    soft = torch.tensor([[0.0, 1.0, 0.0], [0.7, 0.0, 0.3], [0.998, 0.001, 0.001]])
    assert label_texts(soft, classes) == ["dog", "70% cat + 30% owl", "cat"]


def test_a_batch_is_shown_up_to_a_limit():
    images = torch.zeros(9, 3, 16, 16, dtype=torch.uint8)
    images[:, 0] = 255
    labels = torch.zeros(9, dtype=torch.int64)
    few, all_ = (augmented_batch(images, labels, ("cat",), most=most, side=16) for most in (4, 9))
    count = [(np.asarray(paper) == (255, 0, 0)).all(axis=2).sum() // 256 for paper in (few, all_)]
    assert count == [4, 9]
