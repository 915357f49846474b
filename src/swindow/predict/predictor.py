"""A trained model that is asked about images of any size and kind."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from swindow.config import from_dict, read_toml
from swindow.data.volume_files import volume_suffix
from swindow.errors import ConfigError, DataError, MissingExtra
from swindow.images import LIMITS, ImageLimits, Source, name_of, read_image
from swindow.inference import ready
from swindow.model import Model
from swindow.overlays import colours_of
from swindow.predict.answers import Failure, Found, Prediction, Segmentation
from swindow.predict.objects import Seen, detected
from swindow.predict.pixels import Labelled, Opened, labelled
from swindow.predict.volumes import Reading, Volume, checked_axis, open_picture, read_volume
from swindow.rasters import InMemory
from swindow.sliding import Segmenter
from swindow.views import Views

READERS = 2
"""Threads that read and resize while the model computes, unless `Predictor.readers` says another number."""
USUAL_BATCH = 32


class Predictor:
    """A trained model that takes images of any size and kind.

    A grey model takes colour images and the other way round; every image goes through the one gate (`swindow.images`).
    A classifier answers with a `Prediction`, `batch` images (32) at a time. A segmenter answers with a `Segmentation`:
    `views` says how it looks at a picture, and `axis` along which volumes (``.npz``, ``.npy``, NIfTI) are cut into
    slices; by default both are what the run folder has that the model is from, else whole or in windows by size, and 0.
    A detector answers with a `Found`, as many pictures at a time as have 4 million pixels, or `batch`.

    Raises:
        CheckpointError: there is no usable checkpoint at the path.
        ConfigError: a model without preprocessing or one that is pretrained alone, no such device or precision, views
            that this model cannot have.
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        device: str = "auto",
        precision: str = "fp32",
        batch: int | None = None,
        limits: ImageLimits = LIMITS,
        views: Views | None = None,
        axis: int | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1")
        self.asked = ready(model, device=device, precision=precision)
        _refuse_painter(self.asked.model)
        self.batch, self.limits, self.given_batch = batch or USUAL_BATCH, limits, batch
        self.readers = READERS
        self.finds = self.asked.model.task == "detect"
        self.colours = colours_of(self.asked.classes, self.asked.model.colours)
        self.segmenter: Segmenter | None = None
        if self.asked.model.task == "segment":
            settings = {} if isinstance(model, Model) else settings_of(model)
            views = views or from_dict(Views, settings.get("views", {}))
            self.segmenter = Segmenter(self.asked, views if batch is None else dataclasses.replace(views, batch=batch))
            axis = settings.get("masks", {}).get("axis", 0) if axis is None else axis
        elif (views is not None and views != Views()) or axis is not None:
            does = "finds objects in whole pictures" if self.finds else "names the class of an image, not of its pixels"
            refused = "axis" if axis is not None else "views"
            raise ConfigError(f"{self.asked.model.config.name} {does}: it takes no {refused}")
        preprocess = self.asked.preprocess
        self.reading = Reading(preprocess.channels, limits, preprocess.intensity, checked_axis(axis or 0))

    @overload
    def __call__(self, sources: list[Source] | tuple[Source, ...]) -> list[Any]: ...

    @overload
    def __call__(self, sources: Source) -> Any: ...

    def __call__(self, sources: Source | list[Source] | tuple[Source, ...]) -> Any:
        """What the model says about a path, picture, array or tensor, or about each of a list of them.

        Raises:
            DataError: an image that cannot be used; `stream` goes on after such.
        """
        if not isinstance(sources, (list, tuple)):
            return self([sources])[0]
        return [_certain(answer) for answer in self.stream(sources)]

    def stream(self, sources: Iterable[Source]) -> Iterator[Prediction | Segmentation | Found | Failure]:
        """An answer for every source, in order; a bad image becomes a `Failure` and the rest goes on."""
        if self.segmenter is not None:
            for found in self.labelled(sources):
                yield self.segmentation(found)
            return
        if self.finds:
            for seen in self.seen(sources):
                yield self.found(seen)
            return
        pool = ThreadPoolExecutor(self.readers)
        try:
            pictures = ahead(pool, self._read, sources, depth=max(2 * self.batch, self.readers))
            while group := list(itertools.islice(pictures, self.batch)):
                yield from self._answer(group)
        finally:
            pool.shutdown(cancel_futures=True)

    def labelled(self, sources: Iterable[Source | tuple[Path, ...]]) -> Iterator[Labelled]:
        """A segmenter's labels for every source, with the picture that they belong to; several files are channels."""
        assert self.segmenter is not None  # noqa: S101 - `stream` and `predict_files` ask
        pool = ThreadPoolExecutor(self.readers)
        try:
            yield from labelled(self.segmenter, ahead(pool, self._open, sources, depth=self.readers))
        finally:
            pool.shutdown(cancel_futures=True)

    def segmentation(self, found: Labelled) -> Segmentation | Failure:
        """Labels as an answer."""
        if isinstance(found.answer, Failure):
            return found.answer
        volume = found.content if isinstance(found.content, Volume) else None
        return Segmentation(
            source=found.name,
            classes=self.asked.classes,
            colours=self.colours,
            mask=found.answer,
            spacing=volume.spacing if volume else None,
            axis=volume.axis if volume else 0,
        )

    def seen(self, sources: Iterable[Source]) -> Iterator[Seen]:
        """A detector's objects in every source, with the picture that they are in."""
        pool = ThreadPoolExecutor(self.readers)
        try:
            pictures = ahead(pool, self._read_whole, sources, depth=self.readers)
            yield from detected(self.asked, pictures, self.given_batch, self.limits)
        finally:
            pool.shutdown(cancel_futures=True)

    def found(self, seen: Seen) -> Found | Failure:
        """Objects as an answer."""
        if isinstance(seen.answer, Failure):
            return seen.answer
        return Found(source=seen.name, classes=self.asked.classes, colours=self.colours, detections=seen.answer)

    def _open(self, source: Source | tuple[Path, ...]) -> Opened:
        """A picture or volume, ready to be read."""
        first = source[0] if isinstance(source, tuple) else source
        name = str(first) if isinstance(first, (str, Path)) else name_of(first)
        try:
            if isinstance(source, tuple) and len(source) > 1:
                return Opened(name, read_volume(source, self.reading))
            if isinstance(first, (str, Path)):
                return Opened(name, open_picture(first, self.reading))
            how = self.reading
            pixels = read_image(first, channels=how.channels, limits=how.limits, intensity=how.intensity)
            return Opened(name, InMemory(pixels))
        except (DataError, MissingExtra) as error:
            said = str(error) if isinstance(error, DataError) else f"{name}: {error}"
            return Opened(name, Failure(source=name, error=said))

    def _read(self, source: Source) -> tuple[str, Tensor | Failure]:
        """A source's name and its pixels at the model's size."""
        preprocess = self.asked.preprocess
        name = str(source) if isinstance(source, (str, Path)) else name_of(source)
        try:
            pixels = read_image(source, channels=preprocess.channels, limits=self.limits)
            return name, preprocess.resize(pixels, limits=self.limits).contiguous()
        except DataError as error:
            return name, Failure(source=name, error=self._why_not(source, error))

    def _read_whole(self, source: Source) -> tuple[str, Tensor | Failure]:
        """A source's name and its pixels as they are."""
        name, how = str(source) if isinstance(source, (str, Path)) else name_of(source), self.reading
        try:
            return name, read_image(source, channels=how.channels, limits=how.limits, intensity=how.intensity)
        except DataError as error:
            return name, Failure(source=name, error=self._why_not(source, error))

    def _why_not(self, source: Source, error: DataError) -> str:
        """Why a source cannot be used: of a volume, that this model takes none."""
        if not isinstance(source, (str, Path)) or not volume_suffix(source) or not Path(source).is_file():
            return str(error)
        said = f"is a volume, and {self.asked.model.config.name} is asked about pictures"
        return f"{name_of(source)}: {said}; save its slices as PNGs, or give a segmenter"

    def _answer(self, group: list[tuple[str, Tensor | Failure]]) -> Iterator[Prediction | Failure]:
        pixels = [picture for _, picture in group if isinstance(picture, Tensor)]
        logits = iter(self.asked.logits(torch.stack(pixels)) if pixels else ())
        for name, picture in group:
            if isinstance(picture, Failure):
                yield picture
                continue
            probabilities = next(logits).softmax(dim=0)
            if not probabilities.isfinite().all():
                yield Failure(source=name, error=f"{name}: the model's answer is not finite; try precision fp32")
                continue
            yield Prediction(source=name, classes=self.asked.classes, probabilities=probabilities.numpy())


def _refuse_painter(model: Model) -> None:
    if model.task == "pretrain":
        raise ConfigError(
            f"{model.config.name} is pretrained: it paints what is hidden and names nothing; fine-tune from it with "
            "swindow train DATA --weights RUN, or see what it paints with swindow eval RUN --out FOLDER"
        )


def settings_of(path: str | Path) -> dict[str, Any]:
    """What ``config.toml`` says of the run that a path leads to; nothing if it is no run's."""
    path = Path(path)
    files = (folder / "config.toml" for folder in (path, *path.parents[:2]))
    return next((read_toml(file) for file in files if file.is_file()), {})


def ahead(pool: ThreadPoolExecutor, read: Callable[[Any], Any], sources: Iterable[Any], depth: int) -> Iterator[Any]:
    """`read` of every source, in order, with at most `depth` in the works; `sources` are asked in this thread."""
    waiting: collections.deque[Any] = collections.deque()
    for source in sources:
        waiting.append(pool.submit(read, source))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _certain(answer: Prediction | Segmentation | Found | Failure) -> Prediction | Segmentation | Found:
    if isinstance(answer, Failure):
        raise DataError(answer.error)
    return answer
