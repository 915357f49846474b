"""From regions to objects: which regions a stage learns from, its losses, and the boxes that it finds."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ShapeError
from swindow.heads.assigning import assigned, drawn
from swindow.heads.detect import Details, best_of, wide
from swindow.heads.extracting import numbered
from swindow.heads.rcnn_config import RcnnConfig
from swindow.objects import Frames, Objects
from swindow.ops.boxes import clipped, decode, encode, limits
from swindow.ops.vision import generalized_box_iou_loss, roi_align

Boxes = tuple[Tensor, ...]  # N 4 of each picture


class Found(NamedTuple):
    """What is found in one picture, the surest first."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    labels: Int64[Tensor, " N"]
    regions: Int64[Tensor, " N"]
    """Which of the picture's regions each was found in."""


class Samples(NamedTuple):
    """The regions that a stage learns from, picture after picture."""

    regions: Boxes
    which: tuple[Tensor, ...]
    """For each of a picture's, the index of the object that it is to find, or `BACKGROUND`."""
    labels: Int64[Tensor, " R"]
    """That object's class; after the last one, background."""
    boxes: Float[Tensor, "R 4"]
    """That object's box; the region itself for background."""
    given: Bool[Tensor, " R"]
    """Which were not proposed, but are objects' boxes."""

    @property
    def finding(self) -> Bool[Tensor, " R"]:
        """Which are to find an object."""
        return torch.cat(self.which) >= 0


def samples_of(proposed: Boxes, objects: tuple[Objects, ...], config: RcnnConfig, stage: int) -> Samples:
    """Draw regions for a stage from those proposed and from the objects' own boxes."""
    over = config.overlaps[stage]
    weak = over if config.details.claims_regions else None
    regions, which, labels, boxes, given = [], [], [], [], []
    for pool, one in zip(proposed, objects, strict=True):
        known = (~one.crowd).nonzero()[:, 0]
        found = assigned(pool, one, over=over, under=over, weak=weak, claims=True)
        found = torch.cat([found, known])
        every = torch.cat([pool, one.boxes[known].to(pool.dtype)])
        chosen = torch.cat(drawn(found, config.samples, config.share))
        mine = found[chosen]
        finds = mine >= 0
        regions.append(every[chosen])
        which.append(mine)
        given.append(chosen >= len(pool))
        if len(one):
            labels.append(torch.where(finds, one.labels[mine.clamp_min(0)], config.num_classes))
            boxes.append(torch.where(finds[:, None], one.boxes[mine.clamp_min(0)].to(pool.dtype), every[chosen]))
        else:
            labels.append(torch.full_like(mine, config.num_classes))
            boxes.append(every[chosen])
    return Samples(tuple(regions), tuple(which), torch.cat(labels), torch.cat(boxes), torch.cat(given))


def class_loss(logits: Float[Tensor, "R K1"], samples: Samples) -> Float[Tensor, ""]:
    """Cross-entropy, mean over the regions."""
    return F.cross_entropy(logits, samples.labels, reduction="sum") / max(len(logits), 1)


def box_loss(deltas: Float[Tensor, "R N 4"], samples: Samples, config: RcnnConfig, stage: int) -> Float[Tensor, ""]:
    """Of the regions that are to find an object, by the number of all regions."""
    finding = samples.finding.nonzero()[:, 0]
    own = _of_class(deltas[finding], samples.labels[finding])
    regions, goals = torch.cat(samples.regions)[finding], samples.boxes[finding]
    deviations = config.deviations[stage]
    if config.box_loss == "giou":
        found = decode(own, regions, deviations, smallest=config.details.smallest_growth)
        loss = generalized_box_iou_loss(found, goals, reduction="sum")
    else:
        beta = config.details.beta
        loss = F.smooth_l1_loss(own, encode(goals, regions, deviations), beta=beta, reduction="sum")
    return config.box_weight * loss / max(len(deltas), 1)


def finding_regions(samples: Samples) -> Boxes:
    """Each picture's regions that are to find an object."""
    return tuple(regions[which >= 0] for regions, which in zip(samples.regions, samples.which, strict=True))


