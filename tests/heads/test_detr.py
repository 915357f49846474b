"""DETR's head, part by part; `tests/test_parity_detr.py` compares the whole with transformers'."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError
from swindow.heads.detr import Detr, DetrConfig, DetrOutputs, padded_cells
from swindow.heads.transformer import sine_positions
from swindow.model import build
from swindow.objects import Frames, Objects, Targets, no_objects
from tiny_families import FAMILIES

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "transformer_width": 32,
    "transformer_heads": 4,
    "feed_forward": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 7,
}
FRAMES = Frames((64, 96), ((64, 96), (40, 50)))


def head(**fields: Any) -> Detr:
    return DetrConfig(**{**SMALL, **fields}).build((4, 8, 16), (4, 8, 16)).eval()


def pyramid(frames: Frames = FRAMES) -> tuple[Tensor, ...]:
    height, width = frames.canvas
    return tuple(torch.randn(len(frames.sizes), height // s, width // s, c) for c, s in ((4, 4), (8, 8), (16, 16)))


def objects(count: int, size: tuple[int, int] = (40, 50)) -> Objects:
    low = torch.rand(count, 2) * 20
    boxes = torch.cat([low, low + 5 + torch.rand(count, 2) * 10], dim=1)
    return Objects(
        boxes=boxes,
        labels=torch.randint(5, (count,)),
        masks=torch.rand(count, *size) < 0.5,
        crowd=torch.zeros(count, dtype=torch.bool),
        areas=torch.ones(count),
    )


def targets(first: int, second: int) -> Targets:
    return Targets((objects(first, (64, 96)), objects(second)), FRAMES)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_parameters_of_detr_on_resnet_50_are_those_published() -> None:
    with torch.device("meta"):
        model = build("detr_resnet50")
    assert model.config.head.num_classes == 91
    assert sum(parameter.numel() for parameter in model.parameters()) == 41_524_768
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 41_302_368
    assert sum(parameter.numel() for parameter in model.head.parameters()) == 18_069_856


def test_every_parameter_learns() -> None:
    detr = head(masks=True).train()
    with torch.no_grad():
        for parameter in detr.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    total(detr.loss(detr(pyramid(), FRAMES), targets(3, 2))).backward()
    for name, parameter in detr.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        unseen = name.endswith("k.bias")  # a softmax does not see it
        nothing = ("q.weight", "q.bias", "k.weight", "v.weight")  # is known to queries in the first layer
        unseen |= name.removeprefix("transformer.decoder.0.attention.") in nothing
        assert parameter.grad.abs().sum() > 0 or unseen, name


def test_starts_as_published() -> None:
    detr = DetrConfig().build((64,), (32,))
    layer = detr.transformer.decoder[0]
    for weight, bound in ((layer.cross.q.weight, (6 / 1024) ** 0.5), (layer.mlp.fc1.weight, (6 / 2304) ** 0.5)):
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.abs().max().item() <= bound
    assert (layer.attention.proj.bias == 0).all()
    assert detr.queries.std().item() == pytest.approx(1, abs=0.05)


def test_positions_are_shares_of_the_picture_not_of_the_canvas() -> None:
    padding = torch.ones(2, 4, 6, dtype=torch.bool)
    padding[0], padding[1, :2, :3] = False, False
    found = sine_positions(padding, 8, dtype=torch.float64)
    for image, (height, width) in enumerate(((4, 6), (2, 3))):
        for row in range(height):
            for column in range(width):
                expected = []
                for number, last in ((row + 1, height), (column + 1, width)):
                    angle = number / (last + 1e-6) * 2 * torch.pi
                    angles = torch.tensor([angle, angle / 10_000**0.5], dtype=torch.float64)
                    expected += torch.stack([angles.sin(), angles.cos()], dim=1).flatten().tolist()
                torch.testing.assert_close(found[image, row, column], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("canvas", [(64, 96), (65, 97), (61, 83), (799, 1066)])
def test_cells_of_padding_are_those_of_the_nearest_pixel(canvas: tuple[int, int]) -> None:
    sizes = (canvas, (1, 1), (canvas[0] // 2, canvas[1]), (canvas[0] - 1, canvas[1] - 31), (33, 32))
    mask = torch.zeros(len(sizes), *canvas)
    for one, (height, width) in zip(mask, sizes, strict=True):
        one[:height, :width] = 1
    for grid in (tuple(-(-side // 32) for side in canvas), tuple(-(-side // 16) for side in canvas)):
        expected = F.interpolate(mask[None], size=grid)[0] == 0
        assert torch.equal(padded_cells(Frames(canvas, sizes), grid), expected)  # type: ignore[arg-type]
        assert not expected.flatten(1).all(1).any()  # every picture has a cell


def test_padding_is_no_picture() -> None:
    """Whatever lies there, and whether there is any, classes and boxes are those of the picture alone."""
    detr, maps = head().double(), [x.double() for x in pyramid()]
    alone = detr((maps[2][1:, :3, :4],), Frames((48, 64), ((48, 64),)))
    frames = Frames((64, 96), ((64, 96), (48, 64)))
    for filler in (0.0, 1e3):
        wide = maps[2].clone()
        wide[1, 3:], wide[1, :, 4:] = filler, filler
        found = detr((wide,), frames)
        torch.testing.assert_close(found.logits[:, 1:], alone.logits, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.boxes[:, 1:], alone.boxes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_is_its_pictures(masks: bool) -> None:
    detr = head(masks=masks).double()
    maps = tuple(x.double() for x in pyramid())
    both = detr(maps, FRAMES)
    for image in range(2):
        alone = detr(tuple(x[image : image + 1] for x in maps), Frames(FRAMES.canvas, FRAMES.sizes[image : image + 1]))
        torch.testing.assert_close(both.logits[:, image : image + 1], alone.logits)
        torch.testing.assert_close(both.boxes[:, image : image + 1], alone.boxes)
        if masks:
            torch.testing.assert_close(both.masks[image : image + 1], alone.masks)  # type: ignore[index]
        found, expected = detr.decode(both)[image], detr.decode(alone)[0]
        torch.testing.assert_close(found.boxes, expected.boxes)
        assert torch.equal(found.queries, expected.queries)  # type: ignore[arg-type]


def test_attention_of_a_query_adds_up_to_one_inside_its_picture() -> None:
    seen = head().attention(pyramid(), FRAMES)
    assert seen.shape == (2, 2, 7, 4, 6)
    torch.testing.assert_close(seen.sum((-2, -1)), torch.ones(2, 2, 7))
    assert (seen[:, 1, :, 3:] == 0).all()
    assert (seen[:, 1, :, :, 4:] == 0).all()
    assert (seen[:, 0] > 0).all()


def test_attention_is_what_the_forward_pass_weighs_by() -> None:
    """Without heads' mixing: one head, values that are the cells' own, so that its answer is the weights' sum."""
    attention = head(transformer_heads=1).transformer.decoder[0].cross
    queries, keys, values = torch.randn(2, 7, 32), torch.randn(2, 24, 32), torch.randn(2, 24, 32)
    padding = padded_cells(FRAMES, (4, 6)).flatten(1)
    weighed = attention.weights(queries, keys, padding)[:, 0] @ attention.v(values)
    torch.testing.assert_close(attention(queries, keys, values, padding), attention.proj(weighed))


