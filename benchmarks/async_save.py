"""How long a save keeps training waiting: `python benchmarks/async_save.py`.

A Swin-T and its AdamW moments (340 MB) are saved by `RunFolder.save`, at once and behind the run's back. A save behind
waits for the save before and for a copy into buffers that the first one makes; what is timed here is the call, when the
one before has ended. Medians of wall time and, steadier on a shared machine, of the calling thread's processor time;
`plain_copy` is the same copy by torch alone, which no save can undercut. `written` is how long the whole save takes:
hashing, writing, syncing to the disk, reading back.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import write_record

import swindow
from swindow.data.augment import AugmentConfig
from swindow.data.loading import Batch
from swindow.learner import Learner
from swindow.optim import OptimConfig
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from swindow.run_folder import RunFolder
from swindow.settings import TrainConfig

SAVES, GOAL_MS = 9, 50.0


def main() -> None:
    learner = trained_once()
    tensors = learner.tensors()
    figures: dict[str, object] = {
        "model": "swin_tiny",
        "optimizer": "adamw",
        "megabytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6,
        "saves": SAVES,
        "goal_ms": GOAL_MS,
    }
    with tempfile.TemporaryDirectory() as folder:
        figures |= saved(learner, Path(folder) / "at-once", behind=False)
        figures |= saved(learner, Path(folder) / "behind", behind=True)
    buffers = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    copies = [
        timed(lambda: [buffers[name].copy_(tensor) for name, tensor in tensors.items()]) for _ in range(SAVES + 1)
    ]
    figures |= medians("plain_copy", copies[1:])
    for name, value in figures.items():
        print(f"{name:32} {value}")
    print(write_record("async-save", figures))


def trained_once() -> Learner:
    """A learner after one step, so that the optimiser's moments are there."""
    torch.manual_seed(0)
    model = swindow.build("swin_tiny", num_classes=1000)
    model.preprocess = Preprocess(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    learner = Learner(
        model,
        OptimConfig(name="adamw", ema=0.0),
        AugmentConfig(),
        total=1000,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
    )
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    learner.step([Batch(images, torch.tensor([1]), torch.tensor([0]), [])])
    return learner


def saved(learner: Learner, folder: Path, *, behind: bool) -> dict[str, object]:
    """Figures of some saves in a row, each begun when the one before has ended."""
    calls, whole = [], []
    run = RunFolder(folder, behind=behind)
    run.open(TrainConfig(), resume=False, free=frozenset())
    with run:
        for _ in range(SAVES + 1):
            learner.position = dataclasses.replace(learner.position, step=learner.position.step + 1)
            began = time.perf_counter()
            calls.append(timed(lambda: run.save(learner)))
            run.finish_saving()
            whole.append(time.perf_counter() - began)
    name = "behind" if behind else "at_once"
    figures = medians(f"{name}_blocked", calls[1:]) | {f"{name}_first_ms": 1e3 * calls[0][0]}
    return figures | {f"{name}_written_ms": 1e3 * statistics.median(whole[1:])}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time, and of this thread's processor time."""
    wall, processor = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - processor


def medians(name: str, times: list[tuple[float, float]]) -> dict[str, object]:
    return {
        f"{name}_ms": 1e3 * statistics.median(wall for wall, _ in times),
        f"{name}_processor_ms": 1e3 * statistics.median(processor for _, processor in times),
        f"{name}_all_ms": [round(1e3 * wall, 1) for wall, _ in times],
    }


if __name__ == "__main__":
    main()
