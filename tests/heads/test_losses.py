"""Losses of maps of classes against loops in fp64 and the papers' definitions."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.heads import losses
from swindow.heads.segment import SegmenterConfig, losses_of, right_of
from swindow.shapes import IGNORE

K = 4
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.3], dtype=torch.float64)
EVERY: dict[str, Any] = {"cross_entropy": 0.7, "dice": 0.6, "lovasz": 0.3, "focal": 0.2}


def batch(*, ignored: float = 0.3, size: tuple[int, int] = (5, 6)) -> tuple[Tensor, Tensor]:
    """Logits of two images in fp64, and labels without class 2, some ignored."""
    logits = torch.randn(2, K, *size, dtype=torch.float64)
    labels = torch.tensor([0, 1, 3])[torch.randint(0, 3, (2, *size))]
    return logits, labels.masked_fill(torch.rand(2, *size) < ignored, IGNORE)


def pixels(logits: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    """Probabilities and label of every pixel that counts."""
    shares = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).tolist()
    return [pair for pair in zip(shares, labels.flatten().tolist(), strict=True) if pair[1] != IGNORE]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_cross_entropy_pixel_by_pixel(weights: Tensor | None, smoothing: float) -> None:
    logits, labels = batch()
    total = weighed = 0.0
    by_class = [1.0] * K if weights is None else weights.tolist()
    for shares, label in pixels(logits, labels):
        target = [smoothing / K + (1 - smoothing) * (k == label) for k in range(K)]
        total -= sum(t * w * math.log(p) for t, w, p in zip(target, by_class, shares, strict=True))
        weighed += by_class[label]
    found = losses.cross_entropy(logits, labels, weights=weights, smoothing=smoothing)
    assert found.item() == pytest.approx(total / weighed, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_focal_pixel_by_pixel(weights: Tensor | None, gamma: float) -> None:
    logits, labels = batch()
    by_class = [1.0] * K if weights is None else weights.tolist()
    all_of_them = pixels(logits, labels)
    total = -sum(by_class[k] * (1 - shares[k]) ** gamma * math.log(shares[k]) for shares, k in all_of_them)
    found = losses.focal(logits, labels, gamma=gamma, weights=weights)
    assert found.item() == pytest.approx(total / len(all_of_them), rel=1e-9)


def test_dice_class_by_class() -> None:
    logits, labels = batch()
    costs = []
    for k in range(K):
        both = sum(shares[k] for shares, label in pixels(logits, labels) if label == k)
        claimed = sum(shares[k] ** 2 for shares, _ in pixels(logits, labels))
        there = sum(label == k for _, label in pixels(logits, labels))
        costs.append(1 - (2 * both + 1e-5) / (claimed + there + 1e-5))
    assert losses.dice(logits, labels).item() == pytest.approx(sum(costs) / K, rel=1e-12)


def jaccard_loss(wrong: frozenset[int], truth: frozenset[int]) -> float:
    """1 - IoU of a class whose pixels are `truth`, when just the pixels `wrong` are got wrong (equation 5)."""
    return len(wrong) / len(truth | wrong)


def lovasz_extension(errors: list[float], truth: frozenset[int]) -> float:
    """Definition 1: an interpolation of the set function above along the pixels in the order of their errors."""
    order = sorted(range(len(errors)), key=lambda pixel: -errors[pixel])
    sets = [frozenset(order[:count]) for count in range(len(order) + 1)]
    gains = [jaccard_loss(after, truth) - jaccard_loss(before, truth) for before, after in itertools.pairwise(sets)]
    return sum(errors[pixel] * gain for pixel, gain in zip(order, gains, strict=True))


def test_lovasz_is_the_extension_of_the_set_function() -> None:
    logits, labels = batch(size=(7, 9))
    all_of_them, costs = pixels(logits, labels), []
    for k in (0, 1, 3):  # class 2 is in no mask
        truth = frozenset(pixel for pixel, (_, label) in enumerate(all_of_them) if label == k)
        errors = [abs((label == k) - shares[k]) for shares, label in all_of_them]
        costs.append(lovasz_extension(errors, truth))
    assert losses.lovasz(logits, labels).item() == pytest.approx(sum(costs) / 3, rel=1e-12)


def test_lovasz_of_hard_answers_is_one_less_the_mean_iou() -> None:
    """At the corners of the cube a Lovász extension is the set function itself."""
    _, labels = batch(size=(8, 8))
    answers = torch.randint(0, K, labels.shape)
    logits = F.one_hot(answers, K).movedim(-1, 1).double() * 1e3
    counted = labels != IGNORE
    ious = []
    for k in (0, 1, 3):
        claimed, there = (answers == k) & counted, labels == k
        ious.append(((claimed & there).sum() / (claimed | there).sum()).item())
    assert losses.lovasz(logits, labels).item() == pytest.approx(1 - sum(ious) / 3, rel=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "lovasz", "focal"])
def test_gradients_are_those_of_the_values(name: str) -> None:
    logits, labels = batch(size=(3, 3))
    assert torch.autograd.gradcheck(lambda x: getattr(losses, name)(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_batch_without_labels_costs_nothing(dtype: torch.dtype, gamma: float) -> None:
    logits = (10 * torch.randn(2, K, 4, 5)).to(dtype).requires_grad_()
    labels = torch.full((2, 4, 5), IGNORE)
    for weights in ((), tuple(WEIGHTS.tolist())):
        config = SegmenterConfig(num_classes=K, class_weights=weights, label_smoothing=0.1, focal_gamma=gamma, **EVERY)
        found = losses_of(logits, labels, config)
        assert found.keys() == EVERY.keys()
        for name, loss in found.items():
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            assert loss.item() == 0, name
            assert (gradient == 0).all(), name


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_ignored_and_certain_pixels_leave_gradients_finite(gamma: float) -> None:
    logits = torch.zeros(1, K, 2, 2)
    logits[:, 1] = torch.tensor([[0.0, 200.0], [-200.0, 3.0]])
    labels = torch.tensor([[[IGNORE, 1], [1, 0]]])
    logits.requires_grad_()
    config = SegmenterConfig(num_classes=K, focal_gamma=gamma, **EVERY)
    total = torch.stack(list(losses_of(logits, labels, config).values())).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, :, 0, 0] == 0).all()
    assert gradient[0, :, 1].abs().max() > 0


@pytest.mark.parametrize("name", ["dice", "lovasz", "cross_entropy", "focal"])
def test_ignored_pixels_are_as_if_they_were_not_there(name: str) -> None:
    logits, labels = batch(ignored=0)
    more = torch.cat([logits, torch.randn_like(logits)], dim=2)
    there = torch.cat([labels, torch.full_like(labels, IGNORE)], dim=1)
    loss = getattr(losses, name)
    torch.testing.assert_close(loss(more, there), loss(logits, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_logits_and_autocast_are_summed_in_fp32(dtype: torch.dtype) -> None:
    logits, labels = batch(size=(40, 40))
    low = logits.to(dtype)
    config = SegmenterConfig(num_classes=K, class_weights=tuple(WEIGHTS.tolist()), **EVERY)
    expected = losses_of(low.double(), labels, config)
    for found in (losses_of(low, labels, config), autocast_losses(low, labels, config, dtype)):
        for name, loss in found.items():
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def autocast_losses(logits: Tensor, labels: Tensor, config: SegmenterConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.autocast("cpu", dtype):
        return losses_of(logits, labels, config)


def test_each_loss_has_its_weight_and_0_leaves_it_out() -> None:
    logits, labels = batch()
    every = losses_of(logits, labels, SegmenterConfig(num_classes=K, **EVERY))
    assert list(every) == ["cross_entropy", "dice", "lovasz", "focal"]
    for name, weight in EVERY.items():
        torch.testing.assert_close(every[name], weight * getattr(losses, name)(logits, labels))
        only = SegmenterConfig(num_classes=K, **{other: weight if other == name else 0.0 for other in EVERY})
        assert list(losses_of(logits, labels, only)) == [name]


@pytest.mark.slow
def test_many_pixels_are_counted_exactly() -> None:
    """More than fp32 can count one by one: 2^24 and a bit."""
    labels = torch.zeros(1, 4097, 4096, dtype=torch.int64)
    labels[0, 0] = 1
    logits = torch.zeros(1, 2, 4097, 4096)
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(math.log(2), rel=1e-6)
    share = 4096 * 4096
    dice = sum((1 - 2 * (n / 2) / ((share + 4096) / 4 + n)) / 2 for n in (share, 4096))
    assert losses.dice(logits, labels).item() == pytest.approx(dice, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((2, 5, 6), K), "a pixel is labelled 4; 4 classes are 0 to 3, and -1 is no class"),
        (torch.full((2, 5, 6), -2), "a pixel is labelled -2; 4 classes are 0 to 3"),
        (torch.full((2, 5, 6), 255), "labelled 255; .* mark other values with ignore_index"),
        (torch.zeros(2, 6, 5, dtype=torch.int64), r"labels are \(2, 6, 5\) and logits \(2, 4, 5, 6\)"),
        (torch.zeros(1, 5, 6, dtype=torch.int64), r"labels are \(1, 5, 6\) and logits \(2, 4, 5, 6\)"),
    ],
)
@pytest.mark.parametrize("name", EVERY)
def test_labels_that_cannot_be_are_refused(name: str, labels: Tensor, message: str) -> None:
    config = SegmenterConfig(num_classes=K, **{other: float(other == name) for other in EVERY})
    with pytest.raises(ShapeError, match=message):
        losses_of(batch()[0], labels, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0; a map needs at least 1 class"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must lie in \[0, 1\)"),
        ({"cross_entropy": 0.0}, "none below 0, one loss above it"),
        ({"dice": -0.1}, "none below 0, one loss above it"),
        ({"focal_gamma": -1.0}, "none below 0, one loss above it"),
        ({"class_weights": (1.0, 2.0)}, "class_weights has 2 values for 4 classes; give one of at least 0 for each"),
        ({"class_weights": (1.0, 2.0, -1.0, 0.0)}, "give one of at least 0 for each, or none"),
    ],
)
def test_losses_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmenterConfig(**({"num_classes": K} | fields))


def test_right_answers_are_counted_where_cells_have_their_middle() -> None:
    logits = torch.zeros(1, 2, 2, 3)
    logits[0, 1, 0] = 1.0  # the upper row says 1, the lower 0
    labels = torch.zeros(1, 8, 12, dtype=torch.int64)
    labels[0, :4] = 1
    assert [int(x) for x in right_of(logits, labels)] == [6, 6]
    labels[0, 2, 2] = 0  # the middle of the first cell, and of no other
    assert [int(x) for x in right_of(logits, labels)] == [5, 6]
    labels[0, 6, 10] = IGNORE
    assert [int(x) for x in right_of(logits, labels)] == [4, 5]
