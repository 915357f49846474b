"""One image through a model, part by part: what its blocks attended to, and which tokens speak for a class."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from swindow.backbones import Backbone, ViT, WindowedBackbone
from swindow.backbones.windowed import Stage
from swindow.errors import ConfigError
from swindow.explanation import windows
from swindow.explanation.scoring import Detector, logit_of
from swindow.explanation.windows import Layout, Step
from swindow.heads import Classifier, SegmenterOutputs, UNet, UperNet
from swindow.model import Model
from swindow.objects import Detections, Frames
from swindow.ops.windows import Size, count, crop
from swindow.shapes import Images, Pyramid, Tokens

Segmenter = UperNet | UNet


class BlockTrace(NamedTuple):
    """What one block did with one image: maps for every head, and its link in the chain."""

    step: Step
    received: Float[Tensor, "N H W"]
    padding: Float[Tensor, " N"]
    given: Float[Tensor, "N H W"]
    given_padding: Float[Tensor, " N"]
    view: Bool[Tensor, "H W"]


class Trail(NamedTuple):
    """One image through a segmenter: its blocks by stage, and the logits at the image's size that they led to."""

    encoder: list[list[BlockTrace]]
    decoder: list[list[BlockTrace]]
    """Of a U-Net, coarsest first; empty without one."""
    logits: Float[Tensor, "1 K h w"]


class Evidence(NamedTuple):
    """How much each token of a stage's map speaks for what is asked."""

    averaged: Float[Tensor, "H W"]
    """Grad-CAM: a channel's weight is the mean of its gradients (of segmenters Vinogradova et al. 2020)."""
    local: Float[Tensor, "H W"]
    """Every place with its own gradients (HiResCAM, Draelos & Carin 2020; of segmenters Rheude et al. 2024)."""


class Walk(NamedTuple):
    """One image through a backbone, with gradients: what stands for each stage's map, and what the head reads."""

    parts: list[list[Tensor]]
    """Of each stage its map, and that after a norm where the head reads it so; of the last only what the head reads."""
    pyramid: Pyramid
    as_map: Callable[[Tensor], Tensor]
    """A part, or its gradient, as ``B H W C``."""


class ClassMap(NamedTuple):
    """The logits of an image, the class explained, and how much each token of a stage speaks for it."""

    logits: Float[Tensor, " K"]
    target: int
    heat: Float[Tensor, "H W"]


def windowed(model: Model) -> WindowedBackbone:
    """The model's backbone, whose window attention there is to explain.

    Raises:
        ConfigError: it has none.
    """
    body = model.backbone
    if not isinstance(body, WindowedBackbone) or not has_window_attention(model):
        raise ConfigError(f"{model.config.name} has no window attention to explain; explain takes Swin and Swin V2")
    return body


def has_window_attention(model: Model) -> bool:
    """Whether the blocks of the model's backbone attend in windows."""
    body = model.backbone
    return isinstance(body, WindowedBackbone) and all(hasattr(block, "attn") for block in body.blocks())


def grad_cam(model: Model, images: Images, target: int | None, stage: int) -> ClassMap:
    """Gradient-weighted class activation of a stage's map for one image (Selvaraju et al. 2017, section 3).

    The last stage is taken after its norm, where the head reads it: there the tokens' mean before the ReLU is the
    logit less the head's bias. `target` None means the class with the highest logit. No gradient reaches a parameter.
    """
    backbone, last = windowed(model), len(model.backbone.stages) - 1
    with torch.no_grad():
        x = backbone.stage_maps(images)[stage]
        x = backbone.norms[str(last)](x) if stage == last else x
    with torch.enable_grad():
        logits = _rest(model, x.requires_grad_(), stage)
        index = int(logits[0].argmax()) if target is None else target
        (gradient,) = torch.autograd.grad(logits[0, index], x)
    heat = (x * gradient.mean(dim=(1, 2), keepdim=True)).sum(-1)[0].relu()
    return ClassMap(logits[0].detach(), index, heat.detach())


def pixel_evidence(
    model: Model, images: Images, score: Callable[[Float[Tensor, "1 K h w"]], Float[Tensor, ""]]
) -> list[Evidence]:
    """What speaks for a number made of a segmenter's logits in the map of every stage.

    Gradients come to a stage's map by every way that leads on: through the later stages, and through the head where
    that reads it. Where the head reads it after a norm (UPerNet on a Swin), the normed map counts too, with its own
    gradients: a norm's gradient is orthogonal to its input, so that by the map alone the head's reading would count
    for nothing. For the same reason the last map is taken after its norm, and of a U-Net its places count by what the
    decoder first expands them to.
    """
    head = cast(Segmenter, model.head)
    with torch.enable_grad():
        parts, pyramid, as_map = walk(model.backbone, images)
        outputs, expanded = _through_head(head, pyramid, lambda stage, x: stage(x))
        number = score(head.decode(outputs, (images.shape[2], images.shape[3])))
        asked = [x for part in parts for x in part] + expanded[:1]
        gradients = iter(torch.autograd.grad(number, asked))
    pairs = [[(as_map(x.detach()), as_map(next(gradients))) for x in part] for part in parts]
    found = [Evidence(_averaged(part), _local(part).relu()) for part in pairs]
    if expanded:
        local = _local([(expanded[0].detach(), next(gradients))])
        if head.pyramid is None:  # else the head made its coarsest map of 2x2 tokens, which lie where they lay before
            local = F.avg_pool2d(local[None], 2, ceil_mode=True, divisor_override=1)[0]
        found[-1] = found[-1]._replace(local=local.relu())
    return found


