"""What moves a picture moves its mask: a mask painted into the picture must stay where it is painted."""

import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.joint import JointAugment
from swindow.data.seeds import sample_seeds
from swindow.errors import ConfigError, DataError
from swindow.preprocess import Preprocess
from swindow.shapes import IGNORE

SEEDS = sample_seeds(0, 0, np.arange(12)).tolist()

EVERYTHING: dict[str, AugmentConfig] = {
    "nothing": AugmentConfig(),
    "shift": AugmentConfig(crop="shift", shift=5, hflip=0.5),
    "reflect": AugmentConfig(crop="shift", shift=5, shift_fill="reflect"),
    "resized": AugmentConfig(crop="resized", crop_scale=(0.3, 1.0), interpolation="bilinear"),
    "scale": AugmentConfig(crop="scale", scale=(0.5, 2.0)),
    "far": AugmentConfig(crop="scale", scale=(0.2, 0.4), crop_most=1.0),
    "turns": AugmentConfig(crop="scale", quarter_turns=1.0, hflip=0.5, vflip=0.5),
    "affine": AugmentConfig(affine=(30.0, 0.1, 0.2)),
    "elastic": AugmentConfig(elastic=0.03),
    "all": AugmentConfig(
        crop="scale", hflip=0.5, vflip=0.5, quarter_turns=0.5, affine=(20.0, 0.05, 0.1), elastic=0.02, gamma=0.3
    ),
}
COLOUR = AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1), gamma=0.4, erasing=0.5)


def preprocess(height: int = 48, width: int = 40, channels: int = 3, **fields: Any) -> Preprocess:
    mean = (0.5, 0.4, 0.3, 0.2, 0.1)[:channels]
    return Preprocess(
        size=(height, width), mean=mean, std=(0.2,) * channels, interpolation="bilinear", **({"fit": "native"} | fields)
    )


def blobs(height: int = 90, width: int = 70) -> tuple[Tensor, Tensor]:
    """A picture whose first channel is 40 + 80 times the class, in large smooth areas, and the classes."""
    y, x = np.mgrid[0:height, 0:width]
    classes = (np.sin(y / 11) + np.cos(x / 13) > 0.3).astype(np.int64) + (y + x > 100)
    draw = np.random.default_rng(0)
    others = draw.integers(0, 256, (2, height, width))
    pixels = np.concatenate([40 + 80 * classes[None], others]).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(classes)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("fit", ["native", "short", "squash", "pad", "crop"])
def test_a_mask_painted_into_the_picture_stays_aligned(name: str, fit: str) -> None:
    pixels, mask = blobs()
    augment = JointAugment(EVERYTHING[name], preprocess(fit=fit))
    outside = round(255 * 0.5)
    for seed in SEEDS:
        image, labels = augment(pixels, mask, seed)
        assert image.shape == (3, 48, 40)
        assert labels.shape == (48, 40)
        assert set(labels.unique().tolist()) <= {IGNORE, 0, 1, 2}
        if EVERYTHING[name].gamma:
            continue
        red = image[0].int()
        fill = 0 if name == "shift" else outside
        wanted = torch.where(labels == IGNORE, fill, 40 + 80 * labels)
        inside = ~_near_an_edge(labels)
        assert inside.float().mean() > 0.2
        assert (red - wanted)[inside].abs().max() <= 12, (name, fit, seed)


def _near_an_edge(labels: Tensor) -> Tensor:
    """Pixels with another label, or the border, within two pixels: there the picture is a blend; a mask never is."""
    padded = torch.nn.functional.pad(labels[None].float(), (2, 2, 2, 2), value=-5)
    highest = torch.nn.functional.max_pool2d(padded, 5, 1)[0]
    lowest = -torch.nn.functional.max_pool2d(-padded, 5, 1)[0]
    return highest != lowest


