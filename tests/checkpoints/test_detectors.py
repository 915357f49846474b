"""Detectors through files: ours, and everybody else's in ours and ours in theirs, the same numbers out."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from original_detectors import (
    FacebookDetr,
    OpenDetector,
    names_of_facebook_masks,
    shapes_of_rcnn,
    shapes_of_retinanet,
    shapes_of_swin,
)
from original_swin import openmmlab, same
from swindow.checkpoints import AssumedWarning, convert, load, load_weights, open_weights, save
from swindow.checkpoints.converting import save_as
from swindow.checkpoints.formats import format_named
from swindow.checkpoints.own import card_text
from swindow.classes import coco, coco_by_id
from swindow.errors import CheckpointError, ConfigError
from swindow.heads.detr import DetrConfig
from swindow.heads.mask_rcnn import MaskRcnnConfig
from swindow.heads.regions import RegionConfig
from swindow.heads.retinanet import RetinaNetConfig
from swindow.model import Model, build
from swindow.objects import Detections
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vit_peers import scramble

SWIN: dict[str, Any] = {"dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4), "window": 4, "num_classes": 5}
RCNN: dict[str, Any] = SWIN | {"pyramid_width": 8, "box_width": 16, "mask_width": 8}
CASCADE: dict[str, Any] = RCNN | {"box_conv_width": 8}
CLASSIC: dict[str, Any] = RCNN | {
    "box_convs": 0,
    "box_linears": 2,
    "class_agnostic": True,
    "box_loss": "delta",
    "box_weight": 1.0,
}
RETINANET: dict[str, Any] = SWIN | {"pyramid_width": 8}
RESNET: dict[str, Any] = {"width": 8, "depths": (1, 2, 1, 1)}
DETR: dict[str, Any] = RESNET | {
    "num_classes": 5,
    "transformer_width": 64,
    "feed_forward": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_queries": 7,
}
PROPOSALS = RegionConfig(proposals=(2000, 1000))
CLASSES = ("person", "car", "dog", 'a "lake"', "дом")
WITHIN = Preprocess(size=(800, 1333), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="within", interpolation="bilinear")


def ready(name: str, **fields: Any) -> Model:
    """With numbers everywhere, frozen norms and counters included, and all that travels with weights."""
    torch.manual_seed(0)
    model = build(name, **fields)
    scramble(model)
    for key, buffer in model.named_buffers():
        if key.endswith("num_batches_tracked"):
            buffer.fill_(len(key))
        elif key.endswith(".weight"):  # of frozen norms
            buffer.uniform_(0.5, 1.5)
        elif key.endswith(".bias"):
            buffer.normal_(0, 0.2)
    model.classes, model.preprocess = CLASSES, WITHIN
    return model.eval()


def quietly(path: Path, **fields: Any) -> tuple[Model, str]:
    said: list[str] = []
    return load(path, say=said.append, **fields), said[0]


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    assert list(found.state_dict()) == list(state)
    assert [name for name, x in found.state_dict().items() if not torch.equal(x, state[name])] == []


def assert_close(found: Tensor, expected: Tensor, close: float) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-3  # a comparison of noughts proves nothing
    assert (found - expected).abs().max() <= close * expected.abs().max().clamp(min=1)


# -- our own -----------------------------------------------------------------------------------------------------------

EVERY = [
    ("mask_rcnn_swin_tiny", RCNN),
    ("mask_rcnn_resnet_18", {"num_classes": 5, "masks": False, "width": 8, "pyramid_width": 8, "box_width": 16}),
    ("cascade_mask_rcnn_swin_v2_tiny_w8", CASCADE),
    ("cascade_mask_rcnn_swin_tiny", CLASSIC),
    ("retinanet_swin_tiny", RETINANET | {"tower_norm": "group", "pyramid_width": 64}),
    ("detr_resnet50", DETR),
    ("detr_swin_tiny", {name: value for name, value in (SWIN | DETR).items() if name != "width"} | {"masks": True}),
]


@pytest.mark.parametrize(("name", "fields"), EVERY)
def test_a_checkpoint_alone_rebuilds_a_detector(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = ready(name, **fields)
    found = load(save(model, tmp_path / "own"))
    assert (found.config, found.preprocess, found.classes) == (model.config, WITHIN, CLASSES)
    assert_same_state(found, model)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_same_detections(found(images), model(images), 0.0)


def assert_same_detections(found: Any, expected: Any, close: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Detections)
        assert len(one) == len(other) > 0
        assert torch.equal(one.labels, other.labels)
        for part in ("boxes", "scores", "masks"):
            a, b = getattr(one, part), getattr(other, part)
            assert (a is None) == (b is None)
            assert a is None or (a - b).abs().max() <= close


@pytest.mark.parametrize(
    ("name", "fields", "change"),
    [
        ("mask_rcnn_swin_tiny", RCNN, ("pyramid_width = 8", "pyramid_width = 1000000000")),
        ("mask_rcnn_swin_tiny", RCNN, ("num_classes = 5", "num_classes = 1000000000")),
        ("mask_rcnn_swin_tiny", RCNN, ("mask_convs = 4", "mask_convs = 1000000000")),
        ("cascade_mask_rcnn_swin_tiny", CASCADE, ("box_linears = 1", "box_linears = 1000000000")),
        ("retinanet_swin_tiny", RETINANET, ("tower = 4", "tower = 1000000000")),
        ("detr_resnet50", DETR, ("decoder_layers = 3", "decoder_layers = 1000000000")),
        ("detr_resnet50", DETR, ("num_queries = 7", "num_queries = 1000000000")),
    ],
)
def test_a_card_that_asks_for_a_far_larger_head_is_refused(
    name: str, fields: dict[str, Any], change: tuple[str, str], tmp_path: Path
) -> None:
    model = ready(name, **fields)
    text = card_text(model)
    assert change[0] in text
    path = tmp_path / "bomb.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, metadata={"swindow": text.replace(*change)})
    with pytest.raises(CheckpointError, match="far larger than its weights"):
        load(path)


# -- mmdetection and the fork ------------------------------------------------------------------------------------------

OPEN = [("mask_rcnn", RCNN), ("cascade_mask_rcnn", CASCADE), ("cascade_mask_rcnn", CLASSIC), ("retinanet", RETINANET)]
FORKS = {"microsoft_dense": True, "openmmlab": False}


@pytest.mark.parametrize("form", FORKS)
@pytest.mark.parametrize(
    ("name", "convs"), [("mask_rcnn_swin_tiny", 0), ("mask_rcnn_swin_small", 0), ("cascade_mask_rcnn_swin_base", 4)]
)
def test_published_names_and_shapes_are_those_of_the_sources(form: str, name: str, convs: int) -> None:
    with torch.device("meta"):
        model = build(name)
    config: Any = model.config.backbone
    written = format_named(form, "swin", model.config.head.kind).write(model.state_dict(), config, model.config.head)
    expected = shapes_of_swin(
        fork=FORKS[form], dim=config.dim, depths=config.depths, heads=config.num_heads, window=7, out=(0, 1, 2, 3)
    )
    cascade = name.startswith("cascade")
    expected |= shapes_of_rcnn(tuple(config.dim * 2**i for i in range(4)), 80, cascade=cascade, convs=convs)
    assert {name: tuple(x.shape) for name, x in written.items()} == expected


@pytest.mark.parametrize("form", FORKS)
def test_the_same_of_retinanet_and_of_the_classic_cascade(form: str) -> None:
    with torch.device("meta"):
        retinanet, classic = build("retinanet_swin_tiny"), build("cascade_mask_rcnn_swin_tiny", **_classic_fields())
    shape: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 7}
    swin = shapes_of_swin(fork=FORKS[form], out=(1, 2, 3), **shape)
    assert _written(retinanet, form) == swin | shapes_of_retinanet((192, 384, 768), 80)
    swin = shapes_of_swin(fork=FORKS[form], out=(0, 1, 2, 3), **shape)
    assert _written(classic, form) == swin | shapes_of_rcnn((96, 192, 384, 768), 80, cascade=True)


def _classic_fields() -> dict[str, Any]:
    return {name: value for name, value in CLASSIC.items() if name.startswith(("box_convs", "box_l", "class_"))}


def _written(model: Model, form: str) -> dict[str, tuple[int, ...]]:
    config, head = model.config.backbone, model.config.head
    written = format_named(form, config.kind, head.kind).write(model.state_dict(), config, head)
    return {name: tuple(x.shape) for name, x in written.items()}


@pytest.mark.parametrize("form", FORKS)
@pytest.mark.parametrize(("head", "fields"), OPEN)
def test_published_names_and_equations_give_our_numbers(
    form: str, head: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = ready(f"{head}_swin_tiny", small_maps="pad_shift", **fields)
    there = save_as(model, tmp_path / "theirs.pth", form)
    state = torch.load(there, weights_only=True)["state_dict"]
    options: dict[str, Any] = {"names": same} if FORKS[form] else {"names": openmmlab, "unfold": True}
    shape: dict[str, Any] = {"depths": SWIN["depths"], "heads": SWIN["num_heads"], "windows": (4,) * 4}
    oracle = OpenDetector(state, shift_small=True, **shape, **options)
    found = quietly(there)[0].double()
    images = torch.randn(1, 3, 72, 104, dtype=torch.float64)
    with torch.no_grad():
        outputs = found.outputs(images)
        logits, deltas = oracle.anchors(images, 5) if head == "retinanet" else oracle.proposals(images)
        assert_close(outputs.logits, logits, 1e-10)
        assert_close(outputs.deltas, deltas, 1e-10)
        if head == "retinanet":
            return
        small, large = (torch.randn(3, 8, side, side, dtype=torch.float64) for side in (7, 14))
        for stage, (boxes, masks) in enumerate(zip(found.head.boxes, found.head.masks, strict=True)):
            number = f"{stage}." if head.startswith("cascade") else ""
            scores, shifts = oracle.judged(small, number)
            assert_close(boxes(small)[0], scores, 1e-10)
            assert_close(boxes(small)[1].flatten(1), shifts, 1e-10)
            assert_close(masks(large), oracle.masks(large, number), 1e-10)


@pytest.mark.parametrize("form", FORKS)
@pytest.mark.parametrize(("head", "fields"), OPEN)
def test_theirs_come_back_with_classes_and_how_they_are_evaluated(
    form: str, head: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = ready(f"{head}_swin_tiny", small_maps="pad_shift", **fields)
    there = convert(save(model, tmp_path / "own"), tmp_path / "theirs.pth", to=form)
    with pytest.warns(AssumedWarning, match=r"the short side made 800 pixels and the long one 1,333 at most") as said:
        found = load(there)
    assert not any("image_size" in str(entry.message) for entry in said)  # nothing depends on it
    assert_same_state(found, model)
    assert (found.classes, found.preprocess, found.config.head) == (CLASSES, WITHIN, model.config.head)
    assert found.config.name.startswith(f"{head}_swin_")
    whole = convert(save(model, tmp_path / "own"), tmp_path / "theirs.safetensors", to=form)
    again = load(whole)  # our card lies in it: nothing is assumed
    assert (again.config, again.preprocess) == (model.config, WITHIN)


def test_what_is_published_without_names_of_classes_has_coco_s(tmp_path: Path) -> None:
    model = ready("mask_rcnn_swin_tiny", small_maps="pad_shift", **RCNN | {"num_classes": 80})
    model.classes = None
    there = save_as(model, tmp_path / "theirs.pth", "openmmlab")
    found, report = quietly(there)
    assert found.classes == coco()
    assert "COCO's names, since the head has 80 classes" in report


def test_either_generation_of_mmdetection_is_read(tmp_path: Path) -> None:
    """2.x has ``meta`` in capitals; 3.x has ``dataset_meta``, and a preprocessor's numbers where somebody kept them."""
    model = ready("mask_rcnn_swin_tiny", small_maps="pad_shift", **RCNN)
    state = torch.load(save_as(model, tmp_path / "a.pth", "openmmlab"), weights_only=True)["state_dict"]
    old = {"CLASSES": CLASSES, "config": "model = dict()", "mmdet_version": "2.25.0"}
    new = {"dataset_meta": {"classes": CLASSES, "palette": [(0, 0, index) for index in range(5)]}, "epoch": 12}
    pixels = {f"data_preprocessor.{name}": torch.zeros(3, 1, 1) for name in ("mean", "std")}
    torch.save({"meta": old, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "2.pth")
    torch.save({"meta": new, "state_dict": state | pixels, "message_hub": {}}, tmp_path / "3.pth")
    for number in (2, 3):
        found, _ = quietly(tmp_path / f"{number}.pth")
        assert_same_state(found, model)
        assert found.classes == CLASSES
    assert found.colours == tuple((0, 0, index) for index in range(5))


def test_a_head_that_we_lack_is_an_error_and_a_hybrid_cascade_s_backbone_is_read(tmp_path: Path) -> None:
    model = ready("cascade_mask_rcnn_swin_tiny", small_maps="pad_shift", **CASCADE)
    state = torch.load(save_as(model, tmp_path / "a.pth", "microsoft_dense"), weights_only=True)["state_dict"]
    more = state | {"roi_head.bbox_head.0.cls_fcs.0.weight": torch.ones(16, 16)}
    torch.save({"state_dict": more}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"unexpected roi_head\.bbox_head\.0\.cls_fcs\.0\.weight"):
        load(tmp_path / "more.pth", say=lambda _: None)
    hybrid = state | {"roi_head.semantic_head.conv_logits.weight": torch.ones(4, 4, 1, 1)}
    torch.save({"state_dict": hybrid}, tmp_path / "htc.pth")
    found, _ = quietly(tmp_path / "htc.pth")
    assert (found.task, found.config.head.num_classes) == ("classify", 0)
    assert "neck.lateral_convs.0.conv.weight" in open_weights(tmp_path / "htc.pth").weights.dropped


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rpn_head.rpn_reg", "the file has 5 anchors in a cell where published ones have 3"),
        ("roi_head.bbox_head.3.fc_cls", "the file's cascade has 4 stages; only one of 3"),
        ("roi_head.bbox_head.999999999.fc_cls", "the file's cascade has 1000000000 stages"),
        ("roi_head.bbox_head.0.shared_convs.999999999.conv", "far larger than its weights"),
        ("roi_head.mask_head.0.convs.999999999.conv", "far larger than its weights"),
    ],
)
def test_numbers_that_no_published_file_has_are_refused(name: str, says: str, tmp_path: Path) -> None:
    model = ready("cascade_mask_rcnn_swin_tiny", small_maps="pad_shift", **CASCADE)
    state = torch.load(save_as(model, tmp_path / "a.pth", "openmmlab"), weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {f"{name}.weight": torch.ones(20, 8, 1, 1)}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / "b.pth", say=lambda _: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_mmdetection_s_resnets_are_torchvision_s(head: str, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    body = resnet18()
    scramble(body)
    fields = {"num_classes": 5, "pyramid_width": 8, "norm": "frozen", "frozen_stages": 1}
    fields |= {"box_width": 16, "mask_width": 8} if head == "mask_rcnn" else {}
    model = ready(f"{head}_resnet_18", **fields)
    state = torch.load(save_as(model, tmp_path / "a.pth", "openmmlab"), weights_only=True)["state_dict"]
    names = {f"backbone.{name}" for name in body.state_dict() if not name.startswith("fc.")}
    uncounted = {name for name in names if not name.endswith("num_batches_tracked")}
    assert {name for name in state if name.startswith("backbone.")} == uncounted
    theirs = state | {name: x for name, x in body.state_dict(prefix="backbone.").items() if name in names}
    torch.save({"state_dict": theirs}, tmp_path / f"{head}_r18_fpn_1x_coco.pth")
    found, _ = quietly(tmp_path / f"{head}_r18_fpn_1x_coco.pth")
    assert dataclasses.replace(found.config, name=model.config.name) == model.config
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = body.eval().maxpool(body.relu(body.bn1(body.conv1(images))))
        assert_close(
            found.backbone(images)[-1].permute(0, 3, 1, 2), body.layer4(body.layer3(body.layer2(body.layer1(x)))), 1e-5
        )
    torch.save({"state_dict": theirs}, tmp_path / f"{head}_r18_caffe_fpn_1x_coco.pth")
    with pytest.raises(CheckpointError, match="a ResNet of style 'caffe' has its strides elsewhere"):
        load(tmp_path / f"{head}_r18_caffe_fpn_1x_coco.pth", say=lambda _: None)


# -- torchvision -------------------------------------------------------------------------------------------------------


def of_torchvision(kind: str, *, frozen: bool = True) -> nn.Module:
    """Its builders' models with fewer channels, at the size of the pictures that they get, in fp64."""
    from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
    from torchvision.models.detection import faster_rcnn as boxes
    from torchvision.models.detection import mask_rcnn as masks
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

    torch.manual_seed(0)
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    retinanet, second = "retinanet" in kind, kind.endswith("v2")
    width, stages = (64, (2, 3, 4)) if retinanet else (16, (1, 2, 3, 4))
    more: Any = LastLevelP6P7(512 if second else width, width) if retinanet else LastLevelMaxPool()
    layers = {f"layer{stage}": str(number) for number, stage in enumerate(stages)}
    pyramid = BackboneWithFPN(body, layers, [32 * 2**stage for stage in stages], width, more)
    size: dict[str, Any] = {"min_size": 64, "max_size": 96, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    if retinanet:
        norm = {"norm_layer": lambda channels: nn.GroupNorm(32, channels)} if second else {}
        head = RetinaNetHead(width, 9, 6, **norm)
        model: nn.Module = RetinaNet(pyramid, 6, anchor_generator=_default_anchorgen(), head=head, **size)
    else:
        size |= {"box_head": boxes.TwoMLPHead(width * 49, 24), "box_predictor": boxes.FastRCNNPredictor(24, 6)}
        if kind == "maskrcnn":
            size["mask_head"] = masks.MaskRCNNHeads(width, (8,) * 4, 1)
            size["mask_predictor"] = masks.MaskRCNNPredictor(8, 8, 6)
        model = (MaskRCNN if kind == "maskrcnn" else FasterRCNN)(pyramid, **size)
    scramble(model)
    for name, buffer in model.named_buffers():
        if "bn" in name or "downsample.1" in name:
            if name.endswith(("weight", "running_var")):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                buffer.normal_(0, 0.2)
    for name, weight in model.named_parameters():
        if name.endswith(("bbox_pred.weight", "bbox_reg.weight")):
            weight.data.mul_(0.3)  # boxes near their anchors
    return balanced(model.double().eval())


def balanced(model: Any) -> nn.Module:
    """With no class of regions more likely than others on the whole: each is some region's."""
    if hasattr(model, "roi_heads"):
        seen: list[Tensor] = []
        predictor = model.roi_heads.box_predictor
        hook = predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean(0)))
        with torch.no_grad():
            model(list(pictures()))
            predictor.cls_score.bias.copy_(-predictor.cls_score.weight @ seen[0])
        hook.remove()
    return model


def pictures() -> Tensor:
    """With large shapes in them, so that regions differ."""
    coarse = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=(64, 96), mode="nearest")


