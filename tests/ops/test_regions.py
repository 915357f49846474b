"""RoIAlign: our kernel against torchvision's in fp64 and against sums by hand, both passes, odd regions included."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from swindow.errors import ShapeError
from swindow.ops import regions as module
from swindow.ops.cpu import native
from swindow.ops.regions import region_align
from tolerance import assert_within_budget

needs_kernels = pytest.mark.skipif(native.refusal() is not None, reason=f"kernels: {native.refusal()}")
GRID = [
    {"channels": channels, "size": size, "samples": samples, "aligned": aligned}
    for channels, size in ((5, 7), (64, 2), (33, 14), (1, 1))
    for samples, aligned in ((0, True), (2, False), (3, True), (0, False))
]


def regions_on(pixels: float, count: int = 40) -> Tensor:
    """Regions of all sizes in two maps, some of them partly or wholly outside, some without an extent."""
    first = torch.rand(count, 2) * pixels * 1.4 - pixels * 0.2
    extent = torch.rand(count, 2) ** 2 * pixels
    extent[0], extent[1, 0] = 0, 0
    image = torch.randint(0, 2, (count, 1)).float()
    return torch.cat([image, first, first + extent], dim=1)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", GRID, ids=lambda case: "-".join(map(str, case.values())))
def test_both_passes_are_torchvision_s(case, dtype):
    size, samples, aligned = case["size"], case["samples"], case["aligned"]
    maps = torch.randn(2, case["channels"], 19, 23).to(dtype)
    rows = regions_on(80.0)
    grad = torch.randn(len(rows), case["channels"], size, size).to(dtype)

    def passes(run, kind):
        x = maps.to(kind).requires_grad_()
        out = run(x)
        return out.detach(), torch.autograd.grad(out, x, grad.to(kind))[0]

    theirs = lambda x: roi_align(x, rows.to(x.dtype), size, 0.25, samples, aligned)  # noqa: E731
    ours = passes(lambda x: region_align(x, rows, size, scale=0.25, samples=samples, aligned=aligned), dtype)
    truth, low = passes(theirs, torch.float64), passes(theirs, torch.float32)
    for actual, exact, plain in zip(ours, truth, low, strict=True):
        assert actual.dtype == dtype
        assert_within_budget(actual, exact, plain.to(dtype))


@needs_kernels
def test_one_cell_by_hand():
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    middle = region_align(maps, torch.tensor([[0, 1.0, 1.0, 2.0, 2.0]]), 1, scale=1.0, samples=1)
    assert middle.item() == 5.0  # the value of the pixel whose middle the region's middle is
    between = region_align(maps, torch.tensor([[0, 1.0, 0.0, 3.0, 2.0]]), 1, scale=1.0, samples=1)
    assert between.item() == pytest.approx((1 + 2 + 5 + 6) / 4)


@needs_kernels
def test_runs_repeat_to_the_bit_with_any_layout_of_the_map():
    maps, rows = torch.randn(2, 40, 12, 15), regions_on(60.0)
    wanted = torch.randn(len(rows), 40, 7, 7)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        x = maps.contiguous(memory_format=layout).requires_grad_()
        out = region_align(x, rows, 7, scale=0.25)
        found.append((out.detach(), *torch.autograd.grad(out, x, wanted)))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_no_regions_and_those_that_are_no_numbers():
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    out = region_align(x, torch.zeros(0, 5), 7, scale=1.0)
    assert out.shape == (0, 3, 7, 7)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert not slope.any()
    if native.refusal() is None:
        odd = torch.tensor([[0, math.nan, 0, 1, 1], [0, 0, 0, math.inf, 1], [0, 3, 3, 1, 1]])
        assert not region_align(x, odd, 2, scale=1.0).isnan().any()


def test_without_kernels_and_for_fp64_it_is_torchvision_s_own(monkeypatch):
    monkeypatch.setattr(module.native, "refusal", lambda: "none here")
    maps, rows = torch.randn(2, 4, 9, 9), regions_on(36.0)
    assert torch.equal(region_align(maps, rows, 3, scale=0.25, samples=2), roi_align(maps, rows, 3, 0.25, 2, True))
    double = region_align(maps.double(), rows, 3, scale=0.25)
    assert double.dtype == torch.float64
    assert region_align(maps.bfloat16(), rows, 3, scale=0.25).dtype == torch.bfloat16


@needs_kernels
@pytest.mark.parametrize("number", [-1.0, 2.0, 1e9, math.nan])
def test_a_map_that_is_not_there_is_not_read(number):
    rows = torch.tensor([[0, 0, 0, 4, 4], [number, 0, 0, 4, 4]])
    with pytest.raises(ShapeError, match="none of the 2; number them from 0"):
        region_align(torch.randn(2, 3, 8, 8), rows, 2, scale=1.0)
