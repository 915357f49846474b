"""Explanations of models whose weights are set by hand, so that the right answer is known."""

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import who_sees_whom
from swindow.checkpoints import save
from swindow.errors import CheckpointError, ConfigError, DataError, MissingExtra, UnknownName
from swindow.explanation import Explanation, Frame, explain, windows
from swindow.explanation.tracing import BlockTrace, grad_cam, trace
from swindow.explanation.windows import Layout, Step
from swindow.model import Model
from swindow.preprocess import Preprocess

Tiny = Callable[..., Model]
RED, GREEN = (255, 0, 0), (0, 255, 0)


def ready(model: Model, size: tuple[int, int] = (16, 16), **fields: Any) -> Model:
    """A model that takes pixels as they are, in 0..1."""
    channels = model.config.in_channels
    model.preprocess = Preprocess(size=size, mean=(0.0,) * channels, std=(1.0,) * channels, **fields)
    return model


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def blank(model: Model) -> Model:
    """No token prefers any other: no queries, no keys, no position bias."""
    for block in model.backbone.blocks():
        for parameter in (block.attn.qkv.weight, block.attn.qkv.bias, block.attn.relative_position_bias_table):
            nn.init.zeros_(parameter)
    return model


def looking_right(model: Model) -> Model:
    """Every token attends to its right neighbour, if that is in its window, and else to all alike."""
    for block in blank(model).backbone.blocks():
        height, width = block.attn.window
        row = (height - 1) * (2 * width - 1) + width - 2  # query - key = (0, -1)
        with torch.no_grad():
            block.attn.relative_position_bias_table[row] = 60.0
    return model


