"""The linear projection of token maps equals `F.linear`, whichever way it is computed."""

import pytest
import torch
from torch import Tensor, nn
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
    x = torch.randn(16, 2, 2, 4)
    assert convolves_faster(x) == (
        torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
    assert not convolves_faster(x.double())
    assert not convolves_faster(x[0])
    assert not convolves_faster(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolves_faster(x)


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (3, 4), (0, 3, 4)], ids=str)
@pytest.mark.usefixtures("threads")
def test_what_is_computed_again_has_the_same_gradients(shape: tuple[int, ...], frozen: tuple[int, ...]) -> None:
    norm = nn.LayerNorm(shape[-1])
    nn.init.normal_(norm.weight)
    leaves = [torch.randn(shape), torch.randn(10, shape[-1]), torch.randn(10), *norm.parameters()]
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index not in frozen)
    x, weight, bias, *learned = leaves
    ours = linear(x, weight, bias, before=normed, learned=tuple(learned))
    theirs = F.linear(norm(x), weight, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream, inputs = torch.randn_like(theirs), [leaf for leaf in leaves if leaf.requires_grad]
    for mine, yours in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-4)


def test_it_computes_again_under_autocast_too() -> None:
    norm, layer = nn.LayerNorm(16), nn.Linear(16, 8)
    x = torch.randn(2, 3, 3, 16)
    grads = []
    for again in (True, False):
        source = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            if again:
                out = linear(source, layer.weight, layer.bias, before=normed, learned=tuple(norm.parameters()))
            else:
                out = F.linear(norm(source), layer.weight, layer.bias)
        assert out.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(out.float().square().sum(), [source, layer.weight, layer.bias, norm.weight]))
    for mine, yours in zip(*grads, strict=True):
        assert mine.dtype == yours.dtype
        torch.testing.assert_close(mine, yours, rtol=0.03, atol=0.03 * float(yours.abs().max()))


def test_the_norm_s_result_is_not_kept() -> None:
    norm, x = nn.LayerNorm(16), torch.randn(2, 3, 3, 16, requires_grad=True)
    weight = torch.randn(8, 16, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(x, weight, None, before=normed, learned=tuple(norm.parameters()))
    assert set(kept) == {x.data_ptr(), weight.data_ptr(), norm.weight.data_ptr(), norm.bias.data_ptr()}


def test_transforms_of_functions_see_plain_torch() -> None:
    norm, weight = nn.LayerNorm(4), torch.randn(3, 4)

    def run(x: Tensor) -> Tensor:
        return linear(x, weight, None, before=normed, learned=tuple(norm.parameters())).square().sum()

    x = torch.randn(5, 4)
    each = torch.func.vmap(torch.func.grad(run))(x)
    whole = x.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(run(whole), whole)[0])


def test_a_second_derivative_is_that_of_torch() -> None:
    x, weight = torch.randn(2, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, weight: linear(x, weight, None, before=torch.tanh), inputs)
