"""The names of everybody's detectors beside ours: tables of ResNets and of heads, for `detector_formats`.

``…attention.joined.{*}`` is ours before the rule `JoinedProjections`.
"""

from collections.abc import Iterable, Mapping

from swindow.checkpoints.tables import joined

Rows = list[tuple[str, str]]

# -- ResNets -----------------------------------------------------------------------------------------------------------

_STEM, _BLOCK = "backbone.patch_embed.unit.", "backbone.stages.{i}.blocks.{j}."

RESNET: Rows = [  # torchvision's, and that of everybody who started from its weights
    (f"{_STEM}conv.{{*}}", "conv1.{*}"),
    (f"{_STEM}norm.{{*}}", "bn1.{*}"),
    (f"{_BLOCK}units.{{k}}.conv.{{*}}", "layer{i+1}.{j}.conv{k+1}.{*}"),
    (f"{_BLOCK}units.{{k}}.norm.{{*}}", "layer{i+1}.{j}.bn{k+1}.{*}"),
    (f"{_BLOCK}shortcut.conv.{{*}}", "layer{i+1}.{j}.downsample.0.{*}"),
    (f"{_BLOCK}shortcut.norm.{{*}}", "layer{i+1}.{j}.downsample.1.{*}"),
]
_PARTS = {"conv": "convolution", "norm": "normalization"}
RESNET_HUGGINGFACE: Rows = [
    *((f"{_STEM}{ours}.{{*}}", f"embedder.embedder.{theirs}.{{*}}") for ours, theirs in _PARTS.items()),
    *(
        (f"{_BLOCK}{ours}.{a}.{{*}}", f"encoder.stages.{{i}}.layers.{{j}}.{theirs}.{b}.{{*}}")
        for ours, theirs in {"units.{k}": "layer.{k}", "shortcut": "shortcut"}.items()
        for a, b in _PARTS.items()
    ),
]

# -- DETR --------------------------------------------------------------------------------------------------------------

_ENCODER, _DECODER = "head.transformer.encoder.{i}.", "head.transformer.decoder.{i}."
_MLP = ("fc1", "fc2")


def _layers(path: str, names: Iterable[tuple[str, str]], ours: str) -> Rows:
    """Rows for the parts of one kind of layer, which lies at this path."""
    return [(f"{ours}{mine}.{{*}}", f"{path}{theirs}.{{*}}") for mine, theirs in names]


def _detr_facebook() -> Rows:
    encoder, decoder = "transformer.encoder.layers.{i}.", "transformer.decoder.layers.{i}."
    attentions = [
        (_ENCODER + "attention", encoder + "self_attn"),
        (_DECODER + "attention", decoder + "self_attn"),
        (_DECODER + "cross", decoder + "multihead_attn"),
    ]
    mlp = [(f"mlp.{name}", f"linear{number}") for number, name in enumerate(_MLP, start=1)]
    return [
        *((f"{ours}.joined.{{*}}", f"{theirs}.in_proj_{{*}}") for ours, theirs in attentions),
        *((f"{ours}.proj.{{*}}", f"{theirs}.out_proj.{{*}}") for ours, theirs in attentions),
        *_layers(encoder, [*mlp, ("norm1", "norm1"), ("norm2", "norm2")], _ENCODER),
        *_layers(decoder, [*mlp, ("norm1", "norm1"), ("norm2", "norm2"), ("norm3", "norm3")], _DECODER),
        ("head.transformer.norm.{*}", "transformer.decoder.norm.{*}"),
        ("head.queries", "query_embed.weight"),
        ("head.project.{*}", "input_proj.{*}"),
        ("head.classifier.{*}", "class_embed.{*}"),
        ("head.boxes.{i}.{*}", "bbox_embed.layers.{i}.{*}"),
    ]


def _detr_huggingface(*, in_memory: bool = False) -> Rows:
    """As in files; `in_memory` is what version 5 calls the same, for files that save_pretrained did not write."""
    encoder, decoder = "model.encoder.layers.{i}.", "model.decoder.layers.{i}."
    last, hidden = ("o_proj", "mlp.") if in_memory else ("out_proj", "")
    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": last}
    mlp = [(f"mlp.{name}", f"{hidden}{name}") for name in _MLP]

    def attention(ours: str, theirs: str) -> list[tuple[str, str]]:
        norm = ("norm2" if ours == "cross" else "norm1", f"{theirs}_layer_norm")
        return [*((f"{ours}.{mine}", f"{theirs}.{name}") for mine, name in projections.items()), norm]

    seen = [*attention("attention", "self_attn"), *mlp]
    return [
        *_layers(encoder, [*seen, ("norm2", "final_layer_norm")], _ENCODER),
        *_layers(decoder, [*seen, *attention("cross", "encoder_attn"), ("norm3", "final_layer_norm")], _DECODER),
        ("head.transformer.norm.{*}", "model.decoder.layernorm.{*}"),
        ("head.queries", "model.query_position_embeddings.weight"),
        ("head.project.{*}", "model.input_projection.{*}"),
        ("head.classifier.{*}", "class_labels_classifier.{*}"),
        ("head.boxes.{i}.{*}", "bbox_predictor.layers.{i}.{*}"),
    ]


