"""How large a batch may be: as large as fits and is worth it; nothing of the run to come is touched."""

import dataclasses
import json

import pytest
import torch

from swindow.config import read_toml
from swindow.data.loading import Batch
from swindow.errors import OutOfMemory
from swindow.fitting_batch import Room, enlarged, find_batch, grown, sizes_up_to
from swindow.learner import Learner
from swindow.objects import Frames
from swindow.preprocess import Preprocess
from swindow.progress import Silent
from swindow.recipes import configure
from swindow.training import train

CPU = torch.device("cpu")


class Measured(Room):
    """Room whose steps take a base and so much for each image."""

    def __init__(self, limit: float | None, base: int, each: int) -> None:
        self.device, self.limit, self.seen = CPU, limit, []
        self.base, self.each = base, each

    def note(self, images: int) -> None:
        self.seen.append((images, self.base + self.each * images))


def machine(fits: int, fastest: int):
    """Steps that fail above `fits` images, and no faster than at `fastest`; what was tried."""
    tried = []

    def attempt(images: int) -> float:
        tried.append(images)
        if images > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10.0 * min(images, fastest)

    return attempt, tried


def test_sizes_are_halves_and_doubles_of_the_usual_one():
    assert sizes_up_to(64, 256) == [2, 4, 8, 16, 32, 64, 128, 256]
    assert sizes_up_to(24, 30) == [3, 6, 12, 24]
    assert sizes_up_to(64, 16) == [2, 4, 8, 16]
    assert sizes_up_to(1, 1) == [1]


@pytest.mark.parametrize(
    ("fits", "fastest", "found", "reason"),
    [
        (10**6, 10**6, 256, "no more are wanted"),
        (100, 10**6, 64, "more do not fit"),
        (20, 10**6, 16, "more do not fit"),
        (10**6, 64, 64, "more are not faster"),
        (10**6, 8, 64, "more are not faster"),  # below the usual size speed does not matter
        (10**6, 128, 128, "more are not faster"),
    ],
)
def test_where_steps_can_be_tried_the_usual_batch_is_kept_if_it_fits(fits, fastest, found, reason):
    attempt, tried = machine(fits, fastest)
    fitting = grown(attempt, Measured(None, 0, 0), usual=64, most=256, careful=False)
    assert (fitting.batch, fitting.reason) == (found, reason)
    assert max(tried) <= 2 * found


@pytest.mark.parametrize(
    ("limit", "fastest", "found", "most_tried"),
    [
        (None, 8, 64, 16),  # no faster from 8 on: not tried further, and taken as large as usual
        (1000 + 10 * 40, 8, 32, 16),
        (1000 + 10 * 9, 4, 8, 8),
        (1000 + 10 * 9, 10**6, 8, 8),  # 16 is not tried, since it would not fit
        (None, 10**6, 256, 256),
    ],
)
def test_on_a_cpu_memory_is_extrapolated_and_never_filled(limit, fastest, found, most_tried):
    attempt, tried = machine(10**6, fastest)
    fitting = grown(attempt, Measured(limit, 1000, 10), usual=64, most=256, careful=True)
    assert fitting.batch == found
    assert max(tried) == most_tried


def test_a_size_that_failed_is_not_taken_whatever_was_extrapolated():
    attempt, _ = machine(10, 10**6)
    assert grown(attempt, Measured(None, 0, 0), usual=64, most=256, careful=True).batch == 8


def test_other_errors_are_not_mistaken_for_full_memory():
    def attempt(images: int) -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        grown(attempt, Measured(None, 0, 0), usual=8, most=8, careful=False)


def test_nothing_fits():
    attempt, _ = machine(1, 1)
    with pytest.raises(OutOfMemory, match="no training step fits into memory on cpu; --checkpointing"):
        grown(attempt, Measured(None, 0, 0), usual=8, most=8, careful=True)


def test_a_batch_is_enlarged_by_its_own_images():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 4, 4)
    batch = Batch(images, torch.tensor([5, 6, 7]), torch.arange(3), [])
    larger = enlarged(batch, 7)
    assert larger.labels.tolist() == [5, 6, 7, 5, 6, 7, 5]
    assert larger.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert enlarged(batch, 2).indices.tolist() == [0, 1]
    objects = batch._replace(labels=("a", "b", "c"), frames=Frames((4, 4), ((4, 4), (3, 4), (2, 4))))
    larger = enlarged(objects, 4)
    assert larger.labels == ("a", "b", "c", "a")
    assert larger.frames == Frames((4, 4), ((4, 4), (3, 4), (2, 4), (4, 4)))


def test_real_steps_are_measured(tiny):
    model = tiny(num_classes=3)
    config = configure("digits", max_steps=1)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.4,) * 3, std=(0.2,) * 3)
    learner = Learner(model, config.optim, config.augment, total=2**40, seed=0, device=CPU, precision="fp32")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    fitting = find_batch(learner, Batch(images, torch.tensor([0, 1, 2, 0]), torch.arange(4), []), usual=8, most=16)
    assert fitting.batch in (8, 16)
    assert fitting.images_per_second > 0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run with batch auto, and what it said."""
    said = []

    class Said(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    out = str(tmp_path_factory.mktemp("auto") / "run")
    config = configure("digits", batch="auto", out=out, max_steps=2, report=False, tensorboard=False, device="cpu")
    return train(config, progress=Said()), config, said


def test_what_is_found_is_said_and_recorded_and_taken_again(found):
    result, config, said = found
    batch = read_toml(result.run / "config.toml")["batch"]
    assert isinstance(batch, int)
    assert batch <= 1258 // 8  # of 1,258 images
    assert any(line.startswith(f"batch {batch}: ") for line in said)
    assert config.optim.lr_images == 64  # what the recipe's rates are for
    again = train(dataclasses.replace(config, max_steps=3), resume=True, progress=Silent())
    assert again.step == 3


def test_trying_changes_nothing_of_the_run(found, tmp_path):
    """A run that is given the number from the start has the same weights, to the bit."""
    result, config, _ = found
    batch = read_toml(result.run / "config.toml")["batch"]
    given = dataclasses.replace(config, batch=batch, out=str(tmp_path / "given"))
    other = train(given, progress=Silent())
    ours = [line for line in (result.run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    theirs = [line for line in (other.run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert ours
    losses = [[json.loads(line)["loss"] for line in lines] for lines in (ours[: len(theirs)], theirs)]
    assert losses[0] == losses[1]
