"""Named starting points for training: each says what it is for and, where it was measured, what it reaches how fast.

A recipe is a function of the facts about the data; what it returns is complete, and every value can be changed by
file or flag. `configure` picks one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from swindow.backbones import VARIANTS
from swindow.checkpoints import load
from swindow.config import merge
from swindow.data import open_data
from swindow.data.augment import AugmentConfig
from swindow.errors import ConfigError, UnknownName
from swindow.images import ImageLimits
from swindow.optim import OptimConfig
from swindow.settings import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe is a function of: the data, and the choices that other settings follow from."""

    images: int
    """Training images."""
    classes: int
    """Classes."""
    channels: int
    """1 for grey data, 3 for colour."""
    side: int
    """Short side of a typical image, in pixels."""
    model: str | None = None
    """The model that the user asked for, or that the weights to start from are of."""
    size: int | None = None
    """The input size that the user asked for, or that of the weights to start from."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the model that the weights to start from were trained with."""


def tiny_images(facts: Facts) -> TrainConfig:
    """Scans, icons and the like of up to 16 pixels, from scratch.

    ``swindow train digits``: 99.4 % of the test images after 35 seconds on two CPU cores.
    """
    return TrainConfig(
        recipe="tiny-images",
        model=facts.model or "swin_nano",
        size=facts.size or facts.side,
        crop_ratio=1.0,
        epochs=_epochs(facts, images=45_000, least=20),
        batch=64,
        drop_path=0.0,
        label_smoothing=0.0,
        eval_every=2,
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.01, betas=(0.9, 0.95), ema=0.98),
        augment=AugmentConfig(affine=(10.0, 0.0625, 0.1)),
    )


def small_images(facts: Facts) -> TrainConfig:
    """Images of 17 to 64 pixels, such as MNIST's and CIFAR's families, from scratch.

    Fashion-MNIST, 55,000 images: 92.8 % of the test images after 12 minutes on two CPU cores.
    """
    return TrainConfig(
        recipe="small-images",
        model=facts.model or "swin_nano",
        fields={} if facts.model else {"patch": 4 if facts.side >= 28 else 2},
        size=facts.size or facts.side,
        crop_ratio=1.0,
        epochs=_epochs(facts, images=600_000, least=10),
        batch=128,
        drop_path=0.0,
        label_smoothing=0.0,
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.998),
        augment=AugmentConfig(crop="shift", shift=1, hflip=0.5),
    )


def few_photos(facts: Facts) -> TrainConfig:
    """Up to some ten thousand photographs, from scratch, on any machine.

    The Grocery Store photos, 992 in 21 classes: 73 % of the validation photos after 7 minutes on two CPU cores.
    """
    return TrainConfig(
        recipe="few-photos",
        model=facts.model or "swin_micro",
        fields={} if facts.model else {"patch": 4},
        size=facts.size or 64,
        crop_ratio=1.0,
        epochs=_epochs(facts, images=100_000, least=10),
        batch=64,
        drop_path=0.1,
        label_smoothing=0.1,
        eval_every=5,
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.998),
        augment=AugmentConfig(
            crop="resized", crop_scale=(0.35, 1.0), hflip=0.5, jitter=(0.3, 0.3, 0.3, 0.0), cutmix=1.0, mix_prob=0.5
        ),
    )


def finetune(facts: Facts) -> TrainConfig:
    """From weights trained on other images: low rate, decaying towards the early layers (Swin, appendix A2)."""
    return TrainConfig(
        recipe="finetune",
        model=facts.model or "swin_tiny",
        fields=facts.fields,
        size=facts.size or 224,
        epochs=30,
        batch=64,
        optim=OptimConfig(lr=5e-5, weight_decay=1e-8, warmup=0.1, layer_decay=0.8, clip=5.0),
        augment=AugmentConfig(crop="resized", hflip=0.5, randaugment_ops=2, randaugment_magnitude=9, erasing=0.25),
    )


RECIPES: dict[str, Callable[[Facts], TrainConfig]] = {
    "tiny-images": tiny_images,
    "small-images": small_images,
    "few-photos": few_photos,
    "finetune": finetune,
}


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

    ``auto`` takes the recipe by what the data is: fine-tuning when weights are given, else by image size.

    Raises:
        ConfigError: no data named, or a setting that cannot be.
        DataError: the data cannot be opened.
    """
    if not data:
        raise ConfigError("no data: name a folder, a table, a torchvision dataset or digits: swindow train digits")
    asked = {"model": model, "size": size, "channels": channels}
    changes |= {"data": data, "recipe": recipe, **{name: value for name, value in asked.items() if value is not None}}
    checked = merge(TrainConfig(), changes)  # types and names, before anything is derived from them
    facts = _facts(checked, changes)
    name = _fitting(facts, checked) if recipe == "auto" else recipe
    if name not in RECIPES:
        raise UnknownName("recipe", name, ["auto", *RECIPES])
    return merge(RECIPES[name](facts), {**changes, "recipe": name, "channels": facts.channels})


def _facts(checked: TrainConfig, changes: Mapping[str, Any]) -> Facts:
    """What the data is, and what was asked for or follows from the weights to start from."""
    asked = {name: changes.get(name) for name in ("model", "size", "channels")}
    fields: dict[str, Any] = {}
    if asked["model"] is not None and asked["model"] not in VARIANTS:
        raise UnknownName("model", asked["model"], VARIANTS)
    if checked.weights and asked["model"] is None:
        known, fields = _of_weights(checked.weights)
        asked = {name: value if value is not None else known[name] for name, value in asked.items()}
    limits = ImageLimits(max_pixels=checked.max_pixels)
    source = open_data(
        checked.data, channels=asked["channels"], seed=checked.seed, val_fraction=checked.val_fraction, limits=limits
    )
    return Facts(
        images=len(source.split("train")),
        classes=len(source.classes),
        channels=source.channels,
        side=min(source.image_size),
        model=asked["model"],
        size=asked["size"],
        fields=fields,
    )


def _of_weights(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model, size and channels of a checkpoint, and the fields of its backbone that differ from the variant's."""
    model = load(path)
    config, variant = model.config, VARIANTS.get(model.config.name)
    size = max(model.preprocess.size) if model.preprocess else None
    known = {"model": config.name, "size": size, "channels": config.in_channels}
    own = dataclasses.asdict(config.backbone)
    usual = dataclasses.asdict(variant) if variant else {}
    return known, {name: value for name, value in own.items() if name != "drop_path" and usual.get(name) != value}


def _epochs(facts: Facts, *, images: int, least: int) -> int:
    """Epochs that show about `images` training images in all: small sets need more passes, not less training."""
    return max(round(images / facts.images), least)


def _fitting(facts: Facts, checked: TrainConfig) -> str:
    if checked.weights:
        return "finetune"
    if facts.side <= 16:
        return "tiny-images"
    return "small-images" if facts.side <= 64 else "few-photos"
