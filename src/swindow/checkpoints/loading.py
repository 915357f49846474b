"""From a path or a name to a working model, whoever wrote the file; and from a file into a model that is there."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from swindow.backbones import ViTConfig
from swindow.backbones.windowed import WindowedConfig
from swindow.checkpoints.containers import Container, read_container
from swindow.checkpoints.describing import describe
from swindow.checkpoints.detectors import classes_of_coco
from swindow.checkpoints.evidence import Evidence
from swindow.checkpoints.facts import Facts, facts_of, facts_of_meta, usual_for_maps, usual_preprocess
from swindow.checkpoints.fitting import Weights, fit
from swindow.checkpoints.formats import FORMATS, recognise, refused
from swindow.checkpoints.hub import NamedWeights, resolve
from swindow.checkpoints.layouts import Format, Reading
from swindow.checkpoints.own import Card, find_weights, is_own, read_card, read_own
from swindow.checkpoints.reports import LoadReport
from swindow.checkpoints.rules import placed, restaged
from swindow.config import typed
from swindow.errors import CheckpointError, ConfigError, SwindowError, UnknownName
from swindow.model import MapBackbone, Model, ModelConfig, models
from swindow.preprocess import Preprocess

CARD = "swindow_card"


class AssumedWarning(UserWarning):
    """A file did not tell something that its model needs, and the usual was taken."""


def load(
    path: str | Path, *, prefer_ema: bool = False, say: Callable[[str], None] | None = None, **fields: Any
) -> Model:
    """A working model from a run folder, a checkpoint of ours, anyone's file or folder, or a published name.

    The model is in eval mode, on the CPU, and knows its preprocessing, its classes and, of a segmenter, their colours.

    Args:
        prefer_ema: of a file that holds averaged weights beside the others, take those.
        say: gets the report of what was loaded and assumed; by default only what was assumed is said, as a warning.
        fields: what the file does not tell (``window=16, image_size=256``), or another size to make its weights fit.

    Raises:
        CheckpointError: nothing there, in no format that we know, damaged, or not whole; the message says which.
        ConfigError: fields that contradict the tensors.
    """
    opened = open_weights(path, prefer_ema=prefer_ema, **fields)
    card = opened.card
    _check_size(opened)
    model = card.model.build()
    config = card.model
    state, report = fit(opened.weights, model.state_dict(), config.backbone, config.head, name=config.name)
    model.load_state_dict(state)
    model.preprocess, model.classes, model.colours = card.preprocess, card.classes, card.colours
    if say is not None:
        say(str(report))
    elif report.assumed:
        warnings.warn(f"{report.path.name}: assumed {'; '.join(report.assumed)}", AssumedWarning, stacklevel=2)
    return model.eval()


def load_weights(
    model: Model | MapBackbone,
    path: str | Path,
    *,
    head: Literal["strict", "reset"] = "strict",
    prefer_ema: bool = False,
    say: Callable[[str], None] | None = print,
    **fields: Any,
) -> LoadReport:
    """Fit the weights of a file to a model of perhaps another size, window, number of channels or of classes.

    Bias tables, absolute positions and first convolutions are resampled; V2's biases are evaluated anew. Everything
    fits or nothing is touched.

    Args:
        head: ``reset`` is for other classes or another task: what names the classes stays the model's own. Of a head
            of the same kind the rest is taken as far as it fits; a U-Net's decoder gets the blocks of an encoder that
            it is like, as Swin-Unet's does from an ImageNet Swin.
        say: gets the report, which is also returned.
        fields: what the file does not tell of itself.

    Raises:
        CheckpointError: what does not fit, all of it in one message, with what to do.
    """
    opened = open_weights(path, prefer_ema=prefer_ema, **fields)
    own = {_as_in_model(name): tensor for name, tensor in model.state_dict().items()}
    config = model.config.backbone if isinstance(model, Model) else model.body.config
    own_head = model.config.head if isinstance(model, Model) else None
    name = model.config.name if isinstance(model, Model) else config.kind
    state, report = fit(opened.weights, own, config, own_head, name=name, reset_head=head == "reset")
    names = {_as_in_model(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()})
    if say is not None:
        say(str(report))
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """Weights, and the model to load them into: theirs, or one of another size where fields said so."""

    weights: Weights
    card: Card


def open_weights(path: str | Path, *, prefer_ema: bool = False, **fields: Any) -> Opened:
    """Read a file and find out what it is.

    Raises:
        CheckpointError: nothing there, in no format that we know, damaged, or not whole; the message says which.
    """
    path = Path(path)
    if is_own(path):
        file = find_weights(path)
        card, state = read_own(file)
        weights = Weights(path=file, format="swindow", state=state, config=card.model)
        return Opened(weights=weights, card=_with(card, fields))
    if _is_published(path):
        file, entry = resolve(str(path))
        container = read_container(file, prefer_ema=prefer_ema)
        opened = _theirs(container, fields, _published(entry, container))
        model = dataclasses.replace(opened.card.model, name=entry.variant)  # a DeiT has the shape of a ViT
        return dataclasses.replace(opened, card=dataclasses.replace(opened.card, model=model))
    container = read_container(path, prefer_ema=prefer_ema)
    return _theirs(container, fields, facts_of(container.config, container.preprocessor))


def _is_published(path: Path) -> bool:
    """Whether this is no file but a name such as ``swin_tiny.ms_in1k``, of a model that there is."""
    return not path.exists() and len(path.parts) == 1 and path.name.split(".")[0] in models()


def _published(entry: NamedWeights, container: Container) -> Facts:
    """The facts of the table of names, and the classes that the config beside a segmenter's file names."""
    told = facts_of(container.config, None) if entry.beside else Facts()
    return Facts(
        fields={**told.fields, **entry.fields}, preprocess=entry.preprocess, classes=entry.class_names or told.classes
    )


