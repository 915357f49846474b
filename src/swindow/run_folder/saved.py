"""A saved state as it lies in a folder, and how its tensors get back into a model: from any layout into any.

Files: ``model.safetensors`` are the weights to use, whole. All else lies in ``training.safetensors``, or, where a model
was cut up, in one ``training-….safetensors`` a process, in the form of torch's `HuggingFaceStorageWriter`: safetensors
whose metadata say where in the whole tensor each piece belongs. Torch's own reader (torch.distributed.checkpoint) puts
together what is asked for, and needs no other process for it.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from swindow.errors import CheckpointError

STATE = "state.json"
TRAINING = "training.safetensors"
USABLE = "usable/"
"""How names of the weights to use begin in a run's state, and not in model.safetensors, which anybody may read."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """An intact saved state, whose tensors are read when `fill` is asked for them."""

    folder: Path
    facts: dict[str, Any]
    """Counters and scores: where the run stood."""
    shapes: dict[str, tuple[int, ...]]
    """Of its tensors in one piece, by the names that the run's `tensors` gave them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors, in the same order in every process."""
        return tuple(self.shapes)

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Copy what was saved into tensors of these names, in place, cut up as they are (`DTensor`) or whole.

        Every process reads what it needs, and none waits for another.

        Raises:
            CheckpointError: other names or shapes than those that were saved; the message lists the differences.
        """
        differences = list(self._differences(tensors))
        if differences:
            shown = "; ".join(differences[:10]) + ("; …" if differences[10:] else "")
            raise CheckpointError(
                f"{self.folder} is of another model or optimiser, {len(differences)} differences: {shown}"
            )
        wanted = {_stored(name): tensor.detach() for name, tensor in tensors.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
            try:
                load(wanted, storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=True)
            except (CheckpointException, OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder}: cannot be read ({first_cause(error)})") from error

    def _differences(self, tensors: dict[str, Tensor]) -> Iterator[str]:
        for name in sorted(self.shapes.keys() - tensors.keys()):
            yield f"{name} is saved and not wanted"
        for name in sorted(tensors.keys() - self.shapes.keys()):
            yield f"{name} is wanted and not saved"
        for name in sorted(tensors.keys() & self.shapes.keys()):
            saved, wanted = self.shapes[name], tuple(tensors[name].shape)
            if saved != wanted:
                yield f"{name} is {_by(saved)}, wanted {_by(wanted)}"


def open_saved(folder: Path) -> Saved:
    """The state in a folder that has been verified.

    Raises:
        CheckpointError: it is no state of a run.
    """
    try:
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a saved state of a run ({error})") from error
    shapes = {_named(name): tuple(getattr(entry, "size", ())) for name, entry in found.items()}
    return Saved(folder, facts, shapes)


def first_cause(error: BaseException) -> BaseException:
    """Of torch's report on several processes, the first one's error."""
    if isinstance(error, CheckpointException):
        return next((cause for cause, _ in error.failures.values()), error)
    return error


def _stored(name: str) -> str:
    return name.removeprefix(USABLE)


def _named(stored: str) -> str:
    return stored if "/" in stored else f"{USABLE}{stored}"


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
