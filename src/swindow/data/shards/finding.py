"""What lies at a source of shards: which splits, classes and samples; from our index, or by looking into each shard."""

import functools
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from swindow.data.inventory import POOL, SPLIT_NAMES, Inventory, Problem, Rows, natural_key
from swindow.data.labelled import in_shards
from swindow.data.shards import parquets, tars
from swindow.data.shards.encoded import ParquetImages, TarImages
from swindow.data.shards.index import INDEX, UNFINISHED, Index, SplitIndex, read_index
from swindow.data.shards.parquets import Columns
from swindow.data.shards.stores import LocalStore, Store, is_url, store_at
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, name_of
from swindow.progress import counting, watcher

TAR, PARQUET = (".tar",), (".parquet", ".pq")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
READERS = 8
OUR_COLUMNS = Columns("image", "bytes", "label", None)


def holds_shards(source: str | Path) -> bool:
    """Whether a source is shards: any URL; a tar, or a Parquet file of image bytes; a folder that has such.

    Of a folder it must be so directly in it or one level below, and no images may lie beside them.
    """
    if is_url(source):
        return True
    path = Path(source)
    if path.is_file():
        return _is_shard(path)
    if not path.is_dir():
        return False
    if (path / UNFINISHED).is_file():
        return True
    inner = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    folders = [entry for entry in inner if entry.is_dir()]
    files = [entry for entry in inner if entry.is_file()]
    files += [entry for folder in folders for entry in sorted(folder.iterdir()) if entry.is_file()]
    shards = [entry for entry in files if entry.name.lower().endswith((*TAR, *PARQUET, *PACKED))]
    if not shards or any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in files):
        return False
    return _is_shard(shards[0])


def read_shards(source: str | Path) -> Inventory:
    """The splits of shards at a source.

    Raises:
        DataError: there are none, they are damaged, of two formats, or their names do not tell which split they are.
    """
    store, only = _store(source)
    sizes = store.sizes() if not only else {only: _size(store, only)}
    index = read_index(store, sizes)
    if index is not None:
        return _from_index(store, index)
    return _foreign(store, tuple(sorted(sizes.items(), key=lambda item: natural_key(item[0]))), str(source))


def _store(source: str | Path) -> tuple[Store, str]:
    """The store, and the one file that was named instead of a folder."""
    text = str(source)
    if text.lower().endswith((*TAR, *PARQUET, *PACKED)):
        folder, _, name = text.rpartition("/")
        return store_at(folder or ("." if not text.startswith("/") else "/")), name
    return store_at(text), ""


def _size(store: Store, name: str) -> int:
    sizes = store.sizes()
    if name not in sizes:
        raise DataError(f"{store.place(name)}: no such file; check the name")
    return sizes[name]


