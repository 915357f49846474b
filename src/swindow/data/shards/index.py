"""What is written beside shards of ours, so that opening them reads none: ``index.json`` and a table for each split."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swindow.data.shards.stores import Store
from swindow.errors import DataError

INDEX = "index.json"
UNFINISHED = "unfinished.json"
VERSION = "swindow-shards 1"
COLUMNS = {"tar": ("offset", "size", "label", "digest", "key"), "parquet": ("label", "digest", "key")}


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One shard."""

    name: str
    bytes: int
    sha256: str
    samples: int
    groups: tuple[int, ...] = ()
    """Samples of each row group (Parquet)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitIndex:
    """One split: its shards, and the columns of its samples, shard after shard."""

    shards: tuple[ShardFile, ...]
    columns: Mapping[str, Any]
    """Of `COLUMNS`, as int64 arrays and lists of texts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """All splits."""

    format: str
    """tar or parquet."""
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    """Height and width of a typical image."""
    splits: Mapping[str, SplitIndex]


def read_index(store: Store, sizes: Mapping[str, int]) -> Index | None:
    """The index, if there is one; the sizes of all shards are compared with it.

    Raises:
        DataError: an index that cannot be understood, a pack that was never finished, shards missing or of other sizes.
    """
    if INDEX not in sizes:
        if UNFINISHED in sizes:
            raise DataError(
                f"{store.place(UNFINISHED)}: packing was interrupted here; give the same `swindow data pack` again"
            )
        return None
    head = _json(store, INDEX, store.read(INDEX))
    if not isinstance(head, dict) or not str(head.get("version", "")).startswith("swindow-shards"):
        return None
    try:
        if head["version"] != VERSION:
            raise ValueError(f"is version {head['version']!r}, this program reads {VERSION!r}")
        if head["format"] not in COLUMNS:
            raise ValueError(f"has shards of format {head['format']!r}")
        splits = {split: _split(store, head, facts, sizes) for split, facts in head["splits"].items()}
        return Index(
            format=head["format"],
            classes=tuple(map(str, head["classes"])),
            channels=int(head["channels"]),
            size=(int(head["size"][0]), int(head["size"][1])),
            splits=splits,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DataError(f"{store.place(INDEX)}: {why}; pack the data anew") from error


def _split(store: Store, head: Mapping[str, Any], facts: Mapping[str, Any], sizes: Mapping[str, int]) -> SplitIndex:
    shards = tuple(ShardFile(**{**shard, "groups": tuple(shard.get("groups", ()))}) for shard in facts["shards"])
    for shard in shards:
        if sizes.get(shard.name) != shard.bytes:
            there = f"has {sizes[shard.name]:,} bytes" if shard.name in sizes else "is not there"
            raise DataError(
                f"{store.place(shard.name)}: {there}, by the index {shard.bytes:,}; fetch or pack the shards anew"
            )
    data = store.read(facts["table"]["name"])
    if hashlib.sha256(data).hexdigest() != facts["table"]["sha256"]:
        raise DataError(f"{store.place(facts['table']['name'])}: is not what the index has; pack the data anew")
    table = _json(store, facts["table"]["name"], data)
    count = sum(shard.samples for shard in shards)
    columns: dict[str, Any] = {}
    for name in COLUMNS[head["format"]]:
        column = table[name] if name == "key" else np.asarray(table[name], np.uint64 if name == "digest" else np.int64)
        if len(column) != count:
            raise ValueError(f"has {count:,} samples and {len(column):,} of {name}")
        columns[name] = column
    if count and not 0 <= columns["label"].min() <= columns["label"].max() < len(head["classes"]):
        raise ValueError("has labels without a class")
    _refuse_beyond(shards, columns)
    return SplitIndex(shards=shards, columns=columns)


def _refuse_beyond(shards: tuple[ShardFile, ...], columns: Mapping[str, Any]) -> None:
    """Samples that would lie outside their shard."""
    if "offset" not in columns:
        return
    ends = np.repeat([shard.bytes for shard in shards], [shard.samples for shard in shards])
    offset, size = columns["offset"], columns["size"]
    if ((offset < 0) | (size < 0) | (size > ends) | (offset > ends - size)).any():
        raise ValueError("has samples outside their shards")


def _json(store: Store, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{store.place(name)}: is no JSON ({error}); fetch or pack the shards anew") from error


def index_bytes(index: Index) -> dict[str, bytes]:
    """The files of an index by name, the tables first; the same bytes for the same index."""
    files: dict[str, bytes] = {}
    splits = {}
    for split, part in index.splits.items():
        columns = {
            name: list(map(int, values)) if name != "key" else list(values) for name, values in part.columns.items()
        }
        name = f"{split}.samples.json"
        files[name] = json.dumps(columns, separators=(",", ":")).encode()
        splits[split] = {
            "samples": sum(shard.samples for shard in part.shards),
            "table": {"name": name, "sha256": hashlib.sha256(files[name]).hexdigest()},
            "shards": [_as_dict(shard) for shard in part.shards],
        }
    head = {
        "version": VERSION,
        "format": index.format,
        "classes": list(index.classes),
        "channels": index.channels,
        "size": list(index.size),
        "splits": splits,
    }
    files[INDEX] = json.dumps(head, indent=1, ensure_ascii=False).encode()
    return files


def _as_dict(shard: ShardFile) -> dict[str, Any]:
    facts = {"name": shard.name, "bytes": shard.bytes, "sha256": shard.sha256, "samples": shard.samples}
    return facts | ({"groups": list(shard.groups)} if shard.groups else {})
