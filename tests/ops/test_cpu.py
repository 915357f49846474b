"""The CPU kernels against the oracle in fp64: both passes, over a grid, within the reference's own error."""

import copy
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swindow.errors import BackendUnavailable, ShapeError
from swindow.ops import cpu, reference
from swindow.ops.attention import choose, window_attention
from swindow.ops.cpu import native
from swindow.ops.cpu.branches import LinearLayer, MlpBranch
from tolerance import assert_within_budget

needs_kernels = pytest.mark.skipif(native.refusal() is not None, reason=f"kernels: {native.refusal()}")
pytestmark = needs_kernels
DTYPES = [torch.float32, torch.bfloat16]
GRID: list[dict[str, Any]] = [
    {"window": (7, 7), "windows": (2, 2), "shift": (3, 3), "heads": 3, "dim": 32},
    {"window": (8, 8), "windows": (1, 2), "shift": (0, 4), "heads": 2, "dim": 16},
    {"window": (7, 7), "windows": (1, 1), "shift": (0, 0), "heads": 4, "dim": 64},
    {"window": (12, 12), "windows": (2, 1), "shift": (6, 0), "heads": 1, "dim": 32},
    {"window": (3, 5), "windows": (3, 2), "shift": (1, 2), "heads": 2, "dim": 24},
    {"window": (2, 2), "windows": (5, 1), "shift": (1, 1), "heads": 2, "dim": 7},
    {"window": (1, 1), "windows": (3, 4), "shift": (0, 0), "heads": 1, "dim": 1},
    {"window": (1, 197), "windows": (1, 1), "shift": (0, 0), "heads": 2, "dim": 80},
    {"window": (24, 24), "windows": (1, 1), "shift": (0, 0), "heads": 1, "dim": 33},
]


@pytest.fixture(autouse=True)
def poisoned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel is to write to is NaN before."""
    if request.node.get_closest_marker("compiled"):
        return  # a compiler's tensors have no values

    def poison(make: Any, *arguments: Any, **options: Any) -> Tensor:
        made = make(*arguments, **options)
        return made.fill_(float("nan")) if made.is_floating_point() and made.device.type == "cpu" else made

    for owner, name in ((Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
        make = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, make=make, **k: poison(make, *a, **k))


def case(
    window: tuple[int, int],
    windows: tuple[int, int],
    shift: tuple[int, int],
    heads: int,
    dim: int,
    *,
    dtype: torch.dtype,
    biased: bool = True,
    cosine: bool = False,
    batch: int = 2,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Leaves (qkv, scale, perhaps a bias) and the rest of the arguments; fresh values each time."""
    tokens = window[0] * window[1]
    qkv = torch.randn(batch, windows[0] * window[0], windows[1] * window[1], 3, heads, dim).to(dtype)
    scale = torch.rand(heads) * 10 + 0.1 if cosine else torch.full((heads,), dim**-0.5)
    leaves = [qkv, scale] + ([torch.randn(heads, tokens, tokens)] if biased else [])
    return leaves, {"window": window, "shift": shift, "cosine": cosine}


