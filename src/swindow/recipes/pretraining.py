"""Recipes for images without labels: parts are hidden and to be painted (SimMIM, Xie et al. 2022, arXiv 2111.09886)."""

from typing import Any

from swindow.backbones import VARIANTS, SwinV2Config
from swindow.data.augment import AugmentConfig
from swindow.optim import OptimConfig
from swindow.recipes.facts import Facts, Recipe, epochs_of
from swindow.settings import TrainConfig

SHORT, LONG = 100, 800
"""Epochs of the two published schedules."""


def simmim_few_photos(facts: Facts) -> TrainConfig:
    """Up to some ten thousand photographs, on any machine; then ``--recipe few-photos --weights RUN``."""
    return TrainConfig(
        recipe="simmim-few-photos",
        task="pretrain",
        model=_painter(facts, "swin_micro"),
        fields={"mask_patch": 16} | facts.fields | ({} if facts.model else {"patch": 4}),
        size=facts.size or 96,
        crop_ratio=1.0,
        epochs=epochs_of(facts, images=100_000, least=10),
        batch=64,
        drop_path=0.0,
        label_smoothing=0.0,
        eval_every=5,
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.998),
        augment=AugmentConfig(**_GENTLE),
    )


def simmim_imagenet1k(facts: Facts) -> TrainConfig:
    """SimMIM on ImageNet-1K as published, the long schedule: 800 epochs of 2,048 images a step.

    ``swindow train IMAGENET --recipe simmim-imagenet1k --model swin_base --devices 16``: published on sixteen V100 GPUs
    (a DGX-2) for Swin-B with windows of 6 tokens at 192 pixels; fine-tuned at 224 it has 84.0 % of the validation
    images, Swin-L (``swin_large``, windows of 12) 85.4 %. Swin V2-B (``swin_v2_base_w12``), which paints pixels
    normalised by their neighbourhood of 47, is published with 85.0 % after 500,000 steps; ViT-B (``vit_base``) at 224
    pixels with 83.8 %, which had relative position biases where ours has position embeddings. Takes days; the
    time is not published; not run here.
    """
    return _published(facts, "simmim-imagenet1k", LONG)


def simmim_imagenet1k_100(facts: Facts) -> TrainConfig:
    """SimMIM on ImageNet-1K as published, the short schedule: 100 epochs of 2,048 images a step.

    ``swindow train IMAGENET --recipe simmim-imagenet1k-100 --model swin_base --devices 16``: published for Swin-B with
    windows of 6 tokens at 192 pixels; fine-tuned it has 82.8 % of the validation images at 192 pixels and 83.5 % at
    224. Not run here, since it takes days.
    """
    return _published(facts, "simmim-imagenet1k-100", SHORT)


def _published(facts: Facts, recipe: str, epochs: int) -> TrainConfig:
    model = _painter(facts, "swin_base")
    variant = model.removeprefix("simmim_")
    is_v2 = isinstance(VARIANTS.get(variant), SwinV2Config)
    is_vit = variant.startswith(("vit", "deit"))
    fields = {"norm_target": 47} if is_v2 else {} if is_vit else {"window": 12 if "_large" in variant else 6}
    return TrainConfig(
        recipe=recipe,
        task="pretrain",
        model=model,
        fields=facts.fields | fields,
        size=facts.size or (224 if is_vit else 192),
        epochs=epochs,
        batch=2048,
        drop_path=0.1 if is_v2 or is_vit else 0.0,
        label_smoothing=0.0,
        eval_every=5,
        optim=_long() if epochs == LONG else _short(),
        augment=AugmentConfig(**_GENTLE),
    )


def _long() -> OptimConfig:
    """The rate falls to a tenth after 700 of 800 epochs."""
    return OptimConfig(
        lr=4e-4,
        lr_images=2048,
        weight_decay=0.05,
        warmup=10 / LONG,
        warmup_from=5e-3,
        decay="step",
        milestones=(700 / LONG,),
        clip=5.0,
    )


def _short() -> OptimConfig:
    return OptimConfig(
        lr=8e-4, lr_images=2048, weight_decay=0.05, warmup=10 / SHORT, warmup_from=5e-3, final=0.05, clip=5.0
    )


def _painter(facts: Facts, usual: str) -> str:
    model = facts.model or facts.backbone or usual
    return model if model.startswith("simmim_") else f"simmim_{model}"


_GENTLE: dict[str, Any] = {"crop": "resized", "crop_scale": (0.67, 1.0), "hflip": 0.5, "interpolation": "bilinear"}
"""What is to be painted is little changed before."""

PRETRAIN: dict[str, Recipe] = {
    "simmim-few-photos": simmim_few_photos,
    "simmim-imagenet1k": simmim_imagenet1k,
    "simmim-imagenet1k-100": simmim_imagenet1k_100,
}
