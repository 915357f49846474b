"""The images of a part, one after the other: files as their paths, everything else as bytes, fetched ahead of use."""

import io
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from swindow.data.shards import parquets, tars
from swindow.data.shards.stores import Store, is_url
from swindow.errors import DataError
from swindow.images import ImageLimits, Source
from swindow.predict.bulk.listing import IMAGE, TAR, kind_of
from swindow.predict.bulk.places import stored
from swindow.predict.bulk.plan import Span
from swindow.predict.bulk.tables import rows_of
from swindow.predict.predictor import ahead

BLOCK = 8 * 2**20
"""Bytes of a tar that are asked for at once; one block is read while the one before is used."""


class Unreachable(DataError):
    """Storage does not answer: the image may be as good as any, so this is no answer to write down."""


class Picture(NamedTuple):
    """An image, or why there is none."""

    source: str
    """Its path or URL; of one in a shard ``SHARD/MEMBER`` or ``FILE#ROW``."""
    key: str | None
    """What its shard calls it."""
    content: Source | str
    """A path, a `Named`, or in a `str` what is wrong."""


class Named(io.BytesIO):
    """Bytes that messages call by a name."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def pictures(spans: Sequence[Span], limits: ImageLimits, fetch: int) -> Iterator[Picture]:
    """All images of some spans, in order, with `fetch` objects at most on their way.

    A shard that turns out to be damaged is a picture that cannot be used, after those before the damage.

    Raises:
        Unreachable: storage failed, also after it was asked again.
    """
    with ThreadPoolExecutor(fetch) as pool:
        for kind, run in itertools.groupby(spans, key=lambda span: span.kind):
            if kind == IMAGE:
                yield from ahead(pool, lambda span: _picture(span, limits), run, depth=2 * fetch)
                continue
            for span in run:
                yield from _of_tar(span, limits, pool) if kind == TAR else _of_rows(span)


def _picture(span: Span, limits: ImageLimits) -> Picture:
    if not is_url(span.source):
        return Picture(span.source, None, Path(span.source))
    store, name = stored(span.source)
    try:
        if span.size > limits.max_file_bytes:  # as many as make the gate refuse it
            content = _got(store.ranges([(name, 0, limits.max_file_bytes + 1)])[0])
        else:
            content = store.read(name)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Picture(span.source, None, f"{span.source}: was there when the job was planned, and is gone")
        raise Unreachable(str(error)) from error
    return Picture(span.source, None, Named(content, span.source))


def _of_rows(span: Span) -> Iterator[Picture]:
    row = span.start
    try:
        for path, content in rows_of(span.source, span.group, span.start, span.stop):
            name = f"{span.source}#{span.first + row}"
            yield Picture(name, path, f"{name}: has no bytes" if content is None else Named(content, name))
            row += 1
    except DataError as error:
        cause = error.__cause__
        if cause is None or getattr(cause, "errno", None) is not None or not parquets.is_damage(cause):
            raise Unreachable(str(error)) from error  # damage has no number of an operating system's error
        for left in range(row, span.stop):
            yield Picture(f"{span.source}#{span.first + left}", None, f"{error} (row {span.first + left})")


def _of_tar(span: Span, limits: ImageLimits, pool: ThreadPoolExecutor) -> Iterator[Picture]:
    store, name = stored(span.source)
    stream = _Stream(store, name, span.size, pool)
    try:
        for member in tars.members(stream, name, span.size):
            if kind_of(member.name) == IMAGE:
                source = f"{span.source}/{member.name}"
                end = member.offset + min(member.size, limits.max_file_bytes + 1)
                yield Picture(source, member.name, Named(stream.read(member.offset, end), source))
    except Unreachable:
        raise
    except DataError as error:
        yield Picture(span.source, None, str(error))


class _Stream:
    """A file that is read from its beginning to its end, block by block, for `tars.members` to ask."""

    def __init__(self, store: Store, name: str, size: int, pool: ThreadPoolExecutor) -> None:
        self.store, self.name, self.size, self.pool = store, name, size, pool
        self.blocks: dict[int, Future[bytes]] = {}

    def place(self, name: str) -> str:
        return self.store.place(name)

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | DataError]:
        return [self.read(start, end) for _, start, end in wanted]

    def read(self, start: int, end: int) -> bytes:
        """Bytes of the file from `start` to `end`.

        Raises:
            Unreachable: storage failed.
        """
        found = []
        for block in range(start // BLOCK, -(-end // BLOCK)):
            content = self._block(block)
            found.append(content[max(start - block * BLOCK, 0) : end - block * BLOCK])
        return b"".join(found)

    def _block(self, number: int) -> bytes:
        for wanted in (number, number + 1):
            if wanted not in self.blocks and wanted * BLOCK < self.size:
                self.blocks[wanted] = self.pool.submit(self._fetched, wanted)
        for passed in [old for old in self.blocks if old < number - 1]:
            del self.blocks[passed]
        return self.blocks[number].result()

    def _fetched(self, number: int) -> bytes:
        span = (self.name, number * BLOCK, min((number + 1) * BLOCK, self.size))
        return _got(self.store.ranges([span])[0])


def _got(answer: bytes | DataError) -> bytes:
    if isinstance(answer, DataError):
        raise Unreachable(str(answer)) from answer
    return answer
