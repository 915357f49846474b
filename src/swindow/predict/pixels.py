"""A segmenter's answers to pictures and volumes, in order; small pictures of one size are asked together."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from swindow.errors import DataError, TrainingDiverged
from swindow.predict.answers import Failure
from swindow.predict.volumes import Volume
from swindow.rasters import InMemory, Raster
from swindow.sliding import Segmenter, most_probable


class Opened(NamedTuple):
    """A source that was opened, or why it was not."""

    name: str
    content: Raster | Volume | Failure


class Labelled(NamedTuple):
    """The same with its labels, ``h w`` or in the file's order ``z y x``; or with why there are none."""

    name: str
    content: Raster | Volume | None
    answer: np.ndarray | Failure


def labelled(segmenter: Segmenter, sources: Iterable[Opened]) -> Iterator[Labelled]:
    """The class of every pixel of every source, in order; what goes wrong with one is its own."""
    together: list[tuple[str, Raster]] = []
    for name, content in sources:
        if not _joins(segmenter, together, content):
            yield from _asked(segmenter, together)
            together = []
        if isinstance(content, Failure):
            yield Labelled(name, None, content)
        elif isinstance(content, Volume):
            yield Labelled(name, content, _of_volume(segmenter, name, content))
        else:
            together.append((name, content))
    yield from _asked(segmenter, together)


def _joins(segmenter: Segmenter, together: list[tuple[str, Raster]], content: Raster | Volume | Failure) -> bool:
    """Whether the next source goes into one batch with those that wait."""
    if not together:
        return True
    if not isinstance(content, Raster):
        return False
    sizes = {_seen_at(segmenter, raster) for raster in (together[0][1], content)}
    size = sizes.pop()
    return not sizes and size is not None and len(together) < segmenter.at_once(*size)


def _seen_at(segmenter: Segmenter, raster: Raster) -> tuple[int, int] | None:
    """The size of the input that a picture becomes, if it becomes a single one."""
    if not segmenter.sees_whole(raster.height, raster.width):
        return None
    return segmenter.asked.preprocess.input_size(raster.height, raster.width)


def _asked(segmenter: Segmenter, group: list[tuple[str, Raster]]) -> Iterator[Labelled]:
    if not group:
        return
    if len(group) == 1:
        name, raster = group[0]
        yield Labelled(name, raster, _labels(segmenter, name, raster))
        return
    maps = None
    try:
        preprocess = segmenter.asked.preprocess
        windows = [raster.window(0, 0, raster.height, raster.width) for _, raster in group]
        maps = segmenter.see(torch.stack([preprocess.resize(pixels) for pixels in windows]))
    except DataError:  # one of them: each alone tells which
        for name, raster in group:
            yield Labelled(name, raster, _labels(segmenter, name, raster))
        return
    for place, (name, raster) in enumerate(group):
        labels = np.empty((raster.height, raster.width), segmenter.dtype)
        try:
            for region in segmenter.restored(maps[place : place + 1], labels.shape):
                found = most_probable(region.logits).cpu().numpy()
                labels[region.top : region.top + len(found)] = found
            yield Labelled(name, raster, labels)
        except TrainingDiverged as error:
            yield Labelled(name, raster, Failure(source=name, error=f"{name}: {error}"))


def _labels(segmenter: Segmenter, name: str, raster: Raster) -> np.ndarray | Failure:
    try:
        return segmenter.labels(raster)
    except DataError as error:
        return Failure(source=name, error=str(error))
    except TrainingDiverged as error:
        return Failure(source=name, error=f"{name}: {error}")


def _of_volume(segmenter: Segmenter, name: str, volume: Volume) -> np.ndarray | Failure:
    """Its slices one after the other, put back in the order of the file's axes."""
    labels = np.empty(volume.slices.shape[:3], segmenter.dtype)
    try:
        slices = (Opened(name, InMemory(volume.read(index))) for index in range(len(volume)))
        for index, found in enumerate(labelled(segmenter, slices)):
            if isinstance(found.answer, Failure):
                return Failure(source=name, error=f"{found.answer.error} (slice {index})")
            labels[index] = found.answer
    except DataError as error:
        return Failure(source=name, error=str(error))
    return np.ascontiguousarray(np.moveaxis(labels, 0, volume.axis))
