"""Window attention on x86-64 CPUs in our own kernels: the un-partitioned map in, the un-partitioned map out.

A window's tokens are found on the map, logits exist for a handful of queries at a time, and the backward pass computes
the weights again from queries and keys, those of one head and window at a time: no attention matrix is ever kept.
Arithmetic is fp32; in bf16, forward products are bf16's where the processor has them. `native` builds the kernels on
first use.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swindow.errors import BackendUnavailable, ShapeError
from swindow.ops import reference
from swindow.ops.cpu import native
from swindow.ops.cpu.branches import DTYPES, PLAIN, Windows, enough, least_length, pad_bias
from swindow.ops.windows import Size

MOST_DEPTH = 512
"""Channels a head may have."""


class _Attention(ctypes.Structure):
    _fields_ = (
        ("windows", Windows),
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("cosine", ctypes.c_int32),
        ("tiny", ctypes.c_float),
    )


def window_attention(
    qkv: Float[Tensor, "B H W 3 N D"],
    bias: Float[Tensor, "N T T"] | None,
    *,
    window: Size,
    shift: Size,
    scale: float | Float[Tensor, " N"],
    cosine: bool = False,
) -> Float[Tensor, "B H W N D"]:
    """The contract of `swindow.ops.attention.window_attention`, forward and backward in one kernel each.

    Bit for bit the same on every run with the same number of threads.

    Raises:
        BackendUnavailable: it cannot run on this device, dtype or shape, or nothing here can build it.
    """
    why = refusal(qkv)
    if why is not None:
        raise BackendUnavailable(
            f"the cpu backend cannot run {str(qkv.dtype).removeprefix('torch.')} on {qkv.device}, "
            f"{qkv.shape[5]} channels a head: {why}; use backend 'auto'"
        )
    scales = scale if isinstance(scale, Tensor) else torch.full((qkv.shape[4],), scale, **PLAIN)
    return torch.ops.swindow.cpu_window_attention(qkv, bias, scales, window, shift, cosine)


def refusal(qkv: Float[Tensor, "B H W 3 N D"]) -> str | None:
    """Why the kernels cannot run on this input on this machine; None when they can."""
    if qkv.device.type != "cpu":
        return "it runs on the CPU"
    if qkv.dtype not in DTYPES:
        return "it takes float32 and bfloat16"
    if qkv.shape[5] > MOST_DEPTH:
        return f"it takes at most {MOST_DEPTH} channels a head"
    return _machine_refusal()


def _machine_refusal() -> str | None:
    return native.refusal()


# What `torch.compiler.assume_constant_result` sets; the decorator itself takes a second to import the compiler.
_machine_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]


_OPERATORS = torch.library.Library("swindow", "FRAGMENT")  # not `custom_op`, whose first call imports torch.compile
_OPERATORS.define(
    "cpu_window_attention(Tensor qkv, Tensor? bias, Tensor scale, SymInt[] window, SymInt[] shift, bool cosine)"
    " -> Tensor"
)
_OPERATORS.define(
    "cpu_window_attention_backward(Tensor grad, Tensor qkv, Tensor? bias, Tensor scale, SymInt[] window,"
    " SymInt[] shift, bool cosine, bool biased) -> (Tensor, Tensor, Tensor)"
)


def _forward(
    qkv: Tensor, bias: Tensor | None, scale: Tensor, window: Sequence[int], shift: Sequence[int], cosine: bool
) -> Tensor:
    qkv = qkv.contiguous()
    out = qkv.new_empty(_out_shape(qkv))
    if out.numel():
        struct, _kept = _attention(qkv, bias, scale, window, shift, cosine)
        threads = torch.get_num_threads()
        enough(native.library().swindow_attend(ctypes.byref(struct), _half(qkv), _at(qkv), _at(out), threads))
    return out


def _backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    window: Sequence[int],
    shift: Sequence[int],
    cosine: bool,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    qkv, grad = qkv.contiguous(), grad.to(qkv.dtype).contiguous()
    slope, bias_slope, scale_slope = _slopes(qkv, bias, scale, biased)
    if not qkv.numel():
        return slope, bias_slope.zero_(), scale_slope.zero_()
    threads = torch.get_num_threads()
    struct, kept = _attention(qkv, bias, scale, window, shift, cosine)
    scales = torch.zeros(threads, scale.shape[0], dtype=torch.float64, device="cpu")
    biases = torch.zeros(threads, *kept[0].shape, **PLAIN) if biased else None
    done = native.library().swindow_attend_backward(
        ctypes.byref(struct), _half(qkv), _at(qkv), _at(grad), _at(slope), _at(biases), _at(scales), threads
    )
    enough(done)
    scale_slope.copy_(scales.sum(0))
    if biases is not None:
        bias_slope.copy_(biases.sum(0)[:, :, : window[0] * window[1]])
    return slope, bias_slope, scale_slope


def _out_shape(qkv: Tensor) -> tuple[int, ...]:
    return (*qkv.shape[:3], *qkv.shape[4:])


def _slopes(qkv: Tensor, bias: Tensor | None, scale: Tensor, biased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients, contiguous; an empty tensor for a bias that needs none."""
    slope = qkv.new_empty(qkv.shape)
    bias_slope = qkv.new_empty((0,)) if bias is None or not biased else bias.new_empty(bias.shape)
    return slope, bias_slope, scale.new_empty(scale.shape)


