"""How fast are we beside our peers on this CPU: `python benchmarks/speed.py [--quick] [--one-thread]`.

Runs of the competitors alternate (A B C A B C ...), and a ratio is the median of the ratios of runs that lie side by
side, so a machine that slows down for a minute slows all of them. Prints tables and writes
benchmarks/results/speed-DATE.json. Peers: timm and torchvision, the same model, freshly initialised.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from record import write_record
from torch import Tensor, nn
from torch.nn import functional as F

import swindow.model

Runs = dict[str, Callable[[], object]]


def main(*, quick: bool, threads: int) -> None:
    """Measure everything, print it and write it down."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rounds = 3 if quick else 15
    tables = {
        "inference, swin_tiny, 224 px, batch 8, fp32": inference(rounds),
        "training step, swin_tiny, 224 px, batch 8, fp32": training(rounds),
        "training step, swin_nano, 28 px, batch 128": small_precisions(rounds),
    }
    for title, table in tables.items():
        show(title, table)
    setting = {"threads": threads, "instructions": torch.backends.cpu.get_cpu_capability(), "rounds": rounds}
    sys.stdout.write(f"\n{write_record('speed', {'setting': setting, 'tables': tables})}\n")


def inference(rounds: int) -> dict[str, Any]:
    """Milliseconds for a batch without gradients, and ratios to timm."""
    images = torch.randn(8, 3, 224, 224)

    def run(model: nn.Module) -> Callable[[], object]:
        return torch.no_grad()(lambda: model.eval()(images))

    return compare({name: run(model) for name, model in peers().items()}, base="timm", rounds=rounds)


def training(rounds: int) -> dict[str, Any]:
    """Milliseconds for forward, loss and backward, without an optimiser, and ratios to timm."""
    images, labels = torch.randn(8, 3, 224, 224), torch.randint(1000, (8,))
    models = peers().items()
    return compare({name: step(model, images, labels) for name, model in models}, base="timm", rounds=rounds)


def small_precisions(rounds: int) -> dict[str, Any]:
    """A small model's step in fp32 and under bf16 autocast, and ratios to fp32."""
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    model = swindow.model.build("swin_nano", num_classes=10, in_channels=1)
    runs = {"fp32": step(model, images, labels), "bf16 autocast": step(model, images, labels, precision=torch.bfloat16)}
    return compare(runs, base="fp32", rounds=rounds)


def peers() -> dict[str, nn.Module]:
    """The same Swin-T with the same stochastic depth from three libraries."""
    return {
        "swindow": swindow.model.build("swin_tiny", drop_path=0.2),
        "timm": timm.create_model("swin_tiny_patch4_window7_224", drop_path_rate=0.2),
        "torchvision": torchvision.models.swin_t(),
    }


def step(
    model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype | None = None
) -> Callable[[], object]:
    """One training step without the optimiser, under autocast if a precision is given."""

    def run() -> None:
        model.train().zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is not None):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()

    return run


def compare(runs: Runs, *, base: str, rounds: int) -> dict[str, Any]:
    """Wall and processor milliseconds of each run and ratios to `base`, one warm-up round excluded."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            sample = timed(run)
            if number:
                samples[name].append(sample)
    return {name: summary(sample, samples[base]) for name, sample in samples.items()}


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor milliseconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - processor) * 1e3


def summary(samples: list[tuple[float, float]], base: list[tuple[float, float]]) -> dict[str, float]:
    """Medians, the fastest run, and medians of the ratios of neighbouring runs."""
    walls, processors = zip(*samples, strict=True)
    return {
        "wall_ms": statistics.median(walls),
        "fastest_ms": min(walls),
        "processor_ms": statistics.median(processors),
        "ratio": statistics.median(a[0] / b[0] for a, b in zip(samples, base, strict=True)),
        "processor_ratio": statistics.median(a[1] / b[1] for a, b in zip(samples, base, strict=True)),
    }


def show(title: str, table: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    columns = list(next(iter(table.values())))
    sys.stdout.write(f"\n{title}\n{'':16}" + "".join(f"{column:>17}" for column in columns) + "\n")
    for name, row in table.items():
        sys.stdout.write(f"{name:16}" + "".join(f"{row[column]:17.3f}" for column in columns) + "\n")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], threads=1 if "--one-thread" in sys.argv[1:] else 2)
