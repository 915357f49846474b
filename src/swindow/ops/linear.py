"""The linear projection of a token map: through the CPU's fastest product, without keeping what is cheap to redo."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_ENOUGH_IMAGES = 16
"""From this many images on, torch hands a pointwise convolution to oneDNN even on a single thread."""

Before = Callable[..., Tensor]


def linear(
    x: Float[Tensor, "..."],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    *,
    before: Before | None = None,
    learned: tuple[Tensor, ...] = (),
) -> Float[Tensor, "... O"]:
    """``before(x, *learned) @ weight.T + bias``: `F.linear`, or for a map the same sum as a pointwise convolution.

    In fp32 `F.linear` calls MKL, whose log names no AVX-512 on AMD processors, where it runs at half speed. A 1x1
    convolution of the same memory, seen as channels-last images, calls oneDNN: twice as fast, backward nearly so.

    Args:
        before: a norm or an activation of ``(x, *learned)``, whose result training does not keep: the backward pass
            computes it again from them. It reads no other tensors. A compiler keeps what it likes.
        learned: the parameters that `before` takes.
    """
    if before is None:
        return _product(x, weight, bias)
    trained = (x, weight, bias, *learned)
    if not keeps_for_backward(trained):
        return _product(before(x, *learned), weight, bias)
    return _Recomputing.apply(before, *trained)


def convolves_faster(x: Tensor) -> bool:
    """Whether `linear` convolves: an fp32 map, eager, without autocast, on a CPU with AVX-512 and oneDNN.

    In bf16 `F.linear` calls oneDNN by itself, and a compiler or an exporter had better see a product.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.ndim == 4
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and (torch.get_num_threads() > 1 or x.shape[0] * x.shape[1] >= _ENOUGH_IMAGES)
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


class _Recomputing(torch.autograd.Function):
    """A product of what is computed again in the backward pass: only its source is kept."""

    @staticmethod
    def forward(ctx: Any, before: Before, x: Tensor, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> Tensor:
        ctx.before = before
        ctx.autocast = {
            "enabled": torch.is_autocast_enabled(x.device.type),
            "dtype": torch.get_autocast_dtype(x.device.type),
        }
        ctx.save_for_backward(x, weight, *learned)
        ctx.bias = bias
        return _product(before(x, *learned), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, *learned = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # somebody wants a second derivative
            return None, *_plainly(ctx, grad, needs)
        needs_source, needs_weight, needs_bias, *needs_learned = needs
        source = source.detach().requires_grad_(needs_source)
        # Aliases: the parameters' own hooks are for what is added up in the end.
        learned = [x.detach().requires_grad_(need) for x, need in zip(learned, needs_learned, strict=True)]
        with torch.enable_grad(), torch.autocast(source.device.type, **ctx.autocast):
            redone = ctx.before(source, *learned)
        needs_input = needs_source or any(needs_learned)
        on_input, on_weight, on_bias = _product_backward(
            grad, redone.detach().to(grad.dtype), weight, (needs_input, needs_weight, needs_bias)
        )
        wanted = [x for x, needs in zip((source, *learned), (needs_source, *needs_learned), strict=True) if needs]
        found = iter(torch.autograd.grad(redone, wanted, on_input) if wanted else ())
        on_source = next(found) if needs_source else None
        return None, on_source, on_weight, on_bias, *(next(found) if needs else None for needs in needs_learned)


def _plainly(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients by autograd's own rules, which can be differentiated again."""
    source, weight, *learned = ctx.saved_tensors
    with torch.autocast(source.device.type, **ctx.autocast):
        out = F.linear(ctx.before(source, *learned), weight, ctx.bias)
    inputs = (source, weight, ctx.bias, *learned)
    wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


def keeps_for_backward(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd will want what becomes of these tensors, and is not in the hands of a compiler or transform."""
    return (
        torch.is_grad_enabled()
        and all(x is None or x.device.type != "meta" for x in tensors)  # which stands for shapes, and has no autocast
        and any(x is not None and x.requires_grad for x in tensors)
        and not torch.compiler.is_compiling()
        and not differs()
    )


def differs() -> bool:
    """Whether torch differentiates in a way that only its own operators know: transforms, forward mode, a tracer."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not convolves_faster(x):
        return F.linear(x, weight, bias)
    images, shape = _as_images(x)
    out = F.conv2d(images, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return out if shape is None else out.squeeze(1).unflatten(0, shape)


def _product_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a product's input, weight and bias, as far as they are needed."""
    if not convolves_faster(x):
        rows, steps = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            grad @ weight.to(grad.dtype) if needs[0] else None,
            (rows.t() @ steps).to(weight.dtype) if needs[1] else None,
            rows.sum(0).to(weight.dtype) if needs[2] else None,
        )
    grads, _ = _as_images(grad)
    images, shape = _as_images(x)
    sides: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "transposed": False}
    on_input, on_weight, on_bias = torch.ops.aten.convolution_backward(
        grads, images, weight[:, :, None, None], [weight.shape[0]], **sides, output_padding=(0, 0), groups=1,
        output_mask=needs,
    )  # fmt: skip
    if on_input is not None:
        on_input = on_input.permute(0, 2, 3, 1)
        on_input = on_input if shape is None else on_input.squeeze(1).unflatten(0, shape)
    return on_input, None if on_weight is None else on_weight[:, :, 0, 0], on_bias


def _as_images(x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
    """A ``B H W C`` map as channels-last images; every row of tokens as one where that brings oneDNN in."""
    if x.shape[0] < _ENOUGH_IMAGES and torch.get_num_threads() == 1:
        return x.flatten(0, 1).unsqueeze(1).permute(0, 3, 1, 2), (x.shape[0], x.shape[1])
    return x.permute(0, 3, 1, 2), None
