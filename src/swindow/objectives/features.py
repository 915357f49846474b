"""Learning a teacher's maps: hints between stages (FitNets; Romero et al. 2015) through a projection per pair."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.backbones import Backbone, ViT
from swindow.errors import ConfigError
from swindow.heads.losses import at_least_fp32
from swindow.objects import Frames
from swindow.ops.windows import count
from swindow.shapes import Pyramid, Tokens

Pairs = tuple[tuple[int, int], ...]
"""Stages that learn and stages that they learn from, numbered from 0."""


def same_grids(student: Sequence[int], teacher: Sequence[int], size: int, seen: int) -> Pairs:
    """Pairs of stages whose maps have as many rows; the last of each where there are none.

    `student` and `teacher` are strides in pixels of images of which the one sees `size` rows and the other `seen`. Of
    several stages on one grid the last one counts.
    """
    rows = {count(size, stride): stage for stage, stride in enumerate(student)}
    theirs = {count(seen, stride): stage for stage, stride in enumerate(teacher)}
    pairs = sorted((rows[grid], theirs[grid]) for grid in rows.keys() & theirs.keys())
    return tuple(pairs) or ((len(student) - 1, len(teacher) - 1),)


def chosen_pairs(student: Sequence[int], teacher: Sequence[int], stages: int, teacher_stages: int) -> Pairs:
    """Pairs of the stages that settings name.

    Raises:
        ConfigError: unequal numbers of them, or a stage that there is not.
    """
    if len(student) != len(teacher):
        raise ConfigError(
            f"distillation.stages {tuple(student)} and teacher_stages {tuple(teacher)} are to be as many: the first "
            "learns from the first, and so on; leave both empty to pair maps of one size"
        )
    for name, chosen, number in (("stages", student, stages), ("teacher_stages", teacher, teacher_stages)):
        if min(chosen) < 0 or max(chosen) >= number:
            raise ConfigError(f"distillation.{name} {tuple(chosen)} must lie in 0 to {number - 1}: there are {number}")
    return tuple(zip(student, teacher, strict=True))


class Hints(nn.Module):
    """What brings a student's maps near a teacher's: of each pair a linear projection to the teacher's channels."""

    def __init__(self, pairs: Pairs, channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        super().__init__()
        self.pairs = pairs
        self.projections = nn.ModuleList(nn.Linear(channels[one], teacher_channels[other]) for one, other in pairs)

    def forward(self, maps: Pyramid, teacher: Pyramid, frames: Frames | None = None) -> Float[Tensor, ""]:
        """Mean over pairs of `distance`; `teacher` holds the map that each pair learns from, in their order."""
        distances = [
            distance(projection(maps[stage]), theirs, frames)
            for (stage, _), projection, theirs in zip(self.pairs, self.projections, teacher, strict=True)
        ]
        return torch.stack(distances).mean()


def distance(map_: Tokens, teacher: Float[Tensor, "B H2 W2 C"], frames: Frames | None = None) -> Float[Tensor, ""]:
    """Mean of ``(s - norm(t))²``: FitNets' equation 3, with the teacher's map whitened at each place.

    ``norm`` is a layer norm without scale and shift (feature distillation; Wei et al. 2022, arXiv 2205.14141, section
    3): whatever the scale of a teacher's maps, to know nothing costs 1. A map on another grid is resampled first,
    bilinearly with antialiasing. Cells outside of pictures count nowhere.
    """
    size = (map_.shape[1], map_.shape[2])
    wanted = at_least_fp32(teacher).to(at_least_fp32(map_).dtype)
    if (teacher.shape[1], teacher.shape[2]) != size:
        channels_first = wanted.permute(0, 3, 1, 2)
        resampled = F.interpolate(channels_first, size=size, mode="bilinear", antialias=True, align_corners=False)
        wanted = resampled.permute(0, 2, 3, 1)
    wanted = F.layer_norm(wanted, wanted.shape[-1:])
    squares = (at_least_fp32(map_) - wanted).square().mean(-1)
    if frames is None:
        return squares.mean()
    inside = ~frames.padding(size, squares.device)
    return (squares * inside).sum() / inside.sum().clamp_min(1)


@contextlib.contextmanager
def watched(backbone: Backbone) -> Iterator[list[Tensor]]:
    """The map of every stage, ``B H W C``, before any output norm, of the one forward pass within."""
    seen: list[Tensor] = []
    grids: list[tuple[int, int]] = []

    def note_grid(_: nn.Module, __: Any, patches: Tensor) -> None:
        grids.append((patches.shape[1], patches.shape[2]))

    def note(_: nn.Module, __: Any, x: Tensor) -> None:
        seen.append(backbone.as_map(x, grids[-1]) if isinstance(backbone, ViT) else x)

    hooks = [stage.register_forward_hook(note) for stage in backbone.each_stage()]
    hooks.append(backbone.patch_embed.register_forward_hook(note_grid))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
