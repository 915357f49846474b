"""Named starting points for training: each says what it is for and, where it was measured, what it reaches how fast.

A recipe is a function of the facts about the data; what it returns is complete, and every value can be changed by
file or flag. `configure` picks one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from swindow.backbones import VARIANTS
from swindow.checkpoints import load
from swindow.config import merge
from swindow.data import Annotated, Scenes, open_data
from swindow.data.augment import AugmentConfig
from swindow.errors import ConfigError, UnknownName
from swindow.images import ImageLimits
from swindow.model import MODELS, composition, field_names
from swindow.optim import OptimConfig
from swindow.settings import TrainConfig
from swindow.sliding import Views


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
    longest: int
    """Its long side."""
    model: str | None = None
    """The model that the user asked for, or that the weights to start from are of."""
    size: int | None = None
    """The input size that the user asked for, or that of the weights to start from."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the model that the weights to start from were trained with."""
    task: str = "classify"
    """classify, segment where every pixel has a class, or detect where objects have boxes."""
    backbone: str | None = None
    """The variant whose classifier the weights to start from are, where the data is not for one."""
    background: bool = False
    """Whether one class of pixels is no object, as in medical data."""
    masks: bool = False
    """Whether objects have masks."""
    object_side: float = 0.0
    """Side of a square as large as a typical object, in pixels."""


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


def few_masks(facts: Facts) -> TrainConfig:
    """Up to some thousand photographs with masks, from scratch, on any machine: crops at the pictures' own scale.

    dubai-aerial, 48 pictures in five classes: 62.6 % mean IoU on the validation pictures after 12 minutes on two CPU
    cores.
    """
    epochs = _epochs(facts, images=8_000, least=10)
    return TrainConfig(
        recipe="few-masks",
        model=facts.model or "upernet_swin_micro",
        fields={"cross_entropy": 1.0, "dice": 0.5} | ({} if facts.model else {**_NARROW, "patch": 4, "window": 8}),
        size=facts.size or 256,
        fit="native",
        epochs=epochs,
        batch=8,
        drop_path=0.0,
        label_smoothing=0.0,
        eval_every=max(epochs // 6, 1),
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.98),
        augment=AugmentConfig(
            crop="scale",
            scale=(0.6, 1.5),
            hflip=0.5,
            vflip=0.5,
            quarter_turns=0.5,
            affine=(15.0, 0.0, 0.0),
            jitter=(0.3, 0.3, 0.3, 0.05),
        ),
    )


def medical_slices(facts: Facts) -> TrainConfig:
    """Slices and volumes with structures before a background, from scratch, on any machine.

    Small slices, of which there are many, are enlarged and seen by a Swin in one window, every stage's map a whole
    number of attention windows. Few large ones are a narrow ResNet's, which generalises from fewer (docs/log.md).
    On two CPU cores: msd-hippocampus, 72 volumes, 87.0 % mean Dice on the validation volumes after 9 minutes;
    sunnybrook-cardiac, 29 patients, 90.9 % Dice of the left ventricle on the validation patients after 8 minutes.
    """
    small = facts.longest <= 112
    shape = {**_NARROW, "patch": 4, "window": 6} if small else {**_NARROW, "width": 32}
    epochs = _epochs(facts, images=30_000 if small else 10_000, least=5)
    return TrainConfig(
        recipe="medical-slices",
        model=facts.model or ("upernet_swin_micro" if small else "upernet_resnet_18"),
        fields={"cross_entropy": 1.0, "dice": 1.0} | ({} if facts.model else shape),
        size=facts.size or (96 if small else 224),
        fit="native",
        zoom=float(min(max(round(72 / facts.longest), 1), 8)) if small else 1.0,
        epochs=epochs,
        batch=16 if small else 8,
        drop_path=0.0,
        label_smoothing=0.0,
        eval_every=max(epochs // 6, 1),
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.98),
        augment=AugmentConfig(
            crop="scale",
            scale=(0.8, 1.25),
            crop_most=1.0,
            affine=(20.0, 0.0, 0.0),
            gamma=0.5,
            jitter=(0.2, 0.2, 0.0, 0.0),
        ),
    )


_NARROW: dict[str, Any] = {"decoder_width": 64, "auxiliary": 0.0}
"""A decoder of convolutions learns from few pictures; one as wide as the published does not learn faster."""


