"""DeiT on ImageNet as published: the defaults of the original repository's main.py at commit 7e160fe.

None was run here: each takes days on several GPUs. ``--batch`` and ``optim.accumulate`` may be others: the rates follow
in proportion, as there. What differs from the original: the rate falls step by step from the end of the warm-up on, not
epoch by epoch from the start; erased pixels hold noise within 0..255; no moving average is kept, since the published
figures are those of the weights themselves.
"""

from typing import Any

from swindow.data.augment import AugmentConfig
from swindow.errors import ConfigError
from swindow.optim import OptimConfig
from swindow.recipes.facts import Facts, Recipe
from swindow.recipes.imagenet import STRONG, larger_windows
from swindow.settings import TrainConfig


def deit_imagenet1k(facts: Facts) -> TrainConfig:
    """DeiT from scratch on ImageNet-1K (Touvron et al. 2021, table 9): 300 epochs of 1,024 images a step.

    ``swindow train IMAGENET --recipe deit-imagenet1k --model deit_small --devices 4``: published with 72.2 % of the
    validation images for Ti, 79.9 % for S and 81.8 % for B. Ti and S take less than three days on four GPUs, B 53 hours
    on eight V100 GPUs, or 37 on sixteen.
    """
    return _from_scratch(facts, "deit-imagenet1k", facts.model or "deit_small")


def deit_imagenet1k_distilled(facts: Facts) -> TrainConfig:
    """DeiT taught by a convolutional network's decisions through a token of their own (Touvron et al. 2021, section 4).

    ``swindow train IMAGENET --recipe deit-imagenet1k-distilled --model deit_base_distilled --teacher RUN_OR_WEIGHTS
    --devices 16``: published with 74.5 % of the validation images for Ti, 81.2 % for S and 83.4 % for B, taught by a
    RegNetY-16GF that knows 82.9 %; on two nodes of eight GPUs with 32 GB each for B. Takes days; the time is
    not published.

    Raises:
        ConfigError: no teacher.
    """
    if not facts.teacher:
        raise ConfigError(
            "recipe deit-imagenet1k-distilled learns from a teacher; give a run or weights: --teacher RUN_OR_WEIGHTS"
        )
    return _from_scratch(
        facts,
        "deit-imagenet1k-distilled",
        facts.model or "deit_small_distilled",
        teacher=facts.teacher,
        distill="token",
    )


def _from_scratch(facts: Facts, recipe: str, model: str, **taught: Any) -> TrainConfig:
    return TrainConfig(
        recipe=recipe,
        model=model,
        fields=facts.fields,
        size=facts.size or 224,
        epochs=300,
        batch=1024,
        drop_path=0.1,
        label_smoothing=0.1,
        optim=OptimConfig(
            lr=1e-3, lr_images=1024, weight_decay=0.05, warmup=5 / 300, warmup_from=1e-3, final=0.01, clip=0.0
        ),
        augment=AugmentConfig(**STRONG, repeats=3),
        **taught,
    )


def deit_imagenet1k_finetune_384(facts: Facts) -> TrainConfig:
    """DeiT from 224 to 384 pixels on ImageNet-1K, taught as before where it was: 30 epochs of 512 images a step.

    ``swindow train IMAGENET --recipe deit-imagenet1k-finetune-384 --weights deit_base.fb_in1k --devices 16``: published
    with 82.9 % of the validation images for B on sixteen GPUs; in the paper, 20 hours on eight for 25 epochs. Distilled
    (``--weights deit_base_distilled.fb_in1k --teacher RUN_OR_WEIGHTS``), where the original refuses, the paper has
    84.5 %.
    """
    model, fields = larger_windows(facts, "deit_base", "_384")
    taught: dict[str, Any] = {"teacher": facts.teacher, "distill": "token"} if facts.teacher else {}
    return TrainConfig(
        recipe="deit-imagenet1k-finetune-384",
        model=model,
        fields=fields,
        size=facts.size if facts.size and facts.size_asked else 384,
        epochs=30,
        batch=512,
        drop_path=0.1,
        label_smoothing=0.1,
        optim=OptimConfig(
            lr=5e-6, lr_images=512, weight_decay=1e-8, warmup=5 / 30, warmup_from=0.2, decay="none", clip=0.0
        ),
        augment=AugmentConfig(**STRONG, repeats=3),
        **taught,
    )


DEIT: dict[str, Recipe] = {
    "deit-imagenet1k": deit_imagenet1k,
    "deit-imagenet1k-distilled": deit_imagenet1k_distilled,
    "deit-imagenet1k-finetune-384": deit_imagenet1k_finetune_384,
}
