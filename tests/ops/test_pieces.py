"""What is computed a few images at a time is what is computed at once, and keeps its input alone."""

import functools

import pytest
import torch
from torch import Tensor, nn

from swindow.ops.pieces import by_pieces


def functional(module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
    names = (name for name, _ in module.named_parameters())
    return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 4)).double()


@pytest.mark.parametrize("images", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("on_input", [False, True])
def test_values_and_gradients_are_those_of_all_at_once(images: int, frozen: bool, on_input: bool) -> None:
    module, x = layers(), torch.randn(5, 3, 2, 6, dtype=torch.float64, requires_grad=on_input)
    module[1].requires_grad_(not frozen)
    parameters = tuple(module.parameters())
    wanted = [leaf for leaf in (x, *parameters) if leaf.requires_grad]
    found = by_pieces(functools.partial(functional, module), x, parameters, images)
    expected = module(x)
    torch.testing.assert_close(found, expected)
    toward = torch.randn_like(expected)
    for mine, yours in zip(
        torch.autograd.grad(found, wanted, toward), torch.autograd.grad(expected, wanted, toward), strict=True
    ):
        torch.testing.assert_close(mine, yours)


def test_only_the_input_is_kept() -> None:
    module, x = layers(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    kept: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        by_pieces(functools.partial(functional, module), x, tuple(module.parameters()), 2)
    assert kept == {x.data_ptr(), *(parameter.data_ptr() for parameter in module.parameters())}


def test_pieces_are_no_longer_than_asked_for() -> None:
    lengths: list[int] = []

    def run(x: Tensor) -> Tensor:
        lengths.append(x.shape[0])
        return x * 2

    by_pieces(run, torch.randn(7, 2, requires_grad=True), (), 3).sum().backward()
    assert lengths == [3, 3, 1, 3, 3, 1]


def test_autocast_is_the_same_in_both_passes() -> None:
    module, x = layers().float(), torch.randn(4, 6)
    seen: list[torch.dtype] = []

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        out = functional(module, x, *parameters)
        seen.append(out.dtype)
        return out

    with torch.autocast("cpu", torch.bfloat16):
        out = by_pieces(run, x, tuple(module.parameters()), 2)
    out.sum().backward()
    assert seen == [torch.bfloat16] * 4
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_second_derivative_is_that_of_torch() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    inputs = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True), *module.parameters())
    assert torch.autograd.gradgradcheck(
        lambda x, *parameters: by_pieces(functools.partial(functional, module), x, parameters, 2), inputs
    )


def test_what_is_drawn_at_random_is_drawn_again() -> None:
    drawn: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        drawn.append(torch.rand(()))
        return x * drawn[-1]

    x = torch.ones(5, 2, requires_grad=True)
    out = by_pieces(run, x, (), 2)
    after = torch.get_rng_state()
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert drawn[3:] == drawn[:3]
    assert len({float(x) for x in drawn}) == 3
    assert torch.equal(slope, out)
    assert torch.equal(torch.get_rng_state(), after)