def assert_same_found(one: Detections, other: Detections) -> None:
    """The same scores in the same order, of the same boxes and classes; equally sure ones may change places."""
    assert len(one) == len(other) > 10
    assert (one.scores - other.scores).abs().max() <= 1e-5
    apart = (one.boxes[:, None] - other.boxes).abs().amax(-1) + 1e3 * (one.labels[:, None] != other.labels)
    apart = apart + 1e3 * ((one.scores[:, None] - other.scores).abs() > 1e-5)
    nearest, which = apart.min(1)
    assert nearest.max() <= 1e-3
    assert len(which.unique()) == len(which)


TORCHVISION = {"maskrcnn": 5, "fasterrcnn": 5, "retinanet": 6, "retinanet_v2": 6}


def theirs_found(peer: nn.Module, images: Tensor, shift: int) -> list[Detections]:
    """Its answers, with the classes counted as ours are."""
    with torch.no_grad():
        answers = peer(list(images))
    size = images.shape[2], images.shape[3]
    return [
        Detections(boxes=one["boxes"], scores=one["scores"], labels=one["labels"] - shift, size=size) for one in answers
    ]


@pytest.mark.parametrize("kind", TORCHVISION)
@pytest.mark.parametrize("frozen", [True, False])
def test_torchvision_s_detections_are_found_here(kind: str, frozen: bool, tmp_path: Path) -> None:
    peer = of_torchvision(kind, frozen=frozen)
    torch.save(peer.state_dict(), tmp_path / "theirs.pth")
    found, report = quietly(tmp_path / "theirs.pth")
    head: Any = found.config.head
    assert (head.num_classes, head.convention, head.masks) == (TORCHVISION[kind], "torchvision", kind == "maskrcnn")
    assert found.config.backbone.norm == ("frozen" if frozen else "batch")  # type: ignore[union-attr]
    assert ("norm_eps 1e-05 (as torchvision builds them; 0 where" in report) == frozen
    images = pictures()
    with torch.no_grad():
        ours = found.double()(images)
    shift = 0 if "retinanet" in kind else 1
    for one, other in zip(ours, theirs_found(peer, images, shift), strict=True):
        assert len(one.labels.unique()) > 1
        assert_same_found(one, other)
    if kind == "maskrcnn":
        with torch.no_grad():
            pasted = peer(list(images))[0]["masks"][:5, 0] > 0.5
        mine = torch.stack([ours[0].mask(index) for index in range(5)])
        assert pasted.any()
        assert (pasted != mine).float().mean() < 0.02  # it pastes on whole pixels