_MASKS: Rows = [
    ("head.mask_attention.q.{*}", "bbox_attention.q_linear.{*}"),
    ("head.mask_attention.k.{*}", "bbox_attention.k_linear.{*}"),
    ("head.mask_head.units.{i}.conv.{*}", "mask_head.lay{i+2}.{*}"),
    ("head.mask_head.units.{i}.norm.{*}", "mask_head.gn{i+2}.{*}"),
    ("head.mask_head.first.conv.{*}", "mask_head.lay1.{*}"),
    ("head.mask_head.first.norm.{*}", "mask_head.gn1.{*}"),
    ("head.mask_head.laterals.{i}.{*}", "mask_head.adapter{i+1}.{*}"),
    ("head.mask_head.last.{*}", "mask_head.out_lay.{*}"),
]
_MASKS_IN_MEMORY: Rows = [
    ("head.mask_attention.q.{*}", "bbox_attention.q_proj.{*}"),
    ("head.mask_attention.k.{*}", "bbox_attention.k_proj.{*}"),
    ("head.mask_head.first.{*}", "mask_head.conv1.{*}"),
    ("head.mask_head.units.0.{*}", "mask_head.conv2.{*}"),
    ("head.mask_head.units.{i}.{*}", "mask_head.fpn_stages.{i-1}.refine.{*}"),
    ("head.mask_head.laterals.{i}.{*}", "mask_head.fpn_stages.{i}.fpn_adapter.{*}"),
    ("head.mask_head.last.{*}", "mask_head.output_conv.{*}"),
]


def _behind(path: str, rows: Rows) -> Rows:
    """The same rows of parts that lie at this path."""
    return [(ours, path + theirs) for ours, theirs in rows]


_DETR_FACEBOOK, _DETR_HUGGINGFACE = _detr_facebook(), [*_detr_huggingface(), *_detr_huggingface(in_memory=True)]
_TWO_RESNETS = [*RESNET_HUGGINGFACE, *RESNET]  # its own, and timm's, whose names are torchvision's
_IN_MEMORY = _behind("model.backbone.model.", _TWO_RESNETS)

DETR_FACEBOOK = joined(_DETR_FACEBOOK, RESNET)
DETR_FACEBOOK_MASKS = joined(_behind("detr.", _DETR_FACEBOOK), _MASKS, RESNET)
DETR_HUGGINGFACE = joined(_DETR_HUGGINGFACE, _TWO_RESNETS, _IN_MEMORY)
DETR_HUGGINGFACE_MASKS = joined(
    _behind("detr.", _DETR_HUGGINGFACE), _MASKS, _TWO_RESNETS, _behind("detr.", _IN_MEMORY), _MASKS_IN_MEMORY
)

# -- OpenMMLab's, and the fork's ---------------------------------------------------------------------------------------

_FPN: Rows = [
    ("head.fpn.laterals.{i}.{*}", "neck.lateral_convs.{i}.conv.{*}"),
    ("head.fpn.smooths.{i}.{*}", "neck.fpn_convs.{i}.conv.{*}"),
]
_REGIONS: Rows = [
    ("head.regions.conv.{*}", "rpn_head.rpn_conv.{*}"),
    ("head.regions.logits.{*}", "rpn_head.rpn_cls.{*}"),
    ("head.regions.deltas.{*}", "rpn_head.rpn_reg.{*}"),
]


def _judges(number: str, ours: str) -> Rows:
    """Rows for the box and the mask head of a stage; only those of several stages have a number there."""
    box = {
        "convs.{j}.conv": "shared_convs.{j}.conv",
        "convs.{j}.norm": "shared_convs.{j}.bn",
        "linears.{j}": "shared_fcs.{j}",
        "logits": "fc_cls",
        "deltas": "fc_reg",
    }
    mask = {"convs.{j}": "convs.{j}.conv", "enlarge": "upsample", "logits": "conv_logits"}
    return [
        *_layers(f"roi_head.bbox_head.{number}", box.items(), f"head.boxes.{ours}."),
        *_layers(f"roi_head.mask_head.{number}", mask.items(), f"head.masks.{ours}."),
    ]


