"""Queues and balance losses against their definitions by hand, and what the cosine router does not see."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from swindow.backbones.experts import CosineRouter, importance_loss, route, switch_loss


def test_queues_by_hand() -> None:
    """Token 2 is the surest and token 1 the least; second choices come after all first ones."""
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.8, 0.1, 0.15], [0.2, 0.7, 0.1]])
    plain, first = route(scores, 2), route(scores, 2, prioritized=True)
    assert plain.experts.tolist() == first.experts.tolist() == [[0, 1], [0, 1], [0, 2], [1, 0]]
    assert plain.places.tolist() == [[0, 1], [1, 2], [2, 0], [0, 3]]
    assert first.places.tolist() == [[1, 1], [2, 2], [0, 0], [0, 3]]
    assert torch.equal(plain.gates, torch.tensor([[0.6, 0.3], [0.5, 0.4], [0.8, 0.15], [0.7, 0.2]]))
    torch.testing.assert_close(route(scores, 2, normalized=True).gates.sum(1), torch.ones(4))
    assert torch.equal(route(scores, 1, normalized=True).gates[:, 0], scores.amax(1))  # else the router learns nothing


def test_equals_are_served_in_order() -> None:
    scores = torch.tensor([[0.7, 0.3]]).expand(50, 2)
    assert route(scores, 1, prioritized=True).places[:, 0].tolist() == list(range(50))


def test_switch_loss_is_its_formula() -> None:
    scores = torch.rand(20, 4, dtype=torch.float64).softmax(1)
    total = 0.0
    for expert in range(4):
        share = sum(int(row.argmax()) == expert for row in scores) / 20
        total += share * scores[:, expert].mean()
    assert switch_loss(scores, scores.topk(2).indices).item() == pytest.approx(4 * float(total), rel=1e-12)


def test_even_routing_has_a_switch_loss_of_one_and_no_importance_loss() -> None:
    logits = 5.0 * torch.eye(4, dtype=torch.float64).repeat(6, 1)
    scores = logits.softmax(1)
    assert switch_loss(scores, scores.topk(1).indices).item() == pytest.approx(1.0, abs=1e-12)
    assert importance_loss(logits, logits.amax(1, keepdim=True), 0.25).item() == pytest.approx(0.0, abs=1e-12)
    collapsed = torch.eye(4, dtype=torch.float64)[:1].repeat(6, 1)
    assert switch_loss(collapsed, collapsed.topk(1).indices).item() == pytest.approx(4.0)


def test_importance_loss_is_its_formula() -> None:
    logits, least = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)
    importance = [sum(math.exp(row[e]) / sum(map(math.exp, row)) for row in logits.tolist()) for e in range(3)]
    pairs = list(zip(logits.tolist(), least[:, 0].tolist(), strict=True))
    load = [sum(0.5 * (1 + math.erf((row[e] - low) / 0.5 / math.sqrt(2))) for row, low in pairs) for e in range(3)]
    terms = []
    for values in (importance, load):
        mean = sum(values) / 3
        terms.append(sum((value - mean) ** 2 for value in values) / 2 / mean**2)
    assert importance_loss(logits, least, 0.5).item() == pytest.approx(sum(terms) / 2, rel=1e-10)


def test_cosine_router_sees_directions_only() -> None:
    router = CosineRouter(4, 3, width=6).double()
    tokens = torch.randn(5, 4, dtype=torch.float64)
    nn.init.zeros_(router.projection.bias)
    logits = router(tokens)
    torch.testing.assert_close(router(tokens * 7.5), logits)
    cosines = F.cosine_similarity(router.projection(tokens)[:, None], router.directions.T[None], dim=-1)
    torch.testing.assert_close(logits, 2.0 * cosines)  # one over Tutel's temperature of 0.5
    with torch.no_grad():
        router.directions *= torch.tensor([0.1, 3.0, 40.0])
        torch.testing.assert_close(router(tokens), logits)
        router.logit_scale += 99.0
        torch.testing.assert_close(router(tokens), 100.0 * cosines)
        assert torch.equal(router(torch.zeros_like(tokens)), torch.zeros(5, 3, dtype=torch.float64))
