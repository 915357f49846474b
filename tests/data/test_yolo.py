"""YOLO's text files: layouts as tools write them, shares turned into pixels, every fault named with file and line."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hostile
from annotating import HEIGHT, WIDTH, pictures, yolo
from swindow.data import ObjectConfig, check, open_data
from swindow.data.yolo_yaml import read_yaml
from swindow.errors import DataError

BOX = "0 0.5 0.5 0.25 0.5"


def test_shares_become_pixels(tmp_path: Path) -> None:
    files = {"train/a": f"{BOX}\n1 0.125 0.25 0.25 0.5\n", "train/b": "", "val/c": BOX}
    root = yolo(tmp_path, files)
    pictures(root / "images", ["train/unmarked.png"], width=99)
    source: Any = open_data(root)
    assert (source.kind, source.task, source.classes) == ("yolo", "detect", ("cat", "dog"))
    assert source.train.objects(0).boxes.tolist() == [[24, 12, 40, 36], [0, 0, 16, 24]]
    assert source.train.objects(0).labels.tolist() == [0, 1]
    assert source.train.category_ids == (0, 1)
    assert [len(source.train.objects(row)) for row in range(3)] == [2, 0, 0]
    assert source.train.size(2) == (HEIGHT, 99)
    assert source.note == "2 images without an object"
    assert not source.train.has_masks


def test_polygons_become_masks(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n", "b": ""})
    train: Any = open_data(root, val_fraction=0.0).train
    assert train.has_masks
    objects = train.objects(0)
    assert objects.boxes.tolist() == [[16, 12, 48, 36]]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[12:36, 16:48] = True
    assert torch.equal(objects.masks[0], expected)
    assert objects.areas.tolist() == [32 * 24]


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\nnc: 2\nnames: ['a cat', dog]\n",
        "path: .  # here\ntrain: images/train\nval: images/val\nnames:\n  0: a cat\n  1: dog\n",
        "# made by hand\ntrain: [images/train]\nval: ./images/val\nnc: 2\n\nnames:\n- a cat\n- 'dog'\n",
        'names: {1: dog, 0: "a cat"}\ntrain: ../images/train\nval: ../images/val\nroboflow:\n  license: CC # 0\n',
        "train:\n  - images/train\nval: lists/val.txt\nnames:\n  - a cat\n  - dog",
    ],
)
def test_descriptions(tmp_path: Path, yaml: str) -> None:
    root = yolo(tmp_path / "set", {"train/a": BOX, "train/b": "1 0.5 0.5 1 1", "val/c": BOX}, classes=())
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text("./images/val/c.png\n")
    if "lists" in yaml:
        (root / "lists" / "val.txt").write_text("data/images/val/c.png\n")
        (root / "lists" / "data").symlink_to(root)
    (root / "data.yaml").write_text(yaml)
    for source in (open_data(root), open_data(root / "data.yaml")):
        assert source.kind == "yolo"
        assert source.classes == ("a cat", "dog")
        assert {split: len(images) for split, images in source.splits().items()} == {"train": 2, "val": 1}


def test_layouts_without_a_description(tmp_path: Path) -> None:
    whole = yolo(tmp_path / "whole", {"a": BOX, "b": BOX})
    assert len(open_data(whole, val_fraction=0.0).split("train")) == 2
    for split in ("train", "valid"):
        yolo(tmp_path / "splits" / split, {"a": BOX, "b": BOX}, classes=())
    (tmp_path / "splits" / "classes.txt").write_text("0 cat\n1 big dog\n")
    source = open_data(tmp_path / "splits")
    assert source.classes == ("cat", "big dog")
    assert list(source.splits()) == ["train", "val"]
    darknet = tmp_path / "darknet"
    pictures(darknet / "obj_train_data", ["a.jpg", "b.jpg"])
    (darknet / "obj_train_data" / "a.txt").write_text(BOX)
    (darknet / "obj.names").write_text("cat\n")
    (darknet / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    train: Any = open_data(darknet, val_fraction=0.0).train
    assert [len(train.objects(row)) for row in range(2)] == [1, 0]


def test_without_classes_it_says_what_to_add(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": BOX}, classes=())
    with pytest.raises(DataError, match=r"no list of their classes; add a classes.txt"):
        open_data(root)


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("train: images/train\nnames: [a]\nnc: 3\n", "nc is 3, and there are 1 names"),
        ("train: nowhere\nnames: [a]\n", "'nowhere' is not there"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "number them from 0 without a gap"),
        ("train: images/train\nnames: [a, a]\n", "class 'a' is there twice"),
        ("train: images/train\nnames: a\n", "give a list of them"),
        ("train: images/train\nnames: !!python/object/apply:os.system [ls]\n", "says more than such descriptions do"),
        ("train: &a images/train\nnames: [a]\n", "says more than such descriptions do"),
        ("train: images/train\nnames: [a\n", "has no ] at its end"),
        ("  - a\ntrain: images/train\nnames: [a]", "belongs to no key"),
        ("train: images/train\ntrain: b\nnames: [a]\n", "is there twice"),
        ("just words\ntrain: images/train\nnames: [a]", "has no key"),
    ],
)
def test_descriptions_that_cannot_be(tmp_path: Path, yaml: str, expected: str) -> None:
    root = yolo(tmp_path, {"train/a": BOX}, classes=())
    (root / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=expected) as caught:
        open_data(root)
    assert str(root / "data.yaml") in str(caught.value)


def test_other_descriptions_are_no_business_of_ours(tmp_path: Path, classes: Any) -> None:
    classes(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "data.yaml").write_text("just: &words\n")
    assert open_data(tmp_path).task == "classify"
    with pytest.raises(DataError, match="says more than such"):
        open_data(tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_text("just: words\n")
    with pytest.raises(DataError, match="has no names and train"):
        open_data(tmp_path / "data.yaml")


def test_words_are_what_yaml_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "names: ['it''s', \"a, \\\"b\\\"\",  # yes\n    c d ]\n"
        "download: |\n  import os\n  - what: [ever\n"
        "url: https://example.org/a#b\n'quoted key': x: y\nempty:\nother: []\n"
    )
    assert read_yaml(tmp_path / "a.yaml") == {
        "names": ["it's", 'a, "b"', "c d"],
        "download": "",
        "url": "https://example.org/a#b",
        "quoted key": "x: y",
        "empty": "",
        "other": [],
    }


def plant(root: Path) -> dict[tuple[str, str], str]:
    """A source with every fault: kind and place of each, and the policy it is under."""
    lines = [
        BOX,
        "1 0.5 0.5 0.2",
        "1 0.5 0.5 0.2 0.2 0.9",
        "7 0.5 0.5 0.2 0.2",
        "-1 0.5 0.5 0.2 0.2",
        "0.5 0.5 0.5 0.2 0.2",
        "cat 0.5 0.5 0.2 0.2",
        "1 nan 0.5 0.2 0.2",
        "1 320 240 100 100",
        "1 0.9 0.5 0.6 0.2",
        "1 1.5 1.5 0.2 0.2",
        "1 0.5 0.5 0 0.2",
        "1 0.5 0.5 -0.2 0.2",
        "",
        "1 0.1 0.1 0.2 0.2 0.3",
    ]
    yolo(root, {"a": "\n".join(lines), "b": BOX, "c": BOX, "d": BOX, "torn": BOX})
    (root / "images" / "b.png").unlink()
    (root / "labels" / "c.txt").write_bytes(b"\xff\xfe\x00")
    (root / "images" / "torn.png").write_bytes(b"")
    (root / "images" / "d.png").write_bytes(hostile.encode(hostile.picture(3), "PNG"))
    return {
        ("bad-annotation", "a.txt, line 2"): "malformed",
        ("bad-annotation", "a.txt, line 3"): "malformed",
        ("unknown-category", "a.txt, line 4"): "malformed",
        ("unknown-category", "a.txt, line 5"): "malformed",
        ("bad-annotation", "a.txt, line 6"): "malformed",
        ("bad-annotation", "a.txt, line 7"): "malformed",
        ("bad-annotation", "a.txt, line 8"): "malformed",
        ("bad-annotation", "a.txt, line 9"): "malformed",
        ("outside-box", "a.txt, line 10"): "outside",
        ("empty-box", "a.txt, line 11"): "empty",
        ("empty-box", "a.txt, line 12"): "empty",
        ("empty-box", "a.txt, line 13"): "empty",
        ("bad-annotation", "a.txt, line 15"): "malformed",
        ("missing-image", "b.txt"): "malformed",
        ("bad-text", "c.txt"): "malformed",
        ("unreadable", "torn.png"): "malformed",
    }


@pytest.mark.parametrize("malformed", ["stop", "drop"])
def test_planted_is_reported_exactly(tmp_path: Path, malformed: Any) -> None:
    planted = plant(tmp_path)
    report = check(tmp_path, objects=ObjectConfig(malformed=malformed))
    found = {(one.kind, one.message.partition(": ")[0].rpartition("/")[2]): one for one in report.problems}
    assert set(found) == set(planted)
    assert len(report.problems) == len(planted)
    for place, problem in found.items():
        assert problem.fatal == (planted[place] == "malformed" and malformed == "stop"), place
        assert "; " in problem.message
        assert "\n" not in problem.message
    assert report.classes == {"cat": 2, "dog": 1}
    if malformed == "stop":
        with pytest.raises(DataError, match=r"\(and \d+ more: `swindow data check` lists all\)"):
            open_data(tmp_path)


def test_names_too_long_for_a_file_system_are_not_there(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"train/a": BOX})
    long = "x" * 400
    (root / "train.txt").write_text(f"images/train/a.png\n{long}/images/b.png\n{long}.png\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"its image .*xxx.* is not there; "):
        open_data(root)
    source: Any = open_data(root, objects=ObjectConfig(malformed="drop"), val_fraction=0.0)
    assert len(source.train) == 1
    for line in (f"train: {long}", f"path: {long}\ntrain: nowhere"):
        (root / "data.yaml").write_text(f"{line}\nnames: [cat, dog]\n")
        with pytest.raises(DataError, match="is not there; correct the path"):
            open_data(root)
