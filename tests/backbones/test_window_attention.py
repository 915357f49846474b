"""The module against the definition: any map, any window, any shift, with the padding and the projections."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from any_backend import BACKENDS
from swindow.backbones.geometry import Windowing
from swindow.backbones.windowed import RelativeBias, WindowAttention
from swindow.layers import Linear
from swindow.ops.windows import count, merge, partition
from who_sees_whom import attend, tokens, visible

Size = tuple[int, int]


def module(*, window: Size, shift: Size, heads: int = 2, depth: int = 3) -> WindowAttention:
    """In fp64, every parameter drawn, so that no bias is zero by chance of initialisation."""
    dim = heads * depth
    attention = WindowAttention(
        dim, heads, Windowing(window, shift), qkv=Linear(dim, 3 * dim), position_bias=RelativeBias(window, heads)
    ).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def by_definition(attention: WindowAttention, x: np.ndarray) -> np.ndarray:
    """Zeros to the right and below until the windows divide the map, attention on all of it, the map cut out again.

    A window that covers a whole axis is not shifted along it.
    """
    (height, width), (h, w) = x.shape[1:3], attention.window
    grid = (-(-height // h) * h, -(-width // w) * w)
    shift = tuple(
        s if side > step else 0 for s, side, step in zip(attention.windowing.shift, grid, (h, w), strict=True)
    )
    padded = np.zeros((len(x), *grid, x.shape[3]))
    padded[:, :height, :width] = x
    weight = {name: value.detach().numpy() for name, value in attention.named_parameters()}
    qkv = padded.reshape(len(x), -1, x.shape[3]) @ weight["qkv.weight"].T + weight["qkv.bias"]
    qkv = qkv.reshape(len(x), len(tokens(grid)), 3, attention.num_heads, -1)  # B tokens 3 N D
    place, table = tokens(grid), weight["position_bias.table"]

    def bias(token: int, seen: list[int]) -> np.ndarray:
        offsets = [(place[token][0] - place[key][0], place[token][1] - place[key][1]) for key in seen]
        return table[[(dy + h - 1) * (2 * w - 1) + dx + w - 1 for dy, dx in offsets]]

    scale = np.asarray(qkv.shape[-1] ** -0.5)
    outs = [attend(q, k, v, visible(grid, (h, w), shift), bias, scale)[0] for q, k, v in qkv.transpose(0, 2, 1, 3, 4)]
    attended = np.stack(outs).reshape(*padded.shape)[:, :height, :width]
    return attended @ weight["proj.weight"].T + weight["proj.bias"]


@pytest.mark.parametrize("small", [(False, False), (False, True), (True, False), (True, True)])
@settings(max_examples=500)
@given(data=st.data())
def test_the_module_is_the_definition(small: tuple[bool, bool], data: st.DataObject) -> None:
    window = (data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4)))
    shift = (data.draw(st.integers(0, window[0] - 1)), data.draw(st.integers(0, window[1] - 1)))
    sides = [st.integers(1, step) if less else st.integers(step, 9) for less, step in zip(small, window, strict=True)]
    height, width = (data.draw(side) for side in sides)
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    attention = module(
        window=window, shift=shift, heads=data.draw(st.integers(1, 2)), depth=data.draw(st.integers(1, 3))
    )
    x = torch.randn(data.draw(st.integers(1, 2)), height, width, attention.qkv.in_features, dtype=torch.float64)
    truth = by_definition(attention, x.numpy())
    for attention.backend in BACKENDS:
        with torch.no_grad():
            error = np.abs(attention(x).numpy() - truth).max()
        assert error <= 1e-12, f"{attention.backend}: {error:.1e}"


@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (2, 8), (1, 1)])
def test_the_weights_give_the_output(grid: Size) -> None:
    attention = module(window=(3, 4), shift=(1, 2))
    x = torch.randn(2, *grid, 6, dtype=torch.float64)
    weights = attention.attention_weights(x)
    windows = count(grid[0], 3) * count(grid[1], 4)
    assert weights.shape == (2, windows, 2, 12, 12)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    shift = attention.windowing.shift_at(*grid)
    value = attention.project(x)[..., 2, :, :]  # B H W N D, padded
    taken = weights @ partition(value, (3, 4), shift).flatten(2, 3).transpose(2, 3)  # B G N T D
    attended = merge(taken.transpose(2, 3).unflatten(2, (3, 4)), value.shape[1:3], shift)
    torch.testing.assert_close(attention.proj(attended.flatten(3))[:, : grid[0], : grid[1]], attention(x))


@pytest.mark.parametrize(
    ("grid", "shift"),
    [((8, 8), (2, 2)), ((5, 4), (2, 0)), ((4, 5), (0, 2)), ((4, 4), (0, 0)), ((3, 9), (0, 2)), ((1, 1), (0, 0))],
)
def test_an_axis_that_one_window_covers_is_not_shifted(grid: Size, shift: Size) -> None:
    assert module(window=(4, 4), shift=(2, 2)).windowing.shift_at(*grid) == shift


def test_padded_tokens_are_seen_with_the_bias_of_qkv_as_published() -> None:
    attention = module(window=(2, 2), shift=(0, 0))
    x = torch.randn(1, 1, 1, 6, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(attention(x).sum(), attention.position_bias.table)[0]
    assert (gradient[[4, 3, 1, 0]] != 0).all()  # the token itself and the three of padding that it sees
    assert (gradient[[2, 5, 6, 7, 8]] == 0).all()  # offsets that no real token has here


def test_the_backend_is_an_attribute_that_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    from swindow.ops import reference

    attention, calls = module(window=(2, 2), shift=(1, 1)), []
    true = reference.window_attention
    monkeypatch.setattr(reference, "window_attention", lambda *args, **kwargs: calls.append(1) or true(*args, **kwargs))
    x = torch.randn(1, 4, 4, 6, dtype=torch.float64)
    attention.backend = "sdpa"
    attention(x)
    assert not calls
    attention.backend = "reference"
    attention(x)
    assert calls == [1]
