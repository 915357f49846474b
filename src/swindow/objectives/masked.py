"""Learning without labels: parts of an image are hidden, and painted (SimMIM; Xie et al. 2022, arXiv 2111.09886)."""

from typing import Any, cast

from jaxtyping import Bool
from torch import Tensor

from swindow.data.hiding import JUDGED, cells_of, hidden_cells
from swindow.errors import ConfigError
from swindow.heads import Covered, SimMim
from swindow.model import Model
from swindow.objectives.base import Judged, Moment, Objective
from swindow.shapes import Images


class MaskedImages(Objective):
    """Paint what is hidden; which cells those are is a function of (seed, epoch, index) of each image."""

    def __init__(self, model: Model) -> None:
        """Raises ConfigError where the model is none to be pretrained."""
        super().__init__(model)
        if not isinstance(model.head, SimMim):
            raise ConfigError(f"{model.config.name} is to {model.task} and paints nothing; choose a simmim_… model")

    @property
    def head(self) -> SimMim:
        """The part of the model that hides and paints."""
        return cast(SimMim, self.model.head)

    def prepare(self, images: Images, targets: Any, moment: Moment) -> Bool[Tensor, "B R S"]:
        """The cells to hide; whatever labels there are play no part.

        Raises:
            ConfigError: images that are not made of whole cells.
        """
        config = self.head.config
        grid = cells_of(images.shape[2], images.shape[3], config.mask_patch, config.mask_ratio)
        epoch = moment.epoch if moment.train else JUDGED
        return hidden_cells(moment.seed, epoch, moment.indices, grid, config.mask_ratio).to(images.device)

    def forward(self, images: Images, targets: Bool[Tensor, "B R S"]) -> Judged:
        outputs, covered = self.model.outputs(images, hidden=targets), Covered(images, targets)
        return Judged(self.head.loss(outputs, covered), *self.head.right(outputs, covered))
