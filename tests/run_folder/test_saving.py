"""Saved states of a run: whole or not there, newest first, damage seen and named, errors never lost."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch

import swindow
from states import saved_step, tiny_state
from swindow.checkpoints.files import MANIFEST
from swindow.errors import CheckpointError, ConfigError
from swindow.run_folder import RunFolder, behind
from swindow.settings import TrainConfig

FREE = frozenset({"out"})


@contextlib.contextmanager
def opened(path, *, resume=False, said=None, **how):
    """A run's folder, and the step that it would go on from."""
    run = RunFolder(path, say=(said if said is not None else []).append, **how)
    saved = run.open(TrainConfig(out=str(path)), resume=resume, free=FREE)
    with run:
        yield run, saved


STATE = tiny_state()


def a_run(path, *steps, keep=2):
    """A run that has saved these steps."""
    with opened(path, keep=keep) as (run, _):
        for step in steps:
            run.save(STATE.at(step))
    return path


def resumed(path, said=None):
    """The step that a run goes on from, as its tensors have it."""
    with opened(path, resume=True, said=said) as (_, saved):
        if saved is None:
            return None
        state = STATE.at(0)
        saved.fill(state.tensors())
        assert saved_step(state.tensors()) == saved.facts["step"]
        return saved.facts["step"]


def step_names(path):
    return sorted(folder.name for folder in (path / "steps").iterdir())


def test_a_state_is_a_folder_that_says_all_of_itself(tmp_path):
    folder = a_run(tmp_path / "run", 42) / "steps" / "step-00000042"
    assert {path.name for path in folder.iterdir()} == {
        MANIFEST,
        "model.safetensors",
        "model.toml",
        "state.json",
        "training.safetensors",
    }
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["step"] == 42
    for name, fact in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert fact == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    state = json.loads((folder / "state.json").read_text())
    assert state["sampler"] == {"seed": 7, "epoch": 0, "batch": 42}
    assert state["random"]["seed"] == 7
    assert state["schedule"] == {"step": 42, "total": 99}
    assert state["origin"]["config"]["model"] == "swin_tiny"
    assert state["origin"]["versions"].keys() == {"swindow", "torch", "python"}
    assert state["origin"]["processes"] == 1
    assert swindow.load(folder).classes == ("a", "b", "c")


def test_the_newest_is_gone_on_from_and_the_oldest_go(tmp_path):
    assert resumed(a_run(tmp_path / "two", 1, 2, 3, 4)) == 4
    assert step_names(tmp_path / "two") == ["step-00000003", "step-00000004"]
    assert step_names(a_run(tmp_path / "one", 1, 2, keep=1)) == ["step-00000002"]
    assert step_names(a_run(tmp_path / "three", 1, 2, 10, 11, keep=3)) == [
        "step-00000002",
        "step-00000010",
        "step-00000011",
    ]
    with pytest.raises(ConfigError, match="keep is 0"):
        RunFolder(tmp_path, keep=0)


def test_a_step_saved_again_replaces_what_was_known_of_it(tmp_path):
    with opened(tmp_path) as (run, _):
        run.save(tiny_state(1))
        run.save(tiny_state(2))
        run.save(tiny_state(2).at(2, epoch=1))
    assert step_names(tmp_path) == ["step-00000001", "step-00000002"]
    with opened(tmp_path, resume=True) as (_, saved):
        assert saved.facts["epoch"] == 1


def test_a_run_that_went_back_gives_up_what_came_after(tmp_path):
    """Three steps in a row that are not finite end a run at its last good step, which is saved anew."""
    with opened(tmp_path) as (run, _):
        for step in (2, 3, 4, 2):
            run.save(tiny_state(step))
    assert resumed(tmp_path) == 2
    assert step_names(tmp_path) == ["step-00000002"]


