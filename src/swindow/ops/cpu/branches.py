"""Whole branches of blocks as single native calls, for inference: `csrc/blocks.cpp` from Python.

Each class holds packed weights and is called with a contiguous map; nothing here takes part in autograd.
"""

import ctypes
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.errors import ShapeError
from swindow.ops.cpu.native import library
from swindow.ops.windows import Size

DTYPES = (torch.float32, torch.bfloat16)
PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""What the kernels read and write beside tokens, whatever torch's defaults are."""


class Windows(ctypes.Structure):
    """A map and how it is cut: tokens, but for `dim`, channels of a head."""

    _fields_ = tuple((name, ctypes.c_int64) for name in (
        "images", "height", "width", "heads", "dim", "window_height", "window_width", "shift_y", "shift_x"
    ))  # fmt: skip


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Panels(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class _AttentionBranch(ctypes.Structure):
    _fields_ = (
        ("windows", Windows),
        ("before", _Norm),
        ("after", _Norm),
        ("qkv", _Panels),
        ("proj", _Panels),
        ("bias", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("cosine", ctypes.c_int32),
        ("tiny", ctypes.c_float),
    )


class _MlpBranch(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("before", _Norm),
        ("after", _Norm),
        ("fc1", _Panels),
        ("fc2", _Panels),
    )


class _LinearLayer(ctypes.Structure):
    _fields_ = (
        ("source", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("images", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("patch_height", ctypes.c_int64),
        ("patch_width", ctypes.c_int64),
        ("before", _Norm),
        ("after", _Norm),
        ("weights", _Panels),
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the kernels of this machine lay things out."""

    panel: int
    """Outputs in a panel of packed weights."""
    lanes: int
    """fp32 values in a register."""
    keys: int
    """Tokens of a window are padded to a multiple of this."""
    half_products: bool
    """Whether bf16 is multiplied as such; else weights of bf16 models are packed in fp32."""


@functools.cache
def layout() -> Layout:
    """That of the compiled kernels."""
    numbers = (ctypes.c_int64 * 4)()
    library().swindow_shape(numbers)
    return Layout(numbers[0], numbers[1], numbers[2], bool(numbers[3]))


class Norm:
    """A layer norm's fp32 weights, kept for as long as a kernel may read them; None is no norm."""

    def __init__(self, norm: nn.LayerNorm | None) -> None:
        self.kept = [] if norm is None else [_padded(norm.weight), _padded(norm.bias)]
        self.struct = _Norm(*(x.data_ptr() for x in self.kept), eps=norm.eps) if norm is not None else _Norm()


class Panels:
    """A linear layer's weights, packed for tokens of `dtype`, and its bias in fp32."""

    def __init__(self, weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None, dtype: torch.dtype) -> None:
        outputs, inputs = weight.shape
        width = math.ceil(outputs / layout().panel) * layout().panel
        half = dtype == torch.bfloat16 and layout().half_products
        source = weight.detach().float().contiguous()
        kind = torch.bfloat16 if half else torch.float32
        self.weights = torch.empty(width * (inputs + inputs % 2), dtype=kind, device="cpu")
        library().swindow_pack(
            ctypes.c_void_p(source.data_ptr()),
            ctypes.c_int64(outputs),
            ctypes.c_int64(inputs),
            int(half),
            ctypes.c_void_p(self.weights.data_ptr()),
        )
        self.bias = torch.zeros(width, **PLAIN)
        if bias is not None:
            self.bias[:outputs] = bias.detach()
        self.struct = _Panels(self.weights.data_ptr(), self.bias.data_ptr(), inputs, outputs)


class AttentionBranch:
    """``x + [norm] project(attend([norm] x))``: all of a block's window attention, residual included.

    Args:
        qkv: weight ``3C C`` and bias ``3C`` or None, each head-major within queries, keys and values.
        proj: weight ``C C`` and bias ``C`` or None.
        position_bias: ``N T T`` or None.
        scale: one for each head.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        num_heads: int,
        window: Size,
        qkv: tuple[Tensor, Tensor | None],
        proj: tuple[Tensor, Tensor | None],
        position_bias: Float[Tensor, "N T T"] | None,
        scale: Float[Tensor, " N"],
        cosine: bool,
        before: nn.LayerNorm | None = None,
        after: nn.LayerNorm | None = None,
    ) -> None:
        self.dtype, self.num_heads, self.window = dtype, num_heads, window
        self.channels = proj[0].shape[0]
        self.before, self.after = Norm(before), Norm(after)
        self.qkv = Panels(*_by_head(*qkv, num_heads), dtype)
        self.proj = Panels(*proj, dtype)
        tokens = window[0] * window[1]
        self.bias = pad_bias(position_bias, num_heads, tokens)
        self.scale = scale.detach().float().contiguous()
        self.cosine = cosine
        self.function = library().swindow_attention_branch

    def __call__(self, x: Float[Tensor, "B H W C"], shift: Size, *, in_place: bool) -> Float[Tensor, "B H W C"]:
        """The branch on a map; with `in_place` the result takes the map's memory."""
        _check(x, self.dtype, self.channels)
        y = x if in_place else torch.empty_like(x)
        images, height, width, _ = x.shape
        sizes = (images, height, width, self.num_heads, self.channels // self.num_heads)
        struct = _AttentionBranch(
            windows=Windows(*sizes, *self.window, *shift),
            before=self.before.struct,
            after=self.after.struct,
            qkv=self.qkv.struct,
            proj=self.proj.struct,
            bias=self.bias.data_ptr(),
            scale=self.scale.data_ptr(),
            cosine=self.cosine,
            tiny=least_length(self.dtype),
        )
        _call(self.function, struct, x, (x, y))
        return y


class MlpBranch:
    """``x + [norm] fc2(gelu(fc1([norm] x)))``: all of a block's MLP, residual included."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        fc1: tuple[Tensor, Tensor | None],
        fc2: tuple[Tensor, Tensor | None],
        before: nn.LayerNorm | None = None,
        after: nn.LayerNorm | None = None,
    ) -> None:
        self.dtype = dtype
        self.hidden, self.channels = fc1[0].shape
        self.before, self.after = Norm(before), Norm(after)
        self.fc1, self.fc2 = Panels(*fc1, dtype), Panels(*fc2, dtype)
        self.function = library().swindow_mlp_branch

    def __call__(self, x: Float[Tensor, "... C"], *, in_place: bool) -> Float[Tensor, "... C"]:
        """The branch on rows of tokens; with `in_place` the result takes their memory."""
        _check(x, self.dtype, self.channels)
        y = x if in_place else torch.empty_like(x)
        struct = _MlpBranch(
            rows=x.numel() // self.channels,
            channels=self.channels,
            hidden=self.hidden,
            before=self.before.struct,
            after=self.after.struct,
            fc1=self.fc1.struct,
            fc2=self.fc2.struct,
        )
        _call(self.function, struct, x, (x, y))
        return y


Source = Literal["rows", "cells", "patches"]


class LinearLayer:
    """``[residual +] [norm] [gelu] linear([norm] rows)``, where rows may be gathered on the way.

    Args:
        source: ``rows`` of a map as they are; ``cells`` of 2x2 tokens of a ``B H W C`` map joined, column-major, zeros
            beyond its border; ``patches`` of a ``B C h w`` image.
        patch: height and width of the patches, in pixels.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        weight: Float[Tensor, "O I"],
        bias: Float[Tensor, " O"] | None,
        *,
        source: Source = "rows",
        patch: Size = (1, 1),
        gelu: bool = False,
        before: nn.LayerNorm | None = None,
        after: nn.LayerNorm | None = None,
    ) -> None:
        self.dtype, self.source, self.patch, self.gelu = dtype, source, patch, gelu
        self.outputs, self.inputs = weight.shape
        self.before, self.after = Norm(before), Norm(after)
        self.weights = Panels(weight, bias, dtype)
        self.function = library().swindow_linear_layer
        self.channels = {"rows": 1, "cells": 4, "patches": patch[0] * patch[1]}[source]
        self.channels = self.inputs // self.channels

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The layer on a map or an image; a residual is added to the result."""
        if self.source == "patches":
            _check(x, self.dtype, self.channels, axis=1)
            images, _, height, width = x.shape
            shape: tuple[int, ...] = (images, math.ceil(height / self.patch[0]), math.ceil(width / self.patch[1]))
        elif self.source == "cells":
            _check(x, self.dtype, self.channels)
            images, height, width, _ = x.shape
            shape = (images, math.ceil(height / 2), math.ceil(width / 2))
        else:
            _check(x, self.dtype, self.channels)
            images, height, width, shape = x.numel() // self.channels, 1, 1, tuple(x.shape[:-1])
        y = torch.empty((*shape, self.outputs), dtype=self.dtype, device="cpu")
        if residual is not None:
            _check(residual, self.dtype, self.outputs)
            if residual.shape != y.shape:
                raise ShapeError(f"the residual is {tuple(residual.shape)} and the result {tuple(y.shape)}")
        struct = _LinearLayer(
            source=("rows", "cells", "patches").index(self.source),
            activation=self.gelu,
            images=images,
            height=height,
            width=width,
            channels=self.channels,
            patch_height=self.patch[0],
            patch_width=self.patch[1],
            before=self.before.struct,
            after=self.after.struct,
            weights=self.weights.struct,
        )
        _call(self.function, struct, x, (x, residual, y))
        return y


def _call(
    function: Callable[..., Any], struct: ctypes.Structure, x: Tensor, tensors: tuple[Tensor | None, ...]
) -> None:
    if x.numel() == 0:
        return
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    half = int(x.dtype == torch.bfloat16)
    if torch.autograd.profiler._is_profiler_enabled:
        with torch.profiler.record_function(f"swindow::{function.__name__.removeprefix('swindow_')}"):
            done = function(ctypes.byref(struct), half, *pointers, torch.get_num_threads())
    else:
        done = function(ctypes.byref(struct), half, *pointers, torch.get_num_threads())
    enough(done)


def enough(done: int) -> None:
    """What a kernel answers.

    Raises:
        MemoryError: it found too little.
    """
    if not done:
        raise MemoryError("a CPU kernel found no memory to work in; take fewer images at a time, or smaller ones")


def _check(x: Tensor, dtype: torch.dtype, channels: int, *, axis: int = -1) -> None:
    """The kernels read memory as they were told it is laid out: anything else must not reach them."""
    if x.dtype != dtype or x.device.type != "cpu" or x.shape[axis] != channels or not x.is_contiguous():
        raise ShapeError(
            f"the kernel takes contiguous {dtype} maps of {channels} channels on the CPU, "
            f"and was given {tuple(x.shape)} {x.dtype} on {x.device}, strides {x.stride()}"
        )


def least_length(dtype: torch.dtype) -> float:
    """Vectors shorter than this have no direction, as in `swindow.ops.reference.unit`."""
    return max(1e-12, torch.finfo(dtype).tiny)


def _padded(x: Tensor) -> Tensor:
    """A vector in fp32 with room behind it for whole registers."""
    out = torch.zeros(math.ceil(x.numel() / layout().lanes) * layout().lanes, **PLAIN)
    out[: x.numel()] = x.detach()
    return out


def _by_head(weight: Tensor, bias: Tensor | None, num_heads: int) -> tuple[Tensor, Tensor]:
    """Rows of qkv ordered head by head, each head's queries, keys and values padded to whole panels."""
    channels = weight.shape[1]
    dim = weight.shape[0] // 3 // num_heads
    width = math.ceil(3 * dim / layout().panel) * layout().panel
    rows = torch.zeros(num_heads, width, channels, **PLAIN)
    rows[:, : 3 * dim] = weight.detach().float().view(3, num_heads, dim, channels).transpose(0, 1).flatten(1, 2)
    values = torch.zeros(num_heads, width, **PLAIN)
    if bias is not None:
        values[:, : 3 * dim] = bias.detach().float().view(3, num_heads, dim).transpose(0, 1).flatten(1)
    return rows.flatten(0, 1), values.flatten()


def pad_bias(bias: Tensor | None, num_heads: int, tokens: int) -> Tensor:
    """``N T T`` as ``N T P`` in fp32: -inf behind the last token, whose weight is then zero."""
    padded = math.ceil(tokens / layout().keys) * layout().keys
    out = torch.full((num_heads, tokens, padded), float("-inf"), **PLAIN)
    out[:, :, :tokens] = 0.0 if bias is None else bias.detach()
    return out