def object_evidence(
    model: Model, images: Images, frames: Frames, choose: Callable[[Detections], int]
) -> tuple[Detections, int, list[Evidence]]:
    """What a detector finds in one picture, which of it is chosen, and what speaks for that in the map of every stage.

    The number explained is the logit by which the chosen one was scored. Gradients come to a map and to what the head
    reads of it as in `pixel_evidence`; cells that lie in no picture are left out.
    """
    head = cast(Detector, model.head)
    with torch.enable_grad():
        parts, pyramid, as_map = walk(model.backbone, images)
        outputs = head(pyramid, frames)
        with torch.no_grad():
            found = head.decode(outputs)[0]
        chosen = choose(found)
        asked = [x for part in parts for x in part]
        gradients = iter(torch.autograd.grad(logit_of(head, outputs, found, chosen), asked, materialize_grads=True))
    evidence = []
    for part, stride in zip(parts, model.backbone.config.strides, strict=False):
        rows, columns = (count(side, stride) for side in frames.sizes[0])
        pairs = [(as_map(x.detach()), as_map(next(gradients))) for x in part]
        inside = [(x[:, :rows, :columns], gradient[:, :rows, :columns]) for x, gradient in pairs]
        evidence.append(Evidence(_averaged(inside), _local(inside).relu()))
    return found, chosen, evidence


@torch.no_grad()
def trace(
    backbone: WindowedBackbone, images: Images, tokens: list[Size], size: Size | None = None
) -> list[list[BlockTrace]]:
    """Every block of the stages that are read for one image, with what one token of each takes from its window.

    `size` is the height and width of the picture in the image where its right and lower border is padding: maps are
    then of the picture's tokens, and what goes to others counts as going to padding.
    """
    return _trace_stages(backbone, images, tokens, size)[1]


@torch.no_grad()
def trace_segmenter(model: Model, images: Images, tokens: list[Size]) -> Trail:
    """`trace` of a segmenter, and of its decoder where that has blocks; a decoder's map has the encoder's tokens.

    Without window attention in the backbone there are no blocks to show, of a decoder neither: only the logits.
    """
    if not has_window_attention(model):
        return Trail([], [], model(images))
    encoder, pyramid = _trace_encoder(windowed(model), images, tokens)
    head, decoder, left = cast(Segmenter, model.head), list[list[BlockTrace]](), tokens[-2::-1]

    def run(stage: Stage, x: Tokens) -> Tokens:
        x, blocks = _trace_stage(stage, x, left[len(decoder)])
        decoder.append(blocks)
        return x

    outputs, _ = _through_head(head, pyramid, run)
    return Trail(encoder, decoder, head.decode(outputs, (images.shape[2], images.shape[3])))


def layout_of(block: Any, canvas: Size, grid: Size | None = None) -> Layout:
    """How a block cuts a map of this size, of which `grid` tokens may be the picture's and the rest its padding."""
    shift = block.attn.windowing.shift_at(*canvas)
    return Layout(grid or canvas, block.attn.window, shift, None if grid in (None, canvas) else canvas)


def _trace_encoder(
    backbone: WindowedBackbone, images: Images, tokens: list[Size]
) -> tuple[list[list[BlockTrace]], Pyramid]:
    """The blocks, and what the head reads."""
    (entries, maps), traces = _trace_stages(backbone, images, tokens)
    return traces, (*_skips(backbone, entries, maps), _normed(backbone, maps[-1]))


def _trace_stages(
    backbone: WindowedBackbone, images: Images, tokens: list[Size], size: Size | None = None
) -> tuple[tuple[list[Tensor], list[Tensor]], list[list[BlockTrace]]]:
    """What enters every stage and what it makes of it, and its blocks."""
    x, traces, entries, maps = backbone.embed(images), [], [], []
    for stage, token, stride in zip(_read_stages(backbone), tokens, backbone.config.strides, strict=False):
        grid = None if size is None else (count(size[0], stride), count(size[1], stride))
        entries.append(x)
        x, blocks = _trace_stage(stage, x, token, grid)
        traces.append(blocks)
        maps.append(x)
        x = _merged(stage, x)
    return (entries, maps), traces