def test_a_run_s_weights_are_the_best_or_else_the_newest(tmp_path):
    a_run(tmp_path, 5, 6)
    assert first_bias(tmp_path) == 6
    with opened(tmp_path, resume=True) as (run, _):
        run.save_best(tiny_state(3).usable, {"step": 3})
        assert run.best() == tmp_path / "best"
    assert first_bias(tmp_path) == 3
    damage = tmp_path / "best" / "model.safetensors"
    flip(damage, 8 * damage.stat().st_size - 9)
    with pytest.raises(CheckpointError, match=r"best.*model\.safetensors: missing or damaged"):
        swindow.load(tmp_path)
    shutil.rmtree(tmp_path / "best")
    flip(tmp_path / "steps" / "step-00000006" / "model.safetensors", 9999)
    with pytest.warns(UserWarning, match="step 6 is damaged .* going on from step 5"):
        assert first_bias(tmp_path) == 5


def first_bias(path):
    """What `State.at` has set all weights to."""
    return float(swindow.load(path).state_dict()["head.linear.bias"][0])


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_flipped_bit_and_every_cut_is_found_named_and_passed_over(tmp_path):
    folder = a_run(tmp_path / "run", 40, 42) / "steps" / "step-00000042"
    draw = random.Random(0)  # noqa: S311 - of tests
    for path in sorted(folder.iterdir()):
        intact = path.read_bytes()
        for _ in range(12):
            flip(path, draw.randrange(8 * len(intact)))
            said = []
            assert newest(tmp_path / "run", said) == "step-00000040"
            assert [line.startswith("step 42 is damaged (") for line in said] == [True]
            assert said[0].endswith("going on from step 40")
            path.write_bytes(intact)
        for _ in range(3):
            path.write_bytes(intact[: draw.randrange(len(intact))])
            assert newest(tmp_path / "run") == "step-00000040"
            path.write_bytes(intact)
    assert newest(tmp_path / "run") == "step-00000042"


def newest(path, said=None):
    from swindow.checkpoints.steps import newest_step

    return newest_step(path, (said if said is not None else []).append).name


def swap(folder):
    first, second = folder / "model.safetensors", folder / "training.safetensors"
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def zero_block(folder):
    with (folder / "model.safetensors").open("rb+") as file:
        file.seek(4096)
        file.write(bytes(4096))


def replace_by_older(folder):
    shutil.copy(folder.with_name("step-00000040") / "training.safetensors", folder)


@pytest.mark.parametrize(
    "damage",
    [
        swap,
        zero_block,
        replace_by_older,
        lambda folder: (folder / "training.safetensors").unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{}"),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: (folder / "more.safetensors").write_bytes(b""),
    ],
    ids=["swapped", "zeroed", "older file", "deleted", "no manifest", "empty manifest", "a list", "a stray"],
)
def test_other_damage_is_found_too_and_all_damaged_is_an_error(tmp_path, damage):
    a_run(tmp_path, 40, 42)
    damage(tmp_path / "steps" / "step-00000042")
    said = []
    assert resumed(tmp_path, said) == 40
    assert "step 42 is damaged" in said[0]
    with opened(tmp_path, resume=True) as (run, _):
        run.save(tiny_state(44))
    assert step_names(tmp_path) == ["step-00000040", "step-00000044"], "a damaged state took an intact one's place"
    for step in ("40", "44"):
        (tmp_path / "steps" / f"step-000000{step}" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="all 2 saved states are damaged"):
        resumed(tmp_path)


def test_neither_times_nor_names_nor_the_place_decide(tmp_path):
    run = a_run(tmp_path / "run", 8, 9)
    for age, name in enumerate(["step-00000009", "step-00000008"]):
        os.utime(run / "steps" / name, (1e9 * age, 1e9 * age))
    assert resumed(run) == 9
    copied = tmp_path / "copied Zürich 東京 with spaces"
    shutil.copytree(run, copied)
    assert resumed(copied) == 9
    linked = tmp_path / "link"
    linked.symlink_to(copied, target_is_directory=True)
    assert resumed(linked) == 9
    long = tmp_path / ("x" * 255)
    copied.rename(long)
    assert resumed(long) == 9
    (run / "steps" / "step-00000008").rename(run / "steps" / "step-00000077")
    assert resumed(run) == 9, "a folder's name outdid its manifest"


