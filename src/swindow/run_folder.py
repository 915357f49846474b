"""The folder that a training run lives in: what it was asked, what it measured, and where to go on from.

config.toml         complete settings; `swindow train --config` runs them again
environment.json    versions, machine, commit
split.json          which image belongs to which split
metrics.jsonl       one JSON object per measurement
tensorboard/        the same as event files
last/ best/         checkpoints; last/ also holds what an exact resume needs
result.json         the final figures
progress/           of a segmenter: a few validation images as it saw them, step by step
report.html         all of it as one page
"""

import dataclasses
import json
import os
import platform
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor

from swindow._version import __version__
from swindow.checkpoints import WEIGHTS, read_tensors, save
from swindow.checkpoints.files import folder_draft, newest_sealed, write_atomic
from swindow.config import dumps, from_dict, read_toml, to_dict
from swindow.distributed import ALONE, Ranks, laid_like
from swindow.errors import CheckpointError, ConfigError
from swindow.model import Model

TRAINING = "training.safetensors"


@dataclasses.dataclass(frozen=True)
class Saved:
    """An intact saved state, whose tensors are read when `fill` is asked for them."""

    folder: Path
    facts: dict[str, Any]
    """Counters and scores: where the run stood."""
    names: frozenset[str]
    """Of its tensors, as the run's `tensors` named them."""

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Copy what was saved into tensors of these names, in place, cut up as they are.

        Raises:
            CheckpointError: other names or shapes than those that were saved.
        """
        usable = {f"usable/{name}": tensor for name, tensor in read_tensors(self.folder / WEIGHTS)[1].items()}
        found = usable | read_tensors(self.folder / TRAINING)[1]
        if found.keys() != tensors.keys():
            raise CheckpointError(f"{self.folder} holds other tensors than this model and optimiser have")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(laid_like(found[name], tensor))


@runtime_checkable
class Savable(Protocol):
    """What a run saves: the model to use, and all that an exact resume needs besides."""

    @property
    def usable(self) -> Model: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def facts(self) -> dict[str, Any]: ...


class RunFolder:
    """A run's folder, held by one process at a time: `open` it, then use it as a context."""

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __init__(
        self, path: str | Path, *, tensorboard: bool = False, keep: int = 2, behind: bool = False, ranks: Ranks = ALONE
    ) -> None:
        self.keep, self.behind, self.ranks = keep, behind, ranks
        self.path = Path(path)
        self.lock = self.path / ".lock"
        self.events: Any = None
        self.tensorboard = tensorboard

    def open(self, config: Any, *, resume: bool, free: frozenset[str]) -> Saved | None:
        """Claim the folder for a run with `config`; return the state to go on from, or None for a fresh start.

        `free` names settings that may differ from those the run was started with.

        Raises:
            ConfigError: the folder cannot be written, holds a run that `resume` does not ask for or that has other
                settings, or is in use by another process.
        """
        self._create()
        self._claim()
        try:
            return self._begin(config, resume=resume, free=free)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the folder."""
        if self.events is not None:
            self.events.close()
        self.lock.unlink(missing_ok=True)

    def finish_saving(self) -> None:
        """Wait for what is being written."""

    def save(self, state: Savable) -> None:
        """Replace last/: weights to use, and what else it takes to go on."""
        with folder_draft(self.path / "last") as draft:
            save(state.usable, draft)
            plain = {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in state.tensors().items()
                if not name.startswith("usable/")
            }
            write_atomic(draft / TRAINING, safetensors.torch.save(plain))
            write_atomic(draft / "state.json", json.dumps(state.facts()))

    def save_best(self, model: Model, facts: dict[str, Any]) -> None:
        """Replace best/."""
        with folder_draft(self.path / "best") as draft:
            save(model, draft)
            write_atomic(draft / "state.json", json.dumps(facts))

    def saved(self) -> Saved | None:
        """The newest intact state; None when the run was stopped before its first.

        Raises:
            CheckpointError: there are states, and all of them are damaged.
        """
        newest = newest_sealed(self.path / "last")
        if newest is None:
            if any(self.path.glob("last*")):
                raise CheckpointError(
                    f"{self.path / 'last'} is damaged and there is no other state; move the folder away to start again"
                )
            return None
        folder, facts = newest
        names = [f"usable/{name}" for name in read_tensors(folder / WEIGHTS)[1]]
        return Saved(folder, facts, frozenset([*names, *read_tensors(folder / TRAINING)[1]]))

    def record(self, measurement: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and its numbers to the event files."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
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
        if path.exists():
            lines = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if _step_of(line) <= (judged if '"kind": "val"' in line else step)
            ]
            write_atomic(path, "".join(line + "\n" for line in lines))

    def write_json(self, name: str, content: Any) -> None:
        """Write one of the folder's JSON files."""
        write_atomic(self.path / name, json.dumps(content, indent=1))

    def _events(self, measurement: dict[str, Any]) -> None:
        step, kind = measurement["step"], measurement["kind"]
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for name, value in measurement.items():
            if isinstance(value, float):
                self.events.add_scalar(f"{kind}/{name}", value, step)

    def _begin(self, config: Any, *, resume: bool, free: frozenset[str]) -> Saved | None:
        known = self.path / "config.toml"
        begun = any(self.path.glob("last*")) or any(self.path.glob("best*"))
        if not known.exists() or not (begun or resume):  # a run that failed before its first save holds nothing
            (self.path / "split.json").unlink(missing_ok=True)
            write_atomic(known, dumps(config))
            write_atomic(self.path / "environment.json", json.dumps(environment(), indent=1))
            return None
        if not resume:
            raise ConfigError(f"{self.path} already holds a run; add --resume to go on with it, or give another --out")
        self._refuse_changes(config, read_toml(known), free)
        write_atomic(known, dumps(config))
        return self.saved()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write here ({error.strerror}); give another --out") from error

    def _claim(self) -> None:
        """One writer at a time: a lock file with host and process, taken over when that process is gone."""
        mine = f"{socket.gethostname()} {os.getpid()}"
        try:
            with self.lock.open("x") as file:
                file.write(mine)
        except FileExistsError:
            host, _, process = self.lock.read_text().partition(" ")
            if host == socket.gethostname() and (process == str(os.getpid()) or not _alive(process)):
                self.lock.write_text(mine)
                return
            raise ConfigError(
                f"{self.path} is in use by process {process} on {host}; wait, or delete {self.lock} if it is gone"
            ) from None

    def _refuse_changes(self, config: Any, old: dict[str, Any], free: frozenset[str]) -> None:
        before, now = to_dict(from_dict(type(config), old)), to_dict(config)
        changes = [change for change in _differences(before, now) if change.split(":")[0].split(".")[0] not in free]
        if changes:
            raise ConfigError(
                f"{self.path} was started with other settings ({'; '.join(changes)}); "
                "resume with the same ones, or give another --out"
            )


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants to repeat the run."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "swindow": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _processor() -> str:
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return str(capabilities.get("cpu_name") or platform.processor() or platform.machine())


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
    except (ValueError, KeyError):
        return 2**63


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
