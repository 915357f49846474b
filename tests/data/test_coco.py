"""COCO JSON: read as pycocotools reads it, every fault named with file and number, in little memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from annotating import HEIGHT, WIDTH, blob, box, coco, packed, polygon, runs
from swindow.data import DataSource, ObjectConfig, open_data
from swindow.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
DROP = ObjectConfig(malformed="drop")


def opened(path: Path, **how: Any) -> DataSource:
    return open_data(path, val_fraction=0.0, **how)


def test_objects_are_in_pixels_of_their_picture(tmp_path: Path) -> None:
    file = coco(
        tmp_path / "train.json",
        [box(7, 2, (10, 8, 20, 16), 90), box(3, 1, (0, 0, 64, 48)), box(9, 2, (1.5, 2.5, 3, 4), area=5, iscrowd=1)],
        classes={90: "dog", 1: "cat"},
    )
    source = opened(file)
    assert (source.task, source.kind, source.classes) == ("detect", "coco", ("cat", "dog"))
    train: Any = source.train
    assert train.category_ids == (1, 90)
    assert [train.image_id(row) for row in range(3)] == [1, 2, 3]
    assert [len(train.objects(row)) for row in range(3)] == [1, 2, 0]
    pixels, objects = train.pair(1)
    assert pixels.shape == (3, HEIGHT, WIDTH)
    assert objects.boxes.tolist() == [[10, 8, 30, 24], [1.5, 2.5, 4.5, 6.5]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.crowd.tolist() == [False, True]
    assert objects.areas.tolist() == [320, 5]
    assert objects.masks is None
    assert source.describe() == (
        f"{file} (coco): detection, 2 classes, train 3 colour images of about 48 × 64 with 3 boxes; no val; "
        f"1 image without an object"
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_outlines_become_the_masks_of_pycocotools(tmp_path: Path) -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    draw = np.random.default_rng(0)
    shapes: list[Any] = [packed(blob(1)), runs(blob(2)), polygon(3.2, 4.7, 20.1, 12.3), packed(blob(3))]
    shapes += [np.round(draw.uniform(0, 48, (1, 14)), 2).tolist() for _ in range(20)]
    shapes += [[*np.round(draw.uniform(-0.9, 40, (2, 8)), 1).tolist()]]  # two parts, a little outside
    file = coco(tmp_path / "a.json", [box(n, 1, segmentation=shape) for n, shape in enumerate(shapes)])
    train: Any = opened(file).train
    assert train.has_masks
    masks = train.objects(0).masks
    for mask, shape in zip(masks, shapes, strict=True):
        codes = oracle.frPyObjects(shape, HEIGHT, WIDTH) if isinstance(shape, list) or shape == runs(blob(2)) else shape
        expected = oracle.decode(oracle.merge(codes) if isinstance(codes, list) else codes)
        assert torch.equal(mask, torch.from_numpy(expected.astype(bool)))
    assert train.objects(1).masks.shape == (0, HEIGHT, WIDTH)


def test_polygons_far_beyond_the_picture_are_cut_before_they_are_filled(tmp_path: Path) -> None:
    far = [[-1e9, 10.0, 1e9, 10.0, 1e9, 20.0, -1e9, 20.0], [1e9, 1e9, 2e9, 1e9, 2e9, 2e9]]
    file = coco(tmp_path / "a.json", [box(1, 1, (-1e9, 10, 2e9, 10), segmentation=far)])
    source: Any = opened(file)
    objects = source.train.objects(0)
    assert objects.boxes.tolist() == [[0, 10, 64, 20]]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[10:20] = True
    assert torch.equal(objects.masks[0], expected)
    assert [problem.kind for problem in source.problems] == ["outside-box", "unused-class"]
    assert "1 clipped" in source.note


def test_areas_that_the_file_lacks_are_those_of_masks_or_boxes(tmp_path: Path) -> None:
    lacking = [{k: v for k, v in box(n, 1).items() if k != "area"} for n in (1, 2)]
    plain: Any = opened(coco(tmp_path / "a" / "a.json", lacking)).train
    assert plain.objects(0).areas.tolist() == [320, 320]
    outlined = [one | {"segmentation": packed(blob(4))} for one in lacking]
    masked: Any = opened(coco(tmp_path / "b" / "b.json", outlined)).train
    assert masked.objects(0).areas.tolist() == [blob(4).sum()] * 2


def test_masks_are_used_only_if_every_object_has_one(tmp_path: Path) -> None:
    mixed = [box(1, 1, segmentation=polygon(10, 8, 20, 16)), box(2, 1), box(3, 2, segmentation=[])]
    source: Any = opened(coco(tmp_path / "a.json", mixed))
    assert not source.train.has_masks
    assert source.train.objects(0).masks is None
    (problem,) = [one for one in source.problems if one.kind == "missing-mask"]
    assert problem.message == "2 of 3 objects have no mask, so none is used; outline those too"
    crowd = [box(1, 1, segmentation=polygon(10, 8, 20, 16)), box(2, 1, (4, 4, 8, 8), iscrowd=1)]
    train: Any = opened(coco(tmp_path / "b" / "b.json", crowd)).train
    assert train.has_masks
    assert train.objects(0).masks.sum(dim=(1, 2)).tolist() == [320, 64]


# Where files lie


@pytest.mark.parametrize(
    ("files", "images"),
    [
        ({"train": "annotations/train.json", "val": "annotations/val.json"}, "images"),
        ({"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}, "train2017"),
        ({"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"}, ""),
        ({"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"}, "beside"),
        ({"train": "annotations_coco/train.json", "val": "annotations_coco/val.json"}, "JPEGImages"),
        ({"train": "train.json", "val": "val.json"}, "images/SPLIT"),
    ],
)
def test_layouts(tmp_path: Path, files: dict[str, str], images: str) -> None:
    for split, name in files.items():
        file = tmp_path / name
        folder = file.parent if images == "beside" else tmp_path / images.replace("SPLIT", split)
        if images == "train2017":
            folder = tmp_path / f"{split}2017"
        coco(file, [box(1, 1), box(2, 2, category=2)], folder=folder)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "package.json").write_text("{}")
    for source in (open_data(tmp_path), open_data(tmp_path / files["train"])):
        assert (source.kind, source.task) == ("coco", "detect")
        assert {split: len(images) for split, images in source.splits().items()} == {"train": 3, "val": 3}
        assert source.split_note == "val as found"
    only: Any = open_data(tmp_path / files["val"], for_training=False)
    assert list(only.splits()) == ["val"]


@pytest.mark.parametrize(
    "name", ["result.json", "annotations/instances_default.json", "annotations/my_cats_train.json"]
)
def test_files_of_other_names(tmp_path: Path, name: str) -> None:
    coco(tmp_path / name, [box(1, 1)], folder=tmp_path / "images")
    (tmp_path / "other.json").write_text('{"images": "annotations"}')
    assert len(open_data(tmp_path, val_fraction=0.0).split("train")) == 3
    coco(tmp_path / "annotations" / "instances_train.json", [box(1, 1)], images=2, folder=tmp_path / "images")
    assert len(open_data(tmp_path, val_fraction=0.0).split("train")) == 2


def test_a_file_alone_has_validation_images_held_out(tmp_path: Path) -> None:
    boxes = [box(n, n, category=1 + n % 2) for n in range(1, 31)]
    source = open_data(coco(tmp_path / "data.json", boxes, images=40), val_fraction=0.25, seed=3)
    assert (len(source.split("train")), len(source.split("val"))) == (30, 10)
    val: Any = source.val
    assert sorted(val.labels(row).tolist() for row in range(10)).count([]) in (2, 3)  # in proportion
    again = open_data(tmp_path / "data.json", val_fraction=0.25, seed=3)
    assert list(again.split("val").names) == list(val.names)
    assert source.root == str(tmp_path)
    assert all("/" not in name for name in source.held_out["val"])


def test_relative_paths_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco(tmp_path / "here" / "data.json", [box(1, 1), box(2, 1)], folder=tmp_path / "images")
    monkeypatch.chdir(tmp_path / "here")
    source = open_data("data.json", val_fraction=0.5)
    assert source.split("train").read(0).shape == (3, HEIGHT, WIDTH)
    assert source.held_out["val"] in [("2.png",), ("3.png",)]


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    coco(tmp_path / "annotations" / "train.json", [box(1, 1)], folder=tmp_path / "images")
    coco(tmp_path / "annotations" / "instances_train2017.json", [box(1, 1)], folder=tmp_path / "images")
    with pytest.raises(DataError, match="could be its train annotations"):
        open_data(tmp_path)


def test_classes_of_val_are_matched_by_name(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", [box(1, 1), box(2, 2, category=2)])
    coco(tmp_path / "val.json", [box(1, 1, category=5), box(2, 1, category=9)], classes={5: "dog", 9: "cow"})
    with pytest.raises(DataError, match=r"val.json, annotation 2: category 9 'cow' is none of the classes of train"):
        open_data(tmp_path)
    source: Any = open_data(tmp_path, objects=DROP)
    assert source.val.objects(0).labels.tolist() == [1]
    assert source.val.category_ids[1] == 5
    assert len(set(source.val.category_ids)) == 2


def test_what_has_masks_beside_coco_is_still_coco(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path)
    assert open_data(tmp_path).task == "segment"
    file = coco(tmp_path / "annotations" / "train.json", [box(1, 1, (1, 1, 5, 5))], images=0)
    image = {"id": 1, "file_name": "00.png", "width": 24, "height": 20}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [image]}))
    assert open_data(tmp_path, val_fraction=0.0).task == "detect"
    assert open_data(tmp_path, task="segment").task == "segment"


# Real data


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="the data set bccd is not here")
def test_bccd() -> None:
    source = open_data(SHARED / "bccd")
    assert "coco): detection, 3 classes, train 205 / val 87 colour images of about 480 × 640" in source.describe()
    assert "with 2,804 / 1,137 boxes; val as found; its XML files are not read" in source.describe()
    assert source.classes == ("RBC", "WBC", "Platelets")


@pytest.mark.skipif(not (SHARED / "nuclei-dsb2018").is_dir(), reason="the data set nuclei-dsb2018 is not here")
def test_nuclei() -> None:
    source: Any = open_data(SHARED / "nuclei-dsb2018")
    assert "train 189 / val 63" in source.describe()
    assert "6,000 / 2,454 boxes and masks" in source.describe()
    pixels, objects = source.val.pair(3)
    name = Path(source.val.names[3]).name
    labels = np.asarray(Image.open(SHARED / "nuclei-dsb2018" / "instances" / "val" / name))
    assert objects.masks.shape == (int(labels.max()), *pixels.shape[1:])
    assert np.array_equal(objects.masks.any(0).numpy(), labels > 0)
    assert objects.areas.tolist() == objects.masks.sum(dim=(1, 2)).tolist()
