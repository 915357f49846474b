"""`train` end to end on generated pictures: it learns, it resumes to the bit, it refuses what it cannot do."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import swindow
from pictures import class_folders
from swindow import judging
from swindow.config import from_dict, loads, read_toml, to_dict
from swindow.data.augment import AugmentConfig
from swindow.devices import peak_memory
from swindow.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from swindow.optim import OptimConfig
from swindow.progress import Silent
from swindow.run_folder.lock import Lock
from swindow.settings import TrainConfig, default_out
from swindow.training import due, train

FIELDS = {"patch": 2, "window": 4, "dim": 12}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def config(pictures, tmp_path):
    return TrainConfig(
        data=str(pictures),
        out=str(tmp_path / "run"),
        model="swin_nano",
        fields=FIELDS,
        size=16,
        epochs=2,
        batch=8,
        device="cpu",
        precision="fp32",
        workers=0,
        val_fraction=0.25,
        tensorboard=False,
        report=False,
        optim=OptimConfig(name="muon", ema=0.9, warmup=0.1),
        augment=AugmentConfig(crop="resized", hflip=0.5, jitter=(0.2, 0.2, 0.2, 0.0), mixup=0.2, cutmix=1.0),
    )


def run(config, **changes):
    resume = changes.pop("resume", False)
    return train(dataclasses.replace(config, **changes), resume=resume, progress=Silent())


def newest(folder):
    """The folder of a run's newest saved state."""
    return max((folder / "steps").iterdir())


def contents(folder):
    """The bytes of all tensors, and the position without the clock and the settings."""
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    state = json.loads((folder / "state.json").read_text())
    return files, {key: value for key, value in state.items() if key not in ("seconds", "origin")}


def test_it_learns_three_hues_and_leaves_a_complete_run_folder(config, tmp_path):
    result = run(
        config,
        epochs=12,
        tensorboard=True,
        report=True,
        augment=AugmentConfig(hflip=0.5),
        optim=OptimConfig(name="adamw", lr=3e-3),
    )
    folder = tmp_path / "run"
    assert result.stopped_by == "finished"
    assert result.evaluation.accuracy == 1.0
    assert json.loads((folder / "result.json").read_text())["accuracy"] == 1.0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert {"step", "epoch", "lr_share", "accuracy", "images_per_second", "memory_gib"} <= lines[0].keys()
    assert "no measurements" not in (folder / "report.html").read_text()
    assert losses[-1] < 0.7 * losses[0]
    assert max(line["accuracy"] for line in lines if line["kind"] == "val") == 1.0
    present = {path.name for path in folder.iterdir()}
    assert present >= {"config.toml", "environment.json", "split.json", "tensorboard", "best", "steps", "report.html"}
    assert not {name for name in present if ".tmp" in name or ".old" in name or name == ".lock"}
    assert swindow.load(folder).classes == ("blue", "green", "red")


def test_the_peak_of_memory_is_measured_said_and_kept(config, tmp_path):
    said = []
    watcher = Silent()
    watcher.say = said.append
    train(dataclasses.replace(config, max_steps=1, report=True), progress=watcher)
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert facts["device"] == "cpu"
    assert 0.1 < facts["peak_memory_gib"] <= peak_memory(torch.device("cpu")) / 2**30 + 1e-3
    figure = f"{facts['peak_memory_gib']:.2f} GiB"
    assert any(line.endswith(f"peak memory {figure} on cpu") for line in said)
    assert f"{figure}<small>the whole process on cpu" in (tmp_path / "run" / "report.html").read_text()


def test_the_config_of_a_run_runs_again(config, tmp_path):
    run(config, max_steps=1)
    again = from_dict(TrainConfig, read_toml(tmp_path / "run" / "config.toml"))
    assert again == dataclasses.replace(config, max_steps=1)


