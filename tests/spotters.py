"""A detector whose answers are known: it finds every connected area of one pure colour."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from swindow.backbones import SwinConfig
from swindow.heads import DetrConfig
from swindow.model import Model, ModelConfig
from swindow.objects import Detections, Frames, whole_frames
from swindow.preprocess import Preprocess

CLASSES = ("red", "green", "blue")
BACKBONE = SwinConfig(dim=8, depths=(1, 1), num_heads=(1, 1), window=4, patch=2)
TINY = DetrConfig(
    num_classes=3, transformer_width=8, transformer_heads=1, feed_forward=8, encoder_layers=1, decoder_layers=1
)


class Spotter(Model):
    """Areas of red, green and blue; the score is the colour's brightness, so that tests choose it.

    Of pictures that are `broken` pixels wide, scores are not finite.
    """

    def __init__(self, *, masks: bool = False, whole: bool = False, broken: int = 0, **preprocess: object) -> None:
        super().__init__(ModelConfig(name="spotter", backbone=BACKBONE, head=TINY))
        self.with_masks, self.whole, self.broken = masks, whole, broken
        self.inputs: list[tuple[int, ...]] = []
        self.classes = CLASSES
        how = {"size": (64, 64), "mean": (0.0,) * 3, "std": (1.0,) * 3, "fit": "native"} | preprocess
        self.preprocess = Preprocess(**how)
        self.eval()

    def forward(self, images: Tensor, frames: Frames | None = None) -> tuple[Detections, ...]:
        self.inputs.append(tuple(images.shape))
        frames = whole_frames(images) if frames is None else frames
        parts = [image[:, :height, :width] for image, (height, width) in zip(images, frames.sizes, strict=True)]
        return tuple(self.spots(part) for part in parts)

    def spots(self, image: Tensor) -> Detections:
        """What is in one picture of values in 0..1."""
        found = []
        for label in range(3):
            others = [channel for channel in range(3) if channel != label]
            area = ((image[label] > 0.3) & (image[others] < 0.2).all(dim=0)).numpy()
            for rows, columns in ndimage.find_objects(ndimage.label(area)[0]):
                box = (columns.start, rows.start, columns.stop, rows.stop)
                found.append((float(image[label, rows, columns].max()), label, box))
        if image.shape[2] == self.broken:
            found = [(math.nan, label, box) for _, label, box in found]
        found.sort(key=lambda one: -one[0])
        size = (image.shape[1], image.shape[2])
        return Detections(
            boxes=torch.tensor([box for *_, box in found]).float().reshape(-1, 4),
            scores=torch.tensor([score for score, *_ in found]),
            labels=torch.tensor([label for _, label, _ in found], dtype=torch.int64),
            size=size,
            masks=self.masks([box for *_, box in found], size) if self.with_masks else None,
            whole=self.whole,
        )

    def masks(self, boxes: list[tuple[int, ...]], size: tuple[int, int]) -> Tensor:
        """All of each box."""
        if not self.whole:
            return torch.ones(len(boxes), 4, 4)
        masks = torch.zeros(len(boxes), *size)
        for mask, (left, top, right, below) in zip(masks, boxes, strict=True):
            mask[top:below, left:right] = 1
        return masks


def picture(height: int, width: int, spots: list[tuple[int, float, tuple[int, int, int, int]]]) -> np.ndarray:
    """uint8 ``h w 3``, black but for spots: class, score, and left, top, right and bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for label, score, (left, top, right, below) in spots:
        pixels[top:below, left:right, label] = round(255 * score)
    return pixels
