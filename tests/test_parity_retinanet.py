"""The same weights in torchvision's RetinaNets give the same outputs, answers in the same order, and losses."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from swindow.backbones import ResNetConfig
from swindow.heads.retinanet import RetinaNetConfig
from swindow.model import Model, ModelConfig
from swindow.objects import Detections, Frames, Objects, Targets

pytestmark = pytest.mark.parity

CLASSES = 7
BATCHES = {
    "one": Frames((128, 160), ((128, 160),)),
    "unequal": Frames((128, 160), ((100, 160), (128, 131))),
    "padded": Frames((192, 256), ((129, 33), (96, 197))),
}

NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (
        r"^backbone\.body\.(conv1|bn1)\.",
        lambda m: f"backbone.patch_embed.unit.{'conv' if m[1] == 'conv1' else 'norm'}.",
    ),
    (r"^backbone\.body\.layer(\d)\.(\d+)\.", lambda m: f"backbone.stages.{int(m[1]) - 1}.blocks.{m[2]}."),
    (r"\.conv(\d)\.(weight)$", lambda m: f".units.{int(m[1]) - 1}.conv.{m[2]}"),
    (r"\.bn(\d)\.", lambda m: f".units.{int(m[1]) - 1}.norm."),
    (r"\.downsample\.0\.", ".shortcut.conv."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"head.fpn.laterals.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"head.fpn.smooths.\1."),
    (r"^backbone\.fpn\.extra_blocks\.p(\d)\.", lambda m: f"head.fpn.extras.{int(m[1]) - 6}."),
    (r"^head\.classification_head\.", "head.classes."),
    (r"^head\.regression_head\.", "head.boxes."),
    (r"\.conv\.(\d)\.0\.", r".convs.\1."),
    (r"\.conv\.(\d)\.1\.", r".norms.\1."),
    (r"\.(cls_logits|bbox_reg)\.", ".last."),
]
"""Patterns of torchvision's names and what they are here, one after another."""


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their state under our names."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        ours[name] = value
    return ours


def small(width: int) -> RetinaNet:
    """Theirs on a ResNet-18 of a few channels; its pyramid has their own number, as their head wants."""
    trunk = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=1)
    trunk.inplanes = width
    trunk.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    trunk.bn1 = nn.BatchNorm2d(width)
    for stage in range(4):
        layer = trunk._make_layer(resnet.BasicBlock, width * 2**stage, 1, stride=2 if stage else 1)
        setattr(trunk, f"layer{stage + 1}", layer)
    trunk.inplanes = 8 * width
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(trunk, 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    return RetinaNet(backbone, CLASSES)


def pair(kind: str, **fields: Any) -> tuple[Model, RetinaNet]:
    """Ours and theirs with the same weights, statistics of norms too, that find objects of every class."""
    torch.manual_seed(0)
    own: dict[str, Any] = {"num_classes": CLASSES, "convention": "torchvision", "most_detections": 300}
    trunk = ResNetConfig(depths=(3, 4, 6, 3))
    if kind == "small":
        theirs, trunk = small(4), ResNetConfig(depths=(1, 1, 1, 1), block="basic", width=4)
        own["extra_from"] = "level"
    elif kind == "v1":
        theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
        own["extra_from"] = "level"
    else:
        theirs = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=CLASSES)
        own |= {"tower_norm": "group", "box_loss": "giou"}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "head" in name and parameter.ndim > 1:
                parameter.normal_(std=1.4 * parameter[0].numel() ** -0.5)
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
        theirs.head.classification_head.cls_logits.bias.fill_(-3.0)
    head = RetinaNetConfig(**(own | fields))
    ours = ModelConfig(name="retinanet_resnet_50", backbone=trunk, head=head).build()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return ours.eval(), theirs.eval()


def batch(frames: Frames) -> Tensor:
    images = torch.zeros(len(frames.sizes), 3, *frames.canvas)
    for image, (height, width) in zip(images, frames.sizes, strict=True):
        image[:, :height, :width].normal_()
    return images


def their_outputs(
    theirs: RetinaNet, images: Tensor, frames: Frames
) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """What their head says, their anchors, and how many a map has: their own `forward` less the resizing."""
    maps = list(theirs.backbone(images).values())
    anchors = theirs.anchor_generator(ImageList(images, list(frames.sizes)), maps)
    counts = [9 * x.shape[2] * x.shape[3] for x in maps]
    return theirs.head(maps), anchors, counts


def their_answers(theirs: RetinaNet, images: Tensor, frames: Frames) -> list[dict[str, Tensor]]:
    said, anchors, counts = their_outputs(theirs, images, frames)
    split = {name: list(values.split(counts, dim=1)) for name, values in said.items()}
    return theirs.postprocess_detections(split, [list(one.split(counts)) for one in anchors], list(frames.sizes))


def same(found: tuple[Detections, ...], expected: list[dict[str, Tensor]]) -> None:
    for one, theirs in zip(found, expected, strict=True):
        assert torch.equal(one.labels, theirs["labels"])
        torch.testing.assert_close(one.scores, theirs["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(one.boxes, theirs["boxes"], rtol=0, atol=1e-3)


def objects_in(frames: Frames, counts: tuple[int, ...]) -> Targets:
    found = []
    for (height, width), count in zip(frames.sizes, counts, strict=True):
        corners = torch.rand(count, 2, 2).sort(1).values * torch.tensor([width - 8.0, height - 8.0])
        corners[:, 1] += 8
        found.append(
            Objects(
                boxes=corners.flatten(1),
                labels=torch.randint(CLASSES, (count,)),
                crowd=torch.zeros(count, dtype=torch.bool),
                areas=torch.ones(count),
            )
        )
    return Targets(tuple(found), frames)


def check(kind: str, name: str) -> None:
    ours, theirs = pair(kind)
    frames = BATCHES[name]
    images = batch(frames)
    with torch.no_grad():
        outputs = ours.outputs(images, frames)
        said, anchors, _ = their_outputs(theirs, images, frames)
        torch.testing.assert_close(outputs.logits, said["cls_logits"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.deltas, said["bbox_regression"], rtol=1e-4, atol=1e-4)
        assert torch.equal(torch.cat(ours.head.anchors(outputs)), anchors[0])
        found = ours(images, frames)
        same(found, their_answers(theirs, images, frames))
    assert min(len(one) for one in found) > 20
    assert len(torch.cat([one.labels for one in found]).unique()) > 1


@pytest.mark.parametrize("name", BATCHES)
def test_outputs_and_answers_are_theirs(name: str) -> None:
    check("small", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_outputs_and_answers_are_theirs_at_full_size(kind: str, name: str) -> None:
    check(kind, name)


def check_losses(kind: str, counts: tuple[int, int]) -> None:
    ours, theirs = pair(kind)
    frames = BATCHES["unequal"]
    images, targets = batch(frames), objects_in(frames, counts)
    with torch.no_grad():
        outputs = ours.outputs(images, frames)
        found = ours.head.loss(outputs, targets)
        said, anchors, _ = their_outputs(theirs, images, frames)
        labels = [{"boxes": one.boxes, "labels": one.labels} for one in targets.objects]
        expected = theirs.compute_loss(labels, said, anchors)
    torch.testing.assert_close(found["classes"], expected["classification"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["boxes"], expected["bbox_regression"], rtol=1e-4, atol=1e-5)
    assert (found["boxes"] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (0, 0)])
def test_losses_are_theirs(counts: tuple[int, int]) -> None:
    check_losses("small", counts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_losses_are_theirs_at_full_size(kind: str) -> None:
    check_losses(kind, (3, 5))