@pytest.mark.parametrize("kind", TORCHVISION)
def test_torchvision_loads_what_we_write(kind: str, tmp_path: Path) -> None:
    peer = of_torchvision(kind)
    torch.save(peer.state_dict(), tmp_path / "theirs.pth")
    model, _ = quietly(tmp_path / "theirs.pth")
    scramble(model)
    back = torch.load(save_as(model, tmp_path / "back.pth", "torchvision"), weights_only=True)
    peer.load_state_dict(back)
    assert list(back) != []
    again, _ = quietly(tmp_path / "back.pth")
    assert_same_state(again, model)
    images = pictures()[:1]
    with torch.no_grad():
        (one,), (other,) = model.double()(images), theirs_found(peer, images, 0 if "retinanet" in kind else 1)
    assert_same_found(one, other)


@pytest.mark.parametrize("kind", ["maskrcnn", "fasterrcnn", "retinanet"])
def test_what_torchvision_published_before_its_names_changed_is_read_with_norms_that_add_nothing(
    kind: str, tmp_path: Path
) -> None:
    """The names that ``_load_from_state_dict`` of its classes turns into those of now; COCO_V1 alone has them."""
    from torchvision.models.detection._utils import overwrite_eps

    peer = of_torchvision(kind)
    overwrite_eps(peer, 0.0)
    old = {_before_013(name): x for name, x in peer.state_dict().items()}
    changed = sum(name not in old for name in peer.state_dict())
    assert changed == {"maskrcnn": 26, "fasterrcnn": 18, "retinanet": 28}[kind]
    torch.save(old, tmp_path / "old.pth")
    fresh = of_torchvision(kind)
    fresh.load_state_dict(torch.load(tmp_path / "old.pth", weights_only=True))
    found, report = quietly(tmp_path / "old.pth")
    assert "norm_eps" not in report
    assert found.config.backbone.norm_eps == 0.0  # type: ignore[union-attr]
    images = pictures()[:1]
    with torch.no_grad():
        (one,), (other,) = found.double()(images), theirs_found(peer, images, 0 if kind == "retinanet" else 1)
    assert_same_found(one, other)
    new = {**peer.state_dict()}
    torch.save(new, tmp_path / "new.pth")
    assert load(tmp_path / "new.pth", say=lambda _: None, norm_eps=0.0).config.backbone == found.config.backbone