@pytest.mark.parametrize("changes", [{}, {"optim": OptimConfig(name="adamw", accumulate=2, clip=1.0)}])
def test_two_and_two_steps_are_four_to_the_bit(config, tmp_path, changes):
    run(config, out=str(tmp_path / "whole"), max_steps=4, **changes)
    run(config, out=str(tmp_path / "parts"), max_steps=2, **changes)
    run(config, out=str(tmp_path / "parts"), max_steps=4, resume=True, **changes)
    assert contents(newest(tmp_path / "parts")) == contents(newest(tmp_path / "whole"))


def test_workers_change_nothing(config, tmp_path):
    run(config, out=str(tmp_path / "alone"))
    run(config, out=str(tmp_path / "helped"), workers=2, max_steps=3)
    run(config, out=str(tmp_path / "helped"), workers=1, resume=True)
    assert contents(newest(tmp_path / "helped")) == contents(newest(tmp_path / "alone"))
    assert contents(tmp_path / "helped" / "best") == contents(tmp_path / "alone" / "best")


def test_checkpointing_changes_nothing(config, tmp_path):
    run(config, out=str(tmp_path / "plain"), max_steps=2)
    run(config, out=str(tmp_path / "thrifty"), max_steps=2, checkpointing=True)
    assert contents(newest(tmp_path / "thrifty")) == contents(newest(tmp_path / "plain"))


def test_a_model_without_stochastic_depth_trains(config, tmp_path):
    run(config, model="resnet_18", fields={"depths": (1, 1), "width": 8}, max_steps=2, size=32)
    assert newest(tmp_path / "run").name == "step-00000002"


def test_another_seed_changes_everything(config, tmp_path):
    run(config, out=str(tmp_path / "a"), max_steps=1)
    run(config, out=str(tmp_path / "b"), max_steps=1, seed=1)
    assert contents(newest(tmp_path / "a"))[0] != contents(newest(tmp_path / "b"))[0]


def test_resuming_a_finished_run_judges_it_again(config):
    first = run(config)
    again = run(config, resume=True)
    assert again.step == first.step
    assert again.evaluation.accuracy == first.evaluation.accuracy


def test_resume_takes_the_newest_intact_state_and_names_those_that_it_passes_over(config, tmp_path, monkeypatch):
    run(config, max_steps=1)
    run(config, max_steps=2, resume=True)
    assert newest(tmp_path / "run").name == "step-00000002"
    weights = newest(tmp_path / "run") / "training.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    said = []
    watcher = Silent()
    watcher.say = said.append
    train(dataclasses.replace(config, max_steps=3), resume=True, progress=watcher)
    assert any("step 2 is damaged" in line and line.endswith("going on from step 1") for line in said)
    assert "resumed at step 1 of 6" in said
    run(config, max_steps=3, out=str(tmp_path / "whole"))
    assert contents(newest(tmp_path / "run")) == contents(newest(tmp_path / "whole"))


def test_damaged_states_are_never_used(config, tmp_path):
    run(config, max_steps=2)
    for state in (tmp_path / "run" / "steps").iterdir():
        path = state / "training.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        run(config, resume=True)


def test_an_existing_run_is_not_overwritten(config):
    run(config, max_steps=1)
    with pytest.raises(ConfigError, match="--resume"):
        run(config)


def test_resume_with_other_settings_lists_the_differences(config):
    run(config, max_steps=1)
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 then, 0\.5 now"):
        run(config, resume=True, optim=dataclasses.replace(config.optim, lr=0.5))
    run(config, resume=True, max_steps=2, workers=1)


def test_a_folder_in_use_is_refused(config, tmp_path):
    lock = Lock(tmp_path)
    lock.take()
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"):
        run(config, out=str(tmp_path), max_steps=1)
    lock.release()
    assert run(config, out=str(tmp_path), max_steps=1).step == 1


