"""Detectors in two steps: what holds for one stage and for several, and the second step's parts against loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, roi_align

from plain_boxes import suppressed
from swindow.errors import ConfigError, ShapeError
from swindow.heads import MaskRcnnConfig, RegionConfig, judging
from swindow.heads.assigning import BACKGROUND
from swindow.heads.detect import CONVENTIONS, best_of
from swindow.heads.extracting import extracted, levels_of
from swindow.heads.judging import found_in, mask_loss, samples_of
from swindow.heads.region_heads import BoxHead, ConvNorm, MaskHead
from swindow.model import build
from swindow.objects import Detections, Frames, Objects, Targets, no_objects
from swindow.ops.boxes import decode
from tiny_rcnns import CLASSES, KINDS, batch, objects, rcnn, stirred, targets, total
from tiny_rcnns import CONVENTIONS as BOTH

KIND = pytest.mark.parametrize("kind", KINDS)
CONVENTION = pytest.mark.parametrize("convention", BOTH)
EVERY_ANCHOR = RegionConfig(samples=10**6, candidates=(80, 80), proposals=(60, 40))
EVERYTHING = {"samples": 10**6, "regions": EVERY_ANCHOR}


def same(found: Detections, expected: Detections) -> None:
    assert found.size == expected.size
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    assert torch.equal(found.labels, expected.labels)
    if expected.masks is not None:
        torch.testing.assert_close(found.masks, expected.masks, rtol=0, atol=1e-4)


def test_state_dict_keys() -> None:
    layers = ["fpn.laterals.0", "fpn.laterals.1", "fpn.smooths.0", "fpn.smooths.1"]
    layers += ["regions.conv", "regions.logits", "regions.deltas"]
    layers += ["boxes.0.linears.0", "boxes.0.linears.1", "boxes.0.logits", "boxes.0.deltas"]
    layers += ["masks.0.convs.0", "masks.0.enlarge", "masks.0.logits"]
    head = MaskRcnnConfig(num_classes=2, mask_convs=1).build((4, 8), (4, 8))
    assert list(head.state_dict()) == [f"{name}.{part}" for name in layers for part in ("weight", "bias")]


@KIND
@CONVENTION
def test_a_batch_answers_like_its_pictures(kind: str, convention: str) -> None:
    head = rcnn(kind, convention=convention)
    maps, frames = batch((96, 128), (96, 128), (96, 128))
    with torch.no_grad():
        together = head.decode(head(maps, frames))
        for picture, found in enumerate(together):
            alone = head(tuple(x[picture : picture + 1] for x in maps), Frames((96, 128), ((96, 128),)))
            assert len(found) > 5
            same(found, head.decode(alone)[0])


@KIND
def test_a_batch_costs_like_its_pictures(kind: str) -> None:
    head = rcnn(kind, **EVERYTHING)  # in eval mode, so that batch norm mixes nothing
    maps, frames = batch((96, 128), (96, 128))
    truth = targets(frames, 3, 2)
    with torch.no_grad():
        twice = Targets((truth.objects[0],) * 2, frames)
        doubled = tuple(x[:1].expand(2, -1, -1, -1) for x in maps)
        one = Frames((96, 128), ((96, 128),))
        alone = head.loss(head(tuple(x[:1] for x in maps), one), Targets(truth.objects[:1], one))
        together = head.loss(head(doubled, frames), twice)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)


@KIND
@CONVENTION
@pytest.mark.parametrize("counts", [(0, 0), (0, 3)], ids=str)
def test_pictures_without_objects_have_a_loss_and_gradients(
    kind: str, convention: str, counts: tuple[int, int]
) -> None:
    head = rcnn(kind, convention=convention).train()
    maps, frames = batch((96, 128), (64, 100))
    losses = head.loss(head(maps, frames), targets(frames, *counts))
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    total(losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if any(counts) and (kind == "mask_rcnn" or not name.startswith("fpn.")):  # no coarse anchor lies inside
            assert parameter.grad.any(), name
    assert head.boxes[0].logits.weight.grad.any()


@KIND
def test_without_masks_it_finds_boxes(kind: str) -> None:
    with_masks, head = rcnn(kind), rcnn(kind, masks=False)
    assert not len(head.masks)
    head.load_state_dict({n: x for n, x in with_masks.state_dict().items() if not n.startswith("masks.")})
    maps, frames = batch((96, 128))
    boxes_alone = objects((96, 128), 3)
    boxes_alone = Objects(**{**vars(boxes_alone), "masks": None})
    with torch.no_grad():
        found, expected = (one.decode(one(maps, frames))[0] for one in (head, with_masks))
        assert found.masks is None
        assert expected.masks is not None
        assert ((expected.masks >= 0) & (expected.masks <= 1)).all()
        same(found, Detections(**{**vars(expected), "masks": None}))
        losses = head.loss(head(maps, frames), Targets((boxes_alone,), frames))
        assert not any(name.startswith("masks") for name in losses)
        with pytest.raises(ShapeError, match="masks=False"):
            with_masks.loss(with_masks(maps, frames), Targets((boxes_alone,), frames))


@KIND
@CONVENTION
def test_nothing_is_found_in_padding(kind: str, convention: str) -> None:
    head = rcnn(kind, convention=convention)
    maps, frames = batch((128, 160), (40, 160), (128, 33))
    with torch.no_grad():
        answers = head.decode(head(maps, frames))
    for found, (height, width) in zip(answers, frames.sizes, strict=True):
        assert found.size == (height, width)
        assert len(found)
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert ((found.boxes[:, 2:] - found.boxes[:, :2]) > 0).all()


def test_padding_is_not_learned_as_openmmlab_has_it() -> None:
    """What lies in the padding moves neither the proposals nor their loss, but for what convolutions see of it."""
    head = rcnn(**EVERYTHING)
    maps, frames = batch((128, 160), (64, 96))
    truth = targets(frames, 2, 2)
    with torch.no_grad():
        outputs = head(maps, frames)
        grids = [(x.shape[2], x.shape[3]) for x in outputs.maps]
        marks = [frames.padding(grid)[:, :, :, None].expand(-1, -1, -1, 3).flatten(1) for grid in grids]
        far = (
            torch.cat(marks, dim=1)
            & head.regions._asked(torch.cat(head.regions.anchors(outputs.maps, frames)), frames).logical_not()
        )
        assert far[1].any()
        changed = outputs._replace(logits=outputs.logits.masked_fill(far, 50.0))
        for name, value in head.regions.loss(*outputs[:3], truth).items():
            torch.testing.assert_close(head.regions.loss(*changed[:3], truth)[name], value)
        for found, expected in zip(head.regions.proposals(*changed), head.regions.proposals(*outputs), strict=True):
            assert torch.equal(found, expected)


def test_regions_of_a_crowd_are_not_drawn() -> None:
    head = rcnn()
    one = objects((96, 128), 3)
    crowd = torch.tensor([True, False, False])
    one = Objects(
        **{**vars(one), "crowd": crowd, "boxes": torch.tensor([[0.0, 0, 128, 60], [4, 4, 20, 30], [60, 70, 90, 90]])}
    )
    inside, outside = torch.tensor([[50.0, 10, 90, 50]]), torch.tensor([[10.0, 70, 40, 90]])
    drawn = samples_of((torch.cat([inside, outside, one.boxes[:1]]),), (one,), head.config, 0)
    rows = {tuple(box): which for box, which in zip(drawn.regions[0].tolist(), drawn.which[0].tolist(), strict=True)}
    assert rows == {(10, 70, 40, 90): BACKGROUND, (4, 4, 20, 30): 1, (60, 70, 90, 90): 2}
    assert drawn.given.tolist() == [
        tuple(box) in {(4, 4, 20, 30), (60, 70, 90, 90)} for box in drawn.regions[0].tolist()
    ]


def test_samples_say_what_is_to_be_found() -> None:
    head = rcnn(samples=16, share=0.25)
    pictures = (objects((96, 128), 4), no_objects(masks=(96, 128)), objects((96, 128), 9))
    pools = tuple(torch.cat([one.boxes + 1, torch.rand(40, 4).cumsum(1) * 30]) for one in pictures)
    drawn = samples_of(pools, pictures, head.config, 0)
    first = 0
    for regions, which, one, most in zip(drawn.regions, drawn.which, pictures, (4, 0, 4), strict=True):
        assert len(regions) == len(which) == 16
        assert int((which >= 0).sum()) == most
        for row, index in enumerate(which.tolist(), start=first):
            assert int(drawn.labels[row]) == (CLASSES if index < 0 else int(one.labels[index]))
            assert torch.equal(drawn.boxes[row], torch.cat(drawn.regions)[row] if index < 0 else one.boxes[index])
        first += 16


@CONVENTION
@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_by_loops(convention: str, agnostic: bool) -> None:
    config = rcnn(convention=convention, most_detections=20).config
    frames = Frames((96, 128), ((96, 128), (50, 60)))
    low = torch.rand(50, 2) * 70
    regions = (torch.cat([low, low + 5 + torch.rand(50, 2) * 40], 1), torch.tensor([[0.0, 0, 60, 50]]))
    scores = (torch.randn(51, CLASSES + 1) * 2).softmax(1)
    deltas = torch.randn(51, 1 if agnostic else CLASSES, 4)
    deltas[::7, :, 2] = -400  # too small to stay; under openmmlab's bound still a box
    found = found_in(regions, scores, deltas, frames, config)
    for picture, (rows, said, moves) in enumerate(
        zip(regions, scores.split([50, 1]), deltas.split([50, 1]), strict=True)
    ):
        height, width = frames.sizes[picture]
        boxes, sure, labels = [], [], []
        for row in range(len(rows)):
            for label in range(CLASSES):
                if said[row, label] <= config.score_threshold:
                    continue
                delta = moves[row, 0 if agnostic else label].double()
                box = decode(delta, rows[row].double(), config.deviations[0], smallest=config.details.smallest_growth)
                box = torch.minimum(box.clamp_min(0), torch.tensor([width, height, width, height]).double())
                if float((box[2:] - box[:2]).min()) > max(config.details.smallest_box, 0):
                    boxes.append(box), sure.append(said[row, label]), labels.append(label)
        kept = suppressed(torch.stack(boxes), torch.stack(sure), torch.tensor(labels), config.nms, 20)
        torch.testing.assert_close(found[picture].boxes.double(), torch.stack(boxes)[kept], rtol=0, atol=1e-3)
        torch.testing.assert_close(found[picture].scores, torch.stack(sure)[kept])
        assert found[picture].labels.tolist() == [labels[index] for index in kept]


def test_nothing_sure_enough_is_nothing_found() -> None:
    head = rcnn(score_threshold=0.99)
    maps, frames = batch((96, 128), (64, 64))
    with torch.no_grad():
        for found in head.decode(head(maps, frames)):
            assert len(found) == 0
            assert found.boxes.shape == (0, 4)
            assert found.masks is not None
            assert found.masks.shape == (0, 28, 28)


def test_regions_are_read_from_the_map_that_fits() -> None:
    sides = torch.tensor([1.0, 50, 111.9, 112, 223, 224, 447, 448, 5000, 0])
    regions = torch.stack([torch.zeros(10), torch.zeros(10), sides, sides], 1)
    assert levels_of(regions, (4.0, 8.0, 16.0, 32.0)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 0]
    assert levels_of(regions, (2.0, 4.0)).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0]


@CONVENTION
def test_cells_are_torchvision_s_where_it_aligns_alike(convention: str) -> None:
    maps, _ = batch((256, 256), (200, 256))
    levels = tuple(x.permute(0, 3, 1, 2)[:, :8] for x in maps)
    low = torch.rand(30, 2) * 100
    boxes = torch.cat([low, low + 10 + torch.rand(30, 2) * 140], 1)
    details = CONVENTIONS[convention]._replace(aligned=False)  # type: ignore[index]
    found = extracted(levels, (4.0, 8.0, 16.0, 32.0), (boxes[:20], boxes[20:]), 7, details)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, details.samples)
    expected = pool({str(i): x for i, x in enumerate(levels)}, [boxes[:20], boxes[20:]], [(256, 256)] * 2)
    assert len(levels_of(boxes, (4.0, 8.0, 16.0, 32.0)).unique()) > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    nothing = extracted(levels, (4.0, 8.0, 16.0, 32.0), (boxes[:0], boxes[:0]), 7, details)
    assert nothing.shape == (0, 8, 7, 7)


def test_an_aligned_cell_is_the_mean_of_its_pixels() -> None:
    x = torch.randn(1, 2, 32, 32)
    cells = extracted((x,), (4.0,), (torch.tensor([[8.0, 16, 64, 72]]),), 7, CONVENTIONS["openmmlab"])
    torch.testing.assert_close(cells[0], x[0, :, 4:18, 2:16].unflatten(2, (7, 2)).unflatten(1, (7, 2)).mean((2, 4)))


def test_masks_to_learn_are_what_lies_in_the_region() -> None:
    head = rcnn()
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 4:32, 8:22] = True
    one = Objects(
        boxes=torch.tensor([[8.0, 4, 36, 32]]),
        labels=torch.tensor([2]),
        masks=masks,
        crowd=torch.tensor([False]),
        areas=torch.tensor([28.0 * 14]),
    )
    drawn = samples_of((torch.zeros(0, 4),), (one,), head.config, 0)
    goal = masks[:, 4:32, 8:36].float()
    logits = torch.randn(1, 28, 28)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, goal)
    for hard in (True, False):
        details = CONVENTIONS["openmmlab"]._replace(hard_masks=hard)
        torch.testing.assert_close(mask_loss(logits, drawn, (one,), details), expected)


def test_masks_that_are_not_drawn_are_not_made_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hundreds of objects in a large picture they would take gigabytes."""
    config = rcnn(samples=8, share=0.5).config
    crowded, other = objects((64, 64), 50), objects((64, 64), 3)
    drawn = samples_of((torch.zeros(0, 4),) * 2, (crowded, other), config, 0)
    logits, asked = torch.randn(7, 28, 28), []

    def noted(maps: Tensor, *rest: Any, **more: Any) -> Tensor:
        asked.append(len(maps))
        return roi_align(maps, *rest, **more)

    monkeypatch.setattr(judging, "roi_align", noted)
    loss = mask_loss(logits, drawn, (crowded, other), config.details)
    assert asked == [4, 3]
    goals = []
    for one, regions, which in zip((crowded, other), drawn.regions, drawn.which, strict=True):
        for region, number in zip(regions, which.tolist(), strict=True):
            row = torch.cat([torch.zeros(1), region])[None]
            goals.append(roi_align(one.masks[None, number : number + 1].float(), row, 28, aligned=True)[0, 0] >= 0.5)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, torch.stack(goals).float())
    torch.testing.assert_close(loss, expected)


