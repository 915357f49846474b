"""Which files a job over many images is about, one after the other: a folder at a time is held, never all names."""

import functools
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swindow.data.folders import is_litter
from swindow.data.inventory import natural_key
from swindow.data.shards.finding import holds_shards
from swindow.data.shards.stores import RemoteStore, is_url
from swindow.data.volume_files import volume_suffix
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, name_of

TAR, PARQUET, IMAGE = "tar", "parquet", "image"
_SHARDS = {".tar": TAR, ".parquet": PARQUET, ".pq": PARQUET}
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")


class Item(NamedTuple):
    """A file that is predicted, or whose images are."""

    source: str
    """Its absolute path, or its URL."""
    kind: str
    """image, tar or parquet."""
    size: int
    """Bytes."""
    stamp: str
    """What differs when the content does: an object's ETag, else the time of its last change."""


class _Entry(NamedTuple):
    """What a folder holds."""

    path: str
    folder: bool
    size: int
    stamp: str


def listed(inputs: Sequence[str | Path], without: str = "") -> Iterator[Item]:
    """The files that paths, URLs, folders and patterns name: each once, in the order given, folders in natural order.

    A folder gives the images, tar and Parquet files at any depth below it, but what lies below `without`; hidden files
    are left out. Several inputs may name the same file, so their names are remembered; those of a single one are not.

    Raises:
        DataError: nothing there, nothing that is an image or a shard, or no access.
    """
    seen: set[str] | None = set() if len(inputs) > 1 else None
    for given in inputs:
        count = 0
        for item in _expanded(str(given)):
            if without and (item.source + "/").startswith(without.rstrip("/") + "/"):
                continue
            count += 1
            if seen is not None:
                if item.source in seen:
                    continue
                seen.add(item.source)
            yield item
        if not count:
            raise DataError(f"{name_of(given)}: no images and no shards (.tar, .parquet) in it; give where they are")


def kind_of(path: str) -> str | None:
    """image, tar or parquet by the end of a name; None for what is none of them."""
    lower = path.lower()
    suffix = os.path.splitext(lower)[1]  # noqa: PTH122 - it may be a key of an object store
    return IMAGE if suffix in IMAGE_SUFFIXES else _SHARDS.get(suffix)


def is_shard(path: str | Path) -> bool:
    """Whether a name is one of a tar or Parquet file, or a folder has such as `swindow train` takes them.

    No images and no volumes may lie beside them.
    """
    if kind_of(str(path)) in (TAR, PARQUET):
        return True
    try:
        if is_url(path) or not Path(path).is_dir() or not holds_shards(path):
            return False
        return not any(volume_suffix(entry) for pattern in ("*", "*/*") for entry in Path(path).glob(pattern))
    except OSError:  # whoever lists it says so
        return False


def _expanded(given: str) -> Iterator[Item]:
    files: _Remote | _Local = _Remote(given) if is_url(given) and not given.startswith("file://") else _Local(given)
    found = files.entry(files.path)
    if found is not None:
        entries: Iterable[_Entry] = [found]
    elif glob.has_magic(files.path):
        entries = sorted(files.matches(), key=lambda entry: _natural(entry.path))
    else:
        raise DataError(f"{name_of(given)}: not found; check the path")
    for entry in entries:
        if entry.folder:
            yield from _below(files, entry.path)
        elif found is not None:  # a file that is named is taken, whatever it is called
            yield _item(files, entry, kind_of(entry.path) or IMAGE)
        elif kind := kind_of(entry.path):
            yield _item(files, entry, kind)


def _item(files: "_Remote | _Local", entry: _Entry, kind: str) -> Item:
    source = files.name(entry.path)
    if volume_suffix(source):
        raise DataError(f"{name_of(source)}: volumes are predicted one by one; leave out --parts, or this file")
    return Item(source, kind, entry.size, entry.stamp)


def _below(files: "_Remote | _Local", folder: str) -> Iterator[Item]:
    """Everything of use in a folder and the folders below it, sorted as people count."""
    for entry in sorted(files.entries(folder), key=lambda entry: natural_key(_last(entry.path))):
        if is_litter(_last(entry.path)):
            continue
        if entry.folder:
            yield from _below(files, entry.path)
        elif kind := kind_of(entry.path):
            yield _item(files, entry, kind)


class _Local:
    """Files of this machine."""

    def __init__(self, given: str) -> None:
        self.path = os.path.abspath(given.removeprefix("file://"))  # noqa: PTH100 - resolve() would follow links

    def name(self, path: str) -> str:
        return path

    def entry(self, path: str) -> _Entry | None:
        try:
            facts = Path(path).stat()
        except OSError:
            return None
        return _Entry(path, Path(path).is_dir(), facts.st_size, str(facts.st_mtime_ns))

    def entries(self, folder: str) -> Iterator[_Entry]:
        """Linked folders are left out, since they may lead back; a link to nothing is a file that cannot be read."""
        try:
            with os.scandir(folder) as found:
                for one in found:
                    if one.is_dir(follow_symlinks=False):
                        yield _Entry(one.path, True, 0, "")
                    elif not one.is_dir():
                        facts = one.stat(follow_symlinks=not one.is_symlink() or one.is_file())
                        yield _Entry(one.path, False, facts.st_size, str(facts.st_mtime_ns))
        except OSError as error:
            raise DataError(f"{name_of(error.filename)}: cannot be read ({error.strerror})") from error

    def matches(self) -> Iterator[_Entry]:
        for path in glob.iglob(self.path, recursive=True):  # noqa: PTH207 - Path.glob refuses absolute patterns
            entry = self.entry(path)
            if entry is not None:
                yield entry


class _Remote:
    """Objects of a store that fsspec knows."""

    def __init__(self, given: str) -> None:
        self.store = RemoteStore(given)
        self.files, self.path = self.store.files()

    def name(self, path: str) -> str:
        return str(self.files.unstrip_protocol(path))

    def entry(self, path: str) -> _Entry | None:
        facts = self._asked(functools.partial(self._info, path))
        return None if facts is None else _entry(facts)

    def entries(self, folder: str) -> Iterator[_Entry]:
        """What a folder held is forgotten by the file system too: a listing has a thousand bytes for every object."""
        found = self._asked(functools.partial(self.files.ls, folder, detail=True))
        self.files.invalidate_cache()
        for facts in found:
            if str(facts["name"]).rstrip("/") != folder.rstrip("/"):  # an empty object stands for the folder itself
                yield _entry(facts)

    def matches(self) -> Iterator[_Entry]:
        found = self._asked(functools.partial(self.files.glob, self.path, detail=True))
        for path, facts in found.items():
            yield _entry(facts | {"name": path})

    def _info(self, path: str) -> dict[str, object] | None:
        try:
            return self.files.info(path)
        except FileNotFoundError:
            return None

    def _asked(self, act: Callable[[], Any]) -> Any:
        return self.store.retried(act, self.store.root)


def _entry(facts: dict[str, object]) -> _Entry:
    stamp = next((str(facts[name]) for name in _STAMPS if facts.get(name) is not None), "")
    folder = facts["type"] == "directory"
    return _Entry(str(facts["name"]).rstrip("/"), folder, int(str(facts.get("size") or 0)), stamp)


def _natural(path: str) -> list[tuple[list[int | str], str]]:
    return [natural_key(part) for part in path.split("/")]


def _last(path: str) -> str:
    return path.replace(os.sep, "/").rsplit("/", 1)[-1]
