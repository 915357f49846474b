"""The saved states of a run, one folder a step: ``steps/step-00000042/``, each sealed by a manifest.

A state is written beside the others as ``step-….tmp-…``, sealed, and only then renamed; older ones go after it has been
read back. Which one is newest is what its verified manifest says, never a file's time or a folder's name alone.
"""

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swindow.checkpoints.files import naming, put, read_manifest, remove, seal, size_words, sync_folder, verify
from swindow.errors import CheckpointError

STEPS = "steps"
RESERVE = 2**20
"""Bytes that must stay free besides those of the tensors, for headers and facts."""

_NAME = re.compile(r"step-(\d{8,})(?:\.(tmp|old)-\w+)?")
_RANK = {"old": 0, None: 1, "tmp": 2}
"""Of folders of one step the later: what was replaced, what bears the name, what was sealed and about to bear it."""


class Steps:
    """The folder of a run's saved states. One process at a time may `begin`, `commit` and `tidy`; any may look."""

    def __init__(self, run: Path) -> None:
        self.folder = run / STEPS
        self.damaged: set[str] = set()
        """Names of folders that were found to be damaged; no more room is given to them than to older ones."""

    def exist(self) -> bool:
        """Whether there is anything that looks like a state, intact or not."""
        return any(True for _ in self._found())

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """The folder of the newest intact state; None when there has not been one. Damaged ones are told to `say`.

        Raises:
            CheckpointError: there are states, and all of them are damaged.
        """
        wrong: list[tuple[int, CheckpointError]] = []
        for step, rank, folder in sorted(self._found(), key=lambda found: found[:2], reverse=True):
            try:
                verify(folder)
            except CheckpointError as error:
                self.damaged.add(folder.name)
                if rank != _RANK["tmp"]:  # a draft that a crash cut short was never a state
                    wrong.append((step, error))
                continue
            for number, reason in wrong:
                say(f"step {number} is damaged ({reason}); going on from step {step}")
            return folder
        if wrong:
            raise CheckpointError(
                f"{self.folder}: all {len(wrong)} saved states are damaged ({wrong[0][1]}); "
                "restore one from a copy, or move the run's folder away to start again"
            )
        return None

    def begin(self, step: int, size: int) -> Path:
        """A new folder to write the state of `step` in, of `size` bytes.

        Raises:
            CheckpointError: there is no room, or the place cannot be written.
        """
        with naming(self.folder, f"cannot save step {step} here, {size_words(size)}"):
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                sync_folder(self.folder.parent)
            free = shutil.disk_usage(self.folder).free
            if free < size + RESERVE:
                raise CheckpointError(
                    f"{self.folder}: cannot save step {step} here: it takes {size + RESERVE} bytes "
                    f"({size_words(size + RESERVE)}) and {size_words(free)} are free; make room, "
                    "or give another --out; what was saved before is intact"
                )
            draft = self.folder / f"{_name(step)}.tmp-{uuid.uuid4().hex[:8]}"
            draft.mkdir()
        return draft

    def commit(self, draft: Path, step: int, facts: dict[str, dict[str, Any]]) -> Path:
        """Seal what was written in a draft, read it back, and give it its name, durably.

        Raises:
            OSError: the place cannot be written; call `abandon` then.
            CheckpointError: what is read back is not what was written.
        """
        seal(draft, facts, step=step)
        try:
            verify(draft)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.folder}: cannot save step {step} here: what is read back is not what was written ({error}); "
                "what was saved before is intact"
            ) from error
        path = self.folder / _name(step)
        put(draft, path)
        self.damaged.discard(path.name)
        return path

    def abandon(self, draft: Path) -> None:
        """Remove a draft that came to nothing, as far as that goes: nobody takes it for a state."""
        shutil.rmtree(draft, ignore_errors=True)

    def tidy(self, latest: Path, limit: int, keep: int, say: Callable[[str], None]) -> None:
        """Keep `latest`, which was verified, and of the states of steps below `limit`, its own, the `keep` − 1 newest.

        All else goes: later steps are of a future that was given up, or damaged.
        """
        older = [
            (step, folder)
            for step, rank, folder in self._found()
            if rank == _RANK[None] and step < limit and folder.name not in self.damaged and _sealed(folder)
        ]
        kept = {latest} | {folder for _, folder in sorted(older, reverse=True)[: keep - 1]}
        for folder in [folder for folder in self.folder.iterdir() if folder.name.startswith("step-")]:
            if folder not in kept:
                try:
                    remove(folder)
                except OSError as error:
                    say(f"{folder}: cannot remove this older state ({error.strerror or error}); it is tried again")

    def settle(self, latest: Path | None, say: Callable[[str], None]) -> Path | None:
        """After a crash: give `latest` its proper name and remove what was cut short; the state's folder now."""
        if latest is not None and _NAME.fullmatch(latest.name)[2]:  # type: ignore[index]
            path = self.folder / _name(_step_of(latest))
            put(latest, path)
            latest = path
        kept = {folder for _, rank, folder in self._found() if rank == _RANK[None]}
        for folder in [folder for folder in self.folder.glob("step-*") if folder not in kept]:
            try:
                remove(folder)
            except OSError as error:
                say(f"{folder}: cannot remove what a crash left ({error.strerror or error})")
        return latest

    def _found(self) -> list[tuple[int, int, Path]]:
        """Step, rank among those of one step, and folder, of all that may be a state."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in self.folder.iterdir():
                parts = _NAME.fullmatch(folder.name)
                if parts:
                    step = int(parts[1])
                    with contextlib.suppress(CheckpointError):
                        step = _step_of(folder)
                    found.append((step, _RANK[parts[2]], folder))
        return found


def newest_step(run: Path, say: Callable[[str], None]) -> Path | None:
    """The folder of a run's newest intact state; None when it has none.

    Raises:
        CheckpointError: there are states, and all of them are damaged.
    """
    return Steps(run).newest(say)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step_of(folder: Path) -> int:
    return int(read_manifest(folder)["step"])


def _sealed(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True
