"""Pictures of unequal sizes, with their objects, as one batch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from swindow.data.mask_layers import extents
from swindow.objects import Frames, Objects, Size


def canvas_of(sizes: Sequence[Size], divisor: int, least: Size = (1, 1)) -> Size:
    """The smallest canvas for pictures of these sizes whose sides are multiples of `divisor`, and not below `least`."""
    height, width = (max(sides) for sides in zip(*sizes, least, strict=True))
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def framed(images: Sequence[Tensor], canvas: Size) -> tuple[UInt8[Tensor, "B C H W"], Frames]:
    """Pictures (uint8 ``C h w``) at the top left of a canvas each, zeros beside and below; and where they lie."""
    batch = torch.zeros(len(images), images[0].shape[0], *canvas, dtype=torch.uint8)
    sizes = []
    for place, image in zip(batch, images, strict=True):
        height, width = image.shape[-2:]
        place[:, :height, :width] = image
        sizes.append((height, width))
    return batch, Frames(canvas, tuple(sizes))


class PackedObjects(NamedTuple):
    """The objects of a batch in few tensors, to travel between processes: each tensor costs a file descriptor there,
    and a bit of a mask would take a byte."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor
    masks: Tensor | None
    """uint8 ``N H ⌈W/8⌉``: eight pixels a byte."""
    counts: tuple[int, ...]
    """Objects of each picture."""
    canvas: Size

    def split(self) -> tuple[Objects, ...]:
        """The objects of each picture, masks as large as the canvas."""
        masks = None if self.masks is None else _unpacked(self.masks, self.canvas[1])
        ends = np.cumsum(self.counts).tolist()
        return tuple(
            Objects(
                boxes=self.boxes[end - count : end],
                labels=self.labels[end - count : end],
                masks=None if masks is None else masks[end - count : end],
                crowd=self.crowd[end - count : end],
                areas=self.areas[end - count : end],
            )
            for end, count in zip(ends, self.counts, strict=True)
        )


def packed(objects: Sequence[Objects], canvas: Size) -> PackedObjects:
    """The objects of pictures that lie at the top left of a canvas."""
    together = {
        name: torch.cat([getattr(one, name) for one in objects]) for name in ("boxes", "labels", "crowd", "areas")
    }
    masks = [one.masks for one in objects if one.masks is not None]
    bits = torch.cat([_packed(mask, canvas) for mask in masks]) if len(masks) == len(objects) else None
    return PackedObjects(**together, masks=bits, counts=tuple(len(one) for one in objects), canvas=canvas)


def _packed(masks: Tensor, canvas: Size) -> Tensor:
    bits = np.zeros((len(masks), canvas[0], -(-canvas[1] // 8)), np.uint8)
    for place, mask, (x1, y1, x2, y2) in zip(bits, masks.numpy(), extents(masks).int().tolist(), strict=True):
        first = x1 // 8  # whole bytes, from the one that the object begins in
        own = np.packbits(mask[y1:y2, first * 8 : x2], axis=1)
        place[y1:y2, first : first + own.shape[1]] = own
    return torch.from_numpy(bits)


def _unpacked(bits: Tensor, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=width).view(bool))
