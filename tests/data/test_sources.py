"""IDX pairs, tables, and data sets by name."""

import csv
import gzip
import inspect
import io
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile
from swindow.data import open_data
from swindow.data.named import TORCHVISION
from swindow.errors import DataError


def write_csv(path: Path, rows: list[tuple[str, ...]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_text(text.getvalue(), encoding=encoding)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_idx_pairs(tmp_path: Path, idx: Any, packed: bool) -> None:
    idx(tmp_path, "train", [0, 1, 2, 1] * 10, packed=packed)
    idx(tmp_path, "t10k", [2, 1, 0], packed=packed)
    source = open_data(tmp_path, val_fraction=0.25)
    assert (source.kind, source.classes, source.channels, source.image_size) == ("idx", ("0", "1", "2"), 1, (8, 8))
    assert source.split("test").labels.tolist() == [2, 1, 0]
    assert np.bincount(source.split("val").labels).sum() == 10
    raw = np.random.default_rng(3).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(source.split("test").read(1)[0], raw[1])
    assert source.split("test").names[1] == "test[1]"


def test_idx_class_names_from_a_list(tmp_path: Path, idx: Any) -> None:
    idx(tmp_path, "train", [0, 1, 2] * 5)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n\n")
    assert open_data(tmp_path).classes == ("ant", "bee", "cat")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"label 2 \(5 images of train\) is out of range: the classes are ant to bee"):
        open_data(tmp_path)


def test_idx_labels_that_training_has_not(tmp_path: Path, idx: Any) -> None:
    idx(tmp_path, "train", [0, 1] * 5)
    idx(tmp_path, "test", [0, 9])
    with pytest.raises(DataError, match=r"label 9 \(1 image of test\) is out of range: the classes are 0 to 1"):
        open_data(tmp_path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def _magic(path: Path) -> None:
    path.write_bytes(b"\0\0\x0d\x03" + path.read_bytes()[4:])


def _huge(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4] + b"\xff" * 12)


def _header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "fewer bytes than its header says; fetch it again"),
        (_append, "more bytes than its header says"),
        (_magic, "begins with 0x00000d03, not 0x00000803"),
        (_huge, "says 4294967295 × 4294967295 × 4294967295, from 1 to"),
        (_header_only, "it ends early"),
        (Path.unlink, "no class folders"),
    ],
)
def test_damaged_idx_images(tmp_path: Path, idx: Any, damage: Any, message: str) -> None:
    idx(tmp_path, "train", [0, 1] * 5)
    damage(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=message) as caught:
        open_data(tmp_path)
    assert damage is Path.unlink or "train-images-idx3-ubyte" in str(caught.value)


def test_idx_files_that_do_not_belong_together(tmp_path: Path, idx: Any) -> None:
    idx(tmp_path, "train", [0, 1] * 5)
    idx(tmp_path / "other", "train", [0, 1] * 6)
    (tmp_path / "other" / "train-labels-idx1-ubyte").replace(tmp_path / "train-labels-idx1-ubyte")
    with pytest.raises(DataError, match="10 images but 12 labels"):
        open_data(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"its labels, train-labels-idx1-ubyte or .*\.gz, are not beside it"):
        open_data(tmp_path)


def test_a_packed_file_that_is_cut_or_no_archive(tmp_path: Path, idx: Any) -> None:
    idx(tmp_path, "train", [0, 1] * 5, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for broken in (whole[:-20], b"not gzip at all", gzip.compress(b"short")):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"images-idx3-ubyte\.gz: "):
            open_data(tmp_path)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "byte-order-mark"])
