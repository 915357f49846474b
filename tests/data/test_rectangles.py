"""The random resized crop: the distribution and the pixels of torchvision's, by draws of our own."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from swindow.data.rectangles import ResizedCrop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pixels_are_torchvision_s(mode: str) -> None:
    image = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = image.permute(2, 0, 1)
    crop = ResizedCrop((32, 24), SCALE, RATIO, mode)
    for seed in range(40):
        place = crop.rectangle(60, 80, seed)
        theirs = functional.resized_crop(image, *place, [32, 24], v2.InterpolationMode(mode), antialias=True)
        assert torch.equal(crop(image, seed), theirs)


def test_areas_and_aspects_are_distributed_as_torchvision_s() -> None:
    crop, theirs = ResizedCrop((8, 8), SCALE, RATIO, "bilinear"), v2.RandomResizedCrop(8, SCALE, RATIO)
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    ours = np.asarray([crop.rectangle(90, 120, seed) for seed in range(4000)], float)
    torch.manual_seed(0)
    made = [theirs.make_params([image]) for _ in range(4000)]
    other = np.asarray([[one[name] for name in ("top", "left", "height", "width")] for one in made], float)
    for column in range(4):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert np.quantile(ours[:, column], share) == pytest.approx(np.quantile(other[:, column], share), abs=4)
    assert (ours[:, 0] + ours[:, 2]).max() == 90
    assert (ours[:, 1] + ours[:, 3]).max() == 120
    assert ours[:, :2].min() == 0


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (5000, 1), (1, 1), (300, 9)])
def test_thin_pictures_give_the_centre(height: int, width: int) -> None:
    crop = ResizedCrop((8, 8), (0.9, 1.0), RATIO, "bicubic")
    top, left, tall, wide = crop.rectangle(height, width, 1)
    assert 0 <= top <= height - tall
    assert 0 <= left <= width - wide
    assert min(tall, wide) >= 1
    assert crop(torch.zeros(1, height, width, dtype=torch.uint8), 1).shape == (1, 8, 8)


def test_one_column_is_resampled_too() -> None:
    image = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    assert (ResizedCrop((8, 1), SCALE, RATIO, "bicubic")(image, 3) == 200).all()
