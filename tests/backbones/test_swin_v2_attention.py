"""V2's attention by its definition: cosines, scales and the position bias from log-spaced offsets."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from any_backend import BACKENDS
from swin_v2_models import drawn, model_of, tiny
from swindow.backbones.geometry import Windowing
from swindow.backbones.swin_v2 import LogitScale, LogSpacedBias, QkvLinear, log_spaced_offsets
from swindow.backbones.windowed import WindowAttention
from swindow.ops.attention import Backend
from who_sees_whom import attend, tokens, visible

Size = tuple[int, int]


def attention(window: Size, shift: Size, pretrained: Size, *, heads: int = 2, depth: int = 3) -> WindowAttention:
    """In fp64, every parameter drawn, offsets on the logarithmic scale exact."""
    dim = heads * depth
    bias = LogSpacedBias(window, pretrained, heads)
    windowing = Windowing(window, shift)
    parts = {"qkv": QkvLinear(dim), "position_bias": bias, "logit_scale": LogitScale(heads)}
    module = drawn(WindowAttention(dim, heads, windowing, **parts).double())
    nn.init.uniform_(module.logit_scale.log, 0.0, 6.0)  # some above the clamp at log 100
    dy, dx = np.meshgrid(np.arange(1 - window[0], window[0]), np.arange(1 - window[1], window[1]), indexing="ij")
    exact = np.stack([log_spaced(dy, pretrained[0]), log_spaced(dx, pretrained[1])], -1).reshape(-1, 2)
    assert (bias.offsets - torch.tensor(exact)).abs().max() < 1e-6
    bias.offsets.copy_(torch.tensor(exact))
    return module


def log_spaced(offset: np.ndarray, pretrained: int) -> np.ndarray:
    """V2, equation 4, in units of 8 to the farthest offset of the pretrained window and base 8, as published."""
    scaled = 8.0 * offset / max(pretrained - 1, 1)
    return np.sign(scaled) * np.log1p(np.abs(scaled)) / np.log(8.0)


def by_definition(module: WindowAttention, pretrained: Size, x: np.ndarray) -> np.ndarray:
    """Zeros to the right and below until the windows divide the map, attention on all of it, the map cut out again."""
    (height, width), (h, w) = x.shape[1:3], module.window
    grid = (-(-height // h) * h, -(-width // w) * w)
    shift = tuple(s if side > step else 0 for s, side, step in zip(module.windowing.shift, grid, (h, w), strict=True))
    padded = np.zeros((len(x), *grid, x.shape[3]))
    padded[:, :height, :width] = x
    weight = {name: value.detach().numpy() for name, value in module.named_parameters()}
    q_bias, v_bias = weight["qkv.q_bias"], weight["qkv.v_bias"]
    qkv = padded.reshape(len(x), -1, x.shape[3]) @ weight["qkv.weight"].T
    qkv = qkv + np.concatenate([q_bias, np.zeros_like(q_bias), v_bias])
    query, key, value = qkv.reshape(len(x), len(tokens(grid)), 3, module.num_heads, -1).transpose(2, 0, 1, 3, 4)
    query, key = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (query, key))
    place = np.array(tokens(grid))

    def bias(token: int, seen: list[int]) -> np.ndarray:
        offsets = place[token] - place[seen]
        scaled = np.stack([log_spaced(offsets[:, axis], pretrained[axis]) for axis in (0, 1)], axis=-1)
        inner = np.maximum(scaled @ weight["position_bias.mlp.0.weight"].T + weight["position_bias.mlp.0.bias"], 0)
        return 16 / (1 + np.exp(-inner @ weight["position_bias.mlp.2.weight"].T))

    scale = np.exp(np.minimum(weight["logit_scale.log"], np.log(100.0)))
    sees = visible(grid, (h, w), shift)
    outs = [attend(*image, sees, bias, scale)[0] for image in zip(query, key, value, strict=True)]
    attended = np.stack(outs).reshape(*padded.shape)[:, :height, :width]
    return attended @ weight["proj.weight"].T + weight["proj.bias"]


@settings(max_examples=300)
@given(data=st.data())
def test_the_module_is_the_definition(data: st.DataObject) -> None:
    sides = st.integers(1, 4)
    window, pretrained = (data.draw(sides), data.draw(sides)), (data.draw(sides), data.draw(sides))
    shift = (data.draw(st.integers(0, window[0] - 1)), data.draw(st.integers(0, window[1] - 1)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    heads, depth = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    module = attention(window, shift, pretrained, heads=heads, depth=depth)
    x = torch.randn(
        data.draw(st.integers(1, 2)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), heads * depth
    )
    truth = by_definition(module, pretrained, x.double().numpy())
    for module.backend in BACKENDS:
        with torch.no_grad():
            error = np.abs(module(x.double()).numpy() - truth).max()
        assert error <= 1e-12, f"{module.backend}: {error:.1e}"


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_does_not_know_the_length_of_queries_and_keys(part: int, backend: Backend) -> None:
    module = attention((3, 2), (1, 1), (3, 2))
    module.backend = backend
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    before = module(x)
    with torch.no_grad():
        module.qkv.weight[6 * part : 6 * part + 6] *= 7.0
        module.qkv.q_bias *= 7.0 if part == 0 else 1.0
    torch.testing.assert_close(module(x), before, atol=1e-12, rtol=0)


def test_logit_scales_are_clamped_at_100() -> None:
    scale = LogitScale(3)
    with torch.no_grad():
        scale.log.copy_(torch.tensor([0.0, math.log(99.0), 7.0]))
    torch.testing.assert_close(scale(), torch.tensor([1.0, 99.0, 100.0]))
    scale().sum().backward()
    torch.testing.assert_close(scale.log.grad, torch.tensor([1.0, 99.0, 0.0]))


# -- position bias -----------------------------------------------------------------------------------------------------

WINDOWS = [
    ((8, 8), (8, 8)),
    ((16, 16), (12, 12)),
    ((24, 24), (12, 12)),
    ((12, 12), (6, 6)),
    ((5, 9), (5, 9)),
    ((4, 7), (3, 2)),
]


@pytest.mark.parametrize(("window", "pretrained"), [*WINDOWS, ((7, 7), (1, 1)), ((1, 1), (1, 1)), ((1, 6), (1, 6))])
def test_the_bias_is_timm_s_also_for_another_window_than_trained(window: Size, pretrained: Size) -> None:
    """The whole attention in one window, without a mask, the scale at its clamp in some heads; offsets to the bit."""
    from timm.models.swin_transformer_v2 import WindowAttention as Timm

    theirs = drawn(Timm(6, window, 2, pretrained_window_size=pretrained).double())
    nn.init.uniform_(theirs.logit_scale, 3.0, 6.0)
    ours = attention(window, (0, 0), pretrained)
    ours.position_bias.offsets.copy_(log_spaced_offsets(window, pretrained).flatten(0, 1))
    assert torch.equal(ours.position_bias.offsets, theirs.relative_coords_table.flatten(0, 2))
    state = {k.replace("cpb_mlp", "position_bias.mlp"): value for k, value in theirs.state_dict().items()}
    state["logit_scale.log"] = state.pop("logit_scale").flatten()
    ours.load_state_dict(
        {k.replace("q_bias", "qkv.q_bias").replace("v_bias", "qkv.v_bias"): v for k, v in state.items()}
    )
    x = torch.randn(2, *window, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [(8, 8), (5, 9), (2, 16)])
def test_offsets_are_torchvision_s_to_the_bit(window: Size) -> None:
    from torchvision.models.swin_transformer import ShiftedWindowAttentionV2

    theirs = ShiftedWindowAttentionV2(4, list(window), [0, 0], 2).relative_coords_table
    assert torch.equal(log_spaced_offsets(window, window)[None], theirs)


def test_the_bias_of_an_offset_is_the_same_in_every_window() -> None:
    """What the pretrained window knew stays as it was in a larger one."""
    little, large = drawn(LogSpacedBias((3, 4), (3, 4), 2)), LogSpacedBias((5, 7), (3, 4), 2)
    large.load_state_dict(little.state_dict())
    inner = torch.tensor([y * 7 + x for y in (1, 2, 3) for x in (2, 3, 4, 5)])
    torch.testing.assert_close(large()[:, inner][:, :, inner], little())


def test_the_bias_lies_between_0_and_16() -> None:
    bias = drawn(LogSpacedBias((6, 5), (6, 5), 3))
    value = bias()
    assert value.shape == (3, 30, 30)
    assert value.min() > 0
    assert value.max() < 16
    assert torch.equal(LogSpacedBias((1, 1), (1, 1), 2).offsets, torch.zeros(1, 2))


@pytest.mark.parametrize("fields", [{"window": 1}, {"window": ((1, 3), (2, 1))}, {"window": 4, "pretrained_window": 1}])
def test_a_window_of_one_divides_nothing_by_zero(fields: dict[str, Any]) -> None:
    model = drawn(model_of(tiny(**fields)))
    model(torch.randn(1, 3, 15, 11)).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())  # type: ignore[arg-type]
