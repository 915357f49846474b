"""Swin on ImageNet as published: the settings of the original repository's configs at commit f82860b.

None was run here: each takes days on several GPUs. Times are not published. ``--batch`` and ``optim.accumulate`` may
be others: the rates follow in proportion, as there. What differs from the original: pixels that are erased hold noise
within 0..255, not beyond, and images are resized with antialiasing by torchvision on tensors, not by Pillow.
"""

from typing import Any

from swindow.backbones import VARIANTS, SwinV2Config
from swindow.data.augment import AugmentConfig
from swindow.optim import OptimConfig
from swindow.recipes.facts import Facts, Recipe
from swindow.settings import TrainConfig

STRONG: dict[str, Any] = {
    "crop": "resized",
    "hflip": 0.5,
    "randaugment_ops": 2,
    "randaugment_magnitude": 9,
    "randaugment_form": "timm",
    "randaugment_noise": 0.5,
    "erasing": 0.25,
    "erasing_fill": "noise",
    "mixup": 0.8,
    "cutmix": 1.0,
}
"""What Swin, DeiT and fine-tuning after SimMIM have in common; colour jitter is off where RandAugment is on (timm)."""


def swin_imagenet1k(facts: Facts) -> TrainConfig:
    """Swin from scratch on ImageNet-1K (Liu et al. 2021, section 4.1): 300 epochs of 1,024 images a step.

    ``swindow train IMAGENET --recipe swin-imagenet1k --model swin_tiny --devices 8``: published on eight GPUs (V100 in
    the paper) with 81.2 % of the validation images for T, 83.2 % for S and 83.5 % for B at 224 pixels. Takes days; the
    time is not published.
    """
    model = facts.model or "swin_tiny"
    return _from_scratch(facts, "swin-imagenet1k", model, size=224, fields=facts.fields)


def swinv2_imagenet1k(facts: Facts) -> TrainConfig:
    """Swin V2 from scratch on ImageNet-1K at 256 pixels (Liu et al. 2022): 300 epochs of 1,024 images a step.

    ``swindow train IMAGENET --recipe swinv2-imagenet1k --model swin_v2_tiny_w8 --devices 8``: published with 81.8 % of
    the validation images for T, 83.7 % for S and 84.2 % for B with windows of 8 tokens; with windows of 16
    (``swin_v2_tiny_w16``) 82.8 %, 84.1 % and 84.6 %. Takes days; the time is not published.
    """
    model = facts.model or "swin_v2_tiny_w8"
    return _from_scratch(facts, "swinv2-imagenet1k", model, size=256, fields=facts.fields)


def _from_scratch(facts: Facts, recipe: str, model: str, *, size: int, fields: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        recipe=recipe,
        model=model,
        fields=fields,
        size=facts.size or size,
        epochs=300,
        batch=1024,
        drop_path=by_size(model, tiny=0.2, small=0.3, base=0.5, large=0.5),
        label_smoothing=0.1,
        optim=OptimConfig(
            lr=1e-3, lr_images=1024, weight_decay=0.05, warmup=20 / 300, warmup_from=1e-3, final=0.01, clip=5.0
        ),
        augment=AugmentConfig(**STRONG),
    )


def swin_imagenet1k_finetune_384(facts: Facts) -> TrainConfig:
    """Swin-B from 224 to 384 pixels with windows of 12 tokens, on ImageNet-1K: 30 epochs of 1,024 images a step.

    ``swindow train IMAGENET --recipe swin-imagenet1k-finetune-384 --weights swin_base.ms_in1k --devices 8``: published
    on eight GPUs with 84.5 % of the validation images for B. Takes days; the time is not published.
    """
    model, fields = larger_windows(facts, "swin_base", "_384", window=12)
    return _finetuned(
        facts, "swin-imagenet1k-finetune-384", model, fields, size=384, drop_path=by_size(model, base=0.5), whole=True
    )


