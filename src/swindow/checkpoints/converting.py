"""A model in somebody else's format, so that their class loads it strictly."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from swindow.checkpoints.facts import huggingface_config, preprocessor_config
from swindow.checkpoints.files import write_atomic
from swindow.checkpoints.formats import FORMATS, Format, format_named
from swindow.checkpoints.loading import CARD, AssumedWarning, load
from swindow.checkpoints.own import WEIGHTS, card_text, save
from swindow.checkpoints.tables import State
from swindow.errors import CheckpointError, UnknownName
from swindow.model import Model

PICKLED = (".pth", ".pt", ".bin")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    prefer_ema: bool = False,
    say: Callable[[str], None] | None = None,
    **fields: Any,
) -> Path:
    """Write the model at `source` in the format `to`, as a ``.safetensors`` or ``.pth`` file or as a folder.

    Every parameter keeps its bytes; what a format stores besides parameters is computed. A folder is what Hugging
    Face's ``from_pretrained`` takes.

    Raises:
        CheckpointError: the source cannot be loaded, the format cannot express the model, the place cannot be written.
        UnknownName: no such format.
    """
    names = sorted({entry.name for entry in FORMATS} | {"swindow"})
    if to not in names:  # before a large file is read
        raise UnknownName("format", to, names)
    model = load(source, prefer_ema=prefer_ema, say=say, **fields)
    if to == "swindow":
        return save(model, target)
    if say is not None and format_named(to, model.config.backbone.kind).headless and model.config.head.num_classes:
        say(f"  {to} holds a backbone alone: the head stays behind")
    form = format_named(to, model.config.backbone.kind)
    if form.differs_on_small_maps(model.config.backbone):
        warnings.warn(
            f"{to}'s class has small_maps {form.small_maps!r} and this model {model.config.backbone.small_maps!r}: "  # type: ignore[union-attr]
            "the weights are the same, and outputs differ where a map is no larger than a window",
            AssumedWarning,
            stacklevel=2,
        )
    return save_as(model, target, to)


def save_as(model: Model, target: str | Path, to: str) -> Path:
    """Write a model in the format `to`.

    Raises:
        CheckpointError: the format cannot express the model, or the place cannot be written.
        UnknownName: no such format.
    """
    target, form = Path(target), format_named(to, model.config.backbone.kind)
    state = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    theirs = form.write(state, model.config.backbone)
    try:
        _write(theirs, target, form, model)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot write a checkpoint here ({error.strerror or error})") from error
    return target


def _write(state: State, target: Path, form: Format, model: Model) -> None:
    if target.suffix in PICKLED:
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state if form.entry is None else {form.entry: state}, buffer)
        write_atomic(target, buffer.getvalue())
        return
    # Tensors are copied, since a file of this kind refuses two names for one memory.
    separate = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(
        separate, metadata={"format": "pt", CARD: card_text(model, headless=form.headless)}
    )
    if target.suffix == ".safetensors":
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content)
    elif target.suffix:
        raise CheckpointError(f"{target}: give a .safetensors file, a .pth file or a folder to write to")
    else:
        target.mkdir(parents=True, exist_ok=True)
        write_atomic(target / WEIGHTS, content)
        if form.name == "huggingface":
            write_atomic(target / "config.json", json.dumps(huggingface_config(model), indent=2))
        if form.name == "huggingface" and model.preprocess is not None:
            write_atomic(
                target / "preprocessor_config.json", json.dumps(preprocessor_config(model.preprocess), indent=2)
            )
