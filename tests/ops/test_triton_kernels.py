"""The Triton kernels against fp64: on a GPU, or in Triton's interpreter.

The interpreter is chosen for a whole process, before Triton is imported, so `test_triton.py` starts one for these.
By hand: ``TRITON_INTERPRET=1 python -m pytest tests/ops/test_triton_kernels.py``.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from swindow.model import use_backend
from swindow.ops import reference, triton
from swindow.ops.attention import window_attention
from tolerance import assert_within_budget
from who_sees_whom import tokens, visible

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
Size = tuple[int, int]


class Case(NamedTuple):
    """Arguments of the operation, leaves first."""

    qkv: Tensor
    bias: Tensor | None
    scale: float | Tensor
    window: Size
    shift: Size
    cosine: bool

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in self[:3] if isinstance(x, Tensor)]

    def with_leaves(self, leaves: list[Tensor]) -> "Case":
        left = iter(leaves)
        return self._replace(
            **{name: next(left) for name in ("qkv", "bias", "scale") if isinstance(getattr(self, name), Tensor)}
        )

    def run(self, backend: str = "triton") -> Tensor:
        options = {"window": self.window, "shift": self.shift, "scale": self.scale, "cosine": self.cosine}
        return window_attention(self.qkv, self.bias, **options, backend=backend)

    def results(self, toward: Tensor, backend: str = "triton") -> list[Tensor]:
        """The output and every gradient."""
        leaves = [x.detach().requires_grad_() for x in self.leaves]
        out = self.with_leaves(leaves).run(backend)
        return [out.detach(), *torch.autograd.grad(out, leaves, toward.to(out.dtype))]


def make(
    window: Size,
    windows: Size = (2, 2),
    shift: Size = (0, 0),
    *,
    batch: int = 1,
    heads: int = 2,
    depth: int = 32,
    dtype: torch.dtype = torch.float32,
    biased: bool = True,
    cosine: bool = False,
    per_head: bool = False,
) -> Case:
    """A case of random numbers, on the device of these tests; new ones at each call."""
    grid, seen = (window[0] * windows[0], window[1] * windows[1]), window[0] * window[1]
    return Case(
        qkv=torch.randn(batch, *grid, 3, heads, depth).to(DEVICE, dtype),
        bias=torch.randn(heads, seen, seen).to(DEVICE, dtype) if biased else None,
        scale=(torch.rand(heads) * 4).to(DEVICE, dtype) if per_head else depth**-0.5,
        window=window,
        shift=shift,
        cosine=cosine,
    )


def toward_of(case: Case) -> Tensor:
    batch, height, width, _, heads, depth = case.qkv.shape
    return torch.randn(batch, height, width, heads, depth).to(case.qkv)


def assert_right(case: Case) -> None:
    """Output and gradients within the budget: twice, and three times, what the eager reference errs by."""
    toward = toward_of(case)
    wide = case.with_leaves([x.double() for x in case.leaves])
    exact, plain = wide.results(toward.double(), "reference"), case.results(toward, "reference")
    actual = case.results(toward)
    if isinstance(wide.scale, Tensor):
        error, allowed = (x.pop() - exact[-1] for x in (actual, plain))
        band = torch.finfo(case.qkv.dtype).eps * terms_of_the_scale(wide, toward.double()).max()
        assert error.abs().max() <= 3 * allowed.abs().max() + band
    for i, (found, truth, low) in enumerate(zip(actual, exact, plain, strict=False)):
        assert_within_budget(found.cpu(), truth.cpu(), low.cpu(), times=3 if i else 2)


def terms_of_the_scale(case: Case, toward: Tensor) -> Tensor:
    """What each head's scale gradient adds up, each token's part without its sign: a few sums may cancel by luck."""
    qkv, each = case.qkv, torch.ones_like(case.qkv[:, :, :, :1, :, :1], requires_grad=True)
    if case.cosine:
        qkv = torch.cat([reference.unit(qkv[:, :, :, :2]), qkv[:, :, :, 2:]], dim=3)
    scaled = torch.cat([qkv[:, :, :, :1] * each, qkv[:, :, :, 1:]], dim=3)
    out = case._replace(qkv=scaled, cosine=False).run("reference")
    return torch.autograd.grad(out, each, toward)[0].abs().sum((0, 1, 2, 3, 5)) / case.scale


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody has written yet holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few programs that each takes several windows, and the last one fewer: on small maps each has one."""
    from swindow.ops.triton import backward, forward

    monkeypatch.setattr(forward, "_PROGRAMS", 3)
    monkeypatch.setattr(backward, "_PROGRAMS", 3)


