"""A teacher sees what it would see by itself, and is read when it is needed."""

import pytest
import torch
from torch.nn import functional as F

import swindow
from conftest import tiny
from swindow.checkpoints import save
from swindow.errors import CheckpointError
from swindow.inference import ready
from swindow.objectives import Teacher
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from teaching import CLASSES, HALF, known

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def picture(*, channels=3, side=16):
    """Smooth pixels, which survive being resized; uint8."""
    rough = torch.rand(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(rough, size=(side, side), mode="bicubic", antialias=True)
    return (smooth * 255).round().clamp(0, 255).to(torch.uint8)


def test_images_prepared_alike_are_not_touched():
    images = HALF.normalize(picture())
    assert Teacher.of(known(tiny())).sees(images, HALF) is images


@pytest.mark.parametrize(
    ("preprocess", "tolerance"),
    [
        (IMAGENET, 1e-4),
        ({"size": (24, 24)}, 0.05),  # asked directly, it is resized in whole numbers
        ({**IMAGENET, "size": (24, 20), "fit": "squash", "interpolation": "bilinear"}, 0.05),
    ],
)
def test_it_answers_as_when_it_is_asked_directly(preprocess, tolerance):
    model = known(tiny(), crop_ratio=1.0, **preprocess)
    pixels = picture()
    directly = ready(model, precision="fp32").logits(model.preprocess.resize(pixels))
    taught = Teacher.of(model).logits(HALF.normalize(pixels), HALF)
    torch.testing.assert_close(taught, directly, rtol=0, atol=tolerance * float(directly.std()))
    unaware = model(HALF.normalize(pixels)).detach()  # without honouring its preprocessing
    assert (unaware - directly).abs().max() > 3 * tolerance * float(directly.std())


def test_grey_is_shown_as_colour_and_colour_as_grey():
    grey, colour = known(tiny(in_channels=1)), known(tiny())
    one = Preprocess(size=(16, 16), mean=(0.3,), std=(0.2,))
    pixels = picture(channels=1)
    directly = ready(colour, precision="fp32").logits(pixels.expand(-1, 3, -1, -1))
    torch.testing.assert_close(Teacher.of(colour).logits(one.normalize(pixels), one), directly, rtol=1e-4, atol=1e-4)
    coloured = picture()
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    directly = grey(((coloured / 255 * weights).sum(1, keepdim=True) - 0.5) / 0.5).detach()
    torch.testing.assert_close(Teacher.of(grey).logits(HALF.normalize(coloured), HALF), directly, rtol=1e-4, atol=1e-4)


def test_pictures_of_their_own_size_keep_it():
    teacher = Teacher.of(known(tiny(), size=(8, 8)))
    own = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, fit="within")
    assert teacher.sees(torch.randn(1, 3, 20, 28), own).shape == (1, 3, 20, 28)
    assert teacher.sees(torch.randn(1, 3, 20, 28), HALF).shape == (1, 3, 8, 8)


def test_it_is_read_from_a_file_when_it_is_first_asked_and_draws_nothing(tmp_path, monkeypatch):
    model = known(tiny())
    path = save(model, tmp_path / "teacher")
    read = []
    monkeypatch.setattr("swindow.objectives.teacher.load", lambda path: (read.append(path), swindow.load(path))[1])
    teacher = Teacher.at(path)
    assert teacher.order_of(("cat", "ant")) == [2, 0]
    assert teacher.digest() == Teacher.of(model).digest()
    assert read == []
    images = HALF.normalize(picture())
    state = torch.get_rng_state()
    torch.testing.assert_close(teacher.logits(images, HALF), model(images).detach())
    assert torch.equal(torch.get_rng_state(), state)
    teacher.logits(images, HALF)
    assert read == [path]
    assert teacher.classes == CLASSES


def test_the_digest_changes_with_a_weight():
    model = known(tiny())
    before = Teacher.of(model).digest()
    with torch.no_grad():
        model.head.linear.bias[0] += 1e-6
    assert Teacher.of(model).digest() != before


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing"):
        Teacher.at(tmp_path / "nothing")
