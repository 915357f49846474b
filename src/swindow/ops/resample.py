"""Tables and kernels that were learned for one size, at another."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ShapeError
from swindow.ops.windows import Size, undecided


def bias_table(table: Float[Tensor, "R N"], old: Size, new: Size) -> Float[Tensor, "R2 N"]:
    """A relative position bias table for windows of another size: bicubic over the offsets (Swin, section 3.2).

    `old` and `new` are windows (height, width) in tokens; a table has a row for each of (2h-1)(2w-1) offsets.

    Raises:
        ShapeError: the table is not one for windows of `old`.
    """
    rows, columns = 2 * old[0] - 1, 2 * old[1] - 1
    if table.shape[0] != rows * columns:
        raise ShapeError(f"a bias table of {table.shape[0]} rows is not for {old[0]}x{old[1]} windows")
    if old == new:
        return table
    image = table.T.unflatten(1, (rows, columns))[None]
    resized = _bicubic(image, (2 * new[0] - 1, 2 * new[1] - 1))
    return resized[0].flatten(1).T.contiguous()


def place_table(table: Float[Tensor, "H W C"], grid: Size) -> Float[Tensor, "H2 W2 C"]:
    """An absolute position table for another grid: bicubic over the places."""
    if table.shape[:2] == grid:
        return table
    return _bicubic(table.permute(2, 0, 1)[None], grid)[0].permute(1, 2, 0).contiguous()


def sequence_table(table: Float[Tensor, "1 T C"], old: Size, new: Size, *, prefix: int) -> Float[Tensor, "1 T2 C"]:
    """A ViT's position embedding for another grid: bicubic and antialiased, except that of `prefix` learned tokens.

    Raises:
        ShapeError: the embedding is not one for a grid of `old`.
    """
    if table.shape[1] != prefix + old[0] * old[1]:
        raise ShapeError(f"{table.shape[1]} positions are not {prefix} and a grid of {old[0]}x{old[1]}")
    if old == new:
        return table
    image = table[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)
    # In fp32 whatever the table's dtype: halves have no such kernel, and the published numbers are fp32's.
    image = _antialiased(image.float(), new).to(table.dtype)
    return torch.cat([table[:, :prefix], image.flatten(2).transpose(1, 2)], dim=1)


def input_channels(kernel: Float[Tensor, "D C h w"], channels: int) -> Float[Tensor, "D C2 h w"]:
    """A first convolution for images of other channels, alike in what it gives for grey images.

    One channel gets the sum of all; more repeat what there is in turn, scaled so that the sum stays.
    """
    old = kernel.shape[1]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    repeated = kernel[:, torch.arange(channels) % old]
    return repeated * (old / channels)


def _antialiased(image: Tensor, size: Size) -> Tensor:
    """Bicubic and antialiased, as Pillow does it.

    While a compiler does not know the size, by sums with the same weights: the backward pass of torch's own kernel
    cannot be traced then (torch 2.14 fails with "expected IntList but got GenericList").
    """
    if undecided(size[0], image.shape[2]) or undecided(size[1], image.shape[3]):
        rows, columns = (_weights(old, new, image) for old, new in zip(image.shape[2:], size, strict=True))
        image = (rows[:, :, None] * image[:, :, None]).sum(3)  # not by matmul, which autocast would make a half's
        return (image[:, :, :, None] * columns).sum(4)
    return F.interpolate(image, size=size, mode="bicubic", antialias=True)


def _weights(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """What each of `new` places takes from each of `old` ones: Keys' kernel with a = -1/2, widened to make smaller."""
    ratio = old / torch.ones_like(like[0, 0, 0, 0]).mul(new)
    width = ratio.clamp(min=1)
    centres = (torch.arange(new, dtype=like.dtype, device=like.device) + 0.5) * ratio
    places = torch.arange(old, dtype=like.dtype, device=like.device) + 0.5
    x = ((places - centres[:, None]) / width).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def _bicubic(image: Tensor, size: Size) -> Tensor:
    """In fp32 at least: half-precision tables would lose what they hold."""
    wide = image if image.dtype == torch.float64 else image.float()
    resized = F.interpolate(wide, size=size, mode="bicubic", align_corners=False)
    return resized.to(image.dtype)
