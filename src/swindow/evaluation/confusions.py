"""A confusion matrix as a list of pairs."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often images, or pixels, of one class were taken for another."""

    truth: str
    predicted: str
    count: int


def listed(confusion: np.ndarray, classes: Sequence[str]) -> list[Confusion]:
    """Pairs of classes by how often the first (a row) was taken for the second, the most frequent first."""
    wrong = confusion - np.diag(np.diag(confusion))
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")
    return [
        Confusion(truth=classes[row], predicted=classes[column], count=int(wrong[row, column]))
        for row, column in zip(rows[order], columns[order], strict=True)
    ]


def percent(share: float | None) -> str:
    """A share of one, in percent; a dash where there is none."""
    return "–" if share is None else f"{share:.1%}"
