"""Writes docs/models.md: every variant, what it costs, whose weights there are, whose formats it goes into and out of;
segmenters and detectors, and the fields of their heads.

python docs/models_table.py            writes the page; a test compares it with what this would write
"""

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

import torch

from swindow.backbones import VARIANTS
from swindow.checkpoints.formats import FORMATS
from swindow.checkpoints.hub import NAMED
from swindow.counting import count
from swindow.heads import (
    CascadeMaskRcnnConfig,
    DetrConfig,
    RcnnConfig,
    RegionConfig,
    RetinaNetConfig,
    SegmenterConfig,
    SimMimConfig,
    UNetConfig,
    UperNetConfig,
)
from swindow.heads.detect import DetectorConfig
from swindow.model import build

PAGE = Path(__file__).with_name("models.md")
HEAD = """# Models

Every variant that `swindow.build`, `swindow.backbone` and `swindow train --model` know; any field of any of them is a
keyword. Parameters with 1,000 classes; MACs of one image at the size the model is made for, in the convention of its
paper (`swindow info NAME --size H W` counts at any other). Published weights load by name, as in
`swindow.load("swin_tiny.ms_in1k")`; formats are those that tests prove in both directions against the other library,
or, for Microsoft's and OpenMMLab's, against an independent model of their names and equations.

[Segmenters](#segmenters) put a UPerNet or a U-Net decoder behind any of them: `upernet_swin_tiny`, `unet_swin_micro`.
[Detectors](#detectors) put a Mask R-CNN, a cascade, a RetinaNet or a DETR there: `mask_rcnn_swin_tiny`.
[Painters](#pretraining-without-labels) teach a backbone without labels: `simmim_swin_tiny`.

This page is written by `python docs/models_table.py`.
"""
SEGMENTERS = """
## Segmenters

Any variant above after `upernet_` ([Xiao et al. 2018](https://arxiv.org/abs/1807.10221), 150 classes) or `unet_`
([Swin-Unet's decoder](https://arxiv.org/abs/2105.05537), 9 classes) names the class of every pixel, of images of any
size. A ViT's maps of one size become a pyramid first ([ViTDet](https://arxiv.org/abs/2203.16527), section 3).
`swin_unet` is the published model; `swin_unet_v2` is ours, with V2's blocks. `swindow models 'upernet_*'` lists and
counts all. MACs as the papers count them: UPerNet computes the same in little more than half as many
(`swindow.heads.enlarging`).

| model | parameters | G MACs | at | formats |
|---|---:|---:|---:|---|
"""
NAMES = (
    *(f"upernet_swin_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"upernet_swin_v2_{size}" for size in ("tiny_w8", "base_w8")),
    *("upernet_vit_base", "upernet_resnet_50"),
    *("swin_unet", "swin_unet_v2", "unet_resnet_50", "unet_swin_micro"),
)
DETECTORS = """
## Detectors

Any variant above after `mask_rcnn_` ([He et al. 2017](https://arxiv.org/abs/1703.06870); without masks it is Faster
R-CNN), `cascade_mask_rcnn_` ([Cai and Vasconcelos 2019](https://arxiv.org/abs/1906.09756), as published with Swin),
`retinanet_` ([Lin et al. 2017](https://arxiv.org/abs/1708.02002)) or `detr_`
([Carion et al. 2020](https://arxiv.org/abs/2005.12872)) finds objects: boxes, and masks where it was taught them. 80
classes; `detr_resnet50` and `detr_resnet101` are the published models, with 91 and a stem and a first stage that do not
learn. MACs with 1,000 regions for each box head and 100 for each mask head, as the papers count them.
`swindow models 'mask_rcnn_*'` lists and counts all.

| model | parameters | G MACs | at | formats |
|---|---:|---:|---:|---|
"""
FINDERS = (
    *(f"{head}_swin_{size}" for head in ("mask_rcnn", "cascade_mask_rcnn") for size in ("tiny", "small", "base")),
    *(f"{head}_swin_v2_tiny_w8" for head in ("mask_rcnn", "cascade_mask_rcnn")),
    *("mask_rcnn_resnet_50", "mask_rcnn_vit_base", "retinanet_swin_tiny", "retinanet_resnet_50"),
    *("detr_resnet50", "detr_resnet101", "detr_swin_tiny"),
)
PAINTERS = """
## Pretraining without labels

Any Swin, Swin V2, ViT or DeiT above after `simmim_` ([Xie et al. 2022](https://arxiv.org/abs/2111.09886)) learns to
paint what is hidden of images: [how](pretrain.md). Its backbone is an ordinary one. `swindow models 'simmim_*'` lists
and counts all. Formats: {formats}.

| field | default | |
|---|---|---|
"""
FIELDS = """
### Fields of their heads

Keywords of `swindow.build` like those of the backbone, and of `--fields` in `swindow train`. A loss's weight is what it
is multiplied with before the losses are added; a pixel labelled as ignored counts in none of them.
"""
DETECTOR_FIELDS: tuple[tuple[str, type, str], ...] = (
    ("All", DetectorConfig, ""),
    ("Mask R-CNN and cascade", RcnnConfig, ""),
    ("their proposals", RegionConfig, "regions."),
    ("cascade", CascadeMaskRcnnConfig, ""),
    ("RetinaNet", RetinaNetConfig, ""),
    ("DETR", DetrConfig, ""),
)
ABOUT = {
    "swin": ("Swin", "[Liu et al. 2021](https://arxiv.org/abs/2103.14030); S3: [Chen et al. 2021]"
             "(https://arxiv.org/abs/2111.14725); `nano` and `micro` are ours, for small images"),
    "swin_v2": ("Swin V2", "[Liu et al. 2022](https://arxiv.org/abs/2111.09883); `giant`: "
                "[Xie et al. 2023](https://arxiv.org/abs/2206.04664)"),
    "swin_mlp": ("Swin-MLP", "spatial MLPs in place of attention; Swin paper, table 10"),
    "swin_moe": ("Swin-MoE", "[Hwang et al. 2022](https://arxiv.org/abs/2206.03382); the original's weights are "
                 "sharded by Tutel and do not load"),
    "vit": ("ViT and DeiT", "[Dosovitskiy et al. 2021](https://arxiv.org/abs/2010.11929), "
            "[Touvron et al. 2021](https://arxiv.org/abs/2012.12877)"),
    "hybrid": ("Hybrids", "a ResNet in front of a ViT; any other pyramid with `HybridConfig(trunk=…)`"),
    "resnet": ("ResNet", "[He et al. 2016](https://arxiv.org/abs/1512.03385); a trunk for hybrids and heads"),
}  # fmt: skip


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for kind, (title, about) in ABOUT.items():
        parts.append(f"\n## {title}\n\n{about}.\nFormats: {formats(kind, 'classifier')}.\n")
        parts.append("| variant | parameters | G MACs | at | published weights |\n|---|---:|---:|---:|---|")
        parts += [row(name) for name, config in VARIANTS.items() if config.kind == kind]
    parts.append(SEGMENTERS + "\n".join(map(segmenter_row, NAMES)))
    parts.append(FIELDS)
    for title, head in (("Both", SegmenterConfig), ("UPerNet", UperNetConfig), ("U-Net", UNetConfig)):
        parts.append(f"| {title} | default | |\n|---|---|---|\n" + "\n".join(field_rows(head)) + "\n")
    parts.append(DETECTORS + "\n".join(map(detector_row, FINDERS)))
    parts.append("\n### Their fields\n\n`regions.…` are fields of the proposals: `--fields regions.scales 4`.\n")
    for title, head, before in DETECTOR_FIELDS:
        parts.append(f"| {title} | default | |\n|---|---|---|\n" + "\n".join(field_rows(head, before)) + "\n")
    parts.append(PAINTERS.format(formats=formats("swin", "simmim")) + "\n".join(field_rows(SimMimConfig)))
    return "\n".join(parts).rstrip() + "\n"


def formats(kind: str, head: str) -> str:
    """Names of the formats that hold a family with a head."""
    named = dict.fromkeys(form.name for form in FORMATS if kind in form.kinds and head in form.heads)
    return ", ".join(named) or "swindow only"


def row(name: str) -> str:
    """A variant's line of the table."""
    with torch.device("meta"):
        model = build(name)
    size = getattr(model.config.backbone, "image_size", 224)
    counts = count(model, size)
    tags = [f"`.{entry.name.split('.')[1]}`" for entry in NAMED.values() if entry.name.split(".")[0] == name]
    return f"| `{name}` | {counts.parameters:,} | {counts.macs / 1e9:,.2f} | {size} | {' '.join(tags)} |"


def segmenter_row(name: str) -> str:
    """A segmenter's line of the table."""
    with torch.device("meta"):
        model = build(name)
    shape, head = model.config.backbone, model.config.head
    size = 512 if head.kind == "upernet" else 224
    counts = count(model, size)
    held = formats(shape.kind, head.kind) if len(shape.channels) == 4 else "swindow only"  # as those classes have it
    return f"| `{name}` | {counts.parameters:,} | {counts.macs / 1e9:,.2f} | {size} | {held} |"


def detector_row(name: str) -> str:
    """A detector's line of the table."""
    with torch.device("meta"):
        model = build(name)
    shape, head = model.config.backbone, model.config.head
    size = (800, 1066) if head.kind == "detr" else (800, 1280)
    counts = count(model, size)
    held = formats(shape.kind, head.kind)
    cost = f"{counts.macs / 1e9:,.1f}"
    return f"| `{name}` | {counts.parameters:,} | {cost} | {size[0]}×{size[1]} | {held} |"


def field_rows(head: type, before: str = "") -> list[str]:
    """A line for each field that a head's config adds to its parent's or changes: name, default, docstring."""
    body = next(node.body for node in ast.parse(inspect.getsource(head)).body if isinstance(node, ast.ClassDef))
    values = {field.name: field.default for field in dataclasses.fields(head)}
    lines = []
    for node, after in itertools.pairwise(body):
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and documented:
            about = " ".join(str(after.value.value).replace("``", "`").split())
            value = values[node.target.id]
            shown = "below" if dataclasses.is_dataclass(value) else f"`{value!r}`"
            lines.append(f"| `{before}{node.target.id}` | {shown} | {about} |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
