"""Objects in pictures: as data has them (`Objects`), as a batch hands them to heads (`Targets`), as models find them.

Boxes are ``x1 y1 x2 y2`` in pixels, x to the right and y down, measured from the top left corner of the top left pixel:
a box around that pixel alone is ``0 0 1 1``.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ShapeError

Size = tuple[int, int]


class Frames(NamedTuple):
    """Where the pictures of a padded batch lie: at the top left of a canvas that all of them share."""

    canvas: Size
    """Height and width of the batch."""
    sizes: tuple[Size, ...]
    """Height and width of each picture in it; what lies right of it or below is no picture."""

    def padding(self, grid: Size, device: Any = None) -> Bool[Tensor, "B H W"]:
        """Which cells of a grid laid over the canvas have their middle in no picture."""
        rows, columns = (
            (torch.arange(cells, device=device) + 0.5) * side / cells
            for cells, side in zip(grid, self.canvas, strict=True)
        )
        heights, widths = torch.tensor(self.sizes, device=device).T
        below, beside = rows >= heights[:, None], columns >= widths[:, None]
        return below[:, :, None] | beside[:, None, :]

    def cleared(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """The images, in place, with zeros where there is no picture."""
        for image, (height, width) in zip(images, self.sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return images


def whole_frames(images: Float[Tensor, "B C h w"]) -> Frames:
    """The frames of a batch without padding."""
    size = images.shape[2], images.shape[3]
    return Frames(size, (size,) * len(images))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """The objects of one picture, which may be none."""

    boxes: Float[Tensor, "N 4"]
    """Each with a width and a height above 0, inside the picture."""
    labels: Int64[Tensor, " N"]
    """Class indices."""
    masks: Bool[Tensor, "N h w"] | None = None
    """The pixels of each; None where the data has boxes alone."""
    crowd: Bool[Tensor, " N"]
    """Regions of many objects, or difficult ones: not learned, and no mistake to find or to miss."""
    areas: Float[Tensor, " N"]
    """In pixels of the picture as the data has it, by the annotation: what COCO's small, medium and large go by."""

    def __post_init__(self) -> None:
        count = len(self.boxes)
        others = [self.labels, self.crowd, self.areas, *(() if self.masks is None else (self.masks,))]
        if any(len(other) != count for other in others):
            raise ShapeError(f"{count} boxes have {[len(other) for other in others]} labels, crowd, areas and masks")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, kept: Tensor) -> "Objects":
        """Some of them: indices, or true for those that stay."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen: dict[str, Any] = {name: x if x is None else x[kept] for name, x in parts.items()}
        return Objects(**chosen)

    def to(self, device: Any, *, non_blocking: bool = False) -> "Objects":
        """The same on a device."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {
            n: x if x is None else x.to(device, non_blocking=non_blocking) for n, x in parts.items()
        }
        return Objects(**moved)


def no_objects(*, masks: Size | None = None) -> Objects:
    """Of a picture without any; `masks` is its height and width where others have masks."""
    return Objects(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=None if masks is None else torch.zeros(0, *masks, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
        areas=torch.zeros(0),
    )


class Targets(NamedTuple):
    """What a batch of pictures is to be found to hold."""

    objects: tuple[Objects, ...]
    """In the pixels of the batch; masks are as large as the canvas."""
    frames: Frames

    def to(self, device: Any, *, non_blocking: bool = False) -> "Targets":
        """The same on a device."""
        return Targets(tuple(one.to(device, non_blocking=non_blocking) for one in self.objects), self.frames)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """What a model finds in one picture, the surest first."""

    boxes: Float[Tensor, "N 4"]
    """In pixels of a picture of `size`, inside it."""
    scores: Float[Tensor, " N"]
    """In 0..1."""
    labels: Int64[Tensor, " N"]
    """Class indices."""
    size: Size
    """Height and width of the picture that the boxes are in."""
    masks: Float[Tensor, "N a b"] | None = None
    """Probabilities in 0..1 on a grid of their own over each box, or, if `whole`, over the picture."""
    whole: bool = False
    queries: Int64[Tensor, " N"] | None = None
    """Where in the head's outputs each comes from: a DETR's query, a RetinaNet's anchor, an R-CNN's region."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, kept: Tensor) -> "Detections":
        """Some of them: indices, or true for those that stay."""
        parts = {name: getattr(self, name) for name in ("boxes", "scores", "labels", "masks", "queries")}
        chosen: dict[str, Any] = {name: x if x is None else x[kept] for name, x in parts.items()}
        return dataclasses.replace(self, **chosen)

    def cpu(self) -> "Detections":
        """The same in fp32 on the CPU."""
        parts = {name: getattr(self, name) for name in ("boxes", "scores", "masks")}
        done: dict[str, Any] = {n: x if x is None else x.detach().float().cpu() for n, x in parts.items()}
        queries = self.queries if self.queries is None else self.queries.cpu()
        return dataclasses.replace(self, **done, labels=self.labels.cpu(), queries=queries)

    def resized(self, size: Size) -> "Detections":
        """The same in a picture of another height and width; masks stay on their own grids."""
        scale = self.boxes.new_tensor([size[1] / self.size[1], size[0] / self.size[0]] * 2)
        return dataclasses.replace(self, boxes=self.boxes * scale, size=size)

    def mask(self, index: int, *, threshold: float = 0.5) -> Bool[Tensor, "h w"]:
        """The pixels of one, in a picture of `size`.

        Raises:
            ShapeError: the head makes no masks.
        """
        if self.masks is None:
            raise ShapeError("these detections have boxes alone; a head with masks=True makes masks")
        if self.whole:
            return _enlarged(self.masks[index], self.size) > threshold
        return pasted(self.masks[index], self.boxes[index], self.size) > threshold


def pasted(mask: Float[Tensor, "a b"], box: Float[Tensor, " 4"], size: Size) -> Float[Tensor, "h w"]:
    """A grid of values over a box, bilinearly at the centre of each pixel of a picture; 0 outside the box."""
    height, width = size
    x1, y1, x2, y2 = box.float().tolist()
    left, top = max(int(x1), 0), max(int(y1), 0)
    right, below = min(int(x2) + 1, width), min(int(y2) + 1, height)
    canvas = mask.new_zeros(height, width, dtype=torch.float32)
    if left >= right or top >= below or x2 <= x1 or y2 <= y1:
        return canvas
    across = (torch.arange(left, right, device=mask.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    down = (torch.arange(top, below, device=mask.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    places = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1)[None]
    values = F.grid_sample(mask.float()[None, None], places, align_corners=False)
    canvas[top:below, left:right] = values[0, 0]
    return canvas


def _enlarged(mask: Float[Tensor, "a b"], size: Size) -> Float[Tensor, "h w"]:
    return F.interpolate(mask.float()[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
