"""Window attention taken back to the token grid: stitched maps, and chains of windows followed backwards.

Every function here works window by window on vectors of one number a token, so a chain over all blocks of an
800x600 image never needs a matrix of tokens by tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from swindow.ops.windows import Size, count, merge, partition, region_mask

Link = TypeVar("Link")


class Layout(NamedTuple):
    """How a block cuts its map: `grid` tokens, padded to multiples of `window`, rolled up and left by `shift`."""

    grid: Size
    window: Size
    shift: Size
    canvas: Size | None = None
    """The tokens of the block's map where a detector's picture was padded, the picture's `grid` at its top left."""

    @property
    def padded(self) -> Size:
        """The grid that the windows cover, padding included."""
        sides = zip(self.canvas or self.grid, self.window, strict=True)
        rows, columns = (count(side, window) * window for side, window in sides)
        return rows, columns

    def carrying(self) -> "Layout":
        """The same with every token that can pass anything on: those of a padded picture's border can, in a map."""
        return self._replace(grid=self.canvas or self.grid, canvas=None)


class Step(NamedTuple):
    """One block of a chain: where its windows lie and what they passed on, mean over heads."""

    layout: Layout
    weights: Float[Tensor, "G T T"]


def cut(x: Tensor, layout: Layout) -> Tensor:
    """A map ``H W`` as windows ``G T``, padding filled with zeros."""
    below, right = (whole - side for whole, side in zip(layout.padded, x.shape, strict=True))
    return partition(F.pad(x, (0, right, 0, below))[None, :, :, None], layout.window, layout.shift)[0].flatten(1)


def stitch(x: Tensor, layout: Layout) -> Tensor:
    """Windows ``G … T`` as maps ``… H W`` on the image's grid: un-partitioned, rolled back, padding cropped."""
    lead = x.shape[1:-1]
    windows = x.movedim(0, -2).reshape(-1, x.shape[0], *layout.window)
    maps = merge(windows, layout.padded, layout.shift)[:, : layout.grid[0], : layout.grid[1]]
    return maps.reshape(*lead, *layout.grid)


def without_padding(
    weights: Float[Tensor, "G N T T"], layout: Layout
) -> tuple[Float[Tensor, "G N T T"], Float[Tensor, "G N T"]]:
    """Weights over the image's own tokens, rows summing to one again, and the share of each row that went to padding.

    A row that gave everything to padding is left all zero.
    """
    real = _real(layout, weights)[:, None, None, :]
    kept = weights * real
    rescaled = (kept / kept.sum(-1, keepdim=True)).nan_to_num(nan=0.0)
    return rescaled, (weights * (1 - real)).sum(-1)


def received(weights: Float[Tensor, "G N T T"], layout: Layout) -> Float[Tensor, "N H W"]:
    """What each token is given by all tokens of the image, per head, of weights that leave padding out.

    1 is a fair share: uniform attention gives exactly 1 everywhere, whatever the windows, masks and padding.
    """
    return stitch(torch.einsum("gq,gnqk->gnk", _real(layout, weights), weights), layout)


def mean_over_queries(values: Float[Tensor, "G N T"], layout: Layout) -> Float[Tensor, " N"]:
    """The mean over the image's own tokens of a number that each has per head."""
    return torch.einsum("gq,gnq->n", _real(layout, values), values) / (layout.grid[0] * layout.grid[1])


def given(weights: Float[Tensor, "G N T T"], layout: Layout, token: Size) -> Float[Tensor, "N H W"]:
    """What one token takes from every other, per head, on the grid; zero outside its window."""
    return stitch(torch.einsum("gq,gnqk->gnk", cut(one_hot(layout.grid, token, weights), layout), weights), layout)


def view(layout: Layout, token: Size) -> Bool[Tensor, "H W"]:
    """The tokens that one token sees: its window, less padding and less what the region mask forbids."""
    mask = torch.zeros(layout.grid, dtype=torch.bool)
    mask[token] = True
    return _seen_by(mask, layout)


def rollout(vector: Float[Tensor, "H2 W2"], stages: Sequence[Sequence[Step]]) -> Float[Tensor, "H W"]:
    """Follow a distribution over the last stage's tokens back to the patches of the image.

    Each block counts as 0.5·A + 0.5·I with rows normalised, A the mean over heads (Abnar & Zuidema 2020, section 3);
    columns of padding are dropped before rows are normalised, since padding carries nothing of the image. A merged
    token comes in equal parts from the tokens of its cell that are no padding. The sum is kept.
    """
    for index in reversed(range(len(stages))):
        if index < len(stages) - 1:
            vector = _unmerge(vector, stages[index][0].layout.grid)
        for step in reversed(stages[index]):
            vector = _through_block(vector, step)
    return vector


