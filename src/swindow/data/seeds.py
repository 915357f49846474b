"""Random numbers by counting: what happens to a sample is a function of (seed, epoch, index) and of nothing else.

A generator that is *advanced* would make a sample depend on which worker saw which samples before it; a hash of the
sample's own coordinates cannot. The hash is SplitMix64's finaliser (Steele, Lea & Flood 2014), on arrays at once.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1
VARIANT = 2**32  # above every epoch: the draws of an image's second variant are those of an epoch that never comes
_ORDER = 0x6F72646572  # keeps the shuffle apart from the samples' own draws


def sample_seeds(seed: int, epochs: np.ndarray | int, indices: np.ndarray | int) -> np.ndarray:
    """A 64-bit seed for every (epoch, index); within one epoch no two indices share theirs."""
    state = _mixed(np.asarray([seed & _MASK], np.uint64))
    state = _mixed(state ^ np.asarray(epochs, np.int64).astype(np.uint64))
    return _mixed(state ^ np.asarray(indices, np.int64).astype(np.uint64))


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """One of `sample_seeds`, in 0..2⁶⁴-1."""
    return int(sample_seeds(seed, epoch, index)[0])


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0..count-1 in the order of one epoch."""
    return np.argsort(sample_seeds(seed ^ _ORDER, epoch, np.arange(count)), kind="stable")


def repeated(order: np.ndarray, repeats: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """As many indices as `order` has, of its first ones, each `repeats` times; and which variant each of them is.

    The variants of an image lie a part of a batch apart: neighbours, which are mixed, are different images.
    """
    group = max(batch // repeats, 1)
    block, inside = np.divmod(np.arange(len(order)), group * repeats)
    variant, place = np.divmod(inside, group)
    return order[(block * group + place) % len(order)], variant


def uniforms(seeds: np.ndarray, draws: int) -> np.ndarray:
    """``len(seeds) × draws`` independent float64 in [0, 1), each row a function of its seed alone."""
    counters = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return (_mixed(seeds[:, None] ^ counters) >> np.uint64(11)) * 2.0**-53


def _mixed(state: np.ndarray) -> np.ndarray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
