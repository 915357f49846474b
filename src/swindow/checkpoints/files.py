"""Files that are there whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swindow.errors import CheckpointError

MANIFEST = "MANIFEST.json"


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Put `content` at `path`; a crash leaves the old file or the new one, never a part."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def folder_draft(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which then takes the place of `path`, sealed by a manifest of sizes and hashes.

    A folder cannot replace another in one step: between the two renames both stand beside each other under
    temporary names. `newest_sealed` therefore looks at every name and trusts only manifests.
    """
    tag = uuid.uuid4().hex[:8]
    draft, old = (path.with_name(f"{path.name}.tmp-{tag}"), path.with_name(f"{path.name}.old-{tag}"))
    draft.mkdir(parents=True)
    try:
        yield draft
        _seal(draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    draft.rename(path)
    sync_folder(path.parent)
    for stale in (*path.parent.glob(f"{path.name}.old-*"), *path.parent.glob(f"{path.name}.tmp-*")):
        shutil.rmtree(stale, ignore_errors=True)


def newest_sealed(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Of `path` and the drafts of it that a crash left, the intact one with the highest step, and its state.

    Newest is decided by the step that ``state.json`` records, never by file times.
    """
    found = []
    for folder in (path, *path.parent.glob(f"{path.name}.old-*"), *path.parent.glob(f"{path.name}.tmp-*")):
        with contextlib.suppress(CheckpointError):
            verify(folder)
            found.append((folder, json.loads((folder / "state.json").read_text())))
    return max(found, key=lambda item: item[1]["step"], default=None)


def verify(folder: Path) -> None:
    """Check every file of a sealed folder against its manifest.

    Raises:
        CheckpointError: no manifest, or a file that is missing, cut short or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable {MANIFEST}: not a finished checkpoint") from error
    for name, fact in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != fact["bytes"] or _sha256(path) != fact["sha256"]:
            raise CheckpointError(f"{path}: missing or damaged (its size or SHA-256 is not the one in {MANIFEST})")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; folders cannot be opened on Windows, where a rename already is."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    facts = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    write_atomic(folder / MANIFEST, json.dumps({"version": 1, "files": facts}, indent=1))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
