"""Models for GPUs: what is done ahead anywhere, compilers without a GPU, and CUDA graphs on one."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from swin_v2_models import drawn
from swindow.backbones.windowed import WindowAttention
from swindow.errors import ConfigError
from swindow.layers import PatchEmbed
from swindow.model import Model, build, use_backend
from swindow.ops.attention import Backend
from swindow.optimizing import gpu
from swindow.optimizing.gpu import Captured, Compiled, PatchProduct, optimize_for_gpu, prepared
from tiny_segmenters import HEADS, segmenter, stirred

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"num_classes": 5, "dim": 32, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "patch": 2}
NAMES = {"swin": "swin_tiny", "swin_v2": "swin_v2_tiny_w8"}


def model_of(family: str, **fields: Any) -> Model:
    return drawn(build(NAMES[family], **SHAPE | {"image_size": 16} | fields)).eval()


@pytest.mark.parametrize("size", [(16, 16), (21, 12)], ids=str)
@pytest.mark.parametrize("family", NAMES)
def test_what_is_done_ahead_leaves_the_answer(family: str, size: tuple[int, int]) -> None:
    model, images = model_of(family).double(), torch.randn(3, 3, *size)
    single = copy.deepcopy(model).float()
    with torch.no_grad():
        truth, plain = model(images.double()), single(images)
    found = prepared(single, dtype=torch.float32, device=CPU)[0](images)
    assert not found.requires_grad
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6 * truth.abs().max()


@pytest.mark.parametrize(("head", "family"), [(head, family) for head in HEADS for family in ("swin", "vit", "resnet")])
def test_what_is_done_ahead_leaves_the_answer_of_segmenters(head: str, family: str) -> None:
    model, images = stirred(segmenter(head, family)).double(), torch.randn(2, 3, 21, 12)
    single = copy.deepcopy(model).float()
    with torch.no_grad():
        truth, plain = model(images.double()), single(images)
    found = prepared(single, dtype=torch.float32, device=CPU)[0](images)
    assert found.shape == (2, 5, 21, 12)
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6 * truth.abs().max()


def test_half_precision_answers_in_the_model_s_own_and_is_no_worse_than_a_cast() -> None:
    model, images = model_of("swin_v2"), torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(images.double())
        plain = copy.deepcopy(model).bfloat16()(images.bfloat16())
    ready, did = prepared(model, dtype=torch.bfloat16, device=CPU)
    found = ready(images)
    assert found.dtype == torch.float32
    assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max()
    assert "weights and arithmetic in bfloat16, sums in float32" in did
    assert {parameter.dtype for parameter in ready.parameters()} == {torch.bfloat16}


def test_it_says_what_it_did() -> None:
    assert prepared(model_of("swin"), dtype=torch.float32, device=CPU)[1] == [
        "frozen: position biases, scales and their like are computed once and kept",
        "patches embedded by a matrix product in place of a convolution",
        f"window attention by {_auto()} in 4 blocks",
    ]


def test_a_backend_asked_for_by_name_stays() -> None:
    model = model_of("swin")
    assert prepared(model, dtype=torch.float32, device=CPU, attention="sdpa")[1][-1].endswith("by sdpa in 4 blocks")
    use_backend(model, "reference")
    ready, did = prepared(model, dtype=torch.float32, device=CPU, attention="sdpa")
    assert did[-1] == "window attention by reference in 4 blocks"
    assert {m.backend for m in ready.modules() if isinstance(m, WindowAttention)} == {"reference"}


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("meta", torch.float64)])
def test_what_it_cannot_do_is_refused(device: str, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"device (cpu|meta) is not a GPU"):
        optimize_for_gpu(model_of("swin"), size=(16, 16), dtype=dtype, batch=1, device=torch.device(device))
    with pytest.raises(ConfigError, match=r"dtype torch.float64 is not one of torch.float32, torch.bfloat16"):
        prepared(model_of("swin"), dtype=torch.float64, device=CPU)


@pytest.mark.parametrize("bias", [True, False])
def test_patches_by_a_product_are_those_of_the_convolution(bias: bool) -> None:
    embed = PatchEmbed(3, 8, 4).double()
    convolution = nn.Conv2d(3, 8, 4, stride=4, bias=bias).double()
    images = torch.randn(2, 3, 12, 20).double()
    found = PatchProduct(convolution)(images)
    torch.testing.assert_close(found, convolution(images), atol=1e-12, rtol=0)
    assert found.permute(0, 2, 3, 1).is_contiguous()
    embed.proj = PatchProduct(convolution)  # type: ignore[assignment]
    assert embed(images[:, :, :-1]).shape == (2, 3, 5, 8)  # padded before


@pytest.mark.compiled
def test_other_shapes_run_compiled_too() -> None:
    model = model_of("swin", depths=(2,), num_heads=(1,))
    ready, _ = prepared(model, dtype=torch.float32, device=CPU)
    compiled = Compiled(ready, torch.randn(2, 3, 16, 16), backend="eager")
    assert {id(x) for x in compiled.parameters()} == {id(x) for x in ready.parameters()}
    for shape in [(2, 3, 16, 16), (3, 3, 16, 16), (1, 3, 24, 20)]:
        images = torch.randn(shape)
        torch.testing.assert_close(compiled(images), ready(images), atol=1e-4, rtol=1e-4)


@pytest.mark.compiled
def test_a_program_may_optimize_more_models_than_a_compiler_remembers() -> None:
    images = torch.randn(1, 3, 16, 16)
    with torch._dynamo.config.patch(recompile_limit=2):  # its own way: pytest's would hide the setting when it is done
        for blocks in range(1, 5):
            ready, _ = prepared(model_of("swin", depths=(blocks,), num_heads=(1,)), dtype=torch.float32, device=CPU)
            compiled = Compiled(ready, images, backend="eager")
            torch.testing.assert_close(compiled(images), ready(images))
    torch._dynamo.reset()


def test_a_captured_graph_is_neither_moved_nor_cast() -> None:
    captured = Captured.__new__(Captured)
    nn.Module.__init__(captured)
    for moved in (captured.half, captured.cpu, lambda: nn.Sequential(captured).to(torch.float64)):
        with pytest.raises(ConfigError, match="neither moved nor cast; optimize the model again"):
            moved()


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("graphed", "attention"), [(True, "triton"), (False, "triton"), (True, "sdpa")])
@pytest.mark.parametrize("family", NAMES)
def test_answers_on_a_gpu_are_within_the_budget(
    family: str, graphed: bool, dtype: torch.dtype, attention: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRAPHED", 10**9 if graphed else 0)
    device = torch.device("cuda", torch.cuda.current_device())
    model = model_of(family)
    setting = {"size": (32, 32), "dtype": dtype, "batch": 4, "device": device, "attention": attention}
    optimized, did = optimize_for_gpu(model, **setting)
    assert f"window attention by {attention} in 4 blocks" in did
    assert any("CUDA graph" in sentence for sentence in did) == graphed
    exact, low = copy.deepcopy(model).double().to(device), copy.deepcopy(model).to(device, dtype)
    for shape in [(4, 3, 32, 32), (4, 3, 32, 32), (3, 3, 32, 32), (2, 3, 48, 40)]:
        images = torch.randn(shape, device=device)
        with torch.no_grad():
            truth, plain = exact(images.double()), low(images.to(dtype))
        found = optimized(images)
        assert found.dtype == torch.float32
        band = torch.finfo(dtype).eps * truth.abs().max()
        assert (found - truth).abs().max() <= 2 * (plain - truth).abs().max() + band


@pytest.mark.gpu
@pytest.mark.compiled
def test_a_replay_leaves_earlier_answers_alone() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    optimized, _ = optimize_for_gpu(model_of("swin"), size=(16, 16), dtype=torch.float32, batch=2, device=device)
    images = [torch.randn(2, 3, 16, 16, device=device) for _ in range(2)]
    first, second = (optimized(x) for x in images)
    assert not torch.equal(first, second)
    assert torch.equal(optimized(images[0]), first)
    torch.testing.assert_close(optimized(images[1][:1]), second[:1], atol=1e-5, rtol=1e-5)


def _auto() -> str:
    from swindow.ops.attention import choose

    return choose(torch.empty(1, 8, 8, 3, 1, 32), torch.empty(1, 16, 16), (4, 4), gradients=False)
