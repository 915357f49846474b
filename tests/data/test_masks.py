"""Mask files of every spelling become exactly the indices that they mean, or an error that names file and value."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hostile
from swindow.data.legends import Legend, find_legend, legend_of_model, legend_of_values, make_legend, palette
from swindow.data.masks import MaskConfig, MaskReader, SceneError, case_of
from swindow.errors import ConfigError, DataError
from swindow.shapes import IGNORE

COLOURS = ((60, 16, 152), (132, 41, 246), (110, 193, 228))
THREE = make_legend(("building", "land", "road"), colours=COLOURS, ignored=(255,), ignored_colours=((155, 155, 155),))
VALUES = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8)
INDICES = [[0, 1, 2, IGNORE], [2, 2, 0, 1]]


def read(path: Path, legend: Legend = THREE) -> list[list[int]]:
    mask = MaskReader(legend).read(path)
    assert str(mask.dtype) == "torch.int64"
    return mask.tolist()


def painted(values: np.ndarray) -> np.ndarray:
    table = {0: COLOURS[0], 1: COLOURS[1], 2: COLOURS[2], 255: (155, 155, 155)}
    return np.array([[table[int(value)] for value in row] for row in values], np.uint8)


def test_every_spelling_of_a_mask_is_read_alike(tmp_path: Path, mask: Any) -> None:
    misleading = [(value, 255 - value, 7) for value in range(256)]  # a palette is how a viewer shows it, no more
    assert read(mask(tmp_path / "index8.png", VALUES)) == INDICES
    assert read(mask(tmp_path / "index16.png", VALUES.astype(np.uint16))) == INDICES
    assert read(mask(tmp_path / "palette.png", VALUES, misleading)) == INDICES
    assert read(mask(tmp_path / "colours.png", painted(VALUES))) == INDICES
    assert read(mask(tmp_path / "index.tif", VALUES)) == INDICES
    assert read(mask(tmp_path / "index.bmp", VALUES)) == INDICES
    opaque = np.dstack([painted(VALUES), np.full(VALUES.shape, 255, np.uint8)])
    assert read(mask(tmp_path / "opaque.png", opaque)) == INDICES
    Image.fromarray(VALUES == 1).save(tmp_path / "one-bit.png")
    assert read(tmp_path / "one-bit.png") == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_16_bit_ids_are_looked_up(tmp_path: Path, mask: Any) -> None:
    legend = make_legend(("sea", "city"), ids=(300, 40_000), ignored=(65_535,))
    path = mask(tmp_path / "ids.png", np.array([[300, 40_000, 65_535]], np.uint16))
    assert read(path, legend) == [[0, 1, IGNORE]]
    with pytest.raises(
        SceneError, match=r"value 301 \(1 of 2 pixels\) stands for no class: .* are 300, 40000, ignored"
    ):
        read(mask(tmp_path / "other.png", np.array([[300, 301]], np.uint16)), legend)


@pytest.mark.parametrize(
    ("values", "legend", "kind", "message"),
    [
        (
            np.array([[0, 3, 7]], np.uint8),
            THREE,
            "mask-value",
            r"values 3, 7 \(2 of 3 pixels\) stand for no class: the 3 ",
        ),
        (np.array([[9]], np.uint8), THREE, "mask-value", "0 to 2, ignored are 255; repair the mask, add the class"),
        (painted(VALUES), make_legend(("a", "b")), "rgb-mask", "RGB picture where class indices are due"),
        (painted(VALUES) + 1, THREE, "mask-value", r"8 of 8 pixels have colours of no class \(4 colours, such as"),
        (np.dstack([painted(VALUES), VALUES]), THREE, "bad-mask", "transparent pixels"),
        (VALUES.astype(np.float32), THREE, "bad-mask", "pixels of mode F are no mask"),
    ],
)
def test_what_a_mask_cannot_say(
    tmp_path: Path, mask: Any, values: np.ndarray, legend: Legend, kind: str, message: str
) -> None:
    path = mask(tmp_path / ("mask.tif" if values.dtype == np.float32 else "mask.png"), values)
    with pytest.raises(SceneError, match=message) as caught:
        read(path, legend)
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{path}: ")
    assert "; " in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as it comes back from another process
    assert (str(again), again.kind) == (str(caught.value), kind)


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(hostile.encode(VALUES, "JPEG"))
    with pytest.raises(SceneError, match="is a JPEG, which changes values at every edge"):
        read(tmp_path / "mask.png")


def test_zero_can_be_left_out() -> None:
    moved = make_legend(("wall", "sky"), ids=(1, 2), ignored=(0, 255))
    assert moved.without_zero().codes()[[0, 1, 2, 255]].tolist() == [IGNORE, 0, 1, IGNORE]
    legend = THREE.without_zero()
    assert legend.names == ("land", "road")
    assert legend.codes()[[0, 1, 2, 255]].tolist() == [IGNORE, 0, 1, IGNORE]
    assert legend.colour_codes()[COLOURS[0]] == IGNORE


@pytest.mark.parametrize(
    ("text", "names", "ids", "ignored", "painted"),
    [
        ("0 roof 60 16 152\n1 bare land 132 41 246\n255 ignore (none) 1 2 3\n", "roof,bare land", (0, 1), (255,), True),
        ("1,sky,0,0,255\n4,sea,0,255,0\n", "sky,sea", (1, 4), (255,), True),
        ("sky 0 0 255\nvoid 0 0 0\nsea 0 255 0\n", "sky,sea", (0, 2), (1, 255), True),
        ("# mine\nbackground\n\nleft ventricle\n", "background,left ventricle", (0, 1), (255,), False),
        ("0 background\n2 liver\n1 spleen\n", "background,spleen,liver", (0, 1, 2), (255,), False),
    ],
)  # fmt: skip
def test_tables_of_classes(
    tmp_path: Path, text: str, names: str, ids: tuple[int, ...], ignored: tuple[int, ...], painted: bool
) -> None:
    (tmp_path / "classes.txt").write_text(text)
    legend = find_legend(tmp_path, 255)
    assert legend is not None
    assert (legend.names, legend.ids) == (tuple(names.split(",")), ids)
    assert (legend.ignored, legend.painted) == (ignored, painted)
    assert legend.background == (0 if "background" in names else None)


def test_toml_tables_of_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("not this one")
    (tmp_path / "classes.toml").write_text(
        'ignore = [254, 255]\nignore_colour = [9, 9, 9]\n[[class]]\nname = "sky"\nid = 3\ncolour = [0, 0, 255]\n'
        '[[class]]\nname = "sea"\nid = 1\ncolour = [0, 255, 0]\n'
    )
    legend = find_legend(tmp_path, None)
    assert legend is not None
    assert (legend.names, legend.ids, legend.ignored) == (("sea", "sky"), (1, 3), (254, 255))
    assert legend.colour_codes() == {(9, 9, 9): IGNORE, (0, 255, 0): 0, (0, 0, 255): 1}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "", "names no class"),
        ("classes.txt", "0 sky\n0 sea\n", r"line 2: has the same value \(0\) as .*line 1"),
        ("classes.txt", "sky\nsky\n", r"line 2: has the same name \(sky\)"),
        ("classes.txt", "0 sky 1 2 3\n1 sea 1 2 3\n", "line 2: has the same colour"),
        ("classes.txt", "70000 sky\n1 sea\n", "id 70000 is no value of a mask"),
        ("classes.txt", "255 void\n", "names no class that counts"),
        ("classes.toml", "[[class]", "is no TOML"),
        ("classes.toml", "names = ['a']", r"has 'names'; it may have \[\[class\]\]"),
        ("classes.toml", "ignore = 255", r"has no \[\[class\]\]"),
        ("classes.toml", "[[class]]\nid = 1", "needs a name"),
        ("classes.toml", "[[class]]\nname = 'a'\ncolour = [1, 2]", "is no red, green and blue in 0..255"),
        ("classes.toml", "[[class]]\nname = 'a'\ncolour = [1, 2, 3]\n[[class]]\nname = 'b'", "give all of them one"),
        ("classes.toml", "ignore = 1\n[[class]]\nname = 'a'\nid = 1", "value 1 is both a class and ignored"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        find_legend(tmp_path, 255)
    assert str(tmp_path / name) in str(caught.value)


def test_classes_are_read_off_the_masks_where_there_is_no_table() -> None:
    def of(values: set[int], *, ignore: int | None = 255, volumes: bool = False) -> tuple[Any, ...]:
        legend = legend_of_values(values, ignore, volumes=volumes, where="here")
        return legend.names, legend.ids, legend.ignored, legend.background

    assert of({0, 1}) == (("background", "object"), (0, 1), (255,), 0)
    assert of({0, 255}) == (("background", "object"), (0, 255), (), 0)
    assert of({0, 1, 255}) == (("background", "object"), (0, 1), (255,), 0)
    assert of({0, 1, 255}, ignore=None) == (("class 0", "class 1", "class 255"), (0, 1, 255), (), None)
    assert of({3, 0, 7}) == (("class 0", "class 3", "class 7"), (0, 3, 7), (255,), None)
    assert of({0, 1, 2}, volumes=True) == (("background", "class 1", "class 2"), (0, 1, 2), (255,), 0)
    with pytest.raises(DataError, match="here: the masks hold 300 different values, too many for classes"):
        of(set(range(301)))
    with pytest.raises(DataError, match="every pixel of the masks is 255"):
        of({255})


def test_our_colours_are_fixed_and_different() -> None:
    assert palette(3, background=0) == ((0, 0, 0), (230, 159, 0), (86, 180, 233))
    assert palette(2) == palette(150)[:2]
    assert len(set(palette(256))) == 256


def test_cases_come_from_names() -> None:
    heart = MaskConfig(case=r"^(SC-[A-Z-]+-\d+)")
    assert case_of("SC-HF-I-01-IM-0001-0048", heart, "f", "itself") == "SC-HF-I-01"
    assert case_of("p7_slice3", MaskConfig(case=r"p\d+"), "f", "itself") == "p7"
    assert case_of("anything", MaskConfig(), "f", "itself") == "itself"
    with pytest.raises(SceneError, match="f: no case by the pattern"):
        case_of("other", heart, "f", "itself")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ignore_index": -1}, "ignore_index is -1"),
        ({"axis": 3}, "axis is 3"),
        ({"case": "("}, "is no regular expression"),
        ({"intensity": (5.0, 5.0)}, "is not a lower and a higher value"),
        ({"intensity": (0.0, float("inf"))}, "is not a lower and a higher value"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskConfig(**fields)


@pytest.mark.parametrize(
    ("values", "classes", "ids"),
    [
        ({0, 1}, ("class 0", "class 1", "class 2"), (0, 1, 2)),
        ({0, 255}, ("class 0", "class 1", "class 2"), (0, 1, 2)),  # 255 is ignored, no object
        ({3, 7}, ("class 1", "class 3", "class 7"), (1, 3, 7)),
        ({0}, ("background", "class 2"), (0, 2)),
        ({0, 255}, ("background", "object"), (0, 255)),
        ({0, 1}, ("background", "object"), (0, 1)),
        ({1}, ("meadow", "roof"), (0, 1)),
        ({0, 2}, ("meadow", "roof"), None),
        ({0, 4}, ("class 0", "class 1"), None),
    ],
)
def test_masks_without_a_table_are_read_in_a_model_s_classes(
    values: set[int], classes: tuple[str, ...], ids: tuple[int, ...] | None
) -> None:
    legend = legend_of_model(values, classes, 255)
    assert (None if legend is None else legend.ids) == ids
    assert legend is None or legend.names == classes
