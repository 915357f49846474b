"""`torch.compile` and `torch.export` of whole segmenters: one graph, whatever the size, that says the same."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from swindow.model import Model
from tiny_segmenters import HEADS, segmenter, stirred

pytestmark = [
    pytest.mark.compiled,
    # The compiler asks each input for its gradient and hides the warning, which cannot hide one made an error.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
HEAD = pytest.mark.parametrize("head", HEADS)
FAMILY = pytest.mark.parametrize(
    "family", ["swin", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swin_v2", "vit", "resnet"))]
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(run: Callable[[Tensor], Tensor], model: Model, images: Tensor) -> list[Tensor]:
    """Logits and, in training, every gradient."""
    model.zero_grad()
    if not model.training:
        with torch.no_grad():
            return [run(images)]
    logits = run(images)
    logits.square().mean().backward()
    return [logits.detach(), *(x.grad.clone() for x in model.parameters() if x.grad is not None)]


def assert_same(compiled: Callable[[Tensor], Tensor], model: Model, *shape: int) -> None:
    images = torch.randn(shape)
    for found, expected in zip(outcome(compiled, model, images), outcome(model, model, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max().clamp(min=1)))


@HEAD
@FAMILY
@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_graph_serves_many_sizes(head: str, family: str, training: bool) -> None:
    model = stirred(segmenter(head, family)).train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_same(compiled, model, 2, 3, 64, 96)
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in ((3, 75, 121), (2, 128, 71), (4, 100, 93)):
            assert_same(compiled, model, shape[0], 3, *shape[1:])


@HEAD
def test_blocks_compile_one_by_one_under_checkpointing(head: str) -> None:
    """As `swindow train --compile --checkpointing` has them: the decoder's too."""
    model, eager = (stirred_alike(head).train() for _ in range(2))
    model.checkpoint_blocks()
    for block in model.blocks():
        block.compile(fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 21, 27)
    for one, other in zip(outcome(model, model, images), outcome(eager, eager, images), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert model.state_dict().keys() == eager.state_dict().keys()


def stirred_alike(head: str) -> Model:
    torch.manual_seed(3)
    return stirred(segmenter(head))


@pytest.mark.slow
@HEAD
def test_losses_compile(head: str) -> None:
    model = stirred_alike(head).train()
    images, labels = torch.randn(2, 3, 24, 20), torch.randint(-1, 5, (2, 24, 20))

    def total(images: Tensor) -> Tensor:
        return torch.stack(list(model.head.loss(model.outputs(images), labels).values())).sum()

    model.zero_grad()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    found = torch.autograd.grad(compiled(images), list(model.parameters()))
    torch.manual_seed(5)
    expected = torch.autograd.grad(total(images), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@HEAD
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_graph_takes_any_batch(head: str, strict: bool) -> None:
    model = stirred(segmenter(head))
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(model, (torch.randn(2, 3, 21, 27),), dynamic_shapes=sizes, strict=strict).module()
    for batch in (2, 5):
        images = torch.randn(batch, 3, 21, 27)
        torch.testing.assert_close(program(images), model(images), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@HEAD
def test_the_default_compiler_agrees(head: str) -> None:
    for training in (False, True):
        model = stirred(segmenter(head)).train(training)
        assert_same(torch.compile(model, fullgraph=True), model, 2, 3, 37, 45)
