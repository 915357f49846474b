"""Region proposals (Ren et al. 2015, arXiv 1506.01497): boxes in which there may be an object, of whatever class."""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.errors import ConfigError
from swindow.heads.anchors import AnchorShapes, anchors, outside, protruding
from swindow.heads.assigning import NEITHER, assigned, drawn, right_of
from swindow.heads.detect import Details, best_of, wide
from swindow.objects import Frames, Targets
from swindow.ops.boxes import clipped, decode, encode, limits

Maps = tuple[Tensor, ...]  # B C H W, finest first


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """Where region proposals are looked for, how that is learned, and how many there may be."""

    scales: tuple[float, ...] = (8.0,)
    """Sides of a square anchor in strides of its map."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights of anchors by their widths; each scale comes in each ratio."""
    over: float = 0.7
    """From this overlap with an object on an anchor is to find it."""
    under: float = 0.3
    """Below it an anchor is background."""
    samples: int = 256
    """Anchors of a picture that a step learns from."""
    share: float = 0.5
    """At most this share of them is to find objects."""
    candidates: tuple[int, int] = (2000, 1000)
    """The surest anchors of each map that become boxes, in training and otherwise."""
    proposals: tuple[int, int] = (1000, 1000)
    """The surest boxes of a picture that are proposed, in training and otherwise; torchvision's are 2000 and 1000."""
    nms: float = 0.7
    """Of two boxes from one map that overlap more than this, the surer one stays."""

    def __post_init__(self) -> None:
        if not self.scales or not self.ratios or min(*self.scales, *self.ratios) <= 0:
            raise ConfigError(f"scales {self.scales} and ratios {self.ratios} need values, all above 0")
        if min(self.samples, *self.candidates, *self.proposals) < 1:
            raise ConfigError(
                f"samples {self.samples}, candidates {self.candidates} and proposals {self.proposals} must be 1 or more"
            )
        if not (0 < self.under <= self.over <= 1 and 0 < self.share <= 1 and 0 < self.nms <= 1):
            raise ConfigError(
                f"under {self.under} must lie in (0, over], "
                f"and over {self.over}, share {self.share} and nms {self.nms} in (0, 1]"
            )