def test_what_a_crash_cut_short_is_cleared_away_and_what_it_had_sealed_is_used(tmp_path):
    steps = a_run(tmp_path, 1, 2) / "steps"
    (steps / "step-00000003.tmp-0a1b").mkdir()
    (steps / "step-00000003.tmp-0a1b" / "model.safetensors").write_bytes(b"half")
    (steps / "step-00000001").rename(steps / "step-00000001.gone-77aa")
    said = []
    assert resumed(tmp_path, said) == 2
    assert said == []
    assert step_names(tmp_path) == ["step-00000002"]
    (steps / "step-00000002").rename(steps / "step-00000002.tmp-0a1b")
    assert resumed(tmp_path) == 2
    assert step_names(tmp_path) == ["step-00000002"]


def test_what_a_crash_left_of_other_files_is_cleared_away(tmp_path):
    with opened(tmp_path) as (run, _):
        run.save(tiny_state(1))
        run.save_best(tiny_state(1).usable, {"step": 1})
    shutil.copytree(tmp_path / "best", tmp_path / "best.gone-12")
    (tmp_path / "best").rename(tmp_path / "best.old-12")
    (tmp_path / "best.tmp-34").mkdir()
    (tmp_path / ".config.toml.0123abcd.tmp").write_text("half")
    assert first_bias(tmp_path) == 1
    assert resumed(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"best", "config.toml", "environment.json", "steps"}
    assert first_bias(tmp_path / "best") == 1


class Stop(Exception):
    """An accident."""


OPERATIONS = [(os, "fsync"), (Path, "open"), (Path, "rename"), (Path, "mkdir"), (Path, "replace")]


def faulty(monkeypatch, when, accident):
    """Let `accident` happen in place of the `when`-th thing asked of the file system; return the count of them."""
    count = [0]

    def instead(real):
        def call(*given, **named):
            count[0] += 1
            if count[0] == when:
                accident()
            return real(*given, **named)

        return call

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, instead(getattr(owner, name)))
    return count


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def save_with_fault(path, when, monkeypatch):
    """Save step 3 while the `when`-th operation fails: the error, if any, and whether it came to that operation."""
    with opened(path, resume=True) as (run, _), monkeypatch.context() as patch:
        count = faulty(patch, when, no_space)
        try:
            run.save(STATE.at(3))
        except CheckpointError as error:
            return str(error), True
        return "", count[0] >= when


def test_each_operation_that_fails_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    """The Nth call fails, for N = 1, 2, 3 … until a save comes to its end before."""
    template, path, failures = a_run(tmp_path / "template", 1, 2), tmp_path / "run", 0
    reached = True
    for when in itertools.count(1):
        shutil.copytree(template, path)
        error, reached = save_with_fault(path, when, monkeypatch)
        if not reached:
            break
        assert not [name for name in step_names(path) if ".tmp-" in name], f"operation {when} left its draft"
        if error:
            failures += 1
            assert "No space left on device" in error
            assert f"{path / 'steps'}" in error
            assert "cannot save step 3 here" in error
            assert "\n" not in error
            assert newest(path) in ("step-00000002", "step-00000003")  # the new one, where only its last sync failed
        else:  # saved, and what failed was to make room: that is tried again
            assert newest(path) == "step-00000003"
        shutil.rmtree(path)
    assert failures >= 12
    assert resumed(path) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that dies is a fork")
def test_a_death_at_each_operation_leaves_the_old_state_or_the_new_one(tmp_path, monkeypatch):
    template, path, code, seen = a_run(tmp_path / "template", 1, 2), tmp_path / "run", 9, set()
    for when in itertools.count(1):
        shutil.copytree(template, path)
        child = os.fork()
        if child == 0:
            die_saving(path, when, monkeypatch)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = []
        step = resumed(path, said)
        assert said == [], "a crash is no damage"
        assert not [name for name in step_names(path) if "." in name]
        seen.add(step)
        shutil.rmtree(path)
        if code != 9:
            break
    assert code == 0
    assert when > 15
    assert seen == {2, 3}


