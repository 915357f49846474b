"""Image classification: mean over the last map's tokens, then a linear layer (Swin, section 3.1)."""

import dataclasses
from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.shapes import Pyramid


class ClassifierOutputs(NamedTuple):
    """What the head computes: one logit per class."""

    logits: Float[Tensor, "B K"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A linear classifier."""

    kind: ClassVar[str] = "classifier"

    num_classes: int = 1000
    """How many classes there are."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    head_dropout: float = 0.0
    """Dropout on the pooled features."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"num_classes is {self.num_classes}; a classifier needs at least 1")
        if not (0 <= self.label_smoothing < 1 and 0 <= self.head_dropout < 1):
            raise ConfigError(
                f"label_smoothing {self.label_smoothing} and head_dropout {self.head_dropout} must lie in [0, 1)"
            )

    def build(self, channels: tuple[int, ...]) -> "Classifier":
        """The head that this describes, for a pyramid with these channels."""
        return Classifier(self, channels[-1])


class Classifier(nn.Module):
    """Pyramid to logits, with the cross-entropy that trains it and the decoding into classes."""

    def __init__(self, config: ClassifierConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(channels, config.num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pyramid: Pyramid) -> ClassifierOutputs:
        pooled = pyramid[-1].mean(dim=(1, 2))
        return ClassifierOutputs(logits=self.linear(self.dropout(pooled)))

    def loss(
        self, outputs: ClassifierOutputs, targets: Int64[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> dict[str, Tensor]:
        """Cross-entropy with class indices or with probabilities, label smoothing applied to either.

        Raises:
            ShapeError: probabilities for another number of classes.
        """
        if targets.ndim == 2 and targets.shape[1] != self.config.num_classes:
            raise ShapeError(f"targets name {targets.shape[1]} classes and the head has {self.config.num_classes}")
        logits = outputs.logits.float()
        return {"cross_entropy": F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)}

    def decode(self, outputs: ClassifierOutputs) -> Float[Tensor, "B K"]:
        """What a user expects of a classifier: its logits."""
        return outputs.logits
