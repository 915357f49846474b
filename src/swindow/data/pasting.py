"""Copy-paste: objects of one picture on another (Ghiasi et al. 2021, arXiv 2012.07177)."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from swindow.data.mask_layers import Cutout, trimmed
from swindow.data.moving import Arrived, enough
from swindow.data.seeds import uniforms
from swindow.objects import Objects


def pasted(scene: Arrived, lender: Arrived, seed: int) -> Arrived:
    """About half of the lender's objects, none of its crowds, over the picture, both at their top left corners.

    What they cover is cut out of the picture's own masks, whose boxes are those of what is left; objects of which too
    little is left are left out, as after a crop.
    """
    size = scene.pixels.shape[1], scene.pixels.shape[2]
    given = _fitting(lender, size, seed)
    if not len(given.objects) or given.masks is None or scene.masks is None:
        return scene
    over = np.zeros(size, bool)
    for part in given.masks:
        over[part.place] |= part.pixels
    pixels = scene.pixels.clone()
    rows, columns = (min(a, b) for a, b in zip(size, lender.pixels.shape[1:], strict=True))
    there = torch.from_numpy(over[:rows, :columns])
    pixels[:, :rows, :columns] = torch.where(there, lender.pixels[:, :rows, :columns], pixels[:, :rows, :columns])
    left = _uncovered(scene, scene.masks, over)
    objects = _joined(left.objects, given.objects)
    return Arrived(pixels=pixels, objects=objects, masks=[*(left.masks or ()), *given.masks])


def _fitting(lender: Arrived, size: tuple[int, int], seed: int) -> Arrived:
    """The objects that are lent, cut off where the picture ends."""
    draws = uniforms(np.asarray([seed], np.uint64), 2 + len(lender.objects))[0, 2:]
    some = lender.kept(torch.from_numpy(draws < 0.5) & ~lender.objects.crowd)
    parts = [_inside(part, size) for part in some.masks or ()]
    return _recut(some, parts)


def _uncovered(scene: Arrived, masks: list[Cutout], over: np.ndarray) -> Arrived:
    parts = []
    for part in masks:
        hidden = over[part.place] & part.pixels
        parts.append(trimmed(part.pixels & ~hidden, part.left, part.top) if hidden.any() else part)
    return _recut(scene, parts)


def _recut(scene: Arrived, parts: list[Cutout]) -> Arrived:
    """The objects with other masks, which are parts of those they had."""
    had = [np.count_nonzero(part.pixels) for part in scene.masks or ()]
    share = torch.tensor([np.count_nonzero(part.pixels) / count for part, count in zip(parts, had, strict=True)])
    share = share.to(torch.float32)
    tight = torch.tensor([part.box for part in parts], dtype=torch.float32).reshape(-1, 4)
    whole = share == 1
    boxes = torch.where(whole[:, None], scene.objects.boxes, tight)
    objects = dataclasses.replace(scene.objects, boxes=boxes, areas=scene.objects.areas * share)
    return dataclasses.replace(scene, objects=objects, masks=parts).kept(whole | enough(objects, share))


def _inside(part: Cutout, size: tuple[int, int]) -> Cutout:
    rows, columns = max(size[0] - part.top, 0), max(size[1] - part.left, 0)
    fits = part.pixels.shape[0] <= rows and part.pixels.shape[1] <= columns
    return part if fits else trimmed(part.pixels[:rows, :columns], part.left, part.top)


def _joined(one: Objects, other: Objects) -> Objects:
    fields: dict[str, Tensor] = {
        name: torch.cat([getattr(one, name), getattr(other, name)]) for name in ("boxes", "labels", "crowd", "areas")
    }
    return Objects(**fields)
