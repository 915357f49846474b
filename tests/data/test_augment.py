"""Augmentation: a function of pixels and seed, whatever the batch, the process and the generators are doing."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from swindow.config import from_dict, to_dict
from swindow.data import augment as augment_module
from swindow.data import rectangles
from swindow.data.augment import AugmentConfig, build_augment, mix_batch
from swindow.data.seeds import epoch_order, sample_seed, sample_seeds, uniforms
from swindow.errors import ConfigError
from swindow.preprocess import Preprocess

EVERYTHING = {
    "nothing": AugmentConfig(),
    "shift": AugmentConfig(crop="shift", shift=3, hflip=0.5, vflip=0.5),
    "reflect": AugmentConfig(crop="shift", shift=9, shift_fill="reflect", hflip=0.5),
    "flips": AugmentConfig(hflip=0.5, vflip=0.5),
    "resized": AugmentConfig(crop="resized", hflip=0.5, interpolation="bilinear"),
    "randaugment": AugmentConfig(randaugment_ops=2, randaugment_magnitude=15),
    "jitter": AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1)),
    "erasing": AugmentConfig(erasing=0.9),
    "noise": AugmentConfig(erasing=0.9, erasing_fill="noise"),
    "timm": AugmentConfig(randaugment_ops=2, randaugment_form="timm", randaugment_noise=0.5),
    "all": AugmentConfig(crop="resized", hflip=0.5, randaugment_ops=2, jitter=(0.2, 0.2, 0.2, 0.1), erasing=0.5),
}


def preprocess(side: int = 16, channels: int = 3) -> Preprocess:
    return Preprocess(size=(side, side), mean=(0.4,) * channels, std=(0.2,) * channels, crop_ratio=1.0)


def pictures(count: int = 8, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EVERYTHING)
def test_an_image_is_augmented_alike_alone_and_in_any_batch(name: str, channels: int) -> None:
    augment = build_augment(EVERYTHING[name], preprocess(channels=channels))
    images, seeds = pictures(channels=channels), sample_seeds(0, 3, np.arange(8))
    kept = images.clone()
    batch = augment.batch(images, seeds)
    assert batch.shape == images.shape
    assert batch.dtype == torch.uint8
    for index in (0, 5):
        assert torch.equal(augment(images[index], int(seeds[index])), batch[index])
    assert torch.equal(augment.batch(images[[5, 2]], seeds[[5, 2]]), batch[[5, 2]])
    assert torch.equal(images, kept)
    assert torch.equal(batch, images) == (name == "nothing")
    assert not torch.equal(augment.batch(images, sample_seeds(0, 4, np.arange(8))), batch) or name == "nothing"


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_other_generator_matters_and_none_is_touched(name: str) -> None:
    augment = build_augment(EVERYTHING[name], preprocess())
    images, seeds = pictures(), sample_seeds(0, 0, np.arange(8))
    outcomes = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        outcomes.append(augment.batch(images, seeds))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*outcomes)


def test_shifts_and_flips_are_what_they_say() -> None:
    """Each output must be one of the 7 × 7 × 2 pictures made the slow way, and all shifts must occur."""
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 8, 8)
    for fill, mode in (("zero", "constant"), ("reflect", "reflect")):
        augment = build_augment(AugmentConfig(crop="shift", shift=3, shift_fill=fill, hflip=0.5), preprocess(8, 1))
        padded = torch.nn.functional.pad(image[None].float(), (3, 3, 3, 3), mode=mode)[0].to(torch.uint8)
        windows = {}
        for top in range(7):
            for left in range(7):
                window = padded[:, top : top + 8, left : left + 8]
                windows[window.numpy().tobytes()] = (top, left, False)
                windows[window.flip(-1).contiguous().numpy().tobytes()] = (top, left, True)
        moved = augment.batch(image.expand(2000, 1, 8, 8), sample_seeds(0, 0, np.arange(2000)))
        seen = [windows[picture.numpy().tobytes()] for picture in moved]
        assert len(set(seen)) == 98
        flips = sum(flip for _, _, flip in seen)
        assert 900 < flips < 1100


def test_a_shift_beyond_a_tiny_picture_still_reflects() -> None:
    augment = build_augment(AugmentConfig(crop="shift", shift=20, shift_fill="reflect"), preprocess(4, 1))
    images = pictures(50, 1, 4)
    moved = augment.batch(images, sample_seeds(0, 0, np.arange(50)))
    for before, after in zip(images, moved, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    one = build_augment(AugmentConfig(crop="shift", shift=2, shift_fill="reflect"), preprocess(1, 1))
    assert torch.equal(one.batch(images[:3, :, :1, :1], sample_seeds(0, 0, np.arange(3))), images[:3, :, :1, :1])


def test_files_of_any_size_end_at_the_models_size() -> None:
    for name, config in EVERYTHING.items():
        augment = build_augment(config, preprocess(24))
        for height, width in ((50, 40), (9, 300), (1, 5000), (24, 24)):
            image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
            assert augment(image, sample_seed(0, 0, 1)).shape == (3, 24, 24), name


def test_crop_flip_and_colour_draw_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed for two of them, every image cropped at the top would also be erased at the top."""
    seen: list[int] = []

    def noted(seeds: np.ndarray, draws: int) -> np.ndarray:
        seen.extend(seeds.tolist())
        return uniforms(seeds, draws)

    augment = build_augment(EVERYTHING["all"], preprocess())
    monkeypatch.setattr(torch, "default_generator", SimpleNamespace(manual_seed=seen.append))
    for module in (augment_module, rectangles):
        monkeypatch.setattr(module, "uniforms", noted)
    augment(pictures(1)[0], 5)
    assert len(seen) == len(set(seen)) == 3


