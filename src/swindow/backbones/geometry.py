"""Grids, windows and shifts of a pyramid, and whether numbers can be one: arithmetic, no modules."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from swindow.errors import ConfigError, ShapeError
from swindow.ops.windows import Size, count
from swindow.shapes import Images

SmallMaps = Literal["shrink", "pad", "pad_shift"]
Sides = int | tuple[int | tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Windowing:
    """How a block cuts maps of any size: height and width of its windows in tokens, and how far they are shifted."""

    window: Size
    shift: Size = (0, 0)
    keep_shift: bool = False
    """Shift also along an axis that a single window covers."""

    def shift_at(self, height: int, width: int) -> Size:
        """The shift on a map of this size."""
        if self.keep_shift:
            return self.shift
        return (self.shift[0] if height > self.window[0] else 0, self.shift[1] if width > self.window[1] else 0)


def windows_of_stages(sides: Sides, grids: Sequence[Size] | None, stages: int) -> tuple[Size, ...]:
    """The window of each stage: one side for all, or an entry a stage; no larger than the stage's grid, if given.

    Raises:
        ConfigError: another number of entries than stages, or a side below 1.
    """
    entries = (sides,) * stages if isinstance(sides, int) else sides
    if len(entries) != stages:
        raise ConfigError(
            f"window {sides} names {len(entries)} stages of {stages}; give one side for all, or an entry per stage, "
            "each a side or (height, width)"
        )
    pairs = [(side, side) if isinstance(side, int) else side for side in entries]
    if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
        raise ConfigError(f"window {sides}: every entry must be a side or (height, width) of at least 1")
    if grids is None:
        return tuple(pairs)
    return tuple((min(window[0], grid[0]), min(window[1], grid[1])) for window, grid in zip(pairs, grids, strict=True))


def grids_of_stages(image_size: int | Size, patch: int, stages: int) -> tuple[Size, ...]:
    """Height and width in tokens of each stage's map for images of this size in pixels."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    grid, grids = (count(height, patch), count(width, patch)), []
    for _ in range(stages):
        grids.append(grid)
        grid = (count(grid[0], 2), count(grid[1], 2))
    return tuple(grids)


def windowings(window: Size, depth: int, *, shifted: bool, keep_shift: bool) -> list[Windowing]:
    """How the blocks of a stage cut their maps: every second one shifted by half a window (Swin, section 3.2)."""
    half = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    return [Windowing(window, half if index % 2 else (0, 0), keep_shift) for index in range(depth)]


def check_pyramid(dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...], patch: int) -> None:
    """Whether these numbers can be a pyramid of attention stages.

    Raises:
        ConfigError: they cannot; the message says why.
    """
    if len(depths) != len(num_heads) or not depths:
        raise ConfigError(f"depths {depths} and num_heads {num_heads} must name the same stages; give each one number")
    if min(dim, patch, *depths, *num_heads) < 1:
        raise ConfigError("dim, patch and every entry of depths and num_heads must be at least 1")
    for stage, heads in enumerate(num_heads):
        if dim * 2**stage % heads:
            raise ConfigError(f"{dim * 2**stage} channels cannot be split over {heads} heads; change dim or num_heads")


def check_rates(drop_path: float, dropout: float) -> None:
    """Whether both are shares of what is dropped.

    Raises:
        ConfigError: one is not in [0, 1).
    """
    if not (0 <= drop_path < 1 and 0 <= dropout < 1):
        raise ConfigError(f"drop_path {drop_path} and dropout {dropout} must lie in [0, 1)")


def valid_stages(stages: tuple[int, ...], number: int) -> tuple[int, ...]:
    """`stages` as they are.

    Raises:
        ConfigError: they are not ascending numbers of the `number` stages that there are.
    """
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 0 or stages[-1] >= number:
        raise ConfigError(f"out_stages {tuple(stages)} must be ascending stage numbers from 0 to {number - 1}")
    return tuple(stages)


def check_channels(images: Images, expected: int) -> None:
    """Whether images have the channels that a model takes.

    Raises:
        ShapeError: they have others.
    """
    if images.shape[1] != expected:
        raise ShapeError(
            f"images have {images.shape[1]} channels and the model takes {expected}; "
            "convert them, or build the model with in_channels"
        )
