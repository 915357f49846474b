"""Running figures of a training run: means since they were last read, and what a bar shows."""

import time
from typing import Any

import torch

from swindow.devices import forget_peak_memory, peak_memory
from swindow.distributed import ALONE, Ranks
from swindow.learner import StepReport


class Meter:
    """Collects step reports without waiting for the device; reads wait, and are of all processes together."""

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.device, self.ranks = device, ranks
        forget_peak_memory(device)
        self.reports: list[StepReport] = []
        self.since = time.monotonic()
        self.latest: dict[str, Any] = {}

    def add(self, report: StepReport) -> None:
        """Take note of one step."""
        self.reports.append(report)
        if len(self.reports) == 1 and not self.latest:
            self.read(keep=True)  # something to show from the first step on

    def read(self, *, keep: bool = False) -> dict[str, float]:
        """Means since the last read; images per second of this sitting; the most memory so far, in GiB."""
        reports, elapsed = self.reports, time.monotonic() - self.since
        names = list(reports[0].losses)
        mine = [torch.stack([report.losses[name] for report in reports]).mean() for name in names]
        mine += [torch.stack([getattr(report, name) for report in reports]).sum() for name in ("right", "counted")]
        images = sum(report.images for report in reports)
        *means, right, counted, seen = self.ranks.sums(
            torch.cat([torch.stack(mine).double().cpu(), torch.tensor([images])])
        ).tolist()
        figures = {name: mean / self.ranks.world for name, mean in zip(names, means, strict=True)}
        self.latest = {
            "loss": sum(figures.values()),
            **(figures if len(figures) > 1 else {}),
            "accuracy": right / max(counted, 1),
            "gradient_norm": float(torch.stack([report.gradient_norm for report in reports]).mean()),
            "images_per_second": seen / max(elapsed, 1e-9),
            "memory_gib": self.peak_gib(),
        }
        if not keep:
            self.reports, self.since = [], time.monotonic()
        return self.latest

    def peak_gib(self) -> float:
        """The most memory so far, in GiB: see `peak_memory`."""
        return peak_memory(self.device) / 2**30

    def restart(self) -> None:
        """Start the clock anew after a pause that was no training."""
        self.reports, self.since = [], time.monotonic()

    def shown(self) -> dict[str, str]:
        """The latest figures, as short texts."""
        latest = self.latest
        return {
            "loss": f"{latest['loss']:.3f}",
            "accuracy": f"{latest['accuracy']:.1%}",
            "images/s": f"{latest['images_per_second']:.0f}",
            "memory": f"{latest['memory_gib']:.1f} GiB",
        }
