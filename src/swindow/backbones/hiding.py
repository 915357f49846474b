"""Patches that a backbone is not shown: one learned token stands in the place of each (SimMIM; arXiv 2111.09886)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from swindow.errors import ShapeError


class Hidden(NamedTuple):
    """Which patches are hidden, and what is put in their place."""

    patches: Bool[Tensor, "B H W"]
    """True where a patch is hidden."""
    token: Float[Tensor, " D"]

    def over(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        """Embedded patches with the token over those that are hidden.

        Nothing of a hidden patch is left, not even a gradient. Positions are added after this, so that the model knows
        where it has to paint.

        Raises:
            ShapeError: another number of images or another grid than the patches'.
        """
        if self.patches.shape != x.shape[:3]:
            raise ShapeError(
                f"hidden patches are {tuple(self.patches.shape)} and those of the images {tuple(x.shape[:3])}; images, "
                "rows and columns must be as many"
            )
        return torch.where(self.patches[..., None], self.token.to(x.dtype), x)
