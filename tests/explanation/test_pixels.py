"""Why a class at a pixel: the walk through decoders, Grad-CAM of a pixel, windows of large pictures, the page."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from known_models import blank, noise, ready
from swindow.checkpoints import save
from swindow.errors import ConfigError, DataError, UnknownName
from swindow.explanation import Explanation, explain, windows
from swindow.explanation.pixels import Survey, clearest, most_covered
from swindow.explanation.tracing import pixel_evidence, trace_segmenter
from swindow.explanation.windows import Layout
from swindow.model import Model, build

DECODERS = ["unet_swin_micro", "upernet_swin_micro", "unet_swin_v2_tiny_w8", "upernet_swin_moe_small_e8"]


def segmenter(name: str = "unet_swin_micro", *, stages: int = 2, **fields: Any) -> Model:
    """Windows of 4 tokens on patches of 2 pixels; weights so large that nothing vanishes, also where V2 has zeros."""
    shape: dict[str, Any] = {
        "dim": 8,
        "depths": (2,) * stages,
        "num_heads": (2, 4, 8)[:stages],
        "window": 4,
        "patch": 2,
        "image_size": 32,
    }
    if name.startswith("unet"):
        shape["decoder_depths"] = (2,) * (stages - 1)
    else:
        shape |= {"decoder_width": 12, "auxiliary_width": 6}
    if "moe" in name:
        shape |= {"routed": ((1,),) * stages, "experts": 2}
    model = build(name, **({"num_classes": 3} | shape | fields)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", [*DECODERS, "unet_swin_moe_small_e8"])
@pytest.mark.parametrize(("stages", "size"), [(3, (37, 45)), (2, (32, 16))])
def test_the_walk_ends_in_the_models_own_answer(name: str, stages: int, size: tuple[int, int]) -> None:
    model, images = segmenter(name, stages=stages), torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = model(images)
    trail = trace_segmenter(model, images, [(0, 0)] * stages)
    assert torch.equal(trail.logits, expected)
    assert len(trail.decoder) == (stages - 1 if name.startswith("unet") else 0)
    seen: list[Tensor] = []
    pixel_evidence(model, images, lambda logits: (seen.append(logits.detach()), logits.sum())[1])
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("name", [*DECODERS, "unet_swin_moe_small_e8"])
def test_evidence_is_that_of_the_stages_own_maps_by_every_way_that_leads_on(name: str) -> None:
    """Against hooks, which see the maps and all gradients that reach them: through later stages and through skips."""
    model, images, target, y, x = segmenter(name, stages=3), torch.randn(1, 3, 37, 45), 1, 11, 30
    body, kept = model.backbone, dict[nn.Module, Tensor]()
    modules = [*body.stages[:2], *body.norms.values(), *getattr(model.head, "expands", [])[:1]]
    hooks = [
        module.register_forward_hook(lambda module, _, output: kept.update({module: output})) for module in modules
    ]
    logit = model(images)[0, target, y, x]
    for hook in hooks:
        hook.remove()
    gradients = dict(zip(kept, torch.autograd.grad(logit, kept.values()), strict=True))

    def weighed(module: nn.Module, *, mean: bool) -> Tensor:
        gradient = gradients[module].mean(dim=(1, 2)) if mean else gradients[module]
        return (kept[module] * gradient).sum(-1)[0].detach()

    for sign in (1, -1):  # what speaks against a class is cut off
        found = pixel_evidence(model, images, lambda logits, sign=sign: sign * logits[0, target, y, x])
        for stage in range(2):
            read = [body.stages[stage]] + ([] if body.entries else [body.norms[str(stage)]])
            for mean, heat in ((True, found[stage].averaged), (False, found[stage].local)):
                expected = torch.stack([weighed(module, mean=mean) for module in read]).sum(0)
                assert expected.any()
                torch.testing.assert_close(heat, (sign * expected).relu(), rtol=1e-3, atol=1e-5)
        last = (sign * weighed(body.norms["2"], mean=True)).relu()
        torch.testing.assert_close(found[2].averaged, last, rtol=1e-3, atol=1e-5)
        if name.startswith("unet"):  # 10 x 12 tokens of which 10 x 12 are of the image
            local = weighed(model.head.expands[0], mean=False).unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).sum((1, 3))
        else:
            local = weighed(body.norms["2"], mean=False)
        torch.testing.assert_close(found[2].local, (sign * local).relu(), rtol=1e-3, atol=1e-5)


def test_the_heads_reading_of_a_stage_counts() -> None:
    """A norm's gradient is orthogonal to its input: of a map that only the head reads, the map alone shows nothing."""
    model, images = segmenter("upernet_swin_micro", stages=2), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        model.head.bottleneck.conv.weight.zero_()  # the last stage is not heard
    first, last = pixel_evidence(model, images, lambda logits: logits[0, 1, 9, 14])
    assert first.local.max() > 0.01
    assert not last.local.any()


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("fit", ["native", "short", "squash", "pad"])
def test_the_answer_at_a_pixel_is_that_of_predict(fit: str, region: bool) -> None:
    """Classes, probabilities and the explained logit are those of the maps restored to the photo's pixels."""
    model = ready(segmenter(), (32, 24), fit=fit, zoom=1.5 if fit == "native" else 1.0)
    photo = noise(27, 21)
    images = model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None]
    restored = model.preprocess.restore(model(images), (27, 21))[0]
    result = explain(model, photo, point=(17, 4), region=region)
    assert result.segmented is not None
    np.testing.assert_array_equal(result.segmented.mask, restored.argmax(0).numpy())
    shares = restored[:, 4, 17].softmax(0).detach()
    assert result.target == str(int(shares.argmax()))
    assert dict(result.prediction) == pytest.approx({str(index): float(share) for index, share in enumerate(shares)})
    assert result.probability == pytest.approx(float(shares.max()))
    assert result.frame.input == tuple(images.shape[2:])
    assert result.frame.seen().all()
    target = int(result.target)
    inside = torch.from_numpy(result.segmented.mask == target)

    def asked(logits: Tensor) -> Tensor:
        answer = model.preprocess.restore(logits, (27, 21))[0, target]
        return (answer * inside).sum() if region else answer[4, 17]

    found = pixel_evidence(model, images, asked)
    for heat, shown, stride in ((found[1].averaged, result.gradcam, 4),
                                (found[0].local, result.segmented.hirescam[0], 2),
                                (found[1].local, result.segmented.hirescam[1], 4)):  # fmt: skip
        laid = result.frame.lay(heat.numpy(), stride)
        np.testing.assert_allclose(shown, laid / max(laid.max(), 1e-30), atol=1e-3)
    assert result.segmented.hirescam[0].max() == 1


