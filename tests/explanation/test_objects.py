"""Why an object: which one is meant, Grad-CAM of a box, what a DETR's query attends to, padding, the page."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from known_models import noise, ready
from swindow import inference
from swindow.checkpoints import save
from swindow.errors import ConfigError, DataError, UnknownName
from swindow.explanation import Explanation, explain
from swindow.explanation.canvas import LARGE
from swindow.explanation.objects import chosen_of, padded
from swindow.explanation.pictures import pictures
from swindow.explanation.pixels import Question
from swindow.explanation.tracing import object_evidence, trace
from swindow.heads import RegionConfig
from swindow.model import Model, build
from swindow.objects import Detections, Frames
from swindow.ops.boxes import decode

CLASSES = ("cat", "dog", "bird")
BACKBONES: dict[str, dict[str, Any]] = {
    "swin_tiny": {"dim": 8, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window": 4, "patch": 4},
    "resnet_18": {"depths": (1, 1, 1), "width": 8, "norm": "frozen"},
    "vit_tiny": {"dim": 24, "depths": (1, 1, 1), "patch": 8, "image_size": 64},
}
DETR: dict[str, Any] = {
    "transformer_width": 16,
    "transformer_heads": 2,
    "feed_forward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 7,
    "divisor": 16,
}
RCNN: dict[str, Any] = {
    "pyramid_width": 8,
    "box_width": 16,
    "mask_width": 8,
    "mask_convs": 1,
    "regions": RegionConfig(candidates=(40, 40), proposals=(30, 30)),
    "most_detections": 9,
    "score_threshold": 0.0,
    "divisor": 16,
}
HEADS: dict[str, dict[str, Any]] = {
    "detr": DETR,
    "mask_rcnn": RCNN,
    "cascade_mask_rcnn": RCNN | {"box_convs": 1, "box_conv_width": 8},
    "retinanet": {"pyramid_width": 8, "tower": 1, "extra_levels": 1, "most_detections": 9, "divisor": 16},
}
SIZE, CANVAS = (53, 70), (64, 80)


def detector(head: str = "detr", backbone: str = "swin_tiny", **fields: Any) -> Model:
    """A tiny one whose weights are so large that nothing vanishes, which says something of every picture."""
    torch.manual_seed(0)
    model = build(f"{head}_{backbone}", **({"num_classes": 3} | BACKBONES[backbone] | HEADS[head] | fields)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim < 2 else (2 / parameter[0].numel()) ** 0.5)
    model.classes = CLASSES
    return ready(model, (53, 90), fit="within")


def framed() -> tuple[Tensor, Frames]:
    """A picture with padding to its right and below it."""
    frames = Frames(CANVAS, (SIZE,))
    return frames.cleared(torch.randn(1, 3, *CANVAS)), frames


def score_of_detr(model: Model, outputs: Any, found: Detections, index: int) -> Tensor:
    said = outputs.logits[-1, 0, found.queries[index]]
    torch.testing.assert_close(said.softmax(0)[found.labels[index]], found.scores[index])
    return said[found.labels[index]]


def score_of_rcnn(model: Model, outputs: Any, found: Detections, index: int) -> Tensor:
    """Of the one proposed region in which this box is found, judged alone."""
    head, label = model.head, found.labels[index]
    (regions,) = head.regions.proposals(outputs.maps, outputs.logits, outputs.deltas, outputs.frames)
    region, said = regions[found.queries[index]][None].detach(), []
    for stage, deviations in enumerate(head.config.deviations):
        logits, deltas = head.judged(outputs.maps, (region,), stage)
        said.append(logits[0])
        of = logits[0, :-1].argmax() if stage + 1 < len(head.boxes) else label
        region = decode(deltas[:, of], region, deviations, smallest=head.details.smallest_growth).detach()
        region = torch.stack([region[:, 0::2].clamp(0, SIZE[1]), region[:, 1::2].clamp(0, SIZE[0])], -1).flatten(1)
    torch.testing.assert_close(region[0], found.boxes[index], rtol=1e-4, atol=1e-3)
    mean = torch.stack(said).mean(0)
    torch.testing.assert_close(mean.softmax(0)[label], found.scores[index])
    return mean[label]


def score_of_retinanet(model: Model, outputs: Any, found: Detections, index: int) -> Tensor:
    head, anchor, label = model.head, found.queries[index], found.labels[index]
    box = decode(outputs.deltas[0, anchor][None], torch.cat(head.anchors(outputs))[anchor][None])
    box = torch.stack([box[:, 0::2].clamp(0, SIZE[1]), box[:, 1::2].clamp(0, SIZE[0])], -1).flatten(1)
    torch.testing.assert_close(box[0], found.boxes[index], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outputs.logits[0, anchor, label].sigmoid(), found.scores[index])
    return outputs.logits[0, anchor, label]


SCORES = {
    "detr": score_of_detr,
    "mask_rcnn": score_of_rcnn,
    "cascade_mask_rcnn": score_of_rcnn,
    "retinanet": score_of_retinanet,
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_evidence_is_that_of_the_models_own_tensors(head: str, backbone: str) -> None:
    """Against hooks on the whole model: all gradients that reach what a stage makes and what the head reads of it."""
    model, (images, frames) = detector(head, backbone), framed()
    body, kept = model.backbone, dict[nn.Module, Tensor]()
    read = [
        [stage, *(norm for key, norm in body.norms.items() if key == str(n))] for n, stage in enumerate(body.stages)
    ]
    read[-1] = read[-1][-1:]
    hooks = [
        module.register_forward_hook(lambda module, _, output: kept.update({module: output}))
        for modules in read
        for module in modules
    ]
    outputs = model.outputs(images.requires_grad_(), frames)
    for hook in hooks:
        hook.remove()
    (expected,) = model.head.decode(outputs)
    for index in (0, len(expected) - 1):
        number = SCORES[head](model, outputs, expected, index)
        gradients = torch.autograd.grad(number, kept.values(), retain_graph=True, materialize_grads=True)
        gradient_of = dict(zip(kept, gradients, strict=True))
        found, chosen, evidence = object_evidence(model, images, frames, lambda _, index=index: index)
        assert chosen == index
        torch.testing.assert_close(found.boxes, expected.boxes.detach(), rtol=1e-4, atol=1e-3)
        for stage, modules in enumerate(read):
            rows, columns = (-(-side // body.config.strides[stage]) for side in SIZE)
            averaged, local = torch.zeros(rows, columns), torch.zeros(rows, columns)
            for module in modules:
                pair = (kept[module].detach(), gradient_of[module])
                if backbone.startswith("vit"):  # a sequence, its class token first
                    pair = tuple(x[:, 0, 1:].unflatten(1, tuple(side // 8 for side in CANVAS)) for x in pair)
                x, gradient = (x[0, :rows, :columns] for x in pair)
                averaged += (x * gradient.mean((0, 1))).sum(-1)
                local += (x * gradient).sum(-1)
            assert local.any()
            torch.testing.assert_close(evidence[stage].averaged, averaged.relu(), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(evidence[stage].local, local.relu(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_an_explanation_is_about_what_the_model_finds(head: str) -> None:
    """Boxes, scores and classes are those of `model(images, frames)`, in the photo's pixels; arrays lie on them."""
    model, photo = detector(head), noise(106, 140)
    images = model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None]
    assert images.shape[2:] == SIZE
    canvas = tuple(-(-side // model.head.config.divisor) * model.head.config.divisor for side in SIZE)
    padded = F.pad(images, (0, canvas[1] - SIZE[1], 0, canvas[0] - SIZE[0]))
    (expected,) = model(padded, Frames(canvas, (SIZE,)))
    result = explain(model, photo, object=1, stage=0)
    found = result.detected.found
    torch.testing.assert_close(found.boxes, expected.boxes.detach() * 2)
    torch.testing.assert_close(found.scores, expected.scores.detach())
    assert found.labels.tolist() == expected.labels.tolist()
    assert result.detected.chosen == 1
    assert result.target == CLASSES[found.labels[1]]
    assert result.probability == pytest.approx(float(found.scores[1]))
    assert [name for name, _ in result.prediction] == [CLASSES[label] for label in found.labels[:5]]
    x1, y1, x2, y2 = result.detected.box
    assert (result.point.x, result.point.y) == (int((x1 + x2) / 2), int((y1 + y2) / 2))
    assert not result.point.chosen
    assert result.frame.input == SIZE
    _, _, evidence = object_evidence(model, padded, Frames(canvas, (SIZE,)), lambda _: 1)
    laid = result.frame.lay(evidence[0].averaged.numpy(), 4)
    np.testing.assert_allclose(result.gradcam, laid / max(laid.max(), 1e-30), atol=1e-3)
    for number, (heat, shown) in enumerate(zip(evidence, result.detected.hirescam, strict=True)):
        laid = result.frame.lay(heat.local.numpy(), 4 * 2**number)
        np.testing.assert_allclose(shown, laid / max(laid.max(), 1e-30), atol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_querys_attention_sums_to_one_over_the_picture_and_is_nothing_in_padding(backbone: str) -> None:
    model, photo = detector("detr", backbone), noise(53, 70)
    images, frames = (
        F.pad(model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None], (0, 10, 0, 11)),
        Frames(CANVAS, (SIZE,)),
    )
    stride = model.backbone.strides[-1]
    rows, columns = (-(-side // stride) for side in SIZE)
    whole = model.head.attention(model.backbone(images), frames)[:, 0].detach()  # L Q H W
    assert whole.shape[2:] == tuple(side // stride for side in CANVAS)
    assert not whole[..., rows:, :].any()
    assert not whole[..., columns:].any()
    for index in (0, 4):
        result = explain(model, photo, object=index)
        query = int(result.detected.found.queries[index])
        assert result.detected.stride == stride
        for layer, heat in enumerate(result.detected.attention):
            np.testing.assert_allclose(heat.sum(), 1, atol=1e-5)
            np.testing.assert_allclose(heat, whole[layer, query, :rows, :columns].numpy(), atol=1e-6)


def test_the_attention_shown_is_what_the_decoder_reads() -> None:
    """Where the last layer's attention is all there is, a query's logits are a function of the cells that it names."""
    model, (images, frames) = detector("detr", "resnet_18", decoder_layers=1, encoder_layers=0), framed()
    head, layer = model.head, model.head.transformer.decoder[0]
    kept: list[Tensor] = []
    hook = layer.cross.v.register_forward_hook(lambda _, inputs, output: kept.append(output))
    outputs = model.outputs(images.requires_grad_(), frames)
    hook.remove()
    seen = head.attention(model.backbone(images), frames)[0, 0].flatten(1)  # Q S
    value = torch.randn_like(outputs.logits[-1, 0, 3])
    (gradient,) = torch.autograd.grad((outputs.logits[-1, 0, 3] * value).sum(), kept[0])
    torch.testing.assert_close(gradient[0].abs().sum(-1) > 0, seen[3] > 0)


@pytest.mark.parametrize("head", HEADS)
def test_the_stage_that_nobody_chose_is_the_telling_one(head: str) -> None:
    model, photo = detector(head), noise(53, 70)
    images, frames = padded(inference.ready(model), torch.from_numpy(photo).permute(2, 0, 1))
    for index in range(3):
        _, _, evidence = object_evidence(model, images, frames, lambda _, index=index: index)
        sums = [float(found.local.sum()) for found in evidence]
        expected = 2 if head == "detr" else int(np.argmax(sums))
        assert explain(model, photo, object=index).gradcam_stage == expected
    assert explain(model, photo, stage=1).gradcam_stage == 1


def test_a_map_before_the_last_stage_ends_the_explanation() -> None:
    model, photo = detector("detr", memory_stage=1), noise(53, 70)
    result = explain(model, photo)
    assert (len(result.stages), len(result.detected.hirescam), result.detected.stride) == (2, 2, 8)
    assert result.gradcam_stage == 1
    with pytest.raises(ConfigError, match="0 to 1"):
        explain(model, photo, stage=2)


def test_window_attention_is_of_the_picture_without_its_padding() -> None:
    model, (images, _) = detector(), framed()
    tokens = [(13, 17), (6, 8), (3, 4)]  # the last of each grid
    stages = trace(model.backbone, images, tokens, SIZE)
    without = trace(model.backbone, images, tokens)
    for blocks, whole, stride, token in zip(stages, without, (4, 8, 16), tokens, strict=True):
        grid = tuple(-(-side // stride) for side in SIZE)
        for block, other in zip(blocks, whole, strict=True):
            assert block.step.layout.grid == grid
            assert block.received.shape[1:] == grid
            assert other.received.shape[1:] == tuple(side // stride for side in CANVAS)
            torch.testing.assert_close(block.step.weights, other.step.weights)
            torch.testing.assert_close(block.given.sum((1, 2)), torch.ones(len(block.given)))
            kept = other.given[:, : grid[0], : grid[1]]
            lost = other.given_padding + (1 - other.given_padding) * (1 - kept.sum((1, 2)))
            torch.testing.assert_close(block.given_padding, lost, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(block.given, kept / kept.sum((1, 2), keepdim=True), rtol=1e-4, atol=1e-5)
            assert block.view[token]
            assert torch.equal(block.view, other.view[: grid[0], : grid[1]])


def test_the_receptive_field_is_where_gradients_come_from_padding_included() -> None:
    """What is padded passes on what it has seen of the picture, and so takes part."""
    model = detector().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    photo = noise(53, 70)
    result = explain(model, photo)
    images = F.pad(model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None], (0, 10, 0, 11)).double()
    for stage, found in zip(model.backbone.stage_maps(images.requires_grad_()), result.point.stages, strict=True):
        token = stage[0, *found.token]
        (gradient,) = torch.autograd.grad((token * torch.randn_like(token)).sum(), images, retain_graph=True)
        moved = F.max_pool2d(gradient.abs().sum(1), 4)[0, :14, :18] > 0
        np.testing.assert_array_equal(found.reach, moved.numpy())
        assert found.rollout.sum() == pytest.approx(1, abs=1e-5)
        assert not found.rollout[~found.reach].any()
    np.testing.assert_array_equal(result.rollout, result.point.stages[-1].rollout)


def found_of(rows: list[tuple[float, int, tuple[float, float, float, float]]]) -> Detections:
    scores, labels, boxes = zip(*rows, strict=True)
    return Detections(
        boxes=torch.tensor(boxes).float(), scores=torch.tensor(scores), labels=torch.tensor(labels), size=(50, 100)
    )


SCENE = found_of(
    [
        (0.9, 0, (0, 0, 50, 50)),  # a large cat
        (0.8, 1, (10, 10, 20, 20)),  # a dog in its paws
        (0.7, 0, (60, 10, 90, 40)),
        (0.4, 1, (60, 10, 80, 30)),  # a dog that is not sure
        (0.3, 0, (65, 15, 70, 20)),
        (0.1, 0, (92, 0, 100, 10)),
        (0.05, 1, (93, 0, 100, 10)),
    ]
)


@pytest.mark.parametrize(
    ("asked", "rank"),
    [
        ({}, 0),
        ({"object": 3}, 3),
        ({"target": 1}, 1),
        ({"target": 1, "object": 1}, 3),
        ({"target": 0, "object": 3}, 5),
        ({"point": (60, 60)}, 0),
        ({"point": (24, 24)}, 1),  # the photo is twice as large
        ({"point": (39, 39)}, 1),
        ({"point": (40, 39)}, 0),  # its box ends before
        ({"point": (24, 24), "target": 0}, 0),
        ({"point": (134, 34)}, 2),  # smaller boxes there are less sure than 0.5
        ({"point": (134, 34), "target": 1}, 3),
        ({"point": (190, 8)}, 5),  # nothing sure: the surest
    ],
)
def test_the_object_that_is_meant(asked: dict[str, Any], rank: int) -> None:
    question = Question(**({"point": None, "target": None, "stage": 0} | asked))
    assert chosen_of(SCENE, question, CLASSES, (100, 200), "photo.png") == rank


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"target": 2}, ConfigError, r"no 'bird' is found in a\.png, where the model finds 'cat' \(4\), 'dog' \(3\);"),
        ({"point": (110, 90)}, ConfigError, r"point \(110, 90\) lies in no box of a\.png.*'cat' \(4\)"),
        ({"point": (150, 70), "target": 1}, ConfigError, r"point \(150, 70\) lies in no box"),
        ({"object": 7}, ConfigError, r"object 7 is not one of the 7 objects found in a\.png, which count from 0"),
        ({"object": 3, "target": 1}, ConfigError, r"object 3 is not one of the 3 objects of class 'dog'"),
    ],
)
def test_an_object_that_is_not_there(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    question = Question(**({"point": None, "target": None, "stage": 0} | asked))
    with pytest.raises(error, match=message):
        chosen_of(SCENE, question, CLASSES, (100, 200), "a.png")


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"object": -1}, ConfigError, "object -1 is no rank; the surest object is 0, the next 1"),
        ({"object": 0, "point": (3, 3)}, ConfigError, r"point \(3, 3\) and object 0 both say which object"),
        ({"point": (200, 10)}, ConfigError, r"x from 0 to 139 and y from 0 to 105$"),
        ({"target": "bat"}, UnknownName, "did you mean cat"),
        ({"stage": 3}, ConfigError, "0 to 2"),
        ({"region": True}, ConfigError, "region asks about pixels, and detr_swin_tiny finds objects; leave it out"),
    ],
)
def test_impossible_wishes_say_what_is_possible(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explain(detector(), noise(106, 140), **asked)


def test_a_picture_without_objects_has_nothing_to_explain(tmp_path: Path) -> None:
    model = detector(score_threshold=0.999)
    Image.fromarray(noise(53, 70)).save(tmp_path / "empty.png")
    with pytest.raises(DataError, match=r"empty\.png: the model finds nothing here.*give another picture"):
        explain(model, tmp_path / "empty.png")


def test_who_finds_no_objects_is_asked_for_none(tiny: Any) -> None:
    with pytest.raises(
        ConfigError, match="object asks about one that is found, and swin_micro classifies whole images"
    ):
        explain(ready(tiny()), noise(16, 16), object=0)
    model = detector()
    model.preprocess = dataclasses.replace(model.preprocess, fit="pad")
    with pytest.raises(ConfigError, match="fit 'pad' is not for detectors"):
        explain(model, noise(16, 16))


@pytest.mark.parametrize("size", ["native", 64, "48x80"])
def test_any_input_size(size: Any) -> None:
    model = detector()
    result = explain(model, noise(106, 140), size=size)
    assert result.frame.input == {"native": (106, 140), 64: (48, 64), "48x80": (48, 63)}[size]
    assert result.gradcam.shape == (106, 140)
    assert result.detected.found.size == (106, 140)
    assert model.preprocess.size == (53, 90)


@pytest.mark.parametrize("head", HEADS)
def test_the_model_is_left_exactly_as_it_was(head: str) -> None:
    model, photo = detector(head).train(), noise(53, 70)
    modes, state = {n: m.training for n, m in model.named_modules()}, copy.deepcopy(model.state_dict())
    first = explain(model, photo)
    with torch.inference_mode():
        np.testing.assert_array_equal(explain(model, photo).gradcam, first.gradcam)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


WINDOWS = {"rollout.png", "stages.png", "point.png", "point-heads.png", "receptive-field.png", "heads-stage1.png",
           "heads-stage2.png", "heads-stage3.png"}  # fmt: skip
ALWAYS = {"index.html", "prediction.png", "gradcam.png", "evidence.png"}


def check_written(folder: Path, names: set[str]) -> str:
    """The page's text, if these files are there and none of the pictures is an empty sheet."""
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 1100
            assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 500
    return (folder / "index.html").read_text(encoding="utf-8")


def test_pictures_of_an_object(tmp_path: Path) -> None:
    model = detector()
    model.classes = ("<b>&amp; $x^2$", "日本", "c" * 90)
    Image.fromarray(noise(40, 61)).save(tmp_path / "photo.png")
    result: Explanation = explain(save(model, tmp_path / "run"), tmp_path / "photo.png", object=2, out=tmp_path / "out")
    text = check_written(tmp_path / "out", ALWAYS | WINDOWS | {"attention.png"})
    assert "The surest of 7 objects found" in text
    assert "object 2, the surest being 0, with a score of" in text
    assert "Window attention is followed from the middle of its box" in text
    assert "not what it was used for" in text
    assert "<b>&amp; $" not in text
    assert result.note == ""


def test_a_small_box_is_shown_enlarged_and_a_large_one_is_not() -> None:
    result = explain(detector("detr", "resnet_18"), noise(53, 70))
    for box, panels in (((10.0, 10.0, 20.0, 15.0), 6), ((5.0, 5.0, 60.0, 50.0), 3)):
        found = dataclasses.replace(result.detected.found, boxes=torch.tensor([box]).repeat(7, 1))
        shown = dataclasses.replace(result, detected=dataclasses.replace(result.detected, found=found))
        gradcam = next(picture for picture in pictures(shown) if picture.name == "gradcam")
        assert len(gradcam.panels) == panels
        for panel in gradcam.panels[3:]:
            left, top = panel.origin
            across = 2 * LARGE // 70
            assert left < 10 * across < 20 * across < left + panel.pixels.shape[1]
            assert top < 10 * across < 15 * across < top + panel.pixels.shape[0]


@pytest.mark.parametrize("shape", [(6, 300), (400, 31)])
def test_pictures_without_window_attention_at_any_shape(shape: tuple[int, int], tmp_path: Path) -> None:
    model = detector("detr", "resnet_18")
    result = explain(model, noise(*shape), out=tmp_path)
    text = check_written(tmp_path, ALWAYS | {"attention.png"})
    assert (result.stages, result.point.stages, result.rollout) == ((), (), None)
    assert result.note == "The backbone of detr_resnet_18 has no window attention to show."
    assert result.note in text
