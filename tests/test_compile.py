"""`torch.compile` and `torch.export`: one graph for every family, whatever the size, that says what the model says."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swindow
from swindow.model import Model
from tiny_families import FAMILIES, tiny_of

pytestmark = [
    pytest.mark.compiled,
    # The compiler asks each input for its gradient and hides the warning, which cannot hide one made an error.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
EVERY = pytest.mark.parametrize("family", FAMILIES)


def every_but_slowly(*quick: str) -> pytest.MarkDecorator:
    """Every family; all but some of them in `make test-all` only."""
    return pytest.mark.parametrize(
        "family", [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in FAMILIES]
    )


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(model: Callable[[Tensor], Tensor], owner: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits and, in training, every gradient and statistic; with random numbers that are always the same."""
    owner.zero_grad()
    torch.manual_seed(7)
    if not owner.training:
        with torch.no_grad():
            return [model(images)]
    logits = model(images)
    logits.square().sum().backward()
    gradients = [x.grad.clone() for x in owner.parameters() if x.grad is not None]
    return [logits.detach(), *gradients, *(x.clone() for x in owner.buffers())]  # buffers: running statistics


def assert_same(compiled: Callable[[Tensor], Tensor], model: Model, *shape: int) -> None:
    images = torch.randn(shape)
    before = [x.clone() for x in model.buffers()]
    expected = outcome(model, model, images)
    for x, old in zip(model.buffers(), before, strict=True):
        x.copy_(old)
    found = outcome(compiled, model, images)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_every_family_is_one_graph(family: str, training: bool) -> None:
    """With padding at every stage, and in training with stochastic depth and dropout."""
    model = tiny_of(family, noise=0.2).train(training)
    backend = "aot_eager" if training else "eager"
    assert_same(torch.compile(model, fullgraph=True, backend=backend), model, 2, 3, 21, 27)


@pytest.mark.slow
@EVERY
def test_one_graph_infers_at_sizes_with_and_without_padding(family: str) -> None:
    assert_one_graph_serves_many_sizes(tiny_of(family))


@every_but_slowly("swin")
def test_one_graph_trains_at_sizes_with_and_without_padding(family: str) -> None:
    assert_one_graph_serves_many_sizes(tiny_of(family, noise=0.2).train())


def assert_one_graph_serves_many_sizes(model: Model) -> None:
    """Sizes and batches of which no two need the same zeros."""
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_same(compiled, model, 2, 3, 32, 48)
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in ((3, 37, 61), (2, 64, 35), (4, 50, 47)):
            assert_same(compiled, model, shape[0], 3, *shape[1:])


@pytest.mark.parametrize("family", ["swin", "deit, distilled"])
def test_after_two_sizes_the_compiler_knows_that_they_vary(family: str) -> None:
    """Nobody has to say ``dynamic``: the first graph is for its size, the second for all."""
    model = tiny_of(family)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for shape in ((2, 3, 32, 48), (3, 3, 37, 61)):
        assert_same(compiled, model, *shape)
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in ((4, 3, 64, 35), (5, 3, 29, 96), (2, 3, 50, 47)):
            assert_same(compiled, model, *shape)


def test_axes_can_be_marked_as_varying() -> None:
    """`mark_dynamic` is a demand: torch refuses if the model's code has fixed an axis that was marked."""
    model = tiny_of("swin")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 37, 61)
    for axis in (0, 2, 3):
        torch._dynamo.mark_dynamic(images, axis)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-3)
        with torch.compiler.set_stance("fail_on_recompile"):
            images = torch.randn(4, 3, 64, 35)
            torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-3)


@every_but_slowly("deit, distilled")
def test_sizes_smaller_than_a_window(family: str) -> None:
    """A map within one window is not shifted, and an axis of one is special to torch: graphs of their own."""
    model = tiny_of(family)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for shape in ((2, 3, 5, 7), (1, 3, 3, 6), (1, 3, 1, 1)):
        assert_same(compiled, model, *shape)


@EVERY
def test_every_family_exports_with_any_batch(family: str) -> None:
    assert_exports_with_any_batch(tiny_of(family), strict=False)


@every_but_slowly("deit, distilled")
def test_every_family_exports_strictly(family: str) -> None:
    assert_exports_with_any_batch(tiny_of(family), strict=True)


def assert_exports_with_any_batch(model: Model, *, strict: bool) -> None:
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(model, (torch.randn(2, 3, 21, 27),), dynamic_shapes=sizes, strict=strict).module()
    for batch in (2, 5):
        images = torch.randn(batch, 3, 21, 27)
        torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_graph_serves_any_size_beyond_the_windows(strict: bool) -> None:
    """Windows of 4 on patches of 2, two stages: from 17 pixels on every map has more than one window a side."""
    model = tiny_of("swin")
    sizes = ({0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.randn(2, 3, 37, 61),), dynamic_shapes=sizes, strict=strict).module()
    for shape in ((2, 3, 32, 48), (3, 3, 64, 35), (4, 3, 29, 96)):
        images = torch.randn(shape)
        torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-3)


def test_maps_for_dense_heads() -> None:
    fields: dict[str, Any] = {"dim": 8, "depths": (2, 1), "num_heads": (2, 4), "window": 4, "patch": 2}
    body = swindow.backbone("swin_micro", **fields).eval()
    compiled = torch.compile(body, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for shape in ((2, 3, 32, 48), (3, 3, 37, 61)):
            images = torch.randn(shape)
            for one, other in zip(compiled(images), body(images), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@every_but_slowly("swin", "swin_moe", "resnet")
def test_checkpointing_compiles_too(family: str) -> None:
    model = tiny_of(family, noise=0.2).train()
    model.backbone.checkpoint_blocks()
    assert_same(torch.compile(model, fullgraph=True, backend="aot_eager"), model, 2, 3, 21, 27)


@every_but_slowly("swin", "resnet")
def test_blocks_compile_one_by_one_under_checkpointing(family: str) -> None:
    """As `swindow train --compile --checkpointing` has them."""
    model = tiny_of(family, noise=0.2).train()
    eager = copy.deepcopy(model)
    model.backbone.checkpoint_blocks()
    for block in model.backbone.blocks():
        block.compile(fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 21, 27)
    for one, other in zip(outcome(model, model, images), outcome(eager, eager, images), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert model.state_dict().keys() == eager.state_dict().keys()


@pytest.mark.slow
@EVERY
def test_the_default_compiler_agrees(family: str) -> None:
    """With eager's random numbers, which the experts' router draws: by default inductor draws its own."""
    model = tiny_of(family).train()
    compiled = torch.compile(model, fullgraph=True, options={"fallback_random": True})
    assert_same(compiled, model, 2, 3, 21, 27)