def _before_013(name: str) -> str:
    name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name).replace(
        "rpn.head.conv.0.0.", "rpn.head.conv."
    )
    name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
    return re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)


def test_torchvision_s_second_r_cnns_are_refused_by_name(tmp_path: Path) -> None:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    with torch.device("meta"):
        names = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "v2.pth")
    with pytest.raises(CheckpointError, match="fasterrcnn_resnet50_fpn_v2 and maskrcnn_resnet50_fpn_v2 have norms in"):
        load(tmp_path / "v2.pth")


def test_as_many_classes_as_torchvision_s_are_coco_s(tmp_path: Path) -> None:
    fields = {"num_classes": 90, "width": 8, "pyramid_width": 8, "box_width": 16, "mask_width": 8}
    model = ready("mask_rcnn_resnet_18", convention="torchvision", **fields)
    found, report = quietly(save_as(model, tmp_path / "a.pth", "torchvision"))
    assert found.classes is not None
    assert (found.classes[0], found.classes[11], found.classes[89]) == ("person", "N/A", "toothbrush")
    assert found.classes == coco_by_id()[1:]
    assert "COCO's names, since the head has 90 classes" in report


# -- facebook's DETR ---------------------------------------------------------------------------------------------------


def facebook() -> FacebookDetr:
    torch.manual_seed(0)
    peer = FacebookDetr(5, width=64, heads=8, hidden=24, layers=(2, 3), queries=7)
    scramble(peer)
    for name, buffer in peer.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith("weight") else buffer.add_(torch.rand_like(buffer) * 0.2)
    return peer.eval()


