"""What a device could do at best: a product waits for its arithmetic or for its memory, whichever takes longer.

(Williams et al. 2009.) Rates are measured on the device itself, by a copy and by a product large enough to fill it.
"""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from swindow.bench.products import Product
from swindow.bench.timing import Clock, Run
from swindow.bench.work import Work
from swindow.devices import DTYPES

COPIED = 2**30  # bytes: far above any cache
SIDE = 8192  # of the square matrices
TIMES = 10


class Rates(NamedTuple):
    """What the device was measured to do."""

    bytes_per_second: float
    """Read and written by a copy."""
    flops_per_second: float
    """Of a large matrix product; a multiply-accumulate is two."""


class Roofline(NamedTuple):
    """Seconds below which these products cannot be, at these rates."""

    arithmetic: float
    """All multiplications at the matrix product's rate."""
    traffic: float
    """All operands and results once through memory at the copy's rate."""
    bound: float
    """Each product the longer of its two."""


def roofline(found: Sequence[Product], rates: Rates, *, itemsize: int, passes: int = 1) -> Roofline:
    """Of these products, of so many bytes a value.

    Training has 3 passes: the two gradients of a product are products too, among the same three tensors.
    """
    arithmetic = [2 * product.macs * passes / rates.flops_per_second for product in found]
    traffic = [product.values * itemsize * passes / rates.bytes_per_second for product in found]
    return Roofline(sum(arithmetic), sum(traffic), sum(map(max, arithmetic, traffic)))


def roofline_of(found: Sequence[Product], work: Work) -> tuple[Roofline, Rates]:
    """The roofline of this work on its device, and the rates it comes from."""
    rates = measure(torch.device(work.device), DTYPES[work.dtype])
    passes = 1 if work.mode == "infer" else 3
    return roofline(found, rates, itemsize=DTYPES[work.dtype].itemsize, passes=passes), rates


def measure(
    device: torch.device,
    dtype: torch.dtype,
    *,
    copied: int = COPIED,
    side: int = SIDE,
    clock: Clock = time.perf_counter,
) -> Rates:
    """Medians of ten copies and ten products, the first ones excluded."""
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    copy = _median(lambda: target.copy_(source), device, clock)
    product = _median(lambda: left @ right, device, clock)
    return Rates(2 * copied / copy, 2 * side**3 / product)


def _median(run: Run, device: torch.device, clock: Clock) -> float:
    samples = []
    for number in range(TIMES + 2):
        began = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            samples.append(clock() - began)
    return statistics.median(samples)
