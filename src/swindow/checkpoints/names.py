"""The names of everybody's tensors beside ours: the tables that `formats` puts together with rules and buffers.

``backbone.norms.last``, ``backbone.blocks.{i}``, ``head.paired`` and ``backbone.mask_token`` are ours before the rules
`LastNorm`, `FlatBlocks`, `PairedHeads` and `TokenOfEncoder`.
"""

from swindow.checkpoints.tables import joined

BLOCK = "backbone.stages.{i}.blocks.{j}."

# -- pyramids ----------------------------------------------------------------------------------------------------------

_ATTENTION = (
    ("position_bias.table", "relative_position_bias_table"),
    ("position_bias.mlp.{*}", "cpb_mlp.{*}"),
    ("position_bias.mlp.{*}", "rpe_mlp.{*}"),  # as SimMIM's early files call it
    ("logit_scale.log", "logit_scale"),
    ("qkv.q_bias", "q_bias"),
    ("qkv.v_bias", "v_bias"),
)


def _attention(theirs: str, ours: str = f"{BLOCK}attn.") -> list[tuple[str, str]]:
    """Rows for what the original names differently inside a block's attention, behind their path to it."""
    return [(f"{ours}{mine}", f"{theirs}{other}") for mine, other in _ATTENTION]


_STEM = [("backbone.patch_embed.{*}", "patch_embed.{*}"), ("backbone.absolute_position.table", "absolute_pos_embed")]
_MICROSOFT = [*_attention("layers.{i}.blocks.{j}.attn."), (f"{BLOCK}{{*}}", "layers.{i}.blocks.{j}.{*}")]
_END = [("backbone.stages.{i}.merge.{*}", "layers.{i}.downsample.{*}")]
_LAST = [("backbone.norms.last.{*}", "norm.{*}")]
_HEAD = [("head.linear.{*}", "head.{*}")]

