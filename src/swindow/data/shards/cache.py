"""Whole shards on a disk of this machine, each fetched once, whoever of its processes needs it first."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from swindow.data.shards.stores import LocalStore, Store
from swindow.errors import DataError
from swindow.images import name_of

PIECE = 2**24


class CachedStore:
    """A store whose files are copied to a folder when they are first read, compared with their index, and kept.

    The folder grows to the size of all shards; nothing is deleted from it. Processes wait for one another by a lock, so
    that a shard is fetched once a machine.
    """

    def __init__(self, store: Store, folder: str | Path, sums: Mapping[str, tuple[int, str]]) -> None:
        self.store, self.root, self.sums = store, store.root, dict(sums)
        place = hashlib.sha256(store.root.encode()).hexdigest()[:16]
        self.local = LocalStore(str(Path(folder, place)))

    def sizes(self) -> dict[str, int]:
        """As the store itself has them."""
        return self.store.sizes()

    def read(self, name: str) -> bytes:
        """A whole file, from the copy."""
        self._fetch(name)
        return self.local.read(name)

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | DataError]:
        """From the copies."""
        failed: dict[str, DataError] = {}
        for name in dict.fromkeys(name for name, _, _ in wanted):
            try:
                self._fetch(name)
            except DataError as error:
                failed[name] = error
        there = iter(self.local.ranges([one for one in wanted if one[0] not in failed]))
        return [failed[name] if name in failed else next(there) for name, _, _ in wanted]

    def open(self, name: str) -> BinaryIO:
        """The copy."""
        self._fetch(name)
        return self.local.open(name)

    def put(self, local: Path, name: str) -> None:
        """To the store."""
        self.store.put(local, name)

    def remove(self, name: str) -> None:
        """From the store."""
        self.store.remove(name)

    def place(self, name: str) -> str:
        """As the store calls it."""
        return self.store.place(name)

    def _fetch(self, name: str) -> None:
        words = PureWindowsPath(name)  # which takes both kinds of slashes for what they may be
        if words.anchor or ".." in words.parts:
            raise DataError(f"{self.place(name)}: names a place outside of the cache; rename it")
        size, sha256 = self.sums[name]
        copy = Path(self.local.root, name)
        try:
            if copy.is_file() and copy.stat().st_size == size:
                return
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _alone(copy.with_name(f".{copy.name}.lock")):
                if not (copy.is_file() and copy.stat().st_size == size):
                    self._copy(name, copy, size, sha256)
        except OSError as error:
            raise DataError(
                f"{name_of(copy)}: {self.place(name)} ({size:,} bytes) cannot be kept there "
                f"({error.strerror or error}); free space, or name another --cache"
            ) from error

    def _copy(self, name: str, copy: Path, size: int, sha256: str) -> None:
        part, seen = copy.with_name(f".{copy.name}.part"), hashlib.sha256()
        with part.open("wb") as target:
            for piece in _pieces(self.store, name, size):
                seen.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        if sha256 and seen.hexdigest() != sha256:
            part.unlink()
            raise DataError(_other_hash(self.place(name)))
        part.replace(copy)


def damaged_shards(store: Store, sums: Mapping[str, tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Place and one line of every shard that cannot be read, or whose SHA-256 is not the one given, if there is one."""
    for name, (size, sha256) in sums.items():
        if not sha256:
            continue
        seen = hashlib.sha256()
        try:
            for piece in _pieces(store, name, size):
                seen.update(piece)
        except DataError as error:
            yield store.place(name), str(error)
        else:
            if seen.hexdigest() != sha256:
                yield store.place(name), _other_hash(store.place(name))


def _pieces(store: Store, name: str, size: int) -> Iterator[bytes]:
    for start in range(0, size, PIECE):
        piece = store.ranges([(name, start, min(start + PIECE, size))])[0]
        if isinstance(piece, DataError):
            raise piece
        yield piece


def _other_hash(place: str) -> str:
    return f"{place}: its SHA-256 is not that of the index; pack or fetch the shard anew"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; a process that dies lets go."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes may fetch the same shard, each to the same bytes
        yield
        return
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