def _attention(
    qkv: Tensor, bias: Tensor | None, scale: Tensor, window: Sequence[int], shift: Sequence[int], cosine: bool
) -> tuple[_Attention, list[Tensor]]:
    """What the kernels are told, and the tensors that must live as long."""
    images, height, width, _, heads, dim = qkv.shape
    # Asked again here, where graphs and direct calls come by: kernels read memory as they are told that it is laid out.
    whole = height % window[0] == 0 and width % window[1] == 0
    shifted = 0 <= shift[0] < window[0] and 0 <= shift[1] < window[1]
    biased = bias is None or bias.shape == (heads, math.prod(window), math.prod(window))
    if not (whole and shifted and biased and qkv.shape[3] == 3 and scale.shape == (heads,)):
        raise ShapeError(
            f"qkv {tuple(qkv.shape)}, bias {None if bias is None else tuple(bias.shape)}, scale {tuple(scale.shape)}, "
            f"window {tuple(window)}, shift {tuple(shift)} do not fit together"
        )
    scales = scale.detach().float().contiguous()
    kept = [scales]
    if bias is not None:
        kept.insert(0, pad_bias(bias, heads, math.prod(window)))
    struct = _Attention(
        windows=Windows(images, height, width, heads, dim, *window, *shift),
        bias=_at(kept[0]) if bias is not None else None,
        scale=_at(scales),
        cosine=cosine,
        tiny=least_length(qkv.dtype),
    )
    return struct, kept


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bias, scale, ctx.window, ctx.shift, ctx.cosine = inputs
    ctx.save_for_backward(qkv, bias, scale)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    qkv, bias, scale = ctx.saved_tensors
    _, needs_bias, needs_scale, *_ = ctx.needs_input_grad
    biased = needs_bias and bias is not None
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # somebody wants a second derivative
        return _plainly(ctx, grad)
    slope, bias_slope, scale_slope = torch.ops.swindow.cpu_window_attention_backward(
        grad, qkv, bias, scale, ctx.window, ctx.shift, ctx.cosine, biased
    )
    return slope, bias_slope if biased else None, scale_slope if needs_scale else None, None, None, None


def _plainly(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients by autograd's own rules, which can be differentiated again."""
    qkv, bias, scale = inputs = ctx.saved_tensors
    size, shift = (ctx.window[0], ctx.window[1]), (ctx.shift[0], ctx.shift[1])
    out = reference.window_attention(qkv, bias, window=size, shift=shift, scale=scale.to(qkv.dtype), cosine=ctx.cosine)
    wanted = [x for x, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return *(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None, None


_OPERATORS.impl("cpu_window_attention", _forward, "CPU")
_OPERATORS.impl("cpu_window_attention_backward", _backward, "CPU")


@torch.library.register_fake("swindow::cpu_window_attention", lib=_OPERATORS)
def _(qkv: Tensor, bias: Any, scale: Any, window: Any, shift: Any, cosine: bool) -> Tensor:
    return qkv.new_empty(_out_shape(qkv))


@torch.library.register_fake("swindow::cpu_window_attention_backward", lib=_OPERATORS)
def _(
    grad: Any, qkv: Tensor, bias: Any, scale: Tensor, window: Any, shift: Any, cosine: bool, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _slopes(qkv, bias, scale, biased)


torch.library.register_autograd("swindow::cpu_window_attention", _gradients, setup_context=_remember, lib=_OPERATORS)
