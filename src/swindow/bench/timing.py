"""Runs that alternate: what slows the machine for a minute then slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Run = Callable[[], object]
Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


class Spread(NamedTuple):
    """Half of the samples lie between `low` and `high`, half of them above `median`."""

    low: float
    median: float
    high: float


def interleave(
    runs: Mapping[Key, Run], *, rounds: int, warmup: int = 2, clock: Clock = time.perf_counter
) -> dict[Key, list[float]]:
    """Seconds of each run in each round; a round calls every run once, in order: A B C A B C ….

    The first `warmup` rounds are run and not counted: they compile, allocate and fill caches.
    """
    samples: dict[Key, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, run in runs.items():
            began = clock()
            run()
            seconds = clock() - began
            if number >= warmup:
                samples[name].append(seconds)
    return samples


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    return Spread(*statistics.quantiles(samples, n=4, method="inclusive"))


def ratio(samples: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of one run's time by another's in the same round."""
    return statistics.median(mine / theirs for mine, theirs in zip(samples, base, strict=True))
