"""The same weights in torchvision's Mask R-CNN give the same proposals, detections and losses.

The backbone is the same module on both sides, so that nothing but the detector differs, or, at full size, torchvision's
ResNet-50 with its own pyramid against ours.
"""

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swindow.backbones import VARIANTS
from swindow.heads import MaskRcnnConfig, Rcnn, RcnnOutputs, RegionConfig
from swindow.objects import Frames, Objects, Targets, no_objects
from swindow.shapes import Pyramid

pytestmark = pytest.mark.parity

CLASSES = 5
CHANNELS, STRIDES = (8, 12, 16, 24), (4, 8, 16, 32)
SIZES = {"one": ((96, 160),), "equal": ((96, 128), (96, 128)), "unequal": ((96, 160), (70, 90), (128, 64))}
NAMES = [
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"fpn.laterals.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"fpn.smooths.\1."),
    (r"^rpn\.head\.conv\.0\.0\.", "regions.conv."),
    (r"^rpn\.head\.cls_logits\.", "regions.logits."),
    (r"^rpn\.head\.bbox_pred\.", "regions.deltas."),
    (r"^roi_heads\.box_head\.fc6\.", "boxes.0.linears.0."),
    (r"^roi_heads\.box_head\.fc7\.", "boxes.0.linears.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "boxes.0.logits."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "boxes.0.deltas."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"masks.0.convs.\1."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "masks.0.enlarge."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "masks.0.logits."),
]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their head's state under our names: background behind the classes, and without deltas or masks of its own."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, new in NAMES:
            if re.match(pattern, name):
                ours[re.sub(pattern, new, name)] = value
    for part in ("weight", "bias"):
        ours[f"boxes.0.logits.{part}"] = ours[f"boxes.0.logits.{part}"].roll(-1, 0)
        ours[f"boxes.0.deltas.{part}"] = ours[f"boxes.0.deltas.{part}"][4:]
        ours[f"masks.0.logits.{part}"] = ours[f"masks.0.logits.{part}"][1:]
    return ours


class Maps(nn.Module):
    """torchvision's pyramid on maps that are given as they are."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(CHANNELS), self.out_channels, LastLevelMaxPool())

    def forward(self, maps: Pyramid) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), x.permute(0, 3, 1, 2)) for i, x in enumerate(maps)))


def drawn(model: nn.Module) -> nn.Module:
    """`model` with parameters none of which is zero, and answers that differ from place to place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.1)
            else:
                gain = 0.2 if "bbox_pred" in name else 1.4
                parameter.normal_(0, gain / parameter[0].numel() ** 0.5)
    return model


def pair(**fields: Any) -> tuple[Rcnn, MaskRCNN]:
    """Ours and theirs, tiny, with the same weights."""
    torch.manual_seed(0)
    theirs = MaskRCNN(
        Maps(),
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(16 * 49, 24),
        box_predictor=FastRCNNPredictor(24, CLASSES + 1),
        mask_head=MaskRCNNHeads(16, (12, 12), 1),
        mask_predictor=MaskRCNNPredictor(12, 12, CLASSES + 1),
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=60,
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=120,
        **fields,
    )
    theirs = drawn(theirs).eval()
    config = MaskRcnnConfig(
        num_classes=CLASSES,
        convention="torchvision",
        box_width=24,
        mask_convs=2,
        mask_width=12,
        pyramid_width=16,
        regions=RegionConfig(
            candidates=(300, 200), proposals=(120, 60), samples=fields.get("rpn_batch_size_per_image", 256)
        ),
        samples=fields.get("box_batch_size_per_image", 512),
    )
    ours = config.build(CHANNELS, STRIDES).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return ours, theirs