def colour_blobs(model: Model) -> Model:
    """Blocks do nothing; channel 0 lights where a patch is red, 1 where green; the classes read those two channels."""
    with torch.no_grad():
        for block in model.backbone.blocks():
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_(), layer.bias.zero_()
        embed = model.backbone.patch_embed.proj
        embed.weight.zero_(), embed.bias.zero_()
        embed.weight[0, 0] = embed.weight[1, 1] = 1.0
        for stage in list(model.backbone.stages)[:-1]:
            outer, inner = stage.merge.reduction.weight.shape
            stage.merge.reduction.weight.copy_(torch.eye(inner // 4).repeat(2, 4) * (torch.arange(outer) < 2)[:, None])
        model.head.linear.weight.zero_(), model.head.linear.bias.zero_()
        model.head.linear.weight[0, 0] = model.head.linear.weight[1, 1] = 1.0
    model.classes = ("red", "green", "neither")
    return model


def dense_weights(block: nn.Module, x: Tensor) -> np.ndarray:
    """A block's attention as ``N P P`` over all tokens of the padded map, from the definition of who sees whom."""
    attention, grid = block.attn, (x.shape[1], x.shape[2])
    qkv = attention.project(block.norm1(x))[0].detach()
    padded, shift = (qkv.shape[0], qkv.shape[1]), attention.shift_at(*grid)
    query, key, value = (part.flatten(0, 1).numpy() for part in qkv.unbind(2))
    place = np.array(who_sees_whom.place_in_window(padded, attention.window, shift))
    table = attention.bias().detach().numpy()
    _, weights = who_sees_whom.attend(
        query, key, value, who_sees_whom.visible(padded, attention.window, shift),
        lambda token, seen: table[:, place[token], place[seen]].T, np.full(query.shape[1], attention.scale),
    )  # fmt: skip
    return weights


def real_tokens(grid: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """Which tokens of the padded map are the image's own, flat."""
    rows, columns = (-(-side // length) * length for side, length in zip(grid, window, strict=True))
    return ((np.arange(rows) < grid[0])[:, None] & (np.arange(columns) < grid[1])).ravel()


def dense_chain(model: Model, images: Tensor) -> list[np.ndarray]:
    """Roll-out by its formula: for each stage one matrix from the image's patches to the stage's tokens."""
    x = model.backbone.patch_embed(images)
    chain, chains = np.eye(x.shape[1] * x.shape[2]), []
    for stage in model.backbone.stages:
        for block in stage.blocks:
            real = real_tokens((x.shape[1], x.shape[2]), block.attn.window)
            link = 0.5 * dense_weights(block, x).mean(0)[np.ix_(real, real)] + 0.5 * np.eye(real.sum())
            chain = link / link.sum(1, keepdims=True) @ chain
            x = block(x)
        chains.append(chain)
        if stage.merge is not None:
            rows, columns = x.shape[1], x.shape[2]
            cell = np.array(
                [row // 2 * -(-columns // 2) + column // 2 for row in range(rows) for column in range(columns)]
            )
            link = (np.arange(cell.max() + 1)[:, None] == cell).astype(float)
            chain = link / link.sum(1, keepdims=True) @ chain
            x = stage.merge(x)
    return chains


def traced(model: Model, images: Tensor, tokens: list[tuple[int, int]]) -> list[list[BlockTrace]]:
    return trace(model.backbone, images, tokens)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (26, 18), (9, 33), (2, 2)])
def test_uniform_attention_is_a_fair_share_everywhere(tiny: Tiny, height: int, width: int) -> None:
    result = explain(ready(blank(tiny())), noise(height, width), size="native")
    for stage in result.stages:
        for received, padding, shift in zip(stage.received, stage.padding, stage.shifts, strict=True):
            np.testing.assert_allclose(received, 1, atol=2e-6)
            real = real_tokens(stage.grid, stage.window)
            rows, columns = (-(-side // 4) * 4 for side in stage.grid)
            seen = who_sees_whom.visible((rows, columns), stage.window, shift)
            expected = np.mean([1 - real[seen[token]].mean() for token in np.flatnonzero(real)])
            np.testing.assert_allclose(padding, expected, atol=1e-6)


def test_padding_is_counted_at_odd_sizes_and_only_there(tiny: Tiny) -> None:
    odd, even = (explain(ready(blank(tiny())), noise(side, side), size="native") for side in (10, 16))
    # 5 x 5 tokens in windows of 4: 16 see no padding, twice 4 see 4 of the image in 16, and one sees itself alone.
    share = (16 * 0 + 2 * 4 * (1 - 4 / 16) + 1 * (1 - 1 / 16)) / 25
    np.testing.assert_allclose(odd.stages[0].padding[0], share, atol=1e-6)
    assert all((padding == 0).all() for stage in even.stages for padding in stage.padding)


@pytest.mark.parametrize(
    ("token", "unshifted", "shifted"),
    [((5, 4), (5, 5), (5, 5)), ((5, 3), None, (5, 4)), ((0, 5), (0, 6), None), ((7, 0), (7, 1), (7, 1))],
)
def test_a_point_attends_to_its_right_neighbour(
    tiny: Tiny, token: tuple[int, int], unshifted: tuple[int, int] | None, shifted: tuple[int, int] | None
) -> None:
    row, column = token
    model = ready(looking_right(tiny()), (24, 24))
    point = explain(model, noise(24, 24), point=(2 * column + 1, 2 * row), size="native").point
    assert (point.x, point.y, point.chosen) == (2 * column + 1, 2 * row, True)
    assert point.stages[0].token == token
    for block, neighbour in enumerate((unshifted, shifted)):
        expected = np.zeros((12, 12))
        if neighbour is None:  # the window ends here
            expected[point.stages[0].views[block]] = 1 / point.stages[0].views[block].sum()
        else:
            expected[neighbour] = 1
        for head in point.stages[0].attention[block]:
            np.testing.assert_allclose(head, expected, atol=1e-6)


def test_attention_to_padding_is_told_and_left_out(tiny: Tiny) -> None:
    model = ready(looking_right(tiny()))
    point = explain(model, noise(16, 18), point=(17, 0), size="native").point  # 9 tokens: to the right lies padding
    np.testing.assert_allclose(point.stages[0].padding[0], 1, atol=1e-6)
    np.testing.assert_allclose(point.stages[0].attention[0].sum((1, 2)), 1, atol=1e-6)
    assert not point.stages[0].attention[0][:, :, :8].any()


@pytest.mark.parametrize("shape", [(22, 18), (16, 16), (13, 31)])
def test_maps_and_chains_equal_dense_matrices(tiny: Tiny, shape: tuple[int, int]) -> None:
    model = tiny().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(1, 3, *shape, dtype=torch.float64)
    chains = dense_chain(model, images)
    tokens = [(2, 3), (1, 2)]
    stages = traced(model, images, tokens)
    patches = stages[0][0].step.layout.grid
    for stage, (blocks, token) in enumerate(zip(stages, tokens, strict=True)):
        grid = blocks[0].step.layout.grid
        steps = [[block.step for block in blocks] for blocks in stages[: stage + 1]]
        vector = windows.rollout(windows.one_hot(grid, token, blocks[0].step.weights), steps)
        expected = chains[stage][token[0] * grid[1] + token[1]].reshape(patches)
        np.testing.assert_allclose(vector.numpy(), expected, rtol=0, atol=1e-12)
        uniform = torch.full(grid, 1 / (grid[0] * grid[1]), dtype=torch.float64)
        pooled = windows.rollout(uniform, steps).numpy()
        np.testing.assert_allclose(pooled, chains[stage].mean(0).reshape(patches), rtol=0, atol=1e-12)
    _check_maps(model, images, stages, tokens)


def _check_maps(model: Model, images: Tensor, stages: list[list[BlockTrace]], tokens: list[tuple[int, int]]) -> None:
    x = model.backbone.patch_embed(images)
    for stage, blocks, token in zip(model.backbone.stages, stages, tokens, strict=True):
        grid = (x.shape[1], x.shape[2])
        for block, found in zip(stage.blocks, blocks, strict=True):
            real = real_tokens(grid, block.attn.window)
            raw = dense_weights(block, x)[:, real]
            own = raw[:, :, real] / raw[:, :, real].sum(-1, keepdims=True)
            lost = raw[:, :, ~real].sum(-1)
            number = token[0] * grid[1] + token[1]
            for ours, theirs in (
                (found.received, own.sum(1).reshape(-1, *grid)),
                (found.given, own[:, number].reshape(-1, *grid)),
                (found.padding, lost.mean(1)),
                (found.given_padding, lost[:, number]),
            ):
                np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-12)
            x = block(x)
        x = x if stage.merge is None else stage.merge(x)


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (3, 9), (4, 4), (1, 13)])
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (1, 3)])
def test_a_view_is_what_the_definition_lets_a_token_see(grid: tuple[int, int], shift: tuple[int, int]) -> None:
    layout = Layout(grid, (4, 4), shift)
    real = real_tokens(grid, (4, 4))
    for token, seen in zip(who_sees_whom.tokens(layout.padded), _seen(layout), strict=True):
        if token[0] < grid[0] and token[1] < grid[1]:
            expected = np.zeros(len(real), bool)
            expected[seen] = True
            np.testing.assert_array_equal(windows.view(layout, token).numpy().ravel(), expected[real])


def _seen(layout: Layout) -> list[list[int]]:
    return who_sees_whom.visible(layout.padded, layout.window, layout.shift)


@pytest.mark.parametrize("shape", [(48, 48), (46, 37), (33, 64)])
def test_the_receptive_field_is_where_gradients_come_from(tiny: Tiny, shape: tuple[int, int]) -> None:
    model = ready(tiny()).double()
    for x, y in ((0, 0), (shape[1] - 1, shape[0] - 1), (shape[1] // 2, shape[0] // 3)):
        point = explain(model, noise(*shape), point=(x, y), size="native").point
        images = torch.randn(1, 3, *shape, dtype=torch.float64, requires_grad=True)
        for stage, found in zip(model.backbone.stage_maps(images), point.stages, strict=True):
            token = stage[0, *found.token]
            (gradient,) = torch.autograd.grad((token * torch.randn_like(token)).sum(), images, retain_graph=True)
            moved = F.max_pool2d(gradient.abs().sum(1), 2, ceil_mode=True)[0] > 0
            np.testing.assert_array_equal(found.reach, moved.numpy())
    assert not point.stages[1].reach.all()


def test_rollout_stays_inside_the_receptive_field_and_keeps_its_sum(tiny: Tiny) -> None:
    result = explain(ready(tiny()), noise(46, 37), point=(5, 30), size="native")
    for stage in result.point.stages:
        assert stage.rollout.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(stage.rollout > 0, stage.reach)
    assert result.rollout.sum() == pytest.approx(1, abs=1e-5)


def test_a_chain_over_a_large_map_needs_no_matrix_of_tokens_by_tokens() -> None:
    layout = Layout((200, 150), (7, 7), (3, 3))  # dense, one block would take 7.2 GB
    weights = torch.full((29 * 22, 49, 49), 1 / 49)
    step = Step(layout, weights)
    vector = windows.rollout(windows.one_hot(layout.grid, (100, 75), weights), [[step, step]])
    assert float(vector.sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("depths", [(2,), (2, 2)])
@pytest.mark.parametrize("stage", [-1, 0])
def test_gradcam_peaks_on_the_patch_that_lights_the_channel(tiny: Tiny, depths: tuple[int, ...], stage: int) -> None:
    model = ready(colour_blobs(tiny(depths=depths, num_heads=(2, 4)[: len(depths)], num_classes=3)), (24, 24))
    photo = np.zeros((24, 24, 3), np.uint8)
    photo[4:8, 16:20], photo[12:16, 8:12] = RED, GREEN
    for target, rows, columns in (("red", (4, 8), (16, 20)), ("green", (12, 16), (8, 12)), (1, (12, 16), (8, 12))):
        result = explain(model, photo, target=target, size="native", stage=stage)
        assert result.target == ("green" if target == 1 else target)
        lit = np.zeros((24, 24), bool)
        lit[slice(*rows), slice(*columns)] = True
        assert result.gradcam.max() == 1
        assert (result.gradcam[lit] > 0.4).all()
        assert result.gradcam[~lit].max() < result.gradcam[lit].max()
        stride = 2 * 2 ** (len(depths) - 1) if stage == -1 else 2
        apart = F.max_pool2d(torch.from_numpy(lit)[None].float(), 2 * stride + 1, 1, stride)[0].numpy() == 0
        assert not result.gradcam[apart].any()  # bilinear: nothing further than a token from the patch
        assert lit[result.point.y, result.point.x]  # nobody chose a point: it is the brightest


def test_gradcam_of_a_class_without_evidence_is_dark(tiny: Tiny) -> None:
    result = explain(ready(colour_blobs(tiny(num_classes=3))), noise(16, 16), target="neither")
    assert not result.gradcam.any()
    assert (result.point.x, result.point.y, result.point.chosen) == (9, 9, False)  # in the middle of the middle token


def test_gradcam_of_the_last_stage_is_the_class_activation_map(tiny: Tiny) -> None:
    model, images = tiny(), torch.randn(1, 3, 26, 34)
    features = model.backbone(images)[-1][0]
    for target in range(5):
        found = grad_cam(model, images, target, 1)
        expected = (features @ model.head.linear.weight[target] / features[..., 0].numel()).relu()
        torch.testing.assert_close(found.heat, expected, rtol=1e-4, atol=1e-7)
        assert found.target == target
        torch.testing.assert_close(found.logits, model(images)[0].detach())
    assert grad_cam(model, images, None, 1).target == int(model(images).argmax())


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("photo", "size"), [((40, 60), (16, 16)), ((90, 30), (24, 32)), ((60, 60), (40, 24))])
def test_maps_lie_on_the_pixels_that_they_speak_of(
    tiny: Tiny, fit: str, photo: tuple[int, int], size: tuple[int, int]
) -> None:
    model = ready(
        colour_blobs(tiny(depths=(2,), num_heads=(2,), num_classes=3)), size, fit=fit, interpolation="bilinear"
    )
    top, left, height, width = model.preprocess.region(*photo)
    for down, across in ((0.3, 0.3), (0.7, 0.4), (0.4, 0.8)):
        y, x = int(max(top, 0) + down * min(height, photo[0])), int(max(left, 0) + across * min(width, photo[1]))
        pixels = np.zeros((*photo, 3), np.uint8)
        pixels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = RED
        result = explain(model, pixels, target="red")
        rows, columns = np.indices(photo)
        assert abs(np.average(rows, weights=result.gradcam) - y) <= height / size[0] + 0.5  # half a token of 2 pixels
        assert abs(np.average(columns, weights=result.gradcam) - x) <= width / size[1] + 0.5
        seen = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        np.testing.assert_array_equal(result.frame.seen(), seen)
        assert not result.gradcam[~seen].any()


def test_laying_is_bilinear_and_aligned_to_cells() -> None:
    heat = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    frame = Frame(photo=(20, 28), region=(0.0, 0.0, 20.0, 28.0), input=(20, 28))
    expected = F.interpolate(torch.from_numpy(heat)[None, None], scale_factor=4, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(frame.lay(heat, 4), expected[0, 0].numpy(), atol=1e-6)
    np.testing.assert_array_equal(frame.cells(heat, 4), heat.repeat(4, 0).repeat(4, 1))


def test_laying_a_ramp_gives_a_ramp_on_a_crop() -> None:
    frame = Frame(photo=(90, 70), region=(15.0, 20.0, 60.0, 40.0), input=(30, 20))  # an input pixel is two of the photo
    centres = (np.arange(10, dtype=np.float32) + 0.5) * 2  # of tokens two input pixels wide, in input pixels
    laid = frame.lay(np.tile(centres, (15, 1)), 2)
    positions = (np.arange(70) + 0.5 - 20) / 2
    inner = (positions >= 1) & (positions <= 19)
    np.testing.assert_allclose(laid[40, inner], positions[inner], atol=1e-5)
    assert not laid[:15].any()
    assert not laid[75:].any()
    assert not laid[:, :20].any()
    assert not laid[:, 60:].any()


def test_tokens_pixels_and_boxes_agree() -> None:
    frame = Frame(photo=(90, 70), region=(15.0, 20.0, 60.0, 40.0), input=(30, 20))
    assert frame.token(20, 15, 4) == (0, 0)
    assert frame.token(59, 74, 4) == (7, 4)
    for token in ((0, 0), (3, 2), (7, 4)):
        assert frame.token(*frame.pixel(token, 4), 4) == token
    mask = np.zeros((8, 5), bool)
    mask[6:, 1:3] = True
    assert frame.box(mask, 4) == (15 + 48, 20 + 8, 12, 16)  # the last row's cells end with the input


def test_the_model_is_left_exactly_as_it_was(tiny: Tiny) -> None:
    model = ready(tiny(drop_path=0.3, dropout=0.2)).train()
    model.backbone.stages[1].eval()  # as when part of a model is frozen
    model.head.linear.weight.requires_grad_(False)
    before, state = _attributes(model), copy.deepcopy(model.state_dict())
    results = [explain(model, noise(30, 20), stage=stage) for stage in (0, 1, 1)]
    np.testing.assert_array_equal(results[1].gradcam, results[2].gradcam)  # and dropout was off
    assert _attributes(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything on every module but its tensors: flags, numbers, hooks."""
    skipped = ("_parameters", "_buffers", "_modules")
    return {
        name: {key: copy.copy(value) for key, value in vars(module).items() if key not in skipped}
        | {f"{key}.requires_grad": value.requires_grad for key, value in module.named_parameters(recurse=False)}
        for name, module in model.named_modules()
    }


def test_an_error_inside_gives_the_modes_back_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(tiny()).train()
    monkeypatch.setattr(model.head, "decode", lambda outputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain(model, noise(16, 16))
    assert all(module.training for module in model.modules())


def test_it_works_where_gradients_are_off(tiny: Tiny) -> None:
    model, photo = ready(tiny()), noise(20, 20)
    expected = explain(model, photo).gradcam
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            np.testing.assert_array_equal(explain(model, photo).gradcam, expected)


def test_prediction_is_the_models(tiny: Tiny) -> None:
    model, photo = ready(tiny(num_classes=7)), noise(32, 32)
    model.classes = tuple("abcdefg")
    images = model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None]
    probabilities = model(images)[0].softmax(0).detach()
    result = explain(model, photo)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [name for name, _ in result.prediction] == ["abcdefg"[index] for index in order]
    np.testing.assert_allclose([value for _, value in result.prediction], probabilities[order], atol=1e-6)
    assert (result.target, result.probability) == (result.prediction[0][0], pytest.approx(result.prediction[0][1]))


def test_a_saved_model_explains_alike(tiny: Tiny, tmp_path: Path) -> None:
    model, photo = ready(tiny()), noise(20, 30)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = explain(save(model, tmp_path / "run"), tmp_path / "photo.png", device="cpu")
    np.testing.assert_array_equal(result.gradcam, explain(model, photo).gradcam)
    assert result.name.endswith("photo.png")
    with pytest.raises(CheckpointError, match="no such"):
        explain(tmp_path / "nothing", photo)


@pytest.mark.parametrize(
    ("size", "pixels"),
    [(24, (24, 24)), ((20, 36), (20, 36)), ("28", (28, 28)), ("20x36", (20, 36)), ("native", (30, 50))],
)
def test_any_input_size(tiny: Tiny, size: Any, pixels: tuple[int, int]) -> None:
    model = ready(tiny())
    result = explain(model, noise(30, 50), size=size)
    assert result.frame.input == pixels
    assert result.stages[0].grid == (pixels[0] // 2, pixels[1] // 2)
    assert result.gradcam.shape == (30, 50)
    assert model.preprocess.size == (16, 16)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"point": (0, 0)}, ConfigError, r"point \(0, 0\).*x from 16 to 33 and y from 6 to 23"),
        ({"point": (50, 10)}, ConfigError, "point"),
        ({"point": (20, -1)}, ConfigError, "point"),
        ({"target": "blu"}, UnknownName, "did you mean blue"),
        ({"target": 3}, ConfigError, "0 to 2"),
        ({"target": "3"}, ConfigError, "0 to 2"),
        ({"stage": 2}, ConfigError, "0 to 1"),
        ({"size": "large"}, ConfigError, "native"),
        ({"size": 0}, ConfigError, "size"),
    ],
)
def test_impossible_wishes_say_what_is_possible(
    tiny: Tiny, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = ready(tiny(num_classes=3), crop_ratio=0.6)
    model.classes = ("red", "green", "blue")
    with pytest.raises(error, match=message):
        explain(model, noise(30, 50), **asked)


def test_a_model_that_does_not_know_its_pixels_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="preprocess"):
        explain(tiny(), noise(30, 50))


@pytest.fixture(name="written", scope="module")
def written_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, list[Path]]:
    from conftest import tiny

    model = ready(tiny(num_classes=3))
    model.classes = ("<b>&amp; $x^2$", "日本", "c" * 90)
    folder = tmp_path_factory.mktemp("out") / "deep" / "er"
    result = explain(model, noise(21, 40), target=0, out=folder)
    return result, sorted(folder.iterdir())


def test_every_picture_is_written(written: tuple[Explanation, list[Path]]) -> None:
    names = {path.name for path in written[1]}
    assert names == {"index.html", "gradcam.png", "rollout.png", "stages.png", "point.png", "point-heads.png",
                     "receptive-field.png", "heads-stage1.png", "heads-stage2.png"}  # fmt: skip
    for path in written[1]:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.width == 1100
                assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 500  # not an empty sheet


def test_the_page_needs_nothing_beside_itself(written: tuple[Explanation, list[Path]]) -> None:
    text = next(path for path in written[1] if path.name == "index.html").read_text(encoding="utf-8")
    links = re.findall(r"(?:src|srcset|href)=\"([^\"]{0,30})", text)
    assert len(links) == 16
    assert all(link.startswith("data:image/webp;base64,") for link in links)
    assert "http" not in text
    assert "<b>&amp; $" not in text
    assert "&lt;b&gt;&amp;amp; $x^2$" in text
    assert "prefers-color-scheme: dark" in text


def test_a_grey_photo_of_an_odd_shape_can_be_drawn(tiny: Tiny, tmp_path: Path) -> None:
    result = explain(ready(tiny(in_channels=1, depths=(1,), num_heads=(2,))), noise(6, 300, 1), size="native")
    paths = result.save(tmp_path)
    assert paths[0].name == "index.html"
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_place_that_cannot_be_written_is_one_clear_line(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file: cannot write an explanation here \(.+\)$"):
        explain(ready(tiny(depths=(1,), num_heads=(2,))), noise(16, 16), out=tmp_path / "file")


def test_without_matplotlib_the_arrays_are_there_and_the_pictures_say_how(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = explain(ready(tiny()), noise(16, 16))
    with pytest.raises(MissingExtra, match=r"swindow\[train\]"):
        result.save(tmp_path)
    assert not any(tmp_path.iterdir())
