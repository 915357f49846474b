"""How good maps of classes are, pixel by pixel: confusion, IoU, accuracy, Dice, and their means.

Everything comes from the confusion, in int64, so a set of any size is counted exactly and in a stream. The counting
is one `torch.bincount` rather than torchmetrics': theirs is the same on its usual path (the tests compare them), but
under `torch.use_deterministic_algorithms` it makes a table of pixels × K² in memory, 47 GB for 512² pixels of 150
classes, and it asks neither labels nor answers whether they are in range, or else sorts both to find out.

A score that divides by nothing is None and stays out of means: a class that occurs neither in the truth nor among the
answers has no IoU, one that does not occur in the truth has no accuracy.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from swindow.errors import ConfigError, ShapeError
from swindow.shapes import IGNORE


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelScore:
    """One class over a whole set: how many pixels are of it, and how well they are told from the others."""

    name: str
    pixels: int
    """Pixels of the class in the truth."""
    iou: float | None
    """Pixels rightly called so, of all that are or are called so; None where there are none of either."""
    accuracy: float | None
    """Share of its pixels that are called so (recall); None where it has none."""
    dice: float | None = None
    """Mean over cases of twice the rightly called, of all that are plus all that are called so; a case with none of
    either is left out."""
    hd95: float | None = None
    """Mean over cases of `hausdorff95`; cases where truth or answer has none of it are left out."""


def confusion_of_pixels(
    predicted: Int[Tensor, "..."], truth: Int64[Tensor, "..."], num_classes: int
) -> Int64[np.ndarray, "K K"]:
    """How many pixels of each class (rows) are called what (columns); where the truth is `IGNORE`, nothing counts.

    Raises:
        ShapeError: the two are not of one size.
        ConfigError: a value that is no class, in either.
    """
    if predicted.shape != truth.shape:
        raise ShapeError(f"answers are {tuple(predicted.shape)} and the truth {tuple(truth.shape)}; give one size")
    counted = truth != IGNORE
    truth, predicted = truth[counted], predicted[counted].long()
    for name, values in (("truth", truth), ("answers", predicted)):
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= num_classes):
            raise ConfigError(
                f"the {name} name classes {int(values.min())} to {int(values.max())}; there are {num_classes}, from 0 "
                f"(and {IGNORE} in the truth for what does not count)"
            )
    counts = torch.bincount(truth.mul_(num_classes).add_(predicted), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).cpu().numpy()


def pixel_scores(confusion: np.ndarray, classes: Sequence[str]) -> tuple[PixelScore, ...]:
    """IoU and accuracy of each class from a confusion ``K K``."""
    right, true, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        PixelScore(
            name=name,
            pixels=int(true[k]),
            iou=_share(right[k], true[k] + called[k] - right[k]),
            accuracy=_share(right[k], true[k]),
        )
        for k, name in enumerate(classes)
    )


def pixel_accuracy(confusion: np.ndarray) -> float | None:
    """Share of all counted pixels that are called what they are; None where none counts."""
    return _share(np.trace(confusion), confusion.sum())


def dice_scores(confusion: np.ndarray) -> tuple[float | None, ...]:
    """Dice of each class from the confusion of one case, its pixels pooled.

    Of a class in neither truth nor answer it is None, of one in only one of them 0, as nnU-Net counts it.
    """
    right, true, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(_share(2 * right[k], true[k] + called[k]) for k in range(len(confusion)))


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _share(part: int | np.integer, whole: int | np.integer) -> float | None:
    return float(part / whole) if whole else None
