"""What people do with a model of torch's works with ours, though training keeps less than torch would."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swindow
from swindow.layers import Linear
from swindow.model import Model


def tiny(**fields: Any) -> Model:
    torch.manual_seed(0)
    shape = {"dim": 8, "num_heads": (1, 1, 1), "depths": (1, 2, 1), "drop_path": 0.0}
    return swindow.build("swin_micro", num_classes=3, **shape | fields).train()


@pytest.fixture(params=[False, True], ids=["whole", "in pieces"])
def images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    if request.param:
        monkeypatch.setattr("swindow.layers._PIECE", 2000)
    return torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def gradients(model: Callable[[Tensor], Tensor], images: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(model(images).square().sum(), leaves))


def test_a_hook_on_a_parameter_runs_once(images: Tensor) -> None:
    model = tiny()
    expected = gradients(model, images, list(model.parameters()))
    calls: list[str] = []

    def doubled(grad: Tensor, name: str) -> Tensor:
        calls.append(name)
        return 2 * grad

    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: doubled(grad, name))
    model(images).square().sum().backward()
    assert sorted(calls) == sorted(name for name, _ in model.named_parameters())
    for parameter, plain in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * plain)


def test_other_weights_can_be_put_in_their_place(images: Tensor) -> None:
    model, other = tiny(), tiny()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    weights = {name: value.detach().clone().requires_grad_() for name, value in other.named_parameters()}
    found = gradients(lambda x: torch.func.functional_call(model, weights, (x,)), images, list(weights.values()))
    for mine, plain in zip(found, gradients(other, images, list(other.parameters())), strict=True):
        torch.testing.assert_close(mine, plain)


class Adapted(nn.Module):
    """A layer and a small one beside it, as LoRA has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.beside = base, nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: Tensor, *more: Any, **options: Any) -> Tensor:
        return self.base(x, *more, **options) + self.beside(x)


def test_a_layer_can_be_wrapped_or_replaced(images: Tensor) -> None:
    model = tiny()
    merged = copy.deepcopy(model)
    for block, other in zip(model.backbone.blocks(), merged.backbone.blocks(), strict=True):
        for owner, name in ((block.attn, "qkv"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            adapted = Adapted(getattr(owner, name))
            setattr(owner, name, adapted)
            twin = getattr(other.attn if name == "qkv" else other.mlp, name)
            plain = nn.Linear(twin.in_features, twin.out_features)
            plain.weight.data, plain.bias.data = twin.weight.data + adapted.beside.weight.data, twin.bias.data
            setattr(other.attn if name == "qkv" else other.mlp, name, plain)
    torch.testing.assert_close(model(images), merged(images))


def test_hooks_see_what_a_module_takes_and_gives(images: Tensor) -> None:
    model, seen = tiny(), []

    def look(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(out.requires_grad)
        if isinstance(module, Linear):
            torch.testing.assert_close(out, nn.functional.linear(given[0], module.weight, module.offset()))

    for block in model.backbone.blocks():
        for module in (block.norm1, block.attn.qkv, block.norm2, block.mlp.fc1, block.mlp.act, block.mlp.fc2):
            module.register_forward_hook(look)
    model(images).sum().backward()
    assert seen == [True] * 6 * 4


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own, in forward mode
def test_torch_s_transforms_and_forward_mode_work(images: Tensor) -> None:
    model = tiny()
    plain = copy.deepcopy(model)
    swindow.use_backend(plain, "reference")
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(which: Model) -> Callable[[Any, Tensor], Tensor]:
        return lambda weights, x: torch.func.functional_call(which, weights, (x[None],)).square().sum()

    each = [torch.func.vmap(torch.func.grad(loss(which)), (None, 0))(weights, images) for which in (model, plain)]
    for name in weights:
        torch.testing.assert_close(each[0][name], each[1][name])
    tangents = [torch.func.jvp(which, (images,), (torch.ones_like(images),))[1] for which in (model, plain)]
    torch.testing.assert_close(tangents[0], tangents[1])
    assert tangents[0].abs().max() > 0


@pytest.mark.compiled  # tracing makes sizes tensors, which the checks of shapes refuse
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_what_is_traced_knows_nothing_of_our_operators() -> None:
    images = torch.randn(1, 3, 20, 20)
    traced = torch.jit.trace(tiny().eval(), images, check_trace=False)
    assert "swindow::" not in str(traced.inlined_graph)
