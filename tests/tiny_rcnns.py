"""Tiny detectors in two steps, with maps as a backbone gives them and objects to find in them."""

from typing import Any

import torch
from torch import Tensor, nn

from swindow.heads import CascadeMaskRcnnConfig, MaskRcnnConfig, Rcnn, RegionConfig
from swindow.objects import Frames, Objects, Size, Targets, no_objects
from swindow.shapes import Pyramid

CHANNELS, STRIDES = (8, 12, 16, 24), (4, 8, 16, 32)
CLASSES = 5
KINDS = {"mask_rcnn": MaskRcnnConfig, "cascade": CascadeMaskRcnnConfig}
CONVENTIONS = ("openmmlab", "torchvision")


def rcnn(kind: str = "mask_rcnn", **fields: Any) -> Rcnn:
    """The head, in eval mode, with parameters none of which is zero and answers that differ from place to place."""
    shape: dict[str, Any] = {
        "num_classes": CLASSES,
        "pyramid_width": 16,
        "box_width": 24,
        "box_conv_width": 8,
        "mask_convs": 2,
        "mask_width": 8,
        "regions": RegionConfig(candidates=(150, 100), proposals=(60, 40)),
    }
    return stirred(KINDS[kind](**(shape | fields)).build(CHANNELS, STRIDES)).eval()


def stirred(model: Any) -> Any:
    """`model` with other parameters and statistics."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.1)
            else:
                parameter.normal_(0, (0.3 if "deltas" in name else 1.4) / parameter[0].numel() ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def batch(*sizes: Size, channels: tuple[int, ...] = CHANNELS) -> tuple[Pyramid, Frames]:
    """Maps of pictures of these sizes on one canvas."""
    height, width = (-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))
    maps = (torch.randn(len(sizes), height // s, width // s, c) for c, s in zip(channels, STRIDES, strict=True))
    return tuple(maps), Frames((height, width), sizes)


def objects(size: Size, count: int, *, classes: int = CLASSES) -> Objects:
    """Boxes and masks somewhere in a picture."""
    if not count:
        return no_objects(masks=size)
    low = torch.rand(count, 2) * 0.6
    scale = torch.tensor([size[1], size[0]])
    masks = torch.rand(count, *size) > 0.4
    return Objects(
        boxes=torch.cat([low * scale, (low + 0.1 + torch.rand(count, 2) * 0.3) * scale], 1),
        labels=torch.randint(0, classes, (count,)),
        masks=masks,
        crowd=torch.zeros(count, dtype=torch.bool),
        areas=masks.sum((1, 2)).float(),
    )


def targets(frames: Frames, *counts: int) -> Targets:
    """So many objects in each picture."""
    return Targets(tuple(objects(size, count) for size, count in zip(frames.sizes, counts, strict=True)), frames)


def total(losses: dict[str, Tensor]) -> Tensor:
    """What training minimises."""
    return torch.stack(list(losses.values())).sum()