def receptive_field(mask: Bool[Tensor, "H2 W2"], stages: Sequence[Sequence[Layout]]) -> Bool[Tensor, "H W"]:
    """The patches that can influence any token of `mask` on the last stage's grid: exact, whatever the weights are."""
    for index in reversed(range(len(stages))):
        if index < len(stages) - 1:
            mask = _double(mask, stages[index][0].grid)
        for layout in reversed(stages[index]):
            mask = _seen_by(mask, layout)
    return mask


def unet_rollout(
    vector: Float[Tensor, "H2 W2"],
    encoder: Sequence[Sequence[Step]],
    decoder: Sequence[Sequence[Step]],
    *,
    entries: bool,
) -> Float[Tensor, "H W"]:
    """`rollout` from the tokens of the last of these decoder stages (coarsest first), through all that it is made of.

    A joined token comes one half from the encoder's token at its place and one from the coarser token that it was
    expanded from: a convention like that for residuals, as no weight says what the joining layer takes from either.
    `entries` says whether the encoder's half is what enters its stage on that grid, or what the stage makes of it.
    """
    if not decoder:
        return rollout(vector, encoder)
    for step in reversed(decoder[-1]):
        vector = _through_block(vector, step)
    skip = rollout(vector, _before_join(encoder, len(decoder), entries))
    expanded = unet_rollout(_cells(vector).sum((1, 3)), encoder, decoder[:-1], entries=entries)
    return 0.5 * skip + 0.5 * expanded


def unet_receptive_field(
    mask: Bool[Tensor, "H2 W2"],
    encoder: Sequence[Sequence[Layout]],
    decoder: Sequence[Sequence[Layout]],
    *,
    entries: bool,
) -> Bool[Tensor, "H W"]:
    """`receptive_field` of tokens of the last of these decoder stages, by both ways: exact."""
    if not decoder:
        return receptive_field(mask, encoder)
    for layout in reversed(decoder[-1]):
        mask = _seen_by(mask, layout)
    skip = receptive_field(mask, _before_join(encoder, len(decoder), entries))
    return skip | unet_receptive_field(_cells(mask).any(3).any(1), encoder, decoder[:-1], entries=entries)


def one_hot(grid: Size, token: Size, like: Tensor) -> Tensor:
    """All weight of a distribution over `grid` on one token."""
    vector = like.new_zeros(grid)
    vector[token] = 1
    return vector


def _through_block(vector: Tensor, step: Step) -> Tensor:
    layout, weights = step
    kept = torch.einsum("gqk,gk->gq", weights, _real(layout, weights))  # what a row leaves to the image's own tokens
    vector = vector / (0.5 + 0.5 * stitch(kept, layout))
    return 0.5 * vector + 0.5 * stitch(torch.einsum("gq,gqk->gk", cut(vector, layout), weights), layout)


def _seen_by(mask: Tensor, layout: Layout) -> Tensor:
    allowed = region_mask(layout.padded, layout.window, layout.shift, mask.device)
    return stitch((cut(mask, layout)[:, :, None] & allowed).any(1), layout)


def _unmerge(vector: Tensor, grid: Size) -> Tensor:
    parts = [torch.full((count(side, 2),), 2.0).to(vector) for side in grid]
    for part, side in zip(parts, grid, strict=True):
        part[-1] -= side - side // 2 * 2  # an odd side: the last cell holds one row of tokens and one of padding
    return _double(vector / torch.outer(*parts), grid)


def _double(x: Tensor, grid: Size) -> Tensor:
    return x.repeat_interleave(2, 0).repeat_interleave(2, 1)[: grid[0], : grid[1]]


def _cells(x: Tensor) -> Tensor:
    """A map as cells of 2x2 tokens, ``H 2 W 2``; what an odd side lacks is zero."""
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, columns % 2, 0, rows % 2))
    return padded.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))


def _before_join(encoder: Sequence[Sequence[Link]], decoders: int, entries: bool) -> Sequence[Sequence[Link]]:
    """The part of an encoder whose result the last of so many decoder stages is joined with."""
    size = len(encoder) - 1 - decoders
    return [*encoder[:size], encoder[size][:0]] if entries else encoder[: size + 1]


def _real(layout: Layout, like: Tensor) -> Tensor:
    """1 for the image's own tokens and 0 for padding, ``G T``."""
    return cut(like.new_ones(layout.grid), layout)