def finetune_masks(facts: Facts) -> TrainConfig:
    """From weights trained on other pictures, with or without masks: crops at the pictures' own scale."""
    return TrainConfig(
        recipe="finetune-masks",
        model=facts.model or f"upernet_{facts.backbone or 'swin_tiny'}",
        fields=facts.fields,
        size=facts.size or 512,
        fit="native",
        epochs=_epochs(facts, images=40_000, least=10),
        batch=8,
        drop_path=0.2,
        label_smoothing=0.0,
        eval_every=5,
        optim=OptimConfig(lr=1e-4, weight_decay=0.01, warmup=0.05, decay="linear", layer_decay=0.9),
        augment=AugmentConfig(crop="scale", scale=(0.5, 2.0), hflip=0.5, jitter=(0.125, 0.5, 0.5, 0.1)),
    )


def upernet_ade20k(facts: Facts) -> TrainConfig:
    """UPerNet on ADE20K as published with Swin (Liu et al. 2021, appendix A2): 160,000 steps of 16 crops of 512 pixels.

    ``swindow train ade20k:ADEChallengeData2016 --recipe upernet-ade20k --weights swin_tiny.ms_in1k``: published on
    eight V100 GPUs with 44.5 % mIoU for Swin-T, 47.6 % for S and 48.1 % for B; not run here, since it takes days.
    """
    return TrainConfig(
        recipe="upernet-ade20k",
        model=facts.model or f"upernet_{facts.backbone or 'swin_tiny'}",
        fields=facts.fields,
        size=facts.size or 512,
        fit="short",
        steps=160_000,
        batch=16,
        drop_path=0.3,
        label_smoothing=0.0,
        eval_every=13,
        optim=OptimConfig(lr=6e-5, weight_decay=0.01, warmup=1_500 / 160_000, decay="linear"),
        augment=AugmentConfig(crop="scale", scale=(0.5, 2.0), hflip=0.5, jitter=(0.125, 0.5, 0.5, 0.1)),
        views=Views(mode="whole"),
    )


def swin_unet_synapse(facts: Facts) -> TrainConfig:
    """Swin-Unet on multi-organ CT as published (Cao et al. 2021, section 4.2): 150 epochs of 24 slices of 224 pixels.

    ``swindow train SYNAPSE --recipe swin-unet-synapse --weights swin_tiny.ms_in1k``: published on one V100 GPU with a
    mean Dice of 79.1 % over eight organs; not run here, since the data is given out on request only.
    """
    return TrainConfig(
        recipe="swin-unet-synapse",
        model=facts.model or "swin_unet",
        fields=facts.fields if facts.model else {"decoder_drop_path": 0.2 * 5 / 7},
        size=facts.size or 224,
        fit="squash",
        epochs=150,
        batch=24,
        drop_path=0.2,
        label_smoothing=0.0,
        eval_every=10,
        optim=OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4, warmup=0.0, decay="poly"),
        augment=AugmentConfig(crop="scale", scale=(1.0, 1.0), crop_most=1.0, hflip=0.5, quarter_turns=0.5),
        views=Views(mode="whole"),
    )


def mask_rcnn_coco_1x(facts: Facts) -> TrainConfig:
    """Mask R-CNN on COCO as published with Swin, the short schedule: 12 epochs of 16 pictures a step.

    ``swindow train coco/ --recipe mask-rcnn-coco-1x --weights swin_tiny.ms_in1k``: published on eight V100 GPUs with
    43.7 % box AP and 39.8 % mask AP for Swin-T; not run here, since it takes days.
    """
    return _coco(facts, "mask-rcnn-coco-1x", "mask_rcnn", epochs=12, falls=(8, 11), drop_path=0.1)


def mask_rcnn_coco_3x(facts: Facts) -> TrainConfig:
    """Mask R-CNN on COCO as published with Swin (Liu et al. 2021, section 4.2): 36 epochs of 16 pictures a step.

    ``swindow train coco/ --recipe mask-rcnn-coco-3x --weights swin_tiny.ms_in1k``: published on eight V100 GPUs with
    46.0 % box AP and 41.6 % mask AP for Swin-T, 48.5 % and 43.3 % for S; not run here, since it takes days.
    """
    return _coco(facts, "mask-rcnn-coco-3x", "mask_rcnn", epochs=36, falls=(27, 33), drop_path=0.2)


