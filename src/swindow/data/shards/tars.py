"""Tar files of samples, as WebDataset has them: ``KEY.jpg`` and ``KEY.cls`` (or ``.json``, ``.txt``) after each other.

A tar is read by its headers alone; no member is ever extracted, and what is no plain file refuses the whole shard.
"""

import io
import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from swindow.data.shards.stores import Ranges
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES

BLOCK = tarfile.BLOCKSIZE
AHEAD = 2**16  # bytes asked for at once: headers and labels between small images come together
MOST_EXTRA = 2**20  # bytes of an extended header; a name has hundreds
LABEL_SUFFIXES = (".cls", ".txt", ".json")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LINKS = {tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a link", tarfile.GNUTYPE_SPARSE: "a sparse file"}


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image in a tar, and what is said to be in it."""

    name: str
    """Of the image's member."""
    offset: int
    size: int
    label: str


def scan(store: Ranges, name: str, size: int) -> list[Sample]:
    """The samples of one tar, in order, by its headers and labels.

    Raises:
        DataError: it is compressed, damaged, cut short, or holds what no shard should; the message says where.
    """
    return list(_paired(store, name, list(members(store, name, size))))


def members(store: Ranges, name: str, size: int) -> Iterator[Member]:
    """The files of one tar.

    Raises:
        DataError: as `scan`.
    """
    window = _Window(store, name, size)
    place, long_name, long_size = 0, "", -1
    while True:
        if place + BLOCK > size:
            raise _damaged(store, name, place, "ends without the two empty blocks that every tar ends with")
        head = window.read(place, BLOCK)
        if not any(head):
            if any(window.read(place, min(2 * BLOCK, size - place))):
                raise _damaged(store, name, place, "has an empty block and goes on after it")
            return
        info = _header(store, name, place, head)
        data = place + BLOCK
        if info.size < 0 or data + info.size > size:
            words = f"{info.name!r} promises {info.size:,} bytes, {size - data:,} are left: the file is cut short"
            raise _damaged(store, name, place, words)
        place = data + -(-info.size // BLOCK) * BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE):
            long_name, long_size = _extended(store, name, data, info, window, (long_name, long_size))
            continue
        if long_size not in (-1, info.size):
            raise _damaged(store, name, data, "has a member of two sizes")
        member = Member(long_name or info.name, data, info.size)
        long_name, long_size = "", -1
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            _refuse_path(store, name, member)
            yield member
        elif info.type != tarfile.DIRTYPE:
            kind = _LINKS.get(info.type, f"of type {info.type!r}")
            raise DataError(
                f"{store.place(name)}: member {member.name!r} is {kind}; shards hold plain files: pack the data anew"
            )


def _header(store: Ranges, name: str, place: int, head: bytes) -> tarfile.TarInfo:
    packing = next((kind for start, kind in _COMPRESSED.items() if place == 0 and head.startswith(start)), None)
    if packing is not None:
        raise DataError(
            f"{store.place(name)}: is compressed ({packing}), so that no image in it can be read without all before "
            f"it; images are compressed already: unpack it to a plain .tar"
        )
    try:
        return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        words = f"is no header of a member ({error})" if place else f"is no tar file ({error})"
        raise _damaged(store, name, place, words) from error


def _extended(
    store: Ranges, name: str, data: int, info: tarfile.TarInfo, window: "_Window", before: tuple[str, int]
) -> tuple[str, int]:
    """What an extended header says of the next member's name and size."""
    if info.size > MOST_EXTRA:
        raise _damaged(store, name, data, f"has an extended header of {info.size:,} bytes")
    text = window.read(data, info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return text.rstrip(b"\0").decode("utf-8", "surrogateescape"), before[1]
    found = _pax(store, name, data, text)
    if any(key.startswith("GNU.sparse") for key in found):
        raise DataError(f"{store.place(name)}: has a sparse file at byte {data:,}; shards hold plain files: pack anew")
    if info.type == tarfile.XGLTYPE:
        if found.keys() & {"path", "size", "linkpath"}:
            raise _damaged(store, name, data, "gives all members one name or size")
        return before
    size = found.get("size", "-1")
    if not size.removeprefix("-").isascii() or not size.removeprefix("-").isdigit():
        raise _damaged(store, name, data, f"has a size of {size[:20]!r}")
    return found.get("path", before[0]), int(size)


def _pax(store: Ranges, name: str, data: int, text: bytes) -> dict[str, str]:
    """Records ``LENGTH KEY=VALUE\\n``."""
    found = {}
    while text.strip(b"\0"):
        digits, _, _ = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = text[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(text) or not equals or not record.endswith(b"\n"):
            raise _damaged(store, name, data, "has an extended header that cannot be understood")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        text = text[length:]
    return found


def _refuse_path(store: Ranges, name: str, member: Member) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
        raise DataError(
            f"{store.place(name)}: member {member.name!r} names a place outside the shard; pack the data anew"
        )


class _Window:
    """Bytes of one tar by position, fetched some at a time."""

    def __init__(self, store: Ranges, name: str, size: int) -> None:
        self.store, self.name, self.size = store, name, size
        self.start, self.bytes = 0, b""

    def read(self, start: int, count: int) -> bytes:
        if not self.start <= start <= start + count <= self.start + len(self.bytes):
            end = min(max(start + AHEAD, start + count), self.size)
            found = self.store.ranges([(self.name, start, end)])[0]
            if isinstance(found, DataError):
                raise found
            self.start, self.bytes = start, found
        return self.bytes[start - self.start : start - self.start + count]


def _paired(store: Ranges, name: str, found: list[Member]) -> Iterator[Sample]:
    """Images with the labels that have the same key: the name up to the first dot of its last part."""
    parts: dict[str, dict[str, Member]] = {}
    for member in found:
        key, suffix = _split(member.name)
        if suffix in parts.setdefault(key, {}):
            raise DataError(f"{store.place(name)}: has {member.name!r} twice; pack the data anew")
        parts[key][suffix] = member
    window = _Window(store, name, max((member.offset + member.size for member in found), default=0))
    for key, group in parts.items():
        images = [member for suffix, member in group.items() if suffix in IMAGE_SUFFIXES]
        label = next((group[suffix] for suffix in LABEL_SUFFIXES if suffix in group), None)
        if len(images) != 1 or label is None:
            have = ", ".join(sorted(group))
            raise DataError(
                f"{store.place(name)}: {key!r} has {have}; classification needs one image and one of "
                f"{', '.join(LABEL_SUFFIXES)} for each key (masks and boxes in shards are not read)"
            )
        if label.size > MOST_EXTRA:
            raise DataError(f"{store.place(name)}: {label.name!r} has {label.size:,} bytes, too many for a label")
        text = _label(store, name, label, window.read(label.offset, label.size))
        yield Sample(name=images[0].name, offset=images[0].offset, size=images[0].size, label=text)


def _split(name: str) -> tuple[str, str]:
    folder, last = posixpath.split(name)
    stem, dot, suffix = last.partition(".")
    return posixpath.join(folder, stem), f"{dot}{suffix}".lower()


def _label(store: Ranges, name: str, member: Member, data: bytes) -> str:
    """The text of a label: as it is, or the ``label``, ``cls`` or ``class`` of a JSON object."""
    try:
        text = data.decode("utf-8").strip()
        if member.name.lower().endswith(".json"):
            said = json.loads(text)
            if isinstance(said, dict):
                said = next(said[key] for key in ("label", "cls", "class", "target") if key in said)
            if isinstance(said, bool) or not isinstance(said, int | str):
                raise ValueError(f"{said!r} is no label")
            text = str(said).strip()
        if not text or len(text) > 1000:
            raise ValueError(f"{len(text)} characters")
    except (UnicodeDecodeError, ValueError, StopIteration, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no label, cls, class or target in it"
        raise DataError(
            f"{store.place(name)}: {member.name!r} is no label ({reason}); write a number, a name, or JSON with label"
        ) from error
    return text


def _damaged(store: Ranges, name: str, place: int, why: str) -> DataError:
    return DataError(f"{store.place(name)}: at byte {place:,} {why}; fetch or pack it anew")


class TarShard:
    """A tar that is being written, the same bytes for the same samples: no times, no owners."""

    def __init__(self, add: Callable[[bytes], object]) -> None:
        self.add, self.size = add, 0

    def member(self, name: str, data: bytes) -> int:
        """Write one file; where its bytes begin."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        begins = self.size
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return begins

    def close(self) -> None:
        """Two empty blocks, and as many more as make a whole record."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self.add(data)
        self.size += len(data)


def weight(size: int, label: str) -> int:
    """Bytes that a sample takes in a tar: two headers and two files."""
    return sum(BLOCK + -(-count // BLOCK) * BLOCK for count in (size, len(label)))


def whole_tar(samples: list[tuple[str, bytes]]) -> bytes:
    """A tar in memory, of files by their names."""
    stream = io.BytesIO()
    shard = TarShard(stream.write)
    for name, data in samples:
        shard.member(name, data)
    shard.close()
    return stream.getvalue()
