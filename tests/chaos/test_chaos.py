"""The bars in their short form, and that they find out programs which do not deserve to pass.

`python -m chaos` (make chaos) is the long form. Each test is a program of its own, since copies of a process that has
threads, as pytest's may, cannot be trusted.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

import pytest

from chaos.disk import Disk, Loss
from chaos.faults import library
from chaos.operations import Operation
from chaos.power_loss import out_of_order
from chaos.trial import seeded

TESTS = Path(__file__).parents[1]
CARELESS = TESTS / "chaos" / "careless.py"
SHORT = ("same-twice", "kills", "crash-points", "power-loss", "bit-rot", "stops", "io-errors", "non-finite", "writers")

try:
    with tempfile.TemporaryDirectory() as folder:
        library(Path(folder))
    WHY_NOT = ""
except RuntimeError as error:
    WHY_NOT = str(error)

needs_the_library = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "it is there")


def chaos(*words):
    """The bars' figures by name, and the exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return {line["bar"]: line for line in lines}, done.returncode


@needs_the_library
def test_every_bar_holds_in_its_short_form():
    bars, status = chaos("--short", *SHORT)
    assert {name: bar["failures"] for name, bar in bars.items() if not bar["passed"]} == {}
    assert tuple(bars) == SHORT
    assert status == 0
    assert bars["bit-rot"]["detected"] >= 80
    assert bars["power-loss"]["commits_in_order"]
    assert bars["crash-points"]["operations"] > 100
    assert bars["non-finite"]["counted"] == bars["non-finite"]["injections"] > 0


def of_careless(manner, *bars):
    return chaos(*bars, "--count", "40", "--state", "state.json", "--", sys.executable, CARELESS, "{run}", manner)


@needs_the_library
def test_a_program_that_saves_with_care_passes():
    bars, status = of_careless("careful", "same-twice", "crash-points", "power-loss", "io-errors")
    assert {name: bar["failures"] for name, bar in bars.items() if not bar["passed"]} == {}
    assert status == 0
    assert bars["crash-points"]["points"] > 20
    assert bars["io-errors"]["failed_loudly"] > 20


@needs_the_library
def test_a_program_that_writes_over_its_last_state_is_found_out():
    bars, status = of_careless("overwrite", "crash-points", "io-errors", "silent-rot")
    assert status == 1
    assert not bars["silent-rot"]["passed"]
    assert not bars["crash-points"]["passed"]
    assert not bars["io-errors"]["passed"]


@needs_the_library
def test_a_program_that_never_syncs_survives_kills_and_not_a_power_cut():
    bars, status = of_careless("unsynced", "crash-points", "power-loss")
    assert status == 1
    assert bars["crash-points"]["passed"]
    assert not bars["power-loss"]["passed"]


def operation(kind, path, other=None, content=b"", offset=0):
    new = None if other is None else PurePosixPath(other)
    return Operation(kind, PurePosixPath(path), new, offset, len(content), content)


NOTHING = Loss(names=0.0, content=0.0)
WRITTEN = [operation("mkdir", "d"), operation("create", "d/a"), operation("write", "d/a", content=b"x" * 1000)]


@pytest.mark.parametrize(
    ("synced", "files"),
    [
        ([], []),
        (["d/a"], []),  # its content is there, and nobody can find it
        (["d/a", "d"], []),
        (["d/a", "d", "."], ["d/a"]),
    ],
)
def test_a_name_is_durable_when_each_folder_above_it_was_synced(synced, files):
    disk = Disk(WRITTEN + [operation("sync", path) for path in synced])
    assert [str(path) for path in disk.after_power_loss(NOTHING, seeded(0)).files] == files


def test_content_that_was_not_synced_may_be_empty_zeros_or_torn():
    def content(**loss):
        return (
            Disk(WRITTEN).after_power_loss(Loss(names=1.0, content=0.0, **loss), seeded(0)).files[PurePosixPath("d/a")]
        )

    assert content() == b""
    assert content(zeros=True) == bytes(1000)
    assert content(torn=True) in (b"", b"x" * 512)


def test_a_folder_that_was_renamed_keeps_what_is_in_it_and_an_unsynced_rename_may_be_undone():
    done = [*WRITTEN, operation("sync", "d/a"), operation("sync", "d"), operation("sync", ".")]
    done.append(operation("rename", "d", "e"))
    assert set(map(str, Disk(done).after_power_loss(NOTHING, seeded(0)).files)) == {"d/a"}
    done.append(operation("sync", "."))
    assert set(map(str, Disk(done).after_power_loss(NOTHING, seeded(0)).files)) == {"e/a"}


COMMIT = [
    operation("mkdir", "steps"),
    operation("mkdir", "steps/t"),
    operation("create", "steps/t/a"),
    operation("write", "steps/t/a", content=b"x"),
    operation("sync", "steps/t/a"),
    operation("sync", "steps/t"),
    operation("rename", "steps/t", "steps/step-00000001"),
    operation("sync", "steps"),
]


def test_a_commit_in_order_is_recognised():
    assert out_of_order(COMMIT) == []


@pytest.mark.parametrize(("left_out", "said"), [(4, "not synced before"), (5, "names within"), (7, "not synced next")])
def test_a_commit_that_leaves_out_a_sync_is_out_of_order(left_out, said):
    found = out_of_order([one for number, one in enumerate(COMMIT) if number != left_out])
    assert any(said in line for line in found)
