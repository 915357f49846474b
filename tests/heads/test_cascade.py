"""The cascade: what each stage is handed, what it costs, and whose answer it is."""

import copy
import math

import pytest
import torch
from torch import Tensor

from plain_boxes import giou
from swindow.heads import CascadeMaskRcnnConfig, RegionConfig
from swindow.heads.assigning import assigned
from swindow.heads.judging import box_loss, found_in, handed_on, moved, samples_of
from swindow.objects import Frames
from swindow.ops.boxes import decode
from tiny_rcnns import CLASSES, batch, objects, rcnn, targets, total

FRAMES = Frames((96, 128), ((96, 128), (70, 100)))


def pools(count: int = 30) -> tuple[Tensor, Tensor]:
    low = torch.rand(2, count, 2) * 40
    boxes = torch.cat([low, low + 10 + torch.rand(2, count, 2) * 40], 2)
    return boxes[0], boxes[1]


def test_the_published_shape() -> None:
    config = CascadeMaskRcnnConfig()
    assert config.overlaps == (0.5, 0.6, 0.7)
    assert config.stage_weights == (1, 0.5, 0.25)
    assert config.deviations[0] == (0.1, 0.1, 0.2, 0.2)
    assert config.deviations[1] == (0.05, 0.05, 0.1, 0.1)
    assert config.deviations[2] == (0.033, 0.033, 0.067, 0.067)
    with torch.device("meta"):
        head = config.build((96, 192, 384, 768), (4, 8, 16, 32))
    for box in head.boxes:
        assert [unit.conv.weight.shape for unit in box.convs] == [(256, 256, 3, 3)] * 4
        assert [layer.weight.shape for layer in box.linears] == [(1024, 256 * 49)]
        assert (box.logits.out_features, box.deltas.out_features) == (81, 320)
    assert len(head.boxes) == len(head.masks) == 3


def test_the_classic_form() -> None:
    head = rcnn("cascade", box_convs=0, box_linears=2, class_agnostic=True, box_loss="delta", box_weight=1.0).train()
    maps, frames = batch((96, 128), (64, 128))
    losses = head.loss(head(maps, frames), targets(frames, 2, 1))
    assert head.boxes[0].deltas.out_features == 4
    assert not any("norm" in name for name, _ in head.boxes.named_parameters())
    assert list(losses)[2:] == [f"{name}_{stage}" for stage in (1, 2, 3) for name in ("classes", "boxes", "masks")]


def test_giou_of_boxes_by_loops() -> None:
    head = rcnn("cascade", samples=10**6)
    truth = (objects((96, 128), 3), objects((70, 100), 2))
    drawn = samples_of(pools(), truth, head.config, 0)
    deltas = torch.randn(len(drawn.labels), CLASSES, 4) * 0.5
    rows = torch.cat(drawn.regions).double()
    expected = 0.0
    for row in drawn.finding.nonzero()[:, 0].tolist():
        found = decode(deltas[row, drawn.labels[row]].double(), rows[row], head.config.deviations[0])
        expected += 1 - giou(found.tolist(), drawn.boxes[row].tolist())
    expected *= 10 / len(drawn.labels)
    assert expected
    assert math.isclose(float(box_loss(deltas, drawn, head.config, 0)), expected, rel_tol=1e-4)


def test_a_stage_hands_on_what_it_finds() -> None:
    """The boxes of objects by their classes, those of background by the likeliest; objects' own boxes are left out."""
    head = rcnn("cascade", samples=10**6)
    truth = (objects((96, 128), 3), objects((70, 100), 2))
    given = tuple(torch.cat([pool, one.boxes + 0.5]) for pool, one in zip(pools(), truth, strict=True))
    drawn = samples_of(given, truth, head.config, 0)
    logits, deltas = torch.randn(len(drawn.labels), CLASSES + 1), torch.randn(len(drawn.labels), CLASSES, 4)
    found = handed_on(drawn, logits, deltas, FRAMES, head.config, 0)
    first, seen = 0, 0
    for boxes, regions, which, one, (height, width) in zip(
        found, drawn.regions, drawn.which, truth, FRAMES.sizes, strict=True
    ):
        expected = []
        for row, (region, index) in enumerate(zip(regions, which.tolist(), strict=True), start=first):
            if any(torch.equal(region, box) for box in one.boxes):
                continue
            label = int(one.labels[index]) if index >= 0 else int(logits[row, :CLASSES].argmax())
            box = decode(deltas[row, label], region, head.config.deviations[0])
            expected.append(torch.minimum(box.clamp_min(0), torch.tensor([width, height] * 2)))
            seen += index >= 0
        assert len(expected) == len(regions) - len(one)
        torch.testing.assert_close(boxes, torch.stack(expected))
        first += len(regions)
    assert seen


