"""RetinaNet's head, part by part; `tests/test_parity_retinanet.py` compares the whole with torchvision's."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from swindow.backbones import ResNetConfig
from swindow.errors import ConfigError
from swindow.heads.assigning import BACKGROUND, NEITHER
from swindow.heads.retinanet import RetinaNet, RetinaNetConfig, RetinaNetOutputs
from swindow.model import ModelConfig, build
from swindow.objects import Frames, Objects, Targets, no_objects
from tiny_families import FAMILIES

SMALL: dict[str, Any] = {"num_classes": 5, "pyramid_width": 8, "tower": 1}
FRAMES = Frames((64, 96), ((64, 96), (40, 50)))


def head(**fields: Any) -> RetinaNet:
    return RetinaNetConfig(**{**SMALL, **fields}).build((8, 16), (8, 16)).eval()


def pyramid(frames: Frames = FRAMES) -> tuple[Tensor, ...]:
    height, width = frames.canvas
    return tuple(torch.randn(len(frames.sizes), height // s, width // s, c) for c, s in ((8, 8), (16, 16)))


def objects(
    boxes: list[tuple[float, float, float, float]], labels: list[int], *, crowd: tuple[int, ...] = ()
) -> Objects:
    return Objects(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels),
        crowd=torch.tensor([number in crowd for number in range(len(boxes))]),
        areas=torch.ones(len(boxes)),
    )


SOME = Targets((objects([(8, 8, 50, 40), (60, 20, 90, 60)], [1, 4]), objects([(4, 6, 40, 36)], [2])), FRAMES)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_parameters_are_those_published() -> None:
    with torch.device("meta"):
        trunk = ResNetConfig(depths=(3, 4, 6, 3), norm="frozen")
        published = RetinaNetConfig(num_classes=91, convention="torchvision", extra_from="level")
        theirs = ModelConfig(name="retinanet_resnet_50", backbone=trunk, head=published).build()
        ours = build("retinanet_swin_tiny")
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 34_014_999
    assert sum(parameter.numel() for parameter in ours.parameters()) == pytest.approx(38.5e6, rel=0.002)


@pytest.mark.parametrize("fields", [{}, {"tower_norm": "group"}, {"convention": "torchvision", "extra_from": "level"}])
def test_every_parameter_learns(fields: dict[str, Any]) -> None:
    retina = head(**fields).train()
    total(retina.loss(retina(pyramid(), FRAMES), SOME)).backward()
    for name, parameter in retina.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_starts_with_the_prior() -> None:
    retina = RetinaNetConfig(num_classes=5, prior=0.02).build((8, 16), (8, 16))
    shares = retina(pyramid(), FRAMES).logits.sigmoid()
    assert shares.mean().item() == pytest.approx(0.02, rel=0.05)
    assert retina.classes.convs[2].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_every_cell_of_every_map_has_nine_anchors() -> None:
    retina = head()
    outputs = retina(pyramid(), FRAMES)
    assert outputs.grids == ((8, 12), (4, 6), (2, 3), (1, 2))
    every = torch.cat(retina.anchors(outputs))
    count = 9 * sum(rows * columns for rows, columns in outputs.grids)
    assert outputs.logits.shape == (2, count, 5)
    assert outputs.deltas.shape == (2, count, 4)
    assert every.shape == (count, 4)
    sides = every[:9, 2:] - every[:9, :2]
    for number, ratio in enumerate((0.5, 1, 2)):
        for scale in range(3):
            size = 4 * 2 ** (scale / 3) * 8
            width, height = sides[3 * number + scale].tolist()
            assert (width, height) == pytest.approx((size / math.sqrt(ratio), size * math.sqrt(ratio)), rel=1e-5)


def test_losses_by_hand() -> None:
    """Focal loss of all anchors but those between the thresholds, L1 of the deltas of those with objects."""
    retina = head()
    outputs = retina(pyramid(), FRAMES)
    outputs = outputs._replace(logits=torch.randn_like(outputs.logits), deltas=torch.randn_like(outputs.deltas))
    every = torch.cat(retina.anchors(outputs))
    found = retina.found(every, SOME)
    classes, boxes, count = 0.0, 0.0, 0
    for image, one in enumerate(SOME.objects):
        overlaps = box_iou(every, one.boxes)
        height, width = FRAMES.sizes[image]
        middle = (every[:, :2] + every[:, 2:]) / 2
        inside = (middle[:, 0] < width) & (middle[:, 1] < height)
        best = [overlaps[inside, number].max() for number in range(len(one))]
        for anchor in range(len(every)):
            holds = [n for n in range(len(one)) if overlaps[anchor, n] == best[n]]
            holds = holds[-1:] or ([int(overlaps[anchor].argmax())] if overlaps[anchor].max() >= 0.5 else [])
            if not inside[anchor] or (not holds and overlaps[anchor].max() >= 0.4):
                assert found[image, anchor] == NEITHER
                continue
            assert found[image, anchor] == (holds[0] if holds else BACKGROUND)
            for label in range(5):
                share = outputs.logits[image, anchor, label].sigmoid().item()
                true = bool(holds) and one.labels[holds[0]] == label
                sure = share if true else 1 - share
                classes -= (0.25 if true else 0.75) * (1 - sure) ** 2 * math.log(sure)
            if holds:
                (a, b, c, d), (e, f, g, h) = every[anchor].tolist(), one.boxes[holds[0]].tolist()
                shift = ((e + g) - (a + c)) / 2 / (c - a), ((f + h) - (b + d)) / 2 / (d - b)
                aims = (*shift, math.log((g - e) / (c - a)), math.log((h - f) / (d - b)))
                said = outputs.deltas[image, anchor].tolist()
                boxes += sum(abs(x - y) for x, y in zip(said, aims, strict=True))
                count += 1
    losses = retina.loss(outputs, SOME)
    assert count >= 3
    assert losses["classes"].item() == pytest.approx(classes / count, rel=1e-4)
    assert losses["boxes"].item() == pytest.approx(boxes / count, rel=1e-4)


def test_losses_are_shared_by_the_batch_or_by_each_picture() -> None:
    outputs = head()(pyramid(), FRAMES)
    for convention in ("openmmlab", "torchvision"):
        retina = head(convention=convention)
        found = retina.found(torch.cat(retina.anchors(outputs)), SOME)
        counts = [int((one >= 0).sum()) for one in found]
        both = retina.loss(outputs, SOME)
        alone = []
        for image, size in enumerate(FRAMES.sizes):
            frames = Frames(FRAMES.canvas, (size,))
            one = RetinaNetOutputs(outputs.logits[[image]], outputs.deltas[[image]], outputs.grids, frames)
            alone.append(retina.loss(one, Targets(SOME.objects[image : image + 1], frames)))
        weights = [count / sum(counts) for count in counts] if convention == "openmmlab" else [0.5, 0.5]
        for name in ("classes", "boxes"):
            expected = sum(weight * losses[name] for weight, losses in zip(weights, alone, strict=True))
            torch.testing.assert_close(both[name], expected)


@pytest.mark.parametrize("convention", ["openmmlab", "torchvision"])
@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_a_batch_without_objects_has_finite_losses_and_gradients(convention: str, box_loss: str) -> None:
    retina = head(convention=convention, box_loss=box_loss).train()
    nothing = Targets((no_objects(), no_objects()), FRAMES)
    losses = retina.loss(retina(pyramid(), FRAMES), nothing)
    assert losses["classes"] > 0
    assert losses["boxes"] == 0
    total(losses).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in retina.parameters())  # type: ignore[arg-type]
    assert retina.right(retina(pyramid(), FRAMES), nothing)[1] == 0


def test_crowds_are_neither_objects_nor_background() -> None:
    retina = head()
    outputs = retina(pyramid(), FRAMES)
    every = torch.cat(retina.anchors(outputs))
    crowded = objects([(8, 8, 50, 40), (0, 0, 96, 64)], [1, 4], crowd=(1,))
    found = retina.found(every, Targets((crowded, SOME.objects[1]), FRAMES))
    assert set(found[0].unique().tolist()) <= {0, NEITHER, BACKGROUND}
    covered = (every[:, 0] >= 0) & (every[:, 1] >= 0) & (every[:, 2] <= 96) & (every[:, 3] <= 64)
    assert (found[0, covered] != BACKGROUND).all()


def test_padding_is_neither_learned_nor_judged() -> None:
    """Whatever is said of anchors whose middle lies there; torchvision's convention, where it is background, aside."""
    retina = head()
    outputs = retina(pyramid(), FRAMES)
    every = torch.cat(retina.anchors(outputs))
    middle = (every[:, :2] + every[:, 2:]) / 2
    beyond = (middle[:, 0] >= 50) | (middle[:, 1] >= 40)
    loud = outputs.logits.clone()
    loud[1, beyond] = 9.0
    assert (retina.found(every, SOME)[1, beyond] == NEITHER).all()
    for name, loss in retina.loss(outputs._replace(logits=loud), SOME).items():
        assert torch.equal(loss, retina.loss(outputs, SOME)[name])
    quiet, found = (retina.decode(outputs._replace(logits=logits)) for logits in (outputs.logits, loud))
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(quiet, found, strict=True))
    assert len(head(convention="torchvision").decode(outputs._replace(logits=loud))[1]) > 0


