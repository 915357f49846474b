"""Tar shards of other programs: read as WebDataset means them, refused where they are hostile or damaged."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import hostile
from swindow.data import open_data
from swindow.data.shards.stores import LocalStore
from swindow.data.shards.tars import scan, whole_tar
from swindow.errors import DataError


def jpeg(seed: int) -> bytes:
    return hostile.encode(hostile.picture(seed, height=12, width=16), "JPEG")


def written(path: Path, change: Callable[[tarfile.TarInfo], object] = lambda info: None, form: int = 0) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in (("a.jpg", jpeg(0)), ("a.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def scanned(path: Path) -> list[tuple[str, str]]:
    return [(one.name, one.label) for one in scan(LocalStore(str(path.parent)), path.name, path.stat().st_size)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_fractional_times_are_read_in_every_dialect(tmp_path: Path, form: int) -> None:
    def change(info: tarfile.TarInfo) -> None:
        folder = "f" * (60 if form == tarfile.USTAR_FORMAT else 180)
        info.name, info.mtime = f"{folder}/{'n' * 70}{info.name}", 1.5 if form == tarfile.PAX_FORMAT else 1

    [(name, label)] = scanned(written(tmp_path / "x.tar", change, form))
    assert name.endswith("nna.jpg")
    assert label == "0"


def test_labels_are_numbers_texts_or_json(tmp_path: Path) -> None:
    files = [("a.jpg", jpeg(0)), ("a.cls", b"7\n"), ("b/c.png", jpeg(1)), ("b/c.txt", b"cat")]
    files += [("d.JPEG", jpeg(2)), ("d.json", b'{"label": "dog", "other": 1}'), ("e.webp", b"x"), ("e.json", b"3")]
    (tmp_path / "x.tar").write_bytes(whole_tar(files))
    assert scanned(tmp_path / "x.tar") == [("a.jpg", "7"), ("b/c.png", "cat"), ("d.JPEG", "dog"), ("e.webp", "3")]


HOSTILE = {
    "link": (lambda info: setattr(info, "type", tarfile.SYMTYPE), "is a link"),
    "hard link": (lambda info: setattr(info, "type", tarfile.LNKTYPE), "is a hard link"),
    "device": (lambda info: setattr(info, "type", tarfile.CHRTYPE), "of type"),
    "sparse": (lambda info: setattr(info, "type", tarfile.GNUTYPE_SPARSE), "sparse"),
    "absolute": (lambda info: setattr(info, "name", "/etc/" + info.name), "outside the shard"),
    "upwards": (lambda info: setattr(info, "name", "x/../../" + info.name), "outside the shard"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_plain_file_refuses_the_shard(tmp_path: Path, case: str) -> None:
    change, words = HOSTILE[case]
    with pytest.raises(DataError, match=rf"x\.tar.*{words}"):
        scanned(written(tmp_path / "x.tar", change))


def test_a_member_of_absurd_size_is_refused_without_reading_it(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**40
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DataError, match="promises 1,099,511,627,776 bytes"):
        scanned(tmp_path / "x.tar")


@pytest.mark.parametrize("cut", [1, 300, 600, 1500, 2100])
def test_a_cut_tar_is_refused_with_the_place(tmp_path: Path, cut: int) -> None:
    files = [("a.jpg", jpeg(0)), ("a.cls", b"0")]
    data = whole_tar(files)
    length = 512 + -(-len(files[0][1]) // 512) * 512 + 1024
    assert length < len(data)
    (tmp_path / "x.tar").write_bytes(data[: max(length - cut, 1)])
    with pytest.raises(DataError, match=r"x\.tar: at byte"):
        scanned(tmp_path / "x.tar")


def test_a_flipped_bit_of_a_header_is_found(tmp_path: Path) -> None:
    data = bytearray(whole_tar([("a.jpg", jpeg(0)), ("a.cls", b"0")]))
    data[3] ^= 4
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match="byte 0"):
        scanned(tmp_path / "x.tar")


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar", "w:gz")])
def test_compressed_tars_are_refused(tmp_path: Path, suffix: str, mode: str) -> None:
    with tarfile.open(tmp_path / f"train{suffix}", mode) as tar:
        info = tarfile.TarInfo("a.jpg")
        tar.addfile(info, io.BytesIO(b""))
    with pytest.raises(DataError, match="compressed"):
        open_data(tmp_path)


def test_members_that_belong_together_are_needed(tmp_path: Path) -> None:
    for files, words in (
        ([("a.jpg", b"x")], "has .jpg"),
        ([("a.cls", b"0")], "has .cls"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0")], "one image"),
        ([("a.jpg", b"x"), ("a.mask.png", b"x"), ("a.json", b"[]")], "is no label"),
        ([("a.jpg", b"x"), ("a.jpg", b"x"), ("a.cls", b"0")], "twice"),
        ([("a.jpg", b"x"), ("a.cls", b"\xff\xfe")], "is no label"),
    ):
        (tmp_path / "x.tar").write_bytes(whole_tar(files))
        with pytest.raises(DataError, match=words):
            scanned(tmp_path / "x.tar")


def test_shards_of_webdataset_s_own_writer_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed; it is part of the test group")
    pictures = {}
    for split, count in (("train", 12), ("val", 6)):
        with webdataset.ShardWriter(str(tmp_path / f"{split}-%06d.tar"), maxcount=5, verbose=0) as sink:
            for index in range(count):
                pictures[split, index] = jpeg(index + 100 * len(split))
                sink.write({"__key__": f"{index:06d}", "jpg": pictures[split, index], "cls": index % 3})
    source = open_data(tmp_path)
    assert source.kind == "tar shards"
    assert source.classes == ("0", "1", "2")
    assert {name: len(images) for name, images in source.splits().items()} == {"train": 12, "val": 6}
    for split, images in source.splits().items():
        assert [bytes(data) for data in images.sources(range(len(images)))] == [
            pictures[split, index] for index in range(len(images))
        ]
        assert images.labels.tolist() == [index % 3 for index in range(len(images))]
    assert "no-index" in {problem.kind for problem in source.problems}


def test_a_member_that_is_no_image_is_named_with_its_shard(tmp_path: Path) -> None:
    files = [
        (f"{index}.{end}", data)
        for index in range(4)
        for end, data in (("jpg", jpeg(index)), ("cls", b"%d" % (index % 2)))
    ]
    files[2] = ("1.jpg", b"no image at all")
    (tmp_path / "train.tar").write_bytes(whole_tar(files))
    images = open_data(tmp_path, for_training=False).split("train")
    with pytest.raises(DataError, match=r"train\.tar/1\.jpg: is damaged"):
        images.read(1)
    assert images.read(2).shape == (3, 12, 16)