@pytest.mark.parametrize("name", [*EVERYTHING, "colour"])
def test_the_result_is_a_function_of_the_seed(name: str) -> None:
    pixels, mask = blobs()
    augment = JointAugment(EVERYTHING.get(name, COLOUR), preprocess())
    outcomes = []
    for state in (1, 2):
        random.seed(state)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        outcomes.append([augment(pixels, mask, seed) for seed in SEEDS])
        assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    kinds = {image.numpy().tobytes() for image, _ in outcomes[0]}
    assert len(kinds) == (1 if name == "nothing" else len(SEEDS) if name not in ("shift", "reflect") else len(kinds))
    assert torch.equal(pixels, blobs()[0])
    assert torch.equal(mask, blobs()[1])


def test_nothing_is_what_the_evaluation_sees() -> None:
    pixels, mask = blobs()
    for fit in ("squash", "pad", "crop"):
        view = preprocess(fit=fit)
        image, labels = JointAugment(AugmentConfig(), view)(pixels, mask, 3)
        far = (image.int() - view.resize(pixels).int()).abs()[0]  # the others are noise: a pixel aside is another
        assert far.float().mean() < 3
        assert ((labels == IGNORE).any()) == (fit == "pad")
    image, labels = JointAugment(AugmentConfig(), preprocess(20, 30))(pixels, mask, 3)
    assert torch.equal(image, pixels[:, 35:55, 20:50])
    assert torch.equal(labels, mask[35:55, 20:50])


def test_small_pictures_are_padded_with_the_mean_and_ignored() -> None:
    pixels, mask = torch.full((3, 10, 12), 200, dtype=torch.uint8), torch.ones(10, 12, dtype=torch.int64)
    image, labels = JointAugment(AugmentConfig(crop="scale", scale=(1.0, 1.0)), preprocess(30, 20))(pixels, mask, 7)
    assert int((labels == 1).sum()) == 120
    assert (labels != 1).sum() == (labels == IGNORE).sum() == 480
    assert set(image[:, labels == IGNORE].T.unique(dim=0).flatten().tolist()) == {128, 102, 76}
    assert (image[:, labels == 1] == 200).all()


def test_colours_leave_the_mask_alone() -> None:
    pixels, mask = blobs()
    plain, same = JointAugment(AugmentConfig(), preprocess())(pixels, mask, 5)
    for config in (AugmentConfig(gamma=0.5), AugmentConfig(jitter=(0.5, 0.5, 0.5, 0.2)), AugmentConfig(erasing=1.0)):
        image, labels = JointAugment(config, preprocess())(pixels, mask, 5)
        assert torch.equal(labels, same)
        assert not torch.equal(image, plain)


def test_gamma_is_a_power() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    augment = JointAugment(AugmentConfig(gamma=0.7), preprocess(16, 16, 1))
    powers = []
    for seed in sample_seeds(0, 0, np.arange(200)).tolist():
        curve = augment(ramp, torch.zeros(16, 16, dtype=torch.int64), seed)[0].flatten().double() / 255
        assert (curve.diff() >= 0).all()
        powers.append(float(torch.log(curve[128]) / np.log(128 / 255)))
    assert np.exp(-0.72) < min(powers) < 0.6
    assert 1.7 < max(powers) < np.exp(0.72)


def test_crops_avoid_being_all_one_class() -> None:
    mask = torch.zeros(200, 200, dtype=torch.int64)
    mask[150:, 150:] = 1  # a sixteenth
    pixels = torch.zeros(1, 200, 200, dtype=torch.uint8)

    def shares(crop_most: float) -> np.ndarray:
        config = AugmentConfig(crop="scale", scale=(1.0, 1.0), crop_most=crop_most)
        augment = JointAugment(config, preprocess(40, 40, 1))
        seeds = sample_seeds(0, 0, np.arange(150)).tolist()
        return np.array([(augment(pixels, mask, seed)[1] == 0).float().mean() for seed in seeds])

    assert (shares(1.0) == 1).mean() > 0.75
    assert (shares(0.75) <= 0.78).mean() > 2 * (shares(1.0) <= 0.78).mean()