def swin_imagenet22k(facts: Facts) -> TrainConfig:
    """Swin from scratch on ImageNet-22K (Liu et al. 2021, section 4.1): 90 epochs of 4,096 images a step.

    ``swindow train IMAGENET22K --recipe swin-imagenet22k --model swin_base --devices 8 --optim.accumulate 8 --batch
    512``: published with no figure of its own; what it is for is ``swin-imagenet22k-to-1k``. Takes days; the
    time is not published.
    """
    model = facts.model or "swin_base"
    drop_path = by_size(model, tiny=0.1)
    return _on_22k(facts, "swin-imagenet22k", model, size=224, drop_path=drop_path, weight_decay=0.05)


def swinv2_imagenet22k(facts: Facts) -> TrainConfig:
    """Swin V2 from scratch on ImageNet-22K at 192 pixels, windows of 12 tokens: 90 epochs of 4,096 images a step.

    ``swindow train IMAGENET22K --recipe swinv2-imagenet22k --model swin_v2_base_w12 --devices 8 --batch 512
    --optim.accumulate 8``: published with no figure of its own; what it is for is
    ``swinv2-imagenet22k-to-1k``. Takes days; the time is not published.
    """
    model = facts.model or "swin_v2_base_w12"
    return _on_22k(facts, "swinv2-imagenet22k", model, size=192, drop_path=0.2, weight_decay=0.1)


def _on_22k(facts: Facts, recipe: str, model: str, *, size: int, drop_path: float, weight_decay: float) -> TrainConfig:
    return TrainConfig(
        recipe=recipe,
        model=model,
        fields=facts.fields,
        size=facts.size or size,
        epochs=90,
        batch=4096,
        drop_path=drop_path,
        label_smoothing=0.1,
        optim=OptimConfig(
            lr=1e-3, lr_images=4096, weight_decay=weight_decay, warmup=5 / 90, warmup_from=1e-3, final=0.01, clip=5.0
        ),
        augment=AugmentConfig(**STRONG),
    )


def swin_imagenet22k_to_1k(facts: Facts) -> TrainConfig:
    """Swin pretrained on ImageNet-22K, fine-tuned on ImageNet-1K: 30 epochs of 1,024 images a step.

    ``swindow train IMAGENET --recipe swin-imagenet22k-to-1k --weights swin_base.ms_in22k --devices 8``: published with
    80.9 % of the validation images for T, 83.2 % for S, 85.2 % for B and 86.3 % for L; with ``--size 384``, for which
    windows have 12 tokens, 86.4 % for B and 87.3 % for L. Takes days; the time is not published.
    """
    if facts.size_asked and facts.size is not None and facts.size >= 384:
        model, fields = larger_windows(facts, "swin_base", "_384", window=12)
    else:
        model, fields = facts.model or "swin_base", facts.fields
    drop_path = by_size(model, tiny=0.1)
    whole = facts.size_asked and (facts.size or 0) >= 384
    return _finetuned(facts, "swin-imagenet22k-to-1k", model, fields, size=224, drop_path=drop_path, whole=whole)


def swinv2_imagenet22k_to_1k(facts: Facts) -> TrainConfig:
    """Swin V2 pretrained on ImageNet-22K at 192 pixels, fine-tuned on ImageNet-1K at 256: 30 epochs of 1,024 images.

    ``swindow train IMAGENET --recipe swinv2-imagenet22k-to-1k --weights swin_v2_base_w12.ms_in22k --devices 8``:
    published with 86.2 % of the validation images for B and 86.9 % for L with windows of 16 tokens; with ``--size
    384``, for which windows have 24, 87.1 % for B and 87.6 % for L. Position biases stay measured by windows of 12.
    Takes days; the time is not published.
    """
    large = facts.size_asked and (facts.size or 0) >= 384
    model, fields = larger_windows(
        facts, "swin_v2_base_w12", "to24" if large else "to16", window=24 if large else 16, pretrained_window=12
    )
    return _finetuned(facts, "swinv2-imagenet22k-to-1k", model, fields, size=256, drop_path=0.2, whole=large)


