"""A model in somebody else's format, so that their class loads it strictly."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from swindow.checkpoints.facts import huggingface_config, openmmlab_meta, preprocessor_config
from swindow.checkpoints.files import write_atomic
from swindow.checkpoints.formats import FORMATS, format_named
from swindow.checkpoints.layouts import Format
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
    form = _format_for(model, to)
    if say is not None and form.headless and model.config.head.num_classes:
        say(f"  {to} holds a backbone alone: the head stays behind")
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
    target, form = Path(target), _format_for(model, to)
    state = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    theirs = form.write(state, model.config.backbone, model.config.head)
    try:
        _write(theirs, target, form, model)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot write a checkpoint here ({error.strerror or error})") from error
    return target


def _format_for(model: Model, to: str) -> Format:
    config, head = model.config.backbone, model.config.head
    return format_named(to, config.kind, head.kind, of=(config, head))


def _write(state: State, target: Path, form: Format, model: Model) -> None:
    if target.suffix in PICKLED:
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        beside = {"meta": openmmlab_meta(model)} if form.with_meta else {}
        torch.save(state if form.entry is None else {**beside, form.entry: state}, buffer)
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
        beside = _huggingface(model) if form.name == "huggingface" else {}
        target.mkdir(parents=True, exist_ok=True)
        write_atomic(target / WEIGHTS, content)
        for name, about in beside.items():
            write_atomic(target / name, json.dumps(about, indent=2))


def _huggingface(model: Model) -> dict[str, Any]:
    """What lies beside the weights in a folder of Hugging Face's, by the files' names."""
    beside = {"config.json": huggingface_config(model)}
    about = model.preprocess and preprocessor_config(model.preprocess, task=model.task)
    if about:
        beside["preprocessor_config.json"] = about
    elif model.preprocess is not None:
        warnings.warn(
            f"transformers has no name for fit {model.preprocess.fit!r} and zoom {model.preprocess.zoom:g}: no "
            "preprocessor_config.json lies beside the weights, and pixels are yours to prepare",
            AssumedWarning,
            stacklevel=4,
        )
    return beside