def mask_loss(
    logits: Float[Tensor, "P t t"], samples: Samples, objects: tuple[Objects, ...], details: Details
) -> Float[Tensor, ""]:
    """Cross-entropy of every cell of the regions that are to find an object: are these `logits` of its mask?

    Raises:
        ShapeError: objects without masks.
    """
    goals = torch.cat(
        [
            _mask_goals(one, regions, which[which >= 0], logits.shape[-1], aligned=details.aligned)
            for one, regions, which in zip(objects, finding_regions(samples), samples.which, strict=True)
        ]
    )
    goals = (goals >= 0.5).to(goals.dtype) if details.hard_masks else goals
    return F.binary_cross_entropy_with_logits(logits, goals, reduction="sum") / max(logits.numel(), 1)


def _mask_goals(one: Objects, regions: Tensor, which: Tensor, side: int, *, aligned: bool) -> Float[Tensor, "P t t"]:
    if len(which) == 0:
        return regions.new_zeros(0, side, side)
    if one.masks is None:
        raise ShapeError("objects have boxes alone; give a head with masks=False, or data with masks")
    used, own = which.unique(return_inverse=True)  # of hundreds of objects, not all are found
    rows = torch.cat([own[:, None].to(regions.dtype), regions], dim=1)
    return roi_align(one.masks[used, None].to(regions.dtype), rows, side, aligned=aligned)[:, 0]


def moved(
    regions: Boxes, deltas: Float[Tensor, "R N 4"], labels: Int64[Tensor, " R"], frames: Frames, config: RcnnConfig,
    stage: int,
) -> Boxes:  # fmt: skip
    """Where each region's box lies, if its object is of this class; inside the picture."""
    rows = numbered(regions)
    own = _of_class(wide(deltas), labels)
    boxes = decode(own, rows[:, 1:], config.deviations[stage], smallest=config.details.smallest_growth)
    boxes = clipped(boxes, limits(frames, like=boxes)[rows[:, 0].long()])
    boxes = boxes.nan_to_num(nan=0.0)  # a loss that is not finite is told by who sees it: no map has such a place
    return boxes.split([len(one) for one in regions])


@torch.no_grad()
def handed_on(
    samples: Samples, logits: Float[Tensor, "R K1"], deltas: Float[Tensor, "R N 4"], frames: Frames,
    config: RcnnConfig, stage: int,
) -> Boxes:  # fmt: skip
    """The boxes that a stage finds in its regions, for the next one to learn from; without the objects' own.

    Those of background as if of the class that the stage deems likeliest.
    """
    labels = torch.where(samples.finding, samples.labels, logits[:, :-1].argmax(1))
    boxes = moved(samples.regions, deltas, labels, frames, config, stage)
    kept = (~samples.given).split([len(one) for one in samples.regions])
    return tuple(one[keep] for one, keep in zip(boxes, kept, strict=True))


def found_in(
    regions: Boxes, scores: Float[Tensor, "R K1"], deltas: Float[Tensor, "R N 4"], frames: Frames, config: RcnnConfig
) -> list[Found]:
    """Each picture's detections, by what the last stage says of its regions.

    Every region can be of every class; only boxes of those that are sure enough are computed.
    """
    rows, labels = (scores[:, :-1] > config.score_threshold).nonzero().unbind(1)
    kept = scores[rows, labels]
    places = numbered(regions)[rows]
    own = wide(deltas)[rows, labels.clamp_max(deltas.shape[1] - 1)]
    boxes = decode(own, places[:, 1:], config.deviations[-1], smallest=config.details.smallest_growth)
    pictures = places[:, 0].long()
    boxes = clipped(boxes, limits(frames, like=boxes)[pictures])
    least = (boxes[:, 2:] - boxes[:, :2]).amin(1)
    usable = (least >= config.details.smallest_box) & (least > 0)
    found = []
    for picture in range(len(regions)):
        mine = ((pictures == picture) & usable).nonzero()[:, 0]
        best = mine[best_of(boxes[mine], kept[mine], labels[mine], config.nms, config.most_detections)]
        before = sum(len(one) for one in regions[:picture])
        found.append(Found(boxes[best], kept[best], labels[best], rows[best] - before))
    return found


def _of_class(deltas: Float[Tensor, "R N 4"], labels: Tensor) -> Float[Tensor, "R 4"]:
    """Each region's deltas for its class, or the one set that there is for all."""
    return deltas[torch.arange(len(deltas), device=deltas.device), labels.clamp_max(deltas.shape[1] - 1)]