MICROSOFT = joined(_STEM, _MICROSOFT, _END, _LAST, _HEAD)
SIMMIM = joined(
    _STEM, _MICROSOFT, _END, _LAST, [("backbone.mask_token", "mask_token"), ("head.decoder.{*}", "decoder.0.{*}")]
)
DENSE = joined(_STEM, _MICROSOFT, _END, [("backbone.norms.{i}.{*}", "norm{i}.{*}")])
TIMM = joined(
    _STEM,
    _MICROSOFT,
    [("backbone.stages.{i}.merge.{*}", "layers.{i+1}.downsample.{*}")],
    _LAST,
    [("head.linear.{*}", "head.fc.{*}")],
)
TORCHVISION = joined(
    [("backbone.patch_embed.proj.{*}", "features.0.0.{*}"), ("backbone.patch_embed.norm.{*}", "features.0.2.{*}")],
    _attention("features.{2i+1}.{j}.attn."),
    [
        (f"{BLOCK}attn.position_bias.mlp.{{*}}", "features.{2i+1}.{j}.attn.cpb_mlp.{*}"),
        (f"{BLOCK}mlp.fc1.{{*}}", "features.{2i+1}.{j}.mlp.0.{*}"),
        (f"{BLOCK}mlp.fc2.{{*}}", "features.{2i+1}.{j}.mlp.3.{*}"),
        (f"{BLOCK}{{*}}", "features.{2i+1}.{j}.{*}"),
        ("backbone.stages.{i}.merge.{*}", "features.{2i+2}.{*}"),
    ],
    _LAST,
    _HEAD,
)
OPENMMLAB = joined(
    [("backbone.patch_embed.proj.{*}", "patch_embed.projection.{*}"), *_STEM],
    _attention("stages.{i}.blocks.{j}.attn.w_msa."),
    [
        (f"{BLOCK}attn.{{*}}", "stages.{i}.blocks.{j}.attn.w_msa.{*}"),
        (f"{BLOCK}mlp.fc1.{{*}}", "stages.{i}.blocks.{j}.ffn.layers.0.0.{*}"),
        (f"{BLOCK}mlp.fc2.{{*}}", "stages.{i}.blocks.{j}.ffn.layers.1.{*}"),
        (f"{BLOCK}{{*}}", "stages.{i}.blocks.{j}.{*}"),
        ("backbone.stages.{i}.merge.{*}", "stages.{i}.downsample.{*}"),
        ("backbone.norms.{i}.{*}", "norm{i}.{*}"),
        ("head.linear.{*}", "head.fc.{*}"),
    ],
)
_HF_BLOCK = "encoder.layers.{i}.blocks.{j}."
HUGGINGFACE = joined(
    [
        ("backbone.patch_embed.proj.{*}", "embeddings.patch_embeddings.projection.{*}"),
        ("backbone.patch_embed.norm.{*}", "embeddings.norm.{*}"),
        ("backbone.absolute_position.table", "embeddings.position_embeddings"),
        (f"{BLOCK}attn.position_bias.mlp.{{*}}", f"{_HF_BLOCK}attention.self.continuous_position_bias_mlp.{{*}}"),
    ],
    _attention(f"{_HF_BLOCK}attention.self."),
    [
        (f"{BLOCK}attn.proj.{{*}}", f"{_HF_BLOCK}attention.output.dense.{{*}}"),
        (f"{BLOCK}attn.{{*}}", f"{_HF_BLOCK}attention.self.{{*}}"),
        (f"{BLOCK}norm1.{{*}}", f"{_HF_BLOCK}layernorm_before.{{*}}"),
        (f"{BLOCK}norm2.{{*}}", f"{_HF_BLOCK}layernorm_after.{{*}}"),
        (f"{BLOCK}mlp.fc1.{{*}}", f"{_HF_BLOCK}intermediate.dense.{{*}}"),
        (f"{BLOCK}mlp.fc2.{{*}}", f"{_HF_BLOCK}output.dense.{{*}}"),
        # What version 5 calls them in memory, for files that were not written by save_pretrained.
        (f"{BLOCK}attn.query.{{*}}", f"{_HF_BLOCK}attention.q_proj.{{*}}"),
        (f"{BLOCK}attn.key.{{*}}", f"{_HF_BLOCK}attention.k_proj.{{*}}"),
        (f"{BLOCK}attn.value.{{*}}", f"{_HF_BLOCK}attention.v_proj.{{*}}"),
        (f"{BLOCK}attn.proj.{{*}}", f"{_HF_BLOCK}attention.o_proj.{{*}}"),
        (
            f"{BLOCK}attn.position_bias.table",
            f"{_HF_BLOCK}attention.relative_position_bias.relative_position_bias_table",
        ),
        (f"{BLOCK}mlp.{{*}}", f"{_HF_BLOCK}mlp.{{*}}"),
        ("backbone.stages.{i}.merge.{*}", "encoder.layers.{i}.downsample.{*}"),
        ("backbone.norms.{i}.{*}", "hidden_states_norms.stage{i+1}.{*}"),
        ("backbone.norms.last.{*}", "layernorm.{*}"),
        ("head.linear.{*}", "classifier.{*}"),
    ],
)

# -- pyramids with the decoder of a segmenter --------------------------------------------------------------------------


def _upernet(norm: str, classifier: str) -> list[tuple[str, str]]:
    """Rows for UPerNet's two heads, whose norms and classifiers go by these names."""
    units = {
        "pooled.{i}": "decode_head.psp_modules.{i}.1",
        "bottleneck": "decode_head.bottleneck",
        "laterals.{i}": "decode_head.lateral_convs.{i}",
        "smooths.{i}": "decode_head.fpn_convs.{i}",
        "fuse": "decode_head.fpn_bottleneck",
        "auxiliary.conv": "auxiliary_head.convs.0",
    }
    parts = {"conv": "conv", "norm": norm}
    return [
        *(
            (f"head.{ours}.{a}.{{*}}", f"{theirs}.{b}.{{*}}")
            for ours, theirs in units.items()
            for a, b in parts.items()
        ),
        ("head.classifier.{*}", f"decode_head.{classifier}.{{*}}"),
        ("head.auxiliary.classifier.{*}", f"auxiliary_head.{classifier}.{{*}}"),
    ]


