"""The same picture twice: found by the bytes of files (or the pixels in memory), cheapest evidence first."""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from swindow.data.annotated import Annotated
from swindow.data.labelled import Images
from swindow.data.scenes import Scenes, file_of
from swindow.data.sources import DataSource

_TAIL = 4096


class Item(NamedTuple):
    """An image among those compared."""

    split: str
    name: str
    label: str
    pixels: Tensor | None = None
    digest: int | None = None
    """Of the image's bytes, where it is in a shard: equal for equal bytes. None there if it is not known."""
    in_shard: bool = False


class Duplicate(NamedTuple):
    """An image of one split whose content is also in an earlier one (train before val before test)."""

    split: str
    name: str
    other_split: str
    other_name: str


def duplicates_across(source: DataSource) -> list[Duplicate]:
    """Images of val and test that are also in another split: what a model is judged on, it may have learned by heart.

    Only files of equal size are opened; files that cannot be read are left to those who must read them. Of shards the
    index says which images are equal; those without one are not compared (`swindow data check` does).
    """
    return across(same_content(items_of(source), apart=True))


def items_of(source: DataSource) -> list[Item]:
    """All images of a source, split by split."""
    return [item for split, images in source.splits().items() for item in _items(split, images)]


def _items(split: str, images: Images | Scenes | Annotated) -> list[Item]:
    if isinstance(images, Annotated):
        return [Item(split, name, "") for name in images.names]
    if isinstance(images, Scenes):  # by file: a volume once
        return [Item(split, file, "") for file in dict.fromkeys(map(file_of, images.names))]
    encoded, rows = images.encoded, images.rows
    if encoded is not None and rows is not None:
        return [
            Item(split, images.names[place], images.classes[label], None, encoded.digest(row), in_shard=True)
            for place, (label, row) in enumerate(zip(images.labels.tolist(), rows.tolist(), strict=True))
        ]
    return [
        Item(split, name, images.classes[images.labels[place]], None if images.pixels is None else images.pixels[place])
        for place, name in enumerate(images.names)
    ]


def across(groups: Iterable[Sequence[Item]]) -> list[Duplicate]:
    """The members of each group that lie in another split than its first."""
    return [
        Duplicate(item.split, item.name, group[0].split, group[0].name)
        for group in groups
        for item in group[1:]
        if item.split != group[0].split
    ]


def same_content(items: Sequence[Item], *, apart: bool = False) -> list[list[Item]]:
    """Groups of two or more images with equal content, in the order given; `apart`: only groups of several splits."""
    groups = [[item for item in items if not item.in_shard or item.digest is not None]]
    for evidence in (_size, _tail, _whole):
        groups = [part for group in groups for part in _parts(group, evidence) if _matters(part, apart)]
    return groups


def _matters(group: Sequence[Item], apart: bool) -> bool:
    return len({item.split for item in group}) > 1 if apart else len(group) > 1


def _parts(group: Sequence[Item], evidence: Callable[[Item], object]) -> Iterable[list[Item]]:
    parts: Mapping[object, list[Item]] = defaultdict(list)
    for item in group:
        try:
            parts[evidence(item)].append(item)
        except OSError:  # it is reported, by name, by whoever decodes it
            continue
    return parts.values()


def _size(item: Item) -> object:
    if item.in_shard:
        return item.digest
    if item.pixels is not None:
        return item.pixels.shape
    status = Path(item.name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file: opening it might wait for ever")
    return status.st_size


def _tail(item: Item) -> object:
    if item.pixels is not None or item.in_shard:
        return None
    with Path(item.name).open("rb") as stream:
        stream.seek(-min(_TAIL, Path(item.name).stat().st_size), os.SEEK_END)
        return stream.read(_TAIL)


def _whole(item: Item) -> object:
    if item.in_shard:
        return None
    if item.pixels is not None:
        return hashlib.blake2b(item.pixels.contiguous().numpy().tobytes(), digest_size=16).digest()
    with Path(item.name).open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