def test_facebook_s_names_and_layers_give_our_logits_and_boxes(tmp_path: Path) -> None:
    peer = facebook()
    torch.save({"model": peer.state_dict(), "epoch": 299}, tmp_path / "detr-r18-0123abcd.pth")
    found, report = quietly(tmp_path / "detr-r18-0123abcd.pth")
    assert "facebook format" in report
    assert "transformer_heads 8 (as in every published one" in report
    expected = {field: value for field, value in DETR.items() if field in DetrConfig.__dataclass_fields__}
    assert found.config.head == DetrConfig(**expected)
    images = torch.randn(2, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        outputs = found.double().outputs(images)
        logits, boxes = peer.double()(images)
    assert_close(outputs.logits[-1], logits, 1e-10)
    assert_close(outputs.boxes[-1], boxes, 1e-10)
    back = torch.load(save_as(found.float(), tmp_path / "back.pth", "facebook"), weights_only=True)["model"]
    state = facebook().state_dict()
    assert set(back) == {name for name in state if not name.endswith("num_batches_tracked")}
    assert [name for name, x in back.items() if not torch.equal(x, state[name])] == []


def test_facebook_s_masks_come_back_under_its_names(tmp_path: Path) -> None:
    model = ready("detr_resnet50", masks=True, **DETR)
    there = save_as(model, tmp_path / "theirs.pth", "facebook")
    state = torch.load(there, weights_only=True)["model"]
    assert {name for name in state if not name.startswith("detr.")} == {*names_of_facebook_masks()}
    assert state["mask_head.lay1.weight"].shape == (72, 72, 3, 3)
    assert [tuple(state[f"mask_head.adapter{number}.weight"].shape[:2]) for number in (1, 2, 3)] == [
        (32, 128),
        (16, 64),
        (8, 32),
    ]
    found, report = quietly(there)
    assert_same_state(found, model)
    assert "transformer_heads" not in report  # its mask head tells
    assert found.config.head == model.config.head


def test_as_many_classes_as_detr_s_are_coco_s(tmp_path: Path) -> None:
    model = ready("detr_resnet50", **DETR | {"num_classes": 91})
    found, _ = quietly(save_as(model, tmp_path / "a.pth", "facebook"))
    assert found.classes == coco_by_id()
    assert (found.config.name, found.config.backbone) == ("detr_resnet50", model.config.backbone)


@pytest.mark.parametrize(
    ("file", "more", "says"),
    [
        ("detr-r50-dc5-f0fb7ef5.pth", {}, "a DC5 model's last stage is dilated"),
        (
            "a.pth",
            {"transformer.encoder.norm.weight": torch.ones(64)},
            r"unexpected transformer\.encoder\.norm\.weight",
        ),
        ("a.pth", {"transformer.encoder.layers.0.self_attn.in_proj_bias": torch.ones(190)}, "190 rows, not as many"),
        ("a.pth", {"transformer.decoder.layers.999999999.norm1.weight": torch.ones(64)}, "far larger than its weights"),
    ],
)
def test_a_detr_of_another_make_is_refused(file: str, more: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    torch.save({"model": facebook().state_dict() | more}, tmp_path / file)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path / file, say=lambda _: None)
    assert "\n" not in str(caught.value)


# -- transformers' DETR ------------------------------------------------------------------------------------------------


def of_transformers(*, masks: bool, timm: bool = False, **changes: Any) -> nn.Module:
    from transformers import DetrConfig as TheirConfig
    from transformers import DetrForObjectDetection, DetrForSegmentation, ResNetConfig

    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 7}
    shape |= {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in _LAYER.items()}
    shape |= {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    if timm:
        config = TheirConfig(backbone="resnet18", **shape, **changes)
    else:
        stages = [f"stage{number}" for number in range(1, 5)][0 if masks else 3 :]
        size = {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 2, 1, 1]}
        body = ResNetConfig(**size, out_features=stages)
        config = TheirConfig(use_timm_backbone=False, backbone=None, backbone_config=body, **shape, **changes)
    model = (DetrForSegmentation if masks else DetrForObjectDetection)(config).eval()
    scramble(model)
    for name, buffer in model.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else buffer.normal_(0, 0.2)
    return model