DENSE_UPERNET = joined(DENSE.rows, _upernet("bn", "conv_seg"))
OPENMMLAB_UPERNET = joined(OPENMMLAB.rows, _upernet("bn", "conv_seg"))
HUGGINGFACE_UPERNET = joined(HUGGINGFACE.rows, _upernet("batch_norm", "classifier"))

_DECODER_BLOCK, _UP_BLOCK = "head.stages.{i}.blocks.{j}.", "layers_up.{i+1}.blocks.{j}."
SWIN_UNET = joined(
    _STEM,
    _MICROSOFT,
    _END,
    _LAST,
    [
        # The first layer of the decoder only expands; each later one expands behind its blocks, the last nothing.
        ("head.expands.0.linear.{*}", "layers_up.0.expand.{*}"),
        ("head.expands.0.norm.{*}", "layers_up.0.norm.{*}"),
        ("head.expands.{i}.linear.{*}", "layers_up.{i}.upsample.expand.{*}"),
        ("head.expands.{i}.norm.{*}", "layers_up.{i}.upsample.norm.{*}"),
        ("head.joins.{i}.{*}", "concat_back_dim.{i+1}.{*}"),
    ],
    _attention(f"{_UP_BLOCK}attn.", f"{_DECODER_BLOCK}attn."),
    [
        (f"{_DECODER_BLOCK}{{*}}", f"{_UP_BLOCK}{{*}}"),
        ("head.norm.{*}", "norm_up.{*}"),
        ("head.final.linear.{*}", "up.expand.{*}"),
        ("head.final.norm.{*}", "up.norm.{*}"),
        ("head.classifier.{*}", "output.{*}"),
    ],
)

# -- ViT, DeiT and hybrids ---------------------------------------------------------------------------------------------

_TRUNK = "backbone.patch_embed.trunk."
_VIT_HEADS = [
    ("head.linear.{*}", "head.{*}"),
    ("head.distilled.{*}", "head_dist.{*}"),
    ("head.norm.{*}", "fc_norm.{*}"),
]
_VIT_LEARNED = [
    ("backbone.class_token", "cls_token"),
    ("backbone.distillation_token", "dist_token"),
    ("backbone.position_embedding", "pos_embed"),
]

_ENCODER_TIMM = [("backbone.blocks.{i}.{*}", "blocks.{i}.{*}"), ("backbone.norms.last.{*}", "norm.{*}")]
_UNITS = f"{_TRUNK}stages.{{i}}.blocks.{{j}}."
_UNITS_TIMM = "patch_embed.backbone.stages.{i}.blocks.{j}."