SHAPES: dict[str, dict[str, Any]] = {
    "4x4": {"window": (4, 4), "windows": (1, 3), "shift": (2, 2), "batch": 3, "depth": 16},
    "7x7": {"window": (7, 7), "windows": (2, 2), "shift": (3, 3), "heads": 3},
    "7x7 wide": {"window": (7, 7), "windows": (1, 1), "batch": 2, "depth": 64},
    "7x7 unbiased": {"window": (7, 7), "windows": (1, 2), "shift": (3, 3), "depth": 48, "biased": False},
    "8x8 cosine": {"window": (8, 8), "windows": (2, 1), "shift": (4, 4), "cosine": True, "per_head": True},
    "5x3": {"window": (5, 3), "windows": (2, 3), "shift": (0, 2), "depth": 20, "per_head": True},
    "2x3": {"window": (2, 3), "windows": (3, 1), "shift": (1, 1), "batch": 2, "depth": 8, "cosine": True},
    "9x8 cosine, tiled": {"window": (9, 8), "windows": (2, 1), "shift": (3, 2), "cosine": True, "per_head": True},
    "12x12, tiled": {"window": (12, 12), "windows": (1, 2), "shift": (6, 6), "heads": 1, "depth": 16},
}


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_within_the_budget(shape: str, dtype: torch.dtype) -> None:
    assert_right(make(**SHAPES[shape], dtype=dtype))


@pytest.mark.parametrize("side", [16, pytest.param(24, marks=pytest.mark.slow)])
def test_large_windows(side: int) -> None:
    assert_right(make((side, side), (1, 1), heads=1, dtype=torch.bfloat16, cosine=True, per_head=True))