def cascade_coco_3x(facts: Facts) -> TrainConfig:
    """Cascade Mask R-CNN on COCO as published with Swin (Liu et al. 2021, section 4.2): 36 epochs, 16 pictures a step.

    ``swindow train coco/ --recipe cascade-coco-3x --weights swin_tiny.ms_in1k``: published on eight V100 GPUs with
    50.4 % box AP and 43.7 % mask AP for Swin-T, 51.9 % and 45.0 % for S and B; not run here, since it takes days.
    Swin-B has stochastic depth 0.3: ``--drop-path 0.3``.
    """
    return _coco(facts, "cascade-coco-3x", "cascade_mask_rcnn", epochs=36, falls=(27, 33), drop_path=0.2)


def _coco(
    facts: Facts, recipe: str, head: str, *, epochs: int, falls: tuple[int, int], drop_path: float
) -> TrainConfig:
    """What all published detectors with Swin have in common."""
    return TrainConfig(
        recipe=recipe,
        model=facts.model or f"{head}_{facts.backbone or 'swin_tiny'}",
        fields=facts.fields,
        size=facts.size or 800,
        longest=0 if facts.size else 1333,
        fit="within",
        epochs=epochs,
        batch=16,
        drop_path=drop_path,
        label_smoothing=0.0,
        optim=OptimConfig(
            lr=1e-4,
            weight_decay=0.05,
            warmup=500 / (epochs * max(facts.images // 16, 1) + 500),
            decay="step",
            milestones=tuple(fall / epochs for fall in falls),
        ),
        augment=AugmentConfig(crop="sides", sides=_SIDES, detr_crop=0.5, hflip=0.5),
    )


_SIDES = tuple(range(480, 801, 32))
"""Short sides in pixels of pictures in training, as DETR drew them first."""


def detr_coco(facts: Facts) -> TrainConfig:
    """DETR on COCO as published (Carion et al. 2020, section 4): 300 epochs of 64 pictures a step.

    ``swindow train coco/ --recipe detr-coco --weights resnet_50.tv_in1k``: published on 16 V100 GPUs in three days; 500
    epochs gave 42.0 % box AP for ResNet-50, 300 about 1.5 points less. Not run here.
    """
    return TrainConfig(
        recipe="detr-coco",
        model=facts.model or ("detr_resnet50" if facts.backbone in (None, "resnet_50") else f"detr_{facts.backbone}"),
        fields=facts.fields,
        size=facts.size or 800,
        longest=0 if facts.size else 1333,
        fit="within",
        epochs=300,
        batch=64,
        drop_path=0.1,
        label_smoothing=0.0,
        eval_every=5,
        optim=OptimConfig(
            lr=1e-4, backbone_share=0.1, weight_decay=1e-4, warmup=0.0, decay="step", milestones=(2 / 3,), clip=0.1
        ),
        augment=AugmentConfig(crop="sides", sides=_SIDES, detr_crop=0.5, hflip=0.5),
    )


def finetune_objects(facts: Facts) -> TrainConfig:
    """From weights trained on other pictures, with or without objects."""
    size = facts.size or 640
    return TrainConfig(
        recipe="finetune-objects",
        model=facts.model or f"mask_rcnn_{facts.backbone or 'swin_tiny'}",
        fields=facts.fields,
        size=size,
        fit="within",
        epochs=_epochs(facts, images=40_000, least=6),
        batch=4,
        drop_path=0.2,
        label_smoothing=0.0,
        optim=OptimConfig(
            lr=1e-4, weight_decay=0.05, warmup=0.02, decay="step", milestones=(0.75, 0.92), layer_decay=0.9, clip=5.0
        ),
        augment=AugmentConfig(
            crop="sides",
            sides=tuple(size * share // 10 for share in (6, 7, 8, 9, 10)),
            hflip=0.5,
            jitter=(0.2, 0.2, 0.2, 0.02),
        ),
    )


def few_objects(facts: Facts) -> TrainConfig:
    """Up to some thousand pictures with boxes or masks, from scratch, on any machine: a narrow Mask R-CNN on ResNet-18.

    Pictures are enlarged or reduced until typical objects have a side of 64 pixels, within a short side of 256 to 512.
    On two CPU cores: nuclei-dsb2018, 189 pictures with masks, 75.0 % mask AP50 and 74.0 % box AP50 (51.9 % mask AP) on
    the validation pictures after 21 minutes; BCCDLINE
    """
    fitting = round(facts.side * 64 / (facts.object_side or 64) / 32) * 32
    size = facts.size or min(max(fitting, 256), 512)
    epochs = _epochs(facts, images=12_000 * 320**2 // size**2, least=5)
    return TrainConfig(
        recipe="few-objects",
        model=facts.model or "mask_rcnn_resnet_18",
        fields={} if facts.model else _SLIM,
        size=size,
        fit="within",
        epochs=epochs,
        batch=4,
        drop_path=0.0,
        label_smoothing=0.0,
        eval_every=max(epochs // 8, 1),
        optim=OptimConfig(lr=1e-3, weight_decay=0.05, warmup=0.05, ema=0.99, clip=5.0),
        augment=AugmentConfig(crop="sides", hflip=0.5, vflip=0.5, jitter=(0.3, 0.3, 0.3, 0.05)),
    )


_SLIM: dict[str, Any] = {
    "width": 32,
    "pyramid_width": 64,
    "box_width": 256,
    "mask_width": 64,
    "samples": 128,
    "regions.candidates": (1000, 500),
    "regions.proposals": (500, 300),
    "most_detections": 300,
}
"""A detector that two cores train: few channels, few regions a step."""


CLASSIFY: dict[str, Callable[[Facts], TrainConfig]] = {
    "tiny-images": tiny_images,
    "small-images": small_images,
    "few-photos": few_photos,
    "finetune": finetune,
}
SEGMENT: dict[str, Callable[[Facts], TrainConfig]] = {
    "few-masks": few_masks,
    "medical-slices": medical_slices,
    "finetune-masks": finetune_masks,
    "upernet-ade20k": upernet_ade20k,
    "swin-unet-synapse": swin_unet_synapse,
}
DETECT: dict[str, Callable[[Facts], TrainConfig]] = {
    "few-objects": few_objects,
    "finetune-objects": finetune_objects,
    "mask-rcnn-coco-1x": mask_rcnn_coco_1x,
    "mask-rcnn-coco-3x": mask_rcnn_coco_3x,
    "cascade-coco-3x": cascade_coco_3x,
    "detr-coco": detr_coco,
}
OF_TASK = {"classify": CLASSIFY, "segment": SEGMENT, "detect": DETECT}
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
    have masks, by whether one class is a background.

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
    if name not in OF_TASK[facts.task]:
        allowed = ", ".join(OF_TASK[facts.task])
        raise ConfigError(f"recipe {name} is not for data to {facts.task}; choose one of {allowed}, or auto")
    return merge(RECIPES[name](facts), {**changes, "recipe": name, "channels": facts.channels})


def _facts(checked: TrainConfig, changes: Mapping[str, Any]) -> Facts:
    """What the data is, and what was asked for or follows from the weights to start from."""
    asked = {name: changes.get(name) for name in ("model", "size", "channels")}
    fields: dict[str, Any] = {}
    if asked["model"] is not None:
        composition(asked["model"])
    known: dict[str, Any] = {}
    if checked.weights and asked["model"] is None:
        known, fields = _of_weights(checked.weights)
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


def _of_weights(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model, size and channels of a checkpoint, and the fields that differ from the named model's.

    Of a head these are the fields of its shape; what it costs to be wrong is the recipe's.
    """
    model = load(path)
    config, usual = model.config, composition(model.config.name)
    size = max(model.preprocess.size) if model.preprocess else None
    known = {"model": config.name, "size": size, "channels": config.in_channels}
    own = dataclasses.asdict(config.backbone)
    before = dataclasses.asdict(usual.backbone)
    if config.name in MODELS:
        shape = ["decoder_depths", "decoder_window", "decoder_block", "decoder_width", "decoder_norm"]
        shape += ["pools", "auxiliary_width"]
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


def _epochs(facts: Facts, *, images: int, least: int) -> int:
    """Epochs that show about `images` training images in all: small sets need more passes, not less training."""
    return max(round(images / facts.images), least)


def _fitting(facts: Facts, checked: TrainConfig) -> str:
    if facts.task == "detect":
        return "finetune-objects" if checked.weights else "few-objects"
    if facts.task == "segment":
        return "finetune-masks" if checked.weights else "medical-slices" if facts.background else "few-masks"
    if checked.weights:
        return "finetune"
    if facts.side <= 16:
        return "tiny-images"
    return "small-images" if facts.side <= 64 else "few-photos"
