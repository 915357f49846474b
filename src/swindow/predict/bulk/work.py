"""One part of a job: its images read, predicted, written and committed."""

import collections
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from swindow.data.shards.stores import Store, store_at
from swindow.data.shards.tars import TarShard
from swindow.errors import DataError
from swindow.images import Source
from swindow.predict.answers import Failure, Segmentation
from swindow.predict.bulk.plan import Inputs, Plan
from swindow.predict.bulk.reading import Picture, pictures
from swindow.predict.bulk.rows import Format, Kept, counted, open_rows, row_of
from swindow.predict.predictor import Predictor
from swindow.predict.segmented import index_png

PARTS, DONE, MASKS = "parts", "done", "masks"
"""Folders: `PARTS` holds nothing but rows, so that it is a data set as others read them."""
EXAMPLES = 3
"""Errors of a part that its marker repeats."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all parts have in common."""

    out: str
    plan: Plan
    kept: Kept
    format: Format
    masks: bool
    """Whether a segmenter's masks are written."""
    fetch: int
    """Objects on their way at once."""

    def rows(self, part: int) -> str:
        """The name of a part's rows."""
        return f"{PARTS}/{self.plan.name(part)}.{self.format}"

    def marker(self, part: int) -> str:
        """The name of what is written last."""
        return f"{DONE}/{self.plan.name(part)}.json"

    def masks_of(self, part: int) -> str:
        """The name of a part's masks."""
        return f"{MASKS}/{self.plan.name(part)}.tar"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """What a part came to; the file of this that lies beside a part says that it is whole."""

    part: int
    rows: int
    failures: int
    size: int
    """Of the file of rows in bytes."""
    sha256: str
    """Of the same."""
    classes: dict[str, int]
    """How often each class was named, covers something, or was found."""
    examples: tuple[str, ...]
    """The first errors."""

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"

    @staticmethod
    def read(content: bytes) -> "Done":
        """What `text` wrote.

        Raises:
            ValueError, KeyError, TypeError: something else did.
        """
        facts = json.loads(content)
        return Done(**(facts | {"examples": tuple(facts["examples"])}))


class Worker:
    """A model that does parts of a job."""

    def __init__(self, predictor: Predictor, job: Job) -> None:
        self.predictor, self.job = predictor, job
        self.store = store_at(job.out)
        self.inputs = Inputs(self.store)

    def close(self) -> None:
        """The end of its work."""
        self.inputs.close()

    def do(self, part: int, advance: Callable[[], None] | None = None) -> Done:
        """Predict the images of one part and leave its file: the masks first, then the rows, then the marker.

        A part without a marker is not there: whoever is killed before leaves files that are replaced.

        Raises:
            DataError: storage that does not answer.
        """
        rows, failures, examples = 0, 0, list[str]()
        classes: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory(prefix="swindow-part-") as folder:
            table, masks = Path(folder, "rows"), Path(folder, "masks.tar")
            with (
                _Masks(masks if self.job.masks else None) as kept_masks,
                open_rows(table, self.job.format, self.job.kept.task) as writer,
            ):
                for picture, answer in self._answers(part):
                    mask = kept_masks.add(rows, answer)
                    row = row_of(picture, answer, self.job.kept, mask)
                    writer.add(row)
                    rows += 1
                    classes.update(counted(row))
                    if row["error"] is not None:
                        failures += 1
                        examples += [row["error"]][: EXAMPLES - len(examples)]
                    if advance is not None:
                        advance()
            done = Done(
                part=part,
                rows=rows,
                failures=failures,
                size=table.stat().st_size,
                sha256=_sha256(table),
                classes=dict(sorted(classes.items())),
                examples=tuple(examples),
            )
            if self.job.masks:
                put(self.store, masks, self.job.masks_of(part))
            put(self.store, table, self.job.rows(part))
            marker = Path(folder, "marker")
            marker.write_text(done.text(), encoding="utf-8")
            put(self.store, marker, self.job.marker(part))
        return done

    def _answers(self, part: int) -> Iterator[tuple[Picture, Any]]:
        """Every image of a part with its answer, in order; those that cannot be read are not asked about."""
        waiting: collections.deque[Picture] = collections.deque()

        def readable() -> Iterator[Source]:
            for picture in pictures(self.inputs[part], self.predictor.limits, self.job.fetch):
                waiting.append(picture)
                if not isinstance(picture.content, str):
                    yield picture.content

        for answer in self.predictor.stream(readable()):
            yield from _refused(waiting)
            yield waiting.popleft(), answer
        yield from _refused(waiting)


class _Masks:
    """A tar of a segmenter's masks, one PNG of class indices for each row that has an answer."""

    def __init__(self, path: Path | None) -> None:
        self.file = None if path is None else path.open("wb")
        self.tar = None if self.file is None else TarShard(self.file.write)

    def add(self, row: int, answer: Any) -> str | None:
        """The name of the mask in the tar."""
        if self.tar is None or not isinstance(answer, Segmentation):
            return None
        name = f"{row:06}.png"
        self.tar.member(name, index_png(answer.mask, answer.colours))
        return name

    def __enter__(self) -> "_Masks":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.file is not None:
            if kind is None and self.tar is not None:
                self.tar.close()
            self.file.close()


def _refused(waiting: collections.deque[Picture]) -> Iterator[tuple[Picture, Failure]]:
    """Those next in line that were never asked about."""
    while waiting and isinstance(waiting[0].content, str):
        picture = waiting.popleft()
        yield picture, Failure(source=picture.source, error=str(picture.content))


def put(store: Store, local: Path, name: str) -> None:
    """A file of this machine into a store, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    try:
        store.put(local, name)
    except OSError as error:
        raise DataError(f"{store.place(name)}: cannot be written ({error.strerror or error})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
