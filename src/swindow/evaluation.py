"""How good a model is on images with labels: every one of them, in order, none replaced."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from swindow.data import Images, align_classes, open_data
from swindow.data.loading import eval_loader
from swindow.errors import DataError, TrainingDiverged
from swindow.inference import ReadyModel, ready
from swindow.metrics import ClassificationMetrics, ClassScore, class_scores
from swindow.model import Model
from swindow.progress import Progress, Silent


class Confusion(NamedTuple):
    """How often images of one class were taken for another."""

    truth: str
    predicted: str
    count: int


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

    def confusions(self) -> list[Confusion]:
        """Pairs of classes by how often the first was taken for the second, the most frequent first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-wrong[rows, columns], kind="stable")
        return [
            Confusion(self.classes[row], self.classes[column], int(wrong[row, column]))
            for row, column in zip(rows[order], columns[order], strict=True)
        ]

    def summary(self, *, most: int = 20) -> dict[str, Any]:
        """The figures as plain values, ready for JSON, with the `most` frequent confusions."""
        figures = ("split", "count", "accuracy", "top5", "loss", "calibration_error")
        return {
            **{name: getattr(self, name) for name in figures},
            "per_class": [score._asdict() for score in self.per_class],
            "confusions": [pair._asdict() for pair in self.confusions()[:most]],
        }


def evaluate(
    model: Model | str | Path,
    data: str | Path | Images,
    *,
    split: str | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a model about every image of a split and compare with the labels.

    Data that comes as images is judged whole. Data that is opened by name is judged on `split`; without one, on its own
    test split, else its own validation split, else all of it. Classes are matched by name.

    Raises:
        DataError: an image that cannot be read, no such split, or classes that the model does not have.
        CheckpointError: there is no usable checkpoint at the path.
        ConfigError: a model without preprocessing, or no such device or precision.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    asked = ready(model, device=device, precision=precision)
    split, images = (split or "all", data) if isinstance(data, Images) else _open(data, split, asked)
    if not len(images):
        raise DataError(f"the {split} split has no images; there is nothing to evaluate")
    labels = _labels(images, asked.classes)
    answers = _ask(asked, images, batch=batch, workers=workers, progress=progress or Silent(), title=split)
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


def _open(data: str | Path, split: str | None, asked: ReadyModel) -> tuple[str, Images]:
    """The images to judge; no validation split is cut from data that has none, since here nothing is trained."""
    source = open_data(str(data), channels=asked.preprocess.channels, val_fraction=0.0)
    if split is not None:
        return split, source.split(split)
    for name in ("test", "val"):
        if getattr(source, name) is not None:
            return name, source.split(name)
    return "all", source.split("train")


def _ask(asked: ReadyModel, images: Images, *, batch: int, workers: int, progress: Progress, title: str) -> Tensor:
    """Logits of every image, each in its own row."""
    logits = torch.full((len(images), len(asked.classes)), torch.nan)
    progress.begin(f"evaluate {title}", len(images))
    try:
        for part in eval_loader(images, asked.preprocess, batch=batch, workers=workers):
            logits[torch.as_tensor(part.indices)] = asked.logits(part.images)
            progress.advance(len(part.labels))
    finally:
        progress.end()
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
