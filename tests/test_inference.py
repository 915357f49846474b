"""A detector asked about pictures of any sizes: what it gets to see, and where its answers lie."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from detections import detections
from detectors import tiny_detr
from swindow.errors import ConfigError, ShapeError, TrainingDiverged
from swindow.inference import ready
from swindow.objects import Frames
from swindow.preprocess import Preprocess

SIZES = [(60, 90), (90, 60), (200, 20), (33, 33), (60, 90)]


def pictures(sizes=SIZES):
    return [
        torch.from_numpy(np.random.default_rng(n).integers(0, 256, (3, *size), np.uint8))
        for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(("sizes", "pixels"), [([(60, 90)] * 3, 1e-4), (SIZES, 0.5)])
def test_a_batch_says_what_each_picture_alone_says(sizes, pixels):
    """Of unequal sizes nearly so: a backbone sees what lies beside a picture, which a smaller canvas has less of."""
    asked = ready(tiny_detr(), device="cpu", precision="fp32")
    together = asked.detect(pictures(sizes))
    for picture, found in zip(pictures(sizes), together, strict=True):
        (alone,) = asked.detect(picture)
        assert found.size == alone.size == picture.shape[1:]
        assert len(found) == len(alone) == 12
        assert torch.allclose(found.scores, alone.scores, atol=pixels / 50)
        order, other = found.queries.argsort(), alone.queries.argsort()
        assert torch.allclose(found.boxes[order], alone.boxes[other], atol=pixels)
        assert torch.equal(found.labels[order], alone.labels[other])


def test_answers_lie_in_the_pictures_own_pixels_on_the_cpu():
    for picture, found in zip(pictures(), ready(tiny_detr(masks=True)).detect(pictures()), strict=True):
        height, width = picture.shape[1:]
        assert found.boxes.min() >= 0
        assert (found.boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert found.mask(0).shape == (height, width)


def given(model, sizes):
    """What the model gets, and answers scaled back from boxes that fill the frames of its input."""
    calls = []

    def forward(images, frames):
        calls.append((images, frames))
        return tuple(detections([[0, 0, wide, tall]], [0.5], [1], size=(tall, wide)) for tall, wide in frames.sizes)

    model.forward = forward
    return ready(model, device="cpu").detect(pictures(sizes)), *calls[0]


@pytest.mark.parametrize("fit", ["within", "native", "short", "squash"])
def test_pictures_lie_top_left_on_a_canvas_of_whole_multiples(fit):
    preprocess = Preprocess(size=(32, 48), fit=fit, zoom=0.5, mean=(0.4,) * 3, std=(0.2,) * 3)
    sizes = [(60, 90), (50, 40), (64, 20)]
    model = tiny_detr(preprocess=preprocess, divisor=8)
    found, images, frames = given(model, sizes)
    inputs = tuple(preprocess.input_size(*size) for size in sizes)
    assert frames == Frames(images.shape[2:], inputs)
    assert images.shape[2:] == ready(model).canvas(sizes)
    assert all(side % 8 == 0 for side in images.shape[2:])
    largest = [max(sides) for sides in zip(*inputs, strict=True)]
    assert all(0 <= canvas - side < 8 for canvas, side in zip(images.shape[2:], largest, strict=True))
    for image, picture, size, (tall, wide), one in zip(images, pictures(sizes), sizes, inputs, found, strict=True):
        assert torch.equal(image[:, :tall, :wide], preprocess(picture))
        assert image.abs().sum() == pytest.approx(float(image[:, :tall, :wide].abs().sum()))  # zeros elsewhere
        assert one.boxes.tolist() == [pytest.approx([0, 0, size[1], size[0]], abs=1e-4)]


def test_no_picture_no_answer():
    assert ready(tiny_detr()).detect([]) == []


def test_what_cannot_be_asked(tiny, monkeypatch):
    model = tiny_detr()
    asked = ready(model, device="cpu")
    with pytest.raises(ShapeError, match="a picture of 1 channels; this model takes 3"):
        asked.detect(torch.zeros(1, 20, 20, dtype=torch.uint8))
    for fit in ("crop", "pad"):
        with pytest.raises(ConfigError, match=f"preprocess fit '{fit}' is not for detectors"):
            dataclasses.replace(asked, preprocess=dataclasses.replace(asked.preprocess, fit=fit)).detect(pictures())
    classifier = tiny()
    classifier.preprocess = asked.preprocess
    with pytest.raises(ConfigError, match="is to classify, not to detect; give a detector"):
        ready(classifier).detect(pictures())
    answer = (detections([[0, 0, np.nan, 5]], [0.5], [1], size=(32, 32)),)
    monkeypatch.setattr(model, "forward", lambda images, frames: answer)
    with pytest.raises(TrainingDiverged, match="not finite"):
        asked.detect(pictures([(33, 33)]))


@pytest.mark.parametrize("layer", ["classifier", "boxes.2"])
def test_an_answer_that_is_not_finite_is_no_empty_one(layer):
    model = tiny_detr()
    torch.nn.init.constant_(model.head.get_submodule(layer).weight, math.nan)
    asked = ready(model, device="cpu")
    with pytest.raises(TrainingDiverged, match="not finite"):
        asked.detect(pictures([(33, 33)]))
    assert not model.head._forward_hooks
