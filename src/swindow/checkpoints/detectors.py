"""Which detector a file's weights are of, by its tensors under our names; and what of it they do not tell."""

import re
from typing import Any, Literal

from swindow.checkpoints.evidence import Evidence, Fields
from swindow.checkpoints.layouts import Format
from swindow.checkpoints.tables import State, needed, parts
from swindow.classes import coco, coco_by_id, coco_from_1
from swindow.errors import CheckpointError
from swindow.heads.cascade import CascadeMaskRcnnConfig
from swindow.heads.detr import DetrConfig
from swindow.heads.mask_rcnn import MaskRcnnConfig
from swindow.heads.regions import RegionConfig
from swindow.heads.retinanet import RetinaNetConfig
from swindow.model import ModelConfig

MARKS = {
    "head.transformer.norm.weight": "detr",
    "head.boxes.1.logits.weight": "cascade_mask_rcnn",
    "head.boxes.0.logits.weight": "mask_rcnn",
    "head.classes.last.weight": "retinanet",
}
"""A tensor that a detector has and those below it have not, and which it is."""
DETECTORS = frozenset(MARKS.values())


def classes_of_coco(config: ModelConfig, form: Format) -> tuple[str, ...] | None:
    """COCO's names where a published format's head has as many classes as its own weights for COCO; else None."""
    count = config.head.num_classes
    if config.head.kind not in DETECTORS:
        return None
    every = coco_by_id()
    lists = {"torchvision": (coco_from_1(), every), "facebook": (every,), "huggingface": (every,)}
    return next((names for names in lists.get(form.name, (coco(),)) if len(names) == count), None)


def detector_of(kind: str, state: State, form: Format, evidence: Evidence) -> Any:
    """The config of a detector of this kind that these weights are of.

    Raises:
        CheckpointError: parts that every such detector has are missing, or it is one that no head here is.
    """
    if kind == "detr":
        return _detr(state, evidence)
    return _retinanet(state, form) if kind == "retinanet" else _rcnn(kind, state, form)


def _detr(state: State, evidence: Evidence) -> DetrConfig:
    """Heads of attention are as many as a mask head's; in a DETR without one no tensor tells."""
    if re.search(r"dc5", evidence.stem, re.IGNORECASE):
        raise CheckpointError(
            f"{evidence.stem}: a DC5 model's last stage is dilated, which no backbone here can be; its tensors are "
            "those of the model without: take that one's weights"
        )
    width, masks = needed(state, "head.project.weight").shape[0], "head.mask_head.first.conv.weight" in state
    if masks:
        heads = needed(state, "head.mask_head.first.conv.weight").shape[0] - width
    else:
        heads = evidence.field("transformer_heads", 8, "as in every published one")
    return DetrConfig(
        num_classes=needed(state, "head.classifier.weight").shape[0] - 1,
        masks=masks,
        transformer_width=width,
        transformer_heads=heads,
        feed_forward=needed(state, "head.transformer.decoder.0.mlp.fc1.weight").shape[0],
        encoder_layers=parts(state, "head.transformer.encoder"),
        decoder_layers=parts(state, "head.transformer.decoder"),
        num_queries=needed(state, "head.queries").shape[0],
        head_dropout=evidence.known.get("head_dropout", 0.1),
    )


def _retinanet(state: State, form: Format) -> RetinaNetConfig:
    """torchvision's first coarser map is of the pyramid where the backbone's last has as many channels."""
    shapes = RetinaNetConfig()
    anchors = len(shapes.anchor_scales) * len(shapes.anchor_ratios)
    _check_anchors(needed(state, "head.boxes.last.weight").shape[0], 4 * anchors)
    maps, extras = parts(state, "head.fpn.laterals"), parts(state, "head.fpn.extras")
    width, wide = needed(state, f"head.fpn.laterals.{maps - 1}.weight").shape[:2]
    fields: Fields = {}
    if extras:
        seen = needed(state, "head.fpn.extras.0.weight").shape[1]
        alike = width == wide and form.convention == "torchvision"
        fields["extra_from"] = "level" if alike or seen != wide else "map"
    norm: Literal["group", "none"] = "group" if "head.classes.norms.0.weight" in state else "none"
    if form.convention == "torchvision":
        fields |= {"most_detections": 300, "box_loss": "giou" if norm == "group" else "l1"}
    stages = 1 + max((int(name.split(".")[2]) for name in state if name.startswith("backbone.stages.")), default=0)
    return RetinaNetConfig(
        num_classes=needed(state, "head.classes.last.weight").shape[0] // anchors,
        convention=form.convention,
        first_stage=max(stages - maps, 0),
        extra_levels=extras,
        pyramid_width=width,
        tower=parts(state, "head.classes.convs"),
        tower_norm=norm,
        **fields,
    )


def _check_anchors(found: int, published: int) -> None:
    """Refuse a file whose anchors are others, since no tensor tells their shapes."""
    if found != published:
        raise CheckpointError(
            f"the file has {found // 4} anchors in a cell where published ones have {published // 4}, and what shapes "
            "they are of is in no tensor; such a file cannot be read"
        )


def _rcnn(kind: str, state: State, form: Format) -> MaskRcnnConfig | CascadeMaskRcnnConfig:
    """Overlaps and deviations of a cascade's three stages are as in every published one: no tensor tells them."""
    classes, deltas = (needed(state, f"head.boxes.0.{part}.weight").shape[0] for part in ("logits", "deltas"))
    shapes = RegionConfig()
    _check_anchors(needed(state, "head.regions.deltas.weight").shape[0], 4 * len(shapes.scales) * len(shapes.ratios))
    masks, convs, linears = (parts(state, f"head.{part}") for part in ("masks", "boxes.0.convs", "boxes.0.linears"))
    fields: Fields = {
        "num_classes": classes - 1,
        "masks": masks > 0,
        "convention": form.convention,
        "pyramid_width": needed(state, "head.fpn.laterals.0.weight").shape[0],
        "box_convs": convs,
        "box_linears": linears,
        "class_agnostic": classes > 2 and deltas == 4,
    }
    if convs:
        fields["box_conv_width"] = needed(state, "head.boxes.0.convs.0.conv.weight").shape[0]
    if linears:
        fields["box_width"] = needed(state, "head.boxes.0.linears.0.weight").shape[0]
    if masks:
        fields |= {
            "mask_convs": parts(state, "head.masks.0.convs"),
            "mask_width": needed(state, "head.masks.0.enlarge.weight").shape[1],
        }
    if form.convention == "torchvision":
        fields["regions"] = RegionConfig(proposals=(2000, 1000))
    if kind == "mask_rcnn":
        return MaskRcnnConfig(**fields)
    if parts(state, "head.boxes") != len(CascadeMaskRcnnConfig.overlaps):
        raise CheckpointError(
            f"the file's cascade has {parts(state, 'head.boxes')} stages; only one of 3 has overlaps that are known"
        )
    if not convs:  # the classic form, which learns deltas
        fields |= {"box_loss": "delta", "box_weight": 1.0}
    return CascadeMaskRcnnConfig(**fields)
