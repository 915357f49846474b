"""Recipes for pictures with objects."""

from typing import Any

from swindow.data.augment import AugmentConfig
from swindow.optim import OptimConfig
from swindow.recipes.facts import Facts, Recipe, epochs_of
from swindow.settings import TrainConfig


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
        epochs=epochs_of(facts, images=40_000, least=6),
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
    the validation pictures after 21 minutes; bccd, 205 pictures in three classes, 89.9 % box AP50 (58.0 % AP) after 19
    minutes, the best of which it reached after five.
    """
    fitting = round(facts.side * 64 / (facts.object_side or 64) / 32) * 32
    size = facts.size or min(max(fitting, 256), 512)
    epochs = epochs_of(facts, images=12_000 * 320**2 // size**2, least=5)
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


DETECT: dict[str, Recipe] = {
    "few-objects": few_objects,
    "finetune-objects": finetune_objects,
    "mask-rcnn-coco-1x": mask_rcnn_coco_1x,
    "mask-rcnn-coco-3x": mask_rcnn_coco_3x,
    "cascade-coco-3x": cascade_coco_3x,
    "detr-coco": detr_coco,
}
