"""Metrics against brute force in numpy."""

import dataclasses

import numpy as np
import pytest
import torch

from swindow import metrics
from swindow.errors import ConfigError, MissingExtra
from swindow.metrics import ClassificationMetrics, accuracy_interval, class_scores, reliability


def random_answers(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.0
    return logits, labels


def softmax(logits: torch.Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy())
    return values / values.sum(axis=1, keepdims=True)


def brute_force(logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """Every metric by loops over single answers."""
    probabilities, truth = softmax(logits), labels.numpy()
    count, classes = probabilities.shape
    confusion = np.zeros((classes, classes), dtype=np.int64)
    top5, loss = 0, 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities, truth, strict=True):
        guess = int(row.argmax())
        confusion[label, guess] += 1
        top5 += int(sum(row > row[label]) < 5)
        loss -= np.log(row[label])
        bins.setdefault(min(int(row[guess] * 15), 14), []).append((row[guess], guess == label))
    gaps = [len(b) / count * abs(np.mean([p for p, _ in b]) - np.mean([r for _, r in b])) for b in bins.values()]
    return {
        "count": count,
        "accuracy": confusion.trace() / count,
        "top5": top5 / count if classes > 5 else None,
        "loss": loss / count,
        "calibration_error": sum(gaps),
        "confusion": confusion,
    }


@pytest.mark.parametrize("classes", [2, 5, 6, 21])
def test_equals_brute_force(classes):
    logits, labels = random_answers(300, classes, seed=classes)
    gathered = ClassificationMetrics(classes)
    for part in torch.arange(300).split(37):
        gathered.update(logits[part], labels[part])
    found, wanted = gathered.compute(), brute_force(logits, labels)
    assert found.keys() == wanted.keys()
    np.testing.assert_array_equal(found.pop("confusion"), wanted.pop("confusion"))
    assert found == pytest.approx(wanted, abs=1e-6)


def test_logits_between_0_and_1_are_not_taken_for_probabilities():
    logits, labels = torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([0, 1])
    gathered = ClassificationMetrics(2)
    gathered.update(logits, labels)
    assert gathered.compute()["calibration_error"] == pytest.approx(brute_force(logits, labels)["calibration_error"])


def test_low_precision_logits_are_measured_in_fp32():
    logits, labels = random_answers(64, 8)
    gathered = ClassificationMetrics(8)
    gathered.update(logits.bfloat16(), labels)
    rounded = brute_force(logits.bfloat16().float(), labels)
    assert gathered.compute()["loss"] == pytest.approx(rounded["loss"], abs=1e-6)


def test_scores_of_each_class():
    confusion = np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 5, 0, 0]])
    names = ["a", "b", "absent", "missed"]
    a, b, absent, missed = (dataclasses.astuple(score) for score in class_scores(confusion, names))
    assert a == ("a", 4, 3 / 5, 3 / 4, pytest.approx(2 / (5 / 3 + 4 / 3)))
    assert b == ("b", 6, 4 / 10, 4 / 6, pytest.approx(2 / (10 / 4 + 6 / 4)))
    assert absent == ("absent", 0, None, None, None)
    assert missed == ("missed", 5, None, 0.0, 0.0)


def test_reliability_bins_add_up_to_the_calibration_error():
    logits, labels = random_answers(400, 10)
    wanted = brute_force(logits, labels)["calibration_error"]
    bins = reliability(softmax(logits), labels.numpy())
    assert sum(bin.count for bin in bins) == 400
    assert all(bin.low <= bin.confidence < bin.high for bin in bins)
    assert sum(bin.count / 400 * abs(bin.confidence - bin.accuracy) for bin in bins) == pytest.approx(wanted)


def test_full_confidence_belongs_to_the_last_bin():
    (only,) = reliability(np.array([[1.0, 0.0]]), np.array([0]))
    assert dataclasses.astuple(only) == (pytest.approx(14 / 15), 1.0, 1, 1.0, 1.0)


def test_accuracy_interval_is_wilsons():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, count), interval in published.items():
        assert accuracy_interval(right, count) == pytest.approx(interval, abs=5e-5)
    assert accuracy_interval(20, 20) == pytest.approx((1 - 0.1611, 1), abs=5e-5)


def test_refuses_what_cannot_be_measured():
    with pytest.raises(ConfigError, match="at least 2 classes"):
        ClassificationMetrics(1)
    with pytest.raises(ConfigError, match="no images"):
        ClassificationMetrics(3).compute()


def test_missing_extra_names_the_line_that_installs_it(monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'swindow\[train\]'"):
        metrics.ClassificationMetrics(3)
