"""Which detection is of which object, one by one: hits, misses and false alarms above a score, what is taken for what.

Boxes are matched at IoU 0.5 as COCO does it: the surest detection first, each with the object that it overlaps most
and that none has yet. One that meets no object but a crowd counts nowhere. This is done twice: with objects of the
detection's own class for hits and misses, and with objects of any class for the confusion. A detection's match
depends on surer ones alone, so what holds for all of them gives the counts above any score.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int64

from swindow.errors import ConfigError, require
from swindow.metrics.detection import boxes_as_coco
from swindow.metrics.runs import EXTRA
from swindow.objects import Detections, Objects

IOU = 0.5
NONE, CROWD = -1, -2
"""What a detection matches that is of no object, and one that lies in a crowd."""
THRESHOLD = 0.5
"""Where no detection is right, so that no score is better than another."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many objects were found, how many were not, and how many detections are of no object of their class."""

    hits: int
    misses: int
    false_alarms: int

    @property
    def precision(self) -> float | None:
        """Share of the detections that are right; None where there are none."""
        return _share(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float | None:
        """Share of the objects that are found; None where there are none."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None where there is neither object nor detection."""
        return _share(2 * self.hits, 2 * self.hits + self.misses + self.false_alarms)


class ObjectMatches:
    """Matches of a whole set, gathered image by image: a few numbers of each object and detection."""

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}; a detector has at least 1")
        self.num_classes = num_classes
        self._objects: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._right: list[np.ndarray] = []
        self._met: list[np.ndarray] = []

    def update(self, objects: Objects, detections: Detections) -> None:
        """Add one image: what is in it and what was found."""
        truth, labels = objects.labels.cpu().numpy(), detections.labels.cpu().numpy()
        own, any_class = matches(objects, detections), matches(objects, detections, any_class=True)
        self._objects.append(truth[~objects.crowd.cpu().numpy()])
        self._scores.append(detections.scores.double().cpu().numpy())
        self._labels.append(labels)
        self._right.append(np.where(own >= 0, 1, own))
        met = truth[np.maximum(any_class, 0)] if len(truth) else np.zeros_like(any_class)
        self._met.append(np.where(any_class >= 0, met, np.where(any_class == NONE, self.num_classes, CROWD)))

    def extend(self, other: "ObjectMatches") -> None:
        """Add the images of another, after those that there are."""
        self._objects += other._objects
        self._scores += other._scores
        self._labels += other._labels
        self._right += other._right
        self._met += other._met

    def best_threshold(self) -> float:
        """The score from which on detections give the best F1 over all objects; the highest of several."""
        scores, right = np.concatenate(self._scores), np.concatenate(self._right)
        scores, right = scores[right != CROWD], right[right != CROWD]
        if not (right == 1).any():
            return THRESHOLD
        order = np.argsort(-scores, kind="stable")
        scores, hits = scores[order], np.cumsum(right[order] == 1)
        last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # detections of one score come together
        f1 = 2 * hits[last] / (last + 1 + sum(map(len, self._objects)))
        return float(scores[last[np.argmax(f1)]])

    def per_image(self, threshold: float) -> list[Counts]:
        """Counts of each image, of detections with at least that score."""
        found = zip(self._objects, self._scores, self._right, strict=True)
        return [_counts(right[scores >= threshold], len(objects)) for objects, scores, right in found]

    def per_class(self, threshold: float) -> list[Counts]:
        """Counts of each class."""
        kept = np.concatenate(self._scores) >= threshold
        labels, right = np.concatenate(self._labels)[kept], np.concatenate(self._right)[kept]
        objects = np.bincount(np.concatenate(self._objects), minlength=self.num_classes)
        return [_counts(right[labels == k], int(objects[k])) for k in range(self.num_classes)]

    def confusion(self, threshold: float) -> Int64[np.ndarray, "classes classes"]:
        """``K+1 K+1``: true classes as rows, detected ones as columns; the last of both is the background.

        The last row counts detections that meet no object, the last column objects that no detection meets.
        """
        width = self.num_classes + 1
        kept = np.concatenate(self._scores) >= threshold
        labels, met = np.concatenate(self._labels)[kept], np.concatenate(self._met)[kept]
        labels, met = labels[met != CROWD], met[met != CROWD]
        confusion = np.bincount(met * width + labels, minlength=width**2).reshape(width, width)
        objects = np.bincount(np.concatenate(self._objects), minlength=self.num_classes)
        confusion[:-1, -1] = objects - confusion[:-1, :-1].sum(axis=1)
        return confusion


def matches(objects: Objects, detections: Detections, *, any_class: bool = False) -> Int64[np.ndarray, " N"]:
    """Which object each detection is of: its row, `NONE`, or `CROWD`.

    Raises:
        MissingExtra: faster_coco_eval is not installed.
    """
    found = np.full(len(detections), NONE, np.int64)
    if not len(objects) or not len(detections):
        return found
    crowd = objects.crowd.cpu().numpy()
    near = _overlaps(objects, detections)
    if not any_class:
        near[detections.labels.cpu().numpy()[:, None] != objects.labels.cpu().numpy()[None, :]] = 0
    free = ~crowd
    for row in np.argsort(-detections.scores.double().cpu().numpy(), kind="stable"):
        best = np.where(free, near[row], 0)
        place = len(best) - 1 - int(best[::-1].argmax())  # the last of equals, as pycocotools has it
        if best[place] >= IOU:
            found[row], free[place] = place, False
        elif (near[row][crowd] >= IOU).any():
            found[row] = CROWD
    return found


def _overlaps(objects: Objects, detections: Detections) -> Float[np.ndarray, "N M"]:
    """IoU of boxes; with a crowd the share of the detection that lies in it."""
    coding = require("faster_coco_eval.core.mask", extra=EXTRA)
    crowd: Bool[np.ndarray, " M"] = objects.crowd.cpu().numpy()
    return coding.iou(boxes_as_coco(detections.boxes), boxes_as_coco(objects.boxes), crowd.astype(int).tolist())


def _counts(right: np.ndarray, objects: int) -> Counts:
    hits = int((right == 1).sum())
    return Counts(hits, objects - hits, int((right == NONE).sum()))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
