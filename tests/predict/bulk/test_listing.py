"""Listing: what folders, patterns and shards give, in which order, each once; and how that makes parts."""

import contextlib
import os

import pytest

from predicted_parts import images, parquet_of, tar_of, write_folder
from swindow.data.shards.stores import LocalStore
from swindow.errors import DataError
from swindow.predict.bulk.listing import Item, is_shard, listed
from swindow.predict.bulk.plan import Inputs, divided, write_inputs


def names(found, root):
    return [item.source.removeprefix(f"{root}/") for item in found]


def test_folders_come_in_natural_order_without_litter_and_without_the_answers(tmp_path):
    for name in (
        "b/10.png",
        "b/9.png",
        "a.jpg",
        "b.jpg",
        "B2/x.png",
        ".hidden/x.png",
        "b/.x.png",
        "notes.txt",
        "out/x.png",
    ):
        write_folder(tmp_path, {name: b"x"})
    found = [*listed([tmp_path], without=str(tmp_path / "out"))]
    assert names(found, tmp_path) == ["a.jpg", "b/9.png", "b/10.png", "B2/x.png", "b.jpg"]
    assert all(item.kind == "image" and item.size == 1 and item.stamp for item in found)


def test_several_inputs_name_each_file_once(tmp_path):
    write_folder(tmp_path, {"a/1.png": b"x", "a/2.png": b"x", "odd.name": b"x", "s.tar": b"x", "t.parquet": b"x"})
    asked = [tmp_path / "odd.name", str(tmp_path / "a" / "*.png"), tmp_path]
    assert names(listed(asked), tmp_path) == ["odd.name", "a/1.png", "a/2.png", "s.tar", "t.parquet"]
    assert [item.kind for item in listed(asked)] == ["image", "image", "image", "tar", "parquet"]
    assert is_shard("s3://b/x.TAR")
    assert not is_shard("x.png")


def test_linked_folders_are_left_out_and_broken_links_are_files(tmp_path):
    write_folder(tmp_path, {"a/1.png": b"x"})
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names(listed([tmp_path]), tmp_path) == ["a/1.png", "a/gone.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [("nowhere", "not found"), ("empty", "no images and no shards"), ("*.png", "no images"), ("x.nii.gz", "volumes")],
)
def test_what_cannot_be_listed_is_refused(tmp_path, given, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=said):
        list(listed([tmp_path / given]))


def test_parts_are_a_function_of_the_listing(tmp_path):
    found = images(10)
    files = {"p.parquet": parquet_of(found, group=4), "q.tar": tar_of(found), "r/1.png": b"x", "r/2.png": b"x"}
    write_folder(tmp_path, files)
    parts = [*divided(listed([tmp_path]), 3)]
    shape = [[(span.kind, span.group, span.first + span.start, span.images) for span in part] for part in parts]
    assert shape == [
        [("parquet", 0, 0, 3)],
        [("parquet", 0, 3, 1), ("parquet", 1, 4, 2)],
        [("parquet", 1, 6, 2), ("parquet", 2, 8, 1)],
        [("parquet", 2, 9, 1)],
        [("tar", 0, 0, None)],
        [("image", 0, 0, 1), ("image", 0, 0, 1)],
    ]
    written = [write_inputs(divided(listed([tmp_path]), most), tmp_path / f"i{most}") for most in (3, 3, 4)]
    assert written[0] == written[1]
    assert written[0][:2] == (6, None)
    assert written[2][2] != written[0][2]
    (tmp_path / "i3").rename(tmp_path / "inputs.parquet")
    with contextlib.closing(Inputs(LocalStore(str(tmp_path)))) as inputs:
        assert [inputs[part] for part in range(6)] == parts


def test_a_changed_file_changes_the_hash(tmp_path):
    write_folder(tmp_path / "in", {"1.png": b"xx", "2.png": b"xx"})
    hashes = []
    for change in (
        None,
        lambda path: path.write_bytes(b"xxx"),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.unlink(),
    ):
        if change:
            change(tmp_path / "in" / "2.png")
        hashes.append(write_inputs(divided(listed([tmp_path / "in"]), 9), tmp_path / "table")[2])
    assert len({*hashes}) == 4


def test_names_that_are_no_text_survive_the_table(tmp_path):
    source = os.fsdecode(b"/a/\xff\n.png")
    write_inputs(divided([Item(source, "image", 1, "")], 9), tmp_path / "inputs.parquet")
    with contextlib.closing(Inputs(LocalStore(str(tmp_path)))) as inputs:
        assert inputs[0][0].source == source


def test_a_table_without_images_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.png"]}), tmp_path / "t.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for name, said in (("t.parquet", "one column of image bytes"), ("bad.parquet", "cannot be read as Parquet")):
        with pytest.raises(DataError, match=said):
            list(divided(listed([tmp_path / name]), 3))