def test_a_batch_is_its_pictures() -> None:
    for convention in ("openmmlab", "torchvision"):
        retina, maps = head(convention=convention, score_threshold=0.0), pyramid()
        both = retina(maps, FRAMES)
        for image, size in enumerate(FRAMES.sizes):
            alone = retina(tuple(x[image : image + 1] for x in maps), Frames(FRAMES.canvas, (size,)))
            torch.testing.assert_close(both.logits[[image]], alone.logits)
            found, expected = retina.decode(both)[image], retina.decode(alone)[0]
            assert torch.equal(found.labels, expected.labels)
            torch.testing.assert_close(found.boxes, expected.boxes)


def test_answers_are_sorted_inside_their_picture_and_do_not_repeat_one_another() -> None:
    retina = head(candidates=40, most_detections=30, nms=0.4, score_threshold=0.3)
    outputs = retina(pyramid(), FRAMES)
    outputs = outputs._replace(logits=torch.randn_like(outputs.logits), deltas=torch.randn_like(outputs.deltas))
    for image, found in enumerate(retina.decode(outputs)):
        height, width = FRAMES.sizes[image]
        torch.testing.assert_close(found.scores, outputs.logits[image, found.queries, found.labels].sigmoid())
        assert 0 < len(found) <= 30
        assert found.size == (height, width)
        assert (found.scores.diff() <= 0).all()
        assert found.scores.min() > 0.3
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        overlaps = box_iou(found.boxes, found.boxes).fill_diagonal_(0)
        assert overlaps[found.labels[:, None] == found.labels].max() <= 0.4
        assert found.masks is None


