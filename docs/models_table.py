"""Writes docs/models.md: every variant, what it costs, whose weights there are, whose formats it goes into and out of.

python docs/models_table.py            writes the page; a test compares it with what this would write
"""

from pathlib import Path

import torch

from swindow.backbones import VARIANTS
from swindow.checkpoints.formats import FORMATS
from swindow.checkpoints.hub import NAMED
from swindow.counting import count
from swindow.model import build

PAGE = Path(__file__).with_name("models.md")
HEAD = """# Models

Every variant that `swindow.build`, `swindow.backbone` and `swindow train --model` know; any field of any of them is a
keyword. Parameters with 1,000 classes; MACs of one image at the size the model is made for, in the convention of its
paper (`swindow info NAME --size H W` counts at any other). Published weights load by name, as in
`swindow.load("swin_tiny.ms_in1k")`; formats are those that tests prove in both directions against the other library,
or, for Microsoft's and OpenMMLab's, against an independent model of their names and equations.

This page is written by `python docs/models_table.py`.
"""
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
        formats = (
            ", ".join(dict.fromkeys(form.name for form in FORMATS if kind in form.kinds and "classifier" in form.heads))
            or "swindow only"
        )
        parts.append(f"\n## {title}\n\n{about}.\nFormats: {formats}.\n")
        parts.append("| variant | parameters | G MACs | at | published weights |\n|---|---:|---:|---:|---|")
        parts += [row(name) for name, config in VARIANTS.items() if config.kind == kind]
    return "\n".join(parts) + "\n"


def row(name: str) -> str:
    """A variant's line of the table."""
    with torch.device("meta"):
        model = build(name)
    size = getattr(model.config.backbone, "image_size", 224)
    counts = count(model, size)
    tags = [f"`.{entry.name.split('.')[1]}`" for entry in NAMED.values() if entry.name.split(".")[0] == name]
    return f"| `{name}` | {counts.parameters:,} | {counts.macs / 1e9:,.2f} | {size} | {' '.join(tags)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
