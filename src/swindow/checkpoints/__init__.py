"""Weights with all it takes to use them: a safetensors file whose metadata rebuilds the model.

A checkpoint is a folder with ``model.safetensors`` and, for people to read, ``model.toml``; the file alone is enough,
since the same text lies in its metadata. Nothing is ever unpickled.
"""

import dataclasses
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from swindow.checkpoints.files import newest_sealed, write_atomic
from swindow.config import dumps, from_dict, loads, to_dict
from swindow.errors import CheckpointError, ConfigError
from swindow.model import Model, ModelConfig
from swindow.preprocess import Preprocess

WEIGHTS, FACTS = "model.safetensors", "model.toml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What travels with weights: the model's shape, its pixels, its classes, the version that wrote them."""

    model: ModelConfig
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    swindow: str = ""


def save(model: Model, path: str | Path) -> Path:
    """Write a checkpoint folder, or one file when `path` ends in ``.safetensors``; return the path.

    Raises:
        CheckpointError: the place cannot be written.
    """
    from swindow._version import __version__

    path = Path(path)
    card = Card(model=model.config, preprocess=model.preprocess, classes=model.classes, swindow=__version__)
    text = dumps(card)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = safetensors.torch.save(state, metadata={"swindow": text})
    single = path.suffix == ".safetensors"
    try:
        (path.parent if single else path).mkdir(parents=True, exist_ok=True)
        write_atomic(path if single else path / WEIGHTS, content)
        if not single:
            write_atomic(path / FACTS, text)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write a checkpoint here ({error.strerror or error})") from error
    return path


def load(path: str | Path) -> Model:
    """Rebuild a model from a run folder (its best weights), a checkpoint folder or a ``.safetensors`` file of ours.

    The model is in eval mode, on the CPU, and knows its preprocessing and classes.

    Raises:
        CheckpointError: nothing there, not a checkpoint of ours, or damaged; the message says which.
    """
    file = find_weights(Path(path))
    metadata, state = read_tensors(file)
    if "swindow" not in metadata:
        raise CheckpointError(f"{file}: these weights do not say which model they are; only swindow's own files do")
    try:
        card = from_dict(Card, loads(metadata["swindow"], source=f"metadata of {file}"))
    except ConfigError as error:
        raise CheckpointError(f"{file}: its description cannot be read by this version of swindow: {error}") from error
    model = card.model.build()
    load_state(model, state, source=file)
    model.preprocess, model.classes = card.preprocess, card.classes
    return model.eval()


def find_weights(path: Path) -> Path:
    """The weights file that a run folder, a checkpoint folder or a file's own path leads to.

    Raises:
        CheckpointError: none is found; the message lists where it was looked for.
    """
    candidates = [path, path / WEIGHTS, path / "best" / WEIGHTS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    for name in ("best", "last"):  # a crash while one was replaced leaves it whole under another name
        newest = newest_sealed(path / name)
        if newest is not None:
            return newest[0] / WEIGHTS
    if (path / "last" / WEIGHTS).is_file():
        return path / "last" / WEIGHTS
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    raise CheckpointError(f"{path}: no {WEIGHTS} in it, in best/ or in last/; give a run folder or a checkpoint")


def read_tensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        CheckpointError: the file is not safetensors, is cut short, or holds values that are not finite.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as reader:
            metadata = reader.metadata() or {}
            state = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{file}: {name} holds values that are not finite; the file is unusable")
    return metadata, state


def load_state(model: torch.nn.Module, state: dict[str, Tensor], *, source: Path, reset: tuple[str, ...] = ()) -> None:
    """Copy `state` into `model`, every tensor or none; names that start with one of `reset` may differ and are left.

    Raises:
        CheckpointError: any mismatch; one message names all missing, unexpected and misshapen tensors.
    """
    own = model.state_dict()
    given = {name: tensor for name, tensor in state.items() if not name.startswith(reset or ("\0",))}
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(reset or ("\0",))}
    problems = [f"missing {name}" for name in sorted(wanted.keys() - given.keys())]
    problems += [f"unexpected {name}" for name in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{name} is {tuple(given[name].shape)}, the model's is {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        raise CheckpointError(f"{source}: does not fit this model: {_shortened(problems)}")
    model.load_state_dict(own | given)


def describe(model: Model) -> dict[str, Any]:
    """A model's card as plain values, for reports."""
    return to_dict(Card(model=model.config, preprocess=model.preprocess, classes=model.classes))


def _shortened(problems: list[str], most: int = 10) -> str:
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more" if rest > 0 else "")