def test_an_unwritable_place_is_refused_before_any_work(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write here"):
        run(config, out=str(tmp_path / "file" / "run"))


def test_a_signal_during_an_evaluation_ends_the_run_at_once_with_nothing_lost(config, tmp_path, monkeypatch):
    real = judging.evaluate

    def slow(*given, **how):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **how)

    monkeypatch.setattr(judging, "evaluate", slow)
    result = run(config)
    assert (result.stopped_by, result.step, result.evaluation) == ("SIGTERM", 3, None)
    monkeypatch.undo()
    assert run(config, resume=True).stopped_by == "finished"
    whole = run(config, out=str(tmp_path / "whole"))
    assert whole.step == 6
    assert contents(newest(tmp_path / "run")) == contents(newest(tmp_path / "whole"))


def broken_cross_entropy(monkeypatch, when):
    """Cross-entropy that is NaN in those of its calls, counted from 0, for which `when` holds."""
    calls, real = itertools.count(), torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        "swindow.heads.classify.F.cross_entropy",
        lambda logits, *others, **how: (
            logits.sum() * float("nan") if when(next(calls)) else real(logits, *others, **how)
        ),
    )


def test_three_losses_in_a_row_that_are_not_finite_end_a_run_at_its_last_good_step(config, tmp_path, monkeypatch):
    run(config, max_steps=2)
    before = swindow.load(tmp_path / "run").state_dict()
    broken_cross_entropy(monkeypatch, lambda call: True)
    with pytest.raises(TrainingDiverged, match=r"step 5: cross_entropy is not finite, .* step 2, the last good one"):
        run(config, resume=True)
    after = swindow.load(tmp_path / "run").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.undo()
    assert run(config, resume=True).stopped_by == "finished"


def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(config, tmp_path, monkeypatch, capsys):
    broken_cross_entropy(monkeypatch, lambda call: call in (1, 2))
    assert train(config).stopped_by == "finished"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped_steps"] == 2
    assert "step 2: cross_entropy is not finite; the step moved nothing" in capsys.readouterr().err


def test_bad_images_stop_training_or_are_counted(config, tmp_path):
    data = class_folders(tmp_path / "data")
    bad = data / "red" / "005.png"
    bad.write_bytes(bad.read_bytes()[:200])
    config = dataclasses.replace(config, data=str(data), val_fraction=0.1)
    for seed in range(4):  # the bad one must be in train, not in val
        changes = {"seed": seed, "out": str(tmp_path / f"run-{seed}")}
        if "005.png" not in json.dumps(split_of(config, seed)["val"]):
            break
    with pytest.raises(DataError, match=r"005\.png"):
        run(config, **changes)
    result = run(config, **{**changes, "out": str(tmp_path / "skips")}, max_bad=1)
    assert result.stopped_by == "finished"
    assert json.loads((tmp_path / "skips" / "result.json").read_text())["skipped_images"] == 1


def split_of(config, seed):
    from swindow.data import open_data

    source = open_data(config.data, seed=seed, val_fraction=config.val_fraction)
    return {"val": list(source.split("val").names)}


def test_patience_and_time_end_a_run_early(config, tmp_path):
    frozen = OptimConfig(name="adamw", lr=0.0, weight_decay=0.0)
    result = run(config, epochs=9, patience=2, optim=frozen, out=str(tmp_path / "patience"))
    assert (result.stopped_by, result.step) == ("patience", 3 * 3)
    result = run(config, epochs=9, max_minutes=1e-6, out=str(tmp_path / "time"))
    assert (result.stopped_by, result.step) == ("max_minutes", 0)
    assert result.evaluation is not None


