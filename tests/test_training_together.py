"""`train` in several processes: it resumes to the bit, on any number of them, and all stop when one is asked to."""

import dataclasses
import json
from collections.abc import Iterator

import pytest
from safetensors.torch import load_file

from company import Company
from pictures import class_folders
from swindow.data.augment import AugmentConfig
from swindow.distributed import Plan
from swindow.optim import OptimConfig
from swindow.settings import TrainConfig
from training_together import signalled, trained

BOTH = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    two = Company(2)
    yield two
    two.end()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def config(pictures, tmp_path):
    return TrainConfig(
        data=str(pictures),
        out=str(tmp_path / "run"),
        model="swin_micro",
        fields={"patch": 2, "window": 4, "dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
        size=16,
        epochs=2,
        batch=8,
        device="cpu",
        precision="fp32",
        workers=0,
        val_fraction=0.25,
        tensorboard=False,
        report=False,
        optim=OptimConfig(ema=0.9, warmup=0.1, clip=1.0, accumulate=2),
        augment=AugmentConfig(crop="resized", hflip=0.5, mixup=0.2, cutmix=1.0),
    )


def saved(folder):
    """The bytes of all tensors of the newest state, in their pieces, and where it stands, without the clock."""
    newest = max((folder / "steps").iterdir())
    facts = json.loads((newest / "state.json").read_text())
    tensors: dict[str, list[bytes]] = {}
    for path in sorted(newest.glob("*.safetensors")):  # which of them has a tensor that is in one piece is left open
        for name, tensor in load_file(path).items():
            tensors.setdefault(name, []).append(tensor.numpy().tobytes())
    assert len(tensors) > 100
    return tensors, {name: facts[name] for name in ("step", "epoch", "batch", "best", "judged", "scaler")}


@BOTH
def test_two_and_two_steps_are_four_to_the_bit(company, config, tmp_path, strategy):
    config = dataclasses.replace(config, parallel=Plan(strategy=strategy))
    whole, parts = (dataclasses.replace(config, out=str(tmp_path / name)) for name in ("whole", "parts"))
    company.ask(trained, dataclasses.replace(whole, max_steps=3))
    company.ask(trained, dataclasses.replace(parts, max_steps=1))
    first, second = company.ask(trained, dataclasses.replace(parts, max_steps=3), resume=True)
    assert first["step"] == second["step"] == 3
    assert first["score"] == second["score"]
    assert saved(tmp_path / "parts") == saved(tmp_path / "whole")


@BOTH
def test_two_processes_then_one_then_two_learn_from_the_same_images(company, config, tmp_path, strategy):
    # What is drawn in a process, and mixing, goes by the process; the images of a step and their pixels do not.
    config = dataclasses.replace(
        config,
        epochs=4,
        drop_path=0.0,
        parallel=Plan(strategy=strategy),
        augment=AugmentConfig(crop="resized", hflip=0.5),
        optim=OptimConfig(ema=0.9, clip=1.0),
        out=str(tmp_path / "alone"),
    )
    alone = trained(dataclasses.replace(config, max_steps=9))
    moved = dataclasses.replace(config, out=str(tmp_path / "moved"))
    first = company.ask(trained, dataclasses.replace(moved, max_steps=4))[0]
    second = trained(dataclasses.replace(moved, max_steps=5), resume=True)
    third = company.ask(trained, dataclasses.replace(moved, max_steps=9), resume=True)[0]
    steps, losses = ([*first[name], *second[name], *third[name]] for name in ("steps", "losses"))
    assert steps == alone["steps"]
    assert len(steps) == 9
    assert losses == pytest.approx(alone["losses"], rel=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_stop_after_the_same_step_when_one_is_asked_to(company, config, rank):
    config = dataclasses.replace(config, out=f"{config.out}-{rank}", epochs=20)
    assert company.ask(signalled, config, at=2, rank=rank) == [("SIGTERM", 2)] * 2
    again = company.ask(trained, dataclasses.replace(config, max_steps=3), resume=True)
    assert [one["step"] for one in again] == [3, 3]