def test_tables_of_path_and_label(tmp_path: Path, classes: Any, form: str) -> None:
    folder = classes(tmp_path / "pictures", {"a": 4, "b": 4})
    rows = [("Filename", "other", "CLASS", "split")]
    for name, index, split in (
        ("a", 0, "train"),
        ("a", 1, "train"),
        ("b", 0, "Training"),
        ("b", 1, "valid"),
        ("a", 2, "test"),
    ):
        rows.append((f"pictures/{name}/{index}.png", "x", f"kind {name}", split))
    rows.append((str(folder / "b" / "2.png"), "x", "kind b", "train"))
    if form == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = tmp_path / "table.parquet"
        parquet.write_table(arrow.table({key: [row[i] for row in rows[1:]] for i, key in enumerate(rows[0])}), table)
    else:
        table = write_csv(
            tmp_path / f"table.{'tsv' if form == 'tsv' else 'csv'}",
            rows,
            delimiter="\t" if form == "tsv" else ",",
            encoding="utf-8-sig" if form == "byte-order-mark" else "utf-8",
        )
    source = open_data(table)
    assert (source.kind, source.classes) == ("table", ("kind a", "kind b"))
    assert {name: len(images) for name, images in source.splits().items()} == {"train": 4, "val": 1, "test": 1}
    expected = hostile.picture(1002 + sum(map(ord, "pictures")), height=12, width=16)
    np.testing.assert_array_equal(source.split("train").read(3).permute(1, 2, 0), expected)


def test_a_table_without_splits_is_divided(tmp_path: Path, classes: Any) -> None:
    classes(tmp_path, {"a": 10, "b": 10})
    rows = [("path", "label"), *((f"{name}/{i}.png", str(n)) for n, name in enumerate("ab") for i in range(10))]
    source = open_data(write_csv(tmp_path / "table.csv", rows))
    assert source.classes == ("0", "1")
    assert {name: len(images) for name, images in source.splits().items()} == {"train": 18, "val": 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("path", "name"), ("a.png", "x")],
            "no label column among path, name; name one column of the first row label",
        ),
        ([("path", "file", "label"), ("a", "b", "c")], "more than one path column among path, file, label"),
        ([("path", "label"), ("a.png", "")], "data row 1: its path or label is empty"),
        ([("path", "label"), ("a.png",)], "data row 1: 1 cells where the header has 2"),
        (
            [("path", "label", "split"), ("a.png", "x", "holdout")],
            "data row 1: its split is not one of train, training",
        ),
        ([("path", "label")], "there are no images"),
        ([], "no path column among none"),
        ([("path", "label"), ("a.png", "x"), ("b.png", "y")], r"a\.png: no such file; check the path"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(write_csv(tmp_path / "table.csv", rows))


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_files_that_are_no_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'"\xff\xfe\0 open quote')
    with pytest.raises(DataError, match=rf"{name}: cannot be read as"):
        open_data(tmp_path / name)


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_named_set_is_one_of_torchvisions(name: str) -> None:
    from torchvision import datasets

    for choice in TORCHVISION[name].values():
        inspect.signature(getattr(datasets, name)).bind("root", download=True, **choice)


def test_a_torchvision_set_in_memory(tmp_path: Path, idx: Any) -> None:
    raw = tmp_path / "MNIST" / "raw"
    idx(raw, "train", list(range(10)) * 4, side=28)
    idx(raw, "t10k", [7, 3], side=28)
    source = open_data("mnist", root=tmp_path)
    assert (source.kind, source.classes[7], source.image_size) == ("torchvision", "7 - seven", (28, 28))
    assert source.split("test").labels.tolist() == [7, 3]
    assert source.split("test").names == ["MNIST/test[0]", "MNIST/test[1]"]
    assert len(source.split("val")) == 4
    pixels = np.random.default_rng(2).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(source.split("test").read(1)[0], pixels[1])


def test_a_torchvision_set_of_files(tmp_path: Path, classes: Any) -> None:
    classes(tmp_path / "eurosat" / "2750", {"Forest": 10, "River": 10})
    source = open_data("torchvision:EuroSAT", root=tmp_path)
    assert source.classes == ("Forest", "River")
    assert {name: len(images) for name, images in source.splits().items()} == {"train": 18, "val": 2}
    assert source.split("train").read(0).shape == (3, 12, 16)


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(
        DataError, match=r"torchvision:CIFAR10: is not in .* and cannot be fetched \(.*\); connect"
    ) as e:
        open_data("cifar10", root=tmp_path)
    assert "\n" not in str(e.value)
