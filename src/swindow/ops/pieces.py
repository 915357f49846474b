"""Part of a network on a few images at a time: only its input is kept for training, and what it makes stays small."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Run = Callable[..., Tensor]


def by_pieces(
    run: Run, x: Float[Tensor, "B ..."], parameters: tuple[Tensor, ...], images: int
) -> Float[Tensor, "B ..."]:
    """``run(x, *parameters)`` for many images, `images` of them at a time; the backward pass runs each piece again.

    Args:
        run: treats every image by itself; its output is as long as its input along B. What it draws at random, it
            draws piece by piece, and the same again in the backward pass.
        parameters: all other tensors that it reads; those that need no gradient may be among them.
    """
    if images >= x.shape[0] or in_company():
        return run(x, *parameters)
    return _Pieces.apply(run, images, x, *parameters)


def in_company() -> bool:
    """Whether other processes train too: parameters that are sharded are others in the backward pass."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, images: int, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.images = run, images
        device = x.device.type
        ctx.autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        ctx.save_for_backward(x, *parameters)
        ctx.chances = [torch.get_rng_state()]
        first = run(x[:images], *parameters)
        out = first.new_empty((x.shape[0], *first.shape[1:]))  # not a list to join: both would be in memory
        out[:images] = first
        for start in range(images, x.shape[0], images):
            ctx.chances.append(torch.get_rng_state())
            out[start : start + images] = run(x[start : start + images], *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad[2:]
        again = torch.is_grad_enabled()  # somebody wants a second derivative
        if not again:  # aliases: the parameters' own hooks are for what is added up in the end
            parameters = [x.detach().requires_grad_(need) for x, need in zip(parameters, needs, strict=True)]
        wanted = [parameter for parameter, need in zip(parameters, needs, strict=True) if need]
        on_pieces: list[Tensor] = []
        sums: list[Tensor] = []
        chance = torch.get_rng_state()
        for piece, toward, then in zip(x.split(ctx.images), grad.split(ctx.images), ctx.chances, strict=True):
            torch.set_rng_state(then)
            source = piece if again else piece.detach().requires_grad_(needs_x)
            with torch.enable_grad(), torch.autocast(x.device.type, **ctx.autocast):
                out = ctx.run(source, *parameters)
            sources = ([source] if needs_x else []) + wanted
            found = list(torch.autograd.grad(out, sources, toward, create_graph=again))
            if needs_x:
                on_pieces.append(found.pop(0))
            if again:
                sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
            elif sums:
                torch._foreach_add_(sums, found)
            else:
                sums = found
        torch.set_rng_state(chance)
        each = iter(sums)
        on_x = torch.cat(on_pieces) if needs_x else None
        return None, None, on_x, *(next(each) if need else None for need in needs)
