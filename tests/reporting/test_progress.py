"""The same images over a run: what is kept, how much of it, and that a crash leaves nothing half."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from swindow.data.scenes import scenes_in_memory
from swindow.errors import DataError
from swindow.overlays import overlay
from swindow.reporting import draw_progress, fixed_rows, forget_progress, read_progress, write_progress
from swindow.reporting.progress import Moment, evenly

COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233))


def moments(step, names=("a", "b")):
    """Pictures in which the image's number and the step can be read."""
    return [
        Moment(
            name,
            Image.new("RGB", (8, 6), (n, 1, 0)),
            Image.new("RGB", (8, 6), (n, 2, 0)),
            Image.new("RGB", (8, 6), (n, 3, step % 256)),
        )
        for n, name in enumerate(names)
    ]


def colour(file):
    with Image.open(io.BytesIO(file)) as picture:
        return picture.getpixel((0, 0))


def test_what_is_written_is_read_in_order(tmp_path):
    for step in (200, 100, 300):
        write_progress(tmp_path, step, moments(step, ("a/犬.png", "b")))
    courses = read_progress(tmp_path)
    assert [course.name for course in courses] == ["a/犬.png", "b"]
    for n, course in enumerate(courses):
        assert colour(course.image) == (n, 1, 0)
        assert colour(course.truth) == (n, 2, 0)
        assert list(course.answers) == [100, 200, 300]
        assert [colour(file) for file in course.answers.values()] == [(n, 3, step % 256) for step in (100, 200, 300)]


def test_a_step_that_is_taken_again_is_replaced(tmp_path):
    write_progress(tmp_path, 7, moments(7))
    write_progress(tmp_path, 7, moments(9))
    (course, _) = read_progress(tmp_path)
    assert [colour(file)[2] for file in course.answers.values()] == [9]


def test_no_more_than_twelve_steps_stay_and_they_are_spread_over_the_run(tmp_path):
    for step in range(10, 1010, 10):
        write_progress(tmp_path, step, moments(step, ("a",)))
        assert len([path for path in (tmp_path / "progress").iterdir() if path.name.isdecimal()]) <= 12
    (course,) = read_progress(tmp_path)
    steps = list(course.answers)
    assert (len(steps), steps[0], steps[-1]) == (12, 10, 1000)
    assert max(np.diff(steps)) <= 2 * 1000 / 11


@pytest.mark.parametrize("most", [2, 3, 6, 12])
def test_leaving_out_keeps_the_ends_and_even_gaps(most):
    kept = evenly(list(range(0, 101, 5)), most)
    assert (len(kept), kept[0], kept[-1]) == (most, 0, 100)
    assert max(np.diff(kept)) <= 2.1 * 100 / (most - 1)
    assert evenly([3, 4], most) == [3, 4]


def test_a_resumed_run_forgets_what_it_will_do_again_and_a_new_one_everything(tmp_path):
    for step in (100, 200, 300):
        write_progress(tmp_path, step, moments(step))
    forget_progress(tmp_path, 200)
    assert list(read_progress(tmp_path)[0].answers) == [100, 200]
    forget_progress(tmp_path, -1)
    assert not (tmp_path / "progress").exists()
    assert read_progress(tmp_path) == []
    write_progress(tmp_path, 1, moments(1, ("other",)))
    assert [course.name for course in read_progress(tmp_path)] == ["other"]


def test_a_step_that_is_damaged_is_left_out(tmp_path):
    for step in (1, 2, 3):
        write_progress(tmp_path, step, moments(step))
    torn = tmp_path / "progress" / "00000001" / "1.png"
    torn.write_bytes(torn.read_bytes()[:-4])
    (tmp_path / "progress" / "00000003" / "0.png").unlink()
    (tmp_path / "progress" / ".00000004.tmp").mkdir()  # where a crash came while it was filled
    assert [list(course.answers) for course in read_progress(tmp_path)] == [[2], [2]]
    (tmp_path / "progress" / "truth" / "0.png").unlink()
    assert read_progress(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "0 images to watch; give 1 to 8"), (tuple("abcdefghi"), "9 images"), (("a", "c"), "watches a, b, not a, c")],
)
def test_other_images_or_too_many_are_refused(tmp_path, names, message):
    write_progress(tmp_path, 1, moments(1))
    with pytest.raises(DataError, match=message):
        write_progress(tmp_path, 2, moments(2, names))
    assert list(read_progress(tmp_path)[0].answers) == [1]


def scenes(count=30, side=20):
    """Only every third picture has both objects, the others nothing."""
    masks = [torch.zeros(side, side, dtype=torch.int64) for _ in range(count)]
    for mask in masks[1::3]:
        mask[2:8, 2:8], mask[10:14, 4:9] = 1, 2
    images = [torch.full((1, side, side), 5 * n % 256, dtype=torch.uint8) for n in range(count)]
    return scenes_in_memory(images, masks, classes=("background", "x", "y"), colours=COLOURS, background=0)


def test_images_to_watch_are_spread_and_show_something():
    chosen = fixed_rows(scenes(120), 8)
    assert len(chosen) == 8
    assert all(part * 15 <= row < (part + 1) * 15 for part, row in enumerate(chosen))
    shown = sum(row % 3 == 1 for row in chosen)
    assert shown >= 6
    assert fixed_rows(scenes(3), 8) == [0, 1, 2]


def test_answers_are_drawn_over_their_images(tmp_path):
    given = scenes()
    answers = {row: given.mask(row).roll(3, 1) for row in (1, 4)}
    draw_progress(tmp_path, 50, given, [1, 4], answers.__getitem__, COLOURS)
    for row, course in zip((1, 4), read_progress(tmp_path), strict=True):
        assert course.name == f"image[{row}]"
        for file, mask in ((course.truth, given.mask(row)), (course.answers[50], answers[row])):
            wanted = overlay(given.read(row), mask, COLOURS, side=160, background=0)
            with Image.open(io.BytesIO(file)) as picture:
                assert picture.size == (160, 160)
                np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted))
