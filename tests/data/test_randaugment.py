"""RandAugment in timm's form: operator by operator the pixels that timm makes, and drawn as often."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from swindow.data import randaugment
from swindow.data.randaugment import OPERATIONS, RandAugment, changed

PEERS = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
BICUBIC = Image.Resampling.BICUBIC


def picture(mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(3)
    rough = Image.fromarray(random.integers(20, 230, (6, 5, 3), dtype=np.uint8)).convert(mode)
    return rough.resize((41, 53), BICUBIC)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.data.auto_augment")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_makes_the_pixels_that_timm_makes(name, mode, timm, monkeypatch):
    fill = (124, 116, 104) if mode == "RGB" else 124
    for magnitude in (0.0, 2.7, 5.0, 8.6, 9.0, 9.5, 9.99 if name == "posterize" else 10.0):
        for sign, draw in ((1, 0.2), (-1, 0.9)):
            monkeypatch.setattr(timm.random, "random", lambda draw=draw: draw)
            peer = timm.AugmentOp(
                PEERS[name], prob=1.0, magnitude=magnitude, hparams={"img_mean": fill, "interpolation": BICUBIC}
            )
            theirs = np.asarray(peer(picture(mode)))
            ours = np.asarray(changed(picture(mode), name, magnitude, sign, fill, BICUBIC))
            assert np.array_equal(ours, theirs), (name, magnitude, sign)


def test_at_the_largest_magnitude_no_bit_is_kept():
    """As when the models were trained; newer Pillows refuse it, and timm with them."""
    assert not np.asarray(changed(picture(), "posterize", 10.0, 1, 0, BICUBIC)).any()


def test_the_operations_are_those_of_timm_that_grow(timm):
    made = timm.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (124, 116, 104)})
    assert [PEERS[name] for name in OPERATIONS] == [operation.name for operation in made.ops]
    assert (made.num_layers, made.ops[0].prob, made.ops[0].magnitude_std) == (2, 0.5, 0.5)


def test_it_draws_as_often_as_timm_does(monkeypatch):
    """Two of fifteen, each every other time, to either side, with magnitudes around nine and at most ten."""
    drawn: list[tuple[str, float, int]] = []
    monkeypatch.setattr(randaugment, "changed", lambda image, *what: (drawn.append(what[:3]), image)[1])
    augment = RandAugment(2, 9.0, 0.5, fill=(1, 2, 3), resample=BICUBIC)
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for _ in range(3000):
        augment(image)
    names = Counter(name for name, _, _ in drawn)
    magnitudes = np.array([magnitude for _, magnitude, _ in drawn])
    assert abs(len(drawn) - 3000) < 150
    assert set(names) == set(OPERATIONS)
    assert max(names.values()) < 1.4 * min(names.values())
    assert abs(np.mean([sign for _, _, sign in drawn])) < 0.06
    assert magnitudes.max() == 10.0  # one in forty is drawn above ten
    assert abs(np.median(magnitudes) - 9.0) < 0.03
    assert abs(magnitudes[magnitudes < 9.0].std() - 0.5 * np.sqrt(1 - 2 / np.pi)) < 0.02


def test_without_an_operation_the_image_stays_as_it_is():
    image = torch.randint(0, 256, (1, 5, 7), dtype=torch.uint8)
    assert torch.equal(RandAugment(0, 9.0, 0.5, fill=0, resample=BICUBIC)(image), image)
