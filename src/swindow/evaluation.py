"""How good a model is on images with labels: every one of them, in order, none replaced."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swindow.config import read_toml
from swindow.data import DataSource, Images, align_classes, open_data, split_changes
from swindow.data.loading import eval_loader
from swindow.errors import ConfigError, DataError, TrainingDiverged
from swindow.images import LIMITS, ImageLimits
from swindow.inference import ReadyModel, ready
from swindow.metrics import ClassificationMetrics, ClassScore, class_scores
from swindow.model import Model
from swindow.progress import Progress, Silent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confusion:
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
            Confusion(truth=self.classes[row], predicted=self.classes[column], count=int(wrong[row, column]))
            for row, column in zip(rows[order], columns[order], strict=True)
        ]

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
            f"{score.name:{width}}  {score.count:6}  {_percent(score.recall):>6}  {_percent(score.precision):>9}  "
            f"{_percent(score.f1):>6}"
            for score in hardest
        ]
        rest = len(self.per_class) - len(hardest)
        lines += [f"and {rest} classes with a higher F1"] if rest else []
        return "\n".join(
            lines + [f"{pair.count} × {pair.truth} taken for {pair.predicted}" for pair in self.confusions()[:5]]
        )


def evaluate(
    model: Model | str | Path,
    data: str | Path | Images | None = None,
    *,
    split: str | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 0,
    limits: ImageLimits = LIMITS,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a model about every image of a split and compare with the labels.

    Images are judged as they are given. Data that is opened by name is judged on `split`; without one, on its test
    split, else its validation split, else all of it. Without data, a run is judged on what it was trained with, divided
    as it was then. Classes are matched by name.

    Raises:
        DataError: an image that cannot be read, no such split, or classes that the model does not have.
        CheckpointError: there is no usable checkpoint at the path.
        ConfigError: a model without preprocessing, no such device or precision, or no data for what is no run.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; it must be at least 1")
    asked, progress = ready(model, device=device, precision=precision), progress or Silent()
    if isinstance(data, Images):
        split, images = split or "all", data
    else:
        source = _data_of_run(model, progress) if data is None else _opened(data, asked, limits)
        progress.say(source.describe())
        split, images = _chosen(source, split)
    if not len(images):
        raise DataError(f"the {split} split has no images; there is nothing to evaluate")
    labels = _labels(images, asked.classes)
    answers = _ask(asked, images, batch=batch, workers=workers, progress=progress, title=split)
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


def _opened(data: str | Path, asked: ReadyModel, limits: ImageLimits) -> DataSource:
    """Data by its name; nothing is held out of it, since nothing is trained on it."""
    return open_data(data, channels=asked.preprocess.channels, limits=limits, for_training=False)


def _data_of_run(model: Model | str | Path, progress: Progress) -> DataSource:
    """The data that a run was trained with, divided as it was then."""
    run = None if isinstance(model, Model) else _run_of(Path(model))
    if run is None:
        what = "a model at hand" if isinstance(model, Model) else f"{model}, which is no run folder"
        raise ConfigError(f"no data to judge {what} on; name a folder, table or data set")
    settings, recorded = read_toml(run / "config.toml"), run / "split.json"
    record = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else None
    source = open_data(
        settings["data"],
        channels=settings["channels"],
        seed=settings["seed"],
        val_fraction=settings["val_fraction"],
        limits=ImageLimits(max_pixels=settings["max_pixels"]),
        split_record=record,
    )
    for change in split_changes(source, record) if record else ():
        progress.say(f"the data is not what the run was trained with: {change}")
    return source


def _run_of(path: Path) -> Path | None:
    """The run folder that a path leads to: itself, or one that its checkpoint lies in."""
    return next((folder for folder in (path, *path.parents[:2]) if (folder / "config.toml").is_file()), None)


def _chosen(source: DataSource, split: str | None) -> tuple[str, Images]:
    if split is None:
        split = next(name for name in ("test", "val", "train") if name in source.splits())
    images = source.split(split)
    return ("all" if list(source.splits()) == ["train"] else split), images


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


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _labels(images: Images, classes: Sequence[str]) -> Tensor:
    """The images' labels as indices into the model's classes."""
    return torch.from_numpy(align_classes(images.classes, classes)[images.labels])
