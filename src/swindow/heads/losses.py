"""Losses of maps of classes. Pixels labelled IGNORE count nowhere; a batch of nothing else costs 0, with gradients 0.

They are to be computed in fp32 or wider, and outside of autocast, which would multiply in fewer digits: `losses_of` in
`swindow.heads.segment` sees to both.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from swindow.shapes import IGNORE

Logits = Float[Tensor, "B K h w"]
Labels = Int64[Tensor, "B h w"]


def at_least_fp32(values: Tensor) -> Tensor:
    """`values` in fp32, or as they are where they have more digits."""
    return values if values.dtype == torch.float64 else values.float()


_SMOOTH = 1e-5  # Swin-Unet's: a class that nobody has and nobody claims costs nothing


def cross_entropy(
    logits: Logits, labels: Labels, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean over the counted pixels, each weighted by its class's weight, if any."""
    total = F.cross_entropy(
        logits, labels, weight=weights, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum"
    )
    counted = labels != IGNORE
    if weights is None:
        return total / counted.sum().clamp_min(1)
    weighed = (weights[labels.clamp_min(0)] * counted).sum()
    return total / torch.where(weighed > 0, weighed, weighed.new_ones(()))


def focal(logits: Logits, labels: Labels, *, gamma: float = 2.0, weights: Tensor | None = None) -> Float[Tensor, ""]:
    """Cross-entropy in which pixels already told apart count less: (1 - p)^gamma (Lin et al. 2017, equation 4)."""
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    # 1 - p, kept from 0, where a power below 1 has no slope: pixels that do not count have an entropy of 0.
    unsure = (-torch.expm1(-entropy)).clamp_min(torch.finfo(entropy.dtype).eps)
    hard = unsure**gamma * entropy
    if weights is not None:
        hard = hard * weights[labels.clamp_min(0)]
    return hard.sum() / (labels != IGNORE).sum().clamp_min(1)


def dice(logits: Logits, labels: Labels) -> Float[Tensor, ""]:
    """One less the overlap of probabilities and truth, mean over all classes, pooled over the batch (Swin-Unet's).

    The overlap of a class is ``2 sum(p t) / (sum(p p) + sum(t t))`` (Milletari et al. 2016, section 3).
    """
    counted = (labels != IGNORE)[:, None]
    shares = logits.softmax(dim=1) * counted
    truth = _one_hot(labels, logits.shape[1], shares.dtype)
    both = (shares * truth).sum(dim=(0, 2, 3))
    sizes = (shares * shares).sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    return (1 - (2 * both + _SMOOTH) / (sizes + _SMOOTH)).mean()


def lovasz(logits: Logits, labels: Labels) -> Float[Tensor, ""]:
    """The convex extension of 1 - IoU, mean over the classes in the batch (Berman et al. 2018, equations 9 and 11).

    Which those are is asked of the device: on a GPU the one loss that waits for it.
    """
    counted = labels != IGNORE
    shares = logits.softmax(dim=1)
    costs = [
        _lovasz_of_class((labels == label).flatten(), shares[:, label].flatten(), counted.flatten())
        for label in labels.unique().tolist()  # only those present: an absent class has no IoU to extend
        if label != IGNORE
    ]
    return torch.stack(costs).mean() if costs else shares.sum() * 0


def _lovasz_of_class(truth: Tensor, shares: Tensor, counted: Tensor) -> Tensor:
    """Errors in falling order, each times what the IoU loses when its pixel is got wrong after all those before it.

    Pixels that do not count have an error of 0: whatever the IoU loses by them costs nothing.
    """
    errors, order = ((truth.to(shares.dtype) - shares).abs() * counted).sort(descending=True)
    truth = truth[order]
    left = (truth.sum() - truth.cumsum(0)).to(errors.dtype)  # counted in whole numbers, which are exact
    union = (truth.sum() + (~truth).cumsum(0)).to(errors.dtype)
    # A pixel of the class leaves the intersection, any other joins the union; their differences, without subtracting.
    lost = torch.where(truth, 1 / union, left / (union * (union - 1)))
    return (errors * lost).sum()


def _one_hot(labels: Labels, classes: int, dtype: torch.dtype) -> Float[Tensor, "B K h w"]:
    """1 where a pixel is of the class, 0 elsewhere and where it is not counted."""
    counted = labels != IGNORE
    hot = torch.zeros((labels.shape[0], classes, *labels.shape[1:]), dtype=dtype, device=labels.device)
    return hot.scatter_(1, labels.clamp_min(0)[:, None], counted[:, None].to(dtype))
