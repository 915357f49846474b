"""Which files a list of files, folders and patterns stands for."""

import os
from pathlib import Path

import pytest

from swindow.data.finding import find_images
from swindow.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Empty files: finding reads none of them."""
    names = ("img10.png", "img2.PNG", "a/x.jpg", "a/b/y.webp", "B/z.tif", "notes.txt", ".hidden.png", ".git/z.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(inputs, folder):
    return [str(path.relative_to(folder)) for path in find_images(inputs)]


def test_a_folder_is_searched_to_its_ends_in_natural_order(folder):
    assert found([folder], folder) == ["a/b/y.webp", "a/x.jpg", "B/z.tif", "img2.PNG", "img10.png"]


def test_patterns(folder):
    assert found([f"{folder}/img*"], folder) == ["img2.PNG", "img10.png"]
    assert found([f"{folder}/**/?.jpg"], folder) == ["a/x.jpg"]
    assert found([f"{folder}/[aB]"], folder) == ["a/b/y.webp", "a/x.jpg", "B/z.tif"]


def test_a_file_is_taken_whatever_it_is_called(folder):
    assert found([folder / "notes.txt", folder / ".hidden.png"], folder) == ["notes.txt", ".hidden.png"]
    (folder / "odd[1].png").touch()
    assert found([folder / "odd[1].png"], folder) == ["odd[1].png"]


def test_inputs_keep_their_order_and_each_file_comes_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    inputs = ["img10.png", "./a/../img10.png", str(folder / "a"), "a/x.jpg", "img*"]
    assert [str(path) for path in find_images(inputs)] == [
        "img10.png",
        str(folder / "a/b/y.webp"),
        str(folder / "a/x.jpg"),
        "img2.PNG",
    ]


def test_links_to_one_file_are_two_images_and_a_loop_of_folders_ends(folder):
    (folder / "a" / "same.jpg").symlink_to(folder / "a" / "x.jpg")
    (folder / "a" / "loop").symlink_to(folder)
    assert found([folder / "a"], folder) == ["a/b/y.webp", "a/same.jpg", "a/x.jpg"]


def test_a_missing_file_among_others_is_left_to_its_reader(folder):
    assert found([folder / "gone.png", folder / "a/x.jpg"], folder) == ["gone.png", "a/x.jpg"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["gone.png", "also.png"], r"gone\.png, also\.png not found; give image files, folders or patterns"),
        ([], "nothing was named"),
        (["*.bmp"], r"\*\.bmp: no images; their names must end in .*\.png"),
        (["empty"], r"empty: no images"),
    ],
)
def test_nothing_to_be_found_is_an_error(folder, monkeypatch, inputs, message):
    monkeypatch.chdir(folder)
    Path("empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_images(inputs)


def test_a_folder_that_cannot_be_looked_into_is_named(folder, monkeypatch):
    look = os.scandir

    def refuse(place):
        if str(place).endswith("/b"):
            raise PermissionError(13, "Permission denied", place)
        return look(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"b: this folder cannot be read \(Permission denied\)"):
        find_images([folder])
