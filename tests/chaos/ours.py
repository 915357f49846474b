"""swindow's own training as the harness meets it: tiny, through its command line, telling which step it is at."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

import swindow.cli
import swindow.training
from chaos.faults import Board
from chaos.starting import Forked
from chaos.trial import Training
from swindow.config import dumps, merge
from swindow.data.augment import AugmentConfig
from swindow.errors import CheckpointError
from swindow.optim import OptimConfig
from swindow.progress import Silent
from swindow.run_folder import RunFolder
from swindow.settings import TrainConfig
from swindow.training import TrainResult, train

STEPS, INTERVAL = 22, 4
NEEDED = ("torchmetrics", "torchvision.transforms.v2", "torch.distributed.checkpoint")
"""What training imports late, and what takes long to."""
CIRCUMSTANCES = ("seconds", "images_per_second", "origin")
"""What a saved state knows of time, and of where, with what and how far it was asked to go; all else must be equal."""
Changes = Mapping[str, Any]
"""Settings of one start that differ, by name; of tables as tables."""


def settings(place: Path) -> TrainConfig:
    """Pictures and settings of a training of a second: 22 steps of which 6 make an epoch, saved every 4 steps and every
    epoch, and slow enough at learning that its best weights are replaced again and again."""
    return TrainConfig(
        data=str(_pictures(place / "pictures")),
        model="swin_micro",
        fields={"patch": 2, "window": 4, "dim": 8, "depths": (1, 1), "num_heads": (2, 4)},
        size=16,
        steps=STEPS,
        batch=10,
        save_steps=INTERVAL,
        val_fraction=0.25,
        workers=0,
        device="cpu",
        precision="fp32",
        tensorboard=False,
        report=False,
        optim=OptimConfig(name="adamw", lr=1e-3, ema=0.9, warmup=0.1, clip=1.0),
        augment=AugmentConfig(crop="resized", hflip=0.5, jitter=(0.2, 0.2, 0.2, 0.0), mixup=0.2, cutmix=1.0),
    )


def _pictures(folder: Path) -> Path:
    """84 pictures of three hues that noise nearly hides."""
    for number, hue in enumerate(((140, 120, 120), (120, 140, 120), (120, 120, 140))):
        (folder / str(number)).mkdir(parents=True)
        for index in range(28):
            noise = np.random.default_rng(100 * number + index).integers(-100, 100, (20, 20, 3))
            pixels = np.clip(np.array(hue) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(number) / f"{index:02}.png")
    return folder


def training(config: TrainConfig, before: Callable[[], None] = lambda: None) -> Training:
    """The whole of it, started as copies of this process, in which `before` is called first."""

    def main(run: Path, board: Board, extra: Changes) -> int:
        before()
        return run_here(dataclasses.replace(merge(config, dict(extra)), out=str(run)), board)

    return Training(Forked(main), state_of, saves="/steps|/best", interval=INTERVAL)


def run_here(config: TrainConfig, board: Board) -> int:
    """What `swindow train --resume` does once it has read its settings, errors and exit codes as there.

    Reading them takes longer than the training; the command line as a whole is run by `ranks`.
    """
    swindow.training.watcher = lambda: Told(board)  # type: ignore[attr-defined]
    swindow.cli.run = lambda words: _status_of(train(config, resume=True))
    swindow.cli.main(["train"])
    raise AssertionError("the command line always leaves by SystemExit")


def _status_of(result: TrainResult) -> int:
    return {"SIGINT": 130, "SIGTERM": 143}.get(result.stopped_by, 0)


def words(config: TrainConfig, file: Path, run: str) -> list[str]:
    """Arguments of `swindow` for these settings, which are written to `file`: the same to begin and to go on."""
    file.write_text(dumps(config))
    return ["train", "--config", str(file), "--out", run, "--resume"]


class Told(Silent):
    """Says what training says, and tells the board where it is."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a log

    def begin(self, title: str, total: int, done: int = 0) -> None:
        if title == "train":
            self.board.begins(done)

    def advance(self, items: int = 1, **values: Any) -> None:
        self.board.reached(self.board.step + items)


def states(run: Path) -> list[Path]:
    """All finished states of a run, by the names of folders alone, the newest last."""
    found = [path for path in (run / "steps").glob("step-*") if "." not in path.name]
    return sorted(found, key=step_of)


def state_of(run: Path) -> str:
    """SHA-256 of a finished run: every tensor of its last state and of its best weights, where it stood, and what its
    evaluations found. Circumstances are left out, nothing else."""
    last = states(run)[-1]
    digest = hashlib.sha256()
    for folder in (last, run / "best"):
        for path in sorted(folder.glob("*.safetensors")):
            _add_tensors(digest, path)
        facts = json.loads((folder / "state.json").read_text())
        digest.update(json.dumps(essence(facts), sort_keys=True).encode())
    digest.update(json.dumps(evaluations(run), sort_keys=True).encode())
    unfinished = [str(path.relative_to(run)) for path in run.rglob("*") if ".tmp" in path.name or ".gone" in path.name]
    return digest.hexdigest() + "".join(f" and left behind: {name}" for name in unfinished)


def evaluations(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of the validation split."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [essence(line) for line in lines if line["kind"] == "val"]


def essence(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in CIRCUMSTANCES}


def _add_tensors(digest: Any, path: Path) -> None:
    with safe_open(path, "numpy") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{path.name} {name} {tensor.dtype} {tensor.shape} ".encode() + tensor.tobytes())


def newest(run: Path) -> Path:
    """The folder of a run's newest finished state."""
    return states(run)[-1]


def step_of(folder: Path) -> int:
    """The step of a state's folder, by its name, since what is in it may be damaged."""
    return int(folder.name.split("-")[1])


def chosen(run: Path) -> tuple[int, list[str]]:
    """The step that swindow would go on from, its tensors read, and what it says of others; -1 if none will do."""
    said: list[str] = []
    try:
        saved = RunFolder(run, say=said.append).saved()
    except CheckpointError as error:
        return -1, [*said, str(error)]
    if saved is None:
        return -1, said
    for path in saved.folder.glob("*.safetensors"):
        _add_tensors(hashlib.sha256(), path)
    return int(saved.facts["step"]), said
