"""``swindow info``, ``models`` and ``convert``: models as such."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch

from swindow.backbones import VARIANTS
from swindow.checkpoints import convert, load
from swindow.cli.arguments import Positional, height_and_width, parse
from swindow.counting import count, stage_table
from swindow.errors import UnknownName
from swindow.model import Model, build, models

USUAL = {"classify": (224, 224), "upernet": (512, 512), "unet": (224, 224), "detr": (800, 1066)}
DETECTED = (800, 1280)
"""Height and width in pixels that models are counted at when nobody says; detectors, as papers count them."""
NAMED = ("swin_unet", "swin_unet_v2", *(f"upernet_swin_{size}" for size in ("tiny", "small", "base", "large")))
"""Segmentation models that are listed without a pattern; there is one for every backbone and each of two heads."""
FINDERS = ("mask_rcnn", "cascade_mask_rcnn", "retinanet", "detr")
"""Heads of detectors: before any backbone's name, each makes a model."""


@dataclasses.dataclass(frozen=True)
class Info:
    """Parameters, multiply-accumulates, activations and the stage table of a model."""

    name: Annotated[str, Positional]
    """A model's name, a run folder, anyone's weights or a published name."""
    size: tuple[int, ...] = ()
    """Height and width, or one number for a square; by default the run's own, or what models of its kind are usually
    counted at."""
    classes: int | None = None
    """Number of classes, for a model by name; by default 1,000, of a UPerNet 150, of a U-Net 9 and of a detector 80."""
    channels: int = 3
    """Image channels, for a model by name."""


@dataclasses.dataclass(frozen=True)
class Models:
    """The models that match a shell pattern, with their size; without one, backbones and well-known segmenters."""

    pattern: Annotated[str, Positional] = ""
    """Such as swin_*, upernet_*, mask_rcnn_swin_* or '*' for all."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a model's weights in another format, so that its own library loads them strictly."""

    source: Annotated[str, Positional]
    """A run folder, a checkpoint, anyone's weights file or folder, or a published name."""
    target: Annotated[Path, Positional]
    """A .safetensors or .pth file, or a folder (what from_pretrained takes)."""
    to: str
    """swindow, timm, torchvision, huggingface, openmmlab, facebook, microsoft, microsoft_dense, …_simmim."""
    window: int | None = None
    """Side of the windows, where the source does not tell it."""
    image_size: int | None = None
    """Side of the images that the model is made for, where the source does not tell it."""
    prefer_ema: bool = False
    """Of a file that holds averaged weights beside the others, take those."""


def info_command(words: list[str]) -> int:
    """Parameters, multiply-accumulates and stages of a model."""
    asked = parse(Info, words, prog="swindow info")
    model = _model_to_count(asked.name, asked.classes, asked.channels)
    counts = count(model, _size_to_count(asked.size, model))
    height, width = counts.size
    print(
        f"{asked.name}: {counts.parameters:,} parameters; for one {height}x{width} image "
        f"{counts.macs / 1e9:.3f} G multiply-accumulates (as its paper counts; "
        f"{counts.product_macs / 1e9:.3f} as torchvision does, products alone) "
        f"and {counts.activations / 1e6:.2f} M activations\n"
    )
    print(stage_table(counts))
    return 0


def models_command(words: list[str]) -> int:
    """The models that there are."""
    pattern = parse(Models, words, prog="swindow models").pattern
    names = models(pattern) if pattern else sorted(VARIANTS)
    if not names:
        raise UnknownName("model", pattern, models())
    if not pattern:
        print("to classify, and as backbones:")
    _list(names)
    if not pattern:
        print("\nto segment:")
        _list(NAMED)
        print("and any of the first list after upernet_ or unet_: swindow models 'upernet_*' lists them")
        print("\nto find objects:")
        print(f"any of the first list after {', '.join(f'{head}_' for head in FINDERS[:-1])} or {FINDERS[-1]}_,")
        print("detr_resnet50 and detr_resnet101: swindow models 'mask_rcnn_swin_*' lists some with their size")
        print("\nto pretrain without labels:")
        print("any Swin, Swin V2, ViT or DeiT after simmim_: swindow models 'simmim_*' lists them")
    return 0


def convert_command(words: list[str]) -> int:
    """Weights in somebody else's format."""
    asked = parse(Convert, words, prog="swindow convert")
    fields = {name: getattr(asked, name) for name in ("window", "image_size") if getattr(asked, name) is not None}
    path = convert(asked.source, asked.target, to=asked.to, prefer_ema=asked.prefer_ema, say=print, **fields)
    print(path)
    return 0


def _list(names: Iterable[str]) -> None:
    """One line for each model."""
    for name in names:
        model = _model_to_count(name, None, 3)
        size = _made_for(model)
        counts = count(model, size)
        side = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
        macs = f"{counts.macs / 1e9:7.2f} G MACs at {side} px"
        print(f"{name:24} {counts.parameters / 1e6:6.1f} M parameters  {macs}", flush=True)


def _model_to_count(name: str, classes: int | None, channels: int) -> Model:
    """A model by name, without memory for its weights, or the one in a file."""
    if name not in models() and (Path(name).exists() or "." in name or "/" in name):  # a path or a published name
        return load(name)
    with torch.device("meta"):
        return build(name, num_classes=classes, in_channels=channels)


def _size_to_count(asked: tuple[int, ...], model: Model) -> tuple[int, int]:
    size = height_and_width(asked)
    if size is not None:
        return size
    if model.preprocess is not None:
        return model.preprocess.size
    return _made_for(model)


def _made_for(model: Model) -> tuple[int, int]:
    """Height and width of the images that a variant is made for."""
    if model.task in ("classify", "pretrain"):
        size = getattr(model.backbone.config, "image_size", USUAL["classify"])
        return (size, size) if isinstance(size, int) else size
    return USUAL.get(model.config.head.kind, DETECTED)
