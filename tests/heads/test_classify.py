"""The classifier: pooling, losses by hand, decoding."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.heads.classify import Classifier, ClassifierConfig, ClassifierOutputs


def head(**fields: Any) -> Classifier:
    return ClassifierConfig(num_classes=3, **fields).build((4, 8)).eval()


def test_logits_are_a_linear_map_of_the_mean_over_the_last_map_s_tokens() -> None:
    classifier = head()
    torch.nn.init.normal_(classifier.linear.bias)
    pyramid = (torch.randn(2, 6, 4, 4), torch.randn(2, 3, 2, 8))
    pooled = pyramid[1].flatten(1, 2).sum(1) / 6
    expected = pooled @ classifier.linear.weight.T + classifier.linear.bias
    torch.testing.assert_close(classifier(pyramid).logits, expected)
    assert torch.equal(classifier.decode(classifier(pyramid)), classifier(pyramid).logits)


def test_the_head_starts_small_and_without_a_bias() -> None:
    linear = ClassifierConfig(num_classes=500).build((768,)).linear
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert (linear.bias == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_cross_entropy(smoothing: float, soft: bool) -> None:
    classifier = head(label_smoothing=smoothing)
    logits = torch.randn(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    shares = torch.rand(5, 3).softmax(1) if soft else F.one_hot(labels, 3).float()
    smoothed = shares * (1 - smoothing) + smoothing / 3
    expected = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    losses = classifier.loss(ClassifierOutputs(logits), shares if soft else labels)
    assert list(losses) == ["cross_entropy"]
    torch.testing.assert_close(losses["cross_entropy"], expected)


def test_the_loss_is_computed_in_fp32() -> None:
    outputs = ClassifierOutputs(torch.randn(4, 3, dtype=torch.bfloat16))
    loss = head().loss(outputs, torch.tensor([0, 1, 2, 0]))["cross_entropy"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(outputs.logits.float(), torch.tensor([0, 1, 2, 0])))


def test_the_mean_may_be_normed_by_the_head() -> None:
    classifier, pyramid = head(pool="mean_norm"), (torch.randn(2, 3, 2, 8),)
    expected = classifier.linear(F.layer_norm(pyramid[0].mean((1, 2)), (8,), eps=1e-6))
    torch.testing.assert_close(classifier(pyramid).logits, expected)


def test_a_token_stands_before_the_maps() -> None:
    classifier, pyramid = (
        head(pool="token"),
        (torch.randn(2, 1, 2, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 2, 2, 8)),
    )
    outputs = classifier(pyramid)
    torch.testing.assert_close(outputs.logits, classifier.linear(pyramid[0][:, 0, 0]))
    assert outputs.distilled is None
    assert [name for name, _ in classifier.named_parameters()] == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize("training", [False, True])
def test_two_tokens_have_a_classifier_each_and_the_answer_is_their_mean(training: bool) -> None:
    classifier, pyramid = head(pool="tokens").train(training), (torch.randn(2, 1, 2, 8), torch.randn(2, 2, 2, 8))
    outputs = classifier(pyramid)
    torch.testing.assert_close(outputs.logits, classifier.linear(pyramid[0][:, 0, 0]))
    torch.testing.assert_close(outputs.distilled, classifier.distilled(pyramid[0][:, 0, 1]))
    torch.testing.assert_close(classifier.decode(outputs), (outputs.logits + outputs.distilled) / 2)
    assert not torch.equal(classifier.linear.weight, classifier.distilled.weight)


def test_two_classifiers_have_half_a_say_each() -> None:
    """DeiT, equation 3, where the teacher says what the labels say."""
    classifier, labels = head(pool="tokens", label_smoothing=0.1), torch.tensor([0, 2])
    outputs = ClassifierOutputs(torch.randn(2, 3), torch.randn(2, 3))
    losses = classifier.loss(outputs, labels)
    assert list(losses) == ["cross_entropy", "cross_entropy_distilled"]
    for loss, logits in zip(losses.values(), outputs, strict=True):
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1) / 2)


def test_targets_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ShapeError, match="targets name 2 classes and the head has 3"):
        head().loss(ClassifierOutputs(torch.zeros(1, 3)), torch.zeros(1, 2))


def test_dropout_acts_on_the_pooled_features_in_training_only() -> None:
    classifier = head(head_dropout=0.5)
    pyramid = (torch.randn(1, 2, 2, 8),)
    assert torch.equal(classifier(pyramid).logits, classifier(pyramid).logits)
    classifier.train()
    assert not torch.equal(classifier(pyramid).logits, classifier(pyramid).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": -1}, "num_classes is -1; give 1 or more, or 0 for features without a classifier"),
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 and head_dropout 0.0 must lie in \[0, 1\)"),
        ({"head_dropout": -0.1}, r"label_smoothing 0.0 and head_dropout -0.1 must lie in \[0, 1\)"),
    ],
)
def test_a_head_that_cannot_be_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierConfig(**fields)  # type: ignore[arg-type]
