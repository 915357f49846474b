"""The attention kernels alone: microseconds and bytes a second beside SDPA, and launches other than the chosen ones.

A part of `gpu.py`. Bytes are those that must move: forward reads q, k, v and the bias and writes an output; backward
reads q, k, v and the output's gradient and writes three gradients.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swindow.ops.attention import window_attention

Write = Callable[[dict[str, Any]], None]


class Shape(NamedTuple):
    """One attention of a model."""

    name: str
    side: int
    heads: int
    window: int
    shift: int
    cosine: bool = False
    batch: int = 256
    depth: int = 32


STAGES = (
    Shape("swin_tiny stage 1", 56, 3, 7, 3),
    Shape("swin_tiny stage 2", 28, 6, 7, 3),
    Shape("swin_tiny stage 3", 14, 12, 7, 3),
    Shape("swin_tiny stage 4", 7, 24, 7, 0),
    Shape("swin_v2_tiny_w8 stage 1", 64, 3, 8, 4, cosine=True, batch=128),
    Shape("swin_v2_tiny_w16 stage 1", 64, 3, 16, 8, cosine=True, batch=128),
)
TINY = (Shape("tiny", 8, 2, 4, 2, batch=1, depth=16), Shape("tiny tiled", 9, 1, 9, 0, cosine=True, batch=1, depth=16))
PROGRAMS = {"forward": (1024, 2048, 8192, 10**9), "backward": (512, 1024, 2048)}
WARPS, FETCHED = (4, 8), (1, 2, 3)


def attention(device: str, *, quick: bool, write: Write) -> None:
    """A line for each shape and backend, then for each launch that was tried, then the best of those."""
    shapes = TINY if quick else STAGES
    dtype = torch.float32 if quick else torch.bfloat16
    inputs = {shape.name: _inputs(shape, device, dtype) for shape in shapes}
    for shape in shapes:
        for backend in ("triton", "sdpa"):
            write(
                {"shape": shape.name, "backend": backend}
                | _guarded(lambda s=shape, b=backend: _measured(s, inputs[s.name], b))
            )
    for shape in shapes[:1] if quick else (shapes[0], shapes[2], shapes[4]):
        for kind in ("forward", "backward"):
            _tune(shape, inputs[shape.name], kind, quick, write)


def _guarded(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - one backend that cannot run is a line that says so
        return {"note": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


class Inputs(NamedTuple):
    """Tensors of one attention."""

    qkv: Tensor
    bias: Tensor
    scale: Tensor | None
    grad: Tensor


def _inputs(shape: Shape, device: str, dtype: torch.dtype) -> Inputs:
    grid, tokens = (shape.batch, shape.side, shape.side), shape.window**2
    qkv = torch.randn(*grid, 3, shape.heads, shape.depth, device=device).to(dtype)
    bias = torch.randn(shape.heads, tokens, tokens, device=device).to(dtype)
    scale = torch.full((shape.heads,), 10.0, device=device) if shape.cosine else None
    return Inputs(qkv, bias, scale, torch.randn(*grid, shape.heads, shape.depth, device=device).to(dtype))


def _measured(shape: Shape, given: Inputs, backend: Any) -> dict[str, Any]:
    leaves = [x.detach().requires_grad_() for x in given[:3] if x is not None]
    scale = leaves[2] if shape.cosine else shape.depth**-0.5
    setting = {"window": (shape.window,) * 2, "shift": (shape.shift,) * 2, "scale": scale, "cosine": shape.cosine}

    def forward() -> Tensor:
        return window_attention(leaves[0], leaves[1], **setting, backend=backend)

    out = forward()
    with torch.no_grad():
        ahead = _microseconds(forward, given.qkv.device)
    back = _microseconds(lambda: torch.autograd.grad(out, leaves, given.grad, retain_graph=True), given.qkv.device)
    values = given.grad.numel() * given.grad.element_size()
    return {
        "forward_us": ahead,
        "forward_gb_per_s": 4 * values / ahead / 1e3,
        "backward_us": back,
        "backward_gb_per_s": 7 * values / back / 1e3,
    }


def _tune(shape: Shape, given: Inputs, kind: str, quick: bool, write: Write) -> None:
    """Launches of one kernel, and the fastest of them."""
    every = itertools.product(PROGRAMS[kind], WARPS, FETCHED)
    tried = []
    for launch in list(every)[: 2 if quick else None]:
        line = {
            "shape": shape.name,
            "kernel": kind,
            "tried": dict(zip(("programs", "warps", "stages"), launch, strict=True)),
        }
        line |= _guarded(lambda at=launch: {"us": _launched(shape, given, kind, at)})
        write(line)
        tried += [line] if "us" in line else []
    best = min(tried, key=lambda line: line["us"], default=None)
    if best is not None:
        write({"shape": shape.name, "kernel": kind, "best": best["tried"], "us": best["us"]})


def _launched(shape: Shape, given: Inputs, kind: str, launch: tuple[int, int, int]) -> float:
    """Microseconds of a kernel launched in this way; for `backward` of all that it takes."""
    from swindow.ops.triton import _outputs, backward, forward
    from swindow.ops.triton.tiles import Launch, Task

    window, shift = (shape.window,) * 2, (shape.shift,) * 2
    factor = 1.0 if shape.cosine else shape.depth**-0.5
    plain = Task(given.qkv, given.bias, given.scale, factor, window, shift, shape.cosine)
    task = plain._replace(tried=Launch(*launch))
    out, lse = _outputs(given.qkv, window)
    if kind == "forward":
        return _microseconds(lambda: forward.launch(task, out, lse), given.qkv.device)
    forward.launch(plain, out, lse)
    slope, kept = torch.empty_like(given.qkv), out if lse.numel() else None
    return _microseconds(lambda: backward.launch(task, given.grad, kept, lse, slope, biased=True), given.qkv.device)


def _microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median, from cold caches on a GPU."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return 1e3 * do_bench(run, warmup=10, rep=40, return_mode="median")
    samples = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        samples.append(time.perf_counter() - began)
    return 1e6 * statistics.median(samples)
