"""Whose detectors we read and write: `formats` for backbones with the heads that find objects."""

from collections.abc import Iterator, Mapping
from typing import Any

from swindow.checkpoints.buffers import indices_and_coordinates
from swindow.checkpoints.detector_names import (
    DETR_FACEBOOK,
    DETR_FACEBOOK_MASKS,
    DETR_HUGGINGFACE,
    DETR_HUGGINGFACE_MASKS,
    OPENMMLAB_HEADS,
    RESNET,
    TORCHVISION_RCNN,
    TORCHVISION_RCNN_BEFORE_013,
    TORCHVISION_RETINANET,
    TORCHVISION_RETINANET_BEFORE_013,
)
from swindow.checkpoints.detector_rules import BackgroundFirst, JoinedProjections, UncountedNorms
from swindow.checkpoints.layouts import Format
from swindow.checkpoints.names import DENSE, OPENMMLAB
from swindow.checkpoints.rules import FlatPositions, ScaleColumns, UnfoldedMerge
from swindow.checkpoints.tables import joined

Allowed = Mapping[str, tuple[Any, ...]]

# -- OpenMMLab's, and the fork's ---------------------------------------------------------------------------------------

_HEADS = {
    "mask_rcnn": ("Mask and Faster R-CNN", r"roi_head\.bbox_head\.fc_cls\.weight"),
    "cascade_mask_rcnn": ("Cascade R-CNN", r"roi_head\.bbox_head\.0\.fc_cls\.weight"),
    "retinanet": ("RetinaNet", r"bbox_head\.retina_cls\.weight"),
}


def _three_maps(config: Any, head: Any) -> str | None:
    """A published RetinaNet reads the last three maps, which says how its convolutions are numbered."""
    maps = len(head.stages(len(config.depths)))
    return None if maps == 3 else f"has a pyramid of 3 of the backbone's maps; this model's is of {maps}"


_HYBRID_TASKS = (r"roi_head\.semantic_head\..+", r"roi_head\.mask_head\.\d+\.conv_res\..+")
"""Parts of a Hybrid Task Cascade, which gives its backbone alone."""


def _openmmlab() -> Iterator[Format]:
    for head, (what, mark) in _HEADS.items():
        shared: dict[str, Any] = {
            "heads": (head,),
            "unlike": _HYBRID_TASKS,
            "prefix": "backbone.",
            "entry": "state_dict",
            "with_meta": True,
            "objection": _three_maps if head == "retinanet" else None,
        }
        swin: dict[str, Any] = {
            **shared,
            "kinds": ("swin", "swin_v2"),
            "small_maps": "pad_shift",
            "buffers": indices_and_coordinates,
            "allowed": {"shifted": (True,), "relative_bias": (True,), "convention": ("openmmlab",)},
        }
        yield Format(
            name="openmmlab",
            about=f"mmdetection's {what} on a Swin",
            table=joined(OPENMMLAB.rows, OPENMMLAB_HEADS[head]),
            rules=(UnfoldedMerge(), ScaleColumns()),
            marks=(r"backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight", mark),
            one_window=True,
            **swin,
        )
        yield Format(
            name="microsoft_dense",
            about=f"the {what} of Microsoft's detection fork",
            table=joined(DENSE.rows, OPENMMLAB_HEADS[head]),
            rules=(ScaleColumns(), FlatPositions(as_map=True)),
            marks=(r"backbone\.layers\.0\.blocks\.0\.norm1\.weight", mark),
            **swin,
        )
        yield Format(
            name="openmmlab",
            about=f"mmdetection's {what} on a ResNet",
            kinds=("resnet",),
            table=joined(RESNET, OPENMMLAB_HEADS[head]),
            rules=(UncountedNorms(),),
            marks=(r"backbone\.layer1\.0\.conv1\.weight", mark),
            allowed={"norm": ("frozen", "batch"), "norm_eps": (1e-5,), "convention": ("openmmlab",)},
            **shared,
        )


# -- torchvision's -----------------------------------------------------------------------------------------------------

_OF_TORCHVISION: Allowed = {"norm": ("frozen", "batch"), "convention": ("torchvision",)}
_TWO_LINEARS: Allowed = {**_OF_TORCHVISION, "box_convs": (0,), "box_linears": (2,), "class_agnostic": (False,)}
_RESNET = r"backbone\.body\.conv1\.weight"
_RCNN = r"roi_heads\.box_head\.fc6\.weight"
_RETINANET = r"head\.classification_head\.cls_logits\.weight"
_SINCE, _BEFORE = (rf"backbone\.fpn\.inner_blocks\.0\.{part}weight" for part in (r"0\.", ""))