def test_later_stages_want_more_overlap() -> None:
    head = rcnn("cascade", samples=10**6)
    one = objects((96, 128), 3)
    width = one.boxes[:, 2:3] - one.boxes[:, :1]
    pool = torch.cat([one.boxes + torch.cat([width, 0 * width, width, 0 * width], 1) * off for off in (0.1, 0.2, 0.3)])
    finding = [int(samples_of((pool,), (one,), head.config, stage).finding.sum()) for stage in range(3)]
    expected = [int((assigned(pool, one, over=over, under=over) >= 0).sum()) + 3 for over in (0.5, 0.6, 0.7)]
    assert finding == expected
    assert finding[0] > finding[1] > finding[2]


def test_the_answer_is_the_last_stage_s_by_the_mean_of_all() -> None:
    head = rcnn("cascade")
    maps, frames = batch((96, 128), (70, 100))
    with torch.no_grad():
        outputs = head(maps, frames)
        regions = head.regions.proposals(*outputs)
        logits = []
        for stage in range(3):
            scores, deltas = head.judged(outputs.maps, regions, stage)
            logits.append(scores)
            if stage < 2:
                regions = moved(regions, deltas, scores[:, :CLASSES].argmax(1), frames, head.config, stage)
        expected = found_in(regions, torch.stack(logits).mean(0).softmax(1), deltas, frames, head.config)
        answers = head.decode(outputs)
        for found, one in zip(answers, expected, strict=True):
            torch.testing.assert_close(found.boxes, one.boxes)
            torch.testing.assert_close(found.scores, one.scores)
            assert torch.equal(found.labels, one.labels)
        boxes, labels = tuple(one.boxes for one in answers), torch.cat([one.labels for one in answers])
        shares = [mask(head._cells(outputs.maps, boxes, 14)).sigmoid() for mask in head.masks]
        shares = [share[torch.arange(len(labels)), labels] for share in shares]
        torch.testing.assert_close(torch.cat([one.masks for one in answers]), sum(shares) / 3, rtol=1e-4, atol=1e-5)


def test_each_stage_s_losses_have_its_weight() -> None:
    everything = {"samples": 10**6, "regions": RegionConfig(samples=10**6), "stage_weights": (1.0, 1.0, 1.0)}
    maps, frames = batch((96, 128))
    truth = targets(frames, 3)
    plain, weighed = rcnn("cascade", **everything), rcnn("cascade", **everything | {"stage_weights": (1.0, 0.5, 0.25)})
    weighed.load_state_dict(plain.state_dict())
    with torch.no_grad():
        alike, found = (head.loss(head(maps, frames), truth) for head in (plain, weighed))
    for name, value in alike.items():
        weight = {"2": 0.5, "3": 0.25}.get(name[-1], 1.0)
        torch.testing.assert_close(found[name], weight * value)


def test_without_any_region_there_is_still_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proposals nor objects: batch norm has nothing to measure."""
    head = rcnn("cascade").train()
    maps, frames = batch((32, 32), (32, 32))
    monkeypatch.setattr(head.regions, "proposals", lambda *_: (torch.zeros(0, 4), torch.zeros(0, 4)))
    before = {name: value.clone() for name, value in head.named_buffers()}
    losses = head.loss(head(maps, frames), targets(frames, 0, 0))
    assert all(float(value.detach()) == 0 for name, value in losses.items() if not name.startswith("region"))
    total(losses).backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    with torch.no_grad():
        assert [len(found) for found in head.eval().decode(head(maps, frames))] == [0, 0]


@pytest.mark.parametrize("convention", ["openmmlab", "torchvision"])
def test_boxes_that_are_not_finite_are_nowhere_and_the_loss_says_so(convention: str) -> None:
    head = rcnn("cascade", convention=convention)
    torch.nn.init.constant_(head.boxes[0].deltas.bias, math.nan)
    maps, frames = batch((64, 96))
    outputs = head(maps, frames)
    assert len(head.decode(outputs)) == 1  # torchvision's RoIAlign would read beyond the map
    losses = head.loss(outputs, targets(frames, 3))
    assert losses["boxes_1"].isnan()
    assert all(losses[f"classes_{stage}"].isfinite() for stage in (1, 2, 3))


def test_processes_may_synchronise_its_norms() -> None:
    """`nn.SyncBatchNorm` takes their place under the same names; by itself it answers as they do."""
    head = CascadeMaskRcnnConfig(num_classes=3, pyramid_width=8, box_conv_width=8, box_width=8, mask_width=8).build(
        (8, 16), (4, 8)
    )
    head.eval()
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(head)).eval()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in synchronised.modules())
    assert synchronised.state_dict().keys() == head.state_dict().keys()
    cells = torch.randn(5, 8, 7, 7)
    for ours, theirs in zip(head.boxes[0](cells), synchronised.boxes[0](cells), strict=True):
        torch.testing.assert_close(ours, theirs)
