"""Folders of pictures and masks are found by their names, files by their stems, known data sets by their layout."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile
from swindow.data import MaskConfig, check, open_data
from swindow.data.known_layouts import CITYSCAPES, find_layout
from swindow.data.scenes import Scenes
from swindow.data.segmentation import find_scenes
from swindow.errors import DataError
from swindow.shapes import IGNORE


def place(root: Path, image: str, mask: str, values: np.ndarray, save: Any) -> None:
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if image.endswith("jpg") else "PNG"
    (root / image).write_bytes(hostile.encode(hostile.picture(height=values.shape[0], width=values.shape[1]), kind))
    save(root / mask, values)


def part(source: Any, split: str) -> Scenes:
    scenes = source.split(split)
    assert isinstance(scenes, Scenes)
    return scenes


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("Images/{}", "Labels/{}"),
        ("img/{}", "annotations/{}"),
        ("{}/images", "{}/masks"),
        ("{}/imgs", "{}/segmentation"),
        ("{}_images", "{}_masks"),
        ("images/{}/deep/er", "masks/{}/deep/er"),
    ],
)
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing")])
def test_usual_folders_are_found(tmp_path: Path, mask: Any, images: str, masks: str, names: tuple[str, ...]) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    for split in names:
        for stem in ("a", "b"):
            place(tmp_path, f"{images.format(split)}/{stem}.jpg", f"{masks.format(split)}/{stem}.png", values, mask)
    source = open_data(tmp_path)
    assert (source.kind, source.task) == ("masks", "segment")
    assert {name: len(scenes) for name, scenes in source.splits().items()} == {"train": 2, "val": 2, "test": 2}
    assert part(source, "val").mask(1).tolist() == values.tolist()


def test_flat_folders_and_endings(tmp_path: Path, mask: Any) -> None:
    values = {stem: np.full((3, 4), value, np.uint8) for value, stem in enumerate("abcde")}
    values["a"][0, 0] = 4
    ends = {"a": "a.png", "b": "b_mask.png", "c": "c_labelIds.png", "d": "sub/d-seg.tif", "e": "mask_e.png"}
    for stem, name in ends.items():
        image = {"d": "sub/d.png", "e": "img_e.png"}.get(stem, f"{stem}.png")
        place(tmp_path, f"images/{image}", f"masks/{name}", values[stem], mask)
    source = open_data(tmp_path, val_fraction=0.2, seed=3)
    assert source.split_note == "val held out of train (20.0%, seed 3)"
    everything = [part(source, name) for name in ("train", "val")]
    found = {Path(s.names[i]).stem[-1]: s.mask(i) for s in everything for i in range(len(s))}
    assert {stem: found[stem].tolist() for stem in found} == {stem: values[stem].tolist() for stem in values}


def test_what_has_no_twin(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path)
    (tmp_path / "masks/train/00.png").unlink()
    (tmp_path / "images/val/01.png").unlink()
    shutil.copy(tmp_path / "masks/train/02.png", tmp_path / "masks/train/02.tif")
    scenes(tmp_path, splits=("test",), count=1)
    shutil.rmtree(tmp_path / "masks/test")
    kinds = {(problem.kind, problem.path, problem.fatal) for problem in check(tmp_path).problems}
    assert kinds == {
        ("missing-mask", str(tmp_path / "images/train/00.png"), True),
        ("missing-image", str(tmp_path / "masks/val/01.png"), False),
        ("two-masks", str(tmp_path / "images/train/02.png"), True),
        ("no-masks", str(tmp_path / "images/test"), False),
    }
    with pytest.raises(DataError, match=r"00.png: has no mask of its name in .* \(and 1 more: `swindow data check`"):
        open_data(tmp_path)


def test_folders_whose_names_never_meet_are_no_classes(tmp_path: Path, scenes: Any) -> None:
    for path in scenes(tmp_path):
        Path(path).rename(Path(path).with_name(f"other{Path(path).name}"))
    with pytest.raises(DataError, match=r"train/00\.png: has no mask of its name in .* \(and 11 more"):
        open_data(tmp_path)
    assert check(tmp_path).counts == {"missing-image": 12, "missing-mask": 12, "no-classes": 1}


def test_class_folders_and_boxes_stay_what_they_are(tmp_path: Path, classes: Any, scenes: Any) -> None:
    assert find_layout(classes(tmp_path / "pets", {"cat": 2, "dog": 2})) is None
    classes(tmp_path / "boxes", {"images": 3, "other": 3})
    (tmp_path / "boxes" / "labels").mkdir()
    (tmp_path / "boxes" / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1")  # detection's labels
    assert find_layout(tmp_path / "boxes") is None
    scenes(tmp_path / "both")
    assert open_data(tmp_path / "both").task == "segment"
    assert open_data(tmp_path / "both", task="classify").task == "classify"
    with pytest.raises(
        DataError, match=r"is not laid out as any known layout of images and masks; .* root/images/train"
    ):
        open_data(tmp_path / "pets", task="segment")
    with pytest.raises(DataError, match="is not laid out as voc"):
        open_data(f"voc:{tmp_path / 'both'}")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_data(f"masks:{tmp_path / 'nowhere'}")
    (tmp_path / "both" / "valid").mkdir()
    shutil.copytree(tmp_path / "both/images/val", tmp_path / "both/valid/images")
    with pytest.raises(DataError, match="both 'images/val' and 'valid/images' could be the val images"):
        find_scenes(tmp_path / "both")


def test_ade20k(tmp_path: Path, mask: Any) -> None:
    root = tmp_path / "ADEChallengeData2016"
    values = np.array([[0, 1, 150], [2, 0, 0]], np.uint8)
    for split in ("training", "validation"):
        place(root, f"images/{split}/ADE_1.jpg", f"annotations/{split}/ADE_1.png", values, mask)
    source = open_data(root)
    assert (source.kind, len(source.classes), source.classes[149]) == ("ade20k", 150, "class 150")
    assert part(source, "val").mask(0).tolist() == [[IGNORE, 0, 149], [1, IGNORE, IGNORE]]
    rows = "\n".join(f"{i}\t0.1\t10\t5\tname {i if i > 2 else 1}, other" for i in range(1, 151))
    (root / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{rows}\n")
    assert open_data(root).classes[:3] == ("name 1 (1)", "name 1 (2)", "name 3")
    plain = root.rename(tmp_path / "mine")
    assert open_data(f"ADE20K:{plain}").kind == "ade20k"
    (plain / "objectInfo150.txt").unlink()
    assert open_data(plain).kind == "masks"  # other sets call their folders so too
    assert open_data(plain, masks=MaskConfig(reduce_zero_label=True)).classes == ("class 1", "class 2", "class 150")


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(tmp_path: Path, mask: Any, train_ids: bool) -> None:
    ids = np.array([[0, 7, 26], [33, 5, 255]], np.uint8)
    answer = [[IGNORE, 0, 13], [18, IGNORE, IGNORE]]
    for split, city in (("train", "ulm"), ("val", "bonn")):
        name = f"{city}_000001_000019"
        picture, label = f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", f"gtFine/{split}/{city}/{name}_gtFine"
        place(tmp_path, picture, f"{label}_labelIds.png", ids, mask)
        mask(tmp_path / f"{label}_color.png", np.zeros((2, 3, 3), np.uint8))
        if train_ids:
            mask(tmp_path / f"{label}_labelTrainIds.png", np.array(answer, np.int16).astype(np.uint8))  # -1 is 255
    source = open_data(tmp_path)
    assert (source.kind, source.classes[13], part(source, "train").colours[13]) == ("cityscapes", "car", (0, 0, 142))
    assert source.classes == tuple(name for name, _, _ in CITYSCAPES)
    assert part(source, "val").mask(0).tolist() == answer


@pytest.mark.parametrize("inner", ["", "VOCdevkit/VOC2012/"])
def test_pascal_voc(tmp_path: Path, mask: Any, inner: str) -> None:
    values = np.array([[0, 15, 255], [20, 1, 0]], np.uint8)
    for stem in ("a", "b", "unlabelled"):
        place(tmp_path, f"{inner}JPEGImages/{stem}.jpg", f"{inner}SegmentationClass/{stem}.png", values, mask)
    (tmp_path / f"{inner}SegmentationClass/unlabelled.png").unlink()
    lists = tmp_path / f"{inner}ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", "a"), ("val", "b"), ("trainval", "a\nb"), ("test", "unlabelled")):
        (lists / f"{name}.txt").write_text(stems + "\n")
    source = open_data(tmp_path)
    train = part(source, "train")
    assert (source.kind, len(source.classes), train.colours[15]) == ("voc", 21, (192, 128, 128))
    assert train.background is None
    assert train.mask(0).tolist() == [[0, 15, IGNORE], [20, 1, 0]]
    assert [problem.kind for problem in source.problems] == ["no-masks"]
    (lists / "val.txt").write_text("b\ngone\n")
    with pytest.raises(DataError, match=r"val.txt: names gone, which has no image; .* \(and 1 more"):
        open_data(tmp_path)
