"""RoIAlign (He et al. 2017, arXiv 1703.06870, section 3): torchvision's, and on a CPU a kernel of our own.

Torchvision's CPU kernel reads a map channel by channel, and its gradient takes one thread and most of a detector's
training step. Ours reads channels-last maps, where a cell's channels lie together.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from swindow.errors import ShapeError
from swindow.ops.cpu import native
from swindow.ops.cpu.branches import DTYPES, enough
from swindow.ops.vision import roi_align


def region_align(
    maps: Float[Tensor, "B C H W"],
    regions: Float[Tensor, "R 5"],
    size: int,
    *,
    scale: float,
    samples: int = 0,
    aligned: bool = True,
) -> Float[Tensor, "R C s s"]:
    """What `maps` say of each region on a grid of `size` by `size` cells, each the mean of bilinear samples.

    Args:
        regions: number of the map, then ``x1 y1 x2 y2``.
        scale: cells of the map for each unit of the regions.
        samples: along each side of a cell; 0 is as many as it has cells of the map's.
        aligned: a cell's value belongs to its middle (half a cell aside otherwise).

    Raises:
        ShapeError: on a CPU, the number of a map that there is not.
    """
    if _runs_ours(maps, regions):
        return _Align.apply(maps, regions, size, scale, samples, aligned)
    # Sums of the many parts of a gradient want fp32.
    full = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return roi_align(full, regions.to(full.dtype), size, scale, samples, aligned).to(maps.dtype)


def _runs_ours(maps: Tensor, regions: Tensor) -> bool:
    plain = maps.device.type == "cpu" and maps.dtype in DTYPES and not torch.compiler.is_compiling()
    return plain and not regions.requires_grad and native.refusal() is None


class _Structure(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "regions", "size")),
        ("rows", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("samples", ctypes.c_int32),
        ("aligned", ctypes.c_int32),
    )


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, regions: Tensor, size: int, scale: float, samples: int, aligned: bool
    ) -> Tensor:
        rows = regions.detach().float().contiguous()
        if not bool(((rows[:, 0] >= 0) & (rows[:, 0] < len(maps))).all()):
            raise ShapeError(f"regions name maps that are none of the {len(maps)}; number them from 0")
        last = maps.permute(0, 2, 3, 1).contiguous()
        out = last.new_empty(len(rows), size, size, last.shape[3])
        ctx.shape, ctx.dtype = last.shape, maps.dtype
        ctx.save_for_backward(rows)
        ctx.asked = (size, scale, samples, aligned)
        structure = _structure(ctx.shape, rows, *ctx.asked)
        half, threads = int(maps.dtype == torch.bfloat16), torch.get_num_threads()
        enough(native.library().swindow_region_align(ctypes.byref(structure), half, _at(last), _at(out), threads))
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        structure = _structure(ctx.shape, rows, *ctx.asked)
        given = grad.to(ctx.dtype).permute(0, 2, 3, 1).contiguous()
        slope = torch.zeros(ctx.shape, dtype=torch.float32, device="cpu")
        half, threads = int(ctx.dtype == torch.bfloat16), torch.get_num_threads()
        enough(
            native.library().swindow_region_align_backward(
                ctypes.byref(structure), half, _at(given), _at(slope), threads
            )
        )
        return slope.to(ctx.dtype).permute(0, 3, 1, 2), None, None, None, None, None


def _structure(shape: torch.Size, rows: Tensor, size: int, scale: float, samples: int, aligned: bool) -> _Structure:
    return _Structure(*shape, len(rows), size, _at(rows), scale, samples, int(aligned))


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())
