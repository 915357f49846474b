"""DETR (Carion et al. 2020, arXiv 2005.12872): queries that look at a map of the picture, each an object or none.

Boxes inside are centres, widths and heights as shares of the picture's own sides, without padding.
"""

import contextlib
import dataclasses
from typing import Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.heads.detect import DetectorConfig, best_of
from swindow.heads.detr_masks import MaskAttention, MaskHead, mask_losses
from swindow.heads.matching import Costs, Matches, match
from swindow.heads.pyramid import SimplePyramid, as_map, is_flat
from swindow.heads.transformer import Transformer, sine_positions
from swindow.objects import Detections, Frames, Objects, Size, Targets
from swindow.ops.boxes import centred, clipped, cornered, limits
from swindow.ops.vision import generalized_box_iou_loss
from swindow.shapes import Pyramid


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetrConfig(DetectorConfig):
    """The shape of a DETR and what its mistakes cost; the defaults are the published ones."""

    kind: ClassVar[str] = "detr"

    masks: bool = False
    """Find the pixels of each object too."""
    score_threshold: float = 0.0
    """Queries with a lower score are no detections; 0 keeps them all, as published."""
    nms: float = 1.0
    """Of two boxes of one class that overlap more than this (IoU), the surer one stays; 1 leaves both, as published."""
    divisor: int = 1
    """Sides of a batch are padded to multiples of it."""
    memory_stage: int = -1
    """The stage whose map the queries look at; masks also read up to three finer ones."""
    transformer_width: int = 256
    """Channels of the transformer."""
    transformer_heads: int = 8
    """Heads of each of its attentions."""
    feed_forward: int = 2048
    """Hidden channels of its linear layers."""
    encoder_layers: int = 6
    """Layers in which the map's cells look at one another."""
    decoder_layers: int = 6
    """Layers in which queries look at one another and at the map."""
    num_queries: int = 100
    """The most objects that can be found in a picture."""
    head_dropout: float = 0.1
    """Dropout of attentions, hidden channels and residual branches."""
    auxiliary: float = 1.0
    """Weight of the losses of all decoder layers but the last; 0 leaves them out."""
    no_object: float = 0.1
    """Weight of "no object" in the cross-entropy, beside 1 of every class."""
    class_cost: float = 1.0
    """Weight of the class's probability when queries and objects are matched."""
    box_weight: float = 5.0
    """Weight of the boxes' L1 distance, in matching and in the loss."""
    giou_weight: float = 2.0
    """Weight of the boxes' generalised IoU, in matching and in the loss."""
    focal_weight: float = 1.0
    """Weight of the masks' focal loss."""
    dice_weight: float = 1.0
    """Weight of the masks' Dice loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {name: getattr(self, name) for name in _COUNTS}
        if min(counts.values()) < 1 or self.encoder_layers < 0:
            raise ConfigError(f"{counts} must be at least 1, and encoder_layers {self.encoder_layers} at least 0")
        if self.transformer_width % (4 * self.transformer_heads):
            raise ConfigError(
                f"transformer_width is {self.transformer_width}; it must be a multiple of 4 times "
                f"transformer_heads {self.transformer_heads}: sines and cosines of rows and columns, in every head"
            )
        weights = {name: getattr(self, name) for name in _WEIGHTS}
        if min(weights.values()) < 0 or self.no_object <= 0 or not 0 <= self.head_dropout < 1:
            raise ConfigError(
                f"{weights} must not be below 0, no_object {self.no_object} be above it, and head_dropout "
                f"{self.head_dropout} lie in [0, 1)"
            )

    def stages(self, count: int) -> tuple[int, ...]:
        """The stage that the queries look at, and for masks up to three finer ones before it."""
        if not -count <= self.memory_stage < count:
            raise ConfigError(
                f"memory_stage is {self.memory_stage}; the backbone has {count} stages: give 0 to {count - 1}, or "
                "-1 for the last"
            )
        stage = self.memory_stage % count
        return tuple(range(max(0, stage - 3), stage + 1)) if self.masks else (stage,)

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...], backbone: Any = None) -> "Detr":
        """The head that this describes, for a pyramid with these channels and strides."""
        return Detr(self, channels, strides)


_COUNTS = ("transformer_width", "transformer_heads", "feed_forward", "decoder_layers", "num_queries")
_WEIGHTS = ("auxiliary", "class_cost", "box_weight", "giou_weight", "focal_weight", "dice_weight")


class DetrOutputs(NamedTuple):
    """What every decoder layer L says of every query Q; the last layer's is the answer."""

    logits: Float[Tensor, "L B Q K"]
    """Of each class, that of no object last."""
    boxes: Float[Tensor, "L B Q 4"]
    """In 0..1."""
    frames: Frames
    """Where the pictures lie."""
    masks: Float[Tensor, "B Q H W"] | None = None
    """Logits over the canvas, of the last layer."""