def die_saving(path, when, monkeypatch):
    """End this process at the `when`-th operation of a save, with 9; with 0 if it needs fewer."""
    try:
        run = RunFolder(path)
        run.open(TrainConfig(out=str(path)), resume=True, free=FREE)
        faulty(monkeypatch, when, lambda: os._exit(9))
        run.save(STATE.at(3))
        os._exit(0)
    finally:
        os._exit(1)


def test_too_little_room_is_seen_before_a_byte_is_written(tmp_path, monkeypatch):
    path = a_run(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    said = r"steps: cannot save step 2 here: it takes \d{7} bytes .* 1\.0 kB are free"
    with opened(path, resume=True) as (run, _), pytest.raises(CheckpointError, match=said):
        run.save(tiny_state(2))
    assert step_names(path) == ["step-00000001"]


def test_an_older_state_that_cannot_be_removed_is_told_and_tried_again(tmp_path, monkeypatch):
    said = []
    with opened(tmp_path, said=said, keep=1) as (run, _):
        run.save(tiny_state(1))
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: no_space())
            run.save(tiny_state(2))
        assert "cannot remove this older state (No space left on device)" in said[0]
        assert newest(tmp_path) == "step-00000002"
        run.save(tiny_state(3))
    assert step_names(tmp_path) == ["step-00000003"]


def save_to_the_end(run, state):
    run.save(state)
    run.finish_saving()


@pytest.mark.parametrize("behind", [False, True])
def test_values_that_are_not_finite_are_never_saved(tmp_path, behind):
    with opened(tmp_path, behind=behind) as (run, _):
        run.save(tiny_state(1))
        bad = tiny_state(2)
        bad.others["optimizer/head.linear.weight/exp_avg"][1, 1] = float("nan")
        with pytest.raises(CheckpointError, match=r"step 2 is not saved: optimizer/head\.linear\.weight/exp_avg holds"):
            save_to_the_end(run, bad)
        worse = tiny_state(3)
        worse.usable.head.linear.bias.data[0] = float("inf")
        with pytest.raises(CheckpointError, match=r"step 3 is not saved: head\.linear\.bias holds"):
            save_to_the_end(run, worse)
        with pytest.raises(CheckpointError, match=r"the best model, of step 3, is not saved: head\.linear\.bias"):
            run.save_best(worse.usable, {"step": 3})
    assert step_names(tmp_path) == ["step-00000001"]
    assert not list(tmp_path.glob("best*"))


def test_saving_behind_takes_the_state_as_it_was_and_reuses_its_buffers(tmp_path, monkeypatch):
    gate = threading.Event()
    real = behind.Work._do
    monkeypatch.setattr(behind.Work, "_do", lambda self, task: (gate.wait(), real(self, task)))
    state = tiny_state(1)
    with opened(tmp_path, behind=True) as (run, _):
        run.save(state)
        state.at(2)  # training goes on before a byte is written
        assert not list((tmp_path / "steps").glob("step-????????"))
        gate.set()
        run.finish_saving()
        assert step_names(tmp_path) == ["step-00000001"]
        places = {name: buffer.data_ptr() for name, buffer in run.copies.buffers.items()}
        assert places.keys() == state.tensors().keys()
        run.save(state)
        state.at(5)
        run.finish_saving()
        assert places == {name: buffer.data_ptr() for name, buffer in run.copies.buffers.items()}
    assert resumed(tmp_path) == 2


