"""The oracle: window attention as the paper writes it, in any dtype up to fp64, with the weights on request."""

import torch
from jaxtyping import Float
from torch import Tensor

from swindow.ops.windows import Size, merge, partition, region_mask


def window_attention(
    qkv: Float[Tensor, "B H W 3 N D"],
    bias: Float[Tensor, "N T T"] | None,
    *,
    window: Size,
    shift: Size,
    scale: float | Float[Tensor, " N"],
    cosine: bool = False,
) -> Float[Tensor, "B H W N D"]:
    """The contract of `swindow.ops.attention.window_attention`, eagerly, with the attention matrix in memory."""
    query, key, value = split_heads(qkv, window, shift)
    grid = qkv.shape[1], qkv.shape[2]
    weights = _weights(query, key, added_logits(bias, grid, window, shift, qkv), scale, cosine)
    return join_heads(weights @ value, grid, window, shift)


def attention_weights(
    qkv: Float[Tensor, "B H W 3 N D"],
    bias: Float[Tensor, "N T T"] | None,
    *,
    window: Size,
    shift: Size,
    scale: float | Float[Tensor, " N"],
    cosine: bool = False,
) -> Float[Tensor, "B G N T T"]:
    """How much each query (row) takes from each key (column) of its window; rows sum to one."""
    query, key, _ = split_heads(qkv, window, shift)
    added = added_logits(bias, (qkv.shape[1], qkv.shape[2]), window, shift, qkv)
    return _weights(query, key, added, scale, cosine)


def split_heads(qkv: Tensor, window: Size, shift: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each ``B G N T D`` and contiguous: one copy, and none inside the products."""
    windows = partition(qkv, window, shift)  # B G h w 3 N D
    return windows.flatten(2, 3).permute(3, 0, 1, 4, 2, 5).contiguous().unbind(0)  # type: ignore[return-value]


def join_heads(x: Tensor, grid: Size, window: Size, shift: Size) -> Tensor:
    """The inverse of `split_heads` for one of the three: ``B G N T D`` as ``B H W N D``."""
    return merge(x.transpose(2, 3).unflatten(2, window), grid, shift)


def added_logits(bias: Tensor | None, grid: Size, window: Size, shift: Size, like: Tensor) -> Tensor | None:
    """Position bias and region mask as one addend that broadcasts to ``G N T T``; None when there is neither."""
    addend = None if bias is None else bias.to(like.dtype)
    if any(shift):
        forbidden = ~region_mask(grid, window, shift, like.device)[:, None]
        zero = torch.zeros((), dtype=like.dtype, device=like.device) if addend is None else addend
        addend = zero.masked_fill(forbidden, float("-inf"))
    return addend


def per_head(scale: float | Tensor) -> float | Tensor:
    """A scale per head, shaped to multiply ``… N T D``; a number stays a number."""
    return scale[:, None, None] if isinstance(scale, Tensor) else scale


def unit(x: Tensor) -> Tensor:
    """Vectors of length one along the last axis; those of zero, as padded keys are in V2, stay zero, and their slopes.

    Dividing them by a small number would do for the values, but their slopes would be as large as fp16 cannot be.
    """
    length = x.norm(dim=-1, keepdim=True)
    none = length < max(1e-12, torch.finfo(x.dtype).tiny)
    return x.masked_fill(none, 0.0) / length.masked_fill(none, 1.0)


def _weights(query: Tensor, key: Tensor, added: Tensor | None, scale: float | Tensor, cosine: bool) -> Tensor:
    if cosine:
        query, key = unit(query), unit(key)
    logits = (query * per_head(scale)) @ key.transpose(-2, -1)
    if added is not None:
        logits += added  # in place: the largest tensor of a block, and no gradient needs its old value
    return torch.softmax(logits, dim=-1)
