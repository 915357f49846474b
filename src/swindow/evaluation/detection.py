"""What a detector's evaluation tells: average precision, scores of classes and of pictures, and the tables of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swindow.evaluation.confusions import Confusion, listed, percent
from swindow.metrics import AveragePrecision, Counts

BACKGROUND = "background"
"""What the confusion calls the place of what is no object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectScore:
    """How well one class is found; None where there is nothing to divide by."""

    name: str
    objects: int
    """That count: without crowds."""
    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None = None
    mask_ap50: float | None = None
    precision: float | None
    """Share of its detections above the threshold that are right, at IoU 0.5."""
    recall: float | None
    """Share of its objects that are found."""
    f1: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundScore:
    """What was found in one picture above the threshold, at IoU 0.5 of boxes, by class."""

    name: str
    hits: int
    misses: int
    """Objects that no detection of their class is of."""
    false_alarms: int
    """Detections that are of no object of their class."""
    score: float | None
    """F1, which pictures are ranked by; None where there is neither object nor detection."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DetectionEvaluation:
    """What a detector found in the pictures of a split, and how good that is."""

    split: str
    """Which pictures: train, val, test, or all."""
    classes: tuple[str, ...]
    """The model's classes, in its order."""
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each class."""
    judged: tuple[int, ...]
    """Classes that the data names; what is detected of others can be neither right nor wrong, and counts nowhere."""
    count: int
    """Pictures."""
    objects: int
    """That count: without crowds."""
    boxes: AveragePrecision
    masks: AveragePrecision | None
    """None where the data or the model has boxes alone."""
    threshold: float
    """Score from which on detections count below; where none was asked for, the one with the best F1 here."""
    best_f1: bool
    """Whether it was chosen so."""
    per_class: tuple[ObjectScore, ...]
    """Scores of each class."""
    confusion: np.ndarray
    """Boxes, int64 ``K+1 K+1``: rows are true classes, columns detected ones, the last of both is the background.

    Detections meet objects whatever the class of either, the surest first, at IoU 0.5."""
    per_image: tuple[FoundScore, ...]
    """One for each picture, in the split's order."""
    results: Callable[[], list[dict[str, Any]]] = list
    """Every detection as a row of a COCO results file, with the images' and categories' numbers that the data has; made
    when asked for, since there may be half a million."""

    @property
    def score(self) -> float:
        """What training maximises: the AP of masks where data and model have them, else that of boxes."""
        return (self.boxes if self.masks is None else self.masks).ap or 0.0

    @property
    def score_name(self) -> str:
        """What that is called."""
        return "box AP" if self.masks is None else "mask AP"

    def confusions(self) -> list[Confusion]:
        """Pairs of classes by how often an object of the first was taken for the second, the most frequent first.

        With `BACKGROUND` as the second they are objects that were missed, as the first detections of nothing.
        """
        return listed(self.confusion, (*self.classes, BACKGROUND))

    def worst(self, count: int = 12) -> list[int]:
        """Rows of `per_image` with mistakes, the lowest F1 first, and of one F1 the most mistakes first."""
        rows = [row for row, image in enumerate(self.per_image) if image.misses or image.false_alarms]
        return sorted(rows, key=lambda row: (self.per_image[row].score or 0.0, -_mistakes(self.per_image[row])))[:count]

    def best(self, count: int = 3) -> list[int]:
        """Rows of `per_image` by F1, the highest first, and of one F1 the most objects found first."""
        rows = [row for row, image in enumerate(self.per_image) if image.hits]
        order = sorted(rows, key=lambda row: (self.per_image[row].score or 0.0, self.per_image[row].hits), reverse=True)
        return order[:count]

    def figures(self) -> dict[str, float]:
        """The numbers that a run records."""
        masks = {} if self.masks is None else self.masks.figures("mask")
        return self.boxes.figures("box") | masks

    def summary(self, *, most: int = 20) -> dict[str, Any]:
        """The figures as plain values, ready for JSON, with the `most` frequent confusions and worst pictures."""
        names = ("split", "count", "objects", "score", "score_name")
        rows = self.worst(most)
        return {
            **{name: getattr(self, name) for name in names},
            **self.figures(),
            "threshold": self.threshold,
            "per_class": [dataclasses.asdict(self.per_class[k]) for k in self.judged],
            "confusions": [dataclasses.asdict(pair) for pair in self.confusions()[:most]],
            "worst": [dataclasses.asdict(self.per_image[row]) for row in rows],
        }

    def table(self, *, most: int = 40) -> str:
        """The figures as lines of text, with every class that is judged, or the `most` hardest ones if there are more.

        Precision and recall are of detections above the threshold, at IoU 0.5.
        """
        shown = [self.per_class[k] for k in self.judged]
        if len(shown) > most:
            shown = sorted(shown, key=lambda score: (score.box_ap is None, score.box_ap or 0.0))[:most]
        width = max(5, *(len(score.name) for score in shown))
        masks = "" if self.masks is None else "  mask AP  mask AP50"
        lines = [self._headline(), *self._sizes()]
        lines.append(f"{'class':{width}}  objects  box AP  box AP50{masks}  precision  recall")
        for score in shown:
            of_masks = "" if self.masks is None else f"  {percent(score.mask_ap):>7}  {percent(score.mask_ap50):>9}"
            lines.append(
                f"{score.name:{width}}  {score.objects:7,}  {percent(score.box_ap):>6}  {percent(score.box_ap50):>8}"
                f"{of_masks}  {percent(score.precision):>9}  {percent(score.recall):>6}"
            )
        rest = len(self.judged) - len(shown)
        lines += [f"and {rest} classes with a higher AP"] if rest else []
        return "\n".join(lines + [self._counted()] + [_said(pair) for pair in self.confusions()[:5]])

    def _headline(self) -> str:
        parts = [f"{name} {percent(value)}" for name, value in self._main()]
        return f"{self.split}: {', '.join(parts)} ({self.count:,} images, {self.objects:,} objects)"

    def _main(self) -> list[tuple[str, float | None]]:
        kinds = [("box", self.boxes)] if self.masks is None else [("mask", self.masks), ("box", self.boxes)]
        return [
            (f"{name} {what}", value)
            for name, found in kinds
            for what, value in (("AP", found.ap), ("AP50", found.ap50), ("AP75", found.ap75))
        ]

    def _sizes(self) -> list[str]:
        kinds = {"boxes": self.boxes} | ({} if self.masks is None else {"masks": self.masks})
        return [
            f"AP of {name}: small {percent(found.ap_small)}, medium {percent(found.ap_medium)}, "
            f"large {percent(found.ap_large)}; recall {percent(found.ar100)} with 100 detections an image"
            for name, found in kinds.items()
        ]

    def _counted(self) -> str:
        hits, misses, false_alarms = (sum(getattr(image, name) for image in self.per_image) for name in _COUNTS)
        how = "the best F1" if self.best_f1 else "as asked"
        return (
            f"above a score of {self.threshold:.2f} ({how}): {hits:,} of {hits + misses:,} objects found, "
            f"{false_alarms:,} false alarms"
        )


_COUNTS = ("hits", "misses", "false_alarms")


def object_scores(
    classes: Sequence[str], counts: Sequence[Counts], boxes: AveragePrecision, masks: AveragePrecision | None
) -> tuple[ObjectScore, ...]:
    """Scores of each class from what was counted and measured of it."""
    return tuple(
        ObjectScore(
            name=name,
            objects=counts[k].hits + counts[k].misses,
            box_ap=boxes.per_class[k],
            box_ap50=boxes.per_class50[k],
            mask_ap=None if masks is None else masks.per_class[k],
            mask_ap50=None if masks is None else masks.per_class50[k],
            precision=counts[k].precision,
            recall=counts[k].recall,
            f1=counts[k].f1,
        )
        for k, name in enumerate(classes)
    )


def _said(pair: Confusion) -> str:
    if pair.predicted == BACKGROUND:
        return f"{pair.count} × {pair.truth} missed"
    if pair.truth == BACKGROUND:
        return f"{pair.count} × {pair.predicted} where there is nothing"
    return f"{pair.count} × {pair.truth} taken for {pair.predicted}"


def _mistakes(image: FoundScore) -> int:
    return image.misses + image.false_alarms