_LAYER = {"ffn_dim": 24, "attention_heads": 16}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("timm", [False, True])
@pytest.mark.parametrize("on_disk", [True, False])
def test_transformers_detr_gives_its_logits_boxes_and_masks_here(
    masks: bool, timm: bool, on_disk: bool, tmp_path: Path
) -> None:
    theirs = of_transformers(masks=masks, timm=timm)
    if on_disk:
        theirs.save_pretrained(tmp_path / "theirs")
    else:
        (tmp_path / "theirs").mkdir()
        torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
        theirs.config.save_pretrained(tmp_path / "theirs")
    found, report = quietly(tmp_path / "theirs")
    assert "huggingface format" in report
    assert (found.classes, found.config.head.masks) == (CLASSES, masks)
    assert found.config.head.transformer_heads == 16
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        outputs, expected = found.outputs(images), theirs(images)
    assert_close(outputs.logits[-1], expected.logits, 1e-4)
    assert_close(outputs.boxes[-1], expected.pred_boxes, 1e-4)
    if masks:
        assert_close(outputs.masks, expected.pred_masks, 1e-4)


@pytest.mark.parametrize("masks", [False, True])
def test_transformers_loads_what_we_write_and_nothing_is_left_over(masks: bool, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, DetrForObjectDetection, DetrForSegmentation

    model = ready("detr_resnet50", masks=masks, **DETR)
    folder = convert(save(model, tmp_path / "own"), tmp_path / "theirs", to="huggingface")
    kind = DetrForSegmentation if masks else DetrForObjectDetection
    theirs, about = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(about.values())
    assert tuple(theirs.config.id2label.values()) == CLASSES
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs, expected = model.outputs(images), theirs.eval()(images)
    assert_close(outputs.logits[-1], expected.logits, 1e-4)
    assert_close(outputs.boxes[-1], expected.pred_boxes, 1e-4)
    photo = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=photo, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == model.preprocess(photo).shape  # type: ignore[misc]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "model.safetensors")  # without our card: what transformers knows
    found, _ = quietly(folder)
    assert_same_state(found, model)
    assert (found.classes, found.preprocess, found.config.head) == (CLASSES, WITHIN, model.config.head)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, ((480, 640), "within")),
        ({"size": 800, "max_size": 1333}, ((800, 1333), "within")),
        ({"size": {"height": 48, "width": 64}}, ((48, 64), "squash")),
        ({"size": {"shortest_edge": 480}}, ((480, 480), "short")),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}, "do_resize": False}, ((480, 640), "native")),
    ],
)
def test_a_processor_s_word_goes_before_what_is_usual(
    about: dict[str, Any], expected: tuple[Any, str], tmp_path: Path
) -> None:
    import json

    of_transformers(masks=False).save_pretrained(tmp_path / "theirs")
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(pixels | about))
    preprocess = load(tmp_path / "theirs").preprocess
    assert preprocess is not None
    assert (preprocess.size, preprocess.fit, preprocess.interpolation) == (*expected, "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"position_embedding_type": "learned"}, "position_embedding_type 'learned'"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"encoder_attention_heads": 8}, "heads in encoder and decoder"),
        ({"dilation": True}, "dilation True"),
    ],
)
def test_a_config_of_another_detr_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    import json

    of_transformers(masks=False).save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path / "theirs")
    assert "\n" not in str(caught.value)


