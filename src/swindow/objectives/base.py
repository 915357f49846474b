"""What every objective is, and the plain one: learning from labels."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from swindow.model import Model
from swindow.objects import Targets
from swindow.shapes import Images


class Judged(NamedTuple):
    """What a model made of a batch."""

    losses: dict[str, Tensor]
    """By name, each a scalar that already carries its weight."""
    right: Tensor
    """Right answers, of `counted`; scalars."""
    counted: Tensor


class Moment(NamedTuple):
    """When a batch is learned from: what is drawn or kept for a sample goes by (seed, epoch, index), never by order."""

    seed: int
    epoch: int
    step: int
    indices: np.ndarray
    """int64, the place of each image in the training split."""
    train: bool = True
    """False where a batch is only looked at, as for the report."""


class Objective(nn.Module):
    """A model with whatever else learns along with it, as one module: that is what several processes share.

    What is registered beside `model` (projections, say) is trained, averaged over processes and saved with the run; it
    is no part of the model that is kept. What does not learn (a teacher) is held without being registered.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def own(self) -> dict[str, nn.Parameter]:
        """The parameters that learn beside the model's, by name."""
        return {name: one for name, one in self.named_parameters() if not name.startswith("model.")}

    def prepare(self, images: Images, targets: Any, moment: Moment) -> Any:
        """`targets` as `forward` takes them, from normalised and mixed images; without gradients, in each process."""
        return targets

    def forward(self, images: Images, targets: Any) -> Judged:
        """Losses of a batch.

        Raises:
            NotImplementedError: always; objectives say what they minimise.
        """
        raise NotImplementedError


class Supervised(Objective):
    """Learn from labels: the head's own loss, and what a backbone with experts asks for to keep them balanced."""

    def forward(self, images: Images, targets: Any) -> Judged:
        frames = targets.frames if isinstance(targets, Targets) else None
        outputs, own = self.model.outputs_and_losses(images, frames)
        return Judged(self.model.head.loss(outputs, targets) | own, *self.model.head.right(outputs, targets))
