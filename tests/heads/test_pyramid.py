"""A pyramid out of maps of one stride: how large its maps are, and where what they show lies."""

import pytest
import torch

from swindow.heads.pyramid import SimplePyramid, is_flat, strides_of


@pytest.mark.parametrize(
    ("strides", "flat"),
    [((16, 16, 16, 16), True), ((16, 16), True), ((4, 8, 16, 32), False), ((2, 4), False), ((16,), False)],
)
def test_maps_of_one_stride_are_no_pyramid(strides: tuple[int, ...], flat: bool) -> None:
    assert is_flat(strides) == flat


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(4, [(20, 28), (10, 14), (5, 7), (3, 4)]), (3, [(10, 14), (5, 7), (3, 4)]), (2, [(5, 7), (3, 4)])],
)
def test_each_map_is_twice_as_fine_as_the_next(count: int, sizes: list[tuple[int, int]]) -> None:
    pyramid = SimplePyramid((6,) * count)
    maps = pyramid(tuple(torch.randn(2, 5, 7, 6) for _ in range(count)))
    assert [tuple(x.shape) for x in maps] == [(2, *size, 6) for size in sizes]
    expected = [16 * 5 / size[0] if size != (3, 4) else 32.0 for size in sizes]
    assert list(strides_of(16, count)) == expected


def test_the_coarsest_is_the_maximum_of_every_cell_an_odd_border_included() -> None:
    x = torch.randn(1, 3, 5, 1)
    coarse = SimplePyramid((1, 1))((x, x))[1][0, :, :, 0]
    plane = x[0, :, :, 0]
    assert coarse.tolist() == [
        [plane[:2, :2].max(), plane[:2, 2:4].max(), plane[:2, 4].max()],
        [plane[2, :2].max(), plane[2, 2:4].max(), plane[2, 4].item()],
    ]


def test_what_a_cell_shows_stays_where_it_is() -> None:
    """A fine map's cells are made of the coarse cell that they lie in, and of no other."""
    pyramid = SimplePyramid((4,) * 4)
    x = torch.randn(1, 3, 3, 4)
    other = x.clone()
    other[0, 1, 2] += 1.0
    for before, after, times in zip(pyramid((x,) * 4), pyramid((other,) * 4), (4, 2, 1), strict=False):
        changed = (before != after).any(-1)[0].nonzero()
        assert changed.min(0).values.tolist() == [times, 2 * times]
        assert changed.max(0).values.tolist() == [2 * times - 1, 3 * times - 1]


def test_state_dict_keys() -> None:
    names = [f"scalers.0.{number}.{part}" for number in (0, 3) for part in ("weight", "bias")]
    names[2:2] = ["scalers.0.1.norm.weight", "scalers.0.1.norm.bias"]
    names += ["scalers.1.0.weight", "scalers.1.0.bias"]
    assert list(SimplePyramid((4,) * 4).state_dict()) == names