def test_the_masks_of_one_class_are_those_of_all() -> None:
    head = stirred(MaskHead(6, 4, width=8, convs=2))
    cells, labels = torch.randn(5, 6, 14, 14), torch.tensor([0, 3, 1, 1, 2])
    expected = head(cells)
    assert expected.shape == (5, 4, 28, 28)
    torch.testing.assert_close(head.of_class(cells, labels), expected[torch.arange(5), labels], rtol=1e-4, atol=1e-5)
    assert head.of_class(cells[:0], labels[:0]).shape == (0, 28, 28)


def test_a_box_head_by_hand() -> None:
    head = stirred(BoxHead(6, 4, width=10, convs=2, linears=1, conv_width=8, agnostic=False)).eval()
    x = torch.randn(5, 6, 7, 7)
    logits, deltas = head(x)
    for unit in head.convs:
        x = unit.norm(unit.conv(x)).relu()
    x = head.linears[0](x.flatten(1)).relu()
    torch.testing.assert_close(logits, head.logits(x))
    torch.testing.assert_close(deltas, head.deltas(x).reshape(5, 4, 4))
    assert BoxHead(6, 4, width=10, convs=0, linears=2, conv_width=8, agnostic=True)(torch.randn(5, 6, 7, 7))[
        1
    ].shape == (5, 1, 4)


