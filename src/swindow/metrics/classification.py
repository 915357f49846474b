"""How good a classifier's answers are: accuracy, per-class scores, confusion, calibration (torchmetrics inside)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ConfigError, require

BINS = 15
"""Equal bins of confidence in the calibration error, as in Guo et al. 2017, section 4."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: how many images are of it and how well they are told from the others, None where nothing counts."""

    name: str
    count: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers whose confidence lies in [low, high): how many, their mean confidence and how many of them are right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class ClassificationMetrics:
    """Metrics of logits against labels, gathered over batches.

    Raises:
        MissingExtra: torchmetrics is not installed.
        ConfigError: fewer than two classes, between which there is nothing to confuse.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; metrics compare at least 2 classes")
        kinds = require("torchmetrics.classification", extra="train")
        alone: dict[str, Any] = {"sync_on_compute": False}  # else it adds up what every process of a group was told
        parts: dict[str, Any] = {
            "confusion": kinds.MulticlassConfusionMatrix(num_classes, **alone),
            "calibration_error": kinds.MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1", **alone),
        }
        if num_classes > 5:
            parts["top5"] = kinds.MulticlassAccuracy(num_classes, top_k=5, average="micro", **alone)
        self.parts = {name: part.to(device) for name, part in parts.items()}
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0

    def update(self, logits: Float[Tensor, "B K"], labels: Int64[Tensor, " B"]) -> None:
        """Add one batch."""
        logits = logits.float()
        self.count += len(labels)
        self.loss += F.cross_entropy(logits, labels, reduction="sum").double()
        # Logits that happen to lie in [0, 1] would pass for probabilities, so they are made such here.
        probabilities = logits.softmax(dim=1)
        for part in self.parts.values():
            part.update(probabilities, labels)

    def compute(self) -> dict[str, Any]:
        """Count, accuracy, top5 (None below six classes), loss, calibration_error, and the confusion as int64 ``K K``.

        A row of the confusion is a true class, a column a predicted one. The loss is mean cross-entropy in nats.

        Raises:
            ConfigError: nothing was added yet.
        """
        if not self.count:
            raise ConfigError("no images were added; metrics need at least one")
        confusion = self.parts["confusion"].compute().cpu().numpy().astype(np.int64)
        return {
            "count": self.count,
            "accuracy": float(np.trace(confusion) / self.count),
            "top5": float(self.parts["top5"].compute()) if "top5" in self.parts else None,
            "loss": float(self.loss) / self.count,
            "calibration_error": float(self.parts["calibration_error"].compute()),
            "confusion": confusion,
        }


def class_scores(confusion: np.ndarray, classes: Sequence[str]) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class from a confusion ``K K``; None where there are no images to divide by."""
    right, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassScore(
            name=name,
            count=int(true[k]),
            precision=_share(right[k], predicted[k]),
            recall=_share(right[k], true[k]),
            f1=_share(2 * right[k], true[k] + predicted[k]),
        )
        for k, name in enumerate(classes)
    )


def reliability(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Confidence against accuracy in equal bins of confidence; empty bins are left out (Guo et al. 2017, section 2)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    chosen = [(index, place == index) for index in range(bins) if (place == index).any()]
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for index, inside in chosen
    )


def accuracy_interval(right: int, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """Where the accuracy on endlessly many such images lies: Wilson's interval, of 95 % confidence with z = 1.96."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def _share(part: np.integer, whole: np.integer) -> float | None:
    return float(part / whole) if whole else None
