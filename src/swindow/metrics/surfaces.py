"""How far outlines lie apart: the 95 % Hausdorff distance, in two or three dimensions, in the units of `spacing`.

The surface of a set of pixels or voxels is those of its members that share a side with something outside of it; what
lies beyond the picture is outside. Distances go between centres, by scipy's exact Euclidean distance transform. All
this, and the pooling of both directions, is as in medpy's ``hd95``, with which Swin-Unet and its relatives are judged.
(torchmetrics 1.9 has the largest distance only, in two dimensions, and misplaces distances in pictures that are not
square; the tests compare where both agree.)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from swindow.errors import ConfigError, ShapeError, require


def hausdorff95(
    predicted: Bool[np.ndarray, "..."], truth: Bool[np.ndarray, "..."], spacing: Sequence[float] | None = None
) -> float | None:
    """The 95th percentile of all distances from a point of either surface to the other surface, both pooled.

    `spacing` is the distance between neighbours along each axis, 1 without. None where either set is empty: there is
    no surface to measure to, and Dice already tells.

    Raises:
        ShapeError, ConfigError: as `surface_distances`.
        MissingExtra: scipy is not installed.
    """
    return percentile95(surface_distances(predicted, truth, spacing))


def percentile95(distances: Sequence[np.ndarray]) -> float | None:
    """The 95th percentile of all of them, pooled; None where there is none."""
    pooled = np.concatenate(distances)
    return float(np.percentile(pooled, 95)) if len(pooled) else None


def surface_distances(
    a: Bool[np.ndarray, "..."], b: Bool[np.ndarray, "..."], spacing: Sequence[float] | None = None
) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " B"]]:
    """From each point of the surface of `a` to the nearest of that of `b`, and the other way; both empty if either is.

    Raises:
        ShapeError: the two are not of one size.
        ConfigError: a spacing that is not one positive number for each axis.
        MissingExtra: scipy is not installed.
    """
    if a.shape != b.shape:
        raise ShapeError(f"the two sets lie in arrays of {a.shape} and {b.shape}; give one size")
    steps = (1.0,) * a.ndim if spacing is None else tuple(float(step) for step in spacing)
    if len(steps) != a.ndim or not all(0 < step < np.inf for step in steps):
        raise ConfigError(f"spacing {steps} must be {a.ndim} positive numbers, one for each axis")
    if not (a.any() and b.any()):
        return np.zeros(0), np.zeros(0)
    box = _box(a | b)
    a, b = _surface(a[box]), _surface(b[box])
    return _to(b, steps)[a], _to(a, steps)[b]


def _box(inside: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around everything inside; nothing beyond it touches a surface or a distance."""
    box = []
    for axis in range(inside.ndim):
        others = tuple(other for other in range(inside.ndim) if other != axis)
        places = np.flatnonzero(inside.any(axis=others))
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(box)


def _surface(inside: np.ndarray) -> np.ndarray:
    ndimage = require("scipy.ndimage", extra="train")
    return inside & ~ndimage.binary_erosion(
        inside
    )  # neighbours across sides; the border of the array counts as outside


def _to(surface: np.ndarray, steps: tuple[float, ...]) -> np.ndarray:
    """Distance of every point of the array to the nearest of the surface."""
    ndimage = require("scipy.ndimage", extra="train")
    return np.asarray(ndimage.distance_transform_edt(~surface, sampling=steps))
