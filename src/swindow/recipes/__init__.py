"""Named starting points for training: each says what it is for and, where it was measured, what it reaches how fast.

A recipe is a function of the facts about the data; what it returns is complete, and every value can be changed by
file or flag. `configure` picks one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from swindow.backbones import VARIANTS
from swindow.checkpoints import load
from swindow.config import merge
from swindow.data import Annotated, Scenes, open_data
from swindow.errors import ConfigError, UnknownName
from swindow.images import ImageLimits
from swindow.model import MODELS, composition, field_names
from swindow.recipes.classification import CLASSIFY
from swindow.recipes.deit import DEIT
from swindow.recipes.detection import DETECT
from swindow.recipes.facts import Facts, Recipe
from swindow.recipes.imagenet import IMAGENET
from swindow.recipes.pretraining import PRETRAIN
from swindow.recipes.segmentation import SEGMENT
from swindow.settings import TrainConfig

__all__ = [
    "CLASSIFY",
    "DEIT",
    "DETECT",
    "IMAGENET",
    "OF_TASK",
    "PRETRAIN",
    "RECIPES",
    "SEGMENT",
    "Facts",
    "Recipe",
    "configure",
]

OF_TASK: dict[str, dict[str, Recipe]] = {
    "classify": CLASSIFY | IMAGENET | DEIT,
    "segment": SEGMENT,
    "detect": DETECT,
    "pretrain": PRETRAIN,
}
RECIPES = {name: recipe for recipes in OF_TASK.values() for name, recipe in recipes.items()}


def configure(
    data: str,
    *,
    recipe: str = "auto",
    model: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    **changes: Any,
) -> TrainConfig:
    """Complete settings to train on `data`: the recipe's, with `changes` on top (nested values as dicts).

    ``auto`` takes the recipe by what the data is: fine-tuning when weights are given, else by image size; where images
    have masks, by whether one class is a background. A recipe to pretrain makes that the task. With batch ``auto``, the
    recipe's rates are those of its own batch, and follow the one that is found.

    Raises:
        ConfigError: no data named, or a setting that cannot be.
        DataError: the data cannot be opened.
    """
    if not data:
        raise ConfigError("no data: name a folder, a table, a torchvision dataset or digits: swindow train digits")
    asked = {"model": model, "size": size, "channels": channels}
    changes |= {"data": data, "recipe": recipe, **{name: value for name, value in asked.items() if value is not None}}
    if recipe in PRETRAIN and changes.get("task", "auto") == "auto":
        changes["task"] = "pretrain"
    checked = merge(TrainConfig(), changes)  # types and names, before anything is derived from them
    facts = _facts(checked, changes)
    name = _fitting(facts, checked) if recipe == "auto" else recipe
    if name not in RECIPES:
        raise UnknownName("recipe", name, ["auto", *RECIPES])
    if name not in OF_TASK[facts.task]:
        allowed = ", ".join(OF_TASK[facts.task])
        raise ConfigError(f"recipe {name} is not for data to {facts.task}; choose one of {allowed}, or auto")
    proposed = RECIPES[name](facts)
    if checked.batch == "auto":
        proposed = _following(proposed)
    if facts.task == "pretrain" and proposed.model == f"simmim_{model}":  # a backbone's name stands for its painter's
        changes["model"] = proposed.model
    return merge(proposed, {**changes, "recipe": name, "channels": facts.channels})


def _following(proposed: TrainConfig) -> TrainConfig:
    """The settings with rates that follow the batch, from what the recipe has for its own."""
    images = proposed.optim.lr_images or proposed.images * proposed.optim.accumulate
    return dataclasses.replace(proposed, optim=dataclasses.replace(proposed.optim, lr_images=images))


def _facts(checked: TrainConfig, changes: Mapping[str, Any]) -> Facts:
    """What the data is, and what was asked for or follows from the weights to start from."""
    asked = {name: changes.get(name) for name in ("model", "size", "channels")}
    fields: dict[str, Any] = {}
    if asked["model"] is not None:
        composition(asked["model"])
    known: dict[str, Any] = {}
    if checked.weights and asked["model"] is None:
        known, fields = _of_weights(checked.weights, pretrain=checked.task == "pretrain")
    source = open_data(
        checked.data,
        channels=asked["channels"] or known.get("channels"),
        seed=checked.seed,
        val_fraction=checked.val_fraction,
        limits=ImageLimits(max_pixels=checked.max_pixels),
        task=checked.task,
        masks=checked.masks,
        objects=checked.objects,
    )
    backbone = known["model"] if known.get("model") in VARIANTS and source.task != "classify" else None
    if backbone is not None:  # which head goes on it, and at what size, is the recipe's
        known |= {"model": None, "size": None}
    asked = {name: value if value is not None else known.get(name) for name, value in asked.items()}
    train = source.split("train")
    return Facts(
        images=len(train),
        classes=len(source.classes),
        channels=source.channels,
        side=min(source.image_size),
        longest=max(source.image_size),
        model=asked["model"],
        size=asked["size"],
        size_asked=changes.get("size") is not None,
        teacher=checked.teacher,
        fields=fields,
        task=source.task,
        backbone=backbone,
        background=isinstance(train, Scenes) and train.background is not None,
        masks=isinstance(train, Annotated) and train.has_masks,
        object_side=_object_side(train) if isinstance(train, Annotated) else 0.0,
    )


def _object_side(pictures: Annotated) -> float:
    """Of the objects of up to 64 pictures, the median of the square roots of their boxes' areas."""
    rows = range(0, len(pictures), max(len(pictures) // 64, 1))
    boxes = torch.cat([pictures.objects(row).boxes for row in rows])
    return float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().median()) if len(boxes) else 0.0


def _of_weights(path: str, *, pretrain: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model, size and channels of a checkpoint, and the fields that differ from the named model's.

    Of a head these are the fields of its shape; what it costs to be wrong is the recipe's. Of a pretrained model it is
    the backbone that counts, unless it is to be pretrained further.
    """
    model = load(path)
    config = model.config
    if config.head.task == "pretrain" and not pretrain:
        body = config.name.removeprefix("simmim_")
        config = dataclasses.replace(config, name=body, head=composition(body).head)
    usual = composition(config.name)
    size = max(model.preprocess.size) if model.preprocess else None
    known = {"model": config.name, "size": size, "channels": config.in_channels}
    own = dataclasses.asdict(config.backbone)
    before = dataclasses.asdict(usual.backbone)
    if config.name in MODELS:
        shape = ["decoder_depths", "decoder_window", "decoder_block", "decoder_width", "decoder_norm"]
        shape += ["pools", "auxiliary_width"]
        if config.head.task == "pretrain":
            shape = ["mask_patch", "mask_ratio", "norm_target"]
        if config.head.task == "detect":
            shape = [name for name in field_names(config.head) if name not in ("num_classes", "masks")]
        own |= {name: found for name in shape if (found := _within(config.head, name)) is not None}
        before |= {name: _within(usual.head, name) for name in field_names(usual.head)}
    return known, {name: value for name, value in own.items() if name != "drop_path" and before.get(name) != value}


def _within(config: Any, name: str) -> Any:
    """The value of a field, or of one within it (``regions.scales``); None for configs within and fields not there."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return None if dataclasses.is_dataclass(config) else config


def _fitting(facts: Facts, checked: TrainConfig) -> str:
    if facts.task == "pretrain":
        return "simmim-few-photos"
    if facts.task == "detect":
        return "finetune-objects" if checked.weights else "few-objects"
    if facts.task == "segment":
        return "finetune-masks" if checked.weights else "medical-slices" if facts.background else "few-masks"
    if checked.weights:
        return "finetune"
    if facts.side <= 16:
        return "tiny-images"
    return "small-images" if facts.side <= 64 else "few-photos"
