"""The folder that a training run lives in: what it was asked, what it measured, and where to go on from.

config.toml         complete settings; `swindow train --config` runs them again
environment.json    versions, machine, commit
split.json          which image belongs to which split
metrics.jsonl       one JSON object per measurement
tensorboard/        the same as event files
steps/              saved states, one folder a step, the newest few: what an exact resume needs
best/               the weights that judged best
result.json         the final figures
progress/           of a segmenter: a few validation images as it saw them, step by step
report.html         all of it as one page

* `saved`: a state as it lies there; `snapshot`: as it is about to be written; `shards`: of a model that is cut up
* `lock`: one run at a time; `behind`: writing beside the run; `agreement`: errors that all processes hear of
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from swindow.checkpoints import save
from swindow.checkpoints.files import (
    MANIFEST,
    folder_draft,
    naming,
    newest_sealed,
    remove,
    settle,
    size_words,
    sync_file,
    sync_folder,
    write_atomic,
    write_new,
)
from swindow.checkpoints.steps import Steps
from swindow.checkpoints.streaming import refuse_unfinite
from swindow.config import dumps, from_dict, read_toml, to_dict
from swindow.distributed import ALONE, Ranks
from swindow.errors import CheckpointError, ConfigError
from swindow.model import Model
from swindow.run_folder.agreement import agree, by_first
from swindow.run_folder.behind import Work
from swindow.run_folder.lock import Lock
from swindow.run_folder.machine import environment
from swindow.run_folder.saved import STATE, Saved, open_saved
from swindow.run_folder.shards import talking
from swindow.run_folder.snapshot import Copies, Savable, Snapshot, take
from swindow.run_folder.writing import write

__all__ = ["RunFolder", "Savable", "Saved", "environment"]


class RunFolder:
    """A run's folder, held by one run at a time: `open` it, then use it as a context.

    Under several processes all of them call `open`, `save`, `finish_saving` and `save_best`, in the same order, and
    what fails in one is raised in all. The first one alone holds the lock and writes, but for the pieces of a model
    that is cut up.
    """

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as lost:
            if error is None:
                raise
            error.add_note(str(lost))
            self.say(str(lost))

    def __init__(
        self,
        path: str | Path,
        *,
        tensorboard: bool = False,
        keep: int = 2,
        behind: bool = False,
        ranks: Ranks = ALONE,
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        """`keep` states are kept, at least 1; with `behind` they are written while the run goes on; `say` hears of
        damaged states that are passed over.
        """
        if keep < 1:
            raise ConfigError(f"keep is {keep}; at least 1 state must be kept")
        self.keep, self.behind, self.ranks, self.say = keep, behind, ranks, say
        self.path = Path(path)
        self.lock = Lock(self.path)
        self.steps = Steps(self.path)
        self.work = Work()
        self.copies = Copies() if behind else None
        self.origin: dict[str, Any] = {}
        self.events: Any = None
        self.tensorboard = tensorboard
        self._group: Any = None

    def probe(self) -> None:
        """See that the folder can be written, or made, before any other work; nothing is left.

        Raises:
            ConfigError: it cannot.
        """
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        by_first(self.ranks, lambda: self._try(there))

    def open(self, config: Any, *, resume: bool, free: frozenset[str]) -> Saved | None:
        """Claim the folder for a run with `config`; return the state to go on from, or None for a fresh start.

        That is the newest that is intact; damaged ones are told of. `free` names settings that may differ from those
        the run was started with.

        Raises:
            ConfigError: the folder cannot be written, holds a run that `resume` does not ask for or that has other
                settings, or is in use by another process.
            CheckpointError: it holds saved states, and all of them are damaged.
        """
        self.origin = {"config": to_dict(config)}
        try:
            found = by_first(self.ranks, lambda: self._open(config, resume=resume, free=free))
        except BaseException:
            self.close()
            raise
        return found and dataclasses.replace(found, folder=self.path / found.folder)

    def close(self) -> None:
        """Let another process have the folder, once what is being written is.

        Raises:
            CheckpointError: that failed.
        """
        try:
            error = self.work.ended()
            if self.events is not None:
                self.events.close()
        finally:
            self.lock.release()
        if error is not None:
            raise error

    def save(self, state: Savable) -> None:
        """Write a state to go on from: a folder of its own in steps/, after which the oldest may go.

        With `behind` this waits for the save before, and for a copy in memory; errors then come up at the next call.

        Raises:
            CheckpointError: it cannot be written, or holds values that are not finite; those before are intact.
        """
        self.finish_saving()
        snapshot = take(state, self.ranks, self.origin, self.copies)
        if snapshot.is_sharded and self._group is None:
            self._group = talking()
        sizes = self.ranks.everyones(snapshot.size)
        draft = self.steps.folder / by_first(self.ranks, lambda: self.steps.begin(snapshot.step, sum(sizes)).name)
        self.work.start(lambda: self._write(snapshot, draft), behind=self.behind)
        if not self.behind:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: that failed, here or in another process.
        """
        agree(self.ranks, self.work.ended())

    def save_best(self, model: Model, facts: dict[str, Any]) -> None:
        """Replace best/.

        Raises:
            CheckpointError: it cannot be written, or holds values that are not finite; what was there is intact.
        """
        by_first(self.ranks, lambda: self._save_best(model, facts))

    def saved(self) -> Saved | None:
        """The newest intact state; None when the run was stopped before its first.

        Raises:
            CheckpointError: there are states, and all of them are damaged.
        """
        folder = self.steps.newest(self.say)
        if folder is not None:
            return open_saved(folder)
        last = newest_sealed(self.path / "last")  # as runs were saved before there were steps/
        if last is None:
            if any(self.path.glob("last*")):
                raise CheckpointError(
                    f"{self.path / 'last'} is damaged and there is no other state; move the folder away to start again"
                )
            return None
        old = open_saved(last[0])
        return dataclasses.replace(old, facts={"skipped": 0, "in_a_row": 0} | old.facts)

    def record(self, measurement: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and its numbers to the event files."""
        if not self.ranks.is_first:
            return
        path = self.path / "metrics.jsonl"
        with naming(path, "cannot write"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(measurement) + "\n")
        if self.tensorboard:
            self._events(measurement)

    def best(self) -> Path | None:
        """The folder of the best weights so far, whole even if a crash came while it was replaced."""
        newest = newest_sealed(self.path / "best")
        return newest[0] if newest else None

    def forget_after(self, step: int, *, judged: int) -> None:
        """Drop measurements that a resumed run will take again: of later steps, and evaluations after `judged`."""
        path = self.path / "metrics.jsonl"
        if self.ranks.is_first and path.exists():
            lines = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if _step_of(line) <= (judged if '"kind": "val"' in line else step)
            ]
            with naming(path, "cannot write"):
                write_atomic(path, "".join(line + "\n" for line in lines))

    def write_json(self, name: str, content: Any) -> None:
        """Write one of the folder's JSON files."""
        if self.ranks.is_first:
            with naming(self.path / name, "cannot write"):
                write_atomic(self.path / name, json.dumps(content, indent=1))

    def _write(self, snapshot: Snapshot, draft: Path) -> None:
        """All that this process does for a snapshot; in a thread when the run saves behind its own back."""
        what = f"cannot save step {snapshot.step} here, {size_words(snapshot.size)}; what was saved before is intact"
        try:
            with naming(draft, what):
                facts = write(snapshot, draft, self.ranks, self._group)
                if self.ranks.is_first:
                    self._sync_measurements()
                    latest = self.steps.commit(draft, snapshot.step, facts)
                    self.steps.tidy(latest, snapshot.step, self.keep, self.say)
                    self._drop_old_form()
        except BaseException:
            if self.ranks.is_first:
                self.steps.abandon(draft)
            raise

    def _sync_measurements(self) -> None:
        """What was measured before a state was saved is on the disk before the state is."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            sync_file(path)
            sync_folder(self.path)

    def _drop_old_form(self) -> None:
        """Remove last/, which a run was resumed from that had been saved before there were steps/."""
        if (self.path / "last" / MANIFEST).exists():
            remove(self.path / "last")

    def _save_best(self, model: Model, facts: dict[str, Any]) -> None:
        state = dict(model.state_dict())
        refuse_unfinite(state, f"the best model, of step {facts['step']},")
        with naming(self.path / "best", "cannot save the best weights here"), folder_draft(self.path / "best") as draft:
            save(model, draft)
            write_new(draft / STATE, json.dumps(facts))

    def _events(self, measurement: dict[str, Any]) -> None:
        step, kind = measurement["step"], measurement["kind"]
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for name, value in measurement.items():
            if isinstance(value, float):
                self.events.add_scalar(f"{kind}/{name}", value, step)

    def _open(self, config: Any, *, resume: bool, free: frozenset[str]) -> Saved | None:
        self._create()
        with naming(self.path, "cannot write here"):
            self.lock.take()
            for draft in (*self.path.glob(".*.????????.tmp"), *self.path.glob(".write-test-*")):  # a crash left them
                draft.unlink(missing_ok=True)
            settle(self.path / "best")
            found = self._begin(config, resume=resume, free=free)
        # The run's folder may have another path on another machine.
        return found and dataclasses.replace(found, folder=found.folder.relative_to(self.path))

    def _begin(self, config: Any, *, resume: bool, free: frozenset[str]) -> Saved | None:
        known = self.path / "config.toml"
        begun = self.steps.exist() or any(self.path.glob("last*")) or any(self.path.glob("best*"))
        if begun and not known.exists():
            raise ConfigError(f"{self.path} holds saved states and no config.toml; restore it, or give another --out")
        if not begun and not (resume and known.exists()):  # a run that failed before its first save holds nothing
            (self.path / "split.json").unlink(missing_ok=True)
            write_atomic(known, dumps(config))
            write_atomic(self.path / "environment.json", json.dumps(environment(), indent=1))
            return None
        if not resume:
            raise ConfigError(f"{self.path} already holds a run; add --resume to go on with it, or give another --out")
        self._refuse_changes(config, read_toml(known), free)
        write_atomic(known, dumps(config))
        return self._take_up()

    def _take_up(self) -> Saved | None:
        """The newest intact state, under its proper name, and nothing left of what a crash cut short."""
        saved = self.saved()
        of_steps = saved is not None and saved.folder.parent == self.steps.folder
        settled = self.steps.settle(saved.folder if saved is not None and of_steps else None, self.say)
        return saved if saved is None or settled is None else dataclasses.replace(saved, folder=settled)

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write here ({error.strerror}); give another --out") from error
        self._try(self.path)

    def _try(self, folder: Path) -> None:
        probe = folder / f".write-test-{os.getpid()}"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write here ({error.strerror}); give another --out") from error

    def _refuse_changes(self, config: Any, old: dict[str, Any], free: frozenset[str]) -> None:
        before, now = to_dict(from_dict(type(config), old)), to_dict(config)
        changes = [change for change in _differences(before, now) if change.split(":")[0].split(".")[0] not in free]
        if changes:
            raise ConfigError(
                f"{self.path} was started with other settings ({'; '.join(changes)}); "
                "resume with the same ones, or give another --out"
            )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if before == now else [f"{path}: {before!r} then, {now!r} now"]


def _step_of(line: str) -> int:
    """The step of a line of metrics.jsonl; a line that a crash cut short belongs to no step that is kept."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63
