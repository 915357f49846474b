"""The forward kernel: softmax over one tile of keys, or over several as they come."""

import triton
import triton.language as tl
from torch import Tensor

from swindow.ops.triton.tiles import (
    COUNTS,
    Task,
    head_scale,
    locate,
    logits,
    offsets,
    product,
    read,
    read_bias,
    tiling,
    unit,
    write,
)

_PROGRAMS = 2048  # of four warps each: some waves on 132 multiprocessors, and a bias tile read for several windows


def launch(task: Task, out: Tensor, lse: Tensor) -> None:
    """Write ``B H W N D`` into `out`, and log2 of each query's softmax's sum into `lse`, unless it is empty."""
    rows = tiling(task.tokens).rows
    each, runs = task.share(rows, _PROGRAMS)
    _forward[(runs * task.heads, rows)](
        **task.arguments(each), out=out, out_strides=out.stride(), lse=lse, keep=lse.numel() > 0
    )


@triton.jit(**COUNTS)
def _forward(
    qkv,
    strides,
    bias,
    bias_strides,
    scale,
    factor,
    windows,
    each,
    heads,
    size,
    shift,
    out,
    out_strides,
    lse,
    window_h: tl.constexpr,
    window_w: tl.constexpr,
    depth: tl.constexpr,
    width: tl.constexpr,
    shifted: tl.constexpr,
    cosine: tl.constexpr,
    eps: tl.constexpr,
    exact: tl.constexpr,
    precision: tl.constexpr,
    tile_q: tl.constexpr,
    tile_k: tl.constexpr,
    keep: tl.constexpr,
):
    tokens: tl.constexpr = window_h * window_w
    # Fastest, because heads of a window lie side by side, in the same lines of memory; 64 bits for far strides.
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = tl.program_id(0) // heads * each
    row = tl.program_id(1) * tile_q + tl.arange(0, tile_q)
    c = head_scale(scale, factor, head)
    part = qkv + head * strides[4]
    if tokens <= tile_k:
        added = read_bias(bias, bias_strides, head, row, tl.arange(0, tile_k), tokens)
    for at in range(first, tl.minimum(first + each, windows)):
        image, y, x, region = locate(at, row, size, shift, window_h, window_w)
        query = read(part, offsets(image, y, x, strides), strides[5], depth, width)
        query = unit(query, cosine, eps)
        top = tl.full((tile_q,), float("-inf"), tl.float32)
        total = tl.zeros((tile_q,), tl.float32)
        mixed = tl.zeros((tile_q, width), tl.float32)
        for start in range(0, tokens, tile_k):
            column = start + tl.arange(0, tile_k)
            _, key_y, key_x, key_region = locate(at, column, size, shift, window_h, window_w)
            seen = offsets(image, key_y, key_x, strides)
            key = unit(read(part + strides[3], seen, strides[5], depth, width), cosine, eps)
            if tokens > tile_k:
                added = read_bias(bias, bias_strides, head, row, column, tokens)
            s = logits(query, key, added, c, region, key_region, shifted, exact, precision)
            peak = tl.maximum(top, tl.max(s, 1))
            base = tl.where(peak == float("-inf"), 0.0, peak)  # a tile may hold none that this query sees
            p = tl.exp2(s - base[:, None])
            fade = tl.exp2(top - base)
            total = total * fade + tl.sum(p, 1)
            value = read(part + strides[3] + strides[3], seen, strides[5], depth, width)
            mixed = mixed * fade[:, None] + product(p.to(value.dtype), value, exact, precision)
            top = peak
        known = row < tokens
        mixed *= (1.0 / total)[:, None]
        write(out + head * out_strides[3], offsets(image, y, x, out_strides), known, mixed, depth, width)
        if keep:
            place = (tl.cast(at, tl.int64) * heads + head) * tokens + row
            tl.store(lse + place, top + tl.log2(total), mask=known)
