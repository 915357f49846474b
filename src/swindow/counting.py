"""What a model costs at an image size: parameters, multiply-accumulates (MACs), activations. Arithmetic; nothing runs.

Two conventions of counting MACs are in use, and papers seldom say which:

* Microsoft's (`Counts.macs`; the Swin paper and its repository): matrix products, convolutions, and one MAC for each
  value that a norm reads.
* torchvision's (`Counts.product_macs`): matrix products and convolutions only.

Both count what the windows compute, padding included, so that sizes which windows do not divide cost more.
"""

import dataclasses
import math
from typing import NamedTuple, cast

from torch import nn

from swindow.backbones.swin import Block, Stage, Swin
from swindow.layers import PatchMerge
from swindow.model import Model
from swindow.ops.windows import Size
from swindow.ops.windows import count as windows_over


class Cost(NamedTuple):
    """The work of a part on one image."""

    products: int
    """MACs of matrix products and convolutions."""
    norms: int
    """MACs of norms in Microsoft's convention."""
    activations: int
    """Values that matrix products and convolutions put out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A row of the stage table; a stage includes the merge that leads to the next one."""

    name: str
    grid: Size
    channels: int
    parameters: int
    cost: Cost
    blocks: int = 0
    heads: int = 0
    window: Size | None = None
    shift: Size | None = None
    """Of the shifted blocks on this grid: zero along an axis that one window covers."""

    @property
    def macs(self) -> int:
        """MACs in Microsoft's convention."""
        return self.cost.products + self.cost.norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model costs on one image of `size` (height, width) in pixels."""

    size: Size
    parts: tuple[Part, ...]
    """Patch embedding, every stage, head: together the whole model."""

    @property
    def parameters(self) -> int:
        """Learned values."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        """MACs in Microsoft's convention: products, convolutions and norms."""
        return sum(part.macs for part in self.parts)

    @property
    def product_macs(self) -> int:
        """MACs in torchvision's convention: products and convolutions."""
        return sum(part.cost.products for part in self.parts)

    @property
    def activations(self) -> int:
        """Values that matrix products and convolutions put out: a measure of memory traffic."""
        return sum(part.cost.activations for part in self.parts)


def count(model: Model, size: int | Size) -> Counts:
    """What `model` costs on one image of this size in pixels; one on the meta device will do, and takes no memory."""
    size = (size, size) if isinstance(size, int) else size
    body = model.backbone
    patches = (windows_over(size[0], body.config.patch), windows_over(size[1], body.config.patch))
    parts, grid = [_embedding(body, patches)], patches
    for index, stage in enumerate(cast(list[Stage], body.stages)):
        parts.append(_stage(stage, grid, f"stage {index + 1}"))
        grid = parts[-1].grid if stage.merge is None else _halved(grid)
    return Counts(size=size, parts=(*parts, _head(model, patches, grid)))


def stage_table(counts: Counts) -> str:
    """The parts of a model as aligned text, one a line, the sum at the foot."""
    head = ("part", "grid", "channels", "blocks", "heads", "window", "shift", "parameters", "MACs")
    rows = [head, *(_row(part) for part in counts.parts)]
    rows.append(("sum", *[""] * 6, f"{counts.parameters:,}", _millions(counts.macs)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _embedding(body: Swin, grid: Size) -> Part:
    conv = body.patch_embed.proj
    values = math.prod(grid) * conv.out_channels
    cost = Cost(products=values * conv.in_channels * math.prod(conv.kernel_size), norms=values, activations=values)
    return Part(
        name="patches", grid=grid, channels=conv.out_channels, parameters=_parameters(body.patch_embed), cost=cost
    )


def _stage(stage: Stage, grid: Size, name: str) -> Part:
    blocks = cast(list[Block], stage.blocks)
    costs = [_block(block, grid) for block in blocks]
    if stage.merge is not None:
        costs.append(_merge(stage.merge, _halved(grid)))
    return Part(
        name=name,
        grid=grid,
        channels=blocks[0].attn.proj.in_features,
        parameters=_parameters(stage),
        cost=Cost(*map(sum, zip(*costs, strict=True))),
        blocks=len(blocks),
        heads=blocks[0].attn.num_heads,
        window=blocks[0].attn.window,
        shift=max(block.attn.shift_at(*grid) for block in blocks),
    )


def _block(block: Block, grid: Size) -> Cost:
    channels, hidden, window = block.attn.proj.in_features, block.mlp.fc1.out_features, block.attn.window
    tokens, seen = math.prod(grid), math.prod(window)
    padded = math.prod(windows_over(side, step) * step for side, step in zip(grid, window, strict=True))
    attention = padded * (3 * channels**2 + 2 * seen * channels) + tokens * channels**2
    return Cost(
        products=attention + 2 * tokens * channels * hidden,
        norms=2 * tokens * channels,
        activations=padded * (4 * channels + seen * block.attn.num_heads) + tokens * (2 * channels + hidden),
    )


def _merge(merge: PatchMerge, grid: Size) -> Cost:
    tokens, wide, narrow = math.prod(grid), merge.reduction.in_features, merge.reduction.out_features
    return Cost(products=tokens * wide * narrow, norms=tokens * wide, activations=tokens * narrow)


def _head(model: Model, patches: Size, grid: Size) -> Part:
    linear = model.head.linear
    # Microsoft divides the patches by 2**stages for the final norm, not by 4**(stages - 1); kept, so that ours agrees.
    norms = linear.in_features * math.prod(patches) // 2 ** len(model.backbone.stages)
    cost = Cost(products=linear.in_features * linear.out_features, norms=norms, activations=linear.out_features)
    parameters = _parameters(model.backbone.norms) + _parameters(model.head)
    return Part(name="head", grid=grid, channels=linear.out_features, parameters=parameters, cost=cost)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _halved(grid: Size) -> Size:
    return (windows_over(grid[0], 2), windows_over(grid[1], 2))


def _row(part: Part) -> tuple[str, ...]:
    return (
        part.name,
        _by(part.grid),
        str(part.channels),
        str(part.blocks or ""),
        str(part.heads or ""),
        _by(part.window),
        _by(part.shift),
        f"{part.parameters:,}",
        _millions(part.macs),
    )


def _by(size: Size | None) -> str:
    return "" if size is None else f"{size[0]}x{size[1]}"


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"