def test_right_counts_anchors_with_objects() -> None:
    retina = head()
    outputs = retina(pyramid(), FRAMES)
    count = int((retina.found(torch.cat(retina.anchors(outputs)), SOME) >= 0).sum())
    logits = torch.zeros_like(outputs.logits)
    logits[..., 0] = 1.0
    assert [int(x) for x in retina.right(outputs._replace(logits=logits), SOME)] == [0, count]
    logits[0, :, 1], logits[1, :, 2] = 2.0, 2.0
    right, counted = retina.right(outputs._replace(logits=logits), SOME)
    assert 0 < right < counted == count


def test_in_bf16_losses_are_finite() -> None:
    retina = head().train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = retina(pyramid(), FRAMES)
        losses = retina.loss(outputs, SOME)
    assert outputs.logits.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    total(losses).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in retina.parameters())  # type: ignore[arg-type]
    assert all(one.boxes.dtype == torch.float32 for one in retina.decode(outputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_backbone_will_do(family: str) -> None:
    name, shape = FAMILIES[family]
    model = build(f"retinanet_{name}", **{**SMALL, **shape}, first_stage=0).eval()
    frames = Frames((32, 32), ((32, 32), (20, 17)))
    with torch.no_grad():
        outputs = model.outputs(torch.randn(2, 3, 32, 32), frames)
    assert all(torch.isfinite(one.boxes).all() for one in model.head.decode(outputs))
    finer = [a >= b for a, b in zip(outputs.grids, outputs.grids[1:], strict=False)]
    assert all(finer)
    every = torch.cat(model.head.anchors(outputs))
    assert outputs.logits.shape[1] == len(every)
    lowest, highest = every.amin(0), every.amax(0)
    assert lowest[:2].max() < 8  # they lie over the whole canvas
    assert highest[2:].min() > 24
    model.head.rehearse(outputs)


@pytest.mark.parametrize(
    ("count", "first", "expected"),
    [(4, 1, (1, 2, 3)), (3, 1, (1, 2)), (2, 1, (1,)), (1, 1, (0,)), (4, 0, (0, 1, 2, 3))],
)
def test_stages_that_are_read(count: int, first: int, expected: tuple[int, ...]) -> None:
    assert RetinaNetConfig(first_stage=first).stages(count) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 0}, "'candidates': 0} must be at least 1"),
        ({"first_stage": -1}, "first_stage -1, .* at least 0"),
        ({"anchor_scales": ()}, r"anchor_scales \(\) and anchor_ratios .* need values, all above 0"),
        ({"anchor_ratios": (0.0,)}, r"anchor_ratios \(0.0,\) need values, all above 0"),
        ({"under": 0.6}, r"under 0.6 and over 0.5 must rise in \[0, 1\]"),
        ({"prior": 1.0}, r"prior 1.0 lie in \(0, 1\)"),
        ({"focal_gamma": -1.0}, "focal_gamma -1.0, .* must not be below 0"),
        ({"nms": 0.0}, r"nms 0.0 in \(0, 1\]"),
    ],
)
def test_shapes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetinaNetConfig(**fields)
