"""The linear projection of token maps equals `F.linear`, whichever way it is computed."""

import pytest
import torch
from torch.nn import functional as F

from swindow.ops.linear import convolves_faster, linear

SHAPES = [(1, 1, 1, 4), (1, 7, 7, 96), (2, 5, 3, 8), (17, 4, 4, 12), (0, 2, 2, 4)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    """Torch takes other convolutions on one thread than on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.usefixtures("threads")
def test_values_and_gradients_equal_torchs(shape: tuple[int, ...], with_bias: bool) -> None:
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(10, shape[-1], requires_grad=True)
    bias = torch.randn(10, requires_grad=True) if with_bias else None
    inputs = [leaf for leaf in (x, weight, bias) if leaf is not None]
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.shape == theirs.shape
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(theirs)
    for mine, yours in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-4)


def test_a_transposed_map_is_read_in_its_order() -> None:
    x, weight = torch.randn(2, 6, 5, 8).transpose(1, 2), torch.randn(4, 8)
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_only_eager_fp32_maps_are_convolved() -> None:
    x = torch.randn(1, 2, 2, 4)
    assert not convolves_faster(x.double())
    assert not convolves_faster(x[0])
    assert not convolves_faster(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolves_faster(x)
