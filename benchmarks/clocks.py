"""Runs that alternate, by either clock: the wall's, and, steadier on a shared machine, the processor's."""

import time
from typing import Any

from swindow.bench.timing import Run, interleave, ratio, spread


def measure(runs: dict[str, Run], rounds: int, *, against: str, warmup: int = 1) -> dict[str, Any]:
    """Seconds of every run by either clock, and their ratios to those of the run called `against`: medians."""
    worked: dict[str, list[float]] = {name: [] for name in runs}

    def watched(name: str) -> Run:
        def run() -> None:
            began = time.process_time()
            runs[name]()
            worked[name].append(time.process_time() - began)

        return run

    wall = interleave({name: watched(name) for name in runs}, rounds=rounds, warmup=warmup)
    return {
        name: {
            **spread(wall[name])._asdict(),
            "ratio": ratio(wall[name], wall[against]),
            "processor_ratio": ratio(worked[name][warmup:], worked[against][warmup:]),
            "seconds": wall[name],
            "processor_seconds": worked[name][warmup:],
        }
        for name in runs
    }