_RETINANET: Rows = [
    ("head.fpn.extras.{i}.{*}", "neck.fpn_convs.{i+3}.conv.{*}"),  # behind those of three maps, as all published have
    *_FPN,
    ("head.classes.convs.{i}.{*}", "bbox_head.cls_convs.{i}.conv.{*}"),
    ("head.boxes.convs.{i}.{*}", "bbox_head.reg_convs.{i}.conv.{*}"),
    ("head.classes.norms.{i}.{*}", "bbox_head.cls_convs.{i}.gn.{*}"),
    ("head.boxes.norms.{i}.{*}", "bbox_head.reg_convs.{i}.gn.{*}"),
    ("head.classes.last.{*}", "bbox_head.retina_cls.{*}"),
    ("head.boxes.last.{*}", "bbox_head.retina_reg.{*}"),
]
OPENMMLAB_HEADS: Mapping[str, Rows] = {
    "mask_rcnn": [*_FPN, *_REGIONS, *_judges("", "0")],
    "cascade_mask_rcnn": [*_FPN, *_REGIONS, *_judges("{i}.", "{i}")],
    "retinanet": _RETINANET,
}
"""Of each head, behind the rows of a backbone."""

# -- torchvision's -----------------------------------------------------------------------------------------------------

_TORCHVISION_FPN: Rows = [
    ("head.fpn.laterals.{i}.{*}", "backbone.fpn.inner_blocks.{i}.0.{*}"),
    ("head.fpn.smooths.{i}.{*}", "backbone.fpn.layer_blocks.{i}.0.{*}"),
]
_TORCHVISION_RCNN: Rows = [
    ("head.regions.conv.{*}", "rpn.head.conv.0.0.{*}"),
    ("head.regions.logits.{*}", "rpn.head.cls_logits.{*}"),
    ("head.regions.deltas.{*}", "rpn.head.bbox_pred.{*}"),
    ("head.boxes.0.linears.0.{*}", "roi_heads.box_head.fc6.{*}"),
    ("head.boxes.0.linears.1.{*}", "roi_heads.box_head.fc7.{*}"),
    ("head.boxes.0.logits.{*}", "roi_heads.box_predictor.cls_score.{*}"),
    ("head.boxes.0.deltas.{*}", "roi_heads.box_predictor.bbox_pred.{*}"),
    ("head.masks.0.convs.{i}.{*}", "roi_heads.mask_head.{i}.0.{*}"),
    ("head.masks.0.enlarge.{*}", "roi_heads.mask_predictor.conv5_mask.{*}"),
    ("head.masks.0.logits.{*}", "roi_heads.mask_predictor.mask_fcn_logits.{*}"),
]
_TORCHVISION_RETINANET: Rows = [
    ("head.fpn.extras.0.{*}", "backbone.fpn.extra_blocks.p6.{*}"),
    ("head.fpn.extras.1.{*}", "backbone.fpn.extra_blocks.p7.{*}"),
    ("head.classes.convs.{i}.{*}", "head.classification_head.conv.{i}.0.{*}"),
    ("head.boxes.convs.{i}.{*}", "head.regression_head.conv.{i}.0.{*}"),
    ("head.classes.norms.{i}.{*}", "head.classification_head.conv.{i}.1.{*}"),
    ("head.boxes.norms.{i}.{*}", "head.regression_head.conv.{i}.1.{*}"),
    ("head.classes.last.{*}", "head.classification_head.cls_logits.{*}"),
    ("head.boxes.last.{*}", "head.regression_head.bbox_reg.{*}"),
]
_BEFORE_013: Rows = [  # torchvision 0.13: what its published files of the first detectors still have
    ("head.fpn.laterals.{i}.{*}", "backbone.fpn.inner_blocks.{i}.{*}"),
    ("head.fpn.smooths.{i}.{*}", "backbone.fpn.layer_blocks.{i}.{*}"),
    ("head.regions.conv.{*}", "rpn.head.conv.{*}"),
    ("head.masks.0.convs.{i}.{*}", "roi_heads.mask_head.mask_fcn{i+1}.{*}"),
    ("head.classes.convs.{i}.{*}", "head.classification_head.conv.{2i}.{*}"),
    ("head.boxes.convs.{i}.{*}", "head.regression_head.conv.{2i}.{*}"),
]

TORCHVISION_RCNN = joined(RESNET, _TORCHVISION_FPN, _TORCHVISION_RCNN)
TORCHVISION_RETINANET = joined(RESNET, _TORCHVISION_FPN, _TORCHVISION_RETINANET)
TORCHVISION_RCNN_BEFORE_013 = joined(RESNET, _BEFORE_013, _TORCHVISION_RCNN)
TORCHVISION_RETINANET_BEFORE_013 = joined(RESNET, _BEFORE_013, _TORCHVISION_RETINANET)
