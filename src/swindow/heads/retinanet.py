"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): every anchor is asked for every class, at once.

The focal loss sees to it that the few anchors with objects are not drowned by the many without.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.errors import ConfigError
from swindow.heads.anchors import AnchorShapes, anchors, outside
from swindow.heads.assigning import NEITHER, assigned
from swindow.heads.detect import CONVENTIONS, Convention, DetectorConfig, best_of
from swindow.heads.fpn import FPN, ExtraFrom
from swindow.objects import Detections, Frames, Size, Targets
from swindow.ops.boxes import clipped, decode, encode, limits
from swindow.ops.vision import generalized_box_iou_loss, sigmoid_focal_loss
from swindow.shapes import Pyramid


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(DetectorConfig):
    """The shape of a RetinaNet and how it learns; the defaults are those of mmdetection 2.x, as Swin had it."""

    kind: ClassVar[str] = "retinanet"
    masks: ClassVar[bool] = False

    convention: Convention = "openmmlab"
    """Which published set of details holds: see `swindow.heads.detect.CONVENTIONS`. Beyond those, torchvision divides
    losses by the anchors that find objects picture by picture, openmmlab by those of the batch; torchvision has a
    ReLU between the two coarsest maps, and keeps answers of which nothing lies in the picture."""
    first_stage: int = 1
    """The finest stage that is read; published models leave out the first, whose map has most of all cells."""
    extra_levels: int = 2
    """Maps made beyond those of the backbone, each half as fine."""
    extra_from: ExtraFrom = "map"
    """What the first of them is made of: the backbone's last ``map``, or the last ``level`` of the feature pyramid
    (torchvision's first RetinaNet)."""
    pyramid_width: int = 256
    """Channels of the feature pyramid and of the layers on it."""
    tower: int = 4
    """Convolutions before the classes, and as many before the boxes."""
    tower_norm: Literal["none", "group"] = "none"
    """What follows each: nothing, or norms over groups of channels (torchvision's second RetinaNet)."""
    anchor_scales: tuple[float, ...] = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
    """Sides of a square anchor in strides of its map."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights of anchors by their widths; each scale comes in each ratio."""
    over: float = 0.5
    """From this overlap with an object on an anchor is to find it."""
    under: float = 0.4
    """Below it an anchor is background."""
    focal_alpha: float = 0.25
    """Weight of the class of an anchor's object in the focal loss; 1 less this is that of all others."""
    focal_gamma: float = 2.0
    """How much less the focal loss counts what is already told apart."""
    box_loss: Literal["l1", "giou"] = "l1"
    """Of deltas, or of the boxes that they lead to (torchvision's second RetinaNet)."""
    box_beta: float = 0.0
    """Where the loss of deltas turns from a square into a line; 0 is L1."""
    box_weight: float = 1.0
    """Weight of the boxes' loss beside the classes'."""
    prior: float = 0.01
    """The probability of each class in each anchor that the head starts with."""
    candidates: int = 1000
    """The surest answers of each map that become boxes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {name: getattr(self, name) for name in ("pyramid_width", "candidates")}
        if min(counts.values()) < 1 or min(self.first_stage, self.extra_levels, self.tower) < 0:
            raise ConfigError(
                f"{counts} must be at least 1, and first_stage {self.first_stage}, extra_levels {self.extra_levels} "
                f"and tower {self.tower} at least 0"
            )
        if not self.anchor_scales or not self.anchor_ratios or min(*self.anchor_scales, *self.anchor_ratios) <= 0:
            raise ConfigError(
                f"anchor_scales {self.anchor_scales} and anchor_ratios {self.anchor_ratios} need values, all above 0"
            )
        if not (0 <= self.under <= self.over <= 1 and 0 < self.prior < 1 and 0 <= self.focal_alpha <= 1):
            raise ConfigError(
                f"under {self.under} and over {self.over} must rise in [0, 1], prior {self.prior} lie in (0, 1) and "
                f"focal_alpha {self.focal_alpha} in [0, 1]"
            )
        if min(self.focal_gamma, self.box_beta, self.box_weight) < 0:
            raise ConfigError(
                f"focal_gamma {self.focal_gamma}, box_beta {self.box_beta} and box_weight {self.box_weight} must not "
                "be below 0"
            )

    def stages(self, count: int) -> tuple[int, ...]:
        """All stages from the first one that is read; of a backbone with fewer, the last."""
        return tuple(range(min(self.first_stage, count - 1), count))

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None) -> "RetinaNet":
        """The head that this describes, for a pyramid with these channels and strides."""
        return RetinaNet(self, channels, strides)


class RetinaNetOutputs(NamedTuple):
    """What is said of every anchor A: map by map, the finest first, row by row."""

    logits: Float[Tensor, "B A K"]
    deltas: Float[Tensor, "B A 4"]
    grids: tuple[Size, ...]
    """Rows and columns of each map."""
    frames: Frames
    """Where the pictures lie."""


class Tower(nn.Module):
    """Convolutions, then `answers` values for each anchor of a cell, from each map by the same layers."""

    def __init__(self, config: RetinaNetConfig, anchors: int, answers: int) -> None:
        super().__init__()
        width, group = config.pyramid_width, config.tower_norm == "group"
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=not group) for _ in range(config.tower))
        norms = (nn.GroupNorm(math.gcd(_GROUPS, width), width) for _ in range(config.tower))
        self.norms = nn.ModuleList(norms if group else ())
        self.last = nn.Conv2d(width, anchors * answers, 3, padding=1)
        self.answers = answers
        for layer in (*self.convs, self.last):
            nn.init.normal_(cast(nn.Conv2d, layer).weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B A O"]:
        for number, conv in enumerate(self.convs):
            x = conv(x)
            x = F.relu(self.norms[number](x) if self.norms else x)
        return self.last(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.answers))


_GROUPS = 32


class RetinaNet(nn.Module):
    """A feature pyramid, one tower for classes and one for boxes."""

    def __init__(self, config: RetinaNetConfig, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.details = config, CONVENTIONS[config.convention]
        self.shapes = AnchorShapes(scales=config.anchor_scales, ratios=config.anchor_ratios)
        self.fpn = FPN(
            channels,
            strides,
            config.pyramid_width,
            extra="relu_conv" if config.convention == "torchvision" else "conv",
            extra_levels=config.extra_levels,
            extra_from=config.extra_from,
        )
        self.classes = Tower(config, self.shapes.count, config.num_classes)
        self.boxes = Tower(config, self.shapes.count, 4)
        nn.init.constant_(cast(Tensor, self.classes.last.bias), math.log(config.prior / (1 - config.prior)))

    def forward(self, pyramid: Pyramid, frames: Frames) -> RetinaNetOutputs:
        maps = self.fpn(pyramid)
        return RetinaNetOutputs(
            logits=torch.cat([self.classes(x) for x in maps], dim=1),
            deltas=torch.cat([self.boxes(x) for x in maps], dim=1),
            grids=tuple((x.shape[2], x.shape[3]) for x in maps),
            frames=frames,
        )

    def anchors(self, outputs: RetinaNetOutputs) -> tuple[Float[Tensor, "_ 4"], ...]:
        """The anchors of each map, in pixels of the canvas."""
        canvas, device = outputs.frames.canvas, outputs.logits.device
        strides = [float(stride) for stride in self.fpn.strides]
        return anchors(outputs.grids, strides, canvas, self.shapes, self.details, device=device)

    def found(self, anchors: Float[Tensor, "A 4"], targets: Targets) -> Int64[Tensor, "B A"]:
        """For each picture and anchor the index of the object that it is to find, or why it finds none: `assigned`."""
        asked = torch.ones(len(targets.objects), len(anchors), dtype=torch.bool, device=anchors.device)
        if not self.details.padding_counts:
            asked = ~outside(anchors, targets.frames)
        answers = torch.full(asked.shape, NEITHER, device=anchors.device)
        over, under, claims = self.config.over, self.config.under, self.details.claims
        for answer, usable, one in zip(answers, asked, targets.objects, strict=True):
            answer[usable] = assigned(anchors[usable], one, over=over, under=under, weak=0.0, claims=claims)
        return answers

    def loss(self, outputs: RetinaNetOutputs, targets: Targets) -> dict[str, Tensor]:
        """Of the classes of all anchors but those that are asked nothing, and of the boxes of those with objects.

        Computed in fp32 or wider, inside autocast too.
        """
        every = torch.cat(self.anchors(outputs)).to(_wide(outputs.deltas).dtype)
        found = self.found(every, targets)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            each = [
                self._of_picture(_wide(logits), _wide(deltas), every, which, one.boxes.to(every), one.labels)
                for logits, deltas, which, one in zip(
                    outputs.logits, outputs.deltas, found, targets.objects, strict=True
                )
            ]
        classes, boxes = (torch.stack(losses) for losses in zip(*each, strict=True))
        counts = (found >= 0).sum(1).clamp_min(1)
        if self.config.convention == "torchvision":
            return {"classes": (classes / counts).mean(), "boxes": self.config.box_weight * (boxes / counts).mean()}
        total = counts.sum()
        return {"classes": classes.sum() / total, "boxes": self.config.box_weight * boxes.sum() / total}

    def _of_picture(
        self, logits: Tensor, deltas: Tensor, every: Tensor, found: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both losses of one picture, summed over its anchors."""
        config, hits = self.config, (found >= 0).nonzero()[:, 0]
        goals = torch.zeros_like(logits)
        goals[hits, labels[found[hits]]] = 1.0
        asked = found != NEITHER
        alpha, gamma = config.focal_alpha, config.focal_gamma
        classes = sigmoid_focal_loss(logits[asked], goals[asked], alpha=alpha, gamma=gamma, reduction="sum")
        wanted = boxes[found[hits]]
        if config.box_loss == "giou":
            reached = decode(deltas[hits], every[hits], smallest=self.details.smallest_growth)
            return classes, generalized_box_iou_loss(reached, wanted, reduction="sum")
        to = encode(wanted, every[hits])
        return classes, F.smooth_l1_loss(deltas[hits], to, beta=config.box_beta, reduction="sum")

    @torch.no_grad()
    def decode(self, outputs: RetinaNetOutputs, size: Size | None = None) -> tuple[Detections, ...]:
        """For each picture the surest answers of each map, of which the surer of two that overlap stays.

        Boxes are in pixels of the picture's own size in the batch; `size`, which other heads need, is not used.
        """
        every = self.anchors(outputs)
        counts = [len(one) for one in every]
        scores, deltas = _wide(outputs.logits).sigmoid(), _wide(outputs.deltas)
        if not self.details.padding_counts:
            scores = scores.masked_fill(outside(torch.cat(every), outputs.frames)[..., None], -1.0)
        numbers = torch.arange(sum(counts), device=scores.device).split(counts)
        limit, found = limits(outputs.frames, like=deltas), []
        for image, own in enumerate(outputs.frames.sizes):
            parts = zip(scores[image].split(counts), deltas[image].split(counts), every, numbers, strict=True)
            each = [self._surest(*part, limit[image]) for part in parts]
            boxes, sure, labels, which = (torch.cat(values) for values in zip(*each, strict=True))
            kept = best_of(boxes, sure, labels, self.config.nms, self.config.most_detections)
            found.append(
                Detections(boxes=boxes[kept], scores=sure[kept], labels=labels[kept], size=own, queries=which[kept])
            )
        return tuple(found)

    def _surest(
        self, scores: Tensor, deltas: Tensor, anchors: Tensor, numbers: Tensor, limit: Tensor
    ) -> tuple[Float[Tensor, "N 4"], Float[Tensor, " N"], Int64[Tensor, " N"], Int64[Tensor, " N"]]:
        """Boxes, scores, classes and anchors' numbers of a map's surest answers, of those that are sure enough."""
        flat = scores.flatten()
        likely = (flat > self.config.score_threshold).nonzero()[:, 0]
        best, order = flat[likely].topk(min(self.config.candidates, len(likely)))
        which, labels = likely[order] // scores.shape[1], likely[order] % scores.shape[1]
        boxes = decode(deltas[which], anchors[which].to(deltas.dtype), smallest=self.details.smallest_growth)
        boxes = clipped(boxes, limit)
        if self.config.convention == "torchvision":
            return boxes, best, labels, numbers[which]
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[inside], best[inside], labels[inside], numbers[which[inside]]

    @torch.no_grad()
    def right(self, outputs: RetinaNetOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """How many of the anchors that find objects have their object's class for the likeliest, and how many find."""
        found = self.found(torch.cat(self.anchors(outputs)), targets)
        right, counted = found.new_zeros(()), (found >= 0).sum()
        for logits, which, one in zip(outputs.logits, found, targets.objects, strict=True):
            hits = (which >= 0).nonzero()[:, 0]
            right = right + (logits[hits].argmax(-1) == one.labels[which[hits]]).sum()
        return right, counted

    def rehearse(self, outputs: RetinaNetOutputs) -> None:
        """Every layer has run when there are outputs."""


def _wide(x: Tensor) -> Tensor:
    """In fp32, or as it is where it has more digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
