"""Recipes for pictures with masks, of which every pixel has a class."""

from typing import Any

from swindow.data.augment import AugmentConfig
from swindow.optim import OptimConfig
from swindow.recipes.facts import Facts, Recipe, epochs_of
from swindow.settings import TrainConfig
from swindow.sliding import Views


def few_masks(facts: Facts) -> TrainConfig:
    """Up to some thousand photographs with masks, from scratch, on any machine: crops at the pictures' own scale.

    dubai-aerial, 48 pictures in five classes: 62.6 % mean IoU on the validation pictures after 12 minutes on two CPU
    cores.
    """
    epochs = epochs_of(facts, images=8_000, least=10)
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
    epochs = epochs_of(facts, images=30_000 if small else 10_000, least=5)
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
        epochs=epochs_of(facts, images=40_000, least=10),
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


SEGMENT: dict[str, Recipe] = {
    "few-masks": few_masks,
    "medical-slices": medical_slices,
    "finetune-masks": finetune_masks,
    "upernet-ade20k": upernet_ade20k,
    "swin-unet-synapse": swin_unet_synapse,
}
