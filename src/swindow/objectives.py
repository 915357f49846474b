"""What training minimises. An objective turns a model and a batch into named losses; their sum is the loss."""

from typing import Any, NamedTuple

from torch import Tensor

from swindow.model import Model
from swindow.objects import Targets
from swindow.shapes import Images


class Judged(NamedTuple):
    """Named losses, each a scalar that already carries its weight, and the outputs that they judge."""

    losses: dict[str, Tensor]
    outputs: Any


class Supervised:
    """Learn from labels: the head's own loss, and what a backbone with experts asks for to keep them balanced."""

    def __call__(self, model: Model, images: Images, targets: Any) -> Judged:
        frames = targets.frames if isinstance(targets, Targets) else None
        outputs, own = model.outputs_and_losses(images, frames)
        return Judged(model.head.loss(outputs, targets) | own, outputs)
