"""Our own files: weights with all it takes to use them, a safetensors file whose metadata rebuilds the model.

A checkpoint is a folder with ``model.safetensors`` and, for people to read, ``model.toml``; the file alone is enough,
since the same text lies in its metadata. Nothing is ever unpickled.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from swindow.checkpoints.files import MANIFEST, check_file, naming, newest_sealed, read_manifest, write_atomic
from swindow.checkpoints.steps import STEPS, newest_step
from swindow.checkpoints.streaming import pieces
from swindow.config import dumps, from_dict, loads
from swindow.errors import CheckpointError, ConfigError
from swindow.model import Model, ModelConfig
from swindow.preprocess import Preprocess

WEIGHTS, FACTS, METADATA = "model.safetensors", "model.toml", "swindow"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What travels with weights: the model's shape, its pixels, its classes and their colours, who wrote them."""

    model: ModelConfig
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    swindow: str = ""


def save(model: Model, path: str | Path) -> Path:
    """Write a checkpoint folder, or one file when `path` ends in ``.safetensors``; return the path.

    Raises:
        CheckpointError: the place cannot be written.
    """
    path, text = Path(path), card_text(model)
    single = path.suffix == ".safetensors"
    with naming(path, "cannot write a checkpoint here"):
        (path.parent if single else path).mkdir(parents=True, exist_ok=True)
        if not single:
            (path / MANIFEST).unlink(missing_ok=True)  # it is of what was here before
        write_atomic(path if single else path / WEIGHTS, pieces(model.state_dict(), {METADATA: text}))
        if not single:
            write_atomic(path / FACTS, text)
    return path


def card_text(model: Model, *, headless: bool = False) -> str:
    """The card of a model, or of its backbone alone, as it lies in a file's metadata."""
    from swindow._version import __version__

    config, classes, colours = model.config, model.classes, model.colours
    if headless:
        classifier: Any = config.head
        config = dataclasses.replace(config, head=dataclasses.replace(classifier, num_classes=0))
        classes = colours = None
    return dumps(Card(model=config, preprocess=model.preprocess, classes=classes, colours=colours, swindow=__version__))


def read_own(file: Path) -> tuple[Card, dict[str, Tensor]]:
    """What a file of ours says of its model, and its tensors.

    Raises:
        CheckpointError: not a file of ours, or damaged; the message says which.
    """
    metadata, state = read_tensors(file)
    if METADATA not in metadata:
        raise CheckpointError(f"{file}: these weights do not say which model they are; only swindow's own files do")
    return read_card(metadata[METADATA], file), state


def read_card(text: str, source: Path) -> Card:
    """The card in a file's metadata.

    Raises:
        CheckpointError: this version of swindow cannot read it.
    """
    try:
        return from_dict(Card, loads(text, source=f"metadata of {source}"))
    except ConfigError as error:
        raise CheckpointError(
            f"{source}: its description cannot be read by this version of swindow: {error}"
        ) from error


def is_own(path: Path) -> bool:
    """Whether a run folder, a checkpoint folder or a file of ours is at this path."""
    if path.is_dir():
        return any((path / part).exists() for part in (FACTS, "best", STEPS, "last")) or is_own(path / WEIGHTS)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as reader:
            return METADATA in (reader.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False  # whoever reads it next says what is wrong


def find_weights(path: Path) -> Path:
    """The weights file that a run folder, a checkpoint folder or a file's own path leads to.

    Of a run that is the best, or else the newest intact state; a warning names newer ones that are damaged. Where a
    manifest lies beside the weights, they are checked against it.

    Raises:
        CheckpointError: none is found, or it is damaged; the message lists where it was looked for.
    """
    for candidate in (path, path / WEIGHTS, path / "best" / WEIGHTS):
        if candidate.is_file():
            if (candidate.parent / MANIFEST).exists():
                check_file(candidate, read_manifest(candidate.parent))
            return candidate
    best = newest_sealed(path / "best")  # a crash while it was replaced leaves it whole under another name
    folder = best[0] if best else newest_step(path, lambda line: warnings.warn(line, stacklevel=4))
    if folder is not None:
        return folder / WEIGHTS
    last = newest_sealed(path / "last")  # what there was before there were steps
    if last is not None:
        return last[0] / WEIGHTS
    if (path / "last" / WEIGHTS).is_file():
        return path / "last" / WEIGHTS
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    raise CheckpointError(f"{path}: no {WEIGHTS} in it, in best/ or in {STEPS}/; give a run folder or a checkpoint")


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
