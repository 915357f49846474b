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
        figures = self._means({name: [report.losses[name] for report in reports] for name in names})
        sums = [torch.stack([getattr(report, name) for report in reports]).sum() for name in ("right", "counted")]
        images = torch.tensor(sum(report.images for report in reports))
        right, counted, seen = self.ranks.sums(torch.stack([*(one.double().cpu() for one in sums), images])).tolist()
        self.latest = {
            **({"loss": sum(figures.values())} if len(figures) == len(names) else {}),
            **(figures if len(names) > 1 else {}),
            "accuracy": right / max(counted, 1),
            **self._means({"gradient_norm": [report.gradient_norm for report in reports]}),
            "images_per_second": seen / max(elapsed, 1e-9),
            "memory_gib": self.peak_gib(),
        }
        if not keep:
            self.reports, self.since = [], time.monotonic()
        return self.latest

    def _means(self, values: dict[str, list[torch.Tensor]]) -> dict[str, float]:
        """Means by name over what is finite, in all processes; without those of which nothing is."""
        stacked = [torch.stack(found).double().cpu() for found in values.values()]
        finite = [found[found.isfinite()] for found in stacked]
        pairs = [torch.stack([found.sum(), torch.tensor(float(len(found)), dtype=torch.float64)]) for found in finite]
        totals = self.ranks.sums(torch.stack(pairs)).tolist()
        return {name: total / count for name, (total, count) in zip(values, totals, strict=True) if count}

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
            "loss": f"{latest['loss']:.3f}" if "loss" in latest else "not finite",
            "accuracy": f"{latest['accuracy']:.1%}",
            "images/s": f"{latest['images_per_second']:.0f}",
            "memory": f"{latest['memory_gib']:.1f} GiB",
        }