def test_scales_and_places_are_spread() -> None:
    """A picture of its own coordinates says which part of it a crop shows."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    pixels = torch.stack([y, x]).to(torch.uint8)
    augment = JointAugment(AugmentConfig(crop="scale", crop_most=1.0), preprocess(32, 32, 2))
    mask = torch.zeros(128, 128, dtype=torch.int64)
    crops = [augment(pixels, mask, seed)[0].float() for seed in sample_seeds(0, 0, np.arange(300)).tolist()]
    zooms = np.array([31 / float(crop[0, -1, 0] - crop[0, 0, 0]) for crop in crops])
    tops = np.array([float(crop[0, 0, 0]) for crop in crops])
    assert 0.48 < zooms.min() < 0.55
    assert 1.8 < zooms.max() < 2.2
    assert abs(zooms.mean() - 1.25) < 0.07
    assert tops.min() < 6
    assert tops.max() > 100


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    pixels = torch.randint(0, 256, (channels, 50, 60), dtype=torch.uint8)
    mask = torch.randint(-1, 3, (50, 60))
    for name, config in EVERYTHING.items():
        image, _ = JointAugment(config, preprocess(24, 24, channels))(pixels, mask, 9)
        assert image.shape == (channels, 24, 24), name
    if channels != 1:
        with pytest.raises(ConfigError, match=f"need 1 or 3 channels, not {channels}"):
            JointAugment(AugmentConfig(jitter=(0.1, 0.0, 0.0, 0.0)), preprocess(24, 24, channels))


def test_odd_shapes_end_at_the_models_size() -> None:
    for height, width in ((1, 1), (1, 300), (500, 2), (24, 24)):
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        mask = torch.zeros(height, width, dtype=torch.int64)
        for name, config in EVERYTHING.items():
            for fit in ("native", "short", "squash", "pad", "crop"):
                image, labels = JointAugment(config, preprocess(24, 20, fit=fit))(pixels, mask, 4)
                assert (image.shape, labels.shape) == ((3, 24, 20), (24, 20)), (name, fit, height, width)
    tall = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, 60_000_000, 1)
    with pytest.raises(DataError, match="takes too many pixels on the way"):
        JointAugment(AugmentConfig(), preprocess(24, 20, 1, fit="squash"))(
            tall, torch.zeros(1, 1, dtype=torch.int64).expand(60_000_000, 1), 0
        )


def test_a_crop_is_fast() -> None:
    pixels = torch.randint(0, 256, (700, 800, 3), dtype=torch.uint8).permute(2, 0, 1)
    mask = torch.randint(0, 5, (700, 800))
    augment = JointAugment(AugmentConfig(crop="scale", hflip=0.5), preprocess(512, 512))
    times = []
    for seed in SEEDS:
        start = time.process_time()
        augment(pixels, mask, seed)
        times.append(time.process_time() - start)
    assert np.median(times) < 0.03  # about 2 ms on a quiet machine


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"randaugment_ops": 2}, "randaugment_ops is 2; with masks it must be 0"),
        ({"mixup": 0.2}, "mixup is 0.2"),
        ({"cutmix": 1.0}, "cutmix is 1.0"),
    ],
)
def test_what_has_no_meaning_with_masks(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JointAugment(AugmentConfig(**fields), preprocess())


@pytest.mark.parametrize("fields", [{"crop": "scale"}, {"quarter_turns": 0.5}, {"elastic": 0.1}, {"gamma": 0.1}])
def test_what_needs_masks(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is for pictures with masks"):
        build_augment(AugmentConfig(**fields), preprocess())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale .* is not a range within"),
        ({"scale": (2.0, 1.0)}, "scale .* is not a range within"),
        ({"crop_most": 0.0}, "crop_most is 0.0"),
        ({"quarter_turns": 1.5}, "quarter_turns is 1.5; a probability"),
        ({"elastic": 10.0}, "elastic is 10.0; it is a share of the side"),
        ({"gamma": -0.1}, "gamma is -0.1"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**fields)