def test_fine_tuning_takes_the_body_and_leaves_a_head_of_other_classes(config, tmp_path):
    run(config, max_steps=2)
    two = class_folders(tmp_path / "two", classes=("red", "green"))
    said = []
    watcher = Silent()
    watcher.say = said.append
    frozen = OptimConfig(name="adamw", lr=0.0, weight_decay=0.0)
    tuned = dataclasses.replace(
        config, data=str(two), out=str(tmp_path / "tuned"), weights=str(tmp_path / "run"), max_steps=1, optim=frozen
    )
    train(tuned, progress=watcher)
    assert any("the head is new" in line for line in said)
    before, after = swindow.load(tmp_path / "run"), swindow.load(tmp_path / "tuned")
    for name, tensor in after.backbone.state_dict().items():
        assert torch.equal(tensor, before.backbone.state_dict()[name])
    assert after.classes == ("green", "red")


def test_weights_of_another_shape_are_refused(config, tmp_path):
    run(config, max_steps=1)
    with pytest.raises(CheckpointError, match=r"does not fit this swin_nano: .*fc1"):
        run(config, out=str(tmp_path / "other"), weights=str(tmp_path / "run"), fields={**FIELDS, "mlp_ratio": 3.0})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits(config, tmp_path, number):
    config = dataclasses.replace(config, epochs=10_000)
    toml = tmp_path / "config.toml"
    toml.write_text(swindow_toml(config))
    command = [sys.executable, "-m", "swindow", "train", "--config", str(toml)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    assert "--resume goes on" in said
    assert "Traceback" not in said
    step = json.loads((newest(tmp_path / "run") / "state.json").read_text())["step"]
    assert step > 0
    assert run(config, resume=True, max_steps=step + 1).step == step + 1


def swindow_toml(config):
    from swindow.config import dumps

    assert from_dict(TrainConfig, loads(dumps(config))) == config
    return dumps(config)


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 0}, {"size": 0}, {"val_fraction": 1.0}, {"workers": -2}, {"max_bad": -1}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_due_and_default_out(tmp_path, monkeypatch):
    assert [step for step in range(1, 8) if due(step, 3, 7)] == [3, 6, 7]
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(data="photos/cats", model="swin_nano")
    assert default_out(config) == "runs/cats-swin_nano"
    assert default_out(config, resume=True) == "runs/cats-swin_nano"
    (tmp_path / "runs" / "cats-swin_nano").mkdir(parents=True)
    assert default_out(config) == "runs/cats-swin_nano-2"
    assert default_out(config, resume=True) == "runs/cats-swin_nano"


def test_none_and_every_setting_round_trip_through_toml(config):
    assert to_dict(config)["weights"] is None
    assert 'weights = "@none"' in swindow_toml(config)


def test_a_file_in_two_splits_is_warned_of(config, tmp_path):
    for split in ("train", "val"):
        class_folders(tmp_path / "data" / split, per_class=2)
    said = []
    watcher = Silent()
    watcher.say = said.append
    leaky = dataclasses.replace(config, data=str(tmp_path / "data"), batch=4, max_steps=1)
    train(leaky, progress=watcher)
    assert any(line.startswith("warning: 6 images in more than one split") for line in said)


def test_data_that_changed_under_a_run_is_refused(config, tmp_path):
    data = class_folders(tmp_path / "data")
    config = dataclasses.replace(config, data=str(data))
    run(config, max_steps=1)
    (data / "red" / "000.png").unlink()
    with pytest.raises(DataError, match=r"not what .* was started with"):
        run(config, resume=True)


def test_a_run_at_its_limit_takes_no_further_step(config):
    assert run(config, max_steps=2).step == 2
    assert run(config, max_steps=2, resume=True).step == 2


def test_a_limit_within_an_epoch_is_judged_where_it_stands(config, tmp_path):
    result = run(config, max_steps=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "val"] == [2]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"] == result.evaluation.accuracy


def test_resumed_metrics_have_every_step_once(config, tmp_path):
    run(config, max_steps=2)
    run(config, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "val"] == [3, 6]


def test_resume_with_nothing_there_starts(config):
    assert run(config, resume=True, max_steps=1).step == 1