def test_no_region_moves_no_statistics() -> None:
    unit = ConvNorm(4, 6).train()
    before = {name: value.clone() for name, value in unit.state_dict().items()}
    out = unit(torch.zeros(0, 4, 7, 7, requires_grad=True))
    assert out.shape == (0, 6, 7, 7)
    out.sum().backward()
    for name, value in unit.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in unit.parameters())
    unit(torch.randn(3, 4, 7, 7))
    assert not torch.equal(unit.norm.running_mean, before["norm.running_mean"])


@KIND
def test_autocast(kind: str) -> None:
    head = rcnn(kind, **EVERYTHING)
    maps, frames = batch((96, 128), (64, 128))
    truth = targets(frames, 3, 0)
    plain = head.loss(head(maps, frames), truth)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.loss(head(maps, frames), truth)
        found = head.decode(head(maps, frames))
    assert all(value.dtype == torch.float32 and bool(torch.isfinite(value)) for value in losses.values())
    torch.testing.assert_close(total(losses), total(plain), rtol=0.2, atol=0)
    total(losses).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    assert all(one.boxes.dtype == one.scores.dtype == torch.float32 and len(one) for one in found)


@KIND
def test_fewer_digits_throughout(kind: str) -> None:
    head = rcnn(kind).to(torch.bfloat16)
    maps, frames = batch((96, 128))
    with torch.no_grad():
        found = head.decode(head(tuple(x.to(torch.bfloat16) for x in maps), frames))[0]
    assert len(found)
    assert torch.isfinite(found.boxes).all()


