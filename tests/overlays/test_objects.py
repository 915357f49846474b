"""Objects drawn: boxes and masks where they are, names that can be read and keep clear of each other, at any size."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image, ImageDraw

from detections import detections
from swindow.data.legends import palette
from swindow.errors import ConfigError, ShapeError
from swindow.overlays import GREY, OUTCOMES, draw_detections, draw_objects, outcome_key
from swindow.overlays.objects import TINT
from swindow.overlays.tags import COVERED, MOST_TAGS, Tag, ink_on, place_tags, wordings, write_tag
from swindow.rasters import InMemory

CLASSES = ("cat", "dog", "a class with a rather long name")
COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def grey(height, width, value=100, channels=3):
    return torch.full((channels, height, width), value, dtype=torch.uint8)


def drawn(pixels, boxes, labels=None, scores=None, masks=None, **options):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    scores = scores if scores is None else torch.tensor(scores)
    return draw_objects(pixels, boxes, labels, scores, masks, CLASSES, COLOURS, **options)


def places(picture, colour):
    """Rows and columns of the pixels that have exactly this colour."""
    return np.argwhere((np.asarray(picture) == colour).all(axis=2))


def random_boxes(count, height, width, *, seed=0, largest=40):
    draw = np.random.default_rng(seed)
    start = draw.random((count, 2)) * (width - 8, height - 8)
    ends = np.minimum(start + 4 + draw.random((count, 2)) * largest, (width, height))
    return np.concatenate([start, ends], axis=1)


def tags_of(boxes, texts, canvas, size=12):
    return place_tags(np.array(boxes, float), texts, range(len(boxes)), canvas, size)


def test_boxes_are_outlined_in_the_colours_of_their_classes():
    picture = drawn(grey(60, 80), [[10, 20, 40, 50], [50, 5, 70, 30]], [0, 1], tags=False)
    assert picture.size == (960, 720)  # enlarged by a whole factor
    for colour, (left, top, right, below) in zip(COLOURS, [(120, 240, 480, 600), (600, 60, 840, 360)], strict=False):
        rows, columns = places(picture, colour).T
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (top, below, left, right)
        assert len(rows) == 2 * ((right - left) + (below - top)) * 2 - 16  # two pixels wide, hollow
    assert not len(places(picture, COLOURS[2]))


def test_a_picture_keeps_its_size_without_a_side():
    picture = drawn(grey(60, 80, channels=1), [[10, 20, 40, 50]], side=None, tags=False)
    assert picture.size == (80, 60)
    assert picture.getpixel((10, 20)) == picture.getpixel((39, 49)) == COLOURS[0]
    assert picture.getpixel((25, 35)) == (100, 100, 100)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_boxes_stand_out_from_any_picture(value):
    for colour in ((10, 10, 10), (90, 90, 90), (250, 250, 250)):
        picture = draw_objects(
            grey(50, 50, value),
            torch.tensor([[10.0, 10, 40, 40]]),
            torch.tensor([0]),
            None,
            None,
            ["x"],
            [colour],
            side=None,
            tags=False,
        )
        across = np.asarray(picture)[25, 5:25].astype(int).mean(axis=1)
        assert across.max() - across.min() > 55


def test_masks_are_tinted_and_outlined_and_the_surest_is_on_top():
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, 10:30, 10:30] = True
    masks[1, 20:38, 20:38] = True
    boxes = [[10, 10, 30, 30], [20, 20, 38, 38]]
    picture = np.asarray(drawn(grey(40, 40), boxes, [0, 1], masks=masks, side=None, tags=False)).astype(int)
    tinted = [round(100 + (value - 100) * TINT) for value in COLOURS[0]]
    assert np.abs(picture[15, 15] - tinted).max() <= 1
    both = [round(below + (value - below) * TINT) for value, below in zip(COLOURS[0], picture[34, 34], strict=True)]
    assert np.abs(picture[25, 25] - both).max() <= 1
    assert (picture[5, 5] == 100).all()


def test_masks_of_small_pictures_are_enlarged_and_nothing_of_large_ones_is_lost():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 5:15, 5:15] = True
    small = np.asarray(drawn(grey(20, 20), [[5, 5, 15, 15]], masks=mask, side=200, tags=False)).astype(int)
    assert (np.abs(small[60:140, 60:140] - small[100, 100]) <= 1).all()
    assert (small[:40] == 100).all()
    mask = torch.zeros(1, 3000, 2000, dtype=torch.bool)
    mask[0, 1501, 777] = True
    large = drawn(grey(3000, 2000), [[777, 1501, 778, 1502]], masks=mask, side=300, tags=False)
    assert large.size == (200, 300)
    rows, columns = places(large, COLOURS[0]).T
    assert len(rows)
    assert np.abs(rows - 150).max() <= 2
    assert np.abs(columns - 78).max() <= 2


def test_a_function_is_asked_for_one_mask_at_a_time_at_the_size_of_the_drawing():
    asked = []

    def mask_at(index, size):
        asked.append((index, size))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[:, : size[1] // 2] = True
        return mask

    picture = drawn(grey(400, 800), [[0, 0, 400, 400]] * 3, masks=mask_at, side=200, tags=False)
    assert asked == [(index, (100, 200)) for index in (2, 1, 0)]
    assert picture.getpixel((150, 50)) == (100, 100, 100)
    assert picture.getpixel((50, 50)) != (100, 100, 100)


def test_detections_are_drawn_where_their_masks_are():
    found = detections([[100, 100, 300, 200]], [0.9], [1], size=(400, 800), masks=torch.ones(1, 28, 28))
    picture = np.asarray(draw_detections(grey(400, 800), found, CLASSES, COLOURS, side=400, tags=False)).astype(int)
    changed = (picture != 100).any(axis=2)
    assert changed[50:100, 50:150].all()
    changed[48:102, 48:152] = False
    assert not changed.any()
    assert not (np.asarray(draw_detections(grey(40, 40), found[found.scores > 1], CLASSES, COLOURS)) != 100).any()


def test_large_pictures_take_little_memory_and_time():
    boxes = torch.from_numpy(random_boxes(300, 6000, 8000, largest=400)).float()
    found = detections(boxes, torch.linspace(1, 0.5, 300), [0] * 300, size=(6000, 8000), masks=torch.rand(300, 28, 28))
    pixels = grey(6000, 8000)
    tracemalloc.start()
    begun = time.process_time()
    picture = draw_detections(pixels, found, CLASSES, COLOURS)
    took, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert picture.size == (1024, 768)
    assert peak < 60e6  # of numpy and Pillow: a strip of the picture and the drawing
    assert took < 30


def test_names_and_scores_are_written_in_the_tags():
    with_names = np.asarray(drawn(grey(300, 300), [[50, 80, 250, 250]], [1], [0.87], side=None))
    without = np.asarray(drawn(grey(300, 300), [[50, 80, 250, 250]], [1], [0.87], side=None, tags=False))
    changed = np.argwhere((with_names != without).any(axis=2))
    assert changed[:, 0].max() < 82  # above the box, from its left side on
    assert changed[:, 1].min() == 50
    assert wordings("dog", 0.87, "", 12)[0] == "dog 0.87"
    assert wordings("dog", None, "missed", 12) == ["missed dog", "dog"]
    assert wordings("dog", 0.5, "false alarm", 12) == ["false alarm dog 0.50", "false alarm 0.50"]
    full, short, least = wordings("a class with a rather long name\n", 0.123, "", 12)
    assert full == "a class with a rather long name 0.12"
    assert short.startswith("a class with")
    assert short.endswith("… 0.12")
    assert least == "0.12"


def test_text_contrasts_with_its_tag():
    def luminance(colour):
        linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour in palette(100):
        light, dark = sorted((luminance(colour), luminance(ink_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
        paper = Image.new("RGB", (90, 30))
        write_tag(ImageDraw.Draw(paper), Tag("dog 0.87", 5, 5, 80, 21), colour, 12)
        assert {colour, ink_on(colour)} <= {found for _, found in paper.getcolors(10_000)}
        assert len(places(paper.crop((5, 5, 80, 21)), colour)) > 400


@pytest.mark.parametrize("canvas", [(400, 600), (60, 60), (32, 1024)])
@pytest.mark.parametrize("count", [1, 5, 300])
def test_tags_keep_inside_and_apart_and_hide_no_small_object(canvas, count):
    boxes = random_boxes(count, *canvas, seed=count)
    tags = place_tags(boxes, [wordings("nucleus", 0.5, "", 10)] * count, range(count), canvas, 10)
    there = [tag for tag in tags if tag is not None]
    for place, tag in enumerate(there):
        assert 0 <= tag.left < tag.right <= canvas[1]
        assert 0 <= tag.top < tag.bottom <= canvas[0]
        for other in there[:place]:
            apart = tag.right <= other.left or other.right <= tag.left or tag.bottom <= other.top
            assert apart or other.bottom <= tag.top
        for index, (left, top, right, below) in enumerate(boxes):
            if tags[index] is tag:
                continue
            wide, tall = min(tag.right, right) - max(tag.left, left), min(tag.bottom, below) - max(tag.top, top)
            assert max(wide, 0) * max(tall, 0) <= COVERED * (right - left) * (below - top) + 1e-6
    assert there or canvas == (60, 60)


def test_what_matters_most_is_named_first_and_in_full():
    boxes = [[20, 20, 60, 60]] * 12
    tags = tags_of(boxes, [wordings("nucleus", 0.9, "", 12)] * 12, (80, 120))
    assert tags[0].text == "nucleus 0.90"
    assert tags[-1] is None
    assert [tag is None for tag in tags] == sorted(tag is None for tag in tags)


def test_a_name_that_does_not_fit_is_shortened_or_left_out():
    texts = [wordings("a class with a rather long name", 0.9, "", 12)]
    assert tags_of([[10, 30, 60, 60]], texts, (100, 400))[0].text.startswith("a class with a rather long name")
    assert tags_of([[10, 30, 60, 60]], texts, (100, 150))[0].text.endswith("… 0.90")
    assert tags_of([[10, 30, 60, 60]], texts, (100, 60))[0].text == "0.90"
    assert tags_of([[10, 30, 15, 60]], texts, (100, 20)) == [None]


def test_no_more_tags_than_can_be_read():
    boxes = random_boxes(MOST_TAGS + 50, 4000, 4000)
    tags = place_tags(boxes, [["x"]] * len(boxes), range(len(boxes)), (4000, 4000), 9)
    assert all(tag is None for tag in tags[MOST_TAGS:])
    assert sum(tag is not None for tag in tags) > MOST_TAGS * 0.9


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (1, 5000), (32, 32), (7, 9)])
def test_any_size_of_picture(size):
    boxes = [[0, 0, size[1], size[0]], [0, 0, size[1] / 2, size[0]]]
    masks = torch.ones(2, *size, dtype=torch.bool)
    picture = drawn(grey(*size), boxes, [0, 1], [0.9, 0.8], masks)
    assert max(picture.size) <= 1024
    assert len(places(picture, COLOURS[0]))


def test_objects_of_less_than_a_pixel_are_seen():
    picture = drawn(
        grey(6000, 6000), [[3000, 3000, 3004, 3003], [5998, 5999, 6000, 6000]], [0, 1], side=600, tags=False
    )
    for colour, at in zip(COLOURS[:2], (300, 599), strict=True):
        found = places(picture, colour)
        assert len(found) >= 2
        assert np.abs(found - at).max() <= 3


def test_outcomes_have_their_own_colours_and_misses_are_dashed():
    boxes = [[20 + 70 * k, 40, 70 + 70 * k, 90] for k in range(4)]
    outcomes = ["hit", "missed", "false alarm", "ignored"]
    scores = [0.9, 0.5, 0.8, 0.5]
    picture = drawn(grey(120, 310, 255), boxes, [0, 1, 0, 1], scores, outcomes=outcomes, side=None, tags=False)
    lines = {name: len(places(picture, OUTCOMES[name])) for name in outcomes}
    assert lines["hit"] == lines["false alarm"] == 2 * (50 + 50) * 2 - 16  # two pixels wide, hollow
    assert 0.4 * lines["hit"] < lines["missed"] < 0.7 * lines["hit"]
    assert lines["ignored"] == lines["missed"]
    assert OUTCOMES["ignored"] == GREY
    key = outcome_key(["hit", "hit", "missed"])
    assert len(places(key, OUTCOMES["missed"]))
    assert not len(places(key, OUTCOMES["false alarm"]))


def test_what_went_wrong_is_named_before_what_went_right():
    boxes = [[10, 20, 60, 50]] * 8
    outcomes = ["hit"] * 7 + ["missed"]
    with_tags = drawn(grey(70, 90), boxes, outcomes=outcomes, side=None)
    assert len(places(with_tags, OUTCOMES["missed"])) > 300  # a filled tag, not the line alone, which others cover


def test_rasters_are_read_by_windows():
    assert drawn(InMemory(grey(20, 20)), [[2, 2, 9, 9]], side=None).size == (20, 20)


def test_no_object_is_the_picture_itself():
    assert drawn(grey(30, 30), [], side=None).getcolors() == [(900, (100, 100, 100))]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scores": [0.5]}, "2 boxes with 1 scores"),
        ({"outcomes": ["hit"]}, "2 boxes with 1 outcomes"),
        ({"masks": torch.zeros(3, 30, 30, dtype=torch.bool)}, "2 boxes with 3 masks"),
        ({"masks": torch.zeros(2, 30, 31, dtype=torch.bool)}, "masks of 30 × 31 .* picture of 30 × 30"),
        ({"labels": [0, 3]}, "labels from 0 to 3 for 3 classes"),
        ({"labels": [-1, 0]}, "labels from -1 to 0"),
        ({"boxes": [[0, 0, 5, float("nan")], [0, 0, 5, 5]]}, "not finite"),
    ],
)
def test_what_does_not_fit_together_is_refused(options, says):
    given = {"boxes": [[0, 0, 5, 5], [5, 5, 9, 9]]} | options
    with pytest.raises((ConfigError, ShapeError, TypeCheckError), match=f"{says}|^Type-check error"):
        drawn(grey(30, 30), **given)