def test_a_batch_without_objects_has_finite_losses_and_gradients() -> None:
    for nothing in (no_objects(masks=(64, 96)), no_objects()):
        detr = head(masks=True).train()
        losses = detr.loss(detr(pyramid(), FRAMES), Targets((nothing, nothing), FRAMES))
        assert {name for name, loss in losses.items() if loss != 0} == {"classes", "auxiliary"}
        total(losses).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in detr.parameters())  # type: ignore[arg-type]
        assert detr.right(detr(pyramid(), FRAMES), Targets((nothing, nothing), FRAMES))[1] == 0


def test_losses_by_hand() -> None:
    """One picture, two queries of which the second is the object's."""
    detr = head(num_queries=2, num_classes=2, decoder_layers=1)
    logits = torch.tensor([[[[0.0, 0.0, 3.0], [2.0, 0.0, 0.0]]]])
    boxes = torch.tensor([[[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5]]]])
    one = Objects(
        boxes=torch.tensor([[24.0, 16.0, 72.0, 64.0]]),  # centre 0.5 0.625, sides 0.5 0.75 of 64 x 96 pixels
        labels=torch.tensor([0]),
        crowd=torch.tensor([False]),
        areas=torch.ones(1),
    )
    frames = Frames((64, 96), ((64, 96),))
    losses = detr.loss(DetrOutputs(logits, boxes, frames), Targets((one,), frames))
    nothing, something = (-x.log_softmax(0) for x in logits[0, 0])
    expected = (0.1 * nothing[2] + something[0]) / 1.1
    assert losses["classes"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses["boxes"].item() == pytest.approx(5 * (0.125 + 0.25), rel=1e-6)
    both, union, hull = 0.5 * 0.5, 0.5 * 0.75, 0.5 * 0.75
    assert losses["giou"].item() == pytest.approx(2 * (1 - both / union + (hull - union) / hull), rel=1e-5)
    assert list(losses) == ["classes", "boxes", "giou"]


def test_earlier_layers_learn_as_the_last() -> None:
    detr, aims = head(decoder_layers=3), targets(3, 2)
    outputs = detr(pyramid(), FRAMES)
    each = [
        total(detr.loss(outputs._replace(logits=outputs.logits[[number]], boxes=outputs.boxes[[number]]), aims))
        for number in range(3)
    ]
    losses = detr.loss(outputs, aims)
    torch.testing.assert_close(losses["auxiliary"], each[0] + each[1])
    torch.testing.assert_close(total(losses) - losses["auxiliary"], each[2])
    assert "auxiliary" not in head(decoder_layers=3, auxiliary=0.0).loss(outputs, aims)


def test_crowds_are_not_learned() -> None:
    detr = head(masks=True)
    outputs, own, other = detr(pyramid(), FRAMES), objects(3, (64, 96)), objects(4)
    crowd = torch.tensor([False, True, False])
    with_crowd = Objects(boxes=own.boxes, labels=own.labels, masks=own.masks, crowd=crowd, areas=own.areas)
    found = detr.loss(outputs, Targets((with_crowd, other), FRAMES))
    expected = detr.loss(outputs, Targets((own[torch.tensor([0, 2])], other), FRAMES))
    assert {name: loss.item() for name, loss in found.items()} == {n: loss.item() for n, loss in expected.items()}


def test_more_objects_than_queries_are_learned_as_far_as_queries_go() -> None:
    detr, aims = head(masks=True).train(), targets(12, 1)
    outputs = detr(pyramid(), FRAMES)
    losses = detr.loss(outputs, aims)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert detr.right(outputs, aims)[1] == 7 + 1


def test_right_counts_matched_queries() -> None:
    detr, aims = head(), targets(3, 2)
    outputs = detr(pyramid(), FRAMES)
    logits = torch.full_like(outputs.logits, 0.0)
    logits[..., 5] = 1.0
    assert [int(x) for x in detr.right(outputs._replace(logits=logits), aims)] == [0, 5]
    logits[..., aims.objects[0].labels[0]] = 2.0
    same = sum(int((one.labels == aims.objects[0].labels[0]).sum()) for one in aims.objects)
    assert [int(x) for x in detr.right(outputs._replace(logits=logits), aims)] == [same, 5]


def test_detections_are_sorted_inside_their_picture_and_say_their_query() -> None:
    detr = head()
    outputs = detr(pyramid(), FRAMES)
    outputs = outputs._replace(logits=3 * torch.randn_like(outputs.logits), boxes=torch.rand_like(outputs.boxes))
    for image, found in enumerate(detr.decode(outputs)):
        height, width = FRAMES.sizes[image]
        assert found.size == (height, width)
        assert len(found) == 7
        assert (found.scores.diff() <= 0).all()
        shares = outputs.logits[-1, image].softmax(-1)[:, :-1]
        torch.testing.assert_close(found.scores, shares.amax(1)[found.queries])
        assert torch.equal(found.labels, shares.argmax(1)[found.queries])
        x, y, w, h = (outputs.boxes[-1, image, found.queries] * torch.tensor([width, height] * 2)).unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
        expected = torch.minimum(corners.clamp(min=0), torch.tensor([width, height] * 2))
        torch.testing.assert_close(found.boxes, expected)
        assert (corners < 0).any()


def test_thresholds_of_answers() -> None:
    outputs = head()(pyramid(), FRAMES)
    outputs = outputs._replace(logits=3 * torch.randn_like(outputs.logits))
    whole = head().decode(outputs)
    level = whole[0].scores[3].item()
    assert len(head(score_threshold=level).decode(outputs)[0]) == 4
    assert len(head(most_detections=2).decode(outputs)[1]) == 2
    boxes = outputs.boxes.clone()
    boxes[...] = torch.tensor([0.5, 0.5, 0.4, 0.4])
    same = outputs._replace(boxes=boxes)
    kept = head(nms=0.9).decode(same)[0]
    assert sorted(kept.labels.tolist()) == sorted(set(whole[0].labels.tolist()))
    assert len(head().decode(same)[0]) == 7


def test_masks_are_of_the_picture_without_its_padding() -> None:
    detr = head(masks=True)
    masks = torch.full((2, 7, 16, 24), -8.0)
    masks[:, :, 2:6, 4:10] = 8.0  # 8 to 24 pixels down, 16 to 40 across
    masks[1, :, 10:], masks[1, :, :, 13:] = 8.0, 8.0  # the padding of the second
    found = detr.decode(detr(pyramid(), FRAMES)._replace(masks=masks))
    for one in found:
        assert one.whole
        mask = one.mask(3)
        assert mask.shape == one.size
        assert mask[9:23, 17:39].all()
        mask[7:25, 15:41] = False
        assert not mask[:39, :49].any()
    assert found[0].masks.shape == (7, 16, 24)  # type: ignore[union-attr]
    assert found[1].masks.shape == (7, 10, 13)  # type: ignore[union-attr]
    assert head().decode(head()(pyramid(), FRAMES))[0].masks is None


def test_in_bf16_losses_are_finite_and_boxes_keep_their_digits() -> None:
    detr = head(masks=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detr(pyramid(), FRAMES)
        losses = detr.loss(outputs, targets(3, 0))
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.boxes.dtype == torch.float32
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    total(losses).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in detr.parameters())  # type: ignore[arg-type]
    whole = head(masks=True).bfloat16()
    found = whole(tuple(x.bfloat16() for x in pyramid()), FRAMES)
    assert all(torch.isfinite(one.boxes).all() for one in whole.decode(found))


def test_a_tiny_one_learns_its_batch() -> None:
    detr, maps, aims = head(head_dropout=0.0).train(), pyramid(), targets(3, 2)
    optimizer = torch.optim.AdamW(detr.parameters(), 3e-3)
    first = total(detr.loss(detr(maps, FRAMES), aims)).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = total(detr.loss(detr(maps, FRAMES), aims))
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 4
    assert [int(x) for x in detr.right(detr(maps, FRAMES), aims)] == [5, 5]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_backbone_will_do(family: str, masks: bool) -> None:
    name, shape = FAMILIES[family]
    model = build(f"detr_{name}", **{**SMALL, **shape}, masks=masks).eval()
    frames = Frames((32, 32), ((32, 32), (20, 17)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = model.outputs(images, frames)
        found = model.head.decode(outputs)
    assert [one.size for one in found] == list(frames.sizes)
    assert all(torch.isfinite(one.boxes).all() for one in found)
    assert (outputs.masks is not None) == masks
    model.head.rehearse(outputs)


@pytest.mark.parametrize(
    ("stage", "count", "boxes", "masks"),
    [
        (-1, 4, (3,), (0, 1, 2, 3)),
        (2, 4, (2,), (0, 1, 2)),
        (0, 4, (0,), (0,)),
        (-1, 2, (1,), (0, 1)),
        (-2, 5, (3,), (0, 1, 2, 3)),
    ],
)
def test_stages_that_are_read(stage: int, count: int, boxes: tuple[int, ...], masks: tuple[int, ...]) -> None:
    assert DetrConfig(memory_stage=stage).stages(count) == boxes
    assert DetrConfig(memory_stage=stage, masks=True).stages(count) == masks


def test_stages_that_a_backbone_has_not_are_refused() -> None:
    for stage in (4, -5):
        with pytest.raises(ConfigError, match=f"memory_stage is {stage}; the backbone has 4 stages: give 0 to 3"):
            DetrConfig(memory_stage=stage).stages(4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_queries": 0}, "'num_queries': 0} must be at least 1"),
        ({"decoder_layers": 0}, "'decoder_layers': 0, .* must be at least 1"),
        ({"encoder_layers": -1}, "encoder_layers -1 at least 0"),
        ({"transformer_width": 40}, "transformer_width is 40; it must be a multiple of 4 times transformer_heads 8"),
        ({"no_object": 0.0}, "no_object 0.0 be above it"),
        ({"box_weight": -1.0}, "'box_weight': -1.0, .* must not be below 0"),
        ({"head_dropout": 1.0}, r"head_dropout 1.0 lie in \[0, 1\)"),
        ({"num_classes": 0}, "num_classes 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetrConfig(**fields)


def test_labels_and_objects_that_do_not_fit_are_refused() -> None:
    detr = head(masks=True)
    outputs, wrong = detr(pyramid(), FRAMES), objects(2)
    wrong.labels[1] = 5
    with pytest.raises(ShapeError, match="5 classes are 0 to 4: give the head as many classes as the data has"):
        detr.loss(outputs, Targets((objects(1, (64, 96)), wrong), FRAMES))
    bare = Objects(boxes=wrong.boxes, labels=wrong.labels.clamp(max=4), crowd=wrong.crowd, areas=wrong.areas)
    with pytest.raises(ShapeError, match="boxes alone, and masks=True learns masks; give masks=False"):
        detr.loss(outputs, Targets((objects(1, (64, 96)), bare), FRAMES))
