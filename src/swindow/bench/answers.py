"""Whether a faster way to run a model still gives the model's answers: a broken graph is quick too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from swindow.bench.work import Work
from swindow.devices import Precision
from swindow.errors import ConfigError

# Of the logits' norm. bf16 moves Swin-T's and V2-T's by 0.006 to 0.01 in any library, fp32 by less than 1e-6.
LIMITS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}


def distance(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference by that of the truth; infinite where something is not finite."""
    found, truth = found.detach().double(), truth.detach().double()
    away = torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth)
    return float(away) if bool(away.isfinite()) else float("inf")


def check(found: Callable[[Tensor], Any], truth: Callable[[Tensor], Any], work: Work) -> None:
    """Give both the images of the work, in fp32, and compare the logits.

    Raises:
        ConfigError: they are further apart than rounding explains.
    """
    images = work.images()
    with torch.no_grad():
        away = distance(found(images), truth(images))
    limit = LIMITS[work.dtype]
    if away > limit:
        raise ConfigError(f"its logits are {away:.1e} of their norm away from the model's, {work.dtype} allows {limit}")