def results(
    run: Any, leaves: list[Tensor], toward: Tensor, setting: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    """The output and the gradient of every leaf, in the dtype given to parameters and tokens alike."""
    own = [leaf.detach().to(dtype).clone().requires_grad_() for leaf in leaves]
    out = run(own[0], own[2] if len(own) > 2 else None, scale=own[1], **setting)
    return [out.detach(), *torch.autograd.grad(out, own, toward.to(dtype))]


def terms_of_the_scale(leaves: list[Tensor], toward: Tensor, setting: dict[str, Any]) -> Tensor:
    """What each head's scale gradient adds up, each query's part without its sign: many terms may cancel by luck."""
    qkv, scale, *bias = (leaf.double() for leaf in leaves)
    query, key, value = qkv.unbind(3)
    if setting["cosine"]:
        query, key = reference.unit(query), reference.unit(key)
    each = torch.ones_like(query[..., :1]).requires_grad_()
    scaled = torch.stack([query * each, key, value], dim=3)
    rest = {"window": setting["window"], "shift": setting["shift"], "scale": scale}
    out = reference.window_attention(scaled, bias[0] if bias else None, **rest)
    return torch.autograd.grad(out, each, toward.double())[0].abs().sum((0, 1, 2, 4)) / scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", GRID, ids=lambda shape: "x".join(map(str, shape["window"])))
def test_both_passes_are_within_the_reference_s_own_error(
    shape: dict[str, Any], biased: bool, cosine: bool, dtype: torch.dtype
) -> None:
    leaves, setting = case(**shape, dtype=dtype, biased=biased, cosine=cosine)
    leaves = [leaf.to(dtype) for leaf in leaves]
    toward = torch.randn(leaves[0].shape[:3] + leaves[0].shape[4:]).to(dtype)
    truth = results(reference.window_attention, leaves, toward, setting, torch.float64)
    plain = results(reference.window_attention, leaves, toward, setting, dtype)
    actual = results(cpu.window_attention, leaves, toward, setting, dtype)
    assert_within_budget(actual[0], truth[0], plain[0])
    for name, mine, exact, low in zip(("qkv", "scale", "bias"), actual[1:], truth[1:], plain[1:], strict=False):
        if name == "scale":
            band = torch.finfo(dtype).eps * terms_of_the_scale(leaves, toward, setting).max()
            assert (mine.double() - exact).abs().max() <= 3 * (low.double() - exact).abs().max() + band
        else:
            assert_within_budget(mine, exact, low, times=3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_runs_repeat_to_the_bit(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        leaves, setting = case(**GRID[0], dtype=torch.float32)
        toward = torch.randn(leaves[0].shape[:3] + leaves[0].shape[4:])
        first = results(cpu.window_attention, leaves, toward, setting, torch.float32)
        for _ in range(3):
            again = results(cpu.window_attention, leaves, toward, setting, torch.float32)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


def test_what_is_not_asked_for_is_not_computed() -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32)
    qkv, scale, bias = leaves
    bias.requires_grad_()
    cpu.window_attention(qkv, bias, scale=scale, **setting).sum().backward()
    assert bias.grad is not None
    assert qkv.grad is None
    assert scale.grad is None


@pytest.mark.parametrize("change", ["strides", "offset", "expanded gradient"])
def test_the_layout_of_memory_does_not_matter(change: str) -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32)
    toward = torch.randn(leaves[0].shape[:3] + leaves[0].shape[4:])
    if change == "expanded gradient":
        toward = torch.ones(()).expand_as(toward)
    expected = results(cpu.window_attention, leaves, toward.contiguous(), setting, torch.float32)
    qkv = leaves[0]
    if change == "strides":
        leaves[0] = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    elif change == "offset":
        leaves[0] = torch.cat([torch.zeros(1), qkv.flatten()])[1:].view_as(qkv)
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    out = cpu.window_attention(own[0], own[2], scale=own[1], **setting)
    found = [out.detach(), *torch.autograd.grad(out, own, toward)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_vectors_of_zero_stay_zero_and_their_gradients_finite() -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32, cosine=True)
    leaves[0][:, 3] = 0
    toward = torch.randn(leaves[0].shape[:3] + leaves[0].shape[4:])
    for mine, plain in zip(
        results(cpu.window_attention, leaves, toward, setting, torch.float32),
        results(reference.window_attention, leaves, toward, setting, torch.float32),
        strict=True,
    ):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_a_second_derivative_is_the_reference_s() -> None:
    leaves, setting = case(**GRID[5], dtype=torch.float32, cosine=True)
    twice = []
    for run in (cpu.window_attention, reference.window_attention):
        qkv, scale, bias = (leaf.detach().requires_grad_() for leaf in leaves)
        slopes = torch.autograd.grad(
            run(qkv, bias, scale=scale, **setting).square().sum(), (qkv, bias), create_graph=True
        )
        twice.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), (qkv, scale, bias)))
    for mine, plain in zip(*twice, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_large_logits_do_not_overflow() -> None:
    (qkv, scale, bias), setting = case(**GRID[0], dtype=torch.float32)
    qkv *= 100
    truth = reference.window_attention(qkv.double(), bias.double(), scale=scale.double(), **setting)
    plain = reference.window_attention(qkv, bias, scale=scale, **setting)
    assert_within_budget(cpu.window_attention(qkv, bias, scale=scale, **setting), truth, plain)


def test_an_empty_batch_is_an_empty_answer() -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32, batch=0)
    toward = torch.zeros(leaves[0].shape[:3] + leaves[0].shape[4:])
    out, slope, scale, bias = results(cpu.window_attention, leaves, toward, setting, torch.float32)
    assert out.shape[0] == slope.shape[0] == 0
    assert not scale.any()
    assert not bias.any()


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize("biased", [False, True])
def test_the_operator_is_one(biased: bool) -> None:
    leaves, setting = case(**GRID[5], dtype=torch.float32, biased=biased, cosine=True)
    qkv, scale, *bias = (leaf.requires_grad_() for leaf in leaves)
    arguments = (qkv, bias[0] if bias else None, scale, setting["window"], setting["shift"], True)
    torch.library.opcheck(torch.ops.swindow.cpu_window_attention.default, arguments)
    grad = torch.randn(qkv.shape[:3] + qkv.shape[4:])
    detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    torch.library.opcheck(torch.ops.swindow.cpu_window_attention_backward.default, (grad, *detached, biased))