@pytest.mark.parametrize("size", [(48, 48), (45, 38)])
@pytest.mark.parametrize("name", ["unet_swin_micro", "unet_swin_moe_small_e8"])
def test_the_decoders_receptive_field_is_where_gradients_come_from(name: str, size: tuple[int, int]) -> None:
    model = ready(segmenter(name, routed=((),) * 2) if "moe" in name else segmenter(name), size, fit="native").double()
    for x, y in ((0, 0), (size[1] - 1, size[0] - 1), (20, 15)):
        point = explain(model, noise(*size), point=(x, y)).point
        kept: list[Tensor] = []
        hook = model.head.stages[0].register_forward_hook(lambda _, inputs, output, kept=kept: kept.append(output))
        images = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
        logits = model(images)
        hook.remove()
        token = kept[0][0, *point.decoder[0].token]
        for value in ((token * torch.randn_like(token)).sum(), logits[0, 1, y, x]):  # the pixel is one token's
            (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
            moved = F.max_pool2d(gradient.abs().sum(1), 2, ceil_mode=True)[0] > 0
            np.testing.assert_array_equal(point.decoder[0].reach, moved.numpy())
        if x == 0:
            assert not point.decoder[0].reach.all()
            assert (point.decoder[0].reach & ~point.stages[0].reach).any()


def test_rollout_through_a_decoder_equals_dense_matrices() -> None:
    """With attention that prefers nothing: half of each joined token from the skip, half from the coarser token."""
    model, images = blank(segmenter(stages=3)), torch.randn(1, 3, 64, 64)
    for stage in model.head.stages:
        for block in stage.blocks:
            for parameter in (block.attn.qkv.weight, block.attn.qkv.bias, block.attn.position_bias.table):
                nn.init.zeros_(parameter)
    trail = trace_segmenter(model, images, [(0, 0)] * 3)
    layouts = [[[block.step.layout for block in stage] for stage in part] for part in (trail.encoder, trail.decoder)]
    chain, entries = np.eye(32 * 32), []
    for number, stage in enumerate(layouts[0]):
        entries.append(chain)
        chain = _through(stage) @ chain
        chain = _cells(32 >> number).T @ chain / 4 if number < 2 else chain
    for number, stage in enumerate(layouts[1]):
        side = 16 << number
        chain = _through(stage) @ (0.5 * entries[1 - number] + 0.5 * _cells(side) @ chain)
        steps = [[[block.step for block in stage] for stage in part] for part in (trail.encoder, trail.decoder)]
        for token in ((0, 0), (5, 11), (side - 1, 3)):
            vector = windows.one_hot((side, side), token, torch.zeros(()))
            found = windows.unet_rollout(vector, steps[0], steps[1][: number + 1], entries=True)
            expected = chain[token[0] * side + token[1]].reshape(32, 32)
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def _through(stage: list[Layout]) -> np.ndarray:
    """Rows are what a token is made of: itself one half, and all that it sees alike the other."""
    whole = np.eye(stage[0].grid[0] * stage[0].grid[1])
    for layout in stage:
        tokens = np.ndindex(*layout.grid)
        seen = np.stack([windows.view(layout, token).numpy().ravel() for token in tokens]).astype(float)
        whole = (0.5 * seen / seen.sum(1, keepdims=True) + 0.5 * np.eye(len(seen))) @ whole
    return whole


def _cells(side: int) -> np.ndarray:
    """1 where a token lies in a cell of 2 x 2, tokens by cells."""
    rows, columns = np.divmod(np.arange(side * side), side)
    return (rows // 2 * (side // 2) + columns // 2)[:, None] == np.arange(side * side // 4)


@pytest.mark.parametrize("name", DECODERS[:3])
def test_rollout_stays_inside_the_receptive_field_and_keeps_its_sum(name: str) -> None:
    point = (result := explain(ready(segmenter(name), (46, 37), fit="native"), noise(46, 37), point=(5, 30))).point
    for stage in (*point.stages, *point.decoder):
        assert stage.rollout.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(stage.rollout > 0, stage.reach)
        for block, view in zip(stage.attention, stage.views, strict=True):
            np.testing.assert_allclose(block.sum((1, 2)), 1, atol=1e-5)
            assert not block[:, ~view].any()
    np.testing.assert_array_equal(result.rollout, (point.decoder or point.stages)[-1].rollout)
    assert [maps.stride for maps in result.decoder] == ([2] if name.startswith("unet") else [])
    assert [maps.grid for maps in result.decoder] == [result.stages[0].grid] * len(result.decoder)


def test_the_class_and_the_pixel_that_nobody_chose() -> None:
    labels = np.zeros((6, 8), np.uint16)
    labels[0, 0] = labels[5, 7] = labels[5, 6] = 2
    labels[1:4, 4:6] = labels[1:4, 1] = labels[3, 3] = 1  # 6 pixels that hang together, and a seventh beside them
    labels[4, 2] = 1
    confidence = np.full((6, 8), 0.5, np.float32)
    confidence[1, 1], confidence[2, 5], confidence[5, 6], confidence[0, 7] = 0.9, 0.8, 0.7, 1.0
    found = Survey(labels, confidence)
    assert most_covered(labels, ("background", "a", "b")) == 1
    assert most_covered(labels, ("void", "a", "b")) == 0
    assert most_covered(np.zeros((2, 2), np.uint16), ("Background", "a")) == 0
    assert clearest(found, 1) == (5, 2)
    assert clearest(found, 2) == (6, 5)
    assert clearest(found, 3) == (7, 0)  # predicted nowhere: where it is most probable


@pytest.fixture(name="reds", scope="module")
def reds_fixture() -> Model:
    """A U-Net that has learnt to find red squares, in a second or two."""
    torch.manual_seed(0)
    shape = {"dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2, "image_size": 32}
    model = build("unet_swin_micro", num_classes=2, decoder_depths=(2,), drop_path=0.0, **shape)
    model = ready(model, (32, 32), fit="native").train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        images, labels = 0.3 * torch.rand(8, 3, 32, 32), torch.zeros(8, 32, 32, dtype=torch.int64)
        for image, label in zip(images, labels, strict=True):
            (top, left), side = torch.randint(0, 22, (2,)).tolist(), int(torch.randint(5, 10, ()))
            label[top : top + side, left : left + side] = 1
            image[0, top : top + side, left : left + side] = 1.0
        optimizer.zero_grad()
        torch.stack(list(model.head.loss(model.outputs(images), labels).values())).sum().backward()
        optimizer.step()
    model.classes = ("background", "red")
    return model.eval()


def test_a_learnt_model_is_asked_about_what_it_found_and_shows_it(reds: Model) -> None:
    photo = (0.3 * noise(32, 32)).astype(np.uint8)
    photo[4:10, 18:26] = (255, 40, 40)
    result = explain(reds, photo)
    truth = np.zeros((32, 32), bool)
    truth[4:10, 18:26] = True
    found = result.segmented.mask == 1
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    assert result.target == "red"
    assert truth[result.point.y, result.point.x]
    assert not result.point.chosen
    assert result.probability == pytest.approx(explain(reds, photo, target="red").probability)
    for region in (False, True):
        heat = explain(reds, photo, region=region).segmented.hirescam[0]
        assert heat[truth].mean() > 4 * heat[~truth].mean()
    beside = explain(reds, photo, point=(3, 28))
    assert (beside.target, beside.segmented.region) == ("background", False)
    other = explain(reds, photo, point=(3, 28), target="red")
    assert other.target == "red"
    assert other.probability == pytest.approx(1 - beside.probability, abs=1e-5)


def test_of_a_large_picture_the_window_around_the_pixel_is_explained(reds: Model) -> None:
    photo = (0.3 * noise(150, 200)).astype(np.uint8)
    photo[90:97, 120:129] = (255, 40, 40)
    result = explain(reds, photo, point=(123, 93))
    assert result.segmented.origin == (123 - 16, 93 - 16)
    assert result.segmented.picture == (150, 200)
    assert result.segmented.windowed
    assert (result.point.x, result.point.y, result.photo.shape) == (16, 16, (32, 32, 3))
    alone = explain(reds, photo[77:109, 107:139], point=(16, 16))
    assert not alone.segmented.windowed
    np.testing.assert_array_equal(result.gradcam, alone.gradcam)
    np.testing.assert_array_equal(result.segmented.mask, alone.segmented.mask)
    corner = explain(reds, photo, point=(199, 0))
    assert corner.segmented.origin == (168, 0)
    assert (corner.point.x, corner.point.y) == (31, 0)
    unasked = explain(reds, photo)
    x, y = unasked.point.x + unasked.segmented.origin[0], unasked.point.y + unasked.segmented.origin[1]
    assert 120 <= x < 129
    assert 90 <= y < 97
    assert unasked.target == "red"
    assert not explain(reds, photo[60:124, 100:164]).segmented.windowed  # four windows: still at once
    assert explain(reds, photo, point=(123, 93), size="native").segmented.picture == (150, 200)
    assert explain(reds, photo, point=(123, 93), size="native").photo.shape == (150, 200, 3)


@pytest.mark.parametrize(
    ("fields", "photo", "window", "pixels"),
    [
        ({"fit": "native", "zoom": 2.0}, (100, 120), (16, 12), (32, 24)),
        ({"fit": "native", "zoom": 2.0}, (9, 300), (9, 12), (18, 24)),
        ({"fit": "short"}, (36, 500), (36, 36), (24, 24)),  # the shorter of 32 and 24 is the picture's height
        ({"fit": "short"}, (500, 36), (48, 36), (32, 24)),
    ],
)
def test_windows_have_the_size_that_the_model_was_trained_on(
    fields: dict[str, Any], photo: tuple[int, int], window: tuple[int, int], pixels: tuple[int, int]
) -> None:
    model = ready(segmenter(), (32, 24), **fields)
    result = explain(model, noise(*photo), point=(7, 4))
    assert result.photo.shape[:2] == window
    assert result.frame.input == pixels


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"point": (50, 10)}, ConfigError, r"x from 0 to 31 and y from 0 to 31$"),
        ({"target": "blu"}, UnknownName, "did you mean blue"),
        ({"target": "nothing", "region": True}, ConfigError, "no pixel is predicted as 'nothing'"),
        ({"stage": 2}, ConfigError, "0 to 1"),
    ],
)
def test_impossible_wishes_say_what_is_possible(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    model = ready(segmenter(), (32, 32), fit="squash")
    with torch.no_grad():
        model.head.classifier.weight[2] = 0
        model.head.classifier.weight[1] = -model.head.classifier.weight[0]  # one of the two is always above zero
    model.classes = ("blue", "red", "nothing")
    with pytest.raises(error, match=message):
        explain(model, noise(32, 32), **asked)


def test_what_cannot_be_explained_is_refused(tiny: Callable[..., Model]) -> None:
    with pytest.raises(ConfigError, match=r"swin_micro classifies whole images; leave it out"):
        explain(ready(tiny()), noise(16, 16), region=True)
    with pytest.raises(ConfigError, match="fit 'crop' leaves parts of the picture out"):
        explain(ready(segmenter(), (32, 32)), noise(32, 32))


RESNET: dict[str, Any] = {"width": 8, "depths": (1, 1, 1)}
VIT: dict[str, Any] = {"dim": 24, "depths": (1, 1, 1), "patch": 4, "image_size": 32}
MLP: dict[str, Any] = {"dim": 8, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window": 4, "patch": 2, "image_size": 32}
UPERNET: dict[str, Any] = {"decoder_width": 8, "auxiliary_width": 8}
UNET: dict[str, Any] = {"decoder_depths": (1, 1)}
WITHOUT = [
    ("upernet_resnet_18", RESNET | UPERNET),
    ("unet_resnet_18", RESNET | UNET),
    ("upernet_vit_tiny", VIT | UPERNET),
    ("unet_vit_tiny", VIT | UNET),
    ("upernet_swin_mlp_tiny_c24", MLP | UPERNET),
]


def without_window_attention(name: str, fields: dict[str, Any]) -> Model:
    model = build(name, num_classes=3, **fields).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("name", "fields"), WITHOUT)
def test_evidence_without_window_attention_is_that_of_the_models_own_tensors(name: str, fields: dict[str, Any]) -> None:
    """Against hooks: the walk ends in the model's answer, and each stage counts by every way that leads on."""
    model, images, target, y, x = without_window_attention(name, fields), torch.randn(1, 3, 37, 45), 1, 11, 30
    body, kept = model.backbone, dict[nn.Module, Tensor]()
    read = [[stage] + ([body.norms[str(n)]] if len(body.norms) else []) for n, stage in enumerate(body.stages)]
    read[-1] = read[-1][-1:]
    hooks = [
        module.register_forward_hook(lambda module, _, output: kept.update({module: output}))
        for modules in read
        for module in modules
    ]
    expected = model(images)
    for hook in hooks:
        hook.remove()
    gradients = dict(zip(kept, torch.autograd.grad(expected[0, target, y, x], kept.values()), strict=True))
    seen: list[Tensor] = []

    def asked(logits: Tensor) -> Tensor:
        seen.append(logits.detach())
        return logits[0, target, y, x]

    found = pixel_evidence(model, images, asked)
    assert torch.equal(seen[0], expected)
    assert torch.equal(trace_segmenter(model, images, [(0, 0)] * 3).logits, expected)
    for stage, modules in enumerate(read):
        for mean, heat in ((True, found[stage].averaged), (False, found[stage].local)):
            if name.startswith("unet") and stage == 2 and not mean:
                assert heat.shape == found[stage].averaged.shape  # by what it is expanded to
                continue
            weighed = []
            for module in modules:
                value, gradient = kept[module], gradients[module]
                if "vit" in name:  # a sequence, its class token first, on 10 x 12 patches
                    value, gradient = (z[:, 0, 1:].unflatten(1, (10, 12)) for z in (value, gradient))
                gradient = gradient.mean(dim=(1, 2)) if mean else gradient
                weighed.append((value * gradient).sum(-1)[0].detach())
            total = torch.stack(weighed).sum(0)
            assert total.any()
            torch.testing.assert_close(heat, total.relu(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "fields"), [WITHOUT[0], WITHOUT[3]])
def test_without_window_attention_there_is_grad_cam_and_the_answer(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model, photo = ready(without_window_attention(name, fields), (32, 40), fit="squash"), noise(32, 40)
    result = explain(model, photo, point=(30, 8), out=tmp_path)
    shares = model(model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None])[0].softmax(0).detach()
    np.testing.assert_array_equal(result.segmented.mask, shares.argmax(0).numpy())
    assert dict(result.prediction) == pytest.approx({str(i): float(share) for i, share in enumerate(shares[:, 8, 30])})
    assert len(result.segmented.hirescam) == 3
    assert all(heat.max() in (0, 1) for heat in (result.gradcam, *result.segmented.hirescam))
    assert (result.stages, result.decoder, result.point.stages, result.rollout) == ((), (), (), None)
    assert result.note.startswith(f"The backbone of {name} has no window attention to show")
    text = check_written(tmp_path, {"index.html", "prediction.png", "gradcam.png", "evidence.png"})
    assert result.note in text
    assert "Every head" not in text
    if name.startswith("upernet"):
        text = (explain(model, photo, region=True).save(tmp_path)[0]).read_text(encoding="utf-8")
        assert "attention is that" not in text


@pytest.mark.parametrize("suffix", [".nii.gz", ".npz", ".npy"])
def test_a_volume_is_called_one_and_not_a_damaged_picture(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"heart{suffix}"
    path.write_bytes(b"whatever")
    with pytest.raises(DataError, match=r"heart.* one picture is explained; save a slice as PNG"):
        explain(ready(segmenter(), (32, 32)), path)


def test_the_model_is_left_exactly_as_it_was() -> None:
    model = ready(segmenter("upernet_swin_micro"), (32, 32), fit="squash").train()
    model.head.fuse.eval()  # as when part of a model is frozen
    modes, state = {n: m.training for n, m in model.named_modules()}, copy.deepcopy(model.state_dict())
    first, second = (explain(model, noise(40, 30), stage=0) for _ in range(2))
    np.testing.assert_array_equal(first.gradcam, second.gradcam)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())  # batch norm's too
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    with torch.inference_mode():
        np.testing.assert_array_equal(explain(model, noise(40, 30), stage=0).gradcam, first.gradcam)


def test_sixteen_bits_and_many_channels() -> None:
    deep = np.random.default_rng(0).integers(1000, 1500, (32, 32, 5)).astype(np.uint16)
    model = ready(segmenter(in_channels=5), (32, 32), fit="squash")
    flat = explain(model, deep)
    model.preprocess = dataclasses.replace(model.preprocess, intensity=(1000.0, 1500.0))
    result = explain(model, deep)
    assert flat.photo.max() < 8  # 1,500 of 65,535
    assert result.photo.max() > 250
    assert result.photo.shape == (32, 32, 5)


WRITTEN = {"index.html", "prediction.png", "gradcam.png", "evidence.png", "rollout.png", "stages.png", "point.png",
           "point-heads.png", "receptive-field.png", "heads-stage1.png", "heads-stage2.png"}  # fmt: skip


def check_written(folder: Path, names: set[str]) -> str:
    """The page's text, if these files are there and none of the pictures is an empty sheet."""
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width == 1100
            assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 500
    return (folder / "index.html").read_text(encoding="utf-8")


def test_pictures_of_a_pixel(tmp_path: Path) -> None:
    model = ready(segmenter("upernet_swin_micro", num_classes=20), (32, 32), fit="squash")
    model.classes = ("<b>&amp; $x^2$", "日本", "c" * 90, *(f"class {index}" for index in range(17)))
    Image.fromarray(noise(21, 40)).save(tmp_path / "photo.png")
    explain(save(model, tmp_path / "run"), tmp_path / "photo.png", target=0, point=(30, 8), out=tmp_path / "out")
    text = check_written(tmp_path / "out", WRITTEN)
    assert "Explained below: “&lt;b&gt;&amp;amp; $x^2$” at the pixel (30, 8), as chosen." in text
    assert "Prediction at (30, 8)" in text
    assert "Why “&lt;b&gt;&amp;amp; $x^2$” at (30, 8): Grad-CAM" in text
    assert "<b>&amp; $" not in text
    assert "everything can reach the pixel" in text


def test_pictures_of_a_region_in_a_window_with_a_decoder(reds: Model, tmp_path: Path) -> None:
    photo = (0.3 * noise(150, 200)).astype(np.uint8)
    photo[90:97, 120:129] = (255, 40, 40)
    result: Explanation = explain(reds, photo, region=True, out=tmp_path)
    decoder = {"point-decoder.png", "point-heads-decoder.png", "stages-decoder.png", "heads-decoder1.png"}
    text = check_written(tmp_path, WRITTEN | decoder)
    x, y = result.segmented.origin[0] + result.point.x, result.segmented.origin[1] + result.point.y
    assert f"window of 32 × 32 pixels that begins at {result.segmented.origin}" in text
    assert f"all pixels predicted as “red”; attention is that of the pixel ({x}, {y})" in text
    count = int((result.segmented.mask == 1).sum())
    assert f"Why “red” at its {count} pixels: Grad-CAM" in text
    assert "decoder 1</td>" in text
    assert "everything can reach the pixel" not in text
