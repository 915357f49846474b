"""`Annotated`: pictures and objects of one split, in memory or files, in the classes of the data or of a model."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import hostile
from annotating import box, coco, pictures, polygon
from detections import objects
from swindow.data import (
    Annotated,
    ObjectConfig,
    align_classes,
    annotated_in_memory,
    check,
    duplicates_across,
    open_data,
    sample_check,
    split_changes,
    split_record,
)
from swindow.errors import ConfigError, DataError
from swindow.objects import no_objects


def in_memory(*, masks: bool = False) -> Annotated:
    images = [torch.from_numpy(hostile.picture(seed, height=12, width=16 + seed)).permute(2, 0, 1) for seed in range(3)]
    own = torch.zeros(2, 12, 16, dtype=torch.bool)
    own[:, 2:5, 3:9] = True
    given = [
        objects([[1, 2, 5, 6], [3, 2, 9, 5]], [1, 0], masks=own if masks else None),
        no_objects(masks=(12, 17) if masks else None),
        objects([[0, 0, 18, 12]], [1], crowd=[True], masks=torch.ones(1, 12, 18, dtype=torch.bool) if masks else None),
    ]
    return annotated_in_memory(images, given, classes=["cat", "dog"])


@pytest.mark.parametrize("masks", [False, True])
def test_in_memory(masks: bool) -> None:
    data = in_memory(masks=masks)
    assert (len(data), data.classes, data.channels, data.has_masks) == (3, ("cat", "dog"), 3, masks)
    pixels, found = data.pair(0)
    assert pixels.shape == (3, 12, 16)
    assert found.labels.tolist() == [1, 0]
    assert (found.masks is not None) == masks
    assert data.size(2) == (12, 18)
    assert [data.image_id(row) for row in range(3)] == [1, 2, 3]
    assert data.count_objects() == 3
    assert data.rarest().tolist() == [0, 2, 1]
    found.boxes.add_(1)  # a copy
    assert data.objects(0).boxes[0].tolist() == [1, 2, 5, 6]


def test_in_memory_refuses_what_cannot_be() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="1 images have 0 objects"):
        annotated_in_memory([image], [], classes=["cat"])
    with pytest.raises(DataError, match=r"objects\[0\]: labels \[3\] are not all in 0..0"):
        annotated_in_memory([image], [objects([[0, 0, 4, 4]], [3])], classes=["cat"])


def test_subsets_keep_the_order_asked_for() -> None:
    data = in_memory()
    assert list(data.subset([2, 0]).names) == ["image[2]", "image[0]"]
    assert data.subset([2, 0]).size(0) == (12, 18)
    assert list(data.subset(np.array([True, False, True])).subset([1]).names) == ["image[2]"]


def test_classes_of_a_model(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [box(1, 1, category=7), box(2, 1, category=3)], classes={3: "cat", 7: "dog"})
    train: Any = open_data(file, val_fraction=0.0).train
    known = ("dog", "cow", "cat")
    aligned = train.aligned(align_classes(train.classes, known), known)
    assert aligned.classes == known
    assert aligned.objects(0).labels.tolist() == [0, 2]
    assert aligned.labels(0).tolist() == [0, 2]
    assert aligned.category_ids == (7, 8, 3)
    again = aligned.aligned(align_classes(known, known[::-1]), known[::-1])
    assert again.objects(0).labels.tolist() == [2, 0]
    assert again.category_ids == (3, 8, 7)
    with pytest.raises(DataError, match="the model does not know 'dog'"):
        align_classes(train.classes, ("cat",))


def test_other_processes_get_the_same(tmp_path: Path) -> None:
    file = coco(
        tmp_path / "a.json",
        [box(1, 1, segmentation=polygon(10, 8, 20, 16)), box(2, 2, segmentation=polygon(1, 2, 3, 4))],
    )
    train: Any = open_data(file, val_fraction=0.0).train.subset([1, 0])
    copy = pickle.loads(pickle.dumps(train))  # noqa: S301
    assert torch.equal(copy.objects(0).masks, train.objects(0).masks)
    assert copy.objects(0).boxes.tolist() == [[10, 8, 30, 24]]


def test_splits_are_recorded_and_found_again(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [box(n, n) for n in range(1, 9)], images=10)
    source = open_data(file, val_fraction=0.3, seed=5)
    record = split_record(source)
    assert record["count"] == {"train": 7, "val": 3}
    again = open_data(file, split_record=record, seed=6)
    assert list(again.split("val").names) == list(source.split("val").names)
    assert split_changes(again, record) == []
    assert split_changes(open_data(file, val_fraction=0.3, seed=7), record) != []


def test_without_an_object_there_is_nothing_to_learn(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [])
    with pytest.raises(DataError, match="no training image shows an object; annotate some"):
        open_data(file)
    assert open_data(file, for_training=False).train is not None


def test_a_sample_is_looked_at_before_training(tmp_path: Path) -> None:
    source = open_data(coco(tmp_path / "a.json", [box(1, 1)]), val_fraction=0.0)
    assert sample_check(source) == list(source.problems[:0])
    (tmp_path / "2.png").write_bytes(b"")
    (problem,) = sample_check(source)
    assert (problem.kind, problem.path) == ("unreadable", str(tmp_path / "2.png"))
    pictures(tmp_path, ["1.png"], width=80)
    with pytest.raises(DataError, match=r"1.png: is 80 × 48, by its annotations 64 × 48"):
        sample_check(source)


def test_pictures_in_two_splits_are_found(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", [box(1, 1)])
    coco(tmp_path / "val.json", [box(1, 1)])
    copies = duplicates_across(open_data(tmp_path))
    assert [(copy.split, copy.other_split) for copy in copies] == [("val", "train")] * 3
    assert check(tmp_path).counts["duplicate-across-splits"] == 3


def test_reports_as_text(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [box(1, 1), box(2, 2, category=2)])
    assert check(file).text() == f"{file}: 2 classes, images: all 3; 1 image without an object\nno problems"


def test_what_is_asked_for_must_be_there(tmp_path: Path, classes: Any) -> None:
    classes(tmp_path / "folder", {"cat": 2, "dog": 2})
    for source in ("coco:", "yolo:", "voc-boxes:"):
        with pytest.raises(DataError, match="no annotations as"):
            open_data(f"{source}{tmp_path / 'folder'}")
    with pytest.raises(DataError, match="no annotations as boxes of any kind are there; give a COCO JSON"):
        open_data(tmp_path / "folder", task="detect")
    with pytest.raises(DataError, match="no such file or folder"):
        open_data(tmp_path / "nothing.json", task="detect")
    with pytest.raises((ConfigError, TypeCheckError)):  # the latter where the types are checked
        open_data(tmp_path, task="paint")  # type: ignore[arg-type]
    assert open_data(tmp_path / "folder").task == "classify"


@pytest.mark.parametrize("field", ["outside", "empty", "malformed", "difficult"])
def test_policies_are_words(field: str) -> None:
    with pytest.raises((ConfigError, TypeCheckError), match=field):  # the latter where the types are checked
        ObjectConfig(**{field: "maybe"})  # type: ignore[arg-type]
