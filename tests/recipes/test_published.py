"""The published recipes: their values as the original repositories have them, and each trains a tiny model."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from swindow.data.augment import AugmentConfig
from swindow.errors import ConfigError
from swindow.optim import OptimConfig, for_images, schedule
from swindow.progress import Silent
from swindow.recipes import DEIT, IMAGENET, PRETRAIN, Facts, configure
from swindow.settings import TrainConfig
from swindow.training import train

FACTS = Facts(images=1_281_167, classes=1000, channels=3, side=375, longest=500)
PUBLISHED = IMAGENET | DEIT | {name: recipe for name, recipe in PRETRAIN.items() if "imagenet" in name}


class Row(NamedTuple):
    """What the original's configs say, rates in units of 1e-6 and scaled to the images of a step as it does."""

    models: tuple[tuple[str, int, float], ...]
    """Model, pixels, stochastic depth."""
    epochs: int
    images: int
    """Of a step."""
    warmup: int
    """Epochs."""
    rates: tuple[float, float, float]
    """At the start of the warm-up, at its end, at the end of the run."""
    weight_decay: float
    clip: float = 5.0
    layer_decay: float = 1.0
    distill: str = "soft"


TABLE = {
    "swin-imagenet1k": Row(
        (("swin_tiny", 224, 0.2), ("swin_small", 224, 0.3), ("swin_base", 224, 0.5)), 300, 1024, 20, (1, 1000, 10), 0.05
    ),
    "swinv2-imagenet1k": Row(
        (("swin_v2_tiny_w8", 256, 0.2), ("swin_v2_small_w16", 256, 0.3), ("swin_v2_base_w8", 256, 0.5)),
        300,
        1024,
        20,
        (1, 1000, 10),
        0.05,
    ),
    "swin-imagenet1k-finetune-384": Row((("swin_base_384", 384, 0.5),), 30, 1024, 5, (0.04, 40, 0.4), 1e-8),
    "swin-imagenet22k": Row(
        (("swin_tiny", 224, 0.1), ("swin_small", 224, 0.2), ("swin_base", 224, 0.2), ("swin_large", 224, 0.2)),
        90,
        4096,
        5,
        (1, 1000, 10),
        0.05,
    ),
    "swin-imagenet22k-to-1k": Row(
        (("swin_tiny", 224, 0.1), ("swin_small", 224, 0.2), ("swin_base", 224, 0.2), ("swin_large", 224, 0.2)),
        30,
        1024,
        5,
        (0.04, 40, 0.4),
        1e-8,
    ),
    "swinv2-imagenet22k": Row(
        (("swin_v2_base_w12", 192, 0.2), ("swin_v2_large_w12", 192, 0.2)), 90, 4096, 5, (1, 1000, 10), 0.1
    ),
    "swinv2-imagenet22k-to-1k": Row(
        (("swin_v2_base_w12to16", 256, 0.2), ("swin_v2_large_w12to16", 256, 0.2)), 30, 1024, 5, (0.04, 40, 0.4), 1e-8
    ),
    "simmim-finetune": Row((("swin_base", 224, 0.1),), 100, 2048, 20, (1, 5000, 1), 0.05, layer_decay=0.8),
    "deit-imagenet1k": Row(
        (("deit_tiny", 224, 0.1), ("deit_small", 224, 0.1), ("deit_base", 224, 0.1)),
        300,
        1024,
        5,
        (1, 1000, 10),
        0.05,
        0.0,
    ),
    "deit-imagenet1k-distilled": Row(
        (("deit_small_distilled", 224, 0.1),), 300, 1024, 5, (1, 1000, 10), 0.05, 0.0, distill="token"
    ),
    "deit-imagenet1k-finetune-384": Row(
        (("deit_base_384", 384, 0.1),), 30, 512, 5, (1, 5, 5), 1e-8, 0.0, distill="token"
    ),
    "simmim-imagenet1k": Row(
        (("simmim_swin_base", 192, 0.0), ("simmim_swin_v2_base_w12", 192, 0.1), ("simmim_vit_base", 224, 0.1)),
        800,
        2048,
        10,
        (2, 400, 40),
        0.05,
    ),
    "simmim-imagenet1k-100": Row((("simmim_swin_base", 192, 0.0),), 100, 2048, 10, (4, 800, 40), 0.05),
}