VIT_TIMM = joined(_VIT_LEARNED, [("backbone.patch_embed.{*}", "patch_embed.{*}")], _ENCODER_TIMM, _VIT_HEADS)
HYBRID_TIMM = joined(
    _VIT_LEARNED,
    [
        (f"{_TRUNK}patch_embed.unit.{{*}}", "patch_embed.backbone.stem.{*}"),
        (f"{_UNITS}shortcut.{{*}}", f"{_UNITS_TIMM}downsample.{{*}}"),
        (f"{_UNITS}units.{{k}}.conv.{{*}}", f"{_UNITS_TIMM}conv{{k+1}}.{{*}}"),
        (f"{_UNITS}units.{{k}}.norm.{{*}}", f"{_UNITS_TIMM}norm{{k+1}}.{{*}}"),
        ("backbone.patch_embed.proj.{*}", "patch_embed.proj.{*}"),
    ],
    _ENCODER_TIMM,
    _VIT_HEADS,
)
_TV_LAYER = "encoder.layers.encoder_layer_{i}."
VIT_TORCHVISION = joined(
    [
        ("backbone.class_token", "class_token"),
        ("backbone.position_embedding", "encoder.pos_embedding"),
        ("backbone.patch_embed.proj.{*}", "conv_proj.{*}"),
        ("backbone.blocks.{i}.norm1.{*}", f"{_TV_LAYER}ln_1.{{*}}"),
        ("backbone.blocks.{i}.attn.qkv.{*}", f"{_TV_LAYER}self_attention.in_proj_{{*}}"),
        ("backbone.blocks.{i}.attn.proj.{*}", f"{_TV_LAYER}self_attention.out_proj.{{*}}"),
        ("backbone.blocks.{i}.norm2.{*}", f"{_TV_LAYER}ln_2.{{*}}"),
        ("backbone.blocks.{i}.mlp.fc1.{*}", f"{_TV_LAYER}mlp.0.{{*}}"),
        ("backbone.blocks.{i}.mlp.fc2.{*}", f"{_TV_LAYER}mlp.3.{{*}}"),
        ("backbone.blocks.{i}.mlp.fc1.{*}", f"{_TV_LAYER}mlp.linear_1.{{*}}"),  # before torchvision 0.13
        ("backbone.blocks.{i}.mlp.fc2.{*}", f"{_TV_LAYER}mlp.linear_2.{{*}}"),
        ("backbone.norms.last.{*}", "encoder.ln.{*}"),
        ("head.linear.{*}", "heads.head.{*}"),
    ]
)
_HF_LAYER = "encoder.layer.{i}."
VIT_HUGGINGFACE = joined(
    [
        ("backbone.class_token", "embeddings.cls_token"),
        ("backbone.distillation_token", "embeddings.distillation_token"),
        ("backbone.position_embedding", "embeddings.position_embeddings"),
        ("backbone.patch_embed.proj.{*}", "embeddings.patch_embeddings.projection.{*}"),
        ("backbone.blocks.{i}.attn.proj.{*}", f"{_HF_LAYER}attention.output.dense.{{*}}"),
        ("backbone.blocks.{i}.attn.{*}", f"{_HF_LAYER}attention.attention.{{*}}"),
        ("backbone.blocks.{i}.norm1.{*}", f"{_HF_LAYER}layernorm_before.{{*}}"),
        ("backbone.blocks.{i}.norm2.{*}", f"{_HF_LAYER}layernorm_after.{{*}}"),
        ("backbone.blocks.{i}.mlp.fc1.{*}", f"{_HF_LAYER}intermediate.dense.{{*}}"),
        ("backbone.blocks.{i}.mlp.fc2.{*}", f"{_HF_LAYER}output.dense.{{*}}"),
        # What version 5 calls them in memory.
        ("backbone.blocks.{i}.attn.query.{*}", "layers.{i}.attention.q_proj.{*}"),
        ("backbone.blocks.{i}.attn.key.{*}", "layers.{i}.attention.k_proj.{*}"),
        ("backbone.blocks.{i}.attn.value.{*}", "layers.{i}.attention.v_proj.{*}"),
        ("backbone.blocks.{i}.attn.proj.{*}", "layers.{i}.attention.o_proj.{*}"),
        ("backbone.blocks.{i}.norm1.{*}", "layers.{i}.layernorm_before.{*}"),
        ("backbone.blocks.{i}.norm2.{*}", "layers.{i}.layernorm_after.{*}"),
        ("backbone.blocks.{i}.mlp.{*}", "layers.{i}.mlp.{*}"),
        ("backbone.norms.last.{*}", "layernorm.{*}"),
        ("head.linear.{*}", "classifier.{*}"),
        ("head.paired.{*}", "cls_classifier.{*}"),
        ("head.distilled.{*}", "distillation_classifier.{*}"),
    ]
)
