"""Stitched attention and chains of windows, against dense matrices and hand-set weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import who_sees_whom
from known_models import blank, looking_right, noise, ready
from swindow.explanation import explain, windows
from swindow.explanation.tracing import BlockTrace, trace
from swindow.explanation.windows import Layout, Step
from swindow.model import Model

Tiny = Callable[..., Model]


def dense_weights(block: nn.Module, x: Tensor) -> np.ndarray:
    """A block's attention as ``N P P`` over all tokens of the padded map, from the definition of who sees whom."""
    attention, grid = block.attn, (x.shape[1], x.shape[2])
    qkv = attention.project(block.norm1(x))[0].detach()
    padded, shift = (qkv.shape[0], qkv.shape[1]), attention.windowing.shift_at(*grid)
    query, key, value = (part.flatten(0, 1).numpy() for part in qkv.unbind(2))
    place = np.array(who_sees_whom.place_in_window(padded, attention.window, shift))
    table = attention.position_bias().detach().numpy()
    _, weights = who_sees_whom.attend(
        query, key, value, who_sees_whom.visible(padded, attention.window, shift),
        lambda token, seen: table[:, place[token], place[seen]].T, np.full(query.shape[1], query.shape[2] ** -0.5),
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