def _finetuned(
    facts: Facts, recipe: str, model: str, fields: dict[str, Any], *, size: int, drop_path: float, whole: bool
) -> TrainConfig:
    """`whole`: in evaluation the whole image is squeezed into the square, as published at 384 pixels."""
    return TrainConfig(
        recipe=recipe,
        model=model,
        fields=fields,
        size=facts.size if facts.size and facts.size_asked else size,
        fit="squash" if whole else "crop",
        epochs=30,
        batch=1024,
        drop_path=drop_path,
        label_smoothing=0.1,
        optim=OptimConfig(
            lr=4e-5, lr_images=1024, weight_decay=1e-8, warmup=5 / 30, warmup_from=1e-3, final=0.01, clip=5.0
        ),
        augment=AugmentConfig(**STRONG),
    )


def simmim_finetune(facts: Facts) -> TrainConfig:
    """From SimMIM's weights to a classifier on ImageNet-1K (Xie et al. 2022): 100 epochs of 2,048 images a step.

    ``swindow train IMAGENET --recipe simmim-finetune --weights PRETRAIN_RUN --devices 16``: published on sixteen V100
    GPUs (a DGX-2), with what is under ``simmim-imagenet1k``, from 800 epochs of pretraining. The rate falls by a factor
    a layer towards the image: 0.8 for Swin-B, 0.7 for L, 0.75 for Swin V2, 0.65 for ViT. After 100 epochs
    of pretraining it was 0.9: ``--optim.layer-decay 0.9``. Takes days; the time is not published.
    """
    model = facts.model or "swin_base"
    is_vit = model.startswith(("vit", "deit"))
    is_v2 = isinstance(VARIANTS.get(model), SwinV2Config)
    decay = 0.65 if is_vit else 0.75 if is_v2 else by_size(model, tiny=0.8, small=0.8, base=0.8, large=0.7)
    return TrainConfig(
        recipe="simmim-finetune",
        model=model,
        fields=facts.fields | ({"pool": "mean_norm"} if is_vit else _windows_at_224(facts, model)),
        size=facts.size if facts.size and facts.size_asked else 224,
        epochs=100,
        batch=2048,
        drop_path=by_size(model, tiny=0.1, small=0.1, base=0.1, large=0.1 if is_v2 or is_vit else 0.2),
        label_smoothing=0.1,
        optim=OptimConfig(
            lr=5e-3,
            lr_images=2048,
            weight_decay=0.05,
            warmup=20 / 100,
            warmup_from=2e-4,
            final=2e-4,
            layer_decay=decay,
            clip=5.0,
        ),
        augment=AugmentConfig(**STRONG),
    )


def _windows_at_224(facts: Facts, model: str) -> dict[str, Any]:
    """Windows that divide the maps of 224 pixels as those of pretraining divided the maps of 192."""
    variant = VARIANTS.get(model)
    if isinstance(variant, SwinV2Config):
        stages = len(facts.fields.get("depths", variant.depths))
        return {"window": 14, "pretrained_window": (12,) * (stages - 1) + (6,)}
    return {"window": 14 if "_large" in model else 7}


def by_size(model: str, *, tiny: float = 0.2, small: float = 0.2, base: float = 0.2, large: float = 0.2) -> float:
    """What goes by the size in a model's name; what is named otherwise counts as tiny."""
    sizes = {"small": small, "base": base, "large": large, "huge": large, "giant": large}
    return next((value for name, value in sizes.items() if f"_{name}" in model), tiny)


def larger_windows(facts: Facts, usual: str, suffix: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """The variant with windows for larger images where there is one, else the same model with other `fields`."""
    model = facts.model or usual
    if model.endswith(suffix):
        return model, facts.fields
    if model + suffix in VARIANTS and not facts.fields:
        return model + suffix, {}
    return model, facts.fields | fields


IMAGENET: dict[str, Recipe] = {
    "swin-imagenet1k": swin_imagenet1k,
    "swin-imagenet1k-finetune-384": swin_imagenet1k_finetune_384,
    "swin-imagenet22k": swin_imagenet22k,
    "swin-imagenet22k-to-1k": swin_imagenet22k_to_1k,
    "simmim-finetune": simmim_finetune,
    "swinv2-imagenet1k": swinv2_imagenet1k,
    "swinv2-imagenet22k": swinv2_imagenet22k,
    "swinv2-imagenet22k-to-1k": swinv2_imagenet22k_to_1k,
}
