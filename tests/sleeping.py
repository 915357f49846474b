"""Pictures of which some never come: a view for reading processes, which must be able to import it."""

import time
from collections.abc import Sequence

import torch

from swindow.data.loading import Batch


class Sleeper:
    """Batches of zeros; the one with index 3 takes a minute."""

    names = ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """uint8 ``B 3 2 2``."""
        if 3 in indices:
            time.sleep(60)
        return Batch(torch.zeros(len(indices), 3, 2, 2), torch.zeros(len(indices)), torch.tensor(indices), [])
