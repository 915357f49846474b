"""Pictures read while the model works."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from swindow.data import Annotated, Scenes

AHEAD = 4
"""Pictures that are read before they are needed."""


def read_ahead(images: Scenes | Annotated, rows: Sequence[int]) -> Iterator[tuple[int, Tensor, Any]]:
    """Row, pixels and truth of the pictures of some rows, in order, the next ones read meanwhile.

    One thread reads, so that slices of a volume that is decoded once come from it in order.
    """
    with ThreadPoolExecutor(1) as reader:
        ahead: list[Future[tuple[Tensor, Any]]] = []
        try:
            for place, row in enumerate(rows):
                while place + len(ahead) < min(place + AHEAD, len(rows)):
                    ahead.append(reader.submit(images.pair, rows[place + len(ahead)]))
                pixels, truth = ahead.pop(0).result()
                yield row, pixels, truth
        finally:
            for future in ahead:
                future.cancel()
