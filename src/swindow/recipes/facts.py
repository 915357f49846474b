"""What a recipe is a function of."""

import dataclasses
from collections.abc import Callable
from typing import Any

from swindow.settings import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe is a function of: the data, and the choices that other settings follow from."""

    images: int
    """Training images."""
    classes: int
    """Classes."""
    channels: int
    """1 for grey data, 3 for colour."""
    side: int
    """Short side of a typical image, in pixels."""
    longest: int
    """Its long side."""
    model: str | None = None
    """The model that the user asked for, or that the weights to start from are of."""
    size: int | None = None
    """The input size that the user asked for, or that of the weights to start from."""
    size_asked: bool = False
    """Whether the user asked for it."""
    teacher: str = ""
    """The run or weights to learn from besides the labels."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the model that the weights to start from were trained with."""
    task: str = "classify"
    """classify, segment where every pixel has a class, detect where objects have boxes, or pretrain without labels."""
    backbone: str | None = None
    """The variant whose classifier the weights to start from are, where the data is not for one."""
    background: bool = False
    """Whether one class of pixels is no object, as in medical data."""
    masks: bool = False
    """Whether objects have masks."""
    object_side: float = 0.0
    """Side of a square as large as a typical object, in pixels."""


def epochs_of(facts: Facts, *, images: int, least: int) -> int:
    """Epochs that show about `images` training images in all: small sets need more passes, not less training."""
    return max(round(images / facts.images), least)


Recipe = Callable[[Facts], TrainConfig]