def batch(sizes: tuple[tuple[int, int], ...], channels: tuple[int, ...] = CHANNELS) -> tuple[Pyramid, Frames]:
    """Maps of a padded batch of pictures."""
    canvas = tuple(-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))
    maps = (torch.randn(len(sizes), canvas[0] // s, canvas[1] // s, c) for c, s in zip(channels, STRIDES, strict=True))
    return tuple(maps), Frames((canvas[0], canvas[1]), sizes)


def objects(size: tuple[int, int], count: int) -> Objects:
    """Boxes and masks somewhere in a picture."""
    low = torch.rand(count, 2) * 0.6
    low, high = low, low + 0.1 + torch.rand(count, 2) * 0.3
    scale = torch.tensor([size[1], size[0]])
    masks = torch.rand(count, *size) > 0.4
    return Objects(
        boxes=torch.cat([low * scale, high * scale], 1),
        labels=torch.randint(0, CLASSES, (count,)),
        masks=masks,
        crowd=torch.zeros(count, dtype=torch.bool),
        areas=masks.sum((1, 2)).float(),
    )


def as_theirs(one: Objects) -> dict[str, Tensor]:
    """Targets as torchvision wants them."""
    masks = torch.zeros(0, 1, 1) if one.masks is None else one.masks
    return {"boxes": one.boxes, "labels": one.labels + 1, "masks": masks.to(torch.uint8)}


def close(found: Tensor, expected: Tensor, within: float) -> None:
    assert found.shape == expected.shape
    if found.numel():
        assert float((found - expected).abs().max()) <= within


def compare(ours: Rcnn, theirs: MaskRCNN, outputs: RcnnOutputs, features: Any, images: ImageList) -> None:
    """Every step on its own input, and the answers at the end of both ways."""
    frames = outputs.frames
    logits, deltas = theirs.rpn.head(list(features.values()))
    logits, deltas = (torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in maps], 1) for maps in (logits, deltas))
    close(outputs.logits, logits, 1e-4 * float(logits.abs().max()))
    close(outputs.deltas.flatten(1), deltas, 1e-4 * float(deltas.abs().max()))
    proposals, _ = theirs.rpn(images, features)
    mine = ours.regions.proposals(outputs.maps, logits, deltas.unflatten(1, (-1, 4)), frames)
    for found, expected in zip(mine, proposals, strict=True):
        assert len(found) > 20
        close(found, expected, 1e-3)
    cells = theirs.roi_heads.box_roi_pool(features, proposals, frames.sizes)
    scores, shifts = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(cells))
    judged, moves = ours.judged(outputs.maps, tuple(proposals), 0)
    close(judged.roll(1, 1), scores, 1e-4 * float(scores.abs().max()))
    close(moves.flatten(1), shifts[:, 4:], 1e-4 * float(shifts.abs().max()))
    answers, _ = theirs.roi_heads(features, proposals, frames.sizes)
    for found, expected in zip(ours.decode(outputs), answers, strict=True):
        assert len(found) > 5
        close(found.boxes, expected["boxes"], 1e-3)
        close(found.scores, expected["scores"], 1e-5)
        assert torch.equal(found.labels + 1, expected["labels"])
        assert found.masks is not None
        close(found.masks, expected["masks"][:, 0], 1e-4)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_detections(sizes: tuple[tuple[int, int], ...]) -> None:
    ours, theirs = pair()
    maps, frames = batch(sizes)
    images = ImageList(torch.zeros(len(sizes), 3, *frames.canvas), list(sizes))
    with torch.no_grad():
        compare(ours, theirs, ours(maps, frames), theirs.backbone(maps), images)


@pytest.mark.parametrize("counts", [(3, 1, 2), (0, 4, 0), (0, 0, 0)], ids=str)
def test_losses(counts: tuple[int, ...]) -> None:
    everything = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}  # so that nothing is drawn
    ours, theirs = pair(**everything)
    ours.train(), theirs.train()
    sizes = SIZES["unequal"]
    maps, frames = batch(sizes)
    images = ImageList(torch.zeros(3, 3, *frames.canvas), list(sizes))
    truth = tuple(objects(size, n) if n else no_objects(masks=size) for size, n in zip(sizes, counts, strict=True))
    targets = [as_theirs(one) for one in truth]
    features = theirs.backbone(maps)
    proposals, expected = theirs.rpn(images, features, targets)
    expected |= theirs.roi_heads(features, proposals, frames.sizes, targets)[1]
    found = ours.loss(ours(maps, frames), Targets(truth, frames))
    names = {
        "regions": "loss_objectness",
        "region_boxes": "loss_rpn_box_reg",
        "classes": "loss_classifier",
        "boxes": "loss_box_reg",
        "masks": "loss_mask",
    }
    assert found.keys() == names.keys()
    for mine, name in names.items():
        torch.testing.assert_close(found[mine], expected[name], rtol=1e-4, atol=1e-6)
    found_grads = gradients(ours, found)
    expected_grads = renamed(gradients(theirs, expected))
    for name, expected_grad in expected_grads.items():
        if not name.startswith(("boxes.0.deltas", "masks.0.logits")) or sum(counts):
            torch.testing.assert_close(
                found_grads[name], expected_grad, rtol=1e-3, atol=1e-4 * float(expected_grad.abs().max() + 1e-3)
            )


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.stack(list(losses.values())).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


