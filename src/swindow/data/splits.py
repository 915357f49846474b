"""Which images are held out: a choice that depends on nothing but the seed and the images' own names."""

import hashlib
from collections.abc import Sequence

import numpy as np


def held_out(
    labels: np.ndarray, keys: Sequence[str], *, fraction: float, seed: int, at_most: int | None = None
) -> np.ndarray:
    """A mask of about `fraction` of the images (`at_most` so many), the same part of every class.

    A class never gives its last image away. Within a class, the images whose hash of (seed, name) is lowest are taken:
    neither the order of a listing nor a new image elsewhere changes who is held out.
    """
    target = max(round(len(labels) * fraction), 1 if fraction else 0)
    if at_most is not None:
        target = min(target, at_most)
    ranks = np.array([_rank(seed, key) for key in keys], np.uint64)
    order = np.lexsort((ranks, labels))
    counts = np.bincount(labels)
    quotas = _quotas(counts, target, seed)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its class, by rank
    mask = np.zeros(len(labels), bool)
    mask[order] = place < np.repeat(quotas, counts)
    return mask


def digest(keys: Sequence[str]) -> str:
    """SHA-256 of names in their order, one a line."""
    return hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()


def _rank(seed: int, key: str) -> int:
    text = f"{seed}/{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _quotas(counts: np.ndarray, target: int, seed: int) -> np.ndarray:
    """How many of each class: in proportion, rounded by largest remainder, ties broken by the seed."""
    share = counts * (target / max(counts.sum(), 1))
    quotas = np.minimum(share.astype(np.int64), np.maximum(counts - 1, 0))
    ties = [_rank(seed, str(label)) for label in range(len(counts))]
    for label in np.lexsort((ties, quotas - share)):
        if quotas.sum() < target and quotas[label] < counts[label] - 1:
            quotas[label] += 1
    return quotas
