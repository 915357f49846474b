"""Shifted-window attention by its definition (Liu et al. 2021, section 3.2), token by token: no roll, no mask.

The map is cut along lines at shift, shift + window, shift + 2 windows ... on each axis; what the border cuts off is a
smaller window. A token sees the tokens of its own window and no other. Plain numpy in fp64.
"""

import itertools
from collections.abc import Callable

import numpy as np

Size = tuple[int, int]
Array = np.ndarray


def tokens(grid: Size) -> list[Size]:
    """Row and column of every token, row-major."""
    return list(itertools.product(range(grid[0]), range(grid[1])))


def visible(grid: Size, window: Size, shift: Size) -> list[list[int]]:
    """For each token the numbers of the tokens that it may see."""
    homes = [((y - shift[0]) // window[0], (x - shift[1]) // window[1]) for y, x in tokens(grid)]
    members: dict[Size, list[int]] = {}
    for token, home in enumerate(homes):
        members.setdefault(home, []).append(token)
    return [members[home] for home in homes]


def place_in_window(grid: Size, window: Size, shift: Size) -> list[int]:
    """Each token's row-major number within its full-size window."""
    return [(y - shift[0]) % window[0] * window[1] + (x - shift[1]) % window[1] for y, x in tokens(grid)]


def attend(
    query: Array, key: Array, value: Array, sees: list[list[int]], bias: Callable[[int, list[int]], Array], scale: Array
) -> tuple[Array, Array]:
    """Outputs ``tokens N D`` and weights ``N tokens tokens``; `bias` gives ``S N`` for a token and those it sees."""
    count, heads, _ = query.shape
    weights = np.zeros((heads, count, count))
    for token, seen in enumerate(sees):
        logits = scale * np.einsum("nd,snd->sn", query[token], key[seen]) + bias(token, seen)
        powers = np.exp(logits - logits.max(axis=0))
        weights[:, token, seen] = (powers / powers.sum(axis=0)).T
    return np.einsum("nqk,knd->qnd", weights, value), weights
