"""What `data check` lists of pictures with masks must be what was planted; training looks at a sample of it first."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile
from swindow.data import MaskConfig, check, open_data, sample_check
from swindow.errors import DataError

TABLE = "0 background 0 0 0\n1 sky 0 0 255\n2 sea 0 255 0\n255 void 9 9 9\n"
RIGHT = [(0, 0, 0), (0, 0, 255), (0, 255, 0)]


def plant(root: Path, scenes: Any, mask: Any) -> dict[tuple[str, str], bool]:
    """A source with every kind of problem: (path, kind) of each, and whether training refuses it."""
    scenes(root, count=20)
    train, values = root / "masks/train", np.zeros((20, 24), np.uint8)
    values[4:9] = 1
    (root / "classes.txt").write_text(TABLE)
    mask(train / "00.png", values[:, :-1])
    mask(train / "01.png", np.full((20, 24, 3), 77, np.uint8))
    mask(train / "02.png", values * 7)
    mask(train / "03.png", values.astype(np.uint16) * 9000)
    (train / "04.png").unlink()
    mask(train / "05.png", values * 0)
    mask(train / "06.png", values * 0 + 255)
    (root / "images/train/07.png").unlink()
    mask(train / "08.png", values, [(0, 0, 0), (0, 255, 0), (0, 0, 255)])  # sky and sea, the other way round
    mask(train / "09.png", values, [(0, 0, 0), (50, 60, 70)])
    mask(train / "10.png", values, RIGHT)  # as it should be
    mask(train / "11.png", values, [(0, 0, 0), (1, 1, 1)])  # a ramp of greys says nothing
    (train / "12.png").write_bytes(hostile.encode(values, "JPEG"))
    (train / "13.png").write_bytes(hostile.encode(values, "PNG")[:60])
    (root / "images/train/14.png").write_bytes(hostile.png(30_000, 30_000, depth=1))
    mask(train / "15.png", np.dstack([values] * 4))
    (root / "images/train/16.png").write_bytes(b"")
    shutil.copy(root / "images/train/17.png", root / "images/val/03.png")
    mask(train / "18.png", np.array([[RIGHT[v] for v in row] for row in values], np.uint8))  # colours of the table
    shutil.copy(train / "19.png", train / "19_mask.bmp")  # as good a twin, but not the first choice
    images = root / "images/train"
    return {
        (str(train / "00.png"), "mask-size"): True,
        (str(train / "01.png"), "mask-value"): True,
        (str(train / "02.png"), "mask-value"): True,
        (str(train / "03.png"), "mask-value"): True,
        (str(images / "04.png"), "missing-mask"): True,
        (str(train / "05.png"), "empty-mask"): False,
        (str(train / "06.png"), "all-ignore"): False,
        (str(train / "07.png"), "missing-image"): False,
        (str(train / "08.png"), "palette"): True,
        (str(train / "09.png"), "palette"): False,
        (str(train / "12.png"), "bad-mask"): True,
        (str(train / "13.png"), "unreadable"): False,
        (str(images / "14.png"), "too-large"): False,
        (str(train / "15.png"), "bad-mask"): True,
        (str(images / "16.png"), "unreadable"): False,
        (str(root / "images/val/03.png"), "duplicate-across-splits"): False,
        (str(train / "19_mask.bmp"), "missing-image"): False,
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_planted_is_reported_exactly(tmp_path: Path, scenes: Any, mask: Any, workers: int) -> None:
    planted = plant(tmp_path, scenes, mask)
    report = check(tmp_path, workers=workers)
    assert {(problem.path, problem.kind): problem.fatal for problem in report.problems} == planted
    assert len(report.problems) == len(planted)
    assert report.images == {"train": 18, "val": 20}
    assert list(report.classes) == ["background", "sky", "sea"]
    for problem in report.problems:
        assert problem.path in problem.message
        assert "; " in problem.message  # what to do
        assert "\n" not in problem.message
    assert (
        report.text().splitlines()[-1].startswith("17 problems: all-ignore 1, bad-mask 2, duplicate-across-splits 1,")
    )


def test_a_sound_source_has_no_problems(tmp_path: Path, scenes: Any, volume: Any) -> None:
    scenes(tmp_path / "files")
    report = check(tmp_path / "files")
    assert (report.problems, report.images) == ((), {"train": 6, "val": 6})
    assert report.classes == {"class 0": 12, "class 1": 12, "class 2": 12}
    assert sample_check(open_data(tmp_path / "files")) == []
    volume(tmp_path / "volumes/train/a.npz")
    volume(tmp_path / "volumes/val/b.npz", seed=1)
    assert check(tmp_path / "volumes").problems == ()
    assert sample_check(open_data(tmp_path / "volumes")) == []


def test_colours_without_a_table(tmp_path: Path, scenes: Any, mask: Any) -> None:
    scenes(tmp_path)
    mask(tmp_path / "masks/train/02.png", np.zeros((20, 24, 3), np.uint8))
    problems = check(tmp_path).problems
    assert [(problem.kind, problem.path) for problem in problems] == [
        ("rgb-mask", str(tmp_path / "masks/train/02.png"))
    ]
    for path in (tmp_path / "masks").rglob("*.png"):
        mask(path, np.zeros((20, 24, 3), np.uint8))
    assert check(tmp_path).counts == {"no-classes": 1, "rgb-mask": 12}


def test_classes_that_nothing_shows(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    (problem,) = check(tmp_path).problems
    assert (problem.kind, problem.path, problem.fatal) == ("unused-class", "d", False)


def test_palettes_that_differ(tmp_path: Path, scenes: Any, mask: Any) -> None:
    for number, path in enumerate(scenes(tmp_path)):
        values = np.zeros((20, 24), np.uint8)
        values[:9] = 1
        mask(Path(path), values, [(0, 0, 0), (255, 0, 0) if number != 4 else (0, 255, 0)])
    (problem,) = check(tmp_path).problems
    assert (problem.kind, problem.fatal, problem.path) == ("palette", False, str(tmp_path / "masks/train/04.png"))
    assert "paints value 1 (0, 255, 0), that of" in problem.message


def test_cases_in_two_splits(tmp_path: Path, scenes: Any, volume: Any) -> None:
    scenes(tmp_path / "files", count=3)
    for split, names in (("train", ("p1-0", "p1-1", "p2-0")), ("val", ("p2-1", "p2-2", "q"))):
        for number, name in enumerate(names):
            for folder in ("images", "masks"):
                path = tmp_path / "files" / folder / split / f"{number:02d}.png"
                path.rename(path.with_name(f"{name}.png"))
    masks = MaskConfig(case=r"p\d")
    problems = check(tmp_path / "files", masks=masks).problems
    assert [(problem.kind, Path(problem.path).name, problem.fatal) for problem in problems] == [
        ("case-across-splits", "p2-1.png", False),
        ("no-case", "q.png", True),
    ]
    assert "case 'p2' of val is also in train" in problems[0].message
    loose = MaskConfig(case=r"[pq]\d?")
    assert [problem.kind for problem in sample_check(open_data(tmp_path / "files", masks=loose))] == [
        "case-across-splits"
    ]
    for split, seed in (("train", 0), ("val", 1)):
        volume(tmp_path / "volumes" / split / "patient.npz", seed=seed)
    assert check(tmp_path / "volumes").counts == {"case-across-splits": 1}


@pytest.mark.parametrize("bad", ["size", "value", "palette"])
def test_training_stops_at_what_a_sample_shows(tmp_path: Path, scenes: Any, mask: Any, bad: str) -> None:
    scenes(tmp_path, count=10)
    (tmp_path / "classes.txt").write_text(TABLE)
    path = tmp_path / "masks/val/07.png"
    values = np.ones((20, 24), np.uint8)
    if bad == "palette":
        mask(path, values, [(0, 0, 0), (0, 255, 0)])
    else:
        mask(path, values[:5] if bad == "size" else values * 8)
    source = open_data(tmp_path)
    with pytest.raises(DataError, match=r"07\.png: "):
        sample_check(source)
    few = [sample_check_or_none(source, most=2, seed=seed) for seed in range(20)]
    assert 0 < few.count(None) < 20  # two of ten: found by some seeds, not by all


def sample_check_or_none(source: Any, **how: Any) -> list[Any] | None:
    try:
        return sample_check(source, **how)
    except DataError:
        return None


def test_training_on_nothing_is_refused(tmp_path: Path, scenes: Any, mask: Any) -> None:
    for path in scenes(tmp_path):
        mask(Path(path), np.full((20, 24), 255, np.uint8))
    (tmp_path / "classes.txt").write_text(TABLE)
    with pytest.raises(DataError, match="every pixel of 6 training masks looked at is ignored"):
        sample_check(open_data(tmp_path))


def test_volumes_are_sampled_too(tmp_path: Path, volume: Any) -> None:
    for number in range(3):
        volume(tmp_path / "train" / f"v{number}.npz", seed=number)
    image = np.full((5, 8, 10), np.nan, np.float32)
    volume(tmp_path / "val" / "bad.npz", image=image)
    with pytest.raises(DataError, match=r"bad.npz: 400 of 400 voxels are NaN or infinite"):
        sample_check(open_data(tmp_path))
    volume(tmp_path / "val" / "bad.npz", label=np.zeros((5, 8, 10), np.uint8))
    problems = sample_check(open_data(tmp_path))
    assert [(problem.kind, Path(problem.path).name) for problem in problems] == [("empty-mask", "bad.npz")]


def test_labelled_images_have_nothing_to_sample(tmp_path: Path, classes: Any) -> None:
    assert sample_check(open_data(classes(tmp_path, {"a": 3, "b": 3}))) == []
