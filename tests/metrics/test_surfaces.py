"""Distances of outlines against all pairs of points in fp64, and against torchmetrics where it measures the same."""

import itertools

import numpy as np
import pytest
import torch
from torchmetrics.functional.segmentation import hausdorff_distance

from swindow import metrics
from swindow.errors import ConfigError, MissingExtra, ShapeError
from swindow.metrics import hausdorff95, surface_distances


def blobs(size: tuple[int, ...], seed: int) -> np.ndarray:
    """A random set with an inside: what lies near any of a few points, and some dust."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    centres = [random.uniform(0, size) for _ in range(3)]
    near = [np.linalg.norm(grid - centre, axis=-1) < random.uniform(1.5, 4.5) for centre in centres]
    return np.any(near, axis=0) | (random.random(size) < 0.01)


def surface(inside: np.ndarray) -> list[tuple[int, ...]]:
    """Members of which a neighbour across a side is none, or lies beyond the array."""
    members = set(map(tuple, np.argwhere(inside).tolist()))
    steps = [tuple(sign * (axis == other) for other in range(inside.ndim)) for axis in range(inside.ndim)
             for sign in (1, -1)]  # fmt: skip
    return [m for m in sorted(members) if any(tuple(np.add(m, step).tolist()) not in members for step in steps)]


def brute_force(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """From each surface point to every one of the other's."""
    places_a, places_b = (np.array(surface(each), float) * spacing for each in (a, b))
    far = [
        [min(float(np.sqrt(((p - q) ** 2).sum())) for q in others) for p in places]
        for places, others in ((places_a, places_b), (places_b, places_a))
    ]
    return far[0], far[1]


def percentile95(values: list[float]) -> float:
    """By its definition: linear between neighbours in order."""
    ordered = sorted(values)
    place = 0.95 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


CASES = [
    *itertools.product([(14, 17)], [(1.0, 1.0), (0.7, 2.3)], range(3)),
    *itertools.product([(7, 11, 9)], [(1.0, 1.0, 1.0), (3.1, 0.8, 1.4)], range(2)),
]


@pytest.mark.parametrize(("size", "spacing", "seed"), CASES)
def test_equals_all_pairs_of_points(size, spacing, seed):
    a, b = blobs(size, seed), blobs(size, seed + 100)
    there, back = surface_distances(a, b, spacing)
    wanted = brute_force(a, b, spacing)
    np.testing.assert_allclose(there, wanted[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(back, wanted[1], rtol=0, atol=1e-9)
    assert hausdorff95(a, b, spacing) == pytest.approx(percentile95([*wanted[0], *wanted[1]]), abs=1e-9)
    assert max(there) > 0


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_distance_is_torchmetrics_hausdorff(seed):
    a, b = blobs((24, 24), seed), blobs((24, 24), seed + 7)  # square: in others 1.9.0 mixes up rows and columns
    both = torch.from_numpy(np.stack([a, b]))[:, None, None]
    theirs = float(hausdorff_distance(both[0], both[1], 1, include_background=True))
    assert max(np.concatenate(surface_distances(a, b))) == pytest.approx(theirs, abs=1e-5)


def test_by_hand():
    a, b = np.zeros((2, 20, 20), bool)
    a[5:10, 5:10] = b[5:10, 8:13] = True  # three columns further
    assert hausdorff95(a, a) == 0
    assert hausdorff95(a, b) == 3
    assert hausdorff95(a, b, (1.0, 0.5)) == 1.5
    b[:] = False
    assert hausdorff95(a, b) is None
    assert hausdorff95(b, a) is None
    assert hausdorff95(b, b) is None
    assert all(len(part) == 0 for part in surface_distances(a, b))


def test_distances_through_slices_count_their_spacing():
    a, b = np.zeros((2, 9, 6, 6), bool)
    a[1, 2:4, 2:4] = b[4, 2:4, 2:4] = True
    assert hausdorff95(a, b, (2.5, 1.0, 1.0)) == 7.5


def test_refuses_what_it_cannot_measure():
    a = np.ones((3, 3), bool)
    with pytest.raises(ShapeError, match=r"\(3, 3\) and \(3, 4\)"):
        hausdorff95(a, np.ones((3, 4), bool))
    for spacing in ((1.0,), (1.0, 0.0), (1.0, np.nan), (1.0, 1.0, 1.0)):
        with pytest.raises(ConfigError, match="2 positive numbers"):
            hausdorff95(a, a, spacing)


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'swindow\[train\]'"):
        metrics.hausdorff95(np.ones((3, 3), bool), np.ones((3, 3), bool))
