"""Which cells are hidden: exactly so many, by (seed, epoch, index) alone, all choices alike."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swindow.data.hiding import JUDGED, cells_of, hidden_cells, number_hidden
from swindow.errors import ConfigError


@given(
    seed=st.integers(0, 2**63),
    epoch=st.integers(JUDGED, 10_000),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.floats(0.01, 0.99),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True),
)
def test_exactly_so_many_of_every_image_whatever_it_comes_with(
    seed: int, epoch: int, grid: tuple[int, int], ratio: float, indices: list[int]
) -> None:
    places = np.asarray(indices)
    hidden = hidden_cells(seed, epoch, places, grid, ratio)
    assert hidden.shape == (len(indices), *grid)
    assert hidden.dtype == torch.bool
    assert hidden.sum((1, 2)).tolist() == [math.ceil(ratio * grid[0] * grid[1])] * len(indices)
    order = np.random.default_rng(0).permutation(len(indices))
    assert torch.equal(hidden_cells(seed, epoch, places[order], grid, ratio), hidden[torch.from_numpy(order)])
    assert torch.equal(hidden_cells(seed, epoch, places[:1], grid, ratio)[0], hidden[0])


def test_the_number_is_that_of_the_original_generator() -> None:
    """192 pixels in cells of 32 are 36, of which ceil(0.6 x 36) = 22 are hidden."""
    assert cells_of(192, 192, 32, 0.6) == (6, 6)
    assert number_hidden(36, 0.6) == int(np.ceil(36 * 0.6)) == 22
    assert number_hidden(49, 0.6) == int(np.ceil(49 * 0.6)) == 30


def test_seed_epoch_and_index_each_change_it() -> None:
    places = np.arange(64)
    one = hidden_cells(0, 0, places, (6, 6), 0.6)
    assert not torch.equal(hidden_cells(1, 0, places, (6, 6), 0.6), one)
    assert not torch.equal(hidden_cells(0, 1, places, (6, 6), 0.6), one)
    assert not torch.equal(hidden_cells(0, JUDGED, places, (6, 6), 0.6), one)
    assert len({tuple(row.flatten().tolist()) for row in one}) == 64


def test_every_cell_and_every_pair_is_hidden_equally_often() -> None:
    """Of 4,000 images with 5 of 9 cells hidden: singles 5/9, pairs 5/9 x 4/8, each within five deviations."""
    count = 4000
    hidden = hidden_cells(3, 7, np.arange(count), (3, 3), 0.5).flatten(1).double()
    assert hidden.sum(1).unique().tolist() == [5]
    pairs = hidden.T @ hidden / count
    wanted = torch.full((9, 9), 5 / 9 * 4 / 8).double()
    wanted.fill_diagonal_(5 / 9)
    deviation = (wanted * (1 - wanted) / count).sqrt()
    assert ((pairs - wanted).abs() < 5 * deviation).all()


@pytest.mark.parametrize(
    ("size", "side", "ratio", "message"),
    [
        ((100, 96), 32, 0.6, "images of 100x96 pixels are not whole cells of mask_patch 32; give .* such as 96"),
        ((32, 32), 32, 0.6, "have 1 cells of mask_patch 32, and mask_ratio 0.6 hides all of them"),
    ],
)
def test_images_that_cannot_be_hidden_in_part_are_refused(
    size: tuple[int, int], side: int, ratio: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(*size, side, ratio)