def test_erasing_paints_the_mean_colour() -> None:
    augment = build_augment(AugmentConfig(erasing=1.0), preprocess())
    out = augment.batch(torch.full((20, 3, 16, 16), 255, dtype=torch.uint8), sample_seeds(0, 0, np.arange(20)))
    assert set(out.flatten().tolist()) == {255, 102}


def test_colour_needs_colours() -> None:
    for config in (AugmentConfig(randaugment_ops=1), AugmentConfig(jitter=(0.1, 0.0, 0.0, 0.0))):
        with pytest.raises(ConfigError, match="need 1 or 3 channels, not 4"):
            build_augment(config, preprocess(channels=4))
    five = build_augment(AugmentConfig(crop="resized", hflip=0.5, erasing=1.0), preprocess(channels=5))
    assert five(pictures(1, 5)[0], 3).shape == (5, 16, 16)


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (AugmentConfig(mixup=0.8), {"mix"}),
        (AugmentConfig(cutmix=1.0), {"cut"}),
        (AugmentConfig(mixup=0.8, cutmix=1.0), {"mix", "cut"}),
        (AugmentConfig(mixup=0.8, cutmix=1.0, mix_prob=0.5), {"mix", "cut", "none"}),
        (AugmentConfig(mixup=0.8, cutmix=1.0, mix_prob=0.0), {"none"}),
        (AugmentConfig(), {"none"}),
    ],
)
def test_mixing(config: AugmentConfig, rows: set[str]) -> None:
    """Images hold their own number, so each output says what it was made of; targets must agree with the pixels."""
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 16, 16)
    targets = torch.eye(4)
    kinds = set()
    state = torch.get_rng_state()
    for seed in range(40):
        mixed, soft = mix_batch(images, targets, config, seed)
        again = mix_batch(images, targets, config, seed)
        assert torch.equal(again[0], mixed)
        assert torch.equal(again[1], soft)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), (soft * torch.arange(4.0)).sum(1))
        whole = bool((mixed == mixed.round()).all())
        kinds.add("none" if torch.equal(soft, targets) else "cut" if whole else "mix")
    assert kinds - {"none"} == rows - {"none"}  # a cut of no area is a batch unmixed
    assert ("none" in kinds) >= ("none" in rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(4.0))


def test_a_single_image_has_nobody_to_mix_with() -> None:
    images, targets = torch.rand(1, 1, 4, 4), torch.ones(1, 1)
    assert mix_batch(images, targets, AugmentConfig(mixup=1.0), 0) == (images, targets)


def test_mixup_strength_follows_its_distribution() -> None:
    images, targets = torch.zeros(2, 1, 2, 2), torch.eye(2)
    shares = [mix_batch(images, targets, AugmentConfig(mixup=1.0), seed)[1][0, 0].item() for seed in range(400)]
    assert abs(np.mean(shares) - 0.5) < 0.05  # Beta(1, 1) is uniform
    assert abs(np.std(shares) - math.sqrt(1 / 12)) < 0.03


def test_seeds_are_a_function_of_their_coordinates_and_spread_evenly() -> None:
    seeds = sample_seeds(7, np.array([2, 2, 3]), np.array([5, 6, 5]))
    assert [sample_seed(7, 2, 5), sample_seed(7, 2, 6), sample_seed(7, 3, 5)] == seeds.tolist()
    assert sample_seed(0, 0, 0) == 2558736989570252433  # pinned: a run resumed by a later version must go on alike
    assert len(set(sample_seeds(0, 0, np.arange(200_000)).tolist())) == 200_000
    assert sample_seed(-1, 0, 0) != sample_seed(1, 0, 0)
    draws = uniforms(sample_seeds(0, 0, np.arange(20_000)), 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    near = uniforms(np.array([1, 2], np.uint64), 1000)
    assert abs(np.corrcoef(near)[0, 1]) < 0.1


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    first, second = epoch_order(1000, 0, 0), epoch_order(1000, 0, 1)
    assert sorted(first.tolist()) == list(range(1000))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15
    assert epoch_order(1000, 1, 0).tolist() != first.tolist()
    assert epoch_order(1000, 0, 0).tolist() == first.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hflip": 1.5}, "hflip is 1.5; a probability lies in 0..1"),
        ({"erasing": -0.1}, "erasing is -0.1"),
        ({"shift": -1}, "shift is -1; it must not be negative"),
        ({"crop": "random"}, "not one of none, shift, resized"),
        ({"shift_fill": "wrap"}, "not one of zero, reflect"),
        ({"interpolation": "nearest"}, "not one of bilinear, bicubic"),
        ({"randaugment_magnitude": 31}, "it lies in 0..30"),
        ({"randaugment_magnitude": 11, "randaugment_form": "timm"}, "it lies in 0..10"),
        ({"randaugment_noise": 0.5}, "randaugment_noise is for randaugment_form timm"),
        ({"randaugment_form": "paper"}, "not one of torchvision, timm"),
        ({"erasing_fill": "black"}, "not one of mean, noise"),
        ({"repeats": 0}, "shown at least once"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "hue at most 0.5"),
        ({"crop_scale": (0.0, 1.0)}, "not a range within (0, 1]"),
        ({"crop_ratio": (2.0, 1.0)}, "not a range above 0"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, TypeCheckError)) as caught:  # the latter where the types are checked
        AugmentConfig(**fields)  # type: ignore[arg-type]
    assert message in str(caught.value) or caught.type is TypeCheckError


def test_the_config_survives_being_written_down() -> None:
    for config in EVERYTHING.values():
        assert from_dict(AugmentConfig, to_dict(config)) == config
