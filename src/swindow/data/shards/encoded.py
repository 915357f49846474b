"""Where images in shards get their bytes: several at once, by row, in whichever process asks."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swindow.data.shards.cache import CachedStore, damaged_shards
from swindow.data.shards.order import WindowedOrder
from swindow.data.shards.parquets import Columns, read_group
from swindow.data.shards.stores import Store
from swindow.errors import DataError
from swindow.images import LIMITS

NEAR = 2**16  # bytes between two images that are read along rather than skipped by a second request
MOST_AT_ONCE = 2**24  # bytes of one request
GROUPS_HELD = 2**29  # bytes of row groups that a process keeps; neighbours of an order hold at most half of it


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TarImages:
    """Images in tar shards, found by shard, offset and size."""

    store: Store
    shards: tuple[str, ...]
    sums: Mapping[str, tuple[int, str]]
    """Bytes of each shard, and its SHA-256 where it is known."""
    shard: np.ndarray
    """int: which of `shards`, for each row."""
    offset: np.ndarray
    size: np.ndarray
    keys: Sequence[str]
    """The name of each row's member."""
    digests: np.ndarray | None = None
    """uint64: the first bytes of each image's SHA-256, where it is known."""

    def name(self, row: int) -> str:
        """The shard's place and the member's name."""
        return f"{self.store.place(self.shards[self.shard[row]])}/{self.keys[row]}"

    def read(self, rows: Sequence[int]) -> list[bytes | DataError]:
        """The encoded bytes of some rows; an error, named, in the place of those that cannot be read."""
        found: list[Any] = [self._too_large(row) for row in rows]
        places = [place for place, error in enumerate(found) if error is None]
        places.sort(key=lambda place: (self.shard[rows[place]], self.offset[rows[place]]))
        groups: list[list[int]] = []
        for place in places:
            if groups and self._joins([rows[member] for member in groups[-1]], rows[place]):
                groups[-1].append(place)
            else:
                groups.append([place])
        spans = [self._span([rows[place] for place in group]) for group in groups]
        contents = self.store.ranges(spans) if spans else []
        for group, (_, start, _), data in zip(groups, spans, contents, strict=True):
            for place in group:
                begin = int(self.offset[rows[place]]) - start
                if isinstance(data, DataError):
                    found[place] = DataError(f"{self.name(rows[place])}: {data}")
                else:
                    found[place] = data[begin : begin + int(self.size[rows[place]])]
        return found

    def digest(self, row: int) -> int | None:
        """What equals another image's only if its bytes do; None where the index has none."""
        return None if self.digests is None else int(self.digests[row])

    def order(self, rows: np.ndarray, window: int) -> Callable[[int, int], np.ndarray]:
        """The order of epochs of some rows that touches few shards at a time."""
        return WindowedOrder(blocks=self.shard[rows], window=window)

    def damaged(self) -> Iterator[tuple[str, str]]:
        """Place and one line of every shard whose hash is not that of the index."""
        return damaged_shards(self.store, self.sums)

    def cached(self, folder: str | Path) -> "TarImages":
        """The same images, whole shards copied to a folder of this machine when they are first needed."""
        return dataclasses.replace(self, store=CachedStore(self.store, folder, self.sums))

    def _too_large(self, row: int) -> DataError | None:
        """An error where a tar promises more than any image has: it is not asked for, whether it is there or not."""
        size = int(self.size[row])
        if size <= LIMITS.max_file_bytes:
            return None
        return DataError(
            f"{self.name(row)}: {size:,} bytes are no image; leave it out (at most {LIMITS.max_file_bytes:,} are read)"
        )

    def _joins(self, rows: Sequence[int], row: int) -> bool:
        _, start, end = self._span(rows)
        begins, ends = int(self.offset[row]), int(self.offset[row] + self.size[row])
        near = begins - end <= NEAR and ends - start <= MOST_AT_ONCE
        return near and bool(self.shard[rows[0]] == self.shard[row])

    def _span(self, rows: Sequence[int]) -> tuple[str, int, int]:
        end = max(int(self.offset[row] + self.size[row]) for row in rows)
        return self.shards[self.shard[rows[0]]], int(self.offset[rows[0]]), end


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ParquetImages:
    """Images in Parquet shards, read by whole row groups, the last ones kept."""

    store: Store
    shards: tuple[str, ...]
    sums: Mapping[str, tuple[int, str]]
    columns: Columns
    groups: tuple[tuple[int, ...], ...]
    """Samples of each row group of each shard."""
    heavy: tuple[tuple[int, ...], ...]
    """About how many bytes each holds."""
    digests: np.ndarray | None = None
    _held: "OrderedDict[int, list[bytes | None]]" = dataclasses.field(default_factory=OrderedDict)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Rows before each row group, all of them counted through."""
        return np.cumsum([0, *(count for groups in self.groups for count in groups)])

    @functools.cached_property
    def _firsts(self) -> np.ndarray:
        """Rows before each shard."""
        return np.cumsum([0, *(sum(groups) for groups in self.groups)])

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        """About how many bytes each row group holds."""
        return np.asarray([size for sizes in self.heavy for size in sizes], np.int64)

    @functools.cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Shard and number of each row group."""
        return [(shard, group) for shard, groups in enumerate(self.groups) for group in range(len(groups))]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}

    def name(self, row: int) -> str:
        """The shard's place and the row's number in it."""
        shard = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return f"{self.store.place(self.shards[shard])}[{row - self._firsts[shard]}]"

    def read(self, rows: Sequence[int]) -> list[bytes | DataError]:
        """The encoded bytes of some rows; an error, named, in the place of those that cannot be read."""
        found: list[bytes | DataError] = [b""] * len(rows)
        blocks = self._blocks(np.asarray(rows))
        for place in np.argsort(blocks, kind="stable").tolist():
            try:
                data = self._group(int(blocks[place]))[rows[place] - self._ends[blocks[place]]]
                if data is None:
                    raise DataError(
                        f"{self.name(rows[place])}: has no bytes of an image; pack the data, files included"
                    )
                found[place] = data
            except DataError as error:
                found[place] = error
        return found

    def digest(self, row: int) -> int | None:
        """What equals another image's only if its bytes do; None where the index has none."""
        return None if self.digests is None else int(self.digests[row])

    def order(self, rows: np.ndarray, window: int) -> Callable[[int, int], np.ndarray]:
        """The order of epochs of some rows that keeps few row groups in memory at a time."""
        return WindowedOrder(blocks=self._blocks(rows), window=window, heavy=self._weights, most=GROUPS_HELD // 2)

    def damaged(self) -> Iterator[tuple[str, str]]:
        """Place and one line of every shard whose hash is not that of the index."""
        return damaged_shards(self.store, self.sums)

    def cached(self, folder: str | Path) -> "ParquetImages":
        """The same images, whole shards copied to a folder of this machine when they are first needed."""
        return dataclasses.replace(self, store=CachedStore(self.store, folder, self.sums), _held=OrderedDict())

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends, rows, side="right") - 1

    def _group(self, block: int) -> list[bytes | None]:
        held = self._held
        if block not in held:
            shard, group = self._places[block]
            images = read_group(self.store, self.shards[shard], group, self.columns)
            if len(images) != self._ends[block + 1] - self._ends[block]:
                raise DataError(
                    f"{self.store.place(self.shards[shard])}: row group {group} has {len(images):,} rows, by the index "
                    f"{self._ends[block + 1] - self._ends[block]:,}; pack the data anew"
                )
            held[block] = images
            while len(held) > 1 and sum(self._weights[other] for other in held) > GROUPS_HELD:
                held.popitem(last=False)
        held.move_to_end(block)
        return held[block]
