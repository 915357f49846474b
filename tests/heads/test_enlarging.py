"""Enlarged maps and convolutions of them, against loops and against what the papers say, literally."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swindow.heads.enlarging import convolved, convolved_plainly, enlarged, enlargement

SIDES = st.integers(1, 9)


def maps(height: int, width: int, coarser: list[tuple[int, int]], batch: int = 2) -> tuple[Tensor, list[Tensor]]:
    first = torch.randn(batch, 3, height, width, dtype=torch.float64)
    return first, [torch.randn(batch, 2 + i, *size, dtype=torch.float64) for i, size in enumerate(coarser)]


def test_a_row_is_enlarged_by_hand() -> None:
    """Centres of four new cells lie a quarter of an old cell beside the old centres; beyond them nothing changes."""
    row = torch.tensor([[[[0.0, 4.0]]]])
    assert enlarged(row, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert enlarged(row, (1, 2)) is row


@given(cells=SIDES, size=st.integers(1, 20), kernel=st.sampled_from([1, 3, 5]))
def test_what_each_place_takes(cells: int, size: int, kernel: int) -> None:
    """Enlarge a row, move a kernel over it, zeros beyond its ends: as numpy does both."""
    row, weights = np.random.default_rng(0).normal(size=cells), np.random.default_rng(1).normal(size=kernel)
    middles = (np.arange(size) + 0.5) * cells / size - 0.5
    new = np.interp(np.clip(middles, 0, cells - 1), np.arange(cells), row)
    expected = np.convolve(np.pad(new, kernel // 2), weights[::-1], mode="valid")
    matrix = enlargement(cells, size, kernel, like=torch.empty(0, dtype=torch.float64))
    found = matrix @ torch.from_numpy(row[:, None] * weights[None]).flatten()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@given(size=st.tuples(SIDES, SIDES), coarser=st.lists(st.tuples(SIDES, SIDES), max_size=3), k=st.sampled_from([1, 3]))
def test_the_short_way_arrives_where_the_long_one_does(
    size: tuple[int, int], coarser: list[tuple[int, int]], k: int
) -> None:
    """Also where a map is larger than what it is to be "enlarged" to, as a pool of 6x6 is of a map of one cell."""
    torch.manual_seed(0)
    x, others = maps(*size, coarser)
    weight = torch.randn(4, x.shape[1] + sum(other.shape[1] for other in others), k, k, dtype=torch.float64)
    for bias in (None, torch.randn(4, dtype=torch.float64)):
        expected = convolved_plainly(x, others, weight, bias)
        torch.testing.assert_close(convolved(x, others, weight, bias), expected, rtol=0, atol=1e-12)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Products go through oneDNN where there are threads for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_is_that_of_the_long_way(dtype: torch.dtype) -> None:
    """Twice the error of the long way is the budget."""
    x, others = (torch.randn(1, 24, 16, 20).to(dtype), [torch.randn(1, 24, n, n).to(dtype) for n in (8, 5, 1)])
    weight = (torch.randn(8, 96, 3, 3) / 10).to(dtype)
    truth = convolved_plainly(x.double(), [other.double() for other in others], weight.double())
    found, plain = convolved(x, others, weight), convolved_plainly(x, others, weight)
    error, budget = ((y.double() - truth).square().mean().sqrt() for y in (found, plain))
    assert found.dtype == dtype
    assert error <= 2 * budget


@pytest.mark.usefixtures("threads")
def test_gradients_are_those_of_the_long_way() -> None:
    x, small, weight = torch.randn(2, 3, 6, 7), torch.randn(2, 5, 3, 4), torch.randn(4, 8, 3, 3)
    given = [y.requires_grad_() for y in (x, small, weight)]
    gradients = [
        torch.autograd.grad(run(x, [small], weight).square().sum(), given) for run in (convolved, convolved_plainly)
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_and_theirs() -> None:
    x, others = maps(3, 4, [(2, 3), (1, 1)], batch=1)
    weight = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    given = [y.requires_grad_() for y in (x, *others, weight)]
    assert torch.autograd.gradcheck(lambda x, a, b, w: convolved(x, [a, b], w), given)
    assert torch.autograd.gradgradcheck(lambda x, a, b, w: convolved(x, [a, b], w), given)


@pytest.mark.usefixtures("threads")
def test_training_keeps_no_enlarged_map() -> None:
    large, small = (torch.randn(1, 8, side, side, requires_grad=True) for side in (32, 16))
    weight, kept = torch.randn(8, 16, 3, 3, requires_grad=True), dict[int, int]()

    def keep(y: Tensor) -> Tensor:
        kept[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes() // 4
        return y

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda y: y):
        convolved(large, [small], weight)
    assert sum(kept.values()) <= large.numel() + 2 * small.numel() + 2 * weight.numel() + 2 * 32 * 48


def test_the_layout_is_that_of_tokens() -> None:
    x, small = torch.randn(2, 6, 6, 4).permute(0, 3, 1, 2), torch.randn(2, 3, 3, 4).permute(0, 3, 1, 2)
    out = convolved(x, [small], torch.randn(8, 8, 3, 3))
    assert out.is_contiguous(memory_format=torch.channels_last)