class Regions(nn.Module):
    """`FPN` maps to a logit and four deltas for each anchor, and those to boxes."""

    def __init__(self, config: RegionConfig, details: Details, width: int, strides: tuple[float, ...]) -> None:
        super().__init__()
        self.config, self.details, self.strides = config, details, strides
        self.shapes = AnchorShapes(scales=config.scales, ratios=config.ratios)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.logits = nn.Conv2d(width, self.shapes.count, 1)
        self.deltas = nn.Conv2d(width, 4 * self.shapes.count, 1)
        for layer in (self.conv, self.logits, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # a Conv2d has one unless told otherwise

    def forward(self, maps: Maps) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A 4"]]:
        logits, deltas = [], []
        for x in maps:
            x = F.relu(self.conv(x))
            logits.append(self.logits(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)

    def anchors(self, maps: Maps, frames: Frames) -> tuple[Float[Tensor, "_ 4"], ...]:
        """The anchors of each map."""
        grids = [(x.shape[2], x.shape[3]) for x in maps]
        return anchors(grids, self.strides, frames.canvas, self.shapes, self.details, device=maps[0].device)

    def found(self, anchors: Float[Tensor, "A 4"], targets: Targets) -> Int64[Tensor, "B A"]:
        """For each picture and anchor the index of the object that it is to find, or why it finds none: `assigned`."""
        config, details = self.config, self.details
        rules: dict[str, Any] = {
            "over": config.over,
            "under": config.under,
            "weak": details.weak,
            "claims": details.claims,
        }
        asked = self._asked(anchors, targets.frames)
        answers = torch.full(asked.shape, NEITHER, device=anchors.device)
        for answer, usable, one in zip(answers, asked, targets.objects, strict=True):
            answer[usable] = assigned(anchors[usable], one, **rules)
        return answers

    def _asked(self, anchors: Tensor, frames: Frames) -> Bool[Tensor, "B A"]:
        """Which anchors of each picture are learned from at all."""
        asked = torch.ones(len(frames.sizes), len(anchors), dtype=torch.bool, device=anchors.device)
        if not self.details.padding_counts:
            asked &= ~outside(anchors, frames)
        if self.details.inside:
            asked &= ~torch.stack([protruding(anchors, size) for size in frames.sizes])
        return asked

    def loss(
        self, maps: Maps, logits: Float[Tensor, "B A"], deltas: Float[Tensor, "B A 4"], targets: Targets
    ) -> dict[str, Tensor]:
        """Of a drawn few of the anchors, in fp32: whether an object is there, and where it is."""
        every = torch.cat(self.anchors(maps, targets.frames))
        scores, goals, off, count = [], [], [], 0
        for picture, found in enumerate(self.found(every, targets)):
            objects, background = drawn(found, self.config.samples, self.config.share)
            chosen = torch.cat([objects, background])
            scores.append(logits[picture, chosen])
            goals.append(found[chosen] >= 0)
            own = wide(deltas[picture, objects])
            wanted = encode(targets.objects[picture].boxes[found[objects]], every[objects]).to(own.dtype)
            off.append(F.smooth_l1_loss(own, wanted, beta=self.details.region_beta, reduction="sum"))
            count += len(chosen)
        judged = wide(torch.cat(scores))
        seen = F.binary_cross_entropy_with_logits(judged, torch.cat(goals).to(judged.dtype), reduction="sum")
        return {"regions": seen / max(count, 1), "region_boxes": torch.stack(off).sum() / max(count, 1)}

    @torch.no_grad()
    def proposals(
        self, maps: Maps, logits: Float[Tensor, "B A"], deltas: Float[Tensor, "B A 4"], frames: Frames
    ) -> tuple[Float[Tensor, "_ 4"], ...]:
        """The boxes of each picture in which there may be an object, the surest first, inside the picture."""
        every = self.anchors(maps, frames)
        counts = [len(one) for one in every]
        all_anchors, logits, deltas = torch.cat(every), wide(logits), wide(deltas)
        if not self.details.padding_counts:
            logits = logits.masked_fill(outside(all_anchors, frames), -torch.inf)
        chosen, levels = self._candidates(logits, counts)
        picked = deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        boxes = decode(picked, all_anchors[chosen], smallest=self.details.smallest_growth)
        boxes = clipped(boxes, limits(frames, like=boxes)[:, None])
        scores = logits.gather(1, chosen)
        least = (boxes[..., 2:] - boxes[..., :2]).amin(-1)
        usable = (least >= self.details.smallest_region) & (least > 0) & (scores > -torch.inf)
        return tuple(
            self._surest(boxes[picture][kept], scores[picture][kept], levels[kept])
            for picture, kept in enumerate(usable)
        )

    def _candidates(self, logits: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """Indices of the surest anchors of each map, and from which map they are."""
        most = self.config.candidates[0 if self.training else 1]
        chosen, first = [], 0
        for part in logits.split(counts, dim=1):
            chosen.append(part.topk(min(most, part.shape[1]), dim=1).indices + first)
            first += part.shape[1]
        sizes = torch.tensor([one.shape[1] for one in chosen], device=logits.device)
        return torch.cat(chosen, dim=1), torch.arange(len(chosen), device=logits.device).repeat_interleave(sizes)

    def _surest(self, boxes: Tensor, scores: Tensor, levels: Tensor) -> Tensor:
        most = self.config.proposals[0 if self.training else 1]
        return boxes[best_of(boxes, scores.sigmoid(), levels, self.config.nms, most)]

    def right(
        self, maps: Maps, logits: Float[Tensor, "B A"], targets: Targets
    ) -> tuple[Int64[Tensor, ""], Int64[Tensor, ""]]:
        """How many anchors are judged rightly, of how many: see `right_of`."""
        found = self.found(torch.cat(self.anchors(maps, targets.frames)), targets)
        return right_of(found.flatten(), logits.detach().flatten())