def _through_head(
    head: Segmenter, pyramid: Pyramid, run: Callable[[Stage, Tokens], Tokens]
) -> tuple[SegmenterOutputs, list[Tensor]]:
    """The head's outputs; of a U-Net as in `UNet.forward`, its stages run by `run`, and what it expanded on the way."""
    if not isinstance(head, UNet):
        return head(pyramid), []
    maps = pyramid if head.pyramid is None else head.pyramid(pyramid)
    x, expanded = maps[-1], list[Tensor]()
    for expand, join, stage, skip in zip(head.expands, head.joins, head.stages, reversed(maps[:-1]), strict=True):
        expanded.append(crop(expand(x), (skip.shape[1], skip.shape[2])))
        x = run(cast(Stage, stage), join(torch.cat([expanded[-1], skip], dim=-1)))
    x = head.final(head.norm(x))
    return SegmenterOutputs(logits=head.classifier(x.permute(0, 3, 1, 2))), expanded


def _trace_stage(stage: Any, x: Tokens, token: Size, grid: Size | None = None) -> tuple[Tokens, list[BlockTrace]]:
    blocks = []
    for block in stage.blocks:
        blocks.append(_trace_block(block, x, token, grid))
        x = block(x)
    return x, blocks


def _trace_block(block: Any, x: Tensor, token: Size, grid: Size | None) -> BlockTrace:
    layout = layout_of(block, (x.shape[1], x.shape[2]), grid)
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


def walk(body: Backbone, images: Images) -> Walk:
    """The image through the backbone; its parts carry gradients even where no parameter does."""
    images = images.detach().requires_grad_()
    if isinstance(body, WindowedBackbone):
        return _walk_windowed(body, images)
    if isinstance(body, ViT):  # a stage hands on its whole sequence, learned tokens too: maps alone would miss that way
        sequences, grid = body.sequences(images)
        normed = [body.norm(sequences[stage], stage) for stage in body.out_stages]
        pyramid = tuple(body.as_map(x, grid) for x in normed)
        return Walk(_parts(sequences, normed, body.out_stages), pyramid, lambda x: body.as_map(x, grid))
    maps = body.stage_maps(images)
    return Walk([[x] for x in maps], tuple(maps[stage] for stage in body.out_stages), lambda x: x)


def _walk_windowed(body: WindowedBackbone, images: Images) -> Walk:
    x, entries, maps = body.embed(images), list[Tensor](), list[Tensor]()
    for stage in _read_stages(body):
        entries.append(x)
        maps.append(stage(x))
        x = _merged(stage, maps[-1])
    pyramid = (*_skips(body, entries, maps), _normed(body, maps[-1]))
    if body.entries:
        return Walk([*([x] for x in maps[:-1]), [pyramid[-1]]], pyramid, lambda x: x)
    return Walk(_parts(maps, pyramid, body.out_stages), pyramid, lambda x: x)


def _parts(maps: Sequence[Tensor], normed: Sequence[Tensor], out_stages: tuple[int, ...]) -> list[list[Tensor]]:
    """Of each stage its map, and that which the head reads of it, if any; of the last only that."""
    read = dict(zip(out_stages, normed, strict=True))
    return [*([x, read[stage]] if stage in read else [x] for stage, x in enumerate(maps[:-1])), [normed[-1]]]


def _read_stages(body: WindowedBackbone) -> list[Stage]:
    """The stages up to the last that the head reads; no detection depends on a later one."""
    return body.each_stage()[: body.out_stages[-1] + 1]


def _merged(stage: Stage, x: Tokens) -> Tensor:
    """What the stage's map becomes for the next."""
    return x if stage.merge is None else stage.merge(x)


def _skips(backbone: WindowedBackbone, entries: list[Tensor], maps: list[Tensor]) -> Pyramid:
    """All that the head reads before the last map, as `WindowedBackbone.forward` gives it."""
    if backbone.entries:
        return tuple(entries[stage] for stage in backbone.out_stages[:-1])
    return tuple(backbone.norms[str(stage)](maps[stage]) for stage in backbone.out_stages[:-1])


def _normed(backbone: WindowedBackbone, last: Tensor) -> Tensor:
    return backbone.norms[str(backbone.out_stages[-1])](last)


def _averaged(parts: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "H W"]:
    """Channels of maps weighed by the means of their gradients, summed, what speaks against the number cut off."""
    heat = [(x * gradient.mean(dim=(1, 2), keepdim=True)).sum(-1)[0] for x, gradient in parts]
    return torch.stack(heat).sum(0).relu()


def _local(parts: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "H W"]:
    """Every place of maps weighed by its own gradients, summed over channels."""
    return torch.stack([(x * gradient).sum(-1)[0] for x, gradient in parts]).sum(0)


def _rest(model: Model, x: Tensor, stage: int) -> Tensor:
    """Logits from the map of `stage`: merged and through the later stages and the norm, unless it is the last."""
    stages: list[Any] = list(model.backbone.stages)
    for index in range(stage, len(stages) - 1):
        x = stages[index + 1](stages[index].merge(x))
    if stage < len(stages) - 1:
        x = model.backbone.norms[str(len(stages) - 1)](x)
    head = cast(Classifier, model.head)
    return head.decode(head((x,)))
