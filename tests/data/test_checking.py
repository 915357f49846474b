"""What `data check` lists must be what was planted: nothing missed, nothing invented."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile
from swindow.data import Problem, check, duplicates_across, open_data
from swindow.errors import DataError


class Steps:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self.told.append((title, total, done))

    def advance(self, items: int = 1, **_: Any) -> None:
        self.told.append(items)

    def end(self) -> None:
        self.told.append("end")


def plant(root: Path, classes: Any) -> dict[str, str]:
    """A source with every kind of problem; path (or class): kind."""
    train = classes(root / "train", {"apple": 6, "pear": 6, "plum": 1, "void": 0})
    val = classes(root / "val", {"apple": 3, "pear": 3, "ghost": 2})
    planted = {str(path): kind for path, kind in hostile.write_bad(train / "apple" / "bad").items()}
    hostile.write_odd(train / "pear" / "odd")  # unusual, all of it fine
    (train / "pear" / "notes.txt").write_text("not a picture, and does not say so")
    (train / "pear" / "clip.mp4").write_bytes(b"????")
    shutil.copy(train / "apple" / "0.png", val / "apple" / "leak.png")
    shutil.copy(train / "apple" / "1.png", val / "pear" / "leak.png")
    shutil.copy(train / "apple" / "2.png", train / "pear" / "contradiction.png")
    shutil.copy(train / "apple" / "3.png", train / "apple" / "harmless-copy.png")
    shutil.copy(train / "apple" / "4.png", train / "stray.png")
    (val / "pear" / "sliver.png").write_bytes(hostile.png(500, 2, rows=bytes(2 * 501)))
    (val / "apple" / "also-empty.png").write_bytes(b"")  # as empty as one in train, and that is no leak
    (train / "apple" / ".DS_Store").write_bytes(b"?")
    (train / "apple" / "loop").symlink_to(train, target_is_directory=True)
    planted |= {
        str(train / "pear" / "notes.txt"): "not-an-image",
        str(train / "pear" / "clip.mp4"): "not-an-image",
        str(val / "apple" / "leak.png"): "duplicate-across-splits",
        str(val / "pear" / "leak.png"): "duplicate-across-splits",
        str(train / "pear" / "contradiction.png"): "duplicate-other-label",
        str(train / "stray.png"): "stray-image",
        str(val / "apple" / "also-empty.png"): "unreadable",
        str(val / "pear" / "sliver.png"): "absurd-aspect",
        str(train / "pear" / "odd" / "sliver.png"): "absurd-aspect",
        str(train / "void"): "empty-class",
        "plum": "one-image-class",
        "ghost": "class-only-in-val",
    }
    return planted


@pytest.mark.parametrize("workers", [0, 2])
def test_planted_is_reported_exactly(tmp_path: Path, classes: Any, workers: int) -> None:
    planted = plant(tmp_path, classes)
    steps = Steps()
    report = check(tmp_path, workers=workers, progress=steps)
    found = Counter((problem.path, problem.kind) for problem in report.problems)
    assert found == Counter(planted.items())
    assert report.counts == dict(sorted(Counter(planted.values()).items()))
    assert len(planted) >= 55
    assert report.images == {"train": 6 + 6 + 1 + 48 + 85 + 2, "val": 3 + 3 + 2 + 4}
    total = sum(report.images.values())
    assert steps.told == [("check", total, 0), *[1] * total, "end"]
    lines = report.text().splitlines()
    assert len(lines) == len(planted) + 2
    assert lines[-1].startswith(f"{len(planted)} problems: absurd-aspect 2, class-only-in-val 1, ")
    assert all("; " in problem.message for problem in report.problems)  # each says what to do


def test_training_refuses_what_checking_calls_fatal(tmp_path: Path, classes: Any) -> None:
    plant(tmp_path, classes)
    with pytest.raises(DataError, match=r"void: class folder without images.* \(and 1 more: `swindow data check`"):
        open_data(tmp_path)


def test_a_sound_source_has_no_problems(tmp_path: Path, classes: Any) -> None:
    report = check(classes(tmp_path, {"a": 3, "b": 3}))
    assert (report.problems, report.counts) == ((), {})
    assert report.text() == f"{tmp_path}: 2 classes, images: all 6\nno problems"
    assert check("digits").problems == ()


def test_tables_and_idx_files_are_checked_too(tmp_path: Path, classes: Any, idx: Any) -> None:
    classes(tmp_path, {"a": 3, "b": 3})
    table = tmp_path / "table.csv"
    rows = ["path,label,split", *(f"{name}/{i}.png,{name},train" for name in "ab" for i in range(3))]
    table.write_text("\n".join([*rows, "a/0.png,a,val", "gone.png,b,val", ",b,val", "a/1.png,b,later"]))
    assert [(problem.kind, problem.path) for problem in check(table).problems] == [
        ("bad-row", f"{table}, data row 9"),
        ("bad-row", f"{table}, data row 10"),
        ("unreadable", str(tmp_path / "gone.png")),
        ("duplicate-across-splits", str(tmp_path / "a" / "0.png")),
    ]
    idx(tmp_path / "idx", "train", [0, 1, 1, 0, 2])
    idx(tmp_path / "idx", "test", [0, 4])
    kinds = [(problem.kind, problem.path) for problem in check(tmp_path / "idx").problems]
    assert kinds == [("label-out-of-range", "test label 4"), ("one-image-class", "2")]
    with pytest.raises(DataError, match="no such source"):
        check(tmp_path / "absent")


def test_leaks_are_found_by_content(tmp_path: Path, classes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = classes(tmp_path / "train", {"a": 5, "b": 5})
    val = classes(tmp_path / "val", {"a": 5, "b": 5})
    test = classes(tmp_path / "test", {"a": 5, "b": 5})
    assert duplicates_across(open_data(tmp_path)) == []
    shutil.copy(train / "a" / "1.png", val / "b" / "renamed.png")
    shutil.copy(val / "a" / "2.png", test / "a" / "other.png")
    shutil.copy(train / "a" / "1.png", train / "a" / "within.png")  # no leak
    padded = (train / "b" / "0.png").read_bytes() + b"trailing"
    (test / "b" / "padded.png").write_bytes(padded)  # another file, if the same picture
    (train / "a" / "empty.png").write_bytes(b"")
    (val / "a" / "nowhere.png").symlink_to(tmp_path / "missing")
    found = duplicates_across(open_data(tmp_path))
    assert [(copy.split, copy.name, copy.other_split, copy.other_name) for copy in found] == [
        ("val", str(val / "b" / "renamed.png"), "train", str(train / "a" / "1.png")),
        ("test", str(test / "a" / "other.png"), "val", str(val / "a" / "2.png")),
    ]


def test_leaks_in_memory_are_found_by_pixels(tmp_path: Path, idx: Any) -> None:
    idx(tmp_path, "train", [0, 1] * 4)
    idx(tmp_path, "test", [0, 1] * 4)  # as many labels make the same random pixels
    source = open_data(tmp_path, val_fraction=0.0)
    assert [copy.name for copy in duplicates_across(source)] == [f"test[{index}]" for index in range(8)]
    assert check(tmp_path).counts == {"duplicate-across-splits": 8}


def test_files_of_equal_size_and_end_are_told_apart(tmp_path: Path, classes: Any) -> None:
    train = classes(tmp_path / "train", {"a": 2, "b": 2})
    val = classes(tmp_path / "val", {"a": 2, "b": 2})
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    other = noise.copy()
    other[0, 0] ^= 1
    for folder, pixels in ((train, noise), (val, other)):
        (folder / "a" / "large.bmp").write_bytes(hostile.encode(pixels[::-1], "BMP"))
    assert duplicates_across(open_data(tmp_path)) == []


def test_a_problem_is_plain() -> None:
    assert Problem("kind", "path", "message") == ("kind", "path", "message", False)
