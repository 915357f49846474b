"""The same weights in transformers' DETR, for boxes and for masks, give the same outputs, losses and attention.

Their decoder, told to learn auxiliary losses, norms what goes on to the next layer too, which the original does not;
so those losses are compared on one set of outputs, ours.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DetrConfig as TheirConfig
from transformers import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from transformers import ResNetConfig as TheirBackbone
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, ForSegmentationLoss
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from swindow.backbones import ResNetConfig
from swindow.heads.detr import DetrConfig, DetrOutputs
from swindow.model import Model, ModelConfig
from swindow.objects import Frames, Objects, Targets

pytestmark = pytest.mark.parity

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}
TINY: dict[str, Any] = {"width": 64, "heads": 8, "hidden": 40, "layers": (1, 2), "queries": 9, "classes": 5}
BATCHES = {
    "one": Frames((64, 80), ((64, 80),)),
    "unequal": Frames((70, 81), ((50, 81), (70, 48))),
    "padded": Frames((96, 128), ((65, 33), (96, 97), (20, 128))),
}

NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^detr\.", ""),
    (r"^model\.backbone\.model\.embedder\.embedder\.", "backbone.patch_embed.unit."),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
    (r"\.layer\.(\d)\.(convolution|normalization)\.", r".units.\1.\2."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^model\.query_position_embeddings\.weight$", "head.queries"),
    (r"^model\.input_projection\.", "head.project."),
    (r"^model\.decoder\.layernorm\.", "head.transformer.norm."),
    (r"^model\.(encoder|decoder)\.layers\.", r"head.transformer.\1."),
    (r"^(head\.transformer\.encoder\.\d\.)final_layer_norm\.", r"\1norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.self_attn\.", ".attention."),
    (r"\.encoder_attn\.", ".cross."),
    (r"\.o_proj\.", ".proj."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"^class_labels_classifier\.", "head.classifier."),
    (r"^bbox_predictor\.layers\.", "head.boxes."),
    (r"^bbox_attention\.", "head.mask_attention."),
    (r"^mask_head\.conv1\.", "head.mask_head.first."),
    (r"^mask_head\.conv2\.", "head.mask_head.units.0."),
    (r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.", r"head.mask_head.laterals.\1."),
    (r"^mask_head\.fpn_stages\.(\d)\.refine\.", lambda m: f"head.mask_head.units.{int(m[1]) + 1}."),
    (r"^mask_head\.output_conv\.", "head.mask_head.last."),
]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their state under our names."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        ours[name] = value
    return ours


def pair(
    backbone: ResNetConfig,
    *,
    masks: bool,
    width: int,
    heads: int,
    hidden: int,
    layers: tuple[int, int],
    queries: int,
    classes: int,
) -> tuple[Model, nn.Module]:
    """Ours and theirs with the same weights, drawn so that none is zero or one, norms' statistics too."""
    torch.manual_seed(0)
    theirs = (DetrForSegmentation if masks else DetrForObjectDetection)(
        TheirConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=TheirBackbone(
                embedding_size=backbone.width,
                hidden_sizes=list(backbone.channels),
                depths=list(backbone.depths),
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            d_model=width,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=hidden,
            decoder_ffn_dim=hidden,
            encoder_layers=layers[0],
            decoder_layers=layers[1],
            num_queries=queries,
            num_labels=classes,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            gain = 1.0 if "bbox_predictor" in name else 2.0  # boxes are not to lie where a sigmoid is flat
            spread = 1.0 if "query" in name else 0.2 if parameter.ndim == 1 else gain * parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, spread)
        for name, buffer in theirs.named_buffers():
            low, high = (0.5, 2.0) if name.endswith("var") else (0.2, 0.6)
            buffer.uniform_(low, high)
    head = DetrConfig(
        masks=masks,
        transformer_width=width,
        transformer_heads=heads,
        feed_forward=hidden,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        num_queries=queries,
        num_classes=classes,
    )
    ours = ModelConfig(name="detr_resnet50", backbone=backbone, head=head).build().eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return ours, theirs


def tiny_pair(*, masks: bool) -> tuple[Model, nn.Module]:
    return pair(ResNetConfig(depths=(1, 1, 1, 2), width=4, norm="frozen"), masks=masks, **TINY)


def full_pair(*, masks: bool) -> tuple[Model, nn.Module]:
    shape = {"width": 256, "heads": 8, "hidden": 2048, "layers": (6, 6), "queries": 100, "classes": 91}
    return pair(ResNetConfig(depths=(3, 4, 6, 3), norm="frozen"), masks=masks, **shape)  # type: ignore[arg-type]


def batch(frames: Frames, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images with zeros for padding, as everybody pads, and the mask that says so."""
    mask = torch.zeros(len(frames.sizes), *frames.canvas, dtype=torch.int64)
    for one, (height, width) in zip(mask, frames.sizes, strict=True):
        one[:height, :width] = 1
    return torch.randn(len(mask), 3, *frames.canvas, dtype=dtype) * mask[:, None], mask


def objects_in(frames: Frames, counts: tuple[int, ...], dtype: torch.dtype) -> Targets:
    """As many in each picture, with pixels at random."""
    found = []
    for (height, width), count in zip(frames.sizes, counts, strict=True):
        corners = torch.rand(count, 2, 2, dtype=dtype).sort(1).values * torch.tensor([width, height], dtype=dtype)
        found.append(
            Objects(
                boxes=corners.flatten(1),
                labels=torch.randint(5, (count,)),
                masks=torch.rand(count, height, width) < 0.3,
                crowd=torch.zeros(count, dtype=torch.bool),
                areas=torch.ones(count),
            )
        )
    return Targets(tuple(found), frames)


def their_labels(targets: Targets) -> list[dict[str, Tensor]]:
    labels = []
    for objects, (height, width) in zip(targets.objects, targets.frames.sizes, strict=True):
        low, high = objects.boxes.split(2, dim=1)
        boxes = torch.cat([(low + high) / 2, high - low], dim=1) / torch.tensor([width, height, width, height])
        canvas = torch.zeros(len(objects), *targets.frames.canvas, dtype=torch.bool)
        canvas[:, :height, :width] = objects.masks
        labels.append({"class_labels": objects.labels, "boxes": boxes.to(objects.boxes.dtype), "masks": canvas})
    return labels


@contextlib.contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """Their losses weigh classes in the default type, whatever the model's."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("masks", [False, True])
def test_outputs_are_theirs(masks: bool, name: str, dtype: torch.dtype) -> None:
    ours, theirs = (model.to(dtype) for model in tiny_pair(masks=masks))
    images, mask = batch(BATCHES[name], dtype)
    with torch.no_grad():
        found = ours.outputs(images, BATCHES[name])
        expected = theirs(pixel_values=images, pixel_mask=mask)
    close(found.logits[-1], expected.logits, dtype)
    close(found.boxes[-1], expected.pred_boxes, dtype)
    assert found.logits[-1].std() > 0.1
    assert found.boxes[-1].std(1).max() > 1e-3
    if masks:
        close(found.masks, expected.pred_masks, dtype)
        assert found.masks.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_outputs_are_theirs_at_full_size(masks: bool) -> None:
    ours, theirs = full_pair(masks=masks)
    frames = Frames((320, 416), ((320, 300), (250, 416)))
    images, mask = batch(frames, torch.float32)
    with torch.no_grad():
        found = ours.outputs(images, frames)
        expected = theirs(pixel_values=images, pixel_mask=mask)
    close(found.logits[-1], expected.logits, torch.float32)
    close(found.boxes[-1], expected.pred_boxes, torch.float32)
    if masks:
        close(found.masks, expected.pred_masks, torch.float32)


@pytest.mark.parametrize("name", BATCHES)
def test_attention_is_theirs(name: str) -> None:
    ours, theirs = (model.double() for model in tiny_pair(masks=False))
    images, mask = batch(BATCHES[name], torch.float64)
    with torch.no_grad():
        found = ours.head.attention(ours.backbone(images), BATCHES[name])
        expected = theirs(pixel_values=images, pixel_mask=mask, output_attentions=True).cross_attentions
    close(found.flatten(-2), torch.stack(expected).mean(2), torch.float64)
    assert found.std() > 1e-3


@pytest.mark.parametrize("counts", [(3, 1, 4), (0, 2, 12), (0, 0, 0)])
@pytest.mark.parametrize("dtype", CLOSE)
def test_losses_are_theirs(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, theirs = (model.to(dtype) for model in tiny_pair(masks=True))
    frames = BATCHES["padded"]
    images, mask = batch(frames, dtype)
    targets = objects_in(frames, counts, dtype)
    with torch.no_grad():
        outputs = ours.outputs(images, frames)
        found = ours.head.loss(outputs, targets)
        with default(dtype):
            answer = theirs(pixel_values=images, pixel_mask=mask, labels=their_labels(targets))
    weights = {"classes": 1, "boxes": 5, "giou": 2, "focal": 1, "dice": 1}
    names = {"classes": "ce", "boxes": "bbox", "giou": "giou", "focal": "mask", "dice": "dice"}
    for name, weight in weights.items():
        close(found[name], weight * answer.loss_dict[f"loss_{names[name]}"].to(dtype), dtype)
    close(sum(found.values()) - found["auxiliary"], answer.loss.to(dtype), dtype)
    assert found["auxiliary"] > 0


@pytest.mark.parametrize("masks", [False, True])
def test_losses_of_every_layer_are_theirs(masks: bool) -> None:
    ours, theirs = (model.double() for model in tiny_pair(masks=masks))
    frames = BATCHES["unequal"]
    images, _ = batch(frames, torch.float64)
    targets = objects_in(frames, (3, 5), torch.float64)
    with torch.no_grad():
        outputs: DetrOutputs = ours.outputs(images, frames)
        found = ours.head.loss(outputs, targets)
    theirs.config.auxiliary_loss = True
    last = [outputs.logits[-1], their_labels(targets), torch.device("cpu"), outputs.boxes[-1]]
    every = [theirs.config, outputs.logits, outputs.boxes]
    judge = ForSegmentationLoss if masks else ForObjectDetectionLoss
    with default(torch.float64):
        total, parts, _ = judge(*last, *([outputs.masks] if masks else []), *every)
    close(sum(found.values()), total, torch.float64)
    assert "loss_giou_0" in parts


def test_answers_are_theirs() -> None:
    ours, theirs = (model.double() for model in tiny_pair(masks=False))
    frames = BATCHES["unequal"]
    images, mask = batch(frames, torch.float64)
    with torch.no_grad():
        found = ours(images, frames)
        outputs: DetrObjectDetectionOutput = theirs(pixel_values=images, pixel_mask=mask)
    read = DetrImageProcessor.post_process_object_detection
    for one, expected in zip(found, read(None, outputs, 0.0, list(frames.sizes)), strict=True):
        order = expected["scores"].argsort(descending=True)
        close(one.scores, expected["scores"][order], torch.float64)
        assert torch.equal(one.labels, expected["labels"][order])
        height, width = one.size
        boxes = expected["boxes"][order].clamp(min=0)  # theirs may stick out of the picture
        boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
        close(one.boxes, boxes, torch.float64)
        assert torch.equal(one.queries, order)
