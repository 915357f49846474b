"""Files and folders that are there whole or not at all, and whose damage is seen before they are used.

All writing of checkpoints comes down to the few functions here, made of plain calls (mkdir, open, write, fsync, rename,
unlink), so that a test can stop a process between any two of them, or forget what had not been synced.

A folder is sealed by ``MANIFEST.json``: the size and SHA-256 of each of its files, and a digest of the manifest itself.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from swindow.errors import CheckpointError

MANIFEST = "MANIFEST.json"
VERSION = 2
"""Of the manifest; 1 had no digest of itself, and is still read."""
CHUNK = 4 * 2**20
"""Bytes that are hashed and written at a time: what was hashed is still in the processor's cache when it is written."""


def write_atomic(path: str | Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Put `content`, given whole or in pieces, at `path`; a crash leaves the old file or the new one, never a part."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_new(draft, content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_new(path: Path, content: bytes | str | Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file that must not be there yet and wait until it is on the disk; its size and hash, as they were meant.

    Its name is durable only after `sync_folder`.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in _pieces(content):
            digest.update(piece)
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def seal(folder: Path, facts: dict[str, dict[str, Any]], *, step: int | None = None) -> None:
    """Write the manifest of a folder whose files are on the disk; `facts` are those of `write_new`, by file name."""
    sync_folder(folder)
    content: dict[str, Any] = {"version": VERSION, "step": step, "files": dict(sorted(facts.items()))}
    content["digest"] = _digest(content)
    write_new(folder / MANIFEST, json.dumps(content, indent=1))
    sync_folder(folder)


@contextlib.contextmanager
def folder_draft(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which then takes the place of `path`, sealed.

    A folder cannot replace another in one step: between the two renames both stand beside each other under
    temporary names. `newest_sealed` therefore looks at every name and trusts only manifests.
    """
    draft = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    draft.mkdir(parents=True)
    try:
        yield draft
        seal(draft, {file.name: _synced(file) for file in draft.iterdir()})
        put(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for stale in _beside(path):
        remove(stale)


def put(draft: Path, path: Path) -> None:
    """Give a sealed folder its name, and wait until that is durable; what bore the name stays beside it as .old-…"""
    old = path.with_name(f"{path.name}.old-{uuid.uuid4().hex[:8]}")
    if path.exists():
        path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    sync_folder(path.parent)


def remove(folder: Path) -> None:
    """Remove a folder so that no crash leaves a part of it under a name that anybody looks for."""
    gone = folder
    if ".gone-" not in folder.name:
        gone = folder.with_name(f"{folder.name}.gone-{uuid.uuid4().hex[:8]}")
        folder.rename(gone)
        sync_folder(folder.parent)  # or a power loss could undo the rename, and not what comes next
    shutil.rmtree(gone)


def newest_sealed(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Of `path` and the drafts of it that a crash left, the intact one with the highest step, and its state.

    Newest is decided by the step that ``state.json`` records, never by file times.
    """
    found = []
    for folder in (path, *(folder for folder in _beside(path) if ".gone-" not in folder.name)):
        with contextlib.suppress(CheckpointError):
            verify(folder)
            found.append((folder, json.loads((folder / "state.json").read_text(encoding="utf-8"))))
    return max(found, key=lambda item: item[1]["step"], default=None)


def settle(path: Path) -> None:
    """After a crash in `folder_draft`: give the newest intact folder its name, and remove what is left of others."""
    if not _beside(path):
        return
    newest = newest_sealed(path)
    if newest is not None and newest[0] != path:
        put(newest[0], path)
    for stale in _beside(path):
        remove(stale)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest, whose own digest is right.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop("digest", None)
        intact = manifest["version"] == 1 or (manifest["version"] == VERSION and digest == _digest(manifest))
        intact = intact and all(fact.keys() == {"bytes", "sha256"} for fact in manifest["files"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise CheckpointError(f"{folder}: no readable {MANIFEST} ({reason}): not a finished checkpoint") from error
    if not intact:
        raise CheckpointError(f"{folder / MANIFEST}: damaged (it does not have the digest that it names)")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a sealed folder against its manifest, and return that.

    Raises:
        CheckpointError: no manifest, or a file that is missing, cut short or changed, or weights that it does not name.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        check_file(folder / name, manifest)
    strays = {path.name for path in folder.glob("*.safetensors")} - manifest["files"].keys()
    if strays:
        raise CheckpointError(f"{folder}: {', '.join(sorted(strays))} is not in its {MANIFEST}; move it elsewhere")
    return manifest


def check_file(path: Path, manifest: dict[str, Any]) -> None:
    """Check one file against the manifest of its folder.

    Raises:
        CheckpointError: it is missing, cut short or changed.
    """
    fact = manifest["files"].get(path.name)
    try:
        right = fact is not None and path.stat().st_size == fact["bytes"] and _sha256(path) == fact["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path}: missing or damaged ({error.strerror or error})") from error
    if not right:
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


def sync_file(path: Path) -> None:
    """Make a file's content durable, whoever wrote it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turn an operating system's error within into one line that names the place, what failed and why.

    Raises:
        CheckpointError: in place of any `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: {what} ({error.strerror or error})") from error


def size_words(count: int) -> str:
    """A number of bytes for people: ``340 MB``."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _beside(path: Path) -> list[Path]:
    """What a crash in `folder_draft` may have left of a folder under other names."""
    return [folder for kind in ("old", "tmp", "gone") for folder in path.parent.glob(f"{path.name}.{kind}-*")]


def _pieces(content: bytes | str | Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The content, CHUNK bytes at a time at most."""
    whole = content.encode() if isinstance(content, str) else content
    for part in [whole] if isinstance(whole, bytes) else whole:
        view = memoryview(part)
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _synced(path: Path) -> dict[str, Any]:
    sync_file(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    """The hash of what the disk holds: pages that were written before are read again where the system lets us."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
