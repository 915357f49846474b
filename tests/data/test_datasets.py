"""What is found at a source, what is inferred from it, and how it is divided."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile
from swindow.data import DataSource, align_classes, check, open_data, split_changes, split_record
from swindow.data.datasets import Images
from swindow.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


def names(images: Images) -> set[str]:
    return set(images.names)


def sizes(source: DataSource) -> dict[str, int]:
    return {name: len(images) for name, images in source.splits().items()}


def test_class_folders_get_a_stratified_validation_split(tmp_path: Path, classes: Any) -> None:
    folder = classes(tmp_path / "pets", {"cat": 20, "dog": 10, "fish": 1})
    source = open_data(folder, val_fraction=0.2)
    assert (source.kind, source.task, source.classes) == ("folder", "classify", ("cat", "dog", "fish"))
    assert (source.channels, source.image_size) == (3, (12, 16))
    assert source.train is not None
    assert source.val is not None
    assert np.bincount(source.val.labels).tolist() == [4, 2]  # the only fish stays
    assert np.bincount(source.train.labels).tolist() == [16, 8, 1]
    assert not names(source.train) & names(source.val)
    assert len(names(source.train) | names(source.val)) == 31
    assert source.describe() == (
        f"{folder} (folder): classification, 3 classes, train 25 / val 6 colour images of about 12 × 16; "
        f"val held out of train (19.4%, seed 0)"
    )
    image = source.val.read(0)
    expected = hostile.picture(int(Path(source.val.names[0]).stem) + sum(map(ord, "pets")), height=12, width=16)
    np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


def test_the_split_is_a_function_of_the_seed_and_the_names(tmp_path: Path, classes: Any) -> None:
    folder = classes(tmp_path / "pets", {"cat": 30, "dog": 30})
    first, again = (open_data(folder).split("val") for _ in range(2))
    assert names(first) == names(again)
    assert names(open_data(folder, seed=1).split("val")) != names(first)
    moved = folder.rename(tmp_path / "elsewhere")
    relative = {str(Path(name).relative_to(folder)) for name in first.names}
    assert {str(Path(name).relative_to(moved)) for name in open_data(moved).split("val").names} == relative


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Training", "validation", None), ("TRAIN", None, "testing")]
)
def test_split_folders_are_found_by_their_usual_names(
    tmp_path: Path, classes: Any, train: str, val: str | None, test: str | None
) -> None:
    counts = {"a": 10, "b": 10}
    for split in (train, val, test):
        if split is not None:
            classes(tmp_path / split, counts)
    (tmp_path / "README.md").write_text("about the data")
    source = open_data(tmp_path, val_fraction=0.1)
    expected = {"train": 20 if val else 18, "val": 20 if val else 2} | ({"test": 20} if test else {})
    assert sizes(source) == expected
    assert ("as found" in source.split_note) == (val is not None)


def test_a_class_may_be_called_train(tmp_path: Path, classes: Any) -> None:
    source = open_data(classes(tmp_path, {"bus": 3, "train": 3}))
    assert source.classes == ("bus", "train")


def test_a_stray_picture_does_not_turn_a_split_into_a_class(tmp_path: Path, classes: Any) -> None:
    for split in ("train", "val"):
        classes(tmp_path / split, {"a": 3, "b": 3})
    (tmp_path / "train" / "stray.png").write_bytes(hostile.encode(hostile.picture(), "PNG"))
    (tmp_path / "test").mkdir()  # as competitions have it: pictures without labels
    (tmp_path / "test" / "0.png").write_bytes(hostile.encode(hostile.picture(), "PNG"))
    assert sizes(open_data(tmp_path)) == {"train": 6, "val": 6}
    assert check(tmp_path).counts == {"stray-image": 2}
    pool = classes(tmp_path / "vehicles", {"bus": 3, "train": 3})
    classes(pool / "train", {"steam": 2})
    assert open_data(pool).classes == ("bus", "train")


def test_two_folders_for_one_split_are_refused(tmp_path: Path, classes: Any) -> None:
    for split in ("train", "val", "valid"):
        classes(tmp_path / split, {"a": 2, "b": 2})
    with pytest.raises(DataError, match="both 'val' and 'valid' could be the val images"):
        open_data(tmp_path)


def test_classes_are_in_natural_order_and_litter_is_ignored(tmp_path: Path, classes: Any) -> None:
    folder = classes(tmp_path, {"class 10": 2, "class 2": 2, "Class 1": 2, ".hidden": 2, "__MACOSX": 1})
    for name in (".DS_Store", "Thumbs.db", "._0.png", "notes.txt"):
        (folder / "class 2" / name).write_bytes(b"?")
    deep = classes(folder / "class 2" / "more" / "still", {"deeper": 2})
    (deep / "loop").symlink_to(folder, target_is_directory=True)
    (deep / "self").symlink_to(deep, target_is_directory=True)
    source = open_data(folder, val_fraction=0.0)
    assert source.classes == ("Class 1", "class 2", "class 10")
    assert np.bincount(source.split("train").labels).tolist() == [2, 4, 2]


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ({"a": 3, "b": 0}, {"a": 1}, r"train/b: class folder without images; add some, or remove the folder"),
        ({"a": 3, "b": 3}, {"a": 1, "c": 2}, r"class 'c' \(2 images of val\) has no training image; add some to train"),
        ({"a": 3}, {"a": 1}, r"the only class is 'a'; at least two are needed"),
    ],
)
def test_folders_that_cannot_be_trained_on(
    tmp_path: Path, classes: Any, train: dict[str, int], val: dict[str, int], message: str
) -> None:
    classes(tmp_path / "train", train)
    classes(tmp_path / "val", val)
    with pytest.raises(DataError, match=message) as caught:
        open_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_trained_on_can_be_judged(tmp_path: Path, classes: Any) -> None:
    only = classes(tmp_path / "one", {"a": 3})
    assert sizes(open_data(only, for_training=False)) == {"train": 3}
    classes(tmp_path / "two" / "train", {"a": 3})
    classes(tmp_path / "two" / "test", {"c": 2})
    source = open_data(tmp_path / "two", for_training=False)
    assert source.classes == ("a", "c")
    assert sizes(source) == {"train": 3, "test": 2}
    assert source.split("test").labels.tolist() == [1, 1]


def test_the_last_image_of_a_class_is_never_held_out(tmp_path: Path, classes: Any) -> None:
    source = open_data(classes(tmp_path, {"a": 1, "b": 1}), val_fraction=0.9)
    assert sizes(source) == {"train": 2}
    assert source.split_note == "no val"
    with pytest.raises(DataError, match="has no val images; there are train"):
        source.split("val")
    half = open_data(classes(tmp_path / "more", {"a": 2, "b": 3}), val_fraction=0.9)
    assert np.bincount(half.split("train").labels).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "no such source of data; give a folder of class folders, .*, digits, or one of CIFAR10"),
        ("torchvision:Nothing", "no such torchvision data set here; there are CIFAR10"),
        ("{tmp}", r"no class folders \(it holds no images\)"),
        ("{tmp}/file.txt", "not a source of data; give a folder"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, source: str, message: str) -> None:
    if "file" in source:
        (tmp_path / "file.txt").write_text("text")
    with pytest.raises(DataError, match=message):
        open_data(source.format(tmp=tmp_path))


def test_loose_images_are_no_classes(tmp_path: Path, classes: Any) -> None:
    flat = classes(tmp_path, {"a": 4}) / "a"
    with pytest.raises(DataError, match=r"no class folders \(4 images lie directly in it\); put the images"):
        open_data(flat)


def test_grey_files_make_a_grey_source(tmp_path: Path, classes: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            plane = hostile.grey(hostile.picture(index))
            (tmp_path / name / f"{index}.png").write_bytes(hostile.encode(plane, "PNG"))
    source = open_data(tmp_path)
    assert source.channels == 1
    assert source.split("train").read(0).shape == (1, hostile.HEIGHT, hostile.WIDTH)
    assert open_data(tmp_path, channels=3).split("train").read(0).shape == (3, hostile.HEIGHT, hostile.WIDTH)
    classes(tmp_path, {"a": 4})  # one colour picture is enough
    assert open_data(tmp_path).channels == 3


def test_a_source_of_nothing_but_bad_files_says_why(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a/0\.png: is damaged, or none of JPEG"):
        open_data(tmp_path)


def test_digits_are_always_there_and_their_test_split_is_fixed() -> None:
    source, other = open_data("digits"), open_data("digits", seed=5)
    assert (source.kind, source.channels, source.image_size) == ("digits", 1, (8, 8))
    assert source.classes == tuple("0123456789")
    assert sizes(source) == {"train": 1258, "val": 180, "test": 359}  # 70 / 10 / 20 percent of 1,797
    for images in source.splits().values():
        assert np.bincount(images.labels).min() >= 0.09 * len(images)
    everything = [name for images in source.splits().values() for name in images.names]
    assert len(set(everything)) == 1797
    assert names(other.split("test")) == names(source.split("test"))
    assert names(other.split("val")) != names(source.split("val"))
    train = source.split("train")
    image = train.read(3)
    assert train.names[3].startswith("digits[")
    assert (image.shape, image.min(), image.max()) == ((1, 8, 8), 0, 255)
    np.testing.assert_array_equal(train.batch(np.array([3, 3]))[1], image)
    assert open_data("digits", channels=3).split("val").read(0).shape == (3, 8, 8)


def test_a_record_of_the_split_brings_it_back(tmp_path: Path, classes: Any) -> None:
    folder = classes(tmp_path / "pets", {"cat": 20, "dog": 20})
    source = open_data(folder, seed=3)
    record = json.loads(json.dumps(split_record(source)))
    assert record["count"] == {"train": 36, "val": 4}
    moved = folder.rename(tmp_path / "moved")
    again = open_data(moved, seed=99, split_record=record)
    assert split_changes(again, record) == []
    assert sorted(Path(name).name for name in again.split("val").names) == sorted(
        Path(name).name for name in source.split("val").names
    )
    assert "as recorded" in again.split_note
    classes(moved, {"cat": 25})
    grown = open_data(moved, split_record=record)
    assert names(grown.split("val")) == names(again.split("val"))  # whoever came later was not held out
    assert split_changes(grown, record) == ["train: 36 images were recorded, 41 are there now"]
    Path(grown.split("val").names[0]).unlink()
    with pytest.raises(
        DataError, match=r"1 of the 4 recorded val images are gone: '(cat|dog)/\d+\.png'; put them back"
    ):
        open_data(moved, split_record=record)


def test_a_record_does_not_fit_data_that_brings_its_own_split(tmp_path: Path, classes: Any) -> None:
    record = split_record(open_data(classes(tmp_path / "pool", {"a": 10, "b": 10})))
    classes(tmp_path / "train", {"a": 3, "b": 3})
    classes(tmp_path / "val", {"a": 3, "b": 3})
    with pytest.raises(DataError, match="the data now has val images of its own"):
        open_data(tmp_path, split_record=record)


def test_digits_come_back_from_a_record() -> None:
    source = open_data("digits", seed=4)
    again = open_data("digits", split_record=split_record(source))
    assert {name: names(images) for name, images in again.splits().items()} == {
        name: names(images) for name, images in source.splits().items()
    }


def test_classes_are_aligned_by_name() -> None:
    assert align_classes(("b", "a"), ("a", "b", "c")).tolist() == [1, 0]
    with pytest.raises(DataError) as caught:
        align_classes(("b", "x", "y"), ("a", "b"))
    assert str(caught.value) == (
        "the data has 3 classes, the model 2: the model does not know 'x', 'y', the data lacks 'a'; "
        "rename the classes of the data, or leave those out"
    )


def test_a_subset_keeps_names_labels_and_pixels_together() -> None:
    train = open_data("digits").split("train")
    part = train.subset([5, 2])
    assert part.names == [train.names[5], train.names[2]]
    assert part.labels.tolist() == train.labels[[5, 2]].tolist()
    np.testing.assert_array_equal(part.read(1), train.read(2))
    assert len(train.subset(train.labels == 4)) == (train.labels == 4).sum()
    files = dataclasses.replace(part, pixels=None)
    with pytest.raises(DataError, match="read them one by one"):
        files.batch(np.array([0]))


def test_a_fraction_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"val_fraction is 1\.0"):
        open_data("digits", val_fraction=1.0)


@needs_shared
def test_the_real_sets() -> None:
    photos = open_data(SHARED / "grocery-photos")
    assert (len(photos.classes), photos.channels, photos.image_size) == (21, 3, (256, 256))
    assert sizes(photos) == {"train": 992, "val": 315}
    fashion = open_data(SHARED / "fashion-mnist")
    assert (len(fashion.classes), fashion.channels, fashion.image_size) == (10, 1, (28, 28))
    assert sizes(fashion) == {"train": 55_000, "val": 5_000, "test": 8_000}  # at most 5,000 are held out
    assert np.bincount(fashion.split("val").labels).tolist() == [500] * 10
