"""The linear projection of a token map, through the fastest matrix product that the CPU has."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_ENOUGH_IMAGES = 16
"""From this many images on, torch hands a pointwise convolution to oneDNN even on a single thread."""


def linear(
    x: Float[Tensor, "... I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "... O"]:
    """``x @ weight.T + bias``: `F.linear`, or for a ``B H W I`` map the same sum as a pointwise convolution.

    In fp32 `F.linear` calls MKL, whose log names no AVX-512 on AMD processors, where it runs at half speed. A 1x1
    convolution of the same memory, seen as channels-last images, calls oneDNN: twice as fast, backward nearly so.
    """
    if not convolves_faster(x):
        return F.linear(x, weight, bias)
    if x.shape[0] < _ENOUGH_IMAGES and torch.get_num_threads() == 1:  # every row of tokens as an image
        return _convolve(x.flatten(0, 1).unsqueeze(1), weight, bias).squeeze(1).unflatten(0, x.shape[:2])
    return _convolve(x, weight, bias)


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
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
