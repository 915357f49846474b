"""How far a computation may be from the truth, measured instead of chosen."""

import torch
from torch import Tensor


def assert_within_budget(actual: Tensor, truth64: Tensor, low_precision: Tensor, *, times: int = 2) -> None:
    """`actual` may be as far from the truth as twice a plain computation in its own precision, and a rounding band.

    Args:
        actual: what is judged.
        truth64: the same in fp64, from inputs that were already rounded to the precision of `actual`.
        low_precision: the reference implementation in the precision of `actual`.
        times: how many times its error, if not twice.
    """
    assert truth64.dtype == torch.float64
    assert actual.dtype == low_precision.dtype
    assert actual.shape == truth64.shape == low_precision.shape
    assert torch.isfinite(actual).all()
    band = torch.finfo(actual.dtype).eps * truth64.abs().max()
    budget = times * (low_precision.double() - truth64).abs().max() + band
    error = (actual.double() - truth64).abs().max()
    assert error <= budget, f"error {error:.3e} is over the budget {budget:.3e} of {actual.dtype}"
