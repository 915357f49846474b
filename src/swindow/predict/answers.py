"""What a model says about images, and what predicting files came to."""

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from swindow.data.legends import RGB
from swindow.images import name_of
from swindow.objects import Detections, Size
from swindow.sheets import clean


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model says about one image."""

    source: str
    """The image's path, or what kind of object it was."""
    classes: tuple[str, ...]
    """The model's classes."""
    probabilities: np.ndarray
    """float32 ``K``, in the order of `classes`."""

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes (or all, if there are fewer) with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The class that a model gives to each pixel of one image, or to each voxel of a volume."""

    source: str
    """The image's path, or what kind of object it was."""
    classes: tuple[str, ...]
    """The model's classes."""
    colours: tuple[RGB, ...]
    """Red, green and blue of each class in 0..255: the model's own, or fixed ones where it has none."""
    mask: np.ndarray
    """Indices into `classes`, uint8 (uint16 above 255 classes): ``h w``, or ``slices h w`` in the order of the file."""
    spacing: tuple[float, float, float] | None = None
    """Millimetres along the axes of a volume, where they are known."""
    axis: int = 0
    """Along which a volume was cut into the slices that the model saw."""

    def coverage(self) -> dict[str, float]:
        """The share of the pixels that each class has, in the order of `classes`; together 1."""
        counts = np.zeros(len(self.classes), np.int64)
        for part in self.mask:  # a row or a slice at a time: counting takes eight bytes for each pixel
            counts += np.bincount(part.ravel(), minlength=len(self.classes))
        return {name: float(count / self.mask.size) for name, count in zip(self.classes, counts, strict=True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Covered:
    """What is kept of a `Segmentation` whose mask is in a file."""

    source: str
    """The image's path."""
    size: tuple[int, ...]
    """Height and width, or depth, height and width as the file has them."""
    coverage: Mapping[str, float]
    """The share of the pixels that each class has."""
    mask: Path
    """The file with the class of each pixel."""
    overlay: Path
    """The picture with the classes drawn over it."""
    millilitres: Mapping[str, float] | None = None
    """The volume of each class, where a voxel's size is known."""

    def top(self, k: int = 3) -> list[tuple[str, float]]:
        """The classes that cover most, with their shares, at most `k`."""
        order = sorted(self.coverage.items(), key=lambda pair: -pair[1])
        return [pair for pair in order[:k] if pair[1] > 0]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The objects that a model finds in one image."""

    source: str
    """The image's path, or what kind of object it was."""
    classes: tuple[str, ...]
    """The model's classes."""
    colours: tuple[RGB, ...]
    """Red, green and blue of each class in 0..255: the model's own, or fixed ones where it has none."""
    detections: Detections
    """All of them, the surest first, in the image's own pixels; `above` leaves out the less sure ones."""

    @property
    def size(self) -> Size:
        """Height and width of the image."""
        return self.detections.size

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Class and score of the `k` surest objects, or of all if there are fewer."""
        labels, scores = self.detections.labels[:k].tolist(), self.detections.scores[:k].tolist()
        return [(self.classes[label], score) for label, score in zip(labels, scores, strict=True)]

    def above(self, threshold: float = 0.5) -> Detections:
        """The objects whose score is at least `threshold`."""
        return self.detections[self.detections.scores >= threshold]

    def counts(self, threshold: float = 0.5) -> dict[str, int]:
        """How many objects of each class have a score of at least `threshold`; the most frequent first."""
        labels = self.above(threshold).labels.tolist()
        return dict(collections.Counter(self.classes[label] for label in labels).most_common())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
    """What is kept of a `Found` whose objects are in files."""

    source: str
    """The image's path."""
    size: Size
    """Height and width."""
    threshold: float
    """The score from which objects count."""
    counts: Mapping[str, int]
    """How many objects of each class were found; the most frequent first."""
    overlay: Path
    """The picture with the objects drawn over it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that gave no prediction."""

    source: str
    """The image's path, or what kind of object it was."""
    error: str
    """Why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSummary:
    """What `predict_files` did."""

    count: int
    """Images asked for."""
    failures: tuple[Failure, ...]
    """Those without a prediction."""
    classes: dict[str, int]
    """How often each class was the most probable one, in how many masks it occurs, or how many objects it has; the most
    frequent first."""
    files: tuple[Path, ...]
    """What was written."""
    first: tuple[Prediction | Covered | Counted | Failure, ...]
    """The first answers, at most 64."""

    def text(self) -> str:
        """One line for each of the first answers, one for all, one for each file."""
        lines = [_said(answer) for answer in self.first]
        rest = self.count - len(self.first)
        lines += [f"and {rest:,} more"] if rest else []
        masks = any(isinstance(answer, Covered) for answer in self.first)
        tally = [
            f"{clean(name)} in {count:,}" if masks else f"{count:,} {clean(name)}"
            for name, count in self.classes.items()
        ]
        tally[10:] = [f"{len(tally) - 10} more classes"] if len(tally) > 10 else []
        tally += [f"{len(self.failures):,} without a prediction"] if self.failures else []
        tally = tally or ["nothing found"]
        lines.append(f"{self.count:,} image{'s' if self.count != 1 else ''}: {', '.join(tally)}")
        return "\n".join([*lines, *(str(path) for path in self.files)])


def _said(answer: Prediction | Covered | Counted | Failure) -> str:
    if isinstance(answer, Failure):
        return answer.error
    if isinstance(answer, Counted):
        return f"{name_of(answer.source)}: {count_text(answer)}"
    first, *others = answer.top(3)
    said = [first, *(pair for pair in others if pair[1] >= 0.005)]
    return f"{name_of(answer.source)}: " + ", ".join(f"{clean(name)} {share:.1%}" for name, share in said)


def count_text(answer: Counted) -> str:
    """The numbers of objects in words."""
    said = ", ".join(f"{count:,} {clean(name)}" for name, count in answer.counts.items())
    return said or f"nothing with a score of {answer.threshold:g} or more"
