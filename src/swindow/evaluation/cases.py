"""A volume, a patient, or a single picture: its pixels pooled, its outlines measured.

The slices of one volume (`name[0]`, `name[1]`, … without gaps, all of one size) are put together again and measured in
three dimensions, other pictures in two. The distances of all the volumes and pictures of a case are pooled before the
percentile is taken.
"""

import dataclasses
import re
from itertools import groupby

import numpy as np

from swindow.metrics import percentile95, surface_distances


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Truth and answer of one picture, int16 ``h w``, `IGNORE` where nothing counts."""

    name: str
    truth: np.ndarray
    answer: np.ndarray


class Case:
    """What is known of a case that is not complete yet."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.pictures: list[Labels] = []

    def hausdorff95(self, k: int, spacing: tuple[float, float, float]) -> float | None:
        """Of one class: the percentile of the distances of all its surfaces, where truth and answer both have it."""
        distances: list[np.ndarray] = []
        for stack in self.stacks:
            truth, answer = (np.stack(maps) == k for maps in ([p.truth for p in stack], [p.answer for p in stack]))
            if len(stack) > 1:
                distances += surface_distances(answer, truth, spacing)
            else:
                distances += surface_distances(answer[0], truth[0], spacing[1:])
        return percentile95(distances)

    @property
    def stacks(self) -> list[list[Labels]]:
        """Slices that follow each other in one volume, together; others alone."""
        named = [(*_slice_of(picture.name), picture) for picture in self.pictures]
        found: list[list[Labels]] = []
        for volume, slices in groupby(sorted(named, key=lambda part: part[:2]), key=lambda part: part[0]):
            numbers, stack = zip(*((number, picture) for _, number, picture in slices), strict=True)
            whole = volume and len({picture.truth.shape for picture in stack}) == 1
            whole = whole and numbers == tuple(range(numbers[0], numbers[0] + len(numbers)))
            found += [list(stack)] if whole else [[picture] for picture in stack]
        return found


def _slice_of(name: str) -> tuple[str, int]:
    """Volume and number of a slice, ``brain.nii.gz[17]``; no volume of another picture."""
    found = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (found[1], int(found[2])) if found else ("", 0)
