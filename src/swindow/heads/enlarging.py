"""Maps enlarged bilinearly, and convolutions of enlarged maps at little more than the price of the small ones."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from swindow.ops.linear import convolves_faster, differs, linear


def enlarged(x: Float[Tensor, "B C H W"], size: tuple[int, ...]) -> Float[Tensor, "B C h w"]:
    """A map at another height and width, bilinearly."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def convolved(
    x: Float[Tensor, "B C H W"],
    coarser: Sequence[Float[Tensor, "B _ _ _"]],
    weight: Float[Tensor, "D E k k"],
    bias: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "B D H W"]:
    """A convolution of `x` and `coarser` maps, enlarged to its size, side by side: `convolved_plainly` for less.

    Enlarging mixes places, each entry of a kernel mixes channels, so it does not matter which comes first. Here every
    entry is multiplied with the small map, and the products are enlarged, each as far aside as its entry lies from the
    kernel's middle: for a map half as high and wide a quarter of the multiplications, and no enlarged map is kept for
    the backward pass. Enlarging is itself a product with a matrix, nearly all zeros, for each axis: up to some 2,000
    cells a side that is a small part of the work.
    """
    (height, width), kernel = x.shape[-2:], weight.shape[-1]
    own, *others = weight.split([x.shape[1], *(small.shape[1] for small in coarser)], dim=1)
    out = F.conv2d(x, own, bias, padding=kernel // 2)
    if not others:
        return out
    tall = [_tall(small, kernels, height) for small, kernels in zip(coarser, others, strict=True)]
    across = torch.cat([enlargement(small.shape[-1], width, kernel, like=x) for small in coarser], dim=1)
    return out + _mixed(across, torch.cat(tall, dim=2).flatten(2, 3)).permute(0, 3, 1, 2)


def convolved_plainly(
    x: Float[Tensor, "B C H W"],
    coarser: Sequence[Float[Tensor, "B _ _ _"]],
    weight: Float[Tensor, "D E k k"],
    bias: Float[Tensor, " D"] | None = None,
) -> Float[Tensor, "B D H W"]:
    """What `convolved` computes, as the papers say it."""
    whole = torch.cat([x, *(enlarged(small, x.shape[-2:]) for small in coarser)], dim=1)
    return F.conv2d(whole, weight, bias, padding=weight.shape[-1] // 2)


def enlargement(cells: int, size: int, kernel: int, *, like: Tensor) -> Float[Tensor, "{size} {cells*kernel}"]:
    """What each of `size` places takes from each of `cells` places, by each entry of a kernel that is moved over them.

    Beyond the border lies nothing: the kernel sees zeros there.
    """
    share = F.interpolate(torch.eye(cells, dtype=like.dtype, device=like.device)[None], size=size, mode="linear")[0]
    share = F.pad(share, (kernel // 2, kernel // 2))
    return torch.stack([share[:, tap : tap + size] for tap in range(kernel)], dim=1).flatten(0, 1).T


def _tall(x: Tensor, kernels: Tensor, height: int) -> Float[Tensor, "B H W k D"]:
    """A small map times every entry of the kernels, enlarged to `height`; what a row of entries gives is added up."""
    kernel, out = kernels.shape[-1], kernels.shape[0]
    products = linear(x.permute(0, 3, 2, 1).contiguous(), kernels.permute(2, 3, 0, 1).flatten(0, 2), None)
    products = products.unflatten(-1, (kernel, kernel * out)).flatten(2, 3)  # B W Hk kD
    tall = _mixed(enlargement(x.shape[2], height, kernel, like=x), products)
    return tall.unflatten(-1, (kernel, out)).transpose(1, 2)


def _mixed(matrix: Tensor, x: Float[Tensor, "B N T C"]) -> Float[Tensor, "B N S C"]:
    """``matrix @ x``, by whatever does it fastest: see `linear`."""
    return _Mixing.apply(matrix, x) if convolves_faster(x) and not differs() else matrix @ x


class _Mixing(torch.autograd.Function):
    """A product with a constant matrix as a pointwise convolution, which keeps nothing else for its backward pass."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return F.conv1d(x.flatten(0, 1), matrix[:, :, None]).unflatten(0, x.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (matrix,) = ctx.saved_tensors
        return None, _mixed(matrix.T, grad)
