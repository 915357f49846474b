"""Erasing with noise: rectangles as timm draws them, pixels of the model's own mean and deviation."""

import torch

from swindow.data.erasing import NoisyErasing


def erased(count=600, side=64, chance=1.0):
    erase = NoisyErasing(chance, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    return [erase(image) for _ in range(count)], image


def boxes(images):
    found = []
    for image in images:
        rows, columns = (image > 0).any(0).nonzero(as_tuple=True)
        if len(rows):
            found.append((rows.max() - rows.min() + 1, columns.max() - columns.min() + 1))
    return torch.tensor(found, dtype=torch.float64)


def test_rectangles_are_drawn_as_published():
    """2 % to a third of the area, evenly; sides of 0.3 to 1/0.3, evenly by their logarithm."""
    images, before = erased()
    assert torch.equal(before, torch.zeros_like(before))
    tall, wide = boxes(images).T
    area, ratio = tall * wide / 64**2, (tall / wide).log()
    assert 0.01 < area.min() < 0.04
    assert 0.3 < area.max() < 0.35
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.015
    assert abs(ratio.mean()) < 0.1
    assert 1.0 < ratio.abs().max() < 1.35


def test_what_is_painted_has_the_mean_and_deviation_of_the_models_pixels():
    images, _ = erased(200)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        inside = torch.cat([image[channel][(image > 0).any(0)] for image in images]).double() / 255
        assert abs(inside.mean() - mean) < 0.01
        assert abs(inside.std() - std) < 0.02  # a little less: what would lie outside 0..255 is cut off


def test_it_comes_as_often_as_asked_and_leaves_tiny_images_alone():
    images, _ = erased(2000, side=16, chance=0.25)
    assert abs(sum(bool(image.any()) for image in images) / 2000 - 0.25) < 0.03
    tiny, _ = erased(20, side=1)
    assert not any(image.any() for image in tiny)