def _torchvision() -> Iterator[Format]:
    """Files of before 0.13 are those of COCO_V1, whose norms add nothing; what is written is as since then."""
    shared: dict[str, Any] = {"name": "torchvision", "kinds": ("resnet",), "prefix": "backbone.body."}
    shared["convention"] = "torchvision"
    for age, eps, (rcnn, retinanet) in (
        (_SINCE, None, (TORCHVISION_RCNN, TORCHVISION_RETINANET)),
        (_BEFORE, 0.0, (TORCHVISION_RCNN_BEFORE_013, TORCHVISION_RETINANET_BEFORE_013)),
    ):
        yield Format(
            about="torchvision's maskrcnn_resnet50_fpn and fasterrcnn_resnet50_fpn",
            heads=("mask_rcnn",),
            table=rcnn,
            rules=(BackgroundFirst(),),
            marks=(_RESNET, _RCNN, age),
            norm_eps=eps,
            allowed=_TWO_LINEARS,
            **shared,
        )
        yield Format(
            about="torchvision's retinanet_resnet50_fpn, and its v2",
            heads=("retinanet",),
            table=retinanet,
            marks=(_RESNET, _RETINANET, age),
            norm_eps=eps,
            allowed={**_OF_TORCHVISION, "extra_levels": (2,)},
            objection=_three_maps,
            **shared,
        )


REFUSED: Mapping[str, str] = {
    r"roi_heads\.box_head\.0\.0\.weight": "fasterrcnn_resnet50_fpn_v2 and maskrcnn_resnet50_fpn_v2 have norms in their "
    "pyramid and two convolutions before proposals, which no head here has; take torchvision's maskrcnn_resnet50_fpn"
}
"""Names of tensors by which a detector is known that we do not read, and what to say of it."""

# -- DETR --------------------------------------------------------------------------------------------------------------

_PLAIN = {"norm": ("frozen", "batch"), "norm_eps": (1e-5,)}
_BOXES: Allowed = {**_PLAIN, "masks": (False,)}
_MASKS: Allowed = {**_PLAIN, "masks": (True,)}


def _last_stage(config: Any, head: Any) -> str | None:
    """Their queries look at the last stage."""
    stage = head.memory_stage
    return None if stage in (-1, len(config.depths) - 1) else f"looks at the last stage; this model looks at {stage}"


_DETR = (
    Format(
        name="facebook",
        about="facebook's DETR",
        kinds=("resnet",),
        heads=("detr",),
        table=DETR_FACEBOOK,
        rules=(JoinedProjections(),),
        marks=(r"transformer\.encoder\.layers\.0\.self_attn\.in_proj_weight", r"backbone\.0\.body\.conv1\.weight"),
        prefix="backbone.0.body.",
        allowed=_BOXES,
        objection=_last_stage,
        entry="model",
    ),
    Format(
        name="facebook",
        about="facebook's DETR with masks",
        kinds=("resnet",),
        heads=("detr",),
        table=DETR_FACEBOOK_MASKS,
        rules=(JoinedProjections(),),
        marks=(r"detr\.transformer\.encoder\.layers\.0\.self_attn\.in_proj_weight", r"mask_head\.lay1\.weight"),
        prefix="detr.backbone.0.body.",
        allowed=_MASKS,
        objection=_last_stage,
        entry="model",
    ),
    Format(
        name="huggingface",
        about="transformers' DETR",
        kinds=("resnet",),
        heads=("detr",),
        table=DETR_HUGGINGFACE,
        marks=(r"model\.query_position_embeddings\.weight", r"class_labels_classifier\.weight"),
        prefix="model.backbone.conv_encoder.model.",
        allowed=_BOXES,
        objection=_last_stage,
    ),
    Format(
        name="huggingface",
        about="transformers' DETR with masks",
        kinds=("resnet",),
        heads=("detr",),
        table=DETR_HUGGINGFACE_MASKS,
        marks=(r"detr\.model\.query_position_embeddings\.weight", r"mask_head\.(lay1|conv1\.conv)\.weight"),
        prefix="detr.model.backbone.conv_encoder.model.",
        allowed=_MASKS,
        objection=_last_stage,
    ),
)

DETECTORS = (*_openmmlab(), *_torchvision(), *_DETR)