@pytest.mark.parametrize("asked", ["save", "finish_saving", "close"])
def test_an_error_of_the_background_comes_up_at_the_next_call(tmp_path, monkeypatch, asked):
    run = RunFolder(tmp_path, behind=True)
    run.open(TrainConfig(), resume=False, free=FREE)
    run.save(tiny_state(1))
    run.finish_saving()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: no_space())
        run.save(tiny_state(2))
        run.work.thread.join()
    with pytest.raises(CheckpointError, match=r"cannot save step 2 here.*No space left"):
        {"save": lambda: run.save(tiny_state(3)), "finish_saving": run.finish_saving, "close": run.close}[asked]()
    run.close()
    assert step_names(tmp_path) == ["step-00000001"]


def test_an_error_of_the_background_stands_beside_the_one_that_ended_the_run(tmp_path, monkeypatch):
    said = []
    with pytest.raises(Stop) as caught, opened(tmp_path, behind=True, said=said) as (run, _):
        end_while_saving(run, monkeypatch)
    assert "cannot save step 2 here" in caught.value.__notes__[0]
    assert said == caught.value.__notes__


def end_while_saving(run, monkeypatch):
    run.save(tiny_state(1))
    run.finish_saving()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: no_space())
        run.save(tiny_state(2))
        run.work.thread.join()
    raise Stop


def test_another_model_s_state_is_refused_with_every_difference(tmp_path):
    a_run(tmp_path, 1)
    state = tiny_state(0)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    wanted = state.tensors()
    del wanted["average/count"]
    wanted["usable/head.linear.weight"] = torch.zeros(16, 3)
    wanted["optimizer/new"] = torch.zeros(1)
    with opened(tmp_path, resume=True) as (_, saved), pytest.raises(CheckpointError) as caught:
        saved.fill(wanted)
    for part in (
        "3 differences",
        "average/count is saved and not wanted",
        "optimizer/new is wanted and not saved",
        "usable/head.linear.weight is 3×16, wanted 16×3",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_a_run_saved_before_there_were_steps_goes_on(tmp_path):
    """last/ with a manifest of the first version, and fewer counters."""
    a_run(tmp_path, 7)
    last = tmp_path / "last"
    (tmp_path / "steps" / "step-00000007").rename(last)
    manifest = json.loads((last / MANIFEST).read_text())
    (last / MANIFEST).write_text(json.dumps({"version": 1, "files": manifest["files"]}))
    assert first_bias(tmp_path) == 7
    with opened(tmp_path, resume=True) as (run, saved):
        assert (saved.facts["step"], saved.facts["skipped"]) == (7, 0)
        state = tiny_state(0)
        saved.fill(state.tensors())
        assert saved_step(state.tensors()) == 7
        assert last.exists()
        run.save(tiny_state(8))
        assert not last.exists(), "it is two states too many"
    flip_last = a_run(tmp_path / "damaged", 7)
    (flip_last / "steps" / "step-00000007").rename(flip_last / "last")
    flip(flip_last / "last" / "state.json", 100)
    with pytest.raises(CheckpointError, match="damaged and there is no other state"):
        resumed(flip_last)


def test_states_without_their_settings_are_not_taken_for_a_fresh_start(tmp_path):
    a_run(tmp_path, 1)
    (tmp_path / "config.toml").unlink()
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"saved states and no config\.toml"), opened(tmp_path, resume=resume):
            pass


def test_measurements_are_on_the_disk_before_the_state_that_follows_them(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def note(handle):
        place = Path(f"/proc/self/fd/{handle}")
        synced.append(place.readlink().name if place.exists() else "")
        real(handle)

    with opened(tmp_path) as (run, _):
        run.record({"kind": "train", "step": 1})
        monkeypatch.setattr(os, "fsync", note)
        run.save(tiny_state(1))
    if not any(synced):
        pytest.skip("this system does not tell which file was synced")
    assert synced.index("metrics.jsonl") < synced.index(MANIFEST)


def test_metrics_cut_short_by_a_crash_are_taken_again(tmp_path):
    with opened(tmp_path) as (run, _):
        for step in (1, 2, 3):
            run.record({"kind": "train", "step": step})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"kind": "train", "st\xff')
        run.forget_after(2, judged=0)
        run.record({"kind": "train", "step": 3})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