def made(name: str, **facts) -> TrainConfig:
    return PUBLISHED[name](dataclasses.replace(FACTS, teacher="regnet.pth", **facts))


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_values_are_the_published_ones(name):
    row = TABLE[name]
    for model, size, drop_path in row.models:
        config = made(name, model=model)
        assert (config.recipe, config.model, config.size, config.drop_path) == (name, model, size, drop_path)
        assert (config.epochs, config.batch * config.optim.accumulate) == (row.epochs, row.images)
        optim = config.optim
        assert (optim.name, optim.betas, optim.ema) == ("adamw", (0.9, 0.999), 0.0)
        assert (optim.weight_decay, optim.clip, optim.layer_decay) == (row.weight_decay, row.clip, row.layer_decay)
        assert config.distill == row.distill
        _check_rates(optim, row)
    assert made(name).model == row.models[0][0] or len(row.models) > 1


def _check_rates(optim: OptimConfig, row: Row) -> None:
    steps = row.epochs * 1000
    start, peak, end = row.rates
    rates = [schedule(step, steps, for_images(optim, row.images)) * optim.lr * 1e6 for step in (0, row.warmup * 1000)]
    assert rates == pytest.approx([start, peak])
    assert schedule(steps - 1, steps, optim) * optim.lr * 1e6 == pytest.approx(end, rel=1e-3)
    half = schedule(row.warmup * 500, steps, optim) * optim.lr * 1e6
    assert half == pytest.approx((start + peak) / 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_images_vary_as_published(name):
    augment = made(name).augment
    if name in PRETRAIN:
        published = AugmentConfig(crop="resized", crop_scale=(0.67, 1.0), hflip=0.5, interpolation="bilinear")
    else:
        published = AugmentConfig(
            crop="resized",
            hflip=0.5,
            randaugment_ops=2,
            randaugment_magnitude=9,
            randaugment_form="timm",
            randaugment_noise=0.5,
            erasing=0.25,
            erasing_fill="noise",
            mixup=0.8,
            cutmix=1.0,
            repeats=3 if name.startswith("deit") else 1,
        )
    assert augment == published
    assert made(name).label_smoothing == (0.0 if name in PRETRAIN else 0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_says_how_to_run_it_and_what_was_published(name):
    said = PUBLISHED[name].__doc__
    assert f"--recipe {name}" in said
    assert "swindow train" in said
    assert "published" in said
    assert "GPU" in said or "--devices" in said


def test_what_follows_from_the_model():
    fine = made("simmim-finetune", model="swin_large")
    assert (fine.optim.layer_decay, fine.drop_path, fine.fields) == (0.7, 0.2, {"window": 14})
    v2 = made("simmim-finetune", model="swin_v2_base_w12")
    assert (v2.optim.layer_decay, v2.fields) == (0.75, {"window": 14, "pretrained_window": (12, 12, 12, 6)})
    assert made("simmim-finetune", model="vit_base").optim.layer_decay == 0.65
    assert made("simmim-imagenet1k", model="swin_v2_base_w12").fields == {"norm_target": 47}
    assert made("simmim-imagenet1k", model="swin_large").fields == {"window": 12}
    for name, model in (("swin-imagenet22k-to-1k", "swin_large"), ("swinv2-imagenet22k-to-1k", "swin_v2_large_w12")):
        large = made(name, model=model, size=384, size_asked=True)
        assert large.model == {"swin_large": "swin_large_384"}.get(model, "swin_v2_large_w12to24")
        assert (large.size, large.fit) == (384, "squash")
        from_weights = made(name, model=model, size=192)
        assert (from_weights.size, from_weights.fit) == (224 if model == "swin_large" else 256, "crop")
    assert made("swin-imagenet1k-finetune-384", model="swin_nano", fields={"patch": 2}).fields == {
        "patch": 2,
        "window": 12,
    }


def test_distillation_needs_a_teacher():
    with pytest.raises(ConfigError, match="learns from a teacher; give a run or weights: --teacher"):
        PUBLISHED["deit-imagenet1k-distilled"](FACTS)


@pytest.mark.parametrize(("batch", "accumulate", "share"), [(1024, 1, 1.0), (64, 2, 0.125), (4096, 1, 4.0)])
def test_rates_follow_the_images_of_a_step(batch, accumulate, share):
    optim = dataclasses.replace(made("swin-imagenet1k").optim, accumulate=accumulate)
    assert for_images(optim, batch).lr == pytest.approx(1e-3 * share)
    assert for_images(OptimConfig(accumulate=accumulate), batch) == OptimConfig(accumulate=accumulate)


def test_the_schedule_is_that_of_the_original():
    """Step by step timm's, as the original repository calls it."""
    scheduler = pytest.importorskip("timm.scheduler.cosine_lr")
    import torch

    optim = made("swin-imagenet1k").optim
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = scheduler.CosineLRScheduler(
        torch.optim.SGD([parameter], lr=1e-3),
        t_initial=300 * 7 - 20 * 7,
        lr_min=1e-5,
        warmup_lr_init=1e-6,
        warmup_t=20 * 7,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )
    for step in (0, 1, 70, 139, 140, 141, 1000, 2098, 2099):
        assert schedule(step, 2100, optim) * 1e-3 == pytest.approx(theirs._get_lr(step)[0], rel=1e-9)


SWIN = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": 4, "patch": 2}
VIT = {"dim": 8, "depths": (2,), "num_heads": 2, "patch": 8, "image_size": 32}
SHORT = {"batch": 4, "max_steps": 2, "workers": 0, "device": "cpu", "tensorboard": False, "report": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("bird", "cat")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (40, 48, 3)) + 120 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{index}.png")
    return str(folder)


def run(photos, tmp_path, recipe, **changes):
    config = configure(photos, recipe=recipe, out=str(tmp_path / recipe), **(SHORT | {"size": 32} | changes))
    result = train(config, progress=Silent())
    assert result.step == 2
    assert config.recipe == recipe
    return str(result.run), config


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run of each recipe from scratch, made when it is first asked for."""
    runs = {}

    def of(recipe):
        if recipe not in runs:
            model, fields = FROM_SCRATCH[recipe]
            runs[recipe] = run(photos, tmp_path_factory.mktemp("runs"), recipe, model=model, fields=fields)
        return runs[recipe]

    return of


FROM_SCRATCH = {
    "swin-imagenet1k": ("swin_tiny", SWIN),
    "swin-imagenet22k": ("swin_base", SWIN),
    "swinv2-imagenet1k": ("swin_v2_tiny_w8", SWIN),
    "swinv2-imagenet22k": ("swin_v2_base_w12", SWIN),
    "deit-imagenet1k": ("deit_tiny", VIT),
    "simmim-imagenet1k": ("swin_base", SWIN | {"mask_patch": 8}),
    "simmim-imagenet1k-100": ("swin_base", SWIN | {"mask_patch": 8}),
    "simmim-few-photos": ("swin_micro", SWIN | {"mask_patch": 8}),
}
FROM_WEIGHTS = {
    "swin-imagenet1k-finetune-384": ("swin-imagenet1k", {"window": 4}),
    "swin-imagenet22k-to-1k": ("swin-imagenet22k", {}),
    "swinv2-imagenet22k-to-1k": ("swinv2-imagenet22k", {"window": 4, "pretrained_window": 3}),
    "deit-imagenet1k-finetune-384": ("deit-imagenet1k", {}),
    "simmim-finetune": ("simmim-imagenet1k", {"window": 4}),
}


@pytest.mark.parametrize("recipe", FROM_SCRATCH)
def test_each_trains_a_tiny_model(trained, recipe):
    _, config = trained(recipe)
    model = FROM_SCRATCH[recipe][0]  # of which a painter is made where the recipe pretrains
    assert config.model == (f"simmim_{model}" if recipe.startswith("simmim") else model)
    assert config.task == ("pretrain" if recipe.startswith("simmim") else "auto")


@pytest.mark.parametrize("recipe", FROM_WEIGHTS)
def test_each_goes_on_from_tiny_weights(photos, trained, tmp_path, recipe):
    before, fields = FROM_WEIGHTS[recipe]
    _, config = run(photos, tmp_path, recipe, weights=trained(before)[0], fields=fields)
    assert config.fields["dim"] == 8


def test_distillation_trains_a_tiny_model(photos, trained, tmp_path):
    teacher, _ = trained("swin-imagenet1k")
    _, config = run(
        photos, tmp_path, "deit-imagenet1k-distilled", model="deit_tiny_distilled", fields=VIT, teacher=teacher
    )
    assert (config.teacher, config.distill) == (teacher, "token")


def test_every_published_recipe_is_tried():
    assert set(PUBLISHED) <= {*FROM_SCRATCH, *FROM_WEIGHTS, "deit-imagenet1k-distilled"}
    assert set(TABLE) == set(PUBLISHED)
