"""Window attention in fused Triton kernels, for NVIDIA GPUs: the un-partitioned map in, the un-partitioned map out.

The kernels find a window's tokens on the map themselves, so nothing is rolled, cut into windows, masked or put back in
memory, and no matrix of attention weights is ever written; softmax is fp32. Triton is imported when a kernel first
runs. Its interpreter (``TRITON_INTERPRET=1`` before the start) runs the same kernels on a CPU, slowly: for tests.
"""

import contextlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swindow.errors import BackendUnavailable
from swindow.ops.windows import Size

MOST_DEPTH = 64
"""Channels a head may have; a tile of tokens must stay in registers."""
MOST_TOKENS = 576
"""Tokens a window may have: 24x24."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ONE_TILE = 64  # tokens of a window that need no tiling: the side of the largest tile
_CAPABILITY = (8, 0)
"""Ampere: bf16 products, asynchronous copies."""


def window_attention(
    qkv: Float[Tensor, "B H W 3 N D"],
    bias: Float[Tensor, "N T T"] | None,
    *,
    window: Size,
    shift: Size,
    scale: float | Float[Tensor, " N"],
    cosine: bool = False,
) -> Float[Tensor, "B H W N D"]:
    """The contract of `swindow.ops.attention.window_attention`, in one kernel forward and one to three backward.

    Differentiable once. Bit for bit the same on every run, the bias's gradient too: nothing is added atomically.

    Raises:
        BackendUnavailable: it cannot run on this device, dtype or shape.
    """
    why = refusal(qkv, window)
    if why is not None:
        raise BackendUnavailable(
            f"the triton backend cannot run {str(qkv.dtype).removeprefix('torch.')} on {qkv.device}, "
            f"{window[0]}x{window[1]} windows, {qkv.shape[5]} channels a head: {why}; use backend 'auto'"
        )
    per_head, factor = (scale, 1.0) if isinstance(scale, Tensor) else (None, scale)
    return torch.ops.swindow.window_attention(qkv, bias, per_head, factor, window, shift, cosine)[0]


def refusal(qkv: Float[Tensor, "B H W 3 N D"], window: Size) -> str | None:
    """Why the kernels cannot run on this input on this machine; None when they can."""
    if qkv.dtype not in _DTYPES:
        return "it takes float32, float16 and bfloat16"
    if qkv.shape[5] > MOST_DEPTH:
        return f"it takes at most {MOST_DEPTH} channels a head"
    if window[0] * window[1] > MOST_TOKENS:
        return f"it takes windows of at most {MOST_TOKENS} tokens"
    return _machine_refusal(qkv.device.type, qkv.device.index)


@torch.compiler.assume_constant_result
def _machine_refusal(device: str, index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu" and _interpreted():
        return None
    if device != "cuda" or torch.version.cuda is None:
        return "it needs an NVIDIA GPU"
    found = torch.cuda.get_device_capability(index)
    if found < _CAPABILITY:
        return f"it needs compute capability {_CAPABILITY[0]}.{_CAPABILITY[1]}, this GPU has {found[0]}.{found[1]}"
    return None


def _interpreted() -> bool:
    from swindow.ops.triton.tiles import INTERPRETED

    return INTERPRETED


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@torch.library.custom_op("swindow::window_attention", mutates_args=())
def _forward(
    qkv: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    factor: float,
    window: Sequence[int],
    shift: Sequence[int],
    cosine: bool,
) -> tuple[Tensor, Tensor]:
    from swindow.ops.triton import forward
    from swindow.ops.triton.tiles import Task

    out, lse = _outputs(qkv, window)
    if out.numel():
        with _on(qkv.device):
            forward.launch(Task(qkv, bias, scale, factor, _size(window), _size(shift), cosine), out, lse)
    return out, lse


@_forward.register_fake
def _(qkv: Tensor, bias: Any, scale: Any, factor: float, window: Any, shift: Any, cosine: bool) -> Any:
    return _outputs(qkv, window)


@torch.library.custom_op("swindow::window_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    factor: float,
    window: Sequence[int],
    shift: Sequence[int],
    cosine: bool,
    out: Tensor | None,
    lse: Tensor,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from swindow.ops.triton import backward
    from swindow.ops.triton.tiles import Task

    slope, bias_slope, scale_slope = _slopes(qkv, bias if biased else None, scale)
    if not qkv.numel():
        return slope, bias_slope.zero_(), scale_slope.zero_()
    task = Task(qkv, bias, scale, factor, _size(window), _size(shift), cosine)
    with _on(qkv.device):
        sums = backward.launch(task, grad, out, lse, slope, biased=biased)
    for own, summed in zip((bias_slope, scale_slope), sums, strict=True):
        if summed is not None:
            own.copy_(summed)
    return slope, bias_slope, scale_slope


@_backward.register_fake
def _(
    grad: Tensor,
    qkv: Tensor,
    bias: Any,
    scale: Any,
    factor: float,
    window: Any,
    shift: Any,
    cosine: bool,
    out: Any,
    lse: Tensor,
    biased: bool,
) -> Any:
    return _slopes(qkv, bias if biased else None, scale)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, scale, factor, window, shift, cosine = inputs
    out, lse = output
    tiled = lse.ndim == 3  # otherwise softmax is computed again, sums and all, and the output is not needed
    ctx.save_for_backward(qkv, bias, scale, out if tiled else None, lse)
    ctx.setting = (factor, window, shift, cosine)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    qkv, bias, scale, out, lse = ctx.saved_tensors
    biased = bias is not None and ctx.needs_input_grad[1]
    slope, bias_slope, scale_slope = torch.ops.swindow.window_attention_backward(
        grad, qkv, bias, scale, *ctx.setting, out, lse, biased
    )
    return slope, bias_slope if biased else None, None if scale is None else scale_slope, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


def _outputs(qkv: Tensor, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, depth = qkv.shape
    tokens = window[0] * window[1]
    windows = batch * (height // window[0]) * (width // window[1])
    lse = (windows, heads, tokens) if tokens > _ONE_TILE else (0,)
    return qkv.new_empty((batch, height, width, heads, depth)), qkv.new_empty(lse, dtype=torch.float32)


def _slopes(qkv: Tensor, bias: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    # An operator returns tensors, never None: what nobody wants is empty.
    absent = qkv.new_empty((0,), dtype=torch.float32)
    own = [absent.clone() if x is None else x.new_empty(x.shape) for x in (bias, scale)]
    return qkv.new_empty(qkv.shape), own[0], own[1]


def _size(pair: Sequence[int]) -> Size:
    return pair[0], pair[1]
