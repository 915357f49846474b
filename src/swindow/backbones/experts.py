"""Mixtures of experts in plain PyTorch: routers, queues, balance losses, and experts as batched matrices.

S is the number of tokens, E of experts, k of those that a token asks for, R of tokens that an expert has room for.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F


class Routes(NamedTuple):
    """Where each of S tokens goes: k experts, best first."""

    experts: Int64[Tensor, "S k"]
    gates: Float[Tensor, "S k"]
    """Weight of each expert's answer."""
    places: Int64[Tensor, "S k"]
    """Number in each expert's queue, from 0."""


def route(scores: Float[Tensor, "S E"], top: int, *, normalized: bool = False, prioritized: bool = False) -> Routes:
    """The `top` experts of highest score for each token, with places in their queues.

    All first choices are served before any second one; among them the tokens with the highest score if `prioritized`,
    else those that come first in the batch.
    """
    tokens = scores.shape[0]  # not len(), which fixes the number in an exported graph
    gates, experts = scores.topk(top, dim=1)
    order = torch.arange(tokens, device=scores.device)
    if prioritized:
        order = gates[:, 0].argsort(descending=True, stable=True)
    queue = experts[order].T.flatten()
    places = _one_hot(queue, scores.shape[1]).cumsum(0).gather(1, queue[:, None]).unflatten(0, (top, tokens)) - 1
    places = torch.empty_like(experts).index_copy(0, order, places[:, :, 0].T)
    if normalized and top > 1:  # a gate alone would be 1 whatever the router says, and teach it nothing
        gates = gates / gates.sum(1, keepdim=True)
    return Routes(experts, gates, places)


def switch_loss(scores: Float[Tensor, "S E"], experts: Int64[Tensor, "S k"]) -> Float[Tensor, ""]:
    """E times the product of an expert's mean score and its share of first choices, summed; 1 if both are even.

    From GShard (Lepikhin et al. 2020, section 2.2) and Switch (Fedus et al. 2021, equation 4).
    """
    shares = _one_hot(experts[:, 0], scores.shape[1]).to(scores.dtype).mean(0)
    return scores.shape[1] * (scores.mean(0) * shares).sum()


def importance_loss(logits: Float[Tensor, "S E"], least: Float[Tensor, "S 1"], deviation: float) -> Float[Tensor, ""]:
    """How unlike the experts' importances and loads are: the mean of both squared coefficients of variation; 0 if even.

    Importance is the sum of scores; load the expected number of tokens, the noise of this `deviation` drawn again: that
    a noisy logit exceeds `least`, the least of those chosen (Shazeer et al. 2017, appendix A; Riquelme et al. 2021,
    appendix A). Tutel, which trained the published models, compares `least` with probabilities in place of logits.
    """
    importances = logits.softmax(1).sum(0)
    loads = torch.special.ndtr((logits - least) / deviation).sum(0)
    return (_unevenness(importances) + _unevenness(loads)) / 2


class LinearRouter(nn.Linear):
    """A token's logit for each expert, by a product; in fp32 at least."""

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__(dim, experts, bias=False)

    def forward(self, input: Float[Tensor, "S C"]) -> Float[Tensor, "S E"]:
        return F.linear(_wide(input), _wide(self.weight))


class CosineRouter(nn.Module):
    """A token's logit for each expert, by the cosine of its projection and a direction; in fp32 at least.

    The scale of the cosines is learned, from 2 at the start and never above 100 (Chi et al. 2022, section 3; Tutel).
    """

    def __init__(self, dim: int, experts: int, width: int = 256) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, width)
        self.directions = nn.Parameter(torch.empty(width, experts).normal_(std=0.01))
        self.logit_scale = nn.Parameter(torch.tensor([2.0]).log())

    def forward(self, input: Float[Tensor, "S C"]) -> Float[Tensor, "S E"]:
        projected = F.linear(_wide(input), _wide(self.projection.weight), _wide(self.projection.bias))
        cosines = F.normalize(projected, dim=1) @ F.normalize(_wide(self.directions), dim=0)
        return cosines * _wide(self.logit_scale).clamp(max=math.log(100)).exp()


class Experts(nn.Module):
    """E MLPs of one shape, each on its own R tokens; the layout of the weights is Tutel's, ``E hidden C`` for both."""

    def __init__(self, number: int, dim: int, hidden: int, *, output_bias: bool, dropout: float) -> None:
        super().__init__()
        self.fc1_weight = nn.Parameter(torch.empty(number, hidden, dim))
        self.fc1_bias = nn.Parameter(torch.zeros(number, 1, hidden))
        self.fc2_weight = nn.Parameter(torch.empty(number, hidden, dim))
        self.fc2_bias = nn.Parameter(torch.zeros(number, 1, dim)) if output_bias else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "E R C"]) -> Float[Tensor, "E R C"]:
        hidden = self.dropout(F.gelu(torch.baddbmm(self.fc1_bias, x, self.fc1_weight.mT)))
        if self.fc2_bias is None:
            return torch.bmm(hidden, self.fc2_weight)
        return torch.baddbmm(self.fc2_bias, hidden, self.fc2_weight)


def _one_hot(experts: Int64[Tensor, " S"], number: int) -> Tensor:
    """``S E``, true where the token's expert is."""
    return experts[:, None] == torch.arange(number, device=experts.device)


def _unevenness(x: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    """Squared coefficient of variation."""
    return x.var() / x.mean().square()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
