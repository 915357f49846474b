"""Detectors of torchvision on a backbone of ours: what reaches them, a step of training, boxes."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from swindow.interop.torchvision import BackboneWithFpn
from swindow.model import MapBackbone, backbone

WIDTH = 16
PIXELS = {"min_size": 48, "max_size": 64}


def body() -> MapBackbone:
    return backbone("swin_nano", out_stages=(0, 1), dim=12, drop_path=0.0)


def scene() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different sizes, each with one bright square of class 1."""
    images, targets = [], []
    for height, width, left in ((48, 64, 8), (50, 40, 20)):
        image = torch.rand(3, height, width) / 4
        image[:, 10:30, left : left + 16] = 1
        images.append(image)
        targets.append({"boxes": torch.tensor([[left, 10.0, left + 16, 30]]), "labels": torch.tensor([1])})
    return images, targets


def levels(number: int) -> AnchorGenerator:
    return AnchorGenerator(tuple((8 * 2**level,) for level in range(number)), ((0.5, 1.0, 2.0),) * number)


def faster_rcnn() -> FasterRCNN:
    pooler = MultiScaleRoIAlign(featmap_names=["0", "1"], output_size=3, sampling_ratio=1)
    neck = BackboneWithFpn(body(), out_channels=WIDTH)
    return FasterRCNN(
        neck, 3, rpn_anchor_generator=levels(3), box_roi_pool=pooler, rpn_post_nms_top_n_train=50, **PIXELS
    )


def retina_net() -> RetinaNet:
    neck = BackboneWithFpn(body(), out_channels=WIDTH, extra=LastLevelP6P7(WIDTH, WIDTH))
    return RetinaNet(neck, 3, anchor_generator=levels(4), **PIXELS)


def test_levels_are_the_fpn_of_the_backbones_maps() -> None:
    neck = BackboneWithFpn(body(), out_channels=WIDTH).eval()
    images = torch.randn(2, 3, 50, 70)
    found, maps = neck(images), neck.body(images)
    assert list(found) == ["0", "1", "pool"]
    assert neck.out_channels == WIDTH
    inner = neck.fpn.inner_blocks[1](maps[1])
    torch.testing.assert_close(found["1"], neck.fpn.layer_blocks[1](inner))
    torch.testing.assert_close(found["pool"], found["1"][:, :, ::2, ::2])


def test_any_family_fits() -> None:
    for name, fields in (("swin_v2_tiny_w8", {"dim": 24, "window": 4}), ("resnet_18", {"width": 8})):
        neck = BackboneWithFpn(backbone(name, out_stages=(1, 3), **fields), out_channels=WIDTH)
        assert [tuple(x.shape) for x in neck(torch.randn(1, 3, 64, 96)).values()] == [
            (1, WIDTH, 8, 12),
            (1, WIDTH, 2, 3),
            (1, WIDTH, 1, 2),
        ]


@pytest.mark.parametrize("build", [faster_rcnn, retina_net])
def test_a_step_of_training_reaches_every_part(build: type) -> None:
    model = build().train()
    sum(model(*scene()).values()).backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert sum(parameter.grad.abs().sum() > 0 for parameter in model.backbone.body.parameters()) > 20


def test_training_lowers_the_loss() -> None:
    model, (images, targets) = retina_net().train(), scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(16):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("build", [faster_rcnn, retina_net])
def test_boxes_lie_in_their_images(build: type) -> None:
    model, (images, _) = build().eval(), scene()
    with torch.no_grad():
        found = model(images)
    assert len(found) == len(images)
    for image, answer in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert len(answer["boxes"]) == len(answer["scores"]) == len(answer["labels"])
        assert (answer["boxes"] >= 0).all()
        assert (answer["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
