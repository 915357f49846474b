"""Which parts of an image are hidden from a model that learns to paint them: square cells, drawn by counting."""

import math

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from swindow.data.seeds import sample_seeds, uniforms
from swindow.errors import ConfigError

JUDGED = -1
"""The epoch, before all that are learned from, by which images are hidden when a model is judged."""
_HIDING = 0x68696465  # keeps these draws apart from the augmentation's, which go by the same seed, epoch and index


def cells_of(height: int, width: int, side: int, ratio: float) -> tuple[int, int]:
    """Rows and columns of cells of `side` pixels in an image of this height and width.

    Raises:
        ConfigError: the image is not made of whole cells, or hiding this share of them leaves none to be seen.
    """
    if height % side or width % side:
        near = max(min(height, width) // side, 2) * side
        raise ConfigError(
            f"images of {height}x{width} pixels are not whole cells of mask_patch {side}; give a size that is a "
            f"multiple of it, such as {near}, or another mask_patch (--fields mask_patch …)"
        )
    rows, columns = height // side, width // side
    if number_hidden(rows * columns, ratio) >= rows * columns:
        raise ConfigError(
            f"images of {height}x{width} pixels have {rows * columns} cells of mask_patch {side}, and mask_ratio "
            f"{ratio} hides all of them; give a smaller mask_patch or mask_ratio, or larger images"
        )
    return rows, columns


def number_hidden(cells: int, ratio: float) -> int:
    """How many of so many cells are hidden: the share rounded up, as in SimMIM's code."""
    return math.ceil(cells * ratio)


def hidden_cells(
    seed: int, epoch: int, indices: np.ndarray, grid: tuple[int, int], ratio: float
) -> Bool[Tensor, "B R S"]:
    """True for the cells that are hidden, equally many of every image, each choice of so many as likely as any other.

    They are a function of (seed, epoch, index) alone: of no order, batch or process.
    """
    rows, columns = grid
    draws = uniforms(sample_seeds(seed ^ _HIDING, epoch, indices), rows * columns)
    chosen = np.argsort(draws, axis=1, kind="stable")[:, : number_hidden(rows * columns, ratio)]
    hidden = np.zeros(draws.shape, np.bool_)
    np.put_along_axis(hidden, chosen, True, axis=1)
    return torch.from_numpy(hidden).unflatten(1, (rows, columns))
