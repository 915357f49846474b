"""The order of an epoch that touches few shards at a time: a function of (seed, epoch), as a plain shuffle is."""

from dataclasses import dataclass

import numpy as np

from swindow.data.seeds import epoch_order

WINDOW = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowedOrder:
    """Blocks (tar shards, row groups of Parquet) in random order, then samples at random among neighbouring blocks.

    As many neighbours as hold `window` samples are mixed: more mix better, fewer keep fewer shards open or cached. With
    a window of all samples it is a plain shuffle.
    """

    blocks: np.ndarray
    """int: the block of each sample."""
    window: int
    heavy: np.ndarray | None = None
    """Bytes of each block, by its number, where a block is held in memory; neighbours hold at most `most` of them."""
    most: int = 0

    def __call__(self, seed: int, epoch: int) -> np.ndarray:
        """The places 0..n-1 in the order of one epoch."""
        plain = epoch_order(len(self.blocks), seed, epoch)
        there, which, counts = np.unique(self.blocks, return_inverse=True, return_counts=True)
        if self.heavy is None and self.window >= len(self.blocks):
            return plain
        weights = np.zeros(len(there), np.int64) if self.heavy is None else self.heavy[there]
        group_of = np.zeros(len(there), np.int64)
        group, samples, held = 0, 0, 0
        for block in epoch_order(len(there), seed ^ 0x626C6F636B, epoch).tolist():
            full = samples >= self.window or (self.heavy is not None and held + weights[block] > self.most)
            if samples and full:
                group, samples, held = group + 1, 0, 0
            group_of[block] = group
            samples, held = samples + int(counts[block]), held + int(weights[block])
        return plain[np.argsort(group_of[which][plain], kind="stable")]
