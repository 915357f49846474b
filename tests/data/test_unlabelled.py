"""Images without labels: any folder of pictures, the splits that there are, and no masks among them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import HUES, class_folders, picture
from swindow.data import open_data
from swindow.errors import DataError


def flat(folder: Path, count: int = 12, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture(HUES["red"], start + index).save(folder / f"{index:03}.png")
    return folder


def test_a_flat_folder_is_enough(tmp_path: Path) -> None:
    source = open_data(flat(tmp_path / "photos"), task="pretrain", val_fraction=0.25)
    assert (source.task, source.kind, source.classes) == ("pretrain", "pictures", ())
    assert (len(source.split("train")), len(source.split("val"))) == (9, 3)
    assert "pretraining without labels, train 9 / val 3 colour images of about 20 × 20" in source.describe()
    assert source.split("train").read(0).shape == (3, 20, 20)


def test_a_nested_folder_gives_every_picture_at_any_depth(tmp_path: Path) -> None:
    flat(tmp_path / "a" / "b" / "c", 5)
    flat(tmp_path / "d", 4, 50)
    flat(tmp_path, 3, 90)
    source = open_data(tmp_path, task="pretrain", val_fraction=0.25)
    assert len(source.split("train")) + len(source.split("val")) == 12


def test_splits_are_found_and_loose_pictures_are_for_training(tmp_path: Path) -> None:
    flat(tmp_path / "train" / "x", 4)
    flat(tmp_path / "valid", 3, 20)
    flat(tmp_path / "test" / "deep" / "er", 2, 40)
    flat(tmp_path / "more", 5, 60)
    source = open_data(tmp_path, task="pretrain")
    assert {name: len(images) for name, images in source.splits().items()} == {"train": 9, "val": 3, "test": 2}


def test_class_folders_hold_out_what_a_classifier_would(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data")
    ours, theirs = open_data(data, task="pretrain", seed=5), open_data(data, seed=5)
    assert ours.held_out == theirs.held_out
    assert ours.held_out["val"]


def test_one_class_and_other_files_do_no_harm(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", classes=("red",))
    (data / "notes.txt").write_text("hello")
    source = open_data(data, task="pretrain")
    assert len(source.split("train")) == 11
    assert [problem.kind for problem in source.problems] == ["not-an-image"]
    with pytest.raises(DataError, match="at least two are needed"):
        open_data(data)


def test_masks_are_no_pictures(tmp_path: Path) -> None:
    flat(tmp_path / "images", 6)
    (tmp_path / "masks").mkdir()
    for index in range(6):
        Image.fromarray(np.full((20, 20), index % 2, np.uint8)).save(tmp_path / "masks" / f"{index:03}.png")
    source = open_data(tmp_path, task="pretrain", val_fraction=0.0)
    assert [Path(name).parent.name for name in source.split("train").names] == ["images"] * 6


def test_a_table_and_digits_do_as_well(tmp_path: Path) -> None:
    flat(tmp_path / "photos", 4)
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"photos/{index:03}.png,x\n" for index in range(4)))
    assert len(open_data(table, task="pretrain", val_fraction=0.0).split("train")) == 4
    digits = open_data("digits", task="pretrain")
    assert (digits.task, digits.classes, digits.channels) == ("pretrain", (), 1)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no images; give a folder of pictures, at any depth"):
        open_data(tmp_path / "empty", task="pretrain")
    with pytest.raises(DataError, match="no such source of data"):
        open_data(tmp_path / "nowhere", task="pretrain")