@pytest.mark.compiled
def test_it_compiles_in_one_graph_and_the_choice_is_made_there() -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32)
    qkv, scale, bias = (leaf.requires_grad_() for leaf in leaves)

    def run(qkv: Tensor) -> Tensor:
        return window_attention(qkv * 1.0, bias, scale=scale, **setting)

    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(qkv), run(qkv))
    assert "cpu_window_attention" in graphs[0].code
    torch.testing.assert_close(*(torch.autograd.grad(f(qkv).sum(), qkv)[0] for f in (compiled, run)))


@pytest.mark.compiled
def test_what_is_exported_knows_nothing_of_them() -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32)

    class Attend(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return window_attention(qkv, leaves[2], scale=0.2, **setting)

    exported = torch.export.export(Attend(), (leaves[0],))
    assert "swindow" not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(leaves[0]), Attend()(leaves[0]), atol=1e-5, rtol=1e-5)


def test_auto_picks_them_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, setting = case(**GRID[0], dtype=torch.float32)
    for gradients, otherwise in ((False, "sdpa"), (True, "reference")):
        assert choose(leaves[0], leaves[2], setting["window"], gradients=gradients) == "cpu"
        double = leaves[0].double()
        assert choose(double, leaves[2], setting["window"], gradients=gradients) == otherwise
    monkeypatch.setattr(native, "refusal", lambda: "there is no compiler")
    assert choose(leaves[0], leaves[2], setting["window"], gradients=False) == "sdpa"


@pytest.mark.parametrize(
    ("qkv", "why"),
    [
        (torch.zeros(1, 2, 2, 3, 1, 8, dtype=torch.float64), "float64 on cpu, 8 channels a head: it takes float32"),
        (torch.zeros(1, 2, 2, 3, 1, 8, device="meta"), "float32 on meta, 8 channels a head: it runs on the CPU"),
        (torch.zeros(1, 2, 2, 3, 1, 600), "600 channels a head: it takes at most 512"),
    ],
    ids=["dtype", "device", "depth"],
)
def test_what_cannot_run_says_why(qkv: Tensor, why: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"the cpu backend cannot run .*{why}.*; use backend 'auto'"):
        window_attention(qkv, None, window=(2, 2), shift=(0, 0), scale=1.0, backend="cpu")


def test_gelu_is_as_exact_as_torch_s() -> None:
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.tensor([0.0, -0.0, 1e30, -1e30])])[:, None]
    layer = LinearLayer(torch.float32, torch.ones(1, 1), None, gelu=True)
    truth = torch.nn.functional.gelu(x.double())
    assert (layer(x) - truth).abs().max() <= 1.5 * (torch.nn.functional.gelu(x) - truth).abs().max()
    half = LinearLayer(torch.bfloat16, torch.ones(1, 1), None, gelu=True)(x.bfloat16())
    exact = torch.nn.functional.gelu(x.bfloat16().double())
    assert ((half - exact).abs() <= 2**-8 * exact.abs() + 3e-5).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (97, 5, 50), (3, 96, 200), (250, 33, 48)])
def test_a_linear_layer_is_one(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs), torch.randn(outputs)
    weight = weight.to(dtype).float()
    residual = torch.randn(rows, outputs).to(dtype)
    norm = torch.nn.LayerNorm(inputs).requires_grad_(False)
    wide = copy.deepcopy(norm).double()(x.double()).to(dtype).double()  # operands are rounded to what they are kept in
    truth = torch.nn.functional.linear(wide, weight.double(), bias.double()) + residual.double()
    made = LinearLayer(dtype, weight, bias, before=norm)(x, residual)
    size = wide.abs() @ weight.double().abs().t() + bias.abs() + residual.abs().double()
    assert ((made.double() - truth).abs() <= 2 * torch.finfo(dtype).eps * size).all()