@KIND
def test_it_learns(kind: str) -> None:
    learner = rcnn(kind, num_classes=2, mask_convs=1, samples=32).train()
    maps, frames = batch((96, 128), (96, 128))
    truth = targets(frames, 2, 1)
    truth = Targets(tuple(Objects(**{**vars(one), "labels": one.labels % 2}) for one in truth.objects), frames)
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)
    before = {}
    for step in range(40):
        torch.manual_seed(step)
        optimizer.zero_grad()
        losses = learner.loss(learner(maps, frames), truth)
        total(losses).backward()
        optimizer.step()
        before = before or {name: float(value.detach()) for name, value in losses.items()}
    after = {name: float(value.detach()) for name, value in losses.items()}
    assert after["regions"] < 0.6 * before["regions"]
    assert sum(after.values()) < 0.7 * sum(before.values())
    right, counted = learner.right(learner(maps, frames), truth)
    assert int(counted) > 0
    assert int(right) >= 0.7 * int(counted)


def test_answers_have_gradients() -> None:
    """Explanations ask how a detection's score depends on the maps."""
    head = rcnn()
    maps, frames = batch((96, 128))
    maps = tuple(x.requires_grad_() for x in maps)
    found = head.decode(head(maps, frames))[0]
    found.scores[0].backward()
    assert any(x.grad is not None and x.grad.any() for x in maps)


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_checkpointing_changes_nothing(kind: str) -> None:
    shape = {"dim": 8, "depths": (2, 1), "num_heads": (1, 2), "window": 4, "patch": 2, "drop_path": 0.0}
    small = {"num_classes": CLASSES, "pyramid_width": 8, "box_width": 8, "mask_convs": 1, "mask_width": 8}
    small |= {"box_conv_width": 8} | {"regions": RegionConfig(candidates=(50, 50), proposals=(30, 30))}
    model = build(f"{kind}_swin_micro", **shape, **small).train()
    images, frames = torch.randn(2, 3, 64, 64), Frames((64, 64), ((64, 64), (40, 50)))
    truth = targets(frames, 2, 1)

    def gradients() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        torch.manual_seed(1)
        loss = total(model.head.loss(model.outputs(images, frames), truth))
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    loss, grads = gradients()
    model.checkpoint_blocks()
    again, grads_again = gradients()
    torch.testing.assert_close(again, loss)
    for one, other in zip(grads_again, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 0},
        {"score_threshold": 1.0},
        {"nms": 0.0},
        {"most_detections": 0},
        {"divisor": 0},
        {"overlaps": ()},
        {"overlaps": (0.5, 0.6)},
        {"overlaps": (1.5,)},
        {"share": 0.0},
        {"pyramid_width": 0},
        {"mask_convs": -1},
    ],
    ids=str,
)
def test_what_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MaskRcnnConfig(**fields)  # type: ignore[arg-type]


