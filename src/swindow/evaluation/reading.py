"""Pictures read while the model works."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from swindow.data import Annotated, Scenes

AHEAD = 4
"""Pictures that are read before they are needed."""


def read_ahead(images: Scenes | Annotated) -> Iterator[tuple[int, Tensor, Any]]:
    """Number, pixels and truth of every picture, in order, the next ones read meanwhile.

    One thread reads, so that slices of a volume that is decoded once come from it in order.
    """
    with ThreadPoolExecutor(1) as reader:
        ahead: list[Future[tuple[Tensor, Any]]] = []
        try:
            for index in range(len(images)):
                while index + len(ahead) < min(index + AHEAD, len(images)):
                    ahead.append(reader.submit(images.pair, index + len(ahead)))
                pixels, truth = ahead.pop(0).result()
                yield index, pixels, truth
        finally:
            for future in ahead:
                future.cancel()