def test_a_large_window_that_is_shifted_in_fp32() -> None:
    assert_right(make((16, 16), (1, 1), (8, 8), heads=1, depth=16))


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("depth", [16, 32, 48, 64])
@pytest.mark.parametrize("window", [(4, 4), (7, 7), (8, 8), (12, 12)], ids=str)
def test_the_whole_grid(window: Size, depth: int, shifted: bool, cosine: bool, dtype: torch.dtype) -> None:
    shift = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    assert_right(make(window, (1, 3), shift, depth=depth, cosine=cosine, per_head=cosine, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [7, 8, 12, 16, 24])
def test_maps_of_the_size_of_a_model_s(side: int, dtype: torch.dtype) -> None:
    shift = (side // 2, side // 2)
    assert_right(make((side, side), (3, 5), shift, batch=9, heads=3, dtype=dtype))
    assert_right(make((side, side), (3, 5), shift, batch=9, heads=3, dtype=dtype, cosine=True, per_head=True))


def test_any_strides() -> None:
    case = make((4, 4), (2, 1), (1, 2), depth=16)
    qkv = torch.randn(3, 16, 1, 4, 2, 9).to(DEVICE).permute(2, 5, 3, 0, 4, 1)[:, 1:]  # B H W 3 N D, W far and D last
    bias = torch.randn(16, 2, 16).to(DEVICE).permute(1, 2, 0)
    assert qkv.shape == case.qkv.shape
    assert_right(case._replace(qkv=qkv, bias=bias))


def test_a_gradient_that_is_one_number_everywhere() -> None:
    case = make((4, 4), shift=(2, 2))
    qkv = case.qkv.requires_grad_()
    case._replace(qkv=qkv).run().sum().backward()  # an expanded tensor without strides
    expected = torch.autograd.grad(case._replace(qkv=qkv).run("reference").sum(), qkv)[0]
    torch.testing.assert_close(qkv.grad, expected, atol=1e-5, rtol=1e-5)


def test_a_bias_may_be_more_precise_than_the_map() -> None:
    case = make((7, 7), (1, 2), (3, 3), dtype=torch.bfloat16, per_head=True)
    wide = case._replace(bias=case.bias.float(), scale=case.scale.float())  # type: ignore[union-attr]
    toward = toward_of(case)
    out, *slopes = wide.results(toward)
    assert [x.dtype for x in (out, *slopes)] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(out, case.results(toward)[0], atol=0, rtol=0)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("window", [(4, 4), (9, 8)], ids=str)
def test_every_run_gives_the_same_bits(window: Size) -> None:
    case = make(window, (1, 4), (1, 2), heads=1, per_head=True)
    toward = toward_of(case)
    first, again = case.results(toward), case.results(toward)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("window", "shift", "every"), [((3, 2), (2, 1), 1), ((3, 2), (0, 0), 5), ((9, 8), (3, 2), 83)], ids=str
)
def test_nothing_leaks_between_tokens_that_do_not_see_each_other(window: Size, shift: Size, every: int) -> None:
    case = make(window, shift=shift, heads=1, depth=4)
    grid = case.qkv.shape[1], case.qkv.shape[2]
    sees, qkv = visible(grid, window, shift), case.qkv.requires_grad_()
    out = case._replace(qkv=qkv).run()
    for token, (y, x) in list(enumerate(tokens(grid)))[::every]:
        gradient = torch.autograd.grad(out[0, y, x].sum(), qkv, retain_graph=True)[0][0].flatten(0, 1)  # tokens 3 N D
        unseen = torch.tensor([other not in sees[token] for other in range(len(sees))])
        assert (gradient[unseen] == 0).all()
        assert (gradient[~unseen][:, 2] > 0).all()
        assert (gradient[:token, 0] == 0).all()
        assert (gradient[token + 1 :, 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("short", [False, True])
def test_keys_of_no_length_are_borne(short: bool, dtype: torch.dtype) -> None:
    case = make((4, 4), (1, 2), (2, 2), cosine=True, per_head=True, dtype=dtype)
    case.qkv[:, :, 5:, 1] = 0  # as those of V2's padded tokens
    if short:  # of what has a direction at all
        case.qkv[:, :, 5:, 1, :, 0] = 0.9 * max(1e-12, torch.finfo(dtype).tiny)
        assert (case.qkv[:, :, 5:, 1, :, 0] > 0).all()
    out, slope, *_ = case.results(toward_of(case))
    torch.testing.assert_close(out, case.run("reference"), atol=0.05, rtol=0.05)
    assert torch.isfinite(slope).all()
    assert (slope[:, :, 5:, 1] == 0).all()


@pytest.mark.parametrize("window", [(4, 4), (9, 8)], ids=str)
def test_large_logits_do_not_overflow(window: Size) -> None:
    case = make(window, shift=(2, 1))
    assert all(torch.isfinite(x).all() for x in case._replace(qkv=case.qkv * 1e4).results(toward_of(case)))


def test_only_the_gradients_that_are_wanted() -> None:
    case = make((4, 4), per_head=True)
    case.qkv.requires_grad_()
    case.run().sum().backward()
    assert case.qkv.grad is not None
    assert case.bias is not None
    assert case.bias.grad is None


def test_an_empty_batch() -> None:
    case = make((4, 4), batch=0, per_head=True)
    out, slope, bias_slope, scale_slope = case.results(toward_of(case))
    assert out.shape == (0, 8, 8, 2, 32)
    assert slope.shape == case.qkv.shape
    assert (bias_slope == 0).all()
    assert (scale_slope == 0).all()


def test_a_second_derivative_is_refused() -> None:
    case = make((4, 4))
    slope = torch.autograd.grad(case._replace(qkv=case.qkv.requires_grad_()).run().sum(), case.qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="swindow"):
        slope[0].sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@pytest.mark.parametrize("window", [(4, 4), (9, 8)], ids=str)
@pytest.mark.parametrize("plain", [False, True])
def test_torch_finds_nothing_wrong_with_the_operators(window: Size, plain: bool) -> None:
    case = make(window, (1, 2), (2, 1), heads=1, depth=16, cosine=not plain, per_head=not plain, biased=not plain)
    tensors = [case.qkv.requires_grad_(), None if plain else case.bias, None if plain else case.scale]
    setting = (0.3, window, case.shift, case.cosine)
    for x in tensors[1:]:
        if x is not None:
            x.requires_grad_()
    torch.library.opcheck(torch.ops.swindow.window_attention.default, (*tensors, *setting))
    with torch.no_grad():
        out, lse = torch.ops.swindow.window_attention(*tensors, *setting)
    tensors = [x if x is None else x.detach() for x in tensors]
    arguments = (torch.randn_like(out), *tensors, *setting, out if lse.numel() else None, lse, not plain)
    torch.library.opcheck(torch.ops.swindow.window_attention_backward.default, arguments)


class Attend(torch.nn.Module):
    """The operation as a module."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case._replace(qkv=None)
        self.bias = torch.nn.Parameter(case.bias)

    def forward(self, qkv: Tensor) -> Tensor:
        return self.case._replace(qkv=qkv, bias=self.bias).run()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("window", [(4, 4), (9, 8)], ids=str)
def test_it_compiles_without_a_break(window: Size, dynamic: bool) -> None:
    case = make(window, (1, 2), (2, 1), heads=1)
    module = Attend(case)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for windows in [(1, 2), (2, 1)]:
        qkv = make(window, windows, heads=1).qkv
        results = []
        for run in (module, compiled):
            leaf = qkv.clone().requires_grad_()
            out = run(leaf)
            results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, module.bias])])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(other, eager, atol=1e-5, rtol=1e-5)


def test_it_is_one_node_of_an_exported_program() -> None:
    case = make((4, 4), shift=(2, 2))
    module = Attend(case)
    program = torch.export.export(module, (case.qkv,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.swindow.window_attention.default in called
    torch.testing.assert_close(program.module()(case.qkv), module(case.qkv))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_learns_through_it(tiny: Any, precision: torch.dtype) -> None:
    model = tiny().to(DEVICE)
    images = torch.randn(2, 3, 20, 16).to(DEVICE)  # its maps need padding, and are cropped
    results = []
    for backend in ("reference", "triton"):
        use_backend(model, backend)
        model.zero_grad()
        with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
            model(images).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for expected, found in zip(*results, strict=True):
        band = (1e-4 if precision == torch.float32 else 5e-2) * expected.abs().max().item()
        torch.testing.assert_close(found, expected, atol=band + 1e-7, rtol=1e-4)


def test_the_reference_is_not_asked() -> None:
    case = make((4, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "window_attention", None)
        assert torch.equal(case.run(), triton.window_attention(case.qkv, case.bias, **case_options(case)))


def case_options(case: Case) -> dict[str, Any]:
    return {"window": case.window, "shift": case.shift, "scale": case.scale, "cosine": case.cosine}
