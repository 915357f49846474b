"""Faults in COCO JSON: every one named with file and number, clipped, left out or refused; little memory is taken."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hostile
from annotating import HEIGHT, WIDTH, blob, box, coco, packed, pictures, polygon, runs
from swindow.data import ObjectConfig, check, open_data
from swindow.data.outlines import run_fault
from swindow.errors import DataError

DROP = ObjectConfig(malformed="drop")


def plant(root: Path) -> dict[tuple[str, str], str]:
    """A JSON with every fault, each found by (kind, what the message calls it), and which policy it is under."""
    square, mask = polygon(10, 8, 20, 16), packed(blob())
    damaged = [
        box(1, 1, segmentation=square),
        box(2, 99, segmentation=square),
        box(3, 1, category=77, segmentation=square),
        box(4, 1, (10, 8, -20, 16), segmentation=square),
        box(5, 1, (10, 8, 20, 0), segmentation=square),
        box(6, 1, (50, 40, 40, 40), segmentation=square),
        box(7, 1, (700, 400, 20, 20), segmentation=square),
        box(8, 1, ["10", "8", "20", "16"], segmentation=square),
        box(9, 1, (10, 8, 20), segmentation=square),
        box(10, 2, iscrowd=1, segmentation=runs(blob())),
        box(11, 1, segmentation=[[10, 8, 20, 16]]),
        box(12, 1, segmentation=[[10, 8, 20, 16, 20, 16, 3]]),
        box(13, 1, segmentation=[[1e9, 8, 20, 16, 20, 40]]),
        box(14, 1, (1e9, 1e9, 20, 16), segmentation=square),
        box(15, 2, (float("nan"), 8, 20, 16), segmentation=square),
        box(16, 2, (10, 8, float("inf"), 16), segmentation=square),
        box(1, 2, segmentation=square),
        box(17, 2, segmentation=mask | {"counts": mask["counts"][:-3]}),
        box(18, 2, segmentation=mask | {"size": [WIDTH, HEIGHT]}),
        box(19, 2, segmentation=mask | {"counts": [5, -2, HEIGHT * WIDTH - 3]}),
        box(20, 2, segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
        box(21, 2, segmentation="nothing"),
        box(22, 2, category="1", segmentation=square),
        {"id": 23, "image_id": 2, "category_id": 1},
        box(24, 4, segmentation=square),  # its picture is missing, which is said once
        box(25, 2, segmentation=[[10, 10, 10.1, 10, 10.1, 10.1]]),
        box(26, 2, segmentation=mask | {"counts": "\u00e9"}),
        box(27, 1, (-0.4, 0, 64.8, 48), segmentation=square),  # rounding
    ]
    images = [{"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in range(1, 13)]
    images[4]["id"] = 3
    images[5]["width"] = 99
    images[6] |= {"width": HEIGHT, "height": WIDTH}
    del images[7]["width"]
    images[8]["file_name"] = 5
    images[10]["height"] = "48"
    file = coco(root / "train.json", damaged, images=12)
    about = json.loads(file.read_text()) | {"images": images}
    file.write_text(json.dumps(about))  # Python writes NaN and Infinity
    (root / "4.png").unlink()
    (root / "10.png").write_bytes(b"")
    (root / "12.png").write_bytes(hostile.encode(hostile.picture(9), "PNG")[:80])
    return {
        ("unknown-image", "annotation 2"): "malformed",
        ("unknown-category", "annotation 3"): "malformed",
        ("empty-box", "annotation 4"): "empty",
        ("empty-box", "annotation 5"): "empty",
        ("outside-box", "annotation 6"): "outside",
        ("empty-box", "annotation 7"): "empty",
        ("bad-annotation", "annotation 8"): "malformed",
        ("bad-annotation", "annotation 9"): "malformed",
        ("bad-mask", "annotation 11"): "malformed",
        ("bad-mask", "annotation 12"): "malformed",
        ("outside-box", "annotation 13"): "outside",
        ("empty-box", "annotation 14"): "empty",
        ("bad-annotation", "annotation 15"): "malformed",
        ("bad-annotation", "annotation 16"): "malformed",
        ("duplicate-annotation-id", "annotation 1"): "",
        ("bad-mask", "annotation 17"): "malformed",
        ("bad-mask", "annotation 18"): "malformed",
        ("bad-mask", "annotation 19"): "malformed",
        ("empty-box", "annotation 20"): "empty",
        ("bad-mask", "annotation 21"): "malformed",
        ("bad-annotation", "annotation 22"): "malformed",
        ("bad-annotation", "annotation 23"): "malformed",
        ("empty-mask", "annotation 25"): "",
        ("bad-mask", "annotation 26"): "malformed",
        ("duplicate-image-id", "image 3"): "malformed",
        ("missing-image", "image 4"): "malformed",
        ("other-size", "image 6"): "malformed",
        ("turned-size", "image 7"): "malformed",
        ("missing-size", "image 8"): "",
        ("bad-image", "image 9"): "malformed",
        ("bad-image", "image 11"): "malformed",
        ("unreadable", "10.png"): "",
        ("unreadable", "12.png"): "",
        ("unused-class", "class 'dog'"): "",
    }


def named(problem: Any, root: Path) -> tuple[str, str]:
    """Kind and the place that the message begins with."""
    text = problem.message.replace(f"{root}/", "").replace("train.json, ", "")
    for word in ("1.png, ", "2.png, "):
        text = text.removeprefix(word)
    return problem.kind, text.partition(":")[0].partition(" has no")[0]


@pytest.mark.parametrize("malformed", ["stop", "drop"])
def test_planted_is_reported_exactly(tmp_path: Path, malformed: Any) -> None:
    planted = plant(tmp_path)
    report = check(tmp_path / "train.json", objects=ObjectConfig(malformed=malformed))
    found = {named(problem, tmp_path): problem for problem in report.problems}
    assert set(found) == set(planted)
    assert len(report.problems) == len(planted)
    for place, problem in found.items():
        assert problem.fatal == (planted[place] == "malformed" and malformed == "stop"), place
        assert "; " in problem.message or planted[place] == ""
        assert "\n" not in problem.message
    assert report.notes.endswith("images without an object")
    assert report.images == {"train": 6}


def test_training_stops_at_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    fatal = sum(policy == "malformed" for policy in planted.values())
    with pytest.raises(DataError, match=rf"image 9: .*\(and {fatal - 1} more: `swindow data check` lists all\)$"):
        open_data(tmp_path / "train.json")
    source: Any = open_data(tmp_path / "train.json", objects=DROP, val_fraction=0.0)
    dropped = sum(policy in ("malformed", "empty") for policy in planted.values())
    assert source.note.startswith(f"of the annotations 2 clipped, {dropped} left out; ")
    kept = [source.train.objects(row) for row in range(len(source.train))]
    assert sum(map(len, kept)) == 7  # 1, 1, 6, 10, 13, 25, 27
    sizes = torch.tensor([WIDTH, HEIGHT])
    for objects in kept:
        assert (objects.boxes >= 0).all()
        assert (objects.boxes.view(-1, 2, 2) <= sizes).all()
        assert (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()
    strict = ObjectConfig(malformed="drop", empty="stop", outside="stop")
    with pytest.raises(DataError, match=r"\(and 6 more"):
        open_data(tmp_path / "train.json", objects=strict)
    fewer: Any = open_data(tmp_path / "train.json", objects=ObjectConfig(malformed="drop", outside="drop"))
    assert sum(len(fewer.train.objects(row)) for row in range(len(fewer.train))) <= 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[1, 2]", "is no COCO JSON"),
        ('{"images": []}', "is no COCO JSON"),
        ('{"images": 5, "annotations": [], "categories": []}', "is no COCO JSON"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "categories"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "is there twice"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "is there twice"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "there are no images"),
        ('{"images": ' + "[" * 100_000, "without end"),
        ('{"images": [{"id": NaN, "file_name": "a"}], "categories": [NaN', "ends too early"),
    ],
)
def test_what_is_no_coco_json_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=expected) as caught:
        open_data(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value) or expected == "there are no images"
    assert "; " in str(caught.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, part: float) -> None:
    file = coco(tmp_path / "a.json", [box(n, 1 + n % 3) for n in range(30)])
    file.write_text(file.read_text()[: int(file.stat().st_size * part)])
    with pytest.raises(DataError, match="ends too early"):
        open_data(file)
    (problem,) = check(file).problems
    assert (problem.kind, problem.fatal) == ("bad-json", True)


def test_numbers_that_are_none_in_names_stay(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [box(1, 1, (float("nan"), 1, 2, 3)), box(2, 1)], images=1)
    pictures(tmp_path, ["NaN, Infinity.png"])
    text = file.read_text().replace('"1.png"', '"NaN, Infinity.png"').replace('"dog"', '"a \\" NaN"')
    file.write_text(text)
    source = open_data(file, objects=DROP, val_fraction=0.0)
    assert source.split("train").names == [str(tmp_path / "NaN, Infinity.png")]
    assert source.classes == ("cat", 'a " NaN')


def test_mutated_files_never_raise_anything_else(tmp_path: Path) -> None:
    shapes = [polygon(10, 8, 20, 16), packed(blob()), runs(blob())]
    file = coco(tmp_path / "a.json", [box(n, 1 + n % 3, segmentation=shapes[n % 3]) for n in range(6)])
    whole, draw = file.read_bytes(), random.Random(0)  # noqa: S311
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 8])):
            data[draw.randrange(len(data))] = draw.choice(b'0123456789-eE.,:"[]{} nNaul\x00\xff')
        file.write_bytes(data)
        try:
            source: Any = open_data(file, objects=DROP, val_fraction=0.0)
            for row in range(len(source.train)):
                source.train.objects(row)
        except DataError:
            refused += 1
    assert 100 < refused < 390


def test_exif_orientation_is_told(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [box(1, 1)], images=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "1.png").write_bytes(hostile.encode(hostile.picture(), "PNG", exif=turned))
    with pytest.raises(DataError, match="is 48 × 64, by its annotations 64 × 48 as it is before its EXIF orientation"):
        open_data(file)


def test_a_size_that_changes_later_is_met_when_the_picture_is_read(tmp_path: Path) -> None:
    source: Any = open_data(coco(tmp_path / "a.json", [box(1, 1)]), val_fraction=0.0)
    pictures(tmp_path, ["1.png"], width=80)
    with pytest.raises(DataError, match=r"1.png: is 80 × 48, by its annotations 64 × 48; "):
        source.train.pair(0)


def test_problems_of_one_kind_are_told_up_to_a_thousand(tmp_path: Path) -> None:
    file = coco(tmp_path / "a.json", [box(n, 1, (1, 1, -1, 5)) for n in range(1, 1_501)] + [box(0, 1)])
    source = open_data(file, val_fraction=0.0)
    empty = [problem for problem in source.problems if problem.kind == "empty-box"]
    assert len(empty) == 1_001
    assert empty[-1].message == "500 more of empty-box; `swindow data check` lists all"
    assert check(file).counts["empty-box"] == 1_500
    assert "1,500 left out" in source.note


# Memory

PEAK = """
import os, sys
import msgspec, swindow.data, swindow.data.coco
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
before = peak()
source = swindow.data.open_data(sys.argv[1], val_fraction=0.0)
print((peak() - before) / os.path.getsize(sys.argv[1]), source.train.count_objects())
"""


def write_large(folder: Path, megabytes: int, points: int) -> tuple[Path, int]:
    """A JSON of that size with polygons of so many points (0: none), and how many objects it has."""
    coco(folder / "large.json", [], images=50)
    draw, count, size = random.Random(0), 0, 0  # noqa: S311
    with (folder / "large.json").open("r+") as stream:
        head, tail = stream.read().split('"annotations": []')
        stream.seek(0)
        stream.write(head + '"annotations": [')
        while size < megabytes * 1e6:
            x, y, w, h = (round(draw.uniform(1, 20), 2) for _ in range(4))
            shape = [[round(draw.uniform(0, 48), 2) for _ in range(2 * points)]] if points else []
            text = ", " * (count > 0) + json.dumps(box(count, 1 + count % 50, (x, y, w, h), segmentation=shape))
            stream.write(text)
            size, count = size + len(text), count + 1
        stream.write("]" + tail)
    return folder / "large.json", count


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(
    ("megabytes", "points"),
    [
        (20, 0),
        pytest.param(20, 20, marks=pytest.mark.slow),
        pytest.param(200, 0, marks=pytest.mark.slow),
        pytest.param(200, 20, marks=pytest.mark.slow),
    ],
)
def test_peak_memory_is_at_most_eight_times_the_file(tmp_path: Path, megabytes: int, points: int) -> None:
    file, count = write_large(tmp_path, megabytes, points)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(file)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    ratio, objects = done.stdout.split()
    assert int(objects) == count
    assert float(ratio) <= 8, done.stdout


@pytest.mark.parametrize("number", [[1], {"a": 1}, None, 1.5])
def test_numbers_that_are_none_are_refused_like_others(tmp_path: Path, number: Any) -> None:
    file = coco(tmp_path / "a.json", [box(1, 1)], images=2)
    about = json.loads(file.read_text())
    about["images"][1]["id"] = number
    file.write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"a\.json, image .*id"):
        open_data(file)
    source: Any = open_data(file, objects=DROP, val_fraction=0.0)
    assert len(source.train) == len(source.train.objects(0)) == 1


@pytest.mark.parametrize("area", [1e300, 1e11, -5, 0, None])
def test_areas_larger_than_a_picture_are_not_believed(tmp_path: Path, area: Any) -> None:
    file = coco(tmp_path / "a.json", [box(1, 1, area=area), box(2, 1, area=123.5)])
    source: Any = open_data(file, val_fraction=0.0)
    assert source.train.objects(0).areas.tolist() == [320, 123.5]


def test_runs_whose_sum_wraps_around_are_damaged() -> None:
    pixels = HEIGHT * WIDTH
    for wrong in ([2**62] * 4 + [pixels], [2**63 - 1, 2, 2**63 - 1, pixels]):
        numbers = np.array(wrong, np.int64)
        assert int(numbers.sum()) == pixels
        assert "a run-length code of" in run_fault(numbers, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    assert run_fault(np.array([5, pixels - 5]), (HEIGHT, WIDTH), (HEIGHT, WIDTH)) == ""
