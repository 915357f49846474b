"""What a segmenter's evaluation tells: scores of classes, of pictures and of cases, and the tables made of them."""

import dataclasses
from typing import Any, Literal

import numpy as np

from swindow.evaluation.confusions import Confusion, listed, percent
from swindow.metrics import PixelScore

Unit = Literal["mm", "pixels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well one picture's pixels are told, None where none of them counts."""

    name: str
    case: str
    mean_iou: float | None
    """Over the classes that occur in its truth or answer."""
    pixel_accuracy: float | None
    score: float | None
    """What pictures are ranked by: the mean IoU, without that of the background where the data has one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseScore:
    """How well one volume, patient or single picture is told, its pixels pooled; one value a class, or None."""

    case: str
    dice: tuple[float | None, ...]
    """None where the class is in neither truth nor answer; 0 where it is in one of them only."""
    hd95: tuple[float | None, ...]
    """95 % Hausdorff distance in the evaluation's unit; None where truth or answer has none of the class."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationEvaluation:
    """What a segmenter answered to the pictures of a split, and how good that is."""

    split: str
    """Which pictures: train, val, test, or all."""
    classes: tuple[str, ...]
    """The model's classes, in its order."""
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each class."""
    background: int | None
    """Index of the class that is no object, where the data has one."""
    count: int
    """Pictures."""
    loss: float
    """Mean cross-entropy of the pixels that count, in nats."""
    confusion: np.ndarray
    """Pixels, int64 ``K K``: rows are true classes, columns predicted ones."""
    per_class: tuple[PixelScore, ...]
    """Scores of each class over all pixels; its Dice and Hausdorff distance are means over the cases that have one."""
    mean_iou: float
    """Mean over the classes that occur in the truth or among the answers."""
    mean_accuracy: float
    """Mean over the classes that occur in the truth."""
    pixel_accuracy: float
    """Share of all counted pixels."""
    mean_dice: float | None
    """Mean over the objects' classes of their means over cases (as nnU-Net's foreground mean); all classes are objects
    where the data has no background. None where no case has an object."""
    hd95_unit: Unit | None
    """What Hausdorff distances are in; None where none were taken."""
    per_image: tuple[ImageScore, ...]
    """One for each picture, in the split's order."""
    per_case: tuple[CaseScore, ...]
    """One for each case, in the order of their first pictures."""

    @property
    def score(self) -> float:
        """What training maximises: the mean Dice where the data has a background, as medical data does, else the mean
        IoU."""
        return self.mean_iou if self.background is None else (self.mean_dice or 0.0)

    @property
    def score_name(self) -> str:
        """What that is called."""
        return "mean IoU" if self.background is None else "mean Dice"

    def confusions(self) -> list[Confusion]:
        """Pairs of classes by how many pixels of the first were taken for the second, the most frequent first."""
        return listed(self.confusion, self.classes)

    def best_median_worst(self, count: int = 3) -> dict[str, list[int]]:
        """Rows of `per_image` by score, at most `count` for each of ``best``, ``median`` and ``worst``, none twice.

        Where there are few pictures, the worst come first, then the best; those without a score are left out.
        """
        known = [row for row, image in enumerate(self.per_image) if image.score is not None]
        order = sorted(known, key=lambda row: self.per_image[row].score or 0.0)
        worst, rest = order[:count], order[count:]
        best = rest[::-1][:count]
        between = rest[: len(rest) - len(best)]
        middle = max(0, len(order) // 2 - len(worst) - count // 2)
        middle = min(middle, max(0, len(between) - count))
        return {"best": best, "median": between[middle : middle + count], "worst": worst}

    def figures(self) -> dict[str, float]:
        """The numbers that a run records."""
        names = ("mean_iou", "mean_accuracy", "pixel_accuracy", "mean_dice", "loss")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def summary(self, *, most: int = 20) -> dict[str, Any]:
        """The figures as plain values, ready for JSON, with the `most` frequent confusions and worst pictures.

        Cases are there where the data has a background, each with its objects' Dice and Hausdorff distance.
        """
        figures = ("split", "count", "score", "score_name", "mean_iou", "mean_accuracy", "pixel_accuracy", "mean_dice")
        worst = sorted(self.per_image, key=lambda image: (image.score is None, image.score or 0.0))[:most]
        cases = self.per_case if self.background is not None else ()
        return {
            **{name: getattr(self, name) for name in (*figures, "loss", "hd95_unit")},
            "per_class": [dataclasses.asdict(score) for score in self.per_class],
            "per_case": [
                {
                    "case": case.case,
                    "dice": {self.classes[k]: case.dice[k] for k in self._objects},
                    "hd95": {self.classes[k]: case.hd95[k] for k in self._objects},
                }
                for case in cases
            ],
            "confusions": [dataclasses.asdict(pair) for pair in self.confusions()[:most]],
            "worst": [dataclasses.asdict(image) for image in worst],
        }

    def table(self, *, most: int = 40) -> str:
        """The figures as lines of text, with every class, or the `most` hardest ones if there are more."""
        shown = list(self.per_class)
        if len(shown) > most:
            shown = sorted(shown, key=lambda score: (score.iou is None, score.iou or 0.0))[:most]
        width = max(5, *(len(score.name) for score in shown))
        unit = "" if self.hd95_unit is None else f"  HD95 {self.hd95_unit}"
        lines = [self._headline(), f"{'class':{width}}         pixels     IoU  accuracy    Dice{unit}"]
        for score in shown:
            far = "" if self.hd95_unit is None else f"  {_length(score.hd95):>{len(unit) - 2}}"
            lines.append(
                f"{score.name:{width}}  {score.pixels:13,}  {percent(score.iou):>6}  {percent(score.accuracy):>8}  "
                f"{percent(score.dice):>6}{far}"
            )
        rest = len(self.per_class) - len(shown)
        lines += [f"and {rest} classes with a higher IoU"] if rest else []
        total = self.confusion.sum()
        return "\n".join(
            lines
            + [
                f"{pair.count / total:.1%} of all pixels are {pair.truth} taken for {pair.predicted}"
                for pair in self.confusions()[:5]
            ]
        )

    @property
    def _objects(self) -> list[int]:
        return [k for k in range(len(self.classes)) if k != self.background]

    def _headline(self) -> str:
        dice = "" if self.mean_dice is None else f"mean Dice {self.mean_dice:.2%} of {len(self.per_case):,} cases, "
        iou = f"mean IoU {self.mean_iou:.2%}, "
        first = dice + iou if self.background is not None else iou + dice
        return (
            f"{self.split}: {first}mean accuracy {self.mean_accuracy:.2%}, pixel accuracy {self.pixel_accuracy:.2%}, "
            f"loss {self.loss:.4f} ({self.count:,} images)"
        )


def _length(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
