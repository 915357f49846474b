"""A detector's answers to pictures of any sizes, in order; small ones that follow each other are asked together."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from swindow.errors import DataError, TrainingDiverged
from swindow.images import ImageLimits
from swindow.inference import ReadyModel
from swindow.objects import Detections
from swindow.predict.answers import Failure

AT_ONCE = 2**22
"""Pixels of a batch, padding counted, where nobody says how many pictures it has."""
MOST_PADDING = 1.5
"""A picture joins a batch whose canvas is at most so many times as large as its own."""


class Seen(NamedTuple):
    """A source with its pixels and what was found in it, or why nothing was."""

    name: str
    pixels: Tensor | None
    answer: Detections | Failure


def detected(
    asked: ReadyModel, sources: Iterable[tuple[str, Tensor | Failure]], batch: int | None, limits: ImageLimits
) -> Iterator[Seen]:
    """The objects in every picture, in order; what goes wrong with one is its own.

    `batch` pictures at most are asked together; None stands for as many as have `AT_ONCE` pixels.
    """
    together: list[tuple[str, Tensor]] = []
    for name, content in sources:
        if isinstance(content, Failure):
            yield from _asked(asked, together, limits)
            together = []
            yield Seen(name, None, content)
            continue
        if together and not _joins(asked, together, content, batch):
            yield from _asked(asked, together, limits)
            together = []
        together.append((name, content))
    yield from _asked(asked, together, limits)


def _joins(asked: ReadyModel, together: list[tuple[str, Tensor]], content: Tensor, batch: int | None) -> bool:
    """Whether a picture goes into one batch with those that wait."""
    sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in (*(pixels for _, pixels in together), content)]
    height, width = asked.canvas(sizes)
    alone = [tall * wide for tall, wide in (asked.canvas([size]) for size in sizes)]
    enough = len(sizes) <= batch if batch is not None else len(sizes) * height * width <= AT_ONCE
    return enough and height * width <= MOST_PADDING * min(alone)


def _asked(asked: ReadyModel, group: list[tuple[str, Tensor]], limits: ImageLimits) -> Iterator[Seen]:
    if len(group) == 1:
        name, pixels = group[0]
        yield Seen(name, pixels, _alone(asked, name, pixels, limits))
    elif group:
        found: list[Detections | Failure]
        try:
            found = [*asked.detect([pixels for _, pixels in group], limits=limits)]
        except (DataError, TrainingDiverged):  # one of them: each alone tells which
            found = [_alone(asked, name, pixels, limits) for name, pixels in group]
        for (name, pixels), answer in zip(group, found, strict=True):
            yield Seen(name, pixels, answer)


def _alone(asked: ReadyModel, name: str, pixels: Tensor, limits: ImageLimits) -> Detections | Failure:
    try:
        return asked.detect([pixels], limits=limits)[0]
    except (DataError, TrainingDiverged) as error:
        return Failure(source=name, error=f"{name}: {error}")
