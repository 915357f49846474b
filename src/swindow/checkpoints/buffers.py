"""What published classes store besides parameters, computed from a backbone's config; under our names."""

import re
from collections.abc import Iterable
from typing import Any

import torch

from swindow.backbones.geometry import Windowing
from swindow.checkpoints.tables import State
from swindow.ops.windows import count, region_mask, relative_position_index

BUFFERS = re.compile(r"relative_position_index|relative_coords_table|attn_mask|\.k_bias$")
"""In their names, in our names: what is never read as weights."""
_ENCODER_BLOCK = re.compile(r"backbone\.stages\.(\d+)\.")


def indices(config: Any) -> State:
    """The row of the bias table for each pair of a window's tokens, in every block."""
    return {
        f"{block}.attn.relative_position_index": relative_position_index(cut.window) for block, cut, _ in cuts(config)
    }


def flat_indices(config: Any) -> State:
    """The same without the shape of a matrix, as torchvision has it, and V2's coordinates."""
    return {name: index.flatten() for name, index in indices(config).items()} | _coordinates(config)


def indices_and_coordinates(config: Any) -> State:
    """Indices, and V2's coordinates."""
    return indices(config) | _coordinates(config)


def original_buffers(config: Any) -> State:
    """Indices, V2's coordinates, and the masks of shifted blocks at the size that the model is made for."""
    masks = {}
    for block, cut, grid in cuts(config):
        shift = cut.shift_at(*grid)
        if any(shift):
            padded = (count(grid[0], cut.window[0]) * cut.window[0], count(grid[1], cut.window[1]) * cut.window[1])
            seen = region_mask(padded, cut.window, shift)
            masks[f"{block}.attn_mask"] = torch.zeros(seen.shape).masked_fill_(~seen, -100.0)
    return indices_and_coordinates(config) | masks


def mirrored_buffers(config: Any) -> State:
    """Those of the original, and in a decoder's blocks those of the encoder's on the same size."""
    found, coarsest = original_buffers(config), len(config.depths) - 1
    mirrored: State = {}
    for name, buffer in found.items():
        match = _ENCODER_BLOCK.match(name)
        if match and int(match[1]) < coarsest:  # the coarsest size is the encoder's alone
            mirrored[f"head.stages.{coarsest - 1 - int(match[1])}.{name[match.end() :]}"] = buffer
    return found | mirrored


def cuts(config: Any) -> Iterable[tuple[str, Windowing, tuple[int, int]]]:
    """Every block's path, its windows, and the grid that it has at the size that the model is made for."""
    for stage, grid in enumerate(config.grids):
        for index, cut in enumerate(config.windowings(stage)):
            yield f"backbone.stages.{stage}.blocks.{index}", cut, grid


def _coordinates(config: Any) -> State:
    """V2: the offsets of a window's tokens on the logarithmic scale, ``1 2h-1 2w-1 2``, in every block."""
    if config.kind != "swin_v2":
        return {}
    from swindow.backbones.swin_v2 import log_spaced_offsets

    names = {}
    for block, cut, _ in cuts(config):
        stage = int(block.split(".")[2])
        offsets = log_spaced_offsets(cut.window, config.pretrained_windows[stage])
        names[f"{block}.attn.relative_coords_table"] = offsets[None]
    return names
