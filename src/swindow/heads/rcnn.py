"""Detectors in two steps (Ren et al. 2015; He et al. 2017; Cai and Vasconcelos 2018): regions proposed, then judged.

The second step is one stage (`swindow.heads.mask_rcnn`) or several, each judging the boxes that the one before found
(`swindow.heads.cascade`): all that follows holds for any number.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.heads.detect import wide
from swindow.heads.extracting import extracted
from swindow.heads.fpn import FPN
from swindow.heads.judging import (
    Boxes,
    Found,
    Samples,
    box_loss,
    class_loss,
    finding_regions,
    found_in,
    handed_on,
    mask_loss,
    moved,
    samples_of,
)
from swindow.heads.rcnn_config import RcnnConfig
from swindow.heads.region_heads import BOX_GRID, MASK_GRID, BoxHead, MaskHead
from swindow.heads.regions import Regions
from swindow.objects import Detections, Frames, Size, Targets
from swindow.shapes import Pyramid

_REHEARSED = (1000, 100)
"""Regions of a picture that papers count the work of: for each box head, for each mask head."""


class RcnnOutputs(NamedTuple):
    """What the head computes before regions are chosen."""

    maps: tuple[Tensor, ...]
    """The feature pyramid, ``B C H W``, finest first; the last is for proposals alone."""
    logits: Float[Tensor, "B A"]
    """Whether there is an object at each anchor."""
    deltas: Float[Tensor, "B A 4"]
    frames: Frames
    """Where the pictures lie."""


class Judgement(NamedTuple):
    """What all stages say of regions, picture after picture."""

    regions: Boxes
    """Where the last stage saw each."""
    logits: Float[Tensor, "R K1"]
    """Of each class and of background, which is last: the mean over the stages."""
    deltas: Float[Tensor, "R N 4"]
    """From there to boxes: the last stage's."""


class Rcnn(nn.Module):
    """Pyramid to objects: `forward` looks for regions, `loss` and `decode` judge them."""

    def __init__(self, config: RcnnConfig, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.details = config, config.details
        self.fpn = FPN(channels, strides, config.pyramid_width)
        self.regions = Regions(config.regions, self.details, config.pyramid_width, self.fpn.strides)
        self.boxes = nn.ModuleList(_box_head(config) for _ in config.overlaps)
        self.masks = nn.ModuleList(
            MaskHead(config.pyramid_width, config.num_classes, width=config.mask_width, convs=config.mask_convs)
            for _ in config.overlaps
            if config.masks
        )

    def forward(self, pyramid: Pyramid, frames: Frames) -> RcnnOutputs:
        maps = self.fpn(pyramid)
        logits, deltas = self.regions(maps)
        return RcnnOutputs(maps, logits, deltas, frames)

    def loss(self, outputs: RcnnOutputs, targets: Targets) -> dict[str, Tensor]:
        """Losses of the proposals and of each stage, by name, each with its weight; computed in fp32.

        Raises:
            ShapeError: objects without masks, where the head is to learn them.
        """
        maps, logits, deltas, frames = outputs
        device = logits.device.type
        with torch.autocast(device, enabled=False):
            losses = self.regions.loss(maps, logits, deltas, targets)
        regions = self.regions.proposals(maps, logits, deltas, frames)
        for stage, weight in enumerate(self.config.stage_weights):
            samples = samples_of(regions, targets.objects, self.config, stage)
            scores, shifts = (wide(x) for x in self.judged(maps, samples.regions, stage))
            shapes = self._masks_to_learn(maps, samples, stage)
            with torch.autocast(device, enabled=False):
                found = {"classes": class_loss(scores, samples), "boxes": box_loss(shifts, samples, self.config, stage)}
                if shapes is not None:
                    found["masks"] = mask_loss(wide(shapes), samples, targets.objects, self.details)
                regions = handed_on(samples, scores, shifts, frames, self.config, stage)
            mark = f"_{stage + 1}" if len(self.boxes) > 1 else ""
            losses |= {name + mark: weight * value for name, value in found.items()}
        return losses

    def decode(self, outputs: RcnnOutputs, size: Size | None = None) -> tuple[Detections, ...]:
        """What is found in each picture, in its own pixels."""
        regions, logits, deltas = self.judgement(outputs, self.regions.proposals(*outputs))
        found = found_in(regions, logits.softmax(1), deltas, outputs.frames, self.config)
        shapes = self._masks_of(outputs.maps, found)
        return tuple(
            Detections(
                boxes=one.boxes, scores=one.scores, labels=one.labels, size=size, masks=masks, queries=one.regions
            )
            for one, size, masks in zip(found, outputs.frames.sizes, shapes, strict=True)
        )

    def judgement(self, outputs: RcnnOutputs, regions: Boxes) -> Judgement:
        """What all stages say of some regions of each picture, before they are made detections."""
        total = torch.zeros((), device=outputs.logits.device)
        for stage in range(len(self.boxes)):
            scores, shifts = (wide(x) for x in self.judged(outputs.maps, regions, stage))
            total = total + scores
            if stage + 1 < len(self.boxes):
                regions = moved(regions, shifts, scores[:, :-1].argmax(1), outputs.frames, self.config, stage)
        return Judgement(regions, total / len(self.boxes), shifts)

    def right(self, outputs: RcnnOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """How many anchors are judged rightly, of how many: those at objects, and as many of the background."""
        return self.regions.right(outputs.maps, outputs.logits, targets)

    def rehearse(self, outputs: RcnnOutputs) -> None:
        """Run what `decode` would run on regions, on as many made-up ones as papers count the work of."""
        x = outputs.maps[0]
        for count, side, heads in zip(_REHEARSED, (BOX_GRID, MASK_GRID), (self.boxes, self.masks), strict=True):
            for head in heads.children():
                head(x.new_zeros(len(x) * count, x.shape[1], side, side))

    def judged(
        self, maps: tuple[Tensor, ...], regions: Boxes, stage: int
    ) -> tuple[Float[Tensor, "R K1"], Float[Tensor, "R N 4"]]:
        """What a stage says of each region: logits of classes and of background, which is last; deltas."""
        return cast(BoxHead, self.boxes[stage])(self._cells(maps, regions, BOX_GRID))

    def _cells(self, maps: tuple[Tensor, ...], regions: Boxes, side: int) -> Float[Tensor, "R C s s"]:
        return extracted(maps[:-1], self.fpn.strides[:-1], regions, side, self.details)

    def _masks_to_learn(self, maps: tuple[Tensor, ...], samples: Samples, stage: int) -> Tensor | None:
        if not self.config.masks:
            return None
        cells = self._cells(maps, finding_regions(samples), MASK_GRID)
        return cast(MaskHead, self.masks[stage]).of_class(cells, samples.labels[samples.finding])

    def _masks_of(self, maps: tuple[Tensor, ...], found: list[Found]) -> tuple[Tensor | None, ...]:
        """Probabilities on a grid over each detection, mean over the stages."""
        if not self.config.masks:
            return (None,) * len(found)
        cells = self._cells(maps, tuple(one.boxes for one in found), MASK_GRID)
        labels = torch.cat([one.labels for one in found])
        shares = [wide(cast(MaskHead, head).of_class(cells, labels)).sigmoid() for head in self.masks]
        return torch.stack(shares).mean(0).split([len(one.boxes) for one in found])


def _box_head(config: RcnnConfig) -> BoxHead:
    return BoxHead(
        config.pyramid_width,
        config.num_classes,
        width=config.box_width,
        convs=config.box_convs,
        linears=config.box_linears,
        conv_width=config.box_conv_width,
        agnostic=config.class_agnostic,
    )
