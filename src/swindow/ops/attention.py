"""Shifted-window attention: one operation with a contract, and the backends that keep it.

Shifting, partitioning, region masking and their reversal are the meaning of the operation, not steps of the model:
a backend that can index the un-partitioned map need not copy it, and `swindow.ops.reference` says what is true.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from swindow.errors import ShapeError, UnknownName
from swindow.ops import cpu, reference, sdpa
from swindow.ops.linear import differs
from swindow.ops.windows import Size

Backend = Literal["auto", "reference", "sdpa", "cpu", "triton"]

TRITON_IS_PROVEN = False
"""Whether `auto` may choose triton. Its kernels are tested in Triton's interpreter and compiled for sm_80 and sm_90,
but have not run on a GPU yet: they do when asked for by name. `python benchmarks/gpu.py` is what proves them."""


_MANY_TOKENS = 1024
"""Above this, a matrix of all pairs of a window's tokens would need more memory than all else."""


def window_attention(
    qkv: Float[Tensor, "B H W 3 N D"],
    bias: Float[Tensor, "N T T"] | None,
    *,
    window: Size,
    shift: Size,
    scale: float | Float[Tensor, " N"],
    cosine: bool = False,
    backend: Backend = "auto",
) -> Float[Tensor, "B H W N D"]:
    """Multi-head self-attention inside local windows of a token map (Swin, section 3.2; V2, section 3.3).

    The map is rolled up and left by `shift` and cut into windows of `window` tokens, T = h·w each. A token attends to
    the tokens of its window that were in one contiguous region before the roll: softmax(scale · q·k + bias) over
    those. Padded tokens are tokens like any other: pad before qkv is computed, crop afterwards.

    Args:
        qkv: queries, keys and values on the un-partitioned map; H and W are multiples of the window.
        bias: added to the logits of each pair (query, key) of a window, or None.
        window: height and width in tokens.
        shift: rows and columns to roll by, each in [0, window).
        scale: multiplies q·k; one number, or one per head.
        cosine: normalise q and k to unit length first (Swin V2).
        backend: ``auto`` is `choose`; a name is honoured or refused, never replaced.

    Raises:
        ShapeError: the window does not divide the map, the shift is not smaller than the window, or a tensor is of
            another shape or on another device than that.
        UnknownName: no such backend.
        BackendUnavailable: the one asked for cannot run on this device, dtype or shape.
    """
    _validate(qkv, bias, scale, window, shift)
    name = choose(qkv, bias, window, gradients=_needs_gradients(qkv, bias)) if backend == "auto" else backend
    match name:
        case "reference":
            implementation = reference.window_attention
        case "sdpa":
            implementation = sdpa.window_attention
        case "cpu":
            implementation = cpu.window_attention
        case "triton":
            from swindow.ops import triton  # here, because its operators bring in torch.compile: a second and a half

            implementation = triton.window_attention
        case _:
            raise UnknownName("attention backend", name, get_args(Backend))
    return implementation(qkv, bias, window=window, shift=shift, scale=scale, cosine=cosine)


def choose(qkv: Tensor, bias: Tensor | None, window: Size, *, gradients: bool) -> Backend:
    """The fastest backend for this device, dtype, shape and need of gradients: a pure function of its arguments.

    On a CPU our own kernels wherever they can be built, but for graphs that are to run elsewhere, for derivatives of
    other kinds than autograd's, and for training on very large windows. Where they cannot:
    SDPA is fused only if the bias needs no gradient, and its fused kernel is slow in half precision on windows as small
    as these; plain products beat its fallback (docs/performance.md). On a GPU, SDPA, unless `TRITON_IS_PROVEN`: then
    half precision goes to our own kernels, but for a bare window as large as the map, which is what SDPA was made for.
    """
    half = qkv.dtype in (torch.bfloat16, torch.float16)
    if qkv.device.type == "cpu":
        few = window[0] * window[1] <= _MANY_TOKENS
        if not torch.compiler.is_compiling() and differs():
            return "reference"
        if not torch.compiler.is_exporting() and (few or not gradients) and cpu.refusal(qkv) is None:
            return "cpu"
        return "reference" if few and (gradients or half) else "sdpa"
    if not TRITON_IS_PROVEN or not half or (bias is None and qkv.shape[1:3] == window):
        return "sdpa"
    from swindow.ops import triton

    return "triton" if triton.refusal(qkv, window) is None else "sdpa"


def _validate(qkv: Tensor, bias: Tensor | None, scale: float | Tensor, window: Size, shift: Size) -> None:
    """Kernels read memory as they are told that it is laid out: what does not fit must not reach them."""
    if qkv.ndim != 6 or qkv.shape[3] != 3 or not qkv.is_floating_point():
        raise ShapeError(f"qkv is {tuple(qkv.shape)} {qkv.dtype}; it must be floating point, B H W 3 N D")
    if min(window) < 1:
        raise ShapeError(f"window {window} must be at least 1 token high and wide")
    height, width, heads = qkv.shape[1], qkv.shape[2], qkv.shape[4]
    if height // window[0] * window[0] != height or width // window[1] * window[1] != width:
        raise ShapeError(
            f"a {height}x{width} map is not a multiple of the {window[0]}x{window[1]} window; pad it first"
        )
    if not (0 <= shift[0] < window[0] and 0 <= shift[1] < window[1]):
        raise ShapeError(f"shift {shift} must lie in [0, window) for window {window}")
    tokens = window[0] * window[1]
    if bias is not None and bias.shape != (heads, tokens, tokens):
        raise ShapeError(
            f"the bias is {tuple(bias.shape)}; "
            f"{heads} heads and windows of {tokens} tokens need {(heads, tokens, tokens)}"
        )
    if isinstance(scale, Tensor) and scale.shape != (heads,):
        raise ShapeError(f"the scale is {tuple(scale.shape)}; give one number, or one for each of {heads} heads")
    for name, given in (("bias", bias), ("scale", scale)):
        if isinstance(given, Tensor) and given.device != qkv.device:
            raise ShapeError(f"the {name} is on {given.device} and qkv on {qkv.device}; move one of them")


def _needs_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
