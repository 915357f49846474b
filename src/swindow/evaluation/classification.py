"""How good a classifier is on images with labels: every one of them, in order, none replaced."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swindow.data import Images, align_classes
from swindow.data.loading import eval_loader
from swindow.distributed import ALONE, Ranks
from swindow.errors import TrainingDiverged
from swindow.evaluation.confusions import Confusion, listed, percent
from swindow.evaluation.sharing import gathered
from swindow.inference import ReadyModel
from swindow.metrics import ClassificationMetrics, ClassScore, class_scores
from swindow.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a model answered to the images of a split, and how good that is. Row i of every array is image i."""

    split: str
    """Which images: train, val, test, or all."""
    classes: tuple[str, ...]
    """The model's classes, in its order."""
    count: int
    """Images."""
    accuracy: float
    """Share of images whose most probable class is the right one."""
    top5: float | None
    """Share whose right class is among the five most probable; None below six classes."""
    loss: float
    """Mean cross-entropy in nats."""
    calibration_error: float
    """Expected gap between confidence and accuracy over 15 bins (Guo et al. 2017)."""
    per_class: tuple[ClassScore, ...]
    """Scores of each class."""
    confusion: np.ndarray
    """Images, int64 ``K K``: rows are true classes, columns predicted ones."""
    probabilities: np.ndarray
    """float32 ``n K``."""
    labels: np.ndarray
    """int64 ``n``: index of the true class in `classes`."""
    names: tuple[str, ...]
    """What each image is called."""

    def mistakes(self) -> list[int]:
        """Rows of wrongly answered images, the most confident first."""
        wrong = np.flatnonzero(self.probabilities.argmax(axis=1) != self.labels)
        confidence = self.probabilities[wrong].max(axis=1)
        return [int(row) for row in wrong[np.argsort(-confidence, kind="stable")]]

    @property
    def score(self) -> float:
        """What training maximises."""
        return self.accuracy

    @property
    def score_name(self) -> str:
        """What that is called."""
        return "accuracy"

    def confusions(self) -> list[Confusion]:
        """Pairs of classes by how often the first was taken for the second, the most frequent first."""
        return listed(self.confusion, self.classes)

    def figures(self) -> dict[str, float]:
        """The numbers that a run records."""
        found = {"accuracy": self.accuracy, "loss": self.loss, "calibration_error": self.calibration_error}
        return found if self.top5 is None else found | {"top5": self.top5}

    def summary(self, *, most: int = 20) -> dict[str, Any]:
        """The figures as plain values, ready for JSON, with the `most` frequent confusions."""
        figures = ("split", "count", "accuracy", "top5", "loss", "calibration_error")
        return {
            **{name: getattr(self, name) for name in figures},
            "per_class": [dataclasses.asdict(score) for score in self.per_class],
            "confusions": [dataclasses.asdict(pair) for pair in self.confusions()[:most]],
        }

    def table(self, *, most: int = 40) -> str:
        """The figures as lines of text, with the `most` hardest classes."""
        hardest = sorted(self.per_class, key=lambda score: (score.count == 0, score.f1 or 0.0))[:most]
        width = max(len(score.name) for score in hardest)
        top5 = "" if self.top5 is None else f"top five {self.top5:.2%}, "
        lines = [
            f"{self.split}: accuracy {self.accuracy:.2%} of {self.count:,} images "
            f"({top5}loss {self.loss:.4f}, calibration error {self.calibration_error:.2%})",
            f"{'class':{width}}  images  recall  precision      F1",
        ]
        lines += [
            f"{score.name:{width}}  {score.count:6}  {percent(score.recall):>6}  {percent(score.precision):>9}  "
            f"{percent(score.f1):>6}"
            for score in hardest
        ]
        rest = len(self.per_class) - len(hardest)
        lines += [f"and {rest} classes with a higher F1"] if rest else []
        return "\n".join(
            lines + [f"{pair.count} × {pair.truth} taken for {pair.predicted}" for pair in self.confusions()[:5]]
        )


def judge_classifier(
    asked: ReadyModel, images: Images, *, split: str, batch: int, workers: int, progress: Progress, ranks: Ranks = ALONE
) -> Evaluation:
    """Ask a classifier about every image, and compare; each of several processes asks about its share of the batches.

    Raises:
        DataError: an image that cannot be read, or classes that the model does not have.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    labels = _labels(images, asked.classes)
    answers = _finite(_ask(asked, images, batch, workers, progress, split, ranks), images)
    metrics = ClassificationMetrics(len(asked.classes))
    metrics.update(answers, labels)
    figures = metrics.compute()
    return Evaluation(
        split=split,
        classes=asked.classes,
        per_class=class_scores(figures["confusion"], asked.classes),
        probabilities=answers.softmax(dim=1).numpy(),
        labels=labels.numpy(),
        names=tuple(str(name) for name in images.names),
        **figures,
    )


def _ask(
    asked: ReadyModel, images: Images, batch: int, workers: int, progress: Progress, title: str, ranks: Ranks
) -> Tensor:
    """Logits of every image, each in its own row."""
    logits = torch.full((len(images), len(asked.classes)), torch.nan)

    def ask() -> tuple[Tensor, Tensor]:
        rows = []
        progress.begin(f"evaluate {title}", len(images))
        try:
            for part in eval_loader(images, asked.preprocess, batch=batch, workers=workers, ranks=ranks):
                rows.append(torch.as_tensor(part.indices))
                logits[rows[-1]] = asked.logits(part.images)
                progress.advance(len(part.labels) * ranks.world)  # the others are about as far
        finally:
            progress.end()
        mine = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
        return mine, logits[mine]

    for rows, answers in gathered(ranks, ask):
        logits[rows] = answers
    return logits


def _finite(logits: Tensor, images: Images) -> Tensor:
    """The logits, if all are numbers."""
    unanswered = torch.nonzero(~logits.isfinite().all(dim=1)).flatten().tolist()
    if unanswered:
        raise TrainingDiverged(
            f"{images.names[unanswered[0]]}: the model's answer is not finite (and so for {len(unanswered)} of "
            f"{len(images)} images); try precision fp32, or an earlier checkpoint"
        )
    return logits


def _labels(images: Images, classes: Sequence[str]) -> Tensor:
    """The images' labels as indices into the model's classes."""
    return torch.from_numpy(align_classes(images.classes, classes)[images.labels])
