"""A picture and its objects on their way through cuts, turns and deformations, which are torchvision's.

Objects that are cut or warped get the boxes of what is left, by their masks where they have any. One is left out if
that is less than `VISIBLE` of it, or narrower than a pixel; a crowd stays while anything is left. Objects that are
whole keep the boxes of the data, resized, and stay however small: a mask that falls between the pixels of the result
keeps the one in its middle.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from swindow.data.geometry import Warp, resampled
from swindow.data.mask_layers import Cutout, MaskLayers, cutouts, drawn, extents, layered
from swindow.objects import Objects, Size

VISIBLE = 0.1
"""What is left of an object, as a share of its mask or else of its box, that was cut or covered and is learned."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moving:
    """A picture that was cut and may go on to be turned and warped, its masks drawn into layers."""

    pixels: Tensor
    """uint8 ``C h w``."""
    objects: Objects
    """Without masks; areas are those of the data."""
    changed: Tensor
    """bool: objects that were cut or warped, so that their boxes are those of what is left."""
    left: Tensor
    """What is left of each box, as a share."""
    scale: float
    """Pixels for each of the data's, by area."""
    around: Tensor
    """Boxes outside of which no mask has pixels."""
    counts: Tensor
    """Pixels of each mask in the data."""
    layers: MaskLayers | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Arrived:
    """A picture and what is left of its objects."""

    pixels: Tensor
    """uint8 ``C h w``."""
    objects: Objects
    """Without masks."""
    masks: list[Cutout] | None

    def kept(self, those: Tensor) -> "Arrived":
        """With some of the objects: true for those that stay."""
        if bool(those.all()):
            return self
        masks = None
        if self.masks is not None:
            masks = [mask for mask, stays in zip(self.masks, those.tolist(), strict=True) if stays]
        return dataclasses.replace(self, objects=self.objects[those], masks=masks)

    def pair(self) -> tuple[Tensor, Objects]:
        """The picture, and its objects with masks as large as it is."""
        size = self.pixels.shape[1], self.pixels.shape[2]
        masks = None if self.masks is None else drawn(self.masks, size)
        return self.pixels.contiguous(), dataclasses.replace(self.objects, masks=masks)


def cut(
    pixels: Tensor, objects: Objects, rectangle: tuple[int, int, int, int], size: Size, interpolation: str
) -> Moving:
    """A rectangle (top, left, height, width) inside a picture, resized; without objects that lie outside."""
    from torchvision.transforms.v2 import functional

    top, left, height, width = rectangle
    rows, columns = slice(top, top + height), slice(left, left + width)
    before = torch.cat(
        [objects.boxes, objects.boxes if objects.masks is None else _around(objects.masks, objects.boxes)]
    )
    after = functional.crop(_boxes(before, pixels.shape[-2:]), *rectangle)
    shown = (_areas(after) > 0).view(2, -1).all(0)
    low, high = torch.tensor([left, top]), torch.tensor([left + width, top + height])
    reaches_out = ((before[:, :2] < low) | (before[:, 2:] > high)).any(1).view(2, -1).any(0)
    inside = _boxes(after[shown.repeat(2)], (height, width))
    boxes, around = functional.resize(inside, list(size)).as_subclass(Tensor).chunk(2)
    counts, layers = torch.zeros(len(boxes)), None
    if objects.masks is not None:
        masks = [objects.masks[index] for index in shown.nonzero()[:, 0].tolist()]
        counts = torch.tensor([float(np.count_nonzero(mask.numpy())) for mask in masks])
        layers = layered([mask[rows, columns] for mask in masks], inside.chunk(2)[1], (height, width))
        layers = layers._replace(maps=_nearest(layers.maps, size))
    return Moving(
        pixels=resampled(pixels[:, rows, columns], size, interpolation),
        objects=_at(dataclasses.replace(objects, masks=None)[shown], boxes),
        changed=reaches_out[shown],
        left=(_areas(after) / _areas(before))[: len(objects)][shown],
        scale=size[0] * size[1] / (height * width),
        around=around,
        counts=counts,
        layers=layers,
    )


