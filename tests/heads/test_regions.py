"""Who is to find what, and which regions are proposed, against loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plain_boxes import iou, suppressed
from swindow.errors import ConfigError
from swindow.heads import Rcnn, RcnnOutputs, RegionConfig
from swindow.heads.anchors import outside
from swindow.heads.assigning import BACKGROUND, NEITHER, assigned, drawn, right_of
from swindow.heads.detect import CONVENTIONS
from swindow.objects import Objects, Targets
from swindow.ops.boxes import decode
from tiny_rcnns import CONVENTIONS as BOTH
from tiny_rcnns import batch, objects, rcnn, targets


def boxes(count: int) -> Tensor:
    low = torch.rand(count, 2) * 60
    return torch.cat([low, low + 5 + torch.rand(count, 2) * 50], 1)


def some(count: int, crowds: int) -> Objects:
    return Objects(
        boxes=boxes(count),
        labels=torch.zeros(count, dtype=torch.int64),
        crowd=torch.arange(count) < crowds,
        areas=torch.ones(count),
    )


def plainly(places: Tensor, truth: Objects, over: float, under: float, weak: float | None, claims: bool) -> list[int]:
    """`assigned`, box by box."""
    known = [index for index in range(len(truth)) if not truth.crowd[index]]
    overlaps = {i: [iou(truth.boxes[i].tolist(), place.tolist()) for place in places] for i in known}
    answers = []
    for place in range(len(places)):
        best = max(known, key=lambda i: overlaps[i][place], default=None)
        highest = -1.0 if best is None else overlaps[best][place]
        answer = best if highest >= over else (BACKGROUND if highest < under else NEITHER)
        claimants = [i for i in known if 0 < max(overlaps[i]) == overlaps[i][place]]
        claimants = [i for i in claimants if weak is not None and overlaps[i][place] >= weak]
        if claimants:
            answer = claimants[-1] if claims else best
        if answer == BACKGROUND and any(
            share(places[place], truth.boxes[i]) >= 0.5 for i in range(len(truth)) if i not in known
        ):
            answer = NEITHER
        answers.append(answer)
    return answers


def share(box: Tensor, region: Tensor) -> float:
    x1, y1, x2, y2 = box.tolist()
    a1, b1, a2, b2 = region.tolist()
    return max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0) / ((x2 - x1) * (y2 - y1))


@pytest.mark.parametrize(("weak", "claims"), [(None, False), (0.0, False), (0.3, True), (0.0, True)])
@pytest.mark.parametrize(("count", "crowds"), [(4, 0), (4, 2), (1, 0), (2, 2), (0, 0), (40, 3)])
def test_who_finds_what(count: int, crowds: int, weak: float | None, claims: bool) -> None:
    seen: set[int] = set()
    for seed in range(5):
        torch.manual_seed(seed)
        truth, places = some(count, crowds), boxes(40)
        if count:
            places[:2] = truth.boxes[-1]  # a perfect match, twice
        found = assigned(places, truth, over=0.5, under=0.3, weak=weak, claims=claims)
        assert found.tolist() == plainly(places, truth, 0.5, 0.3, weak, claims)
        seen |= set(found.tolist())
    assert count <= crowds or max(seen) >= 0
    assert (NEITHER in seen) == (count > 0)


def test_without_places_nothing_is_found() -> None:
    assert len(assigned(torch.zeros(0, 4), some(3, 1), over=0.5, under=0.5, weak=0.5)) == 0


def test_drawn_are_so_many_of_each() -> None:
    found = torch.tensor([3] * 10 + [BACKGROUND] * 50 + [NEITHER] * 20)
    for count, share_, expected in ((20, 0.25, (5, 15)), (40, 0.5, (10, 30)), (80, 0.5, (10, 50)), (8, 1.0, (8, 0))):
        few, rest = drawn(found, count, share_)
        assert (len(few), len(rest)) == expected
        assert (found[few] == 3).all()
        assert (found[rest] == BACKGROUND).all()
        assert len(few.unique()) == len(few)
    draws = {tuple(sorted(drawn(found, 20, 0.25)[0].tolist())) for _ in range(10)}
    assert len(draws) > 1


def test_right_answers_count_objects_and_background_alike() -> None:
    found = torch.tensor([0, 1, NEITHER, *[BACKGROUND] * 10])
    logits = torch.tensor([1.0, -1.0, 5.0, *[-1.0] * 9, 3.0])
    assert [int(x) for x in right_of(found, logits)] == [3, 4]  # an object and the first and the sixth of background
    assert [int(x) for x in right_of(found[2:], logits[2:])] == [0, 0]


def proposed(head: Rcnn, outputs: RcnnOutputs) -> tuple[Tensor, ...]:
    return head.regions.proposals(*outputs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("convention", BOTH)
def test_proposals_by_loops(convention: str, training: bool) -> None:
    head = rcnn(convention=convention).train(training)
    maps, frames = batch((64, 64), (40, 50))
    with torch.no_grad():
        outputs = head(maps, frames)
    every = head.regions.anchors(outputs.maps, frames)
    config, details = head.config.regions, CONVENTIONS[convention]  # type: ignore[index]
    for picture, (height, width) in enumerate(frames.sizes):
        rows, scores, levels, first = [], [], [], 0
        beyond = outside(torch.cat(every), frames)[picture]
        for level, one in enumerate(every):
            logits = outputs.logits[picture, first : first + len(one)].clone()
            if convention == "openmmlab":
                logits[beyond[first : first + len(one)]] = -math.inf
            for index in logits.argsort(descending=True)[: config.candidates[0 if training else 1]].tolist():
                box = decode(outputs.deltas[picture, first + index], one[index], smallest=details.smallest_growth)
                x1, y1, x2, y2 = box.clamp_min(0).tolist()
                box = torch.tensor([min(x1, width), min(y1, height), min(x2, width), min(y2, height)])
                least = float((box[2:] - box[:2]).min())
                if least >= details.smallest_region and least > 0 and logits[index] > -math.inf:
                    rows.append(box)
                    scores.append(float(logits[index].sigmoid()))
                    levels.append(level)
            first += len(one)
        kept = suppressed(torch.stack(rows), torch.tensor(scores), torch.tensor(levels), config.nms, 10**6)
        kept = kept[: config.proposals[0 if training else 1]]
        torch.testing.assert_close(proposed(head, outputs)[picture], torch.stack(rows)[kept], rtol=0, atol=1e-3)


@pytest.mark.parametrize("convention", BOTH)
def test_proposals_lie_in_their_pictures(convention: str) -> None:
    head = rcnn(convention=convention)
    maps, frames = batch((96, 160), (33, 47), (64, 1))
    for found, (height, width) in zip(proposed(head, head(maps, frames)), frames.sizes, strict=True):
        assert len(found)
        assert (found >= 0).all()
        assert (found[:, 2:] <= torch.tensor([width, height])).all()
        assert ((found[:, 2:] - found[:, :2]) > 0).all()


@pytest.mark.parametrize("convention", BOTH)
def test_the_loss_by_loops(convention: str) -> None:
    head = rcnn(convention=convention, regions=RegionConfig(samples=10**6)).train()
    maps, frames = batch((64, 64), (48, 60))
    truth = targets(frames, 2, 1)
    truth.objects[0].boxes[:] = torch.tensor([[4.0, 6, 38, 40], [20, 16, 50, 44]])
    with torch.no_grad():
        outputs = head(maps, frames)
    every = torch.cat(head.regions.anchors(outputs.maps, frames))
    details = CONVENTIONS[convention]  # type: ignore[index]
    seen, off, count = 0.0, 0.0, 0
    for picture, one in enumerate(truth.objects):
        used = torch.ones(len(every), dtype=torch.bool)
        if convention == "openmmlab":
            used = ~outside(every, frames)[picture]
        places = every[used]
        answers = assigned(places, one, over=0.7, under=0.3, weak=details.weak, claims=details.claims).tolist()
        for answer, place, logit, delta in zip(
            answers, places, outputs.logits[picture, used], outputs.deltas[picture, used], strict=True
        ):
            if answer == NEITHER:
                continue
            count += 1
            seen += float(F.softplus(-logit if answer >= 0 else logit))
            if answer >= 0:
                sides, box = place[2:] - place[:2], one.boxes[answer]
                shift = ((box[:2] + box[2:]) / 2 - (place[:2] + place[2:]) / 2) / sides
                goal = torch.cat([shift, ((box[2:] - box[:2]) / sides).log()])
                off += float(F.smooth_l1_loss(delta, goal, beta=details.region_beta, reduction="sum"))
    found = head.regions.loss(outputs.maps, outputs.logits, outputs.deltas, truth)
    assert math.isclose(float(found["regions"].detach()), seen / count, rel_tol=1e-4)
    assert math.isclose(float(found["region_boxes"].detach()), off / count, rel_tol=1e-4)
    assert off


def test_anchors_that_stick_out_are_learned_unless_told_otherwise() -> None:
    maps, frames = batch((96, 160))
    truth = targets(frames, 2)
    plain, cascade = rcnn(), rcnn("cascade")
    every = torch.cat(plain.regions.anchors(plain(maps, frames).maps, frames))
    beyond = (every[:, :2] < 0).any(1) | (every[:, 2:] > torch.tensor([160.0, 96.0])).any(1)
    assert (plain.regions.found(every, truth)[0, beyond] != NEITHER).any()
    found = cascade.regions.found(every, truth)[0]
    assert (found[beyond] == NEITHER).all()
    assert (found >= 0).any()  # an object's best anchor is its best one inside


def test_a_crowd_is_no_background() -> None:
    head = rcnn()
    maps, frames = batch((96, 160))
    truth = objects((96, 160), 1)
    everywhere = Objects(
        boxes=torch.tensor([[0.0, 0.0, 160.0, 96.0]]),
        labels=truth.labels,
        crowd=torch.tensor([True]),
        areas=truth.areas,
    )
    every = torch.cat(head.regions.anchors(head(maps, frames).maps, frames))
    found = head.regions.found(every, Targets((everywhere,), frames))[0]
    inside = ~((every[:, :2] < 0).any(1) | (every[:, 2:] > torch.tensor([160.0, 96.0])).any(1))
    assert (found[inside] == NEITHER).all()
    assert (found < 0).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"scales": ()},
        {"ratios": (0.5, 0.0)},
        {"samples": 0},
        {"proposals": (0, 5)},
        {"under": 0.8},
        {"share": 0.0},
        {"nms": 1.5},
    ],
    ids=str,
)
def test_what_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RegionConfig(**fields)  # type: ignore[arg-type]
