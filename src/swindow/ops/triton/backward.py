"""The backward kernels: one for windows that fit into a tile, three for those that do not, and no atomics.

Nothing of size T·T is kept from the forward pass: softmax is computed again. Where a whole window fits so do its sums,
and one kernel makes every gradient from one reading of q, k, v and the incoming gradient. Where it does not, each
kernel owns what it adds up: `_queries` a tile of queries over all keys, `_keys` a tile of keys over all queries,
`_pairs` a tile of the bias over windows. What is summed over windows leaves a kernel as one partial sum a program, and
torch adds those up in an order that follows from the shape: the same input gives the same bits.
"""

from typing import Any

import torch
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
    read_known,
    through_unit,
    tiling,
    unit,
    write,
)

_PROGRAMS = 1024  # fewer than forward: each leaves a partial sum of the bias's gradient behind


def launch(
    task: Task, grad: Tensor, out: Tensor | None, lse: Tensor, slope: Tensor, *, biased: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Write the gradient of qkv into `slope`, ``B H W 3 N D``; return those of the bias, if wanted, and of the scale.

    The latter two are fp32, ``N T T`` and ``N``, and None where there is nothing to return. `out` and `lse` are what
    the forward kernel wrote; they are read only where windows are tiled.
    """
    maps = {"grad": grad, "grad_strides": grad.stride(), "slope": slope, "slope_strides": slope.stride()}
    if out is None:
        bias_slopes, scale_slopes = _whole(task, maps, biased)
    else:
        bias_slopes, scale_slopes = _tiled(task, maps, out, lse, biased)
    return _total(bias_slopes), _total(scale_slopes)


def _whole(task: Task, maps: dict[str, Any], biased: bool) -> tuple[Tensor | None, Tensor | None]:
    each, runs = task.share(1, _PROGRAMS)
    bias_slopes = _partial(task, runs, task.heads, task.tokens, task.tokens) if biased else None
    scale_slopes = None if task.scale is None else _partial(task, runs, task.heads)
    _window[(runs * task.heads,)](**task.arguments(each), **maps, bias_slopes=bias_slopes, scale_slopes=scale_slopes)
    return bias_slopes, scale_slopes


def _tiled(
    task: Task, maps: dict[str, Any], out: Tensor, lse: Tensor, biased: bool
) -> tuple[Tensor | None, Tensor | None]:
    tiles = tiling(task.tokens)
    maps |= {"lse": lse, "delta": torch.empty_like(lse)}
    each, runs = task.share(tiles.rows, _PROGRAMS)
    scale_slopes = None if task.scale is None else _partial(task, runs * tiles.rows, task.heads)
    _queries[(runs * task.heads, tiles.rows)](
        **task.arguments(each), **maps, out=out, out_strides=out.stride(), scale_slopes=scale_slopes
    )
    each, runs = task.share(tiles.columns, _PROGRAMS)
    _keys[(runs * task.heads, tiles.columns)](**task.arguments(each), **maps)
    if not biased:
        return None, scale_slopes
    each, runs = task.share(tiles.rows * tiles.columns, _PROGRAMS)
    bias_slopes = _partial(task, runs, task.heads, task.tokens, task.tokens)
    _pairs[(runs * task.heads, tiles.rows * tiles.columns)](**task.arguments(each), **maps, bias_slopes=bias_slopes)
    return bias_slopes, scale_slopes


def _partial(task: Task, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=task.qkv.device)


def _total(partial: Tensor | None) -> Tensor | None:
    return None if partial is None else partial.sum(0)


@triton.jit(**COUNTS)
def _window(
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
    grad,
    grad_strides,
    slope,
    slope_strides,
    bias_slopes,
    scale_slopes,
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
):
    tokens: tl.constexpr = window_h * window_w
    head, run = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    token = tl.arange(0, tile_q)
    known = token < tokens
    c = head_scale(scale, factor, head)
    added = read_bias(bias, bias_strides, head, token, token, tokens)
    part, into = qkv + head * strides[4], slope + head * slope_strides[4]
    bias_slope = tl.zeros((tile_q, tile_k), tl.float32)
    scale_slope = tl.zeros((tile_q,), tl.float32)
    for at in range(run * each, tl.minimum(run * each + each, windows)):
        image, y, x, region = locate(at, token, size, shift, window_h, window_w)
        rows = offsets(image, y, x, strides)
        raw_query = read(part, rows, strides[5], depth, width)
        raw_key = read(part + strides[3], rows, strides[5], depth, width)
        value = read(part + strides[3] + strides[3], rows, strides[5], depth, width)
        query, key = unit(raw_query, cosine, eps), unit(raw_key, cosine, eps)
        s = logits(query, key, added, c, region, region, shifted, exact, precision)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p *= (1.0 / tl.sum(p, 1))[:, None]
        taken = offsets(image, y, x, grad_strides)
        back = read_known(grad + head * grad_strides[3], taken, known, grad_strides[4], depth, width)
        rows = offsets(image, y, x, slope_strides)
        value_slope = product(tl.trans(p.to(back.dtype)), back, exact, precision)
        write(into + slope_strides[3] + slope_strides[3], rows, known, value_slope, depth, width)
        p_slope = product(back, tl.trans(value), exact, precision)
        s_slope = p * (p_slope - tl.sum(p * p_slope, 1)[:, None])
        if bias_slopes is not None:
            bias_slope += s_slope
        low = s_slope.to(back.dtype)
        query_slope = product(low, key, exact, precision)
        if scale_slopes is not None:
            scale_slope += tl.sum(query_slope * query.to(tl.float32), 1)
        write(into, rows, known, through_unit(query_slope * c, raw_query, cosine, eps), depth, width)
        key_slope = product(tl.trans(low), query, exact, precision) * c
        write(into + slope_strides[3], rows, known, through_unit(key_slope, raw_key, cosine, eps), depth, width)
    if bias_slopes is not None:
        pairs = ((run * heads + head) * tokens + token[:, None]) * tokens + token[None, :]
        tl.store(bias_slopes + pairs, bias_slope, mask=known[:, None] & known[None, :])
    if scale_slopes is not None:
        tl.store(scale_slopes + run * heads + head, tl.sum(scale_slope, 0))


@triton.jit(**COUNTS)
def _queries(
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
    grad,
    grad_strides,
    slope,
    slope_strides,
    out,
    out_strides,
    lse,
    delta,
    scale_slopes,
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
):
    tokens: tl.constexpr = window_h * window_w
    head, run = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    row = tl.program_id(1) * tile_q + tl.arange(0, tile_q)
    known = row < tokens
    c = head_scale(scale, factor, head)
    part = qkv + head * strides[4]
    scale_slope = tl.zeros((tile_q,), tl.float32)
    for at in range(run * each, tl.minimum(run * each + each, windows)):
        image, y, x, region = locate(at, row, size, shift, window_h, window_w)
        raw = read(part, offsets(image, y, x, strides), strides[5], depth, width)
        query = unit(raw, cosine, eps)
        taken = offsets(image, y, x, grad_strides)
        back = read_known(grad + head * grad_strides[3], taken, known, grad_strides[4], depth, width)
        mixed = read(out + head * out_strides[3], offsets(image, y, x, out_strides), out_strides[4], depth, width)
        mean = tl.sum(back.to(tl.float32) * mixed.to(tl.float32), 1)
        line = (tl.cast(at, tl.int64) * heads + head) * tokens
        tl.store(delta + line + row, mean, mask=known)
        total = tl.load(lse + line + tl.minimum(row, tokens - 1))
        query_slope = tl.zeros((tile_q, width), tl.float32)
        for start in range(0, tokens, tile_k):
            column = start + tl.arange(0, tile_k)
            _, key_y, key_x, key_region = locate(at, column, size, shift, window_h, window_w)
            seen = offsets(image, key_y, key_x, strides)
            key = unit(read(part + strides[3], seen, strides[5], depth, width), cosine, eps)
            value = read(part + strides[3] + strides[3], seen, strides[5], depth, width)
            added = read_bias(bias, bias_strides, head, row, column, tokens)
            s = logits(query, key, added, c, region, key_region, shifted, exact, precision)
            p_slope = product(back, tl.trans(value), exact, precision)
            s_slope = tl.exp2(s - total[:, None]) * (p_slope - mean[:, None])
            query_slope += product(s_slope.to(back.dtype), key, exact, precision)
        if scale_slopes is not None:
            scale_slope += tl.sum(query_slope * query.to(tl.float32), 1)
        rows = offsets(image, y, x, slope_strides)
        query_slope = through_unit(query_slope * c, raw, cosine, eps)
        write(slope + head * slope_strides[4], rows, known, query_slope, depth, width)
    if scale_slopes is not None:
        program = run * tl.num_programs(1) + tl.program_id(1)
        tl.store(scale_slopes + program * heads + head, tl.sum(scale_slope, 0))


@triton.jit(**COUNTS)
def _keys(
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
    grad,
    grad_strides,
    slope,
    slope_strides,
    lse,
    delta,
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
):
    tokens: tl.constexpr = window_h * window_w
    head, run = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    column = tl.program_id(1) * tile_k + tl.arange(0, tile_k)
    c = head_scale(scale, factor, head)
    part, into = qkv + head * strides[4], slope + head * slope_strides[4]
    for at in range(run * each, tl.minimum(run * each + each, windows)):
        image, y, x, region = locate(at, column, size, shift, window_h, window_w)
        seen = offsets(image, y, x, strides)
        raw = read(part + strides[3], seen, strides[5], depth, width)
        key = unit(raw, cosine, eps)
        value = read(part + strides[3] + strides[3], seen, strides[5], depth, width)
        line = (tl.cast(at, tl.int64) * heads + head) * tokens
        key_slope = tl.zeros((tile_k, width), tl.float32)
        value_slope = tl.zeros((tile_k, width), tl.float32)
        for start in range(0, tokens, tile_q):
            row = start + tl.arange(0, tile_q)
            known = row < tokens
            _, query_y, query_x, query_region = locate(at, row, size, shift, window_h, window_w)
            query = read(part, offsets(image, query_y, query_x, strides), strides[5], depth, width)
            query = unit(query, cosine, eps)
            taken = offsets(image, query_y, query_x, grad_strides)
            back = read_known(grad + head * grad_strides[3], taken, known, grad_strides[4], depth, width)
            mean = tl.load(delta + line + row, mask=known, other=0.0)
            total = tl.load(lse + line + tl.minimum(row, tokens - 1))
            added = read_bias(bias, bias_strides, head, row, column, tokens)
            s = logits(query, key, added, c, query_region, region, shifted, exact, precision)
            p = tl.exp2(s - total[:, None])
            value_slope += product(tl.trans(p.to(back.dtype)), back, exact, precision)
            s_slope = p * (product(back, tl.trans(value), exact, precision) - mean[:, None])
            key_slope += product(tl.trans(s_slope.to(back.dtype)), query, exact, precision)
        known = column < tokens
        rows = offsets(image, y, x, slope_strides)
        key_slope = through_unit(key_slope * c, raw, cosine, eps)
        write(into + slope_strides[3], rows, known, key_slope, depth, width)
        write(into + slope_strides[3] + slope_strides[3], rows, known, value_slope, depth, width)


@triton.jit(**COUNTS)
def _pairs(
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
    grad,
    grad_strides,
    slope,
    slope_strides,
    lse,
    delta,
    bias_slopes,
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
):
    tokens: tl.constexpr = window_h * window_w
    head, run = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    columns: tl.constexpr = (tokens + tile_k - 1) // tile_k
    row = tl.program_id(1) // columns * tile_q + tl.arange(0, tile_q)
    column = tl.program_id(1) % columns * tile_k + tl.arange(0, tile_k)
    known = row < tokens
    c = head_scale(scale, factor, head)
    added = read_bias(bias, bias_strides, head, row, column, tokens)
    part = qkv + head * strides[4]
    bias_slope = tl.zeros((tile_q, tile_k), tl.float32)
    for at in range(run * each, tl.minimum(run * each + each, windows)):
        image, y, x, region = locate(at, row, size, shift, window_h, window_w)
        query = unit(read(part, offsets(image, y, x, strides), strides[5], depth, width), cosine, eps)
        taken = offsets(image, y, x, grad_strides)
        back = read_known(grad + head * grad_strides[3], taken, known, grad_strides[4], depth, width)
        _, key_y, key_x, key_region = locate(at, column, size, shift, window_h, window_w)
        seen = offsets(image, key_y, key_x, strides)
        key = unit(read(part + strides[3], seen, strides[5], depth, width), cosine, eps)
        value = read(part + strides[3] + strides[3], seen, strides[5], depth, width)
        line = (tl.cast(at, tl.int64) * heads + head) * tokens
        mean = tl.load(delta + line + row, mask=known, other=0.0)
        total = tl.load(lse + line + tl.minimum(row, tokens - 1))
        s = logits(query, key, added, c, region, key_region, shifted, exact, precision)
        p_slope = product(back, tl.trans(value), exact, precision)
        bias_slope += tl.exp2(s - total[:, None]) * (p_slope - mean[:, None])
    pairs = ((run * heads + head) * tokens + row[:, None]) * tokens + column[None, :]
    tl.store(bias_slopes + pairs, bias_slope, mask=known[:, None] & (column < tokens)[None, :])
