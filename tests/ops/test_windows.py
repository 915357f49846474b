"""Windows on a grid: cut and put together to the bit, and who may see whom."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from swindow.ops import windows as ours
from swindow.ops.windows import (
    between_zeros,
    count,
    crop,
    merge,
    pad_to_windows,
    partition,
    region_mask,
    relative_position_index,
)
from who_sees_whom import place_in_window, tokens, visible

Size = tuple[int, int]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Size, Size, Size]:
    """A grid, windows that divide it, a shift."""
    window = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    grid = (window[0] * draw(st.integers(1, 4)), window[1] * draw(st.integers(1, 4)))
    return grid, window, (draw(st.integers(0, window[0] - 1)), draw(st.integers(0, window[1] - 1)))


@settings(max_examples=200)
@given(cut=cuts(), batch=st.integers(1, 3), channels=st.sampled_from([(), (1,), (2, 3)]))
def test_merge_undoes_partition_to_the_bit(cut: tuple[Size, Size, Size], batch: int, channels: tuple[int, ...]) -> None:
    grid, window, shift = cut
    x = torch.randn(batch, *grid, *channels)
    windows = partition(x, window, shift)
    assert windows.shape == (batch, grid[0] // window[0] * (grid[1] // window[1]), *window, *channels)
    assert torch.equal(merge(windows, grid, shift), x)


@settings(max_examples=200)
@given(cut=cuts())
def test_every_token_is_in_the_window_and_place_that_it_should_be(cut: tuple[Size, Size, Size]) -> None:
    (height, width), (h, w), (down, right) = cut
    x = torch.arange(height * width).view(1, height, width)
    windows = partition(x, (h, w), (down, right))[0]
    for token, (y, x_) in enumerate(tokens((height, width))):
        rolled_y, rolled_x = (y - down) % height, (x_ - right) % width
        assert windows[rolled_y // h * (width // w) + rolled_x // w, rolled_y % h, rolled_x % w] == token


@settings(max_examples=200)
@given(cut=cuts())
def test_the_region_mask_is_who_sees_whom(cut: tuple[Size, Size, Size]) -> None:
    grid, window, shift = cut
    allowed = region_mask(grid, window, shift)
    assert allowed.dtype == torch.bool
    assert allowed.shape == (
        grid[0] // window[0] * (grid[1] // window[1]),
        window[0] * window[1],
        window[0] * window[1],
    )
    numbers = partition(torch.arange(grid[0] * grid[1]).view(1, *grid), window, shift)[0].flatten(1)  # G T
    sees = visible(grid, window, shift)
    for members, mask in zip(numbers.tolist(), allowed.tolist(), strict=True):
        for query, row in zip(members, mask, strict=True):
            assert sorted(key for key, seen in zip(members, row, strict=True) if seen) == sees[query]


def test_places_in_a_window_are_row_major() -> None:
    assert place_in_window((2, 4), (2, 2), (0, 0)) == [0, 1, 0, 1, 2, 3, 2, 3]
    assert place_in_window((2, 4), (2, 2), (1, 0)) == [2, 3, 2, 3, 0, 1, 0, 1]


@pytest.mark.parametrize("window", [(1, 1), (2, 2), (7, 7), (3, 5), (1, 4), (5, 1)])
def test_the_row_of_the_bias_table_is_the_offset(window: Size) -> None:
    height, width = window
    index = relative_position_index(window)
    assert index.dtype == torch.int64
    assert index.shape == (height * width, height * width)
    for query, (qy, qx) in enumerate(tokens(window)):
        for key, (ky, kx) in enumerate(tokens(window)):
            assert index[query, key] == (qy - ky + height - 1) * (2 * width - 1) + (qx - kx + width - 1)
    assert sorted(set(index.flatten().tolist())) == list(range((2 * height - 1) * (2 * width - 1)))


@pytest.mark.parametrize(("side", "window", "windows"), [(1, 7, 1), (7, 7, 1), (8, 7, 2), (56, 7, 8), (57, 7, 9)])
def test_how_many_windows_cover_a_side(side: int, window: int, windows: int) -> None:
    assert count(side, window) == windows


@pytest.mark.parametrize(("grid", "padded"), [((6, 4), (6, 4)), ((5, 4), (6, 4)), ((6, 3), (6, 4)), ((1, 1), (3, 2))])
def test_padding_is_zeros_to_the_right_and_below(grid: Size, padded: Size) -> None:
    x = torch.randn(2, *grid, 3)
    wide = pad_to_windows(x, (3, 2))
    assert wide.shape == (2, *padded, 3)
    assert torch.equal(wide[:, : grid[0], : grid[1]], x)
    assert wide.count_nonzero() == x.count_nonzero()


@settings(max_examples=100)
@given(
    sides=st.tuples(*[st.integers(1, 6)] * 3),
    axis=st.integers(0, 2),
    before=st.integers(0, 3),
    behind=st.integers(0, 3),
)
def test_zeros_put_by_index_are_those_of_pad(sides: tuple[int, ...], axis: int, before: int, behind: int) -> None:
    x = torch.randn(sides)
    expected = F.pad(x, (0, 0) * (2 - axis) + (before, behind))
    assert torch.equal(between_zeros(x, axis, sides[axis] + before + behind, before), expected)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("grid", [(4, 6), (5, 6), (4, 7), (1, 1)])
def test_sizes_not_known_give_what_known_ones_give(monkeypatch: pytest.MonkeyPatch, first: int, grid: Size) -> None:
    """What a compiler traces for any size, at a size; gradients too."""
    x = torch.randn(2, *grid, 3, dtype=torch.float64) if first == 1 else torch.randn(2, 3, *grid, dtype=torch.float64)
    x.requires_grad_()
    results = []
    for answer in (ours.undecided, lambda *_: True):
        monkeypatch.setattr(ours, "undecided", answer)
        padded = pad_to_windows(x, (2, 3), first=first)
        parts = [padded, *([crop(padded, grid), crop(padded, (1, 1), (1, 2))] if first == 1 else [])]
        gradient = torch.autograd.grad(sum(part.square().sum() for part in parts), x)
        results.append([*parts, *gradient])
    assert results[0][0].shape[first : first + 2] == (-(-grid[0] // 2) * 2, -(-grid[1] // 3) * 3)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