class Truth(NamedTuple):
    """The objects to be found, those of each picture apart; boxes as the head has them."""

    labels: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]


class Detr(nn.Module):
    """A map, its cells projected, looked at by an encoder, and queries that look at it in a decoder."""

    def __init__(self, config: DetrConfig, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        width, heads = config.transformer_width, config.transformer_heads
        self.pyramid = SimplePyramid(channels) if is_flat(strides) else None
        self.project = nn.Conv2d(channels[-1], width, 1)
        self.queries = nn.Parameter(torch.randn(config.num_queries, width))
        self.transformer = Transformer(
            width=width,
            heads=heads,
            hidden=config.feed_forward,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            dropout=config.head_dropout,
        )
        self.classifier = nn.Linear(width, config.num_classes + 1)
        self.boxes = nn.ModuleList(nn.Linear(width, out) for out in (width, width, 4))
        self.mask_attention = MaskAttention(width, heads) if config.masks else None
        self.mask_head = MaskHead(width, heads, channels[-2::-1]) if config.masks else None

    def forward(self, pyramid: Pyramid, frames: Frames) -> DetrOutputs:
        maps, cells, positions, padding = self._looked_at(pyramid, frames)
        memory = self.transformer.encode(cells, positions, padding)
        known = self.transformer.decode(self.queries, memory, positions, padding)
        masks = None
        if self.mask_attention is not None and self.mask_head is not None:
            seen = self.mask_attention(known[-1], memory, padding).unflatten(-1, maps[-1].shape[-2:])
            masks = self.mask_head(maps[-1], seen, maps[-2::-1])
        return DetrOutputs(logits=self.classifier(known), boxes=self._boxes(known), frames=frames, masks=masks)

    def attention(self, pyramid: Pyramid, frames: Frames) -> Float[Tensor, "L B Q H W"]:
        """How much of each cell of the memory each query sees, in each decoder layer, mean over heads."""
        maps, cells, positions, padding = self._looked_at(pyramid, frames)
        memory = self.transformer.encode(cells, positions, padding)
        seen = self.transformer.attention(self.queries, memory, positions, padding)
        return seen.mean(2).unflatten(-1, maps[-1].shape[-2:])

    def _looked_at(self, pyramid: Pyramid, frames: Frames) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Maps, the last projected; its cells and their positions, one after another; where they are in no picture."""
        maps = [as_map(x) for x in (pyramid if self.pyramid is None else self.pyramid(pyramid))]
        maps[-1] = self.project(maps[-1])
        padding = padded_cells(frames, (maps[-1].shape[2], maps[-1].shape[3]), maps[-1].device)
        wide = torch.promote_types(self.queries.dtype, torch.float32)
        positions = sine_positions(padding, self.config.transformer_width, dtype=wide).to(self.queries.dtype)
        whole = all(size == frames.canvas for size in frames.sizes)
        cells = maps[-1].flatten(2).transpose(1, 2)
        return maps, cells, positions.flatten(1, 2), None if whole else padding.flatten(1)

    def _boxes(self, known: Float[Tensor, "L B Q C"]) -> Float[Tensor, "L B Q 4"]:
        """In the digits of the parameters, inside autocast too: in bf16 a large box would move by pixels."""
        first, second, last = (cast(nn.Linear, layer) for layer in self.boxes)
        with _in_own_digits(known.device):
            return last(F.relu(second(F.relu(first(known.to(first.weight.dtype)))))).sigmoid()

    def loss(self, outputs: DetrOutputs, targets: Targets) -> dict[str, Tensor]:
        """The losses of the last layer by name, and those of all others in one; each with its weight, in fp32 or wider.

        Crowds are left out. More objects than queries are learned as far as queries go.

        Raises:
            ShapeError: a label that is none of the head's classes, or objects without masks for a head with them.
        """
        with _in_own_digits(outputs.logits.device):
            return self._loss(outputs, targets)

    def _loss(self, outputs: DetrOutputs, targets: Targets) -> dict[str, Tensor]:
        config, logits, boxes = self.config, _wide(outputs.logits), _wide(outputs.boxes)
        truth = self._truth(targets, boxes)
        matches = self._matched(logits, boxes, truth)
        count = max(1, sum(len(labels) for labels in truth.labels))
        each = {
            "classes": _class_losses(logits, matches, torch.cat(truth.labels), config.no_object),
            "boxes": config.box_weight * _box_losses(boxes, matches, torch.cat(truth.boxes)) / count,
            "giou": config.giou_weight * _giou_losses(boxes, matches, torch.cat(truth.boxes)) / count,
        }
        found = {name: losses[-1] for name, losses in each.items()}
        if config.auxiliary and len(logits) > 1:
            found["auxiliary"] = config.auxiliary * torch.stack([losses[:-1].sum() for losses in each.values()]).sum()
        if outputs.masks is not None:
            masks = _masks_of(truth, outputs.frames.canvas, _wide(outputs.masks))
            own = _wide(outputs.masks)[matches.images, matches.queries[-1]]
            focal, dice = mask_losses(own, masks[matches.objects[-1]], float(count))
            found |= {"focal": config.focal_weight * focal, "dice": config.dice_weight * dice}
        return found

    def _truth(self, targets: Targets, like: Tensor) -> Truth:
        learned = [objects[~objects.crowd] for objects in targets.objects]
        self._check(learned)
        sides = limits(targets.frames, like=like)
        boxes = (centred(one.boxes.to(like) / side) for one, side in zip(learned, sides, strict=True))
        return Truth(tuple(one.labels for one in learned), tuple(boxes), tuple(one.masks for one in learned))

    def _check(self, learned: list[Objects]) -> None:
        """On a GPU, which would be waited for, labels are left to CUDA's own assertion."""
        classes = self.config.num_classes
        labels = torch.cat([one.labels for one in learned])
        if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ShapeError(
                f"objects are labelled {int(labels.min())} to {int(labels.max())}; {classes} classes are 0 to "
                f"{classes - 1}: give the head as many classes as the data has"
            )
        if self.config.masks and any(one.masks is None and len(one) for one in learned):
            raise ShapeError("a picture's objects have boxes alone, and masks=True learns masks; give masks=False")

    def _matched(self, logits: Tensor, boxes: Tensor, truth: Truth) -> Matches:
        costs = Costs(classes=self.config.class_cost, l1=self.config.box_weight, giou=self.config.giou_weight)
        return match(logits.detach(), boxes.detach(), truth.labels, truth.boxes, costs)

    @torch.no_grad()
    def decode(self, outputs: DetrOutputs, size: Size | None = None) -> tuple[Detections, ...]:
        """For each picture every query whose likeliest class reaches the threshold, the likeliest first.

        Boxes are in pixels of the picture's own size in the batch; `size`, which other heads need, is not used.
        """
        scores, labels = _wide(outputs.logits[-1]).softmax(-1)[..., :-1].max(-1)
        limit = limits(outputs.frames, like=scores)[:, None]
        boxes = clipped(cornered(_wide(outputs.boxes[-1])) * limit, limit)
        found = []
        for image, own in enumerate(outputs.frames.sizes):
            kept = self._kept(boxes[image], scores[image], labels[image])
            found.append(
                Detections(
                    boxes=boxes[image, kept],
                    scores=scores[image, kept],
                    labels=labels[image, kept],
                    size=own,
                    masks=_picture_of(outputs, image, kept),
                    whole=outputs.masks is not None,
                    queries=kept,
                )
            )
        return tuple(found)

    def _kept(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        config = self.config
        order = scores.argsort(descending=True, stable=True)[: config.most_detections]
        if config.nms < 1:
            order = best_of(boxes, scores, labels, config.nms, config.most_detections)
        return order[scores[order] >= config.score_threshold]

    @torch.no_grad()
    def right(self, outputs: DetrOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        """How many matched queries have their object's class for the likeliest, "no object" too, and how many are."""
        logits, boxes = _wide(outputs.logits[-1:]), _wide(outputs.boxes[-1:])
        truth = self._truth(targets, boxes)
        matches = self._matched(logits, boxes, truth)
        labels = torch.cat(truth.labels)[matches.objects[0]]
        said = logits[0, matches.images, matches.queries[0]].argmax(-1)
        return (said == labels).sum(), torch.tensor(len(labels), device=logits.device)

    def rehearse(self, outputs: DetrOutputs) -> None:
        """Every layer has run when there are outputs."""


def padded_cells(frames: Frames, grid: Size, device: Any = None) -> Bool[Tensor, "B H W"]:
    """Which cells have their top left corner in no picture: as published, by the nearest pixel of a padding mask.

    `Frames.padding` asks for cells' middles; of a last cell that a picture only begins, the two say different things.
    """
    heights, widths = torch.tensor(frames.sizes, device=device).T
    below, beside = (
        F.interpolate((torch.arange(side, device=device) >= sizes[:, None]).float()[None], size=cells)[0] > 0
        for sizes, side, cells in zip((heights, widths), frames.canvas, grid, strict=True)
    )
    return below[:, :, None] | beside[:, None, :]


def _class_losses(
    logits: Float[Tensor, "L B Q K"], matches: Matches, labels: Tensor, no_object: float
) -> Float[Tensor, " L"]:
    """Cross-entropy of every query in every layer, a weighted mean; queries without an object are of the last class."""
    layers, last = len(logits), logits.shape[-1] - 1
    truth = torch.full(logits.shape[:-1], last, device=logits.device)
    truth[torch.arange(layers, device=logits.device)[:, None], matches.images, matches.queries] = labels[
        matches.objects
    ]
    weights = logits.new_ones(last + 1)
    weights[last] = no_object
    entropy = F.cross_entropy(logits.flatten(0, -2), truth.flatten(), weights, reduction="none")
    return entropy.view(layers, -1).sum(1) / weights[truth].view(layers, -1).sum(1)


def _box_losses(boxes: Float[Tensor, "L B Q 4"], matches: Matches, truth: Float[Tensor, "N 4"]) -> Float[Tensor, " L"]:
    """Differences of centres, widths and heights, summed over the matched pairs."""
    return (_of_matches(boxes, matches) - truth[matches.objects]).abs().sum((1, 2))


def _giou_losses(boxes: Float[Tensor, "L B Q 4"], matches: Matches, truth: Float[Tensor, "N 4"]) -> Float[Tensor, " L"]:
    """1 less the generalised IoU, summed over the matched pairs; the truth's boxes are none of them empty."""
    found, true = cornered(_of_matches(boxes, matches)), cornered(truth[matches.objects])
    return generalized_box_iou_loss(found, true, eps=0.0).sum(1)


def _of_matches(boxes: Float[Tensor, "L B Q 4"], matches: Matches) -> Float[Tensor, "L M 4"]:
    return boxes[torch.arange(len(boxes), device=boxes.device)[:, None], matches.images, matches.queries]


def _masks_of(truth: Truth, canvas: Size, like: Tensor) -> Float[Tensor, "N h w"]:
    """Masks of the objects of all pictures, each over the whole canvas."""
    whole = [like.new_zeros(0, *canvas)]
    for masks in truth.masks:
        if masks is not None and len(masks):
            below, beside = (side - own for side, own in zip(canvas, masks.shape[1:], strict=True))
            whole.append(F.pad(masks.to(like.dtype), (0, beside, 0, below)))
    return torch.cat(whole)


def _picture_of(outputs: DetrOutputs, image: int, queries: Tensor) -> Float[Tensor, "N a b"] | None:
    """Probabilities of some queries' masks over the picture alone, on cells of the size of the canvas's."""
    if outputs.masks is None:
        return None
    masks, canvas, size = _wide(outputs.masks[image, queries]), outputs.frames.canvas, outputs.frames.sizes[image]
    if size == canvas:
        return masks.sigmoid()
    places = []
    for side, whole, cells in zip(size, canvas, masks.shape[1:], strict=True):
        count = -(-side * cells // whole)
        places.append((torch.arange(count, device=masks.device) + 0.5) / count * (2 * side / whole) - 1)
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], dim=-1).to(masks.dtype)
    return F.grid_sample(masks[None], grid[None], padding_mode="border", align_corners=False)[0].sigmoid()


def _in_own_digits(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast switched off, where there is one: the meta device has none."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


def _wide(x: Tensor) -> Tensor:
    """In fp32, or as it is where it has more digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
