"""`train` with a teacher end to end: it is asked once, runs resume to the bit, and the command line does it all."""

import dataclasses
import json

import pytest

import swindow
from pictures import class_folders
from swindow import cli
from swindow.data.augment import AugmentConfig
from swindow.errors import ConfigError
from swindow.objectives import DistillConfig, Teacher
from swindow.optim import OptimConfig
from swindow.progress import Silent
from swindow.settings import TrainConfig
from swindow.training import train
from test_training import contents, newest

FIELDS = {"patch": 2, "window": 4, "dim": 12, "depths": (1, 1)}
VIT = {"dim": 12, "depths": (1, 1), "num_heads": 2, "image_size": 16, "patch": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory):
    """A run on the same pictures, at another size and with wider maps."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    train(dataclasses.replace(settings(pictures, out), size=20, epochs=2), progress=Silent())
    return str(out)


def settings(pictures, out):
    return TrainConfig(
        data=str(pictures),
        out=str(out),
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
        augment=AugmentConfig(crop="resized", hflip=0.5),
    )


@pytest.fixture
def config(pictures, tmp_path, teacher):
    return dataclasses.replace(settings(pictures, tmp_path / "run"), teacher=teacher)


def run(config, *, resume=False, **changes):
    return train(dataclasses.replace(config, **changes), resume=resume, progress=Silent())


def asking(monkeypatch):
    """How often the teacher is asked from now on, as a list that grows."""
    calls, logits = [], Teacher.logits

    def counted(self, images, pixels):
        calls.append(len(images))
        return logits(self, images, pixels)

    monkeypatch.setattr(Teacher, "logits", counted)
    return calls


def unread(monkeypatch):
    """From now on no teacher is read."""

    def refuse(*_, **__):
        raise AssertionError("the teacher was read")

    monkeypatch.setattr(Teacher, "model", refuse)


@pytest.mark.parametrize("kind", ["soft", "hard", "features"])
def test_two_and_two_steps_are_four_to_the_bit(config, tmp_path, kind):
    for out, steps, resume in (("whole", 4, False), ("parts", 2, False), ("parts", 4, True)):
        run(config, out=str(tmp_path / out), distill=kind, max_steps=steps, resume=resume)
    assert contents(newest(tmp_path / "parts")) == contents(newest(tmp_path / "whole"))
    names = {name for file in newest(tmp_path / "whole").glob("*.safetensors") for name in tensors_of(file)}
    hints = {name for name in names if "hints.projections" in name}
    assert bool(hints) == (kind == "features")
    assert not any("teacher" in name for name in names)
    assert not any("hints" in name for name in tensors_of(tmp_path / "whole" / "best" / "model.safetensors"))
    assert swindow.load(tmp_path / "whole").classes == ("blue", "green", "red")


def tensors_of(file):
    import safetensors

    with safetensors.safe_open(file, framework="pt") as reader:
        return list(reader.keys())


def test_the_run_says_who_taught_and_measures_it(config, tmp_path, teacher):
    run(config, distill="hard")
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (facts["teacher"], facts["distill"]) == (teacher, "hard")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"cross_entropy", "distillation", "loss"} <= next(line for line in lines if line["kind"] == "train").keys()


@pytest.mark.parametrize("augment", [AugmentConfig(hflip=0.5), AugmentConfig(mixup=0.2, cutmix=1.0)])
def test_a_second_run_reads_the_answers_of_the_first_to_the_bit(config, tmp_path, monkeypatch, augment):
    taught = dataclasses.replace(
        config, augment=augment, distillation=DistillConfig(cache=str(tmp_path / "kept"), alpha=0.75)
    )
    calls = asking(monkeypatch)
    run(taught, out=str(tmp_path / "asks"))
    assert sum(calls) == 2 * 24  # three batches of 27 images, twice
    unread(monkeypatch)
    run(taught, out=str(tmp_path / "reads"))
    run(taught, out=str(tmp_path / "learns_otherwise"), distill="hard", fields=VIT, model="vit_tiny")
    assert contents(newest(tmp_path / "reads")) == contents(newest(tmp_path / "asks"))
    assert sum(calls) == 2 * 24


def test_answers_that_a_killed_run_left_are_filled_in(config, tmp_path, monkeypatch):
    taught = dataclasses.replace(config, distillation=DistillConfig(cache=str(tmp_path / "kept"), cache_top=1))
    run(taught, out=str(tmp_path / "parts"), max_steps=2)
    calls = asking(monkeypatch)
    run(taught, out=str(tmp_path / "whole"))
    assert len(calls) == 4  # of six batches two were there
    run(taught, out=str(tmp_path / "parts"), resume=True)
    assert len(calls) == 4
    assert contents(newest(tmp_path / "parts")) == contents(newest(tmp_path / "whole"))


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"size": 12}, {"augment": AugmentConfig(hflip=0.2)}, {"val_fraction": 0.5}],
    ids=["seed", "size", "augmentation", "split"],
)
def test_other_pixels_are_asked_about(config, tmp_path, monkeypatch, changes):
    taught = dataclasses.replace(config, distillation=DistillConfig(cache=str(tmp_path / "kept")), max_steps=1)
    run(taught)
    calls = asking(monkeypatch)
    run(taught, out=str(tmp_path / "other"), **changes)
    assert len(calls) == 1


def test_it_teaches_while_fine_tuning(config, tmp_path, pictures, teacher):
    run(settings(pictures, tmp_path / "start"), max_steps=1)
    run(config, weights=str(tmp_path / "start"), distill="hard", max_steps=2)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["teacher"] == teacher


def test_a_token_learns_from_the_teacher(config, tmp_path):
    fields = VIT | {"pool": "tokens", "distillation_token": True}
    run(config, model="vit_tiny", fields=fields, distill="token", max_steps=2)
    run(config, out=str(tmp_path / "deit"), model="deit_tiny_distilled", fields=VIT, distill="token", max_steps=2)
    with pytest.raises(ConfigError, match="vit_tiny has no distillation token; choose --model deit_tiny_distilled"):
        run(config, out=str(tmp_path / "none"), model="vit_tiny", fields=VIT, distill="token")


def test_what_belongs_to_another_run_is_refused(config, tmp_path, pictures):
    run(config, max_steps=1)
    with pytest.raises(ConfigError, match="teacher"):
        run(config, teacher=str(tmp_path / "run"), resume=True)
    with pytest.raises(ConfigError, match="add --teacher RUN_OR_WEIGHTS"):
        run(config, out=str(tmp_path / "none"), teacher="", distill="hard")
    kept = DistillConfig(cache=str(tmp_path / "kept"))
    with pytest.raises(ConfigError, match=r"distillation\.cache keeps a classifier's answers"):
        run(config, out=str(tmp_path / "maps"), distill="features", distillation=kept)


def test_the_command_line_teaches_digits(tmp_path, capsys):
    small = (
        "--fields dim 12 depths 1 1 num_heads 1 2 --batch 64 --max-steps 3 --device cpu --precision fp32 --workers 0"
    )
    quiet = ["--no-report", "--no-tensorboard", "--out"]
    codes = []
    kept = ["--distillation.temperature", "2", "--distillation.cache", str(tmp_path / "kept")]
    taught = ["--teacher", str(tmp_path / "teacher"), "--distill", "soft", *kept]
    for words in (
        ["train", "digits", *small.split(), *quiet, str(tmp_path / "teacher")],
        ["train", "digits", *small.split(), *taught, *quiet, str(tmp_path / "student")],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        codes.append(caught.value.code)
    assert codes == [0, 0], capsys.readouterr().err
    facts = json.loads((tmp_path / "student" / "result.json").read_text())
    assert (facts["teacher"], facts["distill"]) == (str(tmp_path / "teacher"), "soft")
    assert 'cache = "' in (tmp_path / "student" / "config.toml").read_text()
    assert list((tmp_path / "kept").rglob("*.answers"))
