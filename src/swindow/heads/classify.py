"""Image classification: mean over the last map's tokens (Swin, section 3.1) or learned tokens, then a linear layer."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.heads.losses import at_least_fp32
from swindow.shapes import Pyramid


class ClassifierOutputs(NamedTuple):
    """What the head computes: one logit per class."""

    logits: Float[Tensor, "B K"]
    distilled: Float[Tensor, "B K"] | None = None
    """Those of the classifier that learns from a teacher, where there is one (DeiT, section 4)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A linear classifier."""

    kind: ClassVar[str] = "classifier"
    task: ClassVar[str] = "classify"

    num_classes: int = 1000
    """How many classes there are; 0 gives what would be classified, ``B C``, as of weights without a classifier."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    head_dropout: float = 0.0
    """Dropout on the pooled features."""
    pool: Literal["mean", "mean_norm", "token", "tokens"] = "mean"
    """What is classified: the mean over the last map; that mean normed here (``mean_norm``); the backbone's class token
    (``token``); or its class and distillation tokens, each by a classifier of its own (``tokens``)."""

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ConfigError(
                f"num_classes is {self.num_classes}; give 1 or more, or 0 for features without a classifier"
            )
        if not (0 <= self.label_smoothing < 1 and 0 <= self.head_dropout < 1):
            raise ConfigError(
                f"label_smoothing {self.label_smoothing} and head_dropout {self.head_dropout} must lie in [0, 1)"
            )

    def stages(self, count: int) -> tuple[int, ...]:
        """The stages of a backbone of so many that the head reads: the last."""
        return (count - 1,)

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...] = (), backbone: Any = None) -> "Classifier":
        """The head that this describes, for a pyramid with these channels."""
        return Classifier(self, channels[-1])


class Classifier(nn.Module):
    """Pyramid to logits, with the cross-entropy that trains it and the decoding into classes.

    Where `pool` reads tokens, they come before the maps, ``B 1 P C``.
    """

    def __init__(self, config: ClassifierConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = _linear(channels, config.num_classes)
        self.norm = nn.LayerNorm(channels, eps=1e-6) if config.pool == "mean_norm" else None
        self.distilled = _linear(channels, config.num_classes) if config.pool == "tokens" else None

    def forward(self, pyramid: Pyramid) -> ClassifierOutputs:
        logits = self.linear(self.dropout(self.pooled(pyramid)))
        if self.distilled is None:
            return ClassifierOutputs(logits=logits)
        return ClassifierOutputs(logits=logits, distilled=self.distilled(self.dropout(pyramid[0][:, 0, 1])))

    def pooled(self, pyramid: Pyramid) -> Float[Tensor, "B C"]:
        """What the first classifier classifies."""
        if self.config.pool in ("token", "tokens"):
            return pyramid[0][:, 0, 0]
        mean = pyramid[-1].mean(dim=(1, 2))
        return mean if self.norm is None else self.norm(mean)

    def loss(
        self, outputs: ClassifierOutputs, targets: Int64[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> dict[str, Tensor]:
        """Cross-entropy with class indices or with probabilities, label smoothing applied to either.

        Of two classifiers each has half a say (DeiT, equation 3, with the labels for a teacher).

        Raises:
            ShapeError: probabilities for another number of classes.
        """
        if targets.ndim == 2 and targets.shape[1] != self.config.num_classes:
            raise ShapeError(f"targets name {targets.shape[1]} classes and the head has {self.config.num_classes}")
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(at_least_fp32(outputs.logits), targets, label_smoothing=smoothing)
        if outputs.distilled is None:
            return {"cross_entropy": loss}
        distilled = F.cross_entropy(at_least_fp32(outputs.distilled), targets, label_smoothing=smoothing)
        return {"cross_entropy": loss / 2, "cross_entropy_distilled": distilled / 2}

    def right(
        self, outputs: ClassifierOutputs, targets: Int64[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> tuple[Tensor, Tensor]:
        """How many images are answered rightly, of how many; a mixed one is of the class that it has most of."""
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        right = (self.decode(outputs).detach().argmax(1) == labels).sum()
        return right, torch.full_like(right, len(labels))

    def decode(self, outputs: ClassifierOutputs, size: tuple[int, int] | None = None) -> Float[Tensor, "B K"]:
        """What a user expects of a classifier: its logits; of two classifiers, their mean (DeiT, section 4)."""
        return outputs.logits if outputs.distilled is None else (outputs.logits + outputs.distilled) / 2


def _linear(channels: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    linear = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
