"""Whose files we read and write: one `Format` for each, a table of names and the rules that names cannot express.

Where the published classes disagree on maps smaller than a window, the format says which policy its weights knew.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from swindow.checkpoints.buffers import flat_indices, indices_and_coordinates, mirrored_buffers, original_buffers
from swindow.checkpoints.detector_formats import DETECTORS, REFUSED
from swindow.checkpoints.layouts import Format
from swindow.checkpoints.names import (
    DENSE,
    DENSE_UPERNET,
    HUGGINGFACE,
    HUGGINGFACE_UPERNET,
    HYBRID_TIMM,
    MICROSOFT,
    OPENMMLAB,
    OPENMMLAB_UPERNET,
    SIMMIM,
    SWIN_UNET,
    TIMM,
    TORCHVISION,
    VIT_HUGGINGFACE,
    VIT_TIMM,
    VIT_TORCHVISION,
)
from swindow.checkpoints.rules import (
    FlatBlocks,
    FlatPositions,
    FullBias,
    LastNorm,
    PairedHeads,
    ScaleColumns,
    SeparateProjections,
    SpareNorm,
    TokenOfEncoder,
    UnfoldedMerge,
)
from swindow.errors import CheckpointError, UnknownName


def format_named(name: str, kind: str, head: str = "classifier", *, of: tuple[Any, Any] | None = None) -> Format:
    """The format of this name that holds this family with this head.

    Args:
        of: configs of a backbone and a head: of several formats the one that can express them, if any can.

    Raises:
        UnknownName: there is no such format.
        CheckpointError: there is, and it holds other families, or this one with other heads.
    """
    named = [entry for entry in FORMATS if entry.name == name]
    if not named:
        raise UnknownName("format", name, sorted({entry.name for entry in FORMATS} | {"swindow"}))
    of_kind = [entry for entry in named if kind in entry.kinds]
    if not of_kind:
        kinds = ", ".join(dict.fromkeys(kind for entry in named for kind in entry.kinds))
        raise CheckpointError(f"the {name} format cannot hold a {kind}; it holds {kinds}")
    fitting = [entry for entry in of_kind if head in entry.heads]
    if not fitting:
        heads = " or ".join(dict.fromkeys(head for entry in of_kind for head in entry.heads))
        others = sorted({entry.name for entry in FORMATS if kind in entry.kinds and head in entry.heads} | {"swindow"})
        raise CheckpointError(
            f"the {name} format cannot hold a {kind} with a {head} head, only with a {heads}; "
            f"give {' or '.join(others)}"
        )
    able = [entry for entry in fitting if of is not None and entry.refusal(*of) is None]
    return (able or fitting)[0]


def refused(names: Iterable[str]) -> str | None:
    """What to say of a file with these names of tensors, where we know whose it is and that we cannot read it."""
    names = tuple(names)
    return next((says for mark, says in REFUSED.items() if any(re.fullmatch(mark, name) for name in names)), None)


def recognise(names: Iterable[str]) -> Format | None:
    """The format that these names of tensors are from; None when they are from none that we know."""
    names = tuple(names)
    return next((entry for entry in FORMATS if entry.matches(names)), None)


def _not_mirrored(config: Any, head: Any) -> str | None:
    """Swin-Unet's class gives its decoder the encoder's depths and windows, whatever its config says of it."""
    depths = tuple(reversed(config.depths[:-1]))
    if len(config.depths) != 4:
        return f"has 4 stages; this model has {len(config.depths)}"
    if head.decoder_depths != depths or head.decoder_block == "swin_v2":
        return f"has a decoder of the encoder's own blocks, {depths}; this model's is {head.decoder_depths}"
    return (
        None if head.decoder_window is None else f"has the encoder's windows; this decoder's are {head.decoder_window}"
    )


# -- formats, the most particular first --------------------------------------------------------------------------------

_PYRAMIDS = ("swin", "swin_v2")
_AS_PUBLISHED: Mapping[str, tuple[Any, ...]] = {"shifted": (True,), "relative_bias": (True,)}
_WITH_CLASS_TOKEN: Mapping[str, tuple[Any, ...]] = {"class_token": (True,), "pool": ("token", "tokens")}
_WITH_BATCH_NORM: Mapping[str, tuple[Any, ...]] = {**_AS_PUBLISHED, "decoder_norm": ("batch",)}
_OF_UPERNET = r"decode_head\.fpn_bottleneck\.conv\.weight"
_FIRST = r"layers\.0\.blocks\.0\.norm1\.weight"

FORMATS = (
    *DETECTORS,
    Format(
        name="swin_unet",
        about="the original Swin-Unet's",
        kinds=("swin",),
        heads=("unet",),
        table=SWIN_UNET,
        rules=(FlatPositions(), LastNorm()),
        marks=(_FIRST, r"layers_up\.0\.expand\.weight"),
        outer="swin_unet.",
        small_maps="shrink",
        buffers=mirrored_buffers,
        one_window=True,
        allowed={**_AS_PUBLISHED, "patch": (4,)},  # its last layer enlarges four times whatever the patch
        objection=_not_mirrored,
    ),
    Format(
        name="openmmlab",
        about="mmsegmentation's UPerNet",
        kinds=_PYRAMIDS,
        heads=("upernet",),
        table=OPENMMLAB_UPERNET,
        rules=(UnfoldedMerge(), ScaleColumns()),
        marks=(r"backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight", _OF_UPERNET),
        prefix="backbone.",
        small_maps="pad_shift",
        buffers=indices_and_coordinates,
        one_window=True,
        allowed=_WITH_BATCH_NORM,
        entry="state_dict",
        with_meta=True,
    ),
    Format(
        name="microsoft_dense",
        about="the UPerNet of Microsoft's segmentation fork",
        kinds=_PYRAMIDS,
        heads=("upernet",),
        table=DENSE_UPERNET,
        rules=(ScaleColumns(), FlatPositions(as_map=True)),
        marks=(rf"backbone\.{_FIRST}", _OF_UPERNET),
        prefix="backbone.",
        small_maps="pad_shift",
        buffers=indices_and_coordinates,
        allowed=_WITH_BATCH_NORM,
        entry="state_dict",
        with_meta=True,
    ),
    Format(
        name="huggingface",
        about="transformers' UperNet on a Swin (on a Swinv2 it has no norms between them)",
        kinds=("swin",),
        heads=("upernet",),
        table=HUGGINGFACE_UPERNET,
        rules=(SeparateProjections(), FlatPositions(), SpareNorm()),
        marks=(r"backbone\.(swin\.)?encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight", _OF_UPERNET),
        prefix="backbone.",
        inner=lambda config: "",
        small_maps="pad_shift",
        one_window=True,
        allowed=_WITH_BATCH_NORM,
    ),
    Format(
        name="torchvision",
        about="torchvision's swin_t, swin_s, swin_b and swin_v2_*",
        kinds=_PYRAMIDS,
        table=TORCHVISION,
        rules=(FullBias(), ScaleColumns(), LastNorm()),
        marks=(r"features\.0\.0\.weight", r"features\.1\.0\.attn\.qkv\.weight"),
        buffers=flat_indices,
        one_window=True,
        allowed={**_AS_PUBLISHED, "qkv_bias": (True,), "extra_norm_every": (0,)},
    ),
    Format(
        name="openmmlab",
        about="OpenMMLab's detection and segmentation models, and mmpretrain's",
        kinds=_PYRAMIDS,
        table=OPENMMLAB,
        rules=(UnfoldedMerge(), ScaleColumns()),
        marks=(r"backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight",),
        prefix="backbone.",
        small_maps="pad_shift",
        buffers=indices_and_coordinates,
        one_window=True,
        entry="state_dict",
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="huggingface",
        about="transformers' Swin and Swinv2",
        kinds=_PYRAMIDS,
        table=HUGGINGFACE,
        rules=(SeparateProjections(), ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(r"(swin\.|swinv2\.)?encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",),
        small_maps="shrink",
        inner=lambda config: {"swin": "swin.", "swin_v2": "swinv2."}[config.kind],
        one_window=True,
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="microsoft_simmim",
        about="Microsoft's SimMIM pretraining, whole",
        kinds=_PYRAMIDS,
        heads=("simmim",),
        table=SIMMIM,
        rules=(ScaleColumns(), FlatPositions(), LastNorm(), TokenOfEncoder()),
        marks=(rf"encoder\.{_FIRST}", r"encoder\.mask_token", r"decoder\.0\.weight"),
        prefix="encoder.",
        small_maps="shrink",
        buffers=original_buffers,
        entry="model",
        allowed={"shifted": (True,), "in_channels": (3,)},
    ),
    Format(
        name="microsoft_simmim",
        about="the encoder of Microsoft's SimMIM pretraining",
        kinds=_PYRAMIDS,
        headless=True,
        table=MICROSOFT,
        rules=(ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(rf"encoder\.{_FIRST}",),
        prefix="encoder.",
        small_maps="shrink",
        buffers=original_buffers,
        entry="model",
        allowed={"shifted": (True,)},
    ),
    Format(
        name="microsoft_dense",
        about="the backbone of Microsoft's detection and segmentation forks",
        kinds=_PYRAMIDS,
        headless=True,
        table=DENSE,
        rules=(ScaleColumns(), FlatPositions(as_map=True)),
        marks=(rf"backbone\.{_FIRST}",),
        prefix="backbone.",
        small_maps="pad_shift",
        buffers=indices_and_coordinates,
        entry="state_dict",
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="microsoft",
        about="Microsoft's SwinMLP",
        kinds=("swin_mlp",),
        table=MICROSOFT,
        rules=(FlatPositions(), LastNorm()),
        marks=(_FIRST, r"layers\.0\.blocks\.0\.spatial_mlp\.weight"),
        small_maps="shrink",
        entry="model",
        allowed={"shifted": (True,)},
    ),
    Format(
        name="timm",
        about="timm's swin_*, swinv2_* and swin_s3_* since 0.9",
        kinds=_PYRAMIDS,
        table=TIMM,
        rules=(ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(_FIRST,),
        unlike=(r"layers\.0\.downsample\..+", r"head\.weight"),
        small_maps="shrink",
        allowed={**_AS_PUBLISHED, "absolute_position": (False,), "extra_norm_every": (0,)},
    ),
    Format(
        name="microsoft",
        about="Microsoft's own classification files, and timm's before 0.9",
        kinds=_PYRAMIDS,
        table=MICROSOFT,
        rules=(ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(_FIRST,),
        small_maps="shrink",
        buffers=original_buffers,
        entry="model",
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="torchvision",
        about="torchvision's vit_*",
        kinds=("vit",),
        table=VIT_TORCHVISION,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight"),
        allowed={**_WITH_CLASS_TOKEN, "qkv_bias": (True,)},
    ),
    Format(
        name="huggingface",
        about="transformers' ViT and DeiT",
        kinds=("vit",),
        table=VIT_HUGGINGFACE,
        rules=(SeparateProjections(), PairedHeads(), FlatBlocks(), LastNorm()),
        marks=(r"(vit\.|deit\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight",),
        inner=lambda config: "deit." if config.distillation_token else "vit.",
        allowed=_WITH_CLASS_TOKEN,
    ),
    Format(
        name="timm",
        about="timm's hybrids, vit_*_r*",
        kinds=("hybrid",),
        table=HYBRID_TIMM,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"pos_embed", r"patch_embed\.backbone\.stem\.conv\.weight"),
    ),
    Format(
        name="timm",
        about="timm's vit_* and deit_*",
        kinds=("vit",),
        table=VIT_TIMM,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"pos_embed", r"blocks\.0\.attn\.qkv\.weight"),
    ),
    Format(
        name="facebook",
        about="facebook's DeiT, whose names are timm's",
        kinds=("vit",),
        table=VIT_TIMM,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"pos_embed", r"blocks\.0\.attn\.qkv\.weight"),
        entry="model",
        allowed=_WITH_CLASS_TOKEN,
    ),
)