RESNET = [
    (r"^backbone\.body\.conv1\.", "patch_embed.unit.conv."),
    (r"^backbone\.body\.bn1\.", "patch_embed.unit.norm."),
    (r"^backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.", r"stages.\1.blocks.\2.shortcut.conv."),
    (r"^backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.", r"stages.\1.blocks.\2.shortcut.norm."),
    (r"^backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.", r"stages.\1.blocks.\2.units.\3.conv."),
    (r"^backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.", r"stages.\1.blocks.\2.units.\3.norm."),
]


def resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's state under our names, which count from 0."""
    ours = {}
    for name, value in state.items():
        for pattern, new in RESNET:
            if re.match(pattern, name):
                name = re.sub(pattern, new, name)
                name = re.sub(r"(stages|units)\.(\d)", lambda found: f"{found[1]}.{int(found[2]) - 1}", name)
                ours[name] = value
    return ours


def picture(size: tuple[int, int]) -> Tensor:
    """Blurred patches of colour: noise alone would look the same everywhere."""
    return 2 * F.interpolate(torch.randn(1, 3, 12, 12), size=size, mode="bilinear")[0]


def measured(theirs: MaskRCNN) -> None:
    """Statistics and last layers that give values of the size that trained ones have: scores of 1 would all be ties."""
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    theirs.transform.min_size, images = (256,), picture((256, 256))[None]
    heads = theirs.roi_heads
    wanted = {theirs.rpn.head.cls_logits: 2.0, theirs.rpn.head.bbox_pred: 0.3}
    wanted |= {heads.box_predictor.cls_score: 2.0, heads.box_predictor.bbox_pred: 1.0}
    wanted |= {heads.mask_predictor.mask_fcn_logits: 2.0}
    with torch.no_grad():
        theirs.backbone.body.train()(images)
        theirs.eval()
        for layer, size in wanted.items():
            seen: list[Tensor] = []
            hook = layer.register_forward_hook(
                lambda _, __, out, seen=seen: seen.append(out.movedim(1, -1).flatten(0, -2))
            )
            theirs(list(images))
            hook.remove()
            said = torch.cat(seen)
            factor = size / (said - said.mean(0)).std()
            layer.weight *= factor
            layer.bias.copy_(factor * (layer.bias - said.mean(0)))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [((320, 256),), ((200, 256), (256, 130))], ids=["one", "unequal"])
def test_detections_at_full_size(sizes: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    for part in (theirs.backbone.fpn, theirs.rpn, theirs.roi_heads):
        drawn(part)
    measured(theirs)
    backbone = VARIANTS["resnet_50"].build(in_channels=3, out_stages=(0, 1, 2, 3)).eval()
    backbone.load_state_dict(resnet(theirs.state_dict()))
    regions = RegionConfig(proposals=(2000, 1000))
    config = MaskRcnnConfig(num_classes=90, convention="torchvision", regions=regions, score_threshold=0.02)
    theirs.roi_heads.score_thresh = 0.02
    ours = config.build(backbone.channels, backbone.strides).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    canvas = tuple(-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))
    images = torch.zeros(len(sizes), 3, *canvas)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = picture((height, width))
    with torch.no_grad():
        outputs = ours(backbone(images), Frames((canvas[0], canvas[1]), sizes))
        compare(ours, theirs, outputs, theirs.backbone(images), ImageList(images, list(sizes)))