def turned(scene: Moving, *, turns: int, hflip: bool, vflip: bool) -> Moving:
    """So many quarter turns to the left, then left for right, then top for bottom."""
    from torchvision.transforms.v2 import functional

    count, pixels = len(scene.objects), scene.pixels
    layers = scene.layers
    maps = pixels[:0] if layers is None else layers.maps
    boxes = torch.cat([scene.objects.boxes, scene.around])
    for _ in range(turns):
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([y1, pixels.shape[2] - x2, y2, pixels.shape[2] - x1], dim=1)
        pixels = pixels.rot90(1, (-2, -1))
        maps = maps.rot90(1, (-2, -1))
    boxes = _boxes(boxes, pixels.shape[-2:])
    for wanted, flip in ((hflip, functional.horizontal_flip), (vflip, functional.vertical_flip)):
        if wanted:
            pixels, boxes, maps = flip(pixels), flip(boxes), flip(maps)
    boxes = boxes.as_subclass(Tensor)
    return dataclasses.replace(
        scene,
        pixels=pixels,
        objects=_at(scene.objects, boxes[:count]),
        around=boxes[count:],
        layers=None if layers is None else layers._replace(maps=maps),
    )


def warped(scene: Moving, warp: Warp, fill: list[float]) -> Moving:
    """Each pixel from where `warp` says; `fill` where that is outside."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    size = scene.pixels.shape[-2:]
    there = warp.boxes(scene.objects.boxes)
    boxes = _clamped(there, size)
    layers = scene.layers
    if layers is not None and len(layers.maps):
        maps = functional.elastic(tv_tensors.Mask(layers.maps), warp.moves, fill=0).as_subclass(Tensor)
        layers = layers._replace(maps=maps)
    return dataclasses.replace(
        scene,
        pixels=functional.elastic(tv_tensors.Image(scene.pixels), warp.moves, fill=fill).as_subclass(Tensor),
        objects=_at(scene.objects, boxes),
        changed=torch.ones_like(scene.changed),
        left=scene.left * _areas(boxes) / _areas(there),
        scale=scene.scale / float(torch.linalg.det(warp.matrix)),
        around=_clamped(warp.boxes(scene.around), size),
        layers=layers,
    )


def arrived(scene: Moving) -> Arrived:
    """What is left of the objects, and the boxes around it."""
    boxes, share, masks = _clamped(scene.objects.boxes, scene.pixels.shape[-2:]), scene.left, None
    if scene.layers is not None:
        found = cutouts(scene.layers, scene.around)
        masks = [
            part if part.pixels.size or changed else _middle(box, scene.pixels.shape[-2:])
            for part, changed, box in zip(found, scene.changed.tolist(), scene.around.tolist(), strict=True)
        ]
        counts = torch.tensor([float(np.count_nonzero(part.pixels)) for part in masks])
        share = (counts / (scene.counts * scene.scale).clamp(min=1)).clamp(max=1)
        tight = torch.tensor([part.box for part in masks], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.where(scene.changed[:, None], tight, boxes)
    areas = scene.objects.areas * scene.scale * torch.where(scene.changed, share, 1)
    objects = dataclasses.replace(scene.objects, boxes=boxes, areas=areas)
    return Arrived(pixels=scene.pixels, objects=objects, masks=masks).kept(~scene.changed | enough(objects, share))


def enough(objects: Objects, share: Tensor) -> Tensor:
    """Which objects of which a share is left are kept: a crowd while there is anything, others as `VISIBLE` says."""
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).amin(1)
    return torch.where(objects.crowd, (sides > 0) & (share > 0), (sides >= 1) & (share >= VISIBLE))


def _around(masks: Tensor, boxes: Tensor) -> Tensor:
    """Boxes around masks; the object's own for a mask without pixels."""
    found = extents(masks)
    return torch.where((_areas(found) > 0)[:, None], found, boxes)


def _middle(box: list[float], size: tuple[int, ...]) -> Cutout:
    """The pixel in the middle of a box."""
    x, y = (min(int((low + high) / 2), side - 1) for low, high, side in zip(box[:2], box[2:], size[::-1], strict=True))
    return Cutout(x, y, np.ones((1, 1), bool))


def _boxes(boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    from torchvision import tv_tensors

    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(size))


def _clamped(boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.clamp_bounding_boxes(_boxes(boxes, size)).as_subclass(Tensor)


def _areas(boxes: Tensor) -> Tensor:
    from torchvision.ops import box_area

    return box_area(boxes.as_subclass(Tensor))


def _at(objects: Objects, boxes: Tensor) -> Objects:
    return dataclasses.replace(objects, boxes=boxes)


def _nearest(maps: Tensor, size: Size) -> Tensor:
    """Each pixel of the result shows the one that its middle lies in."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    if not len(maps) or tuple(maps.shape[-2:]) == tuple(size):
        return maps.new_zeros(len(maps), *size) if not len(maps) else maps
    return functional.resize(maps, list(size), InterpolationMode.NEAREST_EXACT)
