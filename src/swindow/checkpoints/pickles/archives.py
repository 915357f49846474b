"""The two kinds of file that torch.save writes: a zip of a pickle and storages, and before 1.6 a row of pickles."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .machine import Machine, Refused
from .tensors import WIDTHS, new_machine

PICKLE_BYTES = 64 << 20  # without storages; 400 tensors with their optimiser's state and a config take 0.3 MB
CONTENTS_BYTES = 4 << 20  # a zip's table of contents; that of 400 tensors takes 30 KB
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch before 1.6
DAMAGED_ZIP = (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError, OverflowError, EOFError)


@dataclass(frozen=True, slots=True)
class Slab:
    """Where a storage lies in the file, in bytes; the checksum is 0 where none was recorded."""

    start: int
    size: int
    checksum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What was saved, with notes instead of tensors, and where the storages lie."""

    tree: Any
    slabs: Mapping[str, Slab]
    size: int
    """Bytes of the file."""
    inert: set[str] = field(default_factory=set)
    """Names that the pickle would have imported."""


def open_archive(descriptor: int) -> Archive:
    """What a file of torch.save holds.

    Raises:
        Refused: it is none, is damaged or lies about itself.
    """
    # Unbuffered: other readers move the same descriptor.
    with io.FileIO(descriptor, closefd=False) as file:
        file.seek(0)
        start = file.read(2)
        if start == b"PK":
            return _zip(file)
        if start[:1] == b"\x80":
            return _legacy(file)
    raise Refused("is neither a zip nor a row of pickles, the two things that torch.save writes")


class _Bounded(io.FileIO):
    """A file that hands out no more at once than a table of contents of sensible length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > CONTENTS_BYTES:
            raise Refused(f"is a zip whose table of contents has {size:,} bytes; {CONTENTS_BYTES:,} are allowed")
        return super().read(size)


def _zip(file: io.FileIO) -> Archive:
    size = os.fstat(file.fileno()).st_size
    try:
        with _Bounded(file.fileno(), closefd=False) as bounded, zipfile.ZipFile(bounded) as archive:
            root = _root(archive.namelist())
            slabs = dict(_members(archive.infolist(), file, size))
    except DAMAGED_ZIP as error:
        raise Refused(f"is a zip that is cut short or damaged ({type(error).__name__}); fetch it again") from error
    order = slabs.get(f"{root}/byteorder")
    if order is not None and _content(file, order, 16).strip() != b"little":
        raise Refused("was written by a machine that puts the highest byte first; save it again on another")
    machine = new_machine()
    tree = machine.run(io.BytesIO(_content(file, slabs[f"{root}/data.pkl"], PICKLE_BYTES)))
    found = {key: slabs.get(f"{root}/data/{key}") for key in machine.storages}
    return Archive(tree=tree, slabs=_whole(found, machine), size=size, inert=machine.inert)


def _members(members: list[zipfile.ZipInfo], file: io.FileIO, size: int) -> Iterable[tuple[str, Slab]]:
    """Where each member's bytes lie: uncompressed, under a name of its own, in a place of its own."""
    end, names = 0, set()
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise Refused("is a compressed zip; torch.save compresses nothing: unpack it, and pack it with `zip -0`")
        if member.flag_bits & 1:
            raise Refused("is an encrypted zip; save it without a password")
        if member.header_offset < end or member.filename in names:
            raise Refused("is damaged: two members of its zip share a name or a place")
        file.seek(member.header_offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
        start = member.header_offset + 30 + name_length + extra_length
        end = start + member.file_size
        if signature != b"PK\3\4" or end > size:
            raise Refused("is a zip that is cut short or damaged: a member reaches beyond its end; fetch it again")
        names.add(member.filename)
        yield member.filename, Slab(start, member.file_size, member.CRC)


def _root(names: list[str]) -> str:
    """The one folder that the members lie in."""
    if any(name.endswith("/constants.pkl") for name in names):
        raise Refused("is a TorchScript archive, which holds a program; save the model's state_dict() instead")
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise Refused("is a zip, but not of torch.save: there must be one data.pkl in it; give a file of weights")
    return roots[0]


def _content(file: io.FileIO, slab: Slab, most: int) -> bytes:
    if slab.size > most:
        raise Refused(f"has a part of {slab.size:,} bytes where {most:,} are allowed")
    file.seek(slab.start)
    content = file.read(slab.size)
    if len(content) != slab.size or (slab.checksum and zlib.crc32(content) != slab.checksum):
        raise Refused("is damaged: a checksum in its zip is wrong; fetch it again")
    return content


def _legacy(file: io.FileIO) -> Archive:
    """Pickles of a magic number, a version, the system, the object and the storages' keys; then the storages."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    stream, machine = io.BytesIO(file.read(PICKLE_BYTES)), new_machine()
    if machine.run(stream) != MAGIC:
        some = ", ".join(sorted(machine.inert)[:3])
        asks = f" (it asks for {some}; nothing was run)" if some else ""
        raise Refused(f"is a bare pickle, not a file of torch.save{asks}; save a state_dict() with torch.save")
    version, system, tree, keys = (machine.run(stream) for _ in range(4))
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("was written by another kind of machine or of torch; save it again with a current one")
    unread = sorted(name for name in machine.inert if name.endswith("Storage"))
    if unread:  # their lengths are unknown, and so is where the next one starts
        raise Refused(f"holds tensors of unusual types ({', '.join(unread)}); save them as float32")
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or {*keys} != {*machine.storages}:
        raise Refused("is damaged: its list of storages is not that of its tensors")
    slabs = dict(_row(file, keys, machine, stream.tell()))
    return Archive(tree=tree, slabs=_whole(slabs, machine), size=size, inert=machine.inert)


def _row(file: io.FileIO, keys: list[str], machine: Machine, start: int) -> Iterable[tuple[str, Slab]]:
    """The storages of a file of torch before 1.6: each a count and its numbers."""
    for key in dict.fromkeys(keys):
        dtype, expected = machine.storages[key]
        file.seek(start)
        header = file.read(8)
        if len(header) != 8 or int.from_bytes(header, "little") != expected:
            raise Refused("is cut short or damaged: a storage has another length than its tensor says; fetch it again")
        yield key, Slab(start + 8, expected * WIDTHS[dtype])
        start += 8 + expected * WIDTHS[dtype]


def _whole(slabs: Mapping[str, Slab | None], machine: Machine) -> dict[str, Slab]:
    """The storages, each there and as long as its tensors say."""
    whole = {}
    for key, slab in slabs.items():
        dtype, count = machine.storages[key]
        if slab is None or slab.size != count * WIDTHS[dtype]:
            raise Refused("is damaged: a storage is missing or has another length than its tensor says; fetch it again")
        whole[key] = slab
    return whole
