"""Masks of DETR's queries (Carion et al. 2020, section 5): where a query looks, made finer with the backbone's maps."""

import itertools
import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.heads.transformer import Padding, attention_scores
from swindow.ops.vision import sigmoid_focal_loss


class MaskAttention(nn.Module):
    """Where each query looks in the memory, by heads of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.q, self.k):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, queries: Float[Tensor, "B Q C"], memory: Float[Tensor, "B S C"], padding: Padding = None
    ) -> Float[Tensor, "B Q N S"]:
        """Weights that add up to 1 over all heads and cells together, as published."""
        q, k = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q(queries), self.k(memory)))
        scores = attention_scores(q, k, padding).transpose(1, 2)
        return scores.flatten(2).softmax(-1).view_as(scores)


class MaskUnit(nn.Module):
    """A 3x3 convolution, a group norm and a ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(_GROUPS, channels), channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return F.relu(self.norm(self.conv(x)))


_GROUPS = 8


class MaskHead(nn.Module):
    """Attention and memory to a mask for each query, on the grid of the finest of the maps that are given.

    `finer` are the channels of maps finer than the memory, the coarsest of them first. Channels are halved with each,
    from half the memory's own.
    """

    def __init__(self, width: int, heads: int, finer: tuple[int, ...]) -> None:
        super().__init__()
        widths = [width // 2 ** (power + 1) for power in range(len(finer) + 1)]
        self.first = MaskUnit(width + heads, width + heads)
        self.units = nn.ModuleList(MaskUnit(*pair) for pair in itertools.pairwise([width + heads, *widths]))
        self.laterals = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(finer, widths, strict=False))
        self.last = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(
        self, x: Float[Tensor, "B C H W"], attention: Float[Tensor, "B Q N H W"], finer: list[Float[Tensor, "B _ _ _"]]
    ) -> Float[Tensor, "B Q h w"]:
        """Logits of the masks."""
        images, queries = attention.shape[:2]
        wide = x[:, None].expand(-1, queries, -1, -1, -1)
        x = self.units[0](self.first(torch.cat([wide, attention], dim=2).flatten(0, 1)))
        for lateral, unit, fine in zip(self.laterals, self.units[1:], finer, strict=True):
            x = F.interpolate(x, size=fine.shape[-2:], mode="nearest").unflatten(0, (images, queries))
            x = unit((x + lateral(fine)[:, None]).flatten(0, 1))
        return self.last(x)[:, 0].unflatten(0, (images, queries))


def mask_losses(
    logits: Float[Tensor, "M H W"], truth: Float[Tensor, "M h w"], objects: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Focal and Dice loss of masks enlarged to the truth's size, summed and divided by the number of objects.

    The focal loss is a mean over pixels, of which those of an object count a quarter and others three; the Dice
    loss takes one pixel more of everything (as published).
    """
    logits = F.interpolate(logits[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    logits, truth = logits.flatten(1), truth.flatten(1)
    focal = sigmoid_focal_loss(logits, truth, alpha=0.25, gamma=2).mean(1).sum()
    shares = logits.sigmoid()
    dice = 1 - (2 * (shares * truth).sum(1) + 1) / (shares.sum(1) + truth.sum(1) + 1)
    return focal / objects, dice.sum() / objects
