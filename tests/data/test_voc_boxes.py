"""Pascal VOC XML: read by the development kit's convention, hostile files refused unread, every fault named."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hostile
from annotating import HEIGHT, WIDTH, box, coco, pictures, voc, voc_object, voc_xml
from swindow.data import ObjectConfig, check, open_data
from swindow.data.annotations import Faults
from swindow.data.voc_boxes import read_voc_file
from swindow.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
LAUGHS = (
    "<!DOCTYPE lolz [<!ENTITY lol0 'lol'>"
    + "".join(f"<!ENTITY lol{n} '{f'&lol{n - 1};' * 10}'>" for n in range(1, 10))
    + "]><annotation><filename>&lol9;</filename></annotation>"
)
EXTERNAL = "<!DOCTYPE a [<!ENTITY x SYSTEM 'file://{}'>]><annotation><filename>&x;</filename></annotation>"
REMOTE = "<!DOCTYPE annotation SYSTEM 'http://192.0.2.1/a.dtd'><annotation></annotation>"
QUADRATIC = f"<!DOCTYPE a [<!ENTITY x '{'x' * 50_000}'>]><annotation>{'&x;' * 10_000}</annotation>"
PARAMETER = "<!DOCTYPE a [<!ENTITY % p SYSTEM 'file://{}'> %p;]><annotation/>"


def test_pixels_count_from_one_and_the_last_belongs_to_the_box(tmp_path: Path) -> None:
    files = {
        "a": voc_xml(voc_object("dog", (1, 1, WIDTH, HEIGHT)), voc_object("cat", (11, 9, 30, 24))),
        "b": voc_xml(voc_object("cat", (0, 0, 30, 24))),  # counts from 0
        "c": voc_xml(),
        "d": voc_xml(voc_object("dog", ("11.5", "9", "30.5", "24"), difficult=1)),
    }
    source: Any = open_data(voc(tmp_path, files, {"train": "abc", "val": "d", "dog_train": "a"}))
    assert (source.kind, source.task, source.classes) == ("voc-boxes", "detect", ("cat", "dog"))
    assert source.train.objects(0).boxes.tolist() == [[0, 0, WIDTH, HEIGHT], [10, 8, 30, 24]]
    assert source.train.objects(0).labels.tolist() == [1, 0]
    assert source.train.objects(1).boxes.tolist() == [[0, 0, 30, 24]]
    assert len(source.train.objects(2)) == 0
    assert source.val.objects(0).boxes.tolist() == [[10.5, 8, 30.5, 24]]
    assert source.val.category_ids == (1, 2)
    assert source.problems == ()
    assert source.note == "1 image without an object"


@pytest.mark.parametrize(
    ("difficult", "crowd"), [("crowd", [True, False]), ("keep", [False, False]), ("drop", [False])]
)
def test_difficult_objects(tmp_path: Path, difficult: Any, crowd: list[bool]) -> None:
    root = voc(tmp_path, {"a": voc_xml(voc_object(difficult=1), voc_object(difficult=0))})
    source: Any = open_data(root, val_fraction=0.0, objects=ObjectConfig(difficult=difficult))
    assert source.train.objects(0).crowd.tolist() == crowd
    assert ("1 difficult left out" in source.note) == (difficult == "drop")


def test_layouts(tmp_path: Path) -> None:
    one = {"a": voc_xml(voc_object()), "b": voc_xml(voc_object("dog"))}
    kit = voc(tmp_path / "kit" / "VOCdevkit" / "VOC2012", one, {"train": "a", "val": "b", "trainval": "ab"})
    with pytest.raises(DataError, match=r"b.xml, object 1: class 'dog' is none of cat"):
        open_data(tmp_path / "kit")
    (kit / "classes.txt").write_text("cat\ndog\n")
    source = open_data(tmp_path / "kit")
    assert {split: len(images) for split, images in source.splits().items()} == {"train": 1, "val": 1}
    whole = open_data(voc(tmp_path / "whole", one, {"trainval": "ab"}), val_fraction=0.0)
    assert len(whole.split("train")) == 2
    for split in ("train", "valid"):
        pictures(tmp_path / "beside" / split, ["a.jpg", "b.jpg", "c.jpg"], seed=len(split))
        for stem, text in one.items():
            (tmp_path / "beside" / split / f"{stem}.xml").write_text(text)
    beside = open_data(tmp_path / "beside")
    assert {split: len(images) for split, images in beside.splits().items()} == {"train": 3, "val": 3}
    assert open_data(tmp_path / "beside" / "train", val_fraction=0.0).kind == "voc-boxes"


def test_coco_goes_before_voc_and_says_so(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(voc_object()), "b": voc_xml()})
    assert open_data(root, val_fraction=0.0).kind == "voc-boxes"
    coco(root / "annotations_coco" / "train.json", [box(1, 1)], folder=root / "JPEGImages")
    source = open_data(root, val_fraction=0.0)
    assert source.kind == "coco"
    assert f"its XML files are not read (voc-boxes:{root} reads them)" in source.describe()
    assert open_data(f"voc-boxes:{root}", val_fraction=0.0).kind == "voc-boxes"
    assert open_data(f"voc:{root}", task="detect", val_fraction=0.0).kind == "voc-boxes"


def test_masks_of_voc_stay_masks(tmp_path: Path, mask: Any) -> None:
    import numpy as np

    root = voc(tmp_path, {"a": voc_xml(voc_object()), "b": voc_xml()}, {"train": "a", "val": "b"})
    (root / "ImageSets" / "Segmentation").mkdir()
    for split, stem in (("train", "a"), ("val", "b")):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{stem}\n")
        mask(root / "SegmentationClass" / f"{stem}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    assert open_data(root).kind == "voc"
    assert open_data(f"voc:{root}").task == "segment"
    assert open_data(root, task="detect").kind == "voc-boxes"


@pytest.mark.parametrize("text", [LAUGHS, EXTERNAL, REMOTE, QUADRATIC, PARAMETER])
def test_entities_are_refused_at_once_and_never_looked_up(tmp_path: Path, text: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hush")
    path = tmp_path / "a.xml"
    path.write_text(text.format(secret))
    faults = Faults(ObjectConfig())
    read_voc_file(str(path), Faults(ObjectConfig()), "keep")  # the parser itself is imported here
    touched: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "socket.connect", "socket.getaddrinfo", "urllib.Request"):
            touched.append(str(arguments[0]))

    watching = True
    sys.addaudithook(watch)
    began = time.process_time()
    assert read_voc_file(str(path), faults, "keep") is None
    spent = time.process_time() - began
    watching = False
    assert touched == [str(path)]
    assert spent <= 0.05
    (problem,) = faults.problems
    assert (problem.kind, problem.fatal) == ("forbidden-xml", True)
    assert str(path) in problem.message


def plant(root: Path) -> dict[tuple[str, str], str]:
    """A source with every fault: kind and place of each, and the policy it is under."""
    good = voc_object()
    files = {
        "good": voc_xml(good),
        "broken": voc_xml(good)[:-20],
        "laughs": LAUGHS,
        "swapped": voc_xml(good, voc_object(corners=(30, 9, 11, 24))),
        "flat": voc_xml(good, voc_object(corners=(11, 9, 30, 9))),
        "sizeless": voc_xml(good, size=None),
        "zero": voc_xml(good, size=(0, 0)),
        "other": voc_xml(good, size=(99, 99)),
        "turned": voc_xml(good, size=(WIDTH, HEIGHT)),
        "unknown": voc_xml(good, voc_object("unicorn")),
        "nameless": voc_xml(voc_object("")),
        "words": voc_xml(good, voc_object(corners=("one", 2, 3, 4))),
        "nan": voc_xml(voc_object(corners=("nan", 2, 30, 40))),
        "boxless": voc_xml("<object><name>cat</name></object>"),
        "outside": voc_xml(voc_object(corners=(40, 20, 100, 40))),
        "beyond": voc_xml(voc_object(corners=(140, 20, 200, 40))),
        "negative": voc_xml(voc_object(corners=(-9, 20, 20, 40))),
        "html": "<html><body>404</body></html>",
        "empty": "",
        "absent": voc_xml(good),
        "hard": voc_xml(voc_object("dog", difficult=1)),
        "torn": voc_xml(good),
        "encoded": "<?xml version='1.0' encoding='nonsense'?>" + voc_xml(good),
    }
    voc(root, files)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "JPEGImages" / "absent.jpg").unlink()
    (root / "JPEGImages" / "torn.jpg").write_bytes(hostile.cut("JPEG", 0.5))
    pictures(root / "JPEGImages", ["unmarked.jpg"], seed=99)
    return {
        ("bad-xml", "broken.xml"): "malformed",
        ("forbidden-xml", "laughs.xml"): "malformed",
        ("empty-box", "swapped.xml, object 2"): "empty",
        ("empty-box", "flat.xml, object 2"): "empty",
        ("missing-size", "sizeless.xml"): "",
        ("missing-size", "zero.xml"): "",
        ("other-size", "other.xml"): "malformed",
        ("turned-size", "turned.xml"): "malformed",
        ("unknown-category", "unknown.xml, object 2"): "malformed",
        ("bad-annotation", "nameless.xml, object 1"): "malformed",
        ("bad-annotation", "words.xml, object 2"): "malformed",
        ("bad-annotation", "nan.xml, object 1"): "malformed",
        ("bad-annotation", "boxless.xml, object 1"): "malformed",
        ("outside-box", "outside.xml, object 1"): "outside",
        ("empty-box", "beyond.xml, object 1"): "empty",
        ("outside-box", "negative.xml, object 1"): "outside",
        ("bad-xml", "html.xml"): "malformed",
        ("bad-xml", "empty.xml"): "malformed",
        ("missing-image", "absent.xml"): "malformed",
        ("unreadable", "torn.jpg"): "",
        ("bad-xml", "encoded.xml"): "malformed",
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
    if malformed == "stop":
        with pytest.raises(DataError, match="more: `swindow data check` lists all"):
            open_data(tmp_path)
        return
    source: Any = open_data(tmp_path, objects=ObjectConfig(malformed="drop"), val_fraction=0.0)
    names = {Path(name).stem for name in source.train.names}
    assert {"broken", "laughs", "other", "turned", "html", "empty", "absent", "encoded"}.isdisjoint(names)
    assert {"unmarked", "nameless", "hard"} <= names
    of = dict(zip((Path(name).stem for name in source.train.names), range(len(names)), strict=True))
    assert len(source.train.objects(of["swapped"])) == 1
    assert source.train.objects(of["outside"]).boxes.tolist() == [[39, 19, WIDTH, 40]]
    assert len(source.train.objects(of["unmarked"])) == 0


def test_a_list_that_names_nothing_is_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": voc_xml(voc_object())}, {"train": ["a", "zebra"]})
    with pytest.raises(DataError, match="names zebra, which has neither an image"):
        open_data(root)


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="the data set bccd is not here")
def test_bccd_by_xml_and_by_json_differ_by_the_convention_alone() -> None:
    xml: Any = open_data(f"voc-boxes:{SHARED / 'bccd'}")
    json: Any = open_data(SHARED / "bccd")
    assert "2 left out" in xml.note
    assert len(xml.train) == len(json.train)
    rows = {Path(name).name: row for row, name in enumerate(json.train.names)}
    for row in range(0, len(xml.train), 10):
        one, two = xml.train.objects(row), json.train.objects(rows[Path(xml.train.names[row]).name])
        assert len(one) == len(two)
        assert (one.boxes[:, 2:] == two.boxes[:, 2:]).all()
        assert (two.boxes[:, :2] - one.boxes[:, :2]).min() >= 0
        assert (two.boxes[:, :2] - one.boxes[:, :2]).max() <= 1


def test_a_size_that_no_picture_has_is_none(tmp_path: Path) -> None:
    for sides in ((10**300, WIDTH), (HEIGHT, 2**63)):
        (tmp_path / "a.xml").write_text(voc_xml(voc_object(), size=sides))
        said: Any = read_voc_file(str(tmp_path / "a.xml"), Faults(ObjectConfig()), "crowd")
        assert said.size is None
        assert len(said.objects) == 1
