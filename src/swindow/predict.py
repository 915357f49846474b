"""Images without labels to classes with probabilities: one image, a stream of them, or folders of files."""

import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO, overload

import numpy as np
import torch
from torch import Tensor

from swindow import sheets
from swindow.checkpoints.files import write_atomic
from swindow.data.finding import find_images, same_place
from swindow.errors import ConfigError, DataError
from swindow.images import LIMITS, ImageLimits, Source, name_of, read_image
from swindow.inference import ready
from swindow.model import Model
from swindow.progress import Progress, Silent
from swindow.sheets import clean

READERS = 2
"""Threads that read and resize while the model computes."""
SHEET_MOST = 64
"""Images on a contact sheet."""
LINES, TABLE, SHEET = "predictions.jsonl", "predictions.csv", "sheet.png"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model says about one image."""

    source: str
    """The image's path, or what kind of object it was."""
    classes: tuple[str, ...]
    """The model's classes."""
    probabilities: np.ndarray
    """float32 ``K``, in the order of `classes`."""

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes (or all, if there are fewer) with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that gave no prediction."""

    source: str
    """The image's path, or what kind of object it was."""
    error: str
    """Why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictSummary:
    """What `predict_files` did."""

    count: int
    """Images asked for."""
    failures: tuple[Failure, ...]
    """Those without a prediction."""
    classes: dict[str, int]
    """How often each class was the most probable one, the most frequent first."""
    files: tuple[Path, ...]
    """What was written."""
    first: tuple[Prediction | Failure, ...]
    """The first answers, at most 64."""

    def text(self) -> str:
        """One line for each of the first answers, one for all, one for each file."""
        lines = [_said(answer) for answer in self.first]
        rest = self.count - len(self.first)
        lines += [f"and {rest:,} more"] if rest else []
        tally = [f"{count:,} {clean(name)}" for name, count in self.classes.items()]
        tally[10:] = [f"{len(tally) - 10} more classes"] if len(tally) > 10 else []
        tally += [f"{len(self.failures):,} without a prediction"] if self.failures else []
        lines.append(f"{self.count:,} image{'s' if self.count != 1 else ''}: {', '.join(tally)}")
        return "\n".join([*lines, *(str(path) for path in self.files)])


class Predictor:
    """A trained model that takes images of any size and kind.

    A grey model takes colour images and the other way round; every image goes through the one gate (`swindow.images`).

    Raises:
        CheckpointError: there is no usable checkpoint at the path.
        ConfigError: a model without preprocessing, or no such device or precision.
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        device: str = "auto",
        precision: str = "fp32",
        batch: int = 32,
        limits: ImageLimits = LIMITS,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch is {batch}; it must be at least 1")
        self.asked = ready(model, device=device, precision=precision)
        self.batch, self.limits = batch, limits

    @overload
    def __call__(self, sources: list[Source] | tuple[Source, ...]) -> list[Prediction]: ...

    @overload
    def __call__(self, sources: Source) -> Prediction: ...

    def __call__(self, sources: Source | list[Source] | tuple[Source, ...]) -> Prediction | list[Prediction]:
        """What the model says about a path, picture, array or tensor, or about each of a list of them.

        Raises:
            DataError: an image that cannot be used; `stream` goes on after such.
        """
        if not isinstance(sources, (list, tuple)):
            return self([sources])[0]
        return [_certain(answer) for answer in self.stream(sources)]

    def stream(self, sources: Iterable[Source]) -> Iterator[Prediction | Failure]:
        """An answer for every source, in order; a bad image becomes a `Failure` and the rest goes on."""
        pool = ThreadPoolExecutor(READERS)
        try:
            pictures = _ahead(pool, self._read, sources, depth=2 * self.batch)
            while group := list(itertools.islice(pictures, self.batch)):
                yield from self._answer(group)
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, source: Source) -> tuple[str, Tensor | Failure]:
        """A source's name and its pixels at the model's size."""
        preprocess = self.asked.preprocess
        name = str(source) if isinstance(source, (str, Path)) else name_of(source)
        try:
            pixels = read_image(source, channels=preprocess.channels, limits=self.limits)
            return name, preprocess.resize(pixels, limits=self.limits).contiguous()
        except DataError as error:
            return name, Failure(source=name, error=str(error))

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


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    top: int = 5,
    sheet: bool = True,
    progress: Progress | None = None,
) -> PredictSummary:
    """Predict files, folders and patterns; leave ``predictions.jsonl``, ``predictions.csv`` and ``sheet.png`` in `out`.

    Every image has one row, in order, with its `top` classes or with its error. A file appears only when it is
    complete; it replaces that of an earlier call.

    Raises:
        DataError: nothing to predict.
        ConfigError: `out` cannot be written, or `top` is below 1.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; ask for at least 1 class")
    out, progress = Path(out), progress or Silent()
    files = [path for path in find_images(inputs) if same_place(path) != same_place(out / SHEET)]
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        answers = _counted(predictor.stream(files), len(files), progress)
        tally = _write_rows(answers, out, min(top, len(predictor.asked.classes)))
        written = [out / LINES, out / TABLE]
        if sheet:
            write_atomic(out / SHEET, _contact_sheet(files, tally.first, predictor.limits))
            written.append(out / SHEET)
    return PredictSummary(
        count=len(files),
        failures=tuple(tally.failures),
        classes=dict(tally.classes.most_common()),
        files=tuple(written),
        first=tuple(tally.first),
    )


def _said(answer: Prediction | Failure) -> str:
    if isinstance(answer, Failure):
        return answer.error
    first, *others = answer.top(3)
    said = [first, *(pair for pair in others if pair[1] >= 0.005)]
    return f"{name_of(answer.source)}: " + ", ".join(f"{clean(name)} {share:.1%}" for name, share in said)


class _Tally:
    """What is kept of the answers that go by."""

    def __init__(self) -> None:
        self.classes: collections.Counter[str] = collections.Counter()
        self.failures: list[Failure] = []
        self.first: list[Prediction | Failure] = []

    def add(self, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            self.failures.append(answer)
        else:
            self.classes[answer.top(1)[0][0]] += 1
        if len(self.first) < SHEET_MOST:
            self.first.append(answer)


def _write_rows(answers: Iterable[Prediction | Failure], out: Path, top: int) -> _Tally:
    """One row per answer in both files, which take their names when all are written."""
    tally = _Tally()
    header = [f"{name}_{place}" for place in range(1, top + 1) for name in ("class", "probability")]
    with _draft(out / LINES) as lines, _draft(out / TABLE) as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["source", "error", *header])
        for answer in answers:
            lines.write(json.dumps(_record(answer, top), ensure_ascii=False) + "\n")
            writer.writerow(_row(answer, top))
            tally.add(answer)
    return tally


def _record(answer: Prediction | Failure, top: int) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"source": answer.source, "error": answer.error}
    best = [{"class": name, "probability": round(share, 6)} for name, share in answer.top(top)]
    return {"source": answer.source, "top": best}


def _row(answer: Prediction | Failure, top: int) -> list[str]:
    if isinstance(answer, Failure):
        return [answer.source, answer.error, *[""] * (2 * top)]
    return [answer.source, "", *(cell for name, share in answer.top(top) for cell in (name, f"{share:.6f}"))]


def _contact_sheet(files: list[Path], answers: list[Prediction | Failure], limits: ImageLimits) -> bytes:
    """The first answers as a PNG, each under its picture."""
    tiles = [_tile(path, answer, limits) for path, answer in zip(files[: len(answers)], answers, strict=True)]
    rest = len(files) - len(tiles)
    footer = f"the first {len(tiles)} of {len(files)} images; {rest} more in {TABLE}" if rest else ""
    content = io.BytesIO()
    sheets.sheet(tiles, footer=footer).save(content, "PNG")
    return content.getvalue()


def _tile(path: Path, answer: Prediction | Failure, limits: ImageLimits) -> sheets.Tile:
    if isinstance(answer, Failure):
        return sheets.Tile(None, "cannot be read", path.name)
    (label, share), *_ = answer.top(1)
    try:
        picture = sheets.thumbnail(read_image(path, limits=limits), sheets.SIDE)
    except DataError:  # it was read a moment ago: its answer stands, its picture is gone
        picture = None
    return sheets.Tile(picture, label, path.name, share)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Any], Any], sources: Iterable[Source], depth: int
) -> Iterator[Any]:
    """`read` of every source, in order, with at most `depth` in the works."""
    waiting: collections.deque[Any] = collections.deque()
    for source in sources:
        waiting.append(pool.submit(read, source))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _counted(answers: Iterable[Any], total: int, progress: Progress) -> Iterator[Any]:
    progress.begin("predict", total)
    try:
        for answer in answers:
            yield answer
            progress.advance()
    finally:
        progress.end()


def _certain(answer: Prediction | Failure) -> Prediction:
    if isinstance(answer, Failure):
        raise DataError(answer.error)
    return answer


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when it is complete, and is gone if it never is.

    Names that are no valid text (a path's stray bytes) are written as escapes, which JSON reads back.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{out}: cannot write predictions here ({error.strerror}); give another --out") from error
