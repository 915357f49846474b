"""A disk that forgets: which names and contents a sequence of file operations leaves after a power cut."""

import dataclasses
import random
from pathlib import Path, PurePosixPath
from typing import Any

from chaos.operations import Operation

SECTOR = 512
ROOT = 0


@dataclasses.dataclass(frozen=True)
class Loss:
    """How much of what was not synced survives."""

    names: float
    """Probability that a name that was made, changed or removed is so on the disk."""
    content: float
    """Probability that a write is on the disk."""
    torn: bool = False
    """A write that is not may be there up to some sector."""
    zeros: bool = False
    """A file that lost a write may have its length, and zeros in its place."""


@dataclasses.dataclass
class _Change:
    """A name in a folder: `node` is what it means from now on, None that it is gone."""

    folder: int
    name: str
    node: int | None
    synced: bool = False


@dataclasses.dataclass
class _Write:
    """Bytes into a file, or a cut to a length."""

    node: int
    offset: int
    content: bytes | None
    synced: bool = False


@dataclasses.dataclass(frozen=True)
class Tree:
    """Files and folders by path."""

    files: dict[PurePosixPath, bytes]
    folders: set[PurePosixPath]

    def lay_out(self, folder: Path) -> None:
        """Write them below a folder, which is made."""
        folder.mkdir(parents=True)
        for path in sorted(self.folders):
            (folder / path).mkdir(exist_ok=True)
        for path, content in self.files.items():
            (folder / path).write_bytes(content)

    def digest(self, digest: Any) -> str:
        """Its fingerprint; `digest` is a new hash."""
        for path in sorted(self.folders):
            digest.update(f"{path}/\n".encode())
        for path, content in sorted(self.files.items()):
            digest.update(f"{path} {len(content)}\n".encode() + content)
        return digest.hexdigest()


class Disk:
    """What was done to an empty folder, and what of it was synced. Names are of nodes: a folder that is renamed keeps
    what is in it."""

    def __init__(self, operations: list[Operation]) -> None:
        self.names: dict[int, dict[str, int]] = {ROOT: {}}
        """Folders, by their node, as they are in memory."""
        self.nodes = 1
        self.groups: list[list[_Change]] = []
        """Changes of names; those of one group, such as a rename's two, are on the disk together or not at all."""
        self.writes: list[_Write] = []
        for operation in operations:
            getattr(self, f"_{operation.kind}")(operation)

    def after_power_loss(self, loss: Loss, chance: random.Random) -> Tree:
        """What the disk holds when some of what was not synced is gone."""
        names: dict[int, dict[str, int]] = {}
        for group in self.groups:
            if all(change.synced for change in group) or chance.random() < loss.names:
                for change in group:
                    inside = names.setdefault(change.folder, {})
                    if change.node is None:
                        inside.pop(change.name, None)
                    else:
                        inside[change.name] = change.node
        contents: dict[int, bytearray] = {}
        for write in self.writes:
            _apply(write, contents.setdefault(write.node, bytearray()), loss, chance)
        return self._tree(names, contents)

    def _tree(self, names: dict[int, dict[str, int]], contents: dict[int, bytearray]) -> Tree:
        tree = Tree({}, set())
        rest = [(PurePosixPath(), ROOT)]
        while rest:
            path, folder = rest.pop()
            for name, node in names.get(folder, {}).items():
                if node in self.names:
                    tree.folders.add(path / name)
                    rest.append((path / name, node))
                else:
                    tree.files[path / name] = bytes(contents.get(node, b""))
        return tree

    def _place(self, path: PurePosixPath) -> tuple[int, str]:
        folder = ROOT
        for part in path.parts[:-1]:
            folder = self.names[folder][part]
        return folder, path.name

    def _node(self, path: PurePosixPath) -> int:
        if not path.parts:
            return ROOT
        folder, name = self._place(path)
        return self.names[folder][name]

    def _change(self, *changes: _Change) -> None:
        for change in changes:
            if change.node is None:
                self.names[change.folder].pop(change.name, None)
            else:
                self.names[change.folder][change.name] = change.node
        self.groups.append(list(changes))

    def _create(self, operation: Operation) -> None:
        self._change(_Change(*self._place(operation.path), self._new()))

    def _mkdir(self, operation: Operation) -> None:
        if operation.path.parts:  # the watched folder itself is always there
            node = self._new()
            self.names[node] = {}
            self._change(_Change(*self._place(operation.path), node))

    def _new(self) -> int:
        self.nodes += 1
        return self.nodes - 1

    def _write(self, operation: Operation) -> None:
        self.writes.append(_Write(self._node(operation.path), operation.offset, operation.content))

    def _truncate(self, operation: Operation) -> None:
        self.writes.append(_Write(self._node(operation.path), operation.offset, None))

    def _rename(self, operation: Operation) -> None:
        if operation.other is None:
            raise ValueError(f"{operation}: renamed to outside of what is watched")
        node = self._node(operation.path)
        self._change(_Change(*self._place(operation.other), node), _Change(*self._place(operation.path), None))

    def _link(self, operation: Operation) -> None:
        if operation.other is None:
            raise ValueError(f"{operation}: linked to outside of what is watched")
        self._change(_Change(*self._place(operation.other), self._node(operation.path)))

    def _unlink(self, operation: Operation) -> None:
        self._change(_Change(*self._place(operation.path), None))

    _rmdir = _unlink

    def _reopen(self, operation: Operation) -> None:
        """To open what is there changes nothing."""

    def _sync(self, operation: Operation) -> None:
        node = self._node(operation.path)
        for write in self.writes:
            write.synced |= write.node == node
        for change in (change for group in self.groups for change in group):
            change.synced |= change.folder == node


def _apply(write: _Write, content: bytearray, loss: Loss, chance: random.Random) -> None:
    """One write, or what is left of it."""
    if write.content is None:
        if write.synced or chance.random() < loss.content:
            del content[write.offset :]
        return
    kept = write.content
    if not write.synced and chance.random() >= loss.content:
        whole = len(kept)
        kept = kept[: chance.randrange(whole // SECTOR + 1) * SECTOR] if loss.torn else b""
        if loss.zeros:
            kept += bytes(whole - len(kept))
    if kept:
        content.extend(bytes(max(write.offset + len(kept) - len(content), 0)))
        content[write.offset : write.offset + len(kept)] = kept
