"""Windows on a token grid: pad, roll and partition, their inverses, and who may see whom.

The sizes are written with window counts as the primary symbols (``rows = H // h``), without ``%`` and without ``-1``
in views, so that `torch.export` can keep height and width symbolic. For the same reason maps are padded and cropped by
index where a compiler does not know the sizes: a slice makes torch ask whether it is one, and every answer is a graph
of its own, two for each axis, stage and merge.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def count(side: int, window: int) -> int:
    """How many windows cover `side` tokens, the last one perhaps only in part."""
    return (side + window - 1) // window


def pad_to_windows(x: Tensor, window: Size, *, first: int = 1) -> Tensor:
    """Zeros to the right and below until the windows divide a ``B H W C`` map (Swin, footnote 4).

    Height is axis `first` and width the one after it: 2 for ``B C H W``.
    """
    height, width = x.shape[first], x.shape[first + 1]
    rows, columns = count(height, window[0]) * window[0], count(width, window[1]) * window[1]
    if undecided(height, rows) or undecided(width, columns):
        return between_zeros(between_zeros(x, first, rows), first + 1, columns)
    below, right = rows - height, columns - width
    return F.pad(x, (0, 0) * (x.ndim - 2 - first) + (0, right, 0, below)) if below or right else x


def crop(x: Tensor, grid: Size, start: Size = (0, 0)) -> Tensor:
    """As many rows and columns of a ``B H W …`` map as `grid` says, from `start` on: what padding has added, undone."""
    height, width = grid
    if undecided(x.shape[1], height) or undecided(x.shape[2], width):
        rows, columns = (torch.arange(side, device=x.device) for side in grid)
        return x.index_select(1, rows + start[0]).index_select(2, columns + start[1])
    if x.shape[1] == height and x.shape[2] == width:
        return x
    return x[:, start[0] : start[0] + height, start[1] : start[1] + width]


def between_zeros(x: Tensor, axis: int, length: int, before: int = 0) -> Tensor:
    """`x` with zeros around it along an axis, `before` of them ahead of it and so many behind that it has `length`."""
    side, behind = x.shape[axis], x.ndim - 1 - axis
    place = torch.arange(length, device=x.device) - before
    place = torch.where((place < 0) | (place >= side), side, place)  # the row of zeros put at the end
    return F.pad(x, (0, 0) * behind + (0, 1)).index_select(axis, place)


def undecided(one: int, other: int) -> bool:
    """Whether two sizes are symbols of a graph under construction, of which it is not known whether they are equal."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # here: it brings in sympy

    return not (statically_known_true(one == other) or statically_known_true(one != other))


def partition(x: Tensor, window: Size, shift: Size = (0, 0)) -> Tensor:
    """A ``B H W …`` map as ``B G h w …`` windows of the map rolled up and left by `shift` (a view where it can be)."""
    x = roll(x, (-shift[0], -shift[1]))
    rows, columns = x.shape[1] // window[0], x.shape[2] // window[1]
    x = x.unflatten(2, (columns, window[1])).unflatten(1, (rows, window[0]))  # B rows h columns w …
    return x.transpose(2, 3).flatten(1, 2)


def merge(windows: Tensor, grid: Size, shift: Size = (0, 0)) -> Tensor:
    """The inverse of `partition`: ``B G h w …`` windows as the ``B H W …`` map of `grid` tokens, rolled back."""
    rows, columns = grid[0] // windows.shape[2], grid[1] // windows.shape[3]
    x = windows.unflatten(1, (rows, columns)).transpose(2, 3)  # B rows h columns w …
    return roll(x.flatten(3, 4).flatten(1, 2), shift)


def roll(x: Tensor, shift: Size) -> Tensor:
    """A ``B H W …`` map rolled down and right by `shift`; untouched when there is nothing to roll."""
    return torch.roll(x, shift, dims=(1, 2)) if any(shift) else x


def region_mask(grid: Size, window: Size, shift: Size, device: torch.device | None = None) -> Tensor:
    """Which tokens of a shifted window may see each other, ``G T T``, True for allowed (Swin, section 3.2).

    After the roll, the last window of each axis holds tokens from opposite borders of the map. They are neighbours in
    memory only, so attention is kept within the regions that were contiguous before the roll.
    """
    region = _regions(grid[0], window[0], shift[0], device)[:, None] * 3 + _regions(
        grid[1], window[1], shift[1], device
    )
    tokens = partition(region[None], window)[0].flatten(1)  # G T
    return tokens[:, :, None] == tokens[:, None, :]


def relative_position_index(window: Size) -> Tensor:
    """Row of the bias table for each (query, key) pair, ``T T`` int64 in [0, (2h-1)(2w-1)) (Swin, section 3.2).

    The row of an offset (dy, dx) = query - key is ``(dy + h - 1) * (2w - 1) + dx + w - 1``.
    """
    height, width = window
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx


def _regions(side: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """Along one rolled axis: 0 in the inner windows, 1 and 2 before and after the seam in the last one."""
    position = torch.arange(side, device=device)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= side - window).long() + (position >= side - shift).long()
