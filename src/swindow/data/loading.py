"""Batches: the same pixels for the same (seed, epoch, index), whoever reads them and wherever a run was interrupted."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from swindow.data.annotated import Annotated
from swindow.data.augment import Augment
from swindow.data.boxes import ObjectAugment
from swindow.data.joint import JointAugment
from swindow.data.labelled import Images
from swindow.data.padding import PackedObjects, canvas_of, framed, packed
from swindow.data.processes import context, cores, start_quietly
from swindow.data.scenes import Scenes, file_of
from swindow.data.seeds import VARIANT, epoch_order, repeated, sample_seed, sample_seeds
from swindow.data.shards.order import WINDOW
from swindow.distributed import ALONE, Ranks
from swindow.errors import ConfigError, DataError
from swindow.images import name_of
from swindow.objects import Frames, Objects
from swindow.preprocess import Preprocess

__all__ = [
    "AnnotatedView",
    "BadImages",
    "Batch",
    "EpochBatches",
    "Loader",
    "TrainView",
    "eval_loader",
    "sample_seed",
    "train_loader",
]

MOST_WORKERS = 8
TIMEOUT = 300.0  # seconds: slow storage takes tens for a batch, what hangs takes for ever


class Batch(NamedTuple):
    """Images as they are before normalising: uint8 ``B C H W``, int64 indices ``B`` and labels ``B`` or ``B H W``.

    Of pictures with objects the labels are those, in a tuple; their masks are as large as the batch's images.
    """

    images: Tensor
    labels: Any
    indices: Tensor
    bad: list[str]
    """One line for each image that was left out because it cannot be read."""
    frames: Frames | None = None
    """Where the pictures lie in their images, which are padded with zeros; None where all are of one size."""


class BadImages:
    """How many unreadable images were skipped; an image that comes up every epoch counts once a sitting."""

    def __init__(self, most: int, count: int = 0) -> None:
        self.most = most
        self.count = count
        self._seen: set[str] = set()

    def add(self, messages: Sequence[str]) -> None:
        """Count what a batch left out.

        Raises:
            DataError: there are more than allowed; the message is that of the image.
        """
        for message in messages:
            self.count += message not in self._seen
            self._seen.add(message)
            if self.count > self.most:
                allowed = f" (skipped {self.count:,} images, {self.most:,} allowed: --max-bad)" if self.most else ""
                raise DataError(message + allowed)


class EpochBatches:
    """Which samples make which batch: lists of (epoch, index), shuffled by (seed, epoch), from some batch on.

    A batch is that of all processes together; each takes its share of it, so that their number changes nothing about
    which samples a step learns from. The last samples that fill no batch are left out, unless there is no full batch
    at all. `order` gives the samples of an epoch in another order than a plain shuffle. With `repeats`, an epoch shows
    fewer samples, each so many times, with draws of its own each time.

    Raises:
        ConfigError: a batch that cannot be divided evenly, or fewer samples than processes.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        epoch: int = 0,
        start_batch: int = 0,
        *,
        ranks: Ranks = ALONE,
        order: Callable[[int, int], np.ndarray] | None = None,
        repeats: int = 1,
    ) -> None:
        if batch % ranks.world or count < ranks.world:
            raise ConfigError(
                f"batch {batch} of {count:,} images cannot be shared evenly by {ranks.world} processes; "
                f"give a multiple of {ranks.world}: batch counts the images of all of them"
            )
        self.count, self.batch, self.seed, self.ranks, self.repeats = count, batch, seed, ranks, repeats
        self.order = order or partial(epoch_order, count)
        self.start(epoch, start_batch)

    def start(self, epoch: int, start_batch: int = 0) -> None:
        """Set what the next iteration gives."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return max(self.count // self.batch, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        indices, variants = repeated(self.order(self.seed, epoch), self.repeats, min(self.batch, self.count))
        keys = list(zip((epoch + variants * VARIANT).tolist(), indices.tolist(), strict=True))
        share = min(self.batch, self.count) // self.ranks.world
        for number in range(self.start_batch, len(self)):
            first = number * self.batch + self.ranks.rank * share
            yield keys[first : first + share]


class TrainView:
    """Training images as the model meets them: (epoch, index) gives one augmented image, a list of them a batch.

    With ``max_bad=0`` the first unreadable image ends it; else batches leave such images out and say so.
    """

    def __init__(self, images: Images, augment: Augment, seed: int, max_bad: int = 0) -> None:
        self.images, self.augment, self.seed, self.max_bad = images, augment, seed, max_bad

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        """uint8 ``C H W``."""
        return self._batch([key]).images[0]

    @property
    def names(self) -> Sequence[str]:
        """What the pictures are called."""
        return self.images.names

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | DataError:
        return _answer(self._batch, keys)

    def _batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epochs, indices = np.asarray(keys, np.int64).T
        seeds = sample_seeds(self.seed, epochs, indices)
        if self.images.pixels is not None:
            pixels = self.augment.batch(self.images.batch(indices), seeds)
            return _labelled(self.images, pixels, indices)
        finish = lambda image, place: self.augment(image, int(seeds[place]))  # noqa: E731
        return _read_each(self.images, indices, finish, lenient=self.max_bad > 0)


class SceneView:
    """Training pictures with their masks: (epoch, index) gives one augmented pair, a list of them a batch.

    With ``max_bad=0`` the first that cannot be used ends it; else batches leave such pictures out and say so.
    """

    def __init__(self, scenes: Scenes, augment: JointAugment, seed: int, max_bad: int = 0) -> None:
        self.scenes, self.augment, self.seed, self.max_bad = scenes, augment, seed, max_bad

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """uint8 ``C H W`` and int64 ``H W``."""
        batch = self._batch([key])
        return batch.images[0], batch.labels[0]

    @property
    def names(self) -> Sequence[str]:
        """What the pictures are called."""
        return self.scenes.names

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | DataError:
        return _answer(self._batch, keys)

    def _batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epochs, indices = np.asarray(keys, np.int64).T
        seeds = sample_seeds(self.seed, epochs, indices).tolist()
        made = [
            (lambda index=index, seed=seed: self.augment(*self.scenes.pair(index), seed))
            for index, seed in zip(indices.tolist(), seeds, strict=True)
        ]
        done, kept, bad = _make_each(
            made, [(self.scenes.names[i], self.scenes.mask_name(i)) for i in indices.tolist()], lenient=self.max_bad > 0
        )
        images, labels = (torch.stack(list(part)) for part in zip(*done, strict=True))
        return Batch(images, labels, torch.from_numpy(indices[kept]), bad)


class AnnotatedView:
    """Training pictures with their objects: (epoch, index) gives one augmented pair, a list of them a batch.

    Pictures of unequal sizes lie at the top left of images whose sides are multiples of `divisor`. With ``max_bad=0``
    the first that cannot be used ends it; else batches leave such pictures out and say so.
    """

    def __init__(
        self, annotated: Annotated, augment: ObjectAugment, seed: int, max_bad: int = 0, *, divisor: int = 32
    ) -> None:
        """Raises ConfigError where the augmentation needs masks that the data has not."""
        augment.check(masks=annotated.has_masks)
        self.annotated, self.augment, self.seed, self.max_bad = annotated, augment, seed, max_bad
        self.divisor = divisor

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Objects]:
        """uint8 ``C h w`` and its objects."""
        epoch, index = key
        return self._made(index, sample_seed(self.seed, epoch, index))

    @property
    def names(self) -> Sequence[str]:
        """What the pictures are called."""
        return self.annotated.names

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | DataError:
        """A batch whose labels are `PackedObjects`."""
        return _answer(self._batch, keys)

    def _batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        epochs, indices = np.asarray(keys, np.int64).T
        seeds = sample_seeds(self.seed, epochs, indices).tolist()
        made = [partial(self._made, index, seed) for index, seed in zip(indices.tolist(), seeds, strict=True)]
        done, kept, bad = _make_each(
            made,
            [self._files(i, seed) for i, seed in zip(indices.tolist(), seeds, strict=True)],
            lenient=self.max_bad > 0,
        )
        pictures, objects = zip(*done, strict=True)
        sizes = [(picture.shape[1], picture.shape[2]) for picture in pictures]
        images, frames = framed(pictures, canvas_of(sizes, self.divisor, self.augment.canvas))
        return Batch(images, packed(objects, frames.canvas), torch.from_numpy(indices[kept]), bad, frames)

    def _files(self, index: int, seed: int) -> list[str]:
        partner = self.augment.partner(seed, len(self.annotated))
        return [self.annotated.names[place] for place in (index, partner) if place is not None]

    def _made(self, index: int, seed: int) -> tuple[Tensor, Objects]:
        partner = self.augment.partner(seed, len(self.annotated))
        lender = None if partner is None else self.annotated.pair(partner)
        return self.augment(*self.annotated.pair(index), seed, lender)


class EvalView:
    """Images as they are judged: no randomness, none left out."""

    def __init__(self, images: Images, preprocess: Preprocess) -> None:
        self.images, self.preprocess = images, preprocess

    @property
    def names(self) -> Sequence[str]:
        """What the pictures are called."""
        return self.images.names

    def __getitems__(self, indices: Sequence[int]) -> Batch | DataError:
        return _answer(self._batch, indices)

    def _batch(self, indices: Sequence[int]) -> Batch:
        places = np.asarray(indices, np.int64)
        if self.images.pixels is not None:
            return _labelled(self.images, self.preprocess.resize(self.images.batch(places)), places)
        limits = self.images.limits
        resize = lambda image, _: self.preprocess.resize(image, limits=limits)  # noqa: E731
        return _read_each(self.images, places, resize, lenient=False)


class Loader:
    """Batches from a view, read here or by other processes; errors arrive as they were raised."""

    def __init__(
        self, view: Any, batch_sampler: Any, workers: int, *, pin_memory: bool = False, timeout: float = TIMEOUT
    ) -> None:
        self.view = view
        self.batch_sampler = batch_sampler
        self.workers = workers
        self._asked: deque[Any] = deque()
        others: dict[str, Any] = {}
        if workers:
            start = partial(start_quietly, environment=dict(os.environ))
            others = {"multiprocessing_context": context(), "worker_init_fn": start, "persistent_workers": True}
            others["timeout"] = timeout
        self._loader = DataLoader(
            view,
            batch_sampler=_Noted(batch_sampler, self._asked),
            num_workers=workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # it draws a seed that nobody uses; not from the generator of the model
            pin_memory=pin_memory,
            **others,
        )

    def __len__(self) -> int:
        """Batches of a whole pass."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """The batches that `batch_sampler` names.

        Raises:
            DataError: an image that cannot be used, or a reading process that died.
        """
        self._asked.clear()
        try:
            for batch in self._loader:
                self._asked.popleft()
                if isinstance(batch, Exception):
                    raise batch
                yield _unpacked(batch)
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_broken_pipe(error) or not self.workers:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if "timed out after" in reason:
                raise DataError(
                    f"reading images hangs: {reason.removeprefix('DataLoader ')} ({self._awaited()}); look at the disk "
                    f"or network they lie on"
                ) from error
            raise DataError(
                f"a process that reads images died ({reason}; {self._awaited()}): out of memory, killed, or begun by a "
                f"script that lacks `if __name__ == '__main__':`; try --workers 0"
            ) from error

    def _awaited(self) -> str:
        """Which images the batch that did not come was to have."""
        keys = self._asked[0] if self._asked else []
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        names = self.view.names
        if not indices:
            return "no batch was awaited"
        more = f" and {len(indices) - 1:,} more" if len(indices) > 1 else ""
        return f"awaited was the batch of {name_of(names[indices[0]])}{more}"


class _Noted:
    """The keys of batches, each also noted when it is handed out: the loader hands them back in the same order."""

    def __init__(self, batches: Any, noted: deque[Any]) -> None:
        self.batches, self.noted = batches, noted

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for keys in self.batches:
            self.noted.append(keys)
            yield keys


def train_loader(
    images: Images | Scenes | Annotated,
    augment: Augment | JointAugment | ObjectAugment,
    *,
    batch: int,
    seed: int,
    workers: int = -1,
    max_bad: int = 0,
    pin_memory: bool = False,
    divisor: int = 32,
    ranks: Ranks = ALONE,
    window: int = WINDOW,
    cache: str = "",
    timeout: float = TIMEOUT,
) -> Loader:
    """Shuffled, augmented batches; ``loader.batch_sampler.start(epoch, batch)`` says where the next iteration begins.

    ``workers=-1`` decides by the data and the machine. Sides of batches of pictures with objects are multiples of
    `divisor`. `batch` counts the images of all processes; this one loads its share of them.

    Images in shards come in an order that goes from shard to shard: samples are mixed among as many neighbouring shards
    as hold `window` of them. `cache` is a folder for copies of whole shards. A batch that takes longer than `timeout`
    seconds to come from reading processes is an error.

    Raises:
        ConfigError: an augmentation that needs masks, and objects that have boxes alone; a batch that the processes
            cannot share evenly.
    """
    view: TrainView | SceneView | AnnotatedView
    if cache and not isinstance(images, Images):
        raise ConfigError("only shards are cached, and these pictures are files; leave out --cache")
    if cache and isinstance(images, Images):
        images = images.cached(cache)
    if isinstance(images, Annotated) and isinstance(augment, ObjectAugment):
        view = AnnotatedView(images, augment, seed, max_bad, divisor=divisor)
    elif isinstance(images, Scenes) and isinstance(augment, JointAugment):
        view = SceneView(images, augment, seed, max_bad)
    elif isinstance(images, Images) and isinstance(augment, Augment):
        view = TrainView(images, augment, seed, max_bad)
    else:
        raise TypeError("objects go with ObjectAugment, pictures with masks with JointAugment, labels with Augment")
    order = None
    if isinstance(images, Images) and images.encoded is not None and images.rows is not None:
        order = images.encoded.order(images.rows, window)
    repeats = augment.config.repeats if isinstance(augment, Augment) else 1
    batches = EpochBatches(len(images), batch, seed, ranks=ranks, order=order, repeats=repeats)
    return Loader(view, batches, _workers(workers, images), pin_memory=pin_memory, timeout=timeout)


def eval_loader(
    images: Images,
    preprocess: Preprocess,
    *,
    batch: int,
    workers: int = -1,
    pin_memory: bool = False,
    timeout: float = TIMEOUT,
    ranks: Ranks = ALONE,
) -> Loader:
    """All images in their order, resized; the first that cannot be read ends it with a `DataError`.

    Each of several processes gets every so many-th batch; the batches are the same for any number of processes.
    """
    places = list(range(len(images)))
    batches = [places[start : start + batch] for start in range(0, len(places), batch)][ranks.rank :: ranks.world]
    return Loader(
        EvalView(images, preprocess), batches, _workers(workers, images), pin_memory=pin_memory, timeout=timeout
    )


def _workers(asked: int, images: Images | Scenes | Annotated) -> int:
    """Images in memory need no help; files get a reader for every core but one."""
    if asked >= 0:
        return asked
    return 0 if isinstance(images, Images) and images.pixels is not None else min(cores() - 1, MOST_WORKERS)


def _answer(make: Any, keys: Sequence[Any]) -> Batch | DataError:
    """An error is handed over as a value: raised in another process, it would come back as the text of a traceback."""
    try:
        return make(keys)
    except DataError as error:
        return error.with_traceback(None)


def _read_each(images: Images, indices: np.ndarray, finish: Any, *, lenient: bool) -> Batch:
    sources = images.sources(indices.tolist())  # bytes of all of them are asked for together
    made = [
        (lambda source=source, index=index, place=place: finish(images.decoded(source, index), place))
        for place, (source, index) in enumerate(zip(sources, indices.tolist(), strict=True))
    ]
    done, kept, bad = _make_each(made, [(images.names[index],) for index in indices.tolist()], lenient=lenient)
    return _labelled(images, torch.stack(done), indices[kept], bad)


def _make_each(
    makers: Sequence[Callable[[], Any]], names: Sequence[Sequence[str]], *, lenient: bool
) -> tuple[list[Any], list[int], list[str]]:
    """What can be made, the places of it, and a line for each that cannot, which names a file of it."""
    done, kept, bad = [], [], []
    for place, (make, files) in enumerate(zip(makers, names, strict=True)):
        try:
            done.append(make())
            kept.append(place)
        except DataError as error:
            named = any(name_of(file_of(file)) in str(error) for file in files)
            told = error if named else DataError(f"{name_of(files[0])}: {error}")
            if not lenient:
                raise told from error
            bad.append(str(told))
    if not done:
        raise DataError(f"not one image of a batch of {len(names)} can be read; the first: {bad[0]}")
    return done, kept, bad


def _labelled(images: Images, pixels: Tensor, indices: np.ndarray, bad: Sequence[str] = ()) -> Batch:
    return Batch(pixels, torch.from_numpy(images.labels[indices]), torch.from_numpy(np.array(indices)), list(bad))


def _is_broken_pipe(error: Exception) -> bool:
    """Whether a reading process is gone; an error *in* one comes as "Caught ... in DataLoader worker process"."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error) or str(error).startswith("DataLoader timed out")
    return not str(error).startswith("Caught ")


def _unpacked(batch: Batch) -> Batch:
    if not isinstance(batch.labels, PackedObjects) or batch.frames is None:
        return batch
    height, width = batch.frames.canvas
    sizes = tuple((tall, wide) for tall, wide in batch.frames.sizes)  # pinning memory makes lists of tuples
    return batch._replace(labels=batch.labels.split(), frames=Frames((height, width), sizes))


def _as_it_is(batch: Any) -> Any:
    return batch
