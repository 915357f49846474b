"""File operations as `faults.c` writes them down."""

import dataclasses
from pathlib import Path, PurePosixPath


@dataclasses.dataclass(frozen=True)
class Operation:
    """One that succeeded. Paths are relative to the folder that was watched."""

    kind: str
    path: PurePosixPath
    other: PurePosixPath | None = None
    """The new name, of a rename or link; None where that lies elsewhere."""
    offset: int = 0
    """Where a write went, or the length that a file was cut to."""
    length: int = 0
    content: bytes = b""

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" -> {self.other}" if self.other else "")


def read_log(log: Path, folder: Path) -> list[Operation]:
    """All operations, in order."""
    data, place, found = log.read_bytes(), 0, []
    root = folder.resolve()
    while place < len(data):
        end = data.index(b"\n", place)
        facts, _, other = data[place:end].decode().rpartition("\t")
        kind, offset, length, path = facts.split(" ", 3)
        content = data[end + 1 : end + 1 + int(length)]
        place = end + 1 + int(length)
        found.append(
            Operation(
                kind, _below(path, root), _below(other, root) if other else None, int(offset), int(length), content
            )
        )
    return found


def _below(path: str, root: Path) -> PurePosixPath:
    return PurePosixPath(path).relative_to(root)
