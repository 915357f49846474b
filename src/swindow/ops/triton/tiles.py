"""What the kernels share: where a window's tokens lie on the map, tiles of them, logits, and how work is cut up.

A program owns one head, one tile of queries (or keys, or both) and a run of consecutive windows, so that what belongs
to the head stays in registers from window to window: its part of the bias on the way in, of the bias's gradient on the
way out. Rows past a window's last token are copies of that token: they read what is there anyway, are never written,
and enter sums as keys of weight zero or as queries whose incoming gradient is zero.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from swindow.ops.windows import Size

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)  # softmax in powers of two: exp2 is an instruction, exp is not
COUNTS: dict[str, Any] = {"do_not_specialize": ("windows",), "do_not_specialize_on_alignment": ("each",)}
"""Two arguments differ with every batch, and nothing is compiled anew for multiples of sixteen; but a program that
takes each=1 window is another, without a loop and with far fewer registers."""
INTERPRETED: bool = triton.knobs.runtime.interpret

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Tiling(NamedTuple):
    """How many tokens of a window a program holds at once, and how many such tiles cover the window."""

    queries: int
    keys: int
    rows: int
    columns: int

    @property
    def single(self) -> bool:
        """Whether a tile holds all queries and keys of a window."""
        return self.rows * self.columns == 1


def tiling(tokens: int) -> Tiling:
    """Tiles for windows of so many tokens: powers of two, at least the 16 that a matrix instruction takes."""
    side = min(64, max(16, triton.next_power_of_2(tokens)))
    keys = 32 if tokens > side and 0 < tokens % side <= 32 else side  # 12x12 windows: 160 keys are read, and not 192
    return Tiling(side, keys, triton.cdiv(tokens, side), triton.cdiv(tokens, keys))


class Launch(NamedTuple):
    """How a kernel is cut up and compiled, where that is being tried out."""

    programs: int
    """About so many programs share the work."""
    warps: int
    """Of 32 threads, a program."""
    stages: int
    """Windows or tiles in flight at once: those fetched ahead, and the one at work."""


class Task(NamedTuple):
    """The operation's arguments, as the kernels want them."""

    qkv: Tensor
    bias: Tensor | None
    scale: Tensor | None
    factor: float
    window: Size
    shift: Size
    cosine: bool
    tried: Launch | None = None
    """In place of what a kernel would be launched with."""

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.window[0] * self.window[1]

    @property
    def windows(self) -> int:
        """Windows of all images."""
        batch, height, width = self.qkv.shape[:3]
        return batch * (height // self.window[0]) * (width // self.window[1])

    @property
    def heads(self) -> int:
        """Heads."""
        return self.qkv.shape[4]

    def share(self, tiles: int, programs: int) -> tuple[int, int]:
        """Windows that one program takes, and runs of that many, for about `programs` programs of `tiles` a run.

        Counted from the shape and not from the device, so that sums over windows are the same sums everywhere.
        """
        programs = programs if self.tried is None else self.tried.programs
        each = triton.cdiv(self.windows * self.heads * tiles, programs)
        return each, triton.cdiv(self.windows, each)

    def arguments(self, each: int) -> dict[str, Any]:
        """What every kernel takes, given how many windows a program takes: the task, and what it is compiled for."""
        depth, dtype, tiles = self.qkv.shape[5], self.qkv.dtype, tiling(self.tokens)
        tf32 = self.qkv.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"  # as in torch's own products
        # A warp for the 16 rows of its matrix instruction; fp32 has none, and twice the registers for all it holds:
        # with fewer warps, or the next window's tokens fetched ahead, it spills (tests/ops/test_triton.py).
        warps, stages = (tiles.queries // 8, 1) if dtype == torch.float32 else (tiles.queries // 16, 2)
        warps, stages = (warps, stages) if self.tried is None else (self.tried.warps, self.tried.stages)
        return {
            "qkv": self.qkv,
            "strides": self.qkv.stride(),
            "bias": self.bias,
            "bias_strides": (0, 0, 0) if self.bias is None else self.bias.stride(),
            "scale": self.scale,
            "factor": self.factor,
            "windows": self.windows,
            "each": each,
            "heads": self.heads,
            "size": (self.qkv.shape[1], self.qkv.shape[2]),
            "shift": self.shift,
            "window_h": self.window[0],
            "window_w": self.window[1],
            "depth": depth,
            "width": max(16, triton.next_power_of_2(depth)),
            "shifted": any(self.shift),
            "cosine": self.cosine,
            "eps": max(1e-12, torch.finfo(dtype).tiny),  # the reference's: zero vectors stay zero in fp16 too
            "exact": tl.float32 if INTERPRETED and dtype == torch.bfloat16 else _DTYPES[dtype],
            "precision": "tf32" if tf32 else "ieee",
            "tile_q": tiles.queries,
            "tile_k": tiles.keys,
            "num_warps": warps,
            "num_stages": stages,
        }


@triton.jit
def locate(at, token, size, shift, window_h: tl.constexpr, window_w: tl.constexpr):
    """Image, row and column on the map of the tokens of window `at`, and which side of the seams they are on."""
    token = tl.minimum(token, window_h * window_w - 1)
    columns = size[1] // window_w
    windows = size[0] // window_h * columns
    corner = at % windows
    y = corner // columns * window_h + token // window_w + shift[0]
    x = corner % columns * window_w + token % window_w + shift[1]
    under, past = y >= size[0], x >= size[1]  # rolled in from the opposite border
    y = tl.where(under, y - size[0], y)
    x = tl.where(past, x - size[1], x)
    return at // windows, y, x, under.to(tl.int32) * 2 + past.to(tl.int32)


@triton.jit
def offsets(image, y, x, strides):
    """Elements from the start of a map to each token; 64 bits, for maps of more than 2³¹ elements."""
    return image.to(tl.int64) * strides[0] + y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2]


@triton.jit
def read(base, rows, stride, depth: tl.constexpr, width: tl.constexpr):
    """A tile of tokens by channels; channels past `depth` are zero."""
    channel = tl.arange(0, width)
    pointers = base + rows[:, None] + channel[None, :] * stride
    return tl.load(pointers) if depth == width else tl.load(pointers, mask=(channel < depth)[None, :], other=0.0)


@triton.jit
def read_known(base, rows, known, stride, depth: tl.constexpr, width: tl.constexpr):
    """A tile whose rows are zero where they are not `known`: gradients of tokens past the window's last."""
    channel = tl.arange(0, width)
    pointers = base + rows[:, None] + channel[None, :] * stride
    return tl.load(pointers, mask=known[:, None] & (channel < depth)[None, :], other=0.0)


@triton.jit
def write(base, rows, known, tile, depth: tl.constexpr, width: tl.constexpr):
    """Store a tile's `known` rows in the type of the map."""
    channel = tl.arange(0, width)
    pointers = base + rows[:, None] + channel[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=known[:, None] & (channel < depth)[None, :])


@triton.jit
def product(a, b, exact: tl.constexpr, precision: tl.constexpr):
    """A matrix product summed in fp32. `exact` is the operands' own type, or one that holds it (the interpreter's)."""
    return tl.dot(a.to(exact), b.to(exact), input_precision=precision)


@triton.jit
def unit(x, cosine: tl.constexpr, eps: tl.constexpr):
    """Rows of length one in the type of `x`, if the attention compares directions; otherwise the rows as they are.

    Rows shorter than `eps` are zero, as in the reference.
    """
    if cosine:
        wide = x.to(tl.float32)
        norm = tl.sqrt(tl.sum(wide * wide, 1))[:, None]
        x = tl.where(norm < eps, 0.0, wide / tl.maximum(norm, eps)).to(x.dtype)
    return x


@triton.jit
def through_unit(slope, x, cosine: tl.constexpr, eps: tl.constexpr):
    """The slope in `x` from the slope in ``unit(x)``: less its part along `x`, over the length of `x`.

    A vector of no length has no direction to turn: its slope is zero. Such are the keys of V2's padded tokens.
    """
    if cosine:
        wide = x.to(tl.float32)
        norm = tl.sqrt(tl.sum(wide * wide, 1))
        inverse = tl.where(norm >= eps, 1.0 / tl.maximum(norm, eps), 0.0)
        wide *= inverse[:, None]
        slope = (slope - tl.sum(slope * wide, 1)[:, None] * wide) * inverse[:, None]
    return slope


@triton.jit
def head_scale(scale, factor, head):
    """What multiplies q·k in this head."""
    return factor if scale is None else tl.load(scale + head).to(tl.float32)


@triton.jit
def read_bias(bias, strides, head, row, column, tokens: tl.constexpr):
    """A tile of the head's bias in powers of two; -inf for keys past the window's last token."""
    inside = (column < tokens)[None, :]
    added = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    if bias is not None:
        row = tl.minimum(row, tokens - 1)
        pointers = bias + head * strides[0] + row[:, None] * strides[1] + column[None, :] * strides[2]
        added += tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * LOG2E
    return tl.where(inside, added, float("-inf"))


@triton.jit
def logits(
    query, key, added, c, query_region, key_region, shifted: tl.constexpr, exact: tl.constexpr, precision: tl.constexpr
):
    """Logits in powers of two: c · q·k + bias; -inf for keys past the window or of another region."""
    s = product(query, tl.trans(key), exact, precision) * (c * LOG2E) + added
    if shifted:
        s = tl.where(query_region[:, None] == key_region[None, :], s, float("-inf"))
    return s