def test_made_up_regions_run_every_layer() -> None:
    head = rcnn()
    ran = set()
    for name, module in head.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
    maps, frames = batch((32, 32))
    with torch.no_grad():
        head.rehearse(head(maps, frames))
    assert ran == {name.rpartition(".")[0] for name in head.state_dict()}
    assert math.isfinite(float(head.boxes[0].logits.weight.detach().sum()))


@pytest.mark.parametrize(("most", "side"), [(5, 5.0), (400, 60.0), (3000, 5.0), (3000, 60.0)])
def test_of_many_boxes_those_stay_that_would_stay_of_all(most: int, side: float) -> None:
    low = torch.rand(20_000, 2) * 100
    boxes = torch.cat([low, low + side + torch.rand(20_000, 2) * side], 1).double()
    scores, groups = torch.rand(20_000, dtype=torch.float64), torch.randint(0, 3, (20_000,))
    expected = batched_nms(boxes, scores, groups, 0.5)[:most]
    assert torch.equal(best_of(boxes, scores, groups, 0.5, most), expected)


def test_few_boxes_stay_as_in_any_textbook() -> None:
    low = torch.rand(300, 2) * 60
    boxes = torch.cat([low, low + 5 + torch.rand(300, 2) * 30], 1)
    scores, groups = torch.rand(300), torch.randint(0, 4, (300,))
    found = best_of(boxes, scores, groups, 0.4, 60)
    assert found.tolist() == suppressed(boxes, scores, groups, 0.4, 60)
    assert best_of(boxes[:0], scores[:0], groups[:0], 0.4, 60).tolist() == []