def _is_shard(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith(PARQUET):
        with path.open("rb") as stream:
            return parquets.holds_images(stream)
    return name.endswith((*TAR, *PACKED))


def _from_index(store: Store, index: Index) -> Inventory:
    found = Inventory(kind=f"{index.format} shards", root=_root(store), classes=index.classes)
    for split, part in index.splits.items():
        encoded = _encoded(store, index, part)
        labels = [index.classes[label] for label in part.columns["label"].tolist()]
        found.splits[split] = Rows(in_shards(encoded, len(labels)), labels, None, encoded)
    return found


def _encoded(store: Store, index: Index, part: SplitIndex) -> TarImages | ParquetImages:
    sums = {shard.name: (shard.bytes, shard.sha256) for shard in part.shards}
    names = tuple(shard.name for shard in part.shards)
    if index.format == "tar":
        return TarImages(
            store=store,
            shards=names,
            sums=sums,
            shard=np.repeat(np.arange(len(names)), [shard.samples for shard in part.shards]),
            offset=part.columns["offset"],
            size=part.columns["size"],
            keys=part.columns["key"],
            digests=part.columns["digest"],
        )
    return ParquetImages(
        store=store,
        shards=names,
        sums=sums,
        columns=OUR_COLUMNS,
        groups=tuple(shard.groups for shard in part.shards),
        heavy=tuple(
            tuple(shard.bytes * count // max(shard.samples, 1) for count in shard.groups) for shard in part.shards
        ),
        digests=part.columns["digest"],
    )


def _foreign(store: Store, sizes: tuple[tuple[str, int], ...], source: str) -> Inventory:
    """Shards of other programs: every one is looked into, by its headers or its footer and labels."""
    packed = [name for name, _ in sizes if name.lower().endswith(PACKED)]
    if packed:
        raise DataError(f"{store.place(packed[0])}: is compressed; images are compressed already: unpack it to a .tar")
    ours = {kind: [name for name, _ in sizes if name.lower().endswith(kind)] for kind in (TAR, PARQUET)}
    kinds = [kind for kind, names in ours.items() if names]
    if len(kinds) != 1:
        what = "both tar and Parquet files; keep one kind" if kinds else "no .tar and no .parquet; pack the data"
        hint = "" if kinds else " with `swindow data pack` (images are read from object storage in shards only)"
        raise DataError(f"{name_of(source)}: has {what}{hint}")
    splits = _splits(store, ours[kinds[0]])
    wanted = {name: size for name, size in sizes if name in set(ours[kinds[0]])}
    found = Inventory(kind=f"{'tar' if kinds[0] == TAR else 'parquet'} shards", root=_root(store))
    parts = _looked_into(store, tuple(wanted.items()), kinds[0] == TAR)
    names_of_classes = _listed_classes(store, dict(sizes))
    for split, names in splits.items():
        make = _tars if kinds[0] == TAR else _parquets
        encoded, labels, own = make(store, names, [parts[name] for name in names], wanted)
        found.classes = found.classes or own or names_of_classes
        rows = in_shards(encoded, len(labels))
        found.splits[split] = Rows(rows, _renamed(labels, names_of_classes), None, encoded)
    found.problems.append(_no_index(source, len(wanted), sum(len(rows.labels) for rows in found.splits.values())))
    return found


def _no_index(source: str, shards: int, samples: int) -> Problem:
    message = (
        f"{name_of(source)}: {shards:,} shards of {samples:,} images have no {INDEX} of ours: each was looked into, "
        f"and whether a picture is in two splits was not; `swindow data pack` writes shards that open at once"
    )
    return Problem("no-index", source, message)


def _tars(
    store: Store, names: Sequence[str], parts: Sequence[list[tars.Sample]], sizes: Mapping[str, int]
) -> tuple[TarImages, list[str], None]:
    samples = [sample for part in parts for sample in part]
    encoded = TarImages(
        store=store,
        shards=tuple(names),
        sums={name: (sizes[name], "") for name in names},
        shard=np.repeat(np.arange(len(names)), [len(part) for part in parts]),
        offset=np.asarray([sample.offset for sample in samples], np.int64),
        size=np.asarray([sample.size for sample in samples], np.int64),
        keys=[sample.name for sample in samples],
    )
    return encoded, [sample.label for sample in samples], None


def _parquets(
    store: Store, names: Sequence[str], parts: Sequence[parquets.Part], sizes: Mapping[str, int]
) -> tuple[ParquetImages, list[str], tuple[str, ...] | None]:
    columns = {(part.columns, part.columns.classes) for part in parts}
    if len(columns) > 1:
        raise DataError(f"{store.place('')}: its Parquet files have different columns or classes; write them alike")
    encoded = ParquetImages(
        store=store,
        shards=tuple(names),
        sums={name: (sizes[name], "") for name in names},
        columns=parts[0].columns,
        groups=tuple(tuple(part.groups) for part in parts),
        heavy=tuple(tuple(part.heavy) for part in parts),
    )
    return encoded, [label for part in parts for label in part.labels], parts[0].columns.classes


def _looked_into(store: Store, sizes: tuple[tuple[str, int], ...], is_tar: bool) -> dict[str, Any]:
    key = (type(store).__name__, store.root, sizes, is_tar, _times(store, sizes))
    return _scanned(key, _Unhashed(store))


class _Unhashed:
    """A store as an argument of a function with a memory: the key beside it says which store it is."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


def _times(store: Store, sizes: tuple[tuple[str, int], ...]) -> tuple[int, ...]:
    """When each file of this machine was written; object stores have no such number in common."""
    if not isinstance(store, LocalStore):
        return ()
    return tuple(Path(store.root, name).stat().st_mtime_ns for name, _ in sizes)


@functools.lru_cache(maxsize=4)
def _scanned(key: tuple[Any, ...], of: _Unhashed) -> dict[str, Any]:
    """What each shard holds. Data is opened twice to train (once to choose a recipe): the second time is free."""
    _, _, sizes, is_tar, _ = key
    store, progress = of.store, watcher()
    look = functools.partial(_look, store, is_tar)
    found = {}
    with counting(progress, "look into shards", len(sizes)), ThreadPoolExecutor(READERS) as pool:
        for (name, _), part in zip(sizes, pool.map(look, sizes), strict=True):
            found[name] = part
            progress.advance()
    return found


def _look(store: Store, is_tar: bool, item: tuple[str, int]) -> Any:
    name, size = item
    return tars.scan(store, name, size) if is_tar else parquets.scan(store, name)


def _splits(store: Store, names: Sequence[str]) -> dict[str, list[str]]:
    """Shards by split: by a word of the file's name, else of a folder's."""
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(_split_of(name), []).append(name)
    if POOL in splits and len(splits) > 1:
        others = ", ".join(split for split in splits if split != POOL)
        raise DataError(
            f"{store.place(splits[POOL][0])}: its name says no split, where others are {others}; put one of "
            f"{', '.join(SPLIT_NAMES)} into it, or remove it"
        )
    return splits


def _split_of(name: str) -> str:
    for part in reversed(name.split("/")):
        words = [word for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_NAMES]
        if words:
            return SPLIT_NAMES[words[-1]]
    return POOL


def _listed_classes(store: Store, sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    """``classes.txt`` beside the shards: a name on each line, for labels that are numbers."""
    if "classes.txt" not in sizes:
        return None
    names = tuple(line.strip() for line in store.read("classes.txt").decode("utf-8").splitlines() if line.strip())
    if len(set(names)) != len(names):
        raise DataError(f"{store.place('classes.txt')}: a class name occurs twice; give every class its own")
    return names


def _renamed(labels: list[str], classes: tuple[str, ...] | None) -> list[str]:
    if classes is None:
        return labels
    names = {str(number): name for number, name in enumerate(classes)}
    return [names.get(label, label) for label in labels]


def _root(store: Store) -> str:
    return store.place("")
