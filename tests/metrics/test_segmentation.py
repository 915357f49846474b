"""Scores of pixels against loops over single ones in fp64, and against torchmetrics where it defines them alike."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index
from torchmetrics.functional.segmentation import dice_score, mean_iou

from swindow.errors import ConfigError, ShapeError
from swindow.metrics import confusion_of_pixels, dice_scores, mean_of_known, pixel_accuracy, pixel_scores
from swindow.shapes import IGNORE


def random_masks(classes: int, size: tuple[int, ...], seed: int, ignored: float = 0.2) -> tuple[torch.Tensor, ...]:
    """An answer and a truth that agree in about half of the pixels; some classes are rare, some pixels ignored."""
    random = np.random.default_rng(seed)
    often = random.dirichlet(np.full(classes, 0.4))
    truth = random.choice(classes, size, p=often)
    answer = np.where(random.random(size) < 0.5, truth, random.choice(classes, size, p=often))
    truth[random.random(size) < ignored] = IGNORE
    return torch.from_numpy(answer), torch.from_numpy(truth)


def brute_force(answer: torch.Tensor, truth: torch.Tensor, classes: int) -> dict:
    """Every score by loops over pixels."""
    pairs = [(int(t), int(a)) for t, a in zip(truth.flatten(), answer.flatten(), strict=True) if t != IGNORE]
    iou, accuracy, dice = [], [], []
    for k in range(classes):
        both = sum(t == k and a == k for t, a in pairs)
        true, called = sum(t == k for t, _ in pairs), sum(a == k for _, a in pairs)
        either = sum(t == k or a == k for t, a in pairs)
        iou.append(both / either if either else None)
        accuracy.append(both / true if true else None)
        dice.append(2 * both / (true + called) if true + called else None)
    return {"iou": iou, "accuracy": accuracy, "dice": dice, "right": sum(t == a for t, a in pairs) / len(pairs)}


@pytest.mark.parametrize("seed", range(6))
def test_equals_loops_over_pixels(seed):
    classes = [2, 3, 5, 9, 17, 40][seed]
    answer, truth = random_masks(classes, (37, 29), seed)
    confusion = np.zeros((classes, classes), np.int64)
    for rows in (slice(0, 11), slice(11, 37)):  # in pieces, as a set comes
        confusion += confusion_of_pixels(answer[rows], truth[rows], classes)
    wanted, scores = brute_force(answer, truth, classes), pixel_scores(confusion, [str(k) for k in range(classes)])
    assert [score.iou for score in scores] == pytest.approx(wanted["iou"], abs=1e-9)
    assert [score.accuracy for score in scores] == pytest.approx(wanted["accuracy"], abs=1e-9)
    assert list(dice_scores(confusion)) == pytest.approx(wanted["dice"], abs=1e-9)
    assert pixel_accuracy(confusion) == pytest.approx(wanted["right"], abs=1e-9)
    assert [score.pixels for score in scores] == [int((truth == k).sum()) for k in range(classes)]
    assert classes < 17 or None in wanted["iou"]  # classes that never occur were among them


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_the_confusion_is_torchmetrics(classes):
    answer, truth = random_masks(classes, (64, 64), classes)
    theirs = multiclass_confusion_matrix(answer, truth, classes, ignore_index=IGNORE)
    np.testing.assert_array_equal(confusion_of_pixels(answer, truth, classes), theirs.numpy())


def test_iou_and_dice_are_torchmetrics_where_every_class_occurs():
    answer, truth = random_masks(4, (50, 50), 3, ignored=0.0)
    answer[0, :4] = truth[0, :4] = torch.arange(4)
    confusion = confusion_of_pixels(answer, truth, 4)
    ious = [score.iou for score in pixel_scores(confusion, "abcd")]
    theirs = mean_iou(answer[None], truth[None], 4, per_class=True, input_format="index")
    assert ious == pytest.approx(theirs[0].tolist(), abs=1e-6)  # theirs is in fp32
    assert mean_of_known(ious) == pytest.approx(float(multiclass_jaccard_index(answer, truth, 4)), abs=1e-6)
    dice = dice_score(answer[None], truth[None], 4, average=None, input_format="index")
    assert list(dice_scores(confusion)) == pytest.approx(dice[0].tolist(), abs=1e-6)


def test_counts_beyond_fp32_and_int32_stay_exact():
    confusion = np.array([[2**33 + 1, 1], [0, 2**24 + 1]])
    confusion += confusion_of_pixels(torch.tensor([0, 1]), torch.tensor([0, 1]), 2)
    assert confusion.tolist() == [[2**33 + 2, 1], [0, 2**24 + 2]]
    assert pixel_scores(confusion, "ab")[1].iou == (2**24 + 2) / (2**24 + 3)


def test_what_divides_by_nothing_is_none_and_in_no_mean():
    confusion = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    a, called_only, absent, missed = pixel_scores(confusion, ["a", "called only", "absent", "missed"])
    assert (a.iou, a.accuracy, a.pixels) == (3 / 6, 3 / 4, 4)
    assert (called_only.iou, called_only.accuracy) == (0.0, None)
    assert (absent.iou, absent.accuracy) == (None, None)
    assert (missed.iou, missed.accuracy) == (0.0, 0.0)
    assert dice_scores(confusion) == (6 / 9, 0.0, None, 0.0)
    assert mean_of_known([0.5, None, 0.0]) == 0.25
    assert mean_of_known([None]) is None
    assert pixel_accuracy(np.zeros((2, 2), np.int64)) is None


def test_deterministic_algorithms_neither_change_nor_slow_it():
    answer, truth = random_masks(150, (256, 256), 1)
    wanted = confusion_of_pixels(answer, truth, 150)
    torch.use_deterministic_algorithms(True)
    try:  # torchmetrics would make a table of 52,000 × 22,500 here
        np.testing.assert_array_equal(confusion_of_pixels(answer, truth, 150), wanted)
    finally:
        torch.use_deterministic_algorithms(False)


def test_masks_are_left_as_they_were():
    answer, truth = random_masks(3, (8, 8), 0, ignored=0.0)
    before = truth.clone()
    confusion_of_pixels(answer, truth, 3)
    assert torch.equal(truth, before)


def test_refuses_what_it_cannot_count():
    ok = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"answers are \(3, 2\) and the truth \(2, 2\)"):
        confusion_of_pixels(torch.zeros(3, 2, dtype=torch.int64), ok, 2)
    for wrong in (-1, 2):
        with pytest.raises(ConfigError, match="answers name classes"):
            confusion_of_pixels(ok + wrong, ok, 2)
    for wrong in (-2, 2):
        with pytest.raises(ConfigError, match="truth name classes"):
            confusion_of_pixels(ok, ok + wrong, 2)