def test_bad_images_of_the_validation_split_count_too(config, tmp_path):
    data = class_folders(tmp_path / "data")
    names = split_of(dataclasses.replace(config, data=str(data)), 0)["val"]
    (data / names[0]).write_bytes(b"")
    with pytest.raises(DataError, match=r"00\d\.png"):
        run(config, data=str(data), out=str(tmp_path / "stops"))
    assert (tmp_path / "stops" / "steps").exists()
    run(config, data=str(data), out=str(tmp_path / "skips"), max_bad=1, max_steps=1)
    assert json.loads((tmp_path / "skips" / "result.json").read_text())["skipped_images"] == 1


def test_a_crash_while_best_was_replaced_loses_nothing(config, tmp_path):
    run(config)
    best = tmp_path / "run" / "best"
    best.rename(best.with_name("best.old-1"))
    assert swindow.load(tmp_path / "run").classes == ("blue", "green", "red")


def test_a_run_that_failed_before_its_first_save_can_be_started_again(config, tmp_path):
    run(config, max_steps=1)
    for name in ("steps", "best"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    assert run(config, max_steps=2).step == 2


def test_fp16_overflow_skips_the_step_of_every_part(config, tmp_path):
    """A GradScaler judges each optimiser alone; half a step would leave NaN in the other half's weights."""
    model = swindow.build("swin_nano", num_classes=3, **FIELDS)
    from swindow.optim import Optimizer

    optimizer = Optimizer(model, OptimConfig(name="muon", clip=1.0))
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    scaler.scale(model(torch.randn(2, 3, 16, 16)).sum()).backward()
    model.head.linear.bias.grad[0] = float("inf")
    norm = optimizer.collect(scaler)
    assert not torch.isfinite(norm)
    assert all(torch.isfinite(p.grad).all() for n, p in model.named_parameters() if n != "head.linear.bias")


# The compiler asks each input for its gradient and hides the warning by itself, which cannot hide one made an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.compiled
def test_compiled_training_learns_the_same(config, tmp_path):
    frozen = dataclasses.replace(config, augment=AugmentConfig(), drop_path=0.0)
    first = []
    for name, on in (("plain", False), ("compiled", True)):
        run(frozen, out=str(tmp_path / name), max_steps=2, compile=on, checkpointing=on)
        first.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]))
    plain, compiled = first  # of the first step: Muon's bf16 iterations enlarge what differs after it
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert compiled["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-4)


def test_fine_tuning_starts_from_anyone_s_weights(config, tmp_path):
    """Another library's file, for images of another size and other classes: fitted, and said what was done."""
    import swindow

    source = swindow.build("swin_nano", num_classes=7, **{**FIELDS, "image_size": 32})
    swindow.convert(swindow.save(source, tmp_path / "own"), tmp_path / "theirs.pth", to="timm")
    said = []
    watcher = Silent()
    watcher.say = said.append
    tuned = dataclasses.replace(config, weights=str(tmp_path / "theirs.pth"), max_steps=1, optim=OptimConfig(lr=0.0))
    train(tuned, progress=watcher)
    told = next(line for line in said if line.startswith("weights from"))
    assert "timm format" in told
    assert "the head is new, for other classes" in told
    found = swindow.load(tmp_path / "run")
    assert torch.equal(found.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight)


def test_what_is_wrong_but_not_fatal_is_said(config, tmp_path):
    data = class_folders(tmp_path / "data")
    (data / "red" / "notes.heic").write_bytes(b"?")
    class_folders(tmp_path / "data", classes=("green",), per_class=12)
    (data / "lonely").mkdir()
    (data / "red" / "000.png").rename(data / "lonely" / "000.png")
    said = []
    watcher = Silent()
    watcher.say = said.append
    train(dataclasses.replace(config, data=str(data), max_steps=1), progress=watcher)
    warnings = [line for line in said if line.startswith("warning: ")]
    assert any("'lonely' has a single image" in line for line in warnings)
    assert any("notes.heic" in line for line in warnings)