# -- what cannot be written, and other classes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "form", "says"),
    [
        ("mask_rcnn_swin_tiny", RCNN, "torchvision", "cannot hold a swin with a mask_rcnn head"),
        ("mask_rcnn_swin_tiny", RCNN | {"convention": "torchvision"}, "openmmlab", "has convention 'openmmlab'"),
        (
            "retinanet_swin_tiny",
            RETINANET | {"first_stage": 0},
            "openmmlab",
            "has a pyramid of 3 of the backbone's maps",
        ),
        ("detr_resnet50", DETR | {"memory_stage": 2}, "huggingface", "looks at the last stage; this model looks at 2"),
        ("detr_resnet50", DETR, "torchvision", "cannot hold a resnet with a detr head"),
        ("detr_swin_tiny", SWIN | {"encoder_layers": 1, "decoder_layers": 1}, "facebook", "cannot hold a swin"),
        ("detr_resnet50", DETR | {"norm_eps": 0.0}, "facebook", "has norm_eps 1e-05; this model has 0.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*small_maps:swindow.checkpoints.AssumedWarning")
def test_what_a_class_cannot_build_is_refused(
    name: str, fields: dict[str, Any], form: str, says: str, tmp_path: Path
) -> None:
    path = save(build(name, **fields), tmp_path / "own")
    with pytest.raises(CheckpointError, match=says) as caught:
        convert(path, tmp_path / "x.pth", to=form)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize(
    ("name", "fields", "fresh"),
    [
        ("mask_rcnn_swin_tiny", RCNN, ("boxes.0.logits", "boxes.0.deltas", "masks.0.logits")),
        (
            "cascade_mask_rcnn_swin_tiny",
            CLASSIC,
            tuple(f"{part}.{i}.logits" for part in ("boxes", "masks") for i in range(3)),
        ),
        ("retinanet_swin_tiny", RETINANET, ("classes.last",)),
        ("detr_resnet50", DETR, ("classifier",)),
    ],
)
def test_of_other_classes_only_what_names_them_starts_anew(
    name: str, fields: dict[str, Any], fresh: tuple[str, ...], tmp_path: Path
) -> None:
    path = save(ready(name, **fields), tmp_path / "own")
    other = build(name, **fields | {"num_classes": 3})
    with pytest.raises(CheckpointError, match='head="reset"'):
        load_weights(other, path)
    report = load_weights(other, path, head="reset", say=None)
    found = {entry.split(",")[0].rpartition(".")[0] for entry in report.reset}
    assert found == {f"head.{part}" for part in fresh}


def test_a_classifier_takes_a_detector_s_backbone_and_the_other_way_round(tmp_path: Path) -> None:
    path = save(ready("mask_rcnn_swin_tiny", **RCNN), tmp_path / "own")
    classifier = build("swin_tiny", **SWIN)
    report = load_weights(classifier, path, head="reset", say=None)
    assert {entry for entry in report.reset if not entry.startswith("head.")} == set()
    detector = build("cascade_mask_rcnn_swin_tiny", **CASCADE)
    report = load_weights(detector, save(classifier, tmp_path / "classifier"), head="reset", say=None)
    assert {entry for entry in report.reset if not entry.startswith("head.")} == {
        f"backbone.norms.{stage}.{kind}" for stage in range(3) for kind in ("weight", "bias")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        ("maskrcnn_resnet50_fpn", MaskRcnnConfig(num_classes=90, convention="torchvision", regions=PROPOSALS)),
        (
            "fasterrcnn_resnet50_fpn",
            MaskRcnnConfig(num_classes=90, masks=False, convention="torchvision", regions=PROPOSALS),
        ),
        (
            "retinanet_resnet50_fpn",
            RetinaNetConfig(num_classes=91, convention="torchvision", most_detections=300, extra_from="level"),
        ),
        (
            "retinanet_resnet50_fpn_v2",
            RetinaNetConfig(
                num_classes=91, convention="torchvision", most_detections=300, tower_norm="group", box_loss="giou"
            ),
        ),
    ],
)
def test_at_full_size_torchvision_s_are_what_their_builders_build(builder: str, expected: Any, tmp_path: Path) -> None:
    from torchvision.models import detection

    torch.manual_seed(0)
    peer = getattr(detection, builder)(weights=None, weights_backbone=None).eval()
    torch.save(peer.state_dict(), tmp_path / "theirs.pth")
    found, report = quietly(tmp_path / "theirs.pth")
    assert found.config.head == expected
    assert (found.config.backbone.depths, found.config.backbone.norm) == ((3, 4, 6, 3), "batch")  # type: ignore[union-attr]
    assert "COCO's names" in report
    count = sum(x.numel() for x in peer.parameters())
    spare = (4 * (1024 + 1) if "rcnn" in builder else 0) + (256 + 1 if "mask" in builder else 0)  # background's
    assert sum(x.numel() for x in found.parameters()) == count - spare
    images = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        theirs = peer.backbone(images)
        ours = found.head.fpn(found.backbone(images))
    for one, other in zip(ours, theirs.values(), strict=True):
        assert_close(one, other, 1e-4)


@pytest.mark.slow
def test_at_full_size_transformers_detr_is_the_published_one(tmp_path: Path) -> None:
    from transformers import DetrConfig as TheirConfig
    from transformers import DetrForObjectDetection

    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(coco_by_id())), "label2id": {"N/A": 0}}
    theirs = DetrForObjectDetection(TheirConfig(backbone="resnet50", num_labels=91, **labels)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    found, _ = quietly(tmp_path / "theirs")
    built = build("detr_resnet50")
    assert found.config == built.config
    assert found.classes == coco_by_id()
    learned = [x.numel() for x in found.parameters() if x.requires_grad]
    assert sum(learned) == 41_302_368
    assert sum(x.numel() for x in found.parameters()) == 41_524_768
    images = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        outputs, expected = found.outputs(images), theirs(images)
    assert (outputs.logits[-1] - expected.logits).abs().max() <= 1e-4
    assert (outputs.boxes[-1] - expected.pred_boxes).abs().max() <= 1e-4