def test_maps_of_another_kind_do_not_reach_the_kernels() -> None:
    branch = MlpBranch(torch.float32, fc1=(torch.ones(8, 4), None), fc2=(torch.ones(4, 8), None))
    for x in (torch.ones(2, 5), torch.ones(2, 4).double(), torch.ones(4, 2).t(), torch.ones(2, 4, device="meta")):
        with pytest.raises(
            ValueError, match=r"the kernel takes contiguous torch\.float32 maps of 4 channels on the CPU"
        ):
            branch(x, in_place=False)


def child(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {name: value for name, value in os.environ.items() if name != "CXX"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=own | environment, capture_output=True, text=True, timeout=120, check=False)


SAY = "from swindow.ops.cpu import native; print(native.refusal())"


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    done = child(SAY, PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "no C++ compiler was found (g++, c++); install one, such as Debian's g++"
    done = child(SAY, CXX="nowhere++ -O1", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.strip() == "CXX is 'nowhere++ -O1', and there is no such program"


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(("#!/bin/sh", *lines)))
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    fails = "echo 'x.cpp: error: it is broken' >&2; exit 1"
    broken = script(tmp_path / "g++", "[ $1 = --version ] && echo broken 1 && exit", fails)
    done = child(SAY, CXX=broken, XDG_CACHE_HOME=str(tmp_path))
    assert "could not build them: x.cpp: error: it is broken" in done.stdout
    assert not list(tmp_path.glob("swindow/*"))


def test_what_cannot_be_loaded_is_not_kept(tmp_path: Path) -> None:
    empty = script(
        tmp_path / "g++", "[ $1 = --version ] && echo odd 1 && exit", 'for last; do :; done; echo no > "$last"'
    )
    assert "file too short" in child(SAY, CXX=empty, XDG_CACHE_HOME=str(tmp_path)).stdout
    assert not list(tmp_path.glob("swindow/*"))


def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = native._cache()
    assert folder == tmp_path / "swindow"
    folder.chmod(0o777)
    assert native._cache() is None
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert native._cache() is None


def test_half_a_build_is_not_loaded(tmp_path: Path) -> None:
    library = tmp_path / "kernels.so"
    library.write_bytes(b"whole")
    assert not native._is_whole(library)
    native._digest_of(library).write_text(native._hash(library))
    assert native._is_whole(library)
    library.write_bytes(b"wh")
    assert not native._is_whole(library)


def test_the_operator_trusts_nobody() -> None:
    run = torch.ops.swindow.cpu_window_attention
    with pytest.raises(ShapeError, match="do not fit together"):
        run(torch.randn(1, 3, 3, 3, 1, 8), None, torch.ones(1), (2, 2), (0, 0), False)
    with pytest.raises(ShapeError, match=r"scale \(1,\)"):
        run(torch.randn(1, 2, 2, 3, 8, 8), None, torch.ones(1), (2, 2), (0, 0), False)


def test_too_little_memory_is_an_error() -> None:
    code = (
        "import resource, torch; from swindow.ops import cpu\n"
        "torch.set_num_threads(2); qkv = torch.randn(1, 1, 3000, 3, 1, 8, requires_grad=True)\n"
        "run = lambda x: cpu.window_attention(x, None, window=(1, x.shape[2]), shift=(0, 0), scale=1.0)\n"
        "run(qkv[:, :, :4]).sum().backward(); out = run(qkv).sum()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, used + 2**25))\n"
        "try: out.backward()\n"
        "except MemoryError as error: print(error)"
    )
    assert "take fewer images at a time" in child(code).stdout


@pytest.mark.slow
def test_builds_are_kept_and_shared(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert child(SAY, **environment).stdout.strip() == "None"
    (built,) = (tmp_path / "swindow").glob("*.so")
    ctypes.CDLL(str(built))
    stamp = built.stat().st_mtime_ns
    assert child(SAY, **environment).stdout.strip() == "None"
    assert built.stat().st_mtime_ns == stamp