def _theirs(container: Container, fields: Mapping[str, Any], facts: Facts) -> Opened:
    refusal = refused(container.tensors)
    if refusal is not None:
        raise CheckpointError(f"{container.path}: {refusal}")
    form = recognise(container.tensors)
    if form is None:
        some = ", ".join(list(container.tensors)[:3])
        raise CheckpointError(
            f"{container.path}: these tensors ({some}, …) are in no format that swindow knows; "
            f"it reads {', '.join(sorted({entry.name for entry in FORMATS}))}"
        )
    try:
        reading = form.read(container.tensors)
        if CARD in container.metadata:
            card, assumed = read_card(container.metadata[CARD], container.path), list[str]()
        else:
            card, assumed = _found_out(reading, form, container, fields, facts)
    except SwindowError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of shapes nobody expects
        raise CheckpointError(
            f"{container.path}: names as in the {form.name} format, but not its shapes; the file is unusable "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    opened = _with(card, fields)
    theirs, state = card.model.backbone, reading.state
    if isinstance(theirs, ViTConfig):
        state = restaged(state, theirs.depths)
    if isinstance(theirs, WindowedConfig):
        state = placed(state, theirs.grids[0])
    weights = Weights(
        path=container.path,
        format=form.name,
        state=state,
        config=card.model,
        dropped=(*reading.buffers, *reading.dropped),
        unknown=reading.unknown,
        assumed=tuple(assumed),
        notes=container.notes,
    )
    return Opened(weights=weights, card=opened)


def _found_out(
    reading: Reading, form: Format, container: Container, fields: Mapping[str, Any], facts: Facts
) -> tuple[Card, list[str]]:
    """Which model the tensors are of, by all evidence, and what had to be assumed."""
    file = container.path
    stem = file.parent.name if file.stem.startswith(("model", "pytorch_model")) else file.stem  # in a folder of its own
    evidence = Evidence(said=dict(fields), known=dict(facts.fields), stem=stem)
    config = describe(reading, form, evidence)
    preprocess = facts.preprocess
    if preprocess is None or preprocess.channels != config.in_channels:
        preprocess = _usual(config, evidence)
    data = facts_of_meta(container.meta)
    classes, colours = facts.classes or data.classes, facts.colours or data.colours
    count = config.head.num_classes
    if classes is None and (classes := classes_of_coco(config, form)) is not None:
        evidence.assumed.append(f"COCO's names, since the head has {count} classes as in the published weights")
    return Card(
        model=config,
        preprocess=preprocess,
        classes=classes if classes and len(classes) == count else None,
        colours=colours if colours and len(colours) == count else None,
    ), evidence.assumed


def _usual(config: ModelConfig, evidence: Evidence) -> Preprocess:
    """How pixels are prepared where nothing tells it, which is noted as assumed."""
    made_for, head = getattr(config.backbone, "image_size", 224), config.head.kind
    evidence.assumed.append(_USUAL.get(head, _USUAL_OF_DETECTORS))
    if head in ("classifier", "simmim"):
        return usual_preprocess(made_for, config.in_channels)
    return usual_for_maps(head, made_for, config.in_channels)


_LAYERS = ("encoder_layers", "decoder_layers", "box_convs", "box_linears", "mask_convs", "tower", "extra_levels")
"""Fields of a detector's head that say how many layers of a kind it has."""

_USUAL = {
    "classifier": "ImageNet's mean and deviation, bicubic resizing",
    "simmim": "ImageNet's mean and deviation, bicubic resizing",
    "upernet": "ImageNet's mean and deviation, the short side made 512 pixels bilinearly",
    "unet": "values in 0..1, grey ones in every channel, pictures stretched to the image size",
}
_USUAL_OF_DETECTORS = "ImageNet's mean and deviation, the short side made 800 pixels and the long one 1,333 at most"


def _with(card: Card, fields: Mapping[str, Any]) -> Card:
    """The model of a card with other fields of its backbone; V2 keeps the window that its biases were trained for.

    Raises:
        UnknownName: the model has no such field.
        ConfigError: other classes or channels or another head, which are not the backbone's to change.
    """
    old: Any = card.model.backbone
    allowed = [field.name for field in dataclasses.fields(old)]
    kept = {"in_channels": card.model.in_channels, **_fields_of(card.model.head)}
    for name in fields:
        if name not in allowed and name not in kept:
            raise UnknownName("field", name, allowed)
        if name not in allowed and _lists_as_tuples(fields[name]) != kept[name]:
            raise ConfigError(
                f"load keeps a file's {name}, {kept[name]!r}; for others: "
                f'swindow.load_weights(swindow.build(…, {name}={fields[name]}), path, head="reset")'
            )
    new = dataclasses.replace(old, **typed(type(old), {name: fields[name] for name in fields if name in allowed}))
    if hasattr(old, "pretrained_windows") and "pretrained_window" not in fields and new.windows != old.windows:
        new = dataclasses.replace(new, pretrained_window=old.pretrained_windows)
    preprocess = card.preprocess
    if preprocess is not None and "image_size" in fields:
        preprocess = dataclasses.replace(preprocess, size=_two(new.image_size))
    return dataclasses.replace(card, model=dataclasses.replace(card.model, backbone=new), preprocess=preprocess)


def _check_size(opened: Opened) -> None:
    """Refuse to build a model far larger than its weights, which a hostile description may ask for.

    Raises:
        CheckpointError: it is.
    """
    config: Any = opened.card.model.backbone
    held = sum(tensor.numel() for tensor in opened.weights.state.values())
    told = f"{opened.weights.path}: its description is of a model far larger than its weights; the file is unusable"
    head: Any = opened.card.model.head
    blocks = sum(config.depths) + sum(getattr(head, "decoder_depths", ())) + len(getattr(head, "pools", ()))
    blocks += (1 + sum(getattr(head, name, 0) for name in _LAYERS)) * len(getattr(head, "overlaps", (1,)))
    if blocks > len(opened.weights.state) or max(config.channels) > max(held, 1):
        raise CheckpointError(told)
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in opened.card.model.build().parameters())
    except RuntimeError as error:  # more than can be counted
        raise CheckpointError(told) from error
    if size > 8 * held + 10_000_000:  # another window or image size may enlarge tables
        raise CheckpointError(told)


def _fields_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _lists_as_tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _two(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _as_in_model(name: str) -> str:
    """The name that a tensor of a `MapBackbone` has in a `Model`."""
    return name.replace("body.", "backbone.", 1) if name.startswith("body.") else name
