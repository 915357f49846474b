"""One image through a model, part by part: what its blocks attended to, and which tokens speak for a class."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from swindow.backbones import WindowedBackbone
from swindow.explanation import windows
from swindow.explanation.windows import Layout, Step
from swindow.model import Model
from swindow.ops.windows import Size
from swindow.shapes import Images


class BlockTrace(NamedTuple):
    """What one block did with one image: maps for every head, and its link in the chain."""

    step: Step
    received: Float[Tensor, "N H W"]
    padding: Float[Tensor, " N"]
    given: Float[Tensor, "N H W"]
    given_padding: Float[Tensor, " N"]
    view: Bool[Tensor, "H W"]


class ClassMap(NamedTuple):
    """The logits of an image, the class explained, and how much each token of a stage speaks for it."""

    logits: Float[Tensor, " K"]
    target: int
    heat: Float[Tensor, "H W"]


def grad_cam(model: Model, images: Images, target: int | None, stage: int) -> ClassMap:
    """Gradient-weighted class activation of a stage's map for one image (Selvaraju et al. 2017, section 3).

    The last stage is taken after its norm, where the head reads it: there the tokens' mean before the ReLU is the
    logit less the head's bias. `target` None means the class with the highest logit. No gradient reaches a parameter.
    """
    backbone, last = model.backbone, len(model.backbone.stages) - 1
    with torch.no_grad():
        x = backbone.stage_maps(images)[stage]
        x = backbone.norms[str(last)](x) if stage == last else x
    with torch.enable_grad():
        logits = _rest(model, x.requires_grad_(), stage)
        index = int(logits[0].argmax()) if target is None else target
        (gradient,) = torch.autograd.grad(logits[0, index], x)
    heat = (x * gradient.mean(dim=(1, 2), keepdim=True)).sum(-1)[0].relu()
    return ClassMap(logits[0].detach(), index, heat.detach())


@torch.no_grad()
def trace(backbone: WindowedBackbone, images: Images, tokens: list[Size]) -> list[list[BlockTrace]]:
    """Every block of every stage for one image, with what one token of each stage takes from its window."""
    x, traces = backbone.embed(images), []
    stages: list[Any] = list(backbone.stages)  # a ModuleList does not say of what
    for stage, token in zip(stages, tokens, strict=True):
        blocks = []
        for block in stage.blocks:
            blocks.append(_trace_block(block, x, token))
            x = block(x)
        traces.append(blocks)
        x = x if stage.merge is None else stage.merge(x)
    return traces


def layout_of(block: Any, grid: Size) -> Layout:
    """How a block cuts a map of this size."""
    return Layout(grid, block.attn.window, block.attn.windowing.shift_at(*grid))


def _trace_block(block: Any, x: Tensor, token: Size) -> BlockTrace:
    layout = layout_of(block, (x.shape[1], x.shape[2]))
    raw = block.attn.attention_weights(block.norm1(x) if block.norm_first else x)[0]
    weights, lost = windows.without_padding(raw, layout)
    own = windows.cut(windows.one_hot(layout.grid, token, raw), layout)
    return BlockTrace(
        step=Step(layout, raw.mean(1)),
        received=windows.received(weights, layout),
        padding=windows.mean_over_queries(lost, layout),
        given=windows.given(weights, layout, token),
        given_padding=torch.einsum("gq,gnq->n", own, lost),
        view=windows.view(layout, token),
    )


def _rest(model: Model, x: Tensor, stage: int) -> Tensor:
    """Logits from the map of `stage`: merged and through the later stages and the norm, unless it is the last."""
    stages: list[Any] = list(model.backbone.stages)
    for index in range(stage, len(stages) - 1):
        x = stages[index + 1](stages[index].merge(x))
    if stage < len(stages) - 1:
        x = model.backbone.norms[str(len(stages) - 1)](x)
    return model.head.decode(model.head((x,)))
