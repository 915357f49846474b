"""What is learned from a teacher: by the published equations, by the right classifier, refused where it cannot be."""

import math

import numpy as np
import pytest
import timm.task
import torch
from torch import nn
from torch.nn import functional as F

from conftest import tiny
from detectors import tiny_detr
from swindow.data.augment import AugmentConfig
from swindow.data.loading import Batch
from swindow.errors import ConfigError
from swindow.learner import Learner
from swindow.model import build
from swindow.objectives import DistillConfig, distilled
from swindow.objectives.distillation import hard_loss, soft_loss
from swindow.objects import Targets, no_objects, whole_frames
from swindow.optim import OptimConfig
from swindow.shapes import IGNORE
from teaching import CLASSES, known, moment, pupil
from tiny_segmenters import segmenter

DEIT = {"dim": 16, "depths": (1, 1), "num_heads": 2, "image_size": 16, "patch": 4, "drop_path": 0.0}
LABELS = torch.tensor([0, 3, 4])


def normal(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shares(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def judged(objective, images, labels):
    return objective(images, objective.prepare(images, labels, moment(len(images))))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_is_the_divergence_from_the_teacher_by_its_definition(temperature):
    own, theirs = normal(4, 5), normal(4, 5, seed=1)
    costs = []
    for z, t in zip(own.numpy(), theirs.numpy(), strict=True):
        p, q = shares(t / temperature), shares(z / temperature)
        costs.append(sum(p[k] * (math.log(p[k]) - math.log(q[k])) for k in range(5)))
    expected = temperature**2 * sum(costs) / 4
    assert float(soft_loss(own, theirs, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(soft_loss(own.float(), theirs.float(), temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(soft_loss(own.bfloat16(), own.bfloat16(), temperature)) == 0


class Fixed(nn.Module):
    """Logits that are what they are, as timm looks at a model."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.num_classes, self.in_chans = logits.shape[-1], 3

    def forward(self, images):
        return self.logits


def test_soft_is_what_timm_computes():
    own, theirs = normal(4, 5).float(), normal(4, 5, seed=1).float()
    task = timm.task.LogitDistillationTask(
        Fixed(own),
        Fixed(theirs),
        criterion=nn.CrossEntropyLoss(),
        temperature=3.0,
        device=torch.device("cpu"),
        verbose=False,
    )
    found = task(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 3]))["kd_loss"]
    torch.testing.assert_close(soft_loss(own, theirs, 3.0), found.detach(), rtol=1e-6, atol=0)


def test_gradients_are_as_large_at_any_temperature():
    """Hinton et al. 2015, equation 4: in the limit they are the difference of logits over the number of classes."""
    own, theirs = (x - x.mean(1, keepdim=True) for x in (normal(4, 5), normal(4, 5, seed=1)))
    own.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_loss(own, theirs, 1e4), own)
    torch.testing.assert_close(gradient, (own.detach() - theirs) / 5 / 4, rtol=1e-3, atol=1e-4)


def test_hard_is_the_cross_entropy_with_the_teachers_decision():
    own, theirs = normal(4, 5), normal(4, 5, seed=1)
    expected = -sum(math.log(shares(z)[t.argmax()]) for z, t in zip(own.numpy(), theirs.numpy(), strict=True)) / 4
    assert float(hard_loss(own, theirs)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [lambda *args: soft_loss(*args[:2], 2.0, *args[2:]), hard_loss])
def test_of_maps_the_mean_over_the_pixels_that_count(loss):
    own, theirs = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    counted = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    pixels = [loss(own[b, :, y, x][None], theirs[b, :, y, x][None]) for b, y, x in counted.nonzero().tolist()]
    torch.testing.assert_close(loss(own, theirs, counted), torch.stack(pixels).mean())
    assert float(loss(own, theirs, torch.zeros_like(counted))) == 0


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("mixed", [False, True])
def test_labels_and_teacher_share_the_loss(kind, mixed):
    student, teacher, images = pupil(), known(tiny()), torch.randn(3, 3, 16, 16)
    labels = F.one_hot(LABELS, 5) * 0.7 + 0.06 if mixed else LABELS
    objective = distilled(student, teacher, kind, DistillConfig(alpha=0.25, temperature=2.0))
    losses, right, counted = judged(objective, images, labels)
    logits, theirs = student(images), teacher(images)
    wanted = soft_loss(logits, theirs, 2.0) if kind == "soft" else F.cross_entropy(logits, theirs.argmax(1))
    assert losses.keys() == {"cross_entropy", "distillation"}
    torch.testing.assert_close(losses["cross_entropy"], 0.75 * F.cross_entropy(logits, labels))
    torch.testing.assert_close(losses["distillation"], 0.25 * wanted)
    assert int(right) == int((logits.argmax(1) == LABELS).sum())
    assert int(counted) == 3


def test_smoothing_is_for_labels_alone():
    student, teacher, images = pupil(label_smoothing=0.1), known(tiny()), torch.randn(3, 3, 16, 16)
    losses = judged(distilled(student, teacher, "hard", DistillConfig()), images, LABELS).losses
    logits, decided = student(images), teacher(images).argmax(1)
    torch.testing.assert_close(losses["cross_entropy"], 0.5 * F.cross_entropy(logits, LABELS, label_smoothing=0.1))
    torch.testing.assert_close(losses["distillation"], 0.5 * F.cross_entropy(logits, decided))


@pytest.mark.parametrize("kind", ["token", "hard", "soft"])
def test_the_class_token_learns_labels_and_the_distillation_token_the_teacher(kind):
    """DeiT, section 4: each classifier has a gradient from its own teacher alone."""
    student, teacher = known(build("deit_tiny_distilled", num_classes=5, **DEIT)), known(tiny())
    images = torch.randn(3, 3, 16, 16)
    losses = judged(distilled(student, teacher, kind, DistillConfig(temperature=2.0)), images, LABELS).losses
    outputs, theirs = student.outputs(images), teacher(images)
    wanted = soft_loss(outputs.distilled, theirs, 2.0) if kind == "soft" else hard_loss(outputs.distilled, theirs)
    torch.testing.assert_close(losses["cross_entropy"], F.cross_entropy(outputs.logits, LABELS) / 2)
    torch.testing.assert_close(losses["distillation"], wanted / 2)
    heads = (student.head.linear.weight, student.head.distilled.weight)
    by_labels = torch.autograd.grad(losses["cross_entropy"], heads, retain_graph=True, allow_unused=True)
    by_teacher = torch.autograd.grad(losses["distillation"], heads, allow_unused=True)
    assert by_labels[1] is None
    assert by_teacher[0] is None
    assert by_labels[0].abs().max() > 0
    assert by_teacher[1].abs().max() > 0


def test_classes_are_matched_by_name():
    student, teacher = pupil(), known(tiny(num_classes=7), classes=("fox", *reversed(CLASSES), "gnu"))
    images = torch.randn(3, 3, 16, 16)
    answers = distilled(student, teacher, "soft", DistillConfig()).prepare(images, LABELS, moment(3)).answers[0]
    torch.testing.assert_close(answers, teacher(images)[:, [5, 4, 3, 2, 1]])


def test_a_batch_that_is_only_looked_at_is_not_shown_to_the_teacher():
    objective = distilled(pupil(), known(tiny()), "soft", DistillConfig())
    objective.teacher.logits = None
    assert objective.prepare(torch.randn(3, 3, 16, 16), LABELS, moment(3, train=False)) is LABELS


def test_the_teacher_is_no_part_of_what_learns_and_never_moves():
    student, teacher = pupil(drop_path=0.5), known(tiny(drop_path=0.5))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    objective = distilled(student, teacher, "soft", DistillConfig())
    own = {id(parameter) for parameter in teacher.parameters()}
    assert not own & {id(parameter) for parameter in objective.parameters()}
    assert objective.own() == {}
    learner = Learner(
        student,
        OptimConfig(lr=1e-2, warmup=0.0, ema=0.9),
        AugmentConfig(mixup=0.2),
        total=4,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
        objective=objective,
    )
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    report = learner.step([Batch(pixels, LABELS, torch.arange(3), [])])
    assert report.losses.keys() == {"cross_entropy", "distillation"}
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any("teacher" in name for name in learner.tensors())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_segmenter_learns_every_pixel(kind):
    student, teacher = known(segmenter("upernet")), known(segmenter("unet"))
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(IGNORE, 5, (2, 16, 16))
    objective = distilled(student.eval(), teacher, kind, DistillConfig(temperature=2.0, alpha=0.25))
    losses = judged(objective, images, labels).losses
    own, theirs, counted = student(images), teacher(images), labels != IGNORE
    wanted = soft_loss(own, theirs, 2.0, counted) if kind == "soft" else hard_loss(own, theirs, counted)
    torch.testing.assert_close(losses["distillation"], 0.25 * wanted)
    plain = student.head.loss(student.outputs(images), labels)
    torch.testing.assert_close(losses["cross_entropy"], 0.75 * plain["cross_entropy"])


def test_a_detector_learns_features_from_a_classifier():
    student, teacher = tiny_detr(), known(tiny(), size=(32, 48), fit="within")
    images = torch.randn(2, 3, 32, 48)
    targets = Targets((no_objects(), no_objects()), whole_frames(images))
    objective = distilled(student, teacher, "features", DistillConfig())
    losses = judged(objective, images, targets).losses
    assert losses["features"] > 0
    plain = student.head.loss(student.outputs(images, targets.frames), targets)
    assert losses.keys() == {*plain, "features"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in objective.own().values())


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "says"),
    [
        (pupil, lambda: known(tiny()), "token", "no distillation token; choose --model deit_tiny_distilled"),
        (
            pupil,
            lambda: known(tiny(), classes=("ant", "bee", "cat", "dog", "gnu")),
            "soft",
            "not 'eel' of the data's 5",
        ),
        (pupil, lambda: known(tiny(), classes=None), "hard", "does not name its classes"),
        (pupil, lambda: known(segmenter("unet")), "soft", "is to segment and swin_micro to classify"),
        (tiny_detr, tiny_detr, "soft", "is to detect, which has no logits to learn soft; choose --distill features"),
        (pupil, lambda: known(tiny(in_channels=4)), "soft", "sees 4 channels and the student 3"),
        (tiny, lambda: known(tiny()), "soft", "set model.preprocess before it is taught"),
        (pupil, tiny, "soft", "teacher swin_micro has no preprocessing"),
    ],
)
def test_what_cannot_be_taught_is_refused_in_one_line(student, teacher, kind, says):
    with pytest.raises(ConfigError, match=says) as caught:
        distilled(student(), teacher(), kind, DistillConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"features": 0.0}, "features is 0.0"),
        ({"cache_top": -1}, "cache_top is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        DistillConfig(**fields)
