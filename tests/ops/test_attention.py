"""The operation against its definition, and every backend against fp64."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from any_backend import BACKENDS
from swindow.errors import ShapeError, UnknownName
from swindow.ops import reference
from swindow.ops.attention import choose, window_attention
from tolerance import assert_within_budget
from who_sees_whom import attend, place_in_window, tokens, visible

Size = tuple[int, int]


class Case(NamedTuple):
    """A map, its windows, and how the logits are made."""

    qkv: Tensor
    bias: Tensor | None
    window: Size
    shift: Size
    scale: float | Tensor
    cosine: bool

    @property
    def grid(self) -> Size:
        return self.qkv.shape[1], self.qkv.shape[2]

    @property
    def options(self) -> dict[str, Any]:
        return {"window": self.window, "shift": self.shift, "scale": self.scale, "cosine": self.cosine}

    def run(self, backend: str) -> Tensor:
        return window_attention(self.qkv, self.bias, **self.options, backend=backend)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        scale = self.scale.to(device, dtype) if isinstance(self.scale, Tensor) else self.scale
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return self._replace(qkv=self.qkv.to(device, dtype), bias=bias, scale=scale)


def make(
    *,
    window: Size = (3, 2),
    windows: Size = (2, 3),
    shift: Size = (1, 1),
    batch: int = 2,
    heads: int = 2,
    depth: int = 4,
    biased: bool = True,
    cosine: bool = False,
    per_head: bool = False,
    seed: int = 0,
) -> Case:
    random = torch.Generator().manual_seed(seed)
    grid = (window[0] * windows[0], window[1] * windows[1])
    seen = window[0] * window[1]
    return Case(
        qkv=torch.randn(batch, *grid, 3, heads, depth, generator=random, dtype=torch.float64),
        bias=torch.randn(heads, seen, seen, generator=random, dtype=torch.float64) if biased else None,
        window=window,
        shift=shift,
        scale=torch.rand(heads, generator=random, dtype=torch.float64) * 4 if per_head else depth**-0.5,
        cosine=cosine,
    )


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    sides = st.integers(1, 4)
    window = (draw(sides), draw(sides))
    return {
        "window": window,
        "windows": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "shift": (draw(st.integers(0, window[0] - 1)), draw(st.integers(0, window[1] - 1))),
        "batch": draw(st.integers(1, 2)),
        "heads": draw(st.integers(1, 3)),
        "depth": draw(st.integers(1, 4)),
        "per_head": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def by_definition(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Outputs ``B tokens N D`` and weights ``B N tokens tokens``."""
    query, key, value = case.qkv.flatten(1, 2).numpy().transpose(2, 0, 1, 3, 4)  # 3 B tokens N D
    if case.cosine:
        query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    place = np.array(place_in_window(case.grid, case.window, case.shift))

    def bias(token: int, seen: list[int]) -> Any:
        return 0.0 if case.bias is None else case.bias.numpy()[:, place[token], place[seen]].T

    sees, scale = visible(case.grid, case.window, case.shift), np.asarray(case.scale)
    images = [attend(*image, sees, bias, scale) for image in zip(query, key, value, strict=True)]
    return np.stack([out for out, _ in images]), np.stack([weights for _, weights in images])


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@settings(max_examples=500)
@given(geometry=geometries())
def test_every_backend_is_the_definition(biased: bool, cosine: bool, geometry: dict[str, Any]) -> None:
    case = make(biased=biased, cosine=cosine, **geometry)
    truth, _ = by_definition(case)
    for backend in BACKENDS:
        error = np.abs(case.run(backend).flatten(1, 2).numpy() - truth).max()
        assert error <= 1e-12, f"{backend}: {error:.1e}"


@settings(max_examples=100)
@given(geometry=geometries())
def test_the_weights_are_those_of_the_definition(geometry: dict[str, Any]) -> None:
    case = make(**geometry)
    (height, width), (h, w), (down, right) = case.grid, case.window, case.shift
    _, truth = by_definition(case)
    weights = reference.attention_weights(case.qkv, case.bias, **case.options).numpy()
    home = [((y - down) % height // h) * (width // w) + (x - right) % width // w for y, x in tokens(case.grid)]
    place = place_in_window(case.grid, case.window, case.shift)
    for query in range(height * width):
        for key in range(height * width):
            if home[query] == home[key]:
                found = weights[:, home[query], :, place[query], place[key]]
                assert np.abs(found - truth[:, :, query, key]).max() <= 1e-12
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, 1), (2, 1), (1, 1)])
def test_nothing_leaks_between_tokens_that_do_not_see_each_other(backend: str, shift: Size) -> None:
    case = make(window=(3, 2), windows=(3, 3), shift=shift, batch=1)
    sees = visible(case.grid, case.window, shift)
    qkv = case.qkv.requires_grad_()
    for token, (y, x) in enumerate(tokens(case.grid)):
        out = case._replace(qkv=qkv).run(backend)
        gradient = torch.autograd.grad(out[0, y, x].sum(), qkv)[0][0].flatten(0, 1)  # tokens 3 N D
        unseen = torch.tensor([other not in sees[token] for other in range(len(sees))])
        assert (gradient[unseen] == 0).all()
        assert (
            gradient[~unseen][:, 2] > 0
        ).all()  # the values it takes; a softmax over one key has no slope in the key
        assert (gradient[:token, 0] == 0).all()
        assert (gradient[token + 1 :, 0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cosine", [False, True])
def test_gradients_are_those_of_finite_differences(backend: str, cosine: bool) -> None:
    case = make(window=(2, 2), windows=(2, 1), shift=(1, 0), batch=1, depth=2, cosine=cosine, per_head=True)

    def run(qkv: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return case._replace(qkv=qkv, bias=bias, scale=scale).run(backend)

    assert isinstance(case.scale, Tensor)
    assert case.bias is not None
    assert torch.autograd.gradcheck(run, tuple(x.requires_grad_() for x in (case.qkv, case.bias, case.scale)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["channels", "batch", "rows", "columns"])
def test_the_layout_of_memory_does_not_matter(backend: str, layout: str) -> None:
    case = make()
    order = {"channels": (5, 4, 3, 0, 1, 2), "batch": (1, 2, 0, 3, 4, 5)}.get(layout)
    if order is not None:
        inverse = sorted(range(6), key=order.__getitem__)
        strided = case.qkv.permute(order).contiguous().permute(inverse)
    else:
        axis = 1 if layout == "rows" else 2
        strided = torch.stack([case.qkv, torch.full_like(case.qkv, torch.nan)], dim=axis + 1).flatten(axis, axis + 1)
        strided = strided[:, ::2] if axis == 1 else strided[:, :, ::2]
    assert not strided.is_contiguous()
    assert torch.equal(strided, case.qkv)
    torch.testing.assert_close(case._replace(qkv=strided).run(backend), case.run(backend), atol=1e-14, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_does_not_depend_on_its_batch(backend: str) -> None:
    case = make(batch=3)
    alone = torch.cat([case._replace(qkv=image[None]).run(backend) for image in case.qkv])
    torch.testing.assert_close(case.run(backend), alone, atol=1e-14, rtol=0)


def within_budget(low: Case, backend: str) -> None:
    """Outputs and gradients of a case that is already in a low precision."""

    def results(case: Case, name: str) -> list[Tensor]:
        leaves = [case.qkv.detach().requires_grad_(), case.bias.detach().requires_grad_()]  # type: ignore[union-attr]
        out = case._replace(qkv=leaves[0], bias=leaves[1]).run(name)
        toward = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
        return [out.detach(), *torch.autograd.grad(out, leaves, toward)]

    truth = results(low.to(torch.float64), "reference")
    device = low.qkv.device
    for actual, exact, plain in zip(results(low, backend), truth, results(low, "reference"), strict=True):
        assert actual.device == device
        assert_within_budget(actual.cpu(), exact.cpu(), plain.cpu())


LOW = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (3, 3)])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision_stays_within_the_reference_s_own_error(
    dtype: torch.dtype, shift: Size, cosine: bool, backend: str
) -> None:
    case = make(window=(7, 7), windows=(2, 2), shift=shift, heads=2, depth=32, cosine=cosine)
    within_budget(case.to(dtype), backend)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [(0, 0), (3, 3)])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision_on_a_gpu(dtype: torch.dtype, shift: Size, backend: str) -> None:
    within_budget(make(window=(7, 7), windows=(4, 4), shift=shift, heads=3, depth=32).to(dtype, "cuda"), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_do_not_overflow(backend: str) -> None:
    case = make(shift=(2, 1)).to(torch.float32)
    huge = case._replace(qkv=case.qkv * 1e4)
    assert torch.isfinite(huge.run(backend)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosine_attention_ignores_the_length_of_queries_and_keys(backend: str) -> None:
    case = make(cosine=True, per_head=True)
    longer = case.qkv * torch.tensor([3.0, 0.2, 1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(case._replace(qkv=longer).run(backend), case.run(backend), atol=1e-12, rtol=0)


def test_the_inputs_are_left_alone() -> None:
    case = make(per_head=True)
    before = (case.qkv.clone(), case.bias.clone(), case.scale.clone())  # type: ignore[union-attr]
    for backend in BACKENDS:
        case.run(backend)
    for old, new in zip(before, (case.qkv, case.bias, case.scale), strict=True):
        assert torch.equal(old, new)  # type: ignore[arg-type]


def test_auto_picks_a_backend_by_name() -> None:
    case = make()
    assert choose(case.qkv, case.bias, case.window, gradients=False) in set(BACKENDS) - {"auto"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": (4, 2)}, "a 6x6 map is not a multiple of the 4x2 window; pad it first"),
        ({"window": (3, 5)}, "a 6x6 map is not a multiple of the 3x5 window; pad it first"),
        ({"shift": (3, 0)}, r"shift \(3, 0\) must lie in \[0, window\) for window \(3, 2\)"),
        ({"shift": (0, -1)}, r"shift \(0, -1\) must lie in"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change: dict[str, Size], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make()._replace(**change).run("auto")


def test_an_unknown_backend_is_refused_with_the_nearest_one() -> None:
    # The hook's type checker refuses a name outside the Literal before the operation can, so ask `use_backend`'s way.
    with pytest.raises(UnknownName, match="unknown attention backend 'spda'; did you mean sdpa"):
        getattr(window_attention, "__wrapped__", window_attention)(
            make().qkv, None, window=(3, 2), shift=(0, 0), scale=1.0, backend="spda"
        )


@pytest.mark.parametrize(
    ("qkv", "bias", "scale", "message"),
    [
        (torch.zeros(1, 4, 4, 2, 2, 8), None, 1.0, r"qkv is \(1, 4, 4, 2, 2, 8\) torch.float32; it must be"),
        (torch.zeros(1, 4, 4, 3, 2, 8).int(), None, 1.0, "torch.int32; it must be floating point, B H W 3 N D"),
        (torch.zeros(1, 4, 4, 3, 2, 8), torch.zeros(1, 4, 4), 1.0, r"2 heads and windows of 4 tokens need \(2, 4, 4\)"),
        (torch.zeros(1, 4, 4, 3, 2, 8), torch.zeros(2, 9, 9), 1.0, r"the bias is \(2, 9, 9\); 2 heads"),
        (torch.zeros(1, 4, 4, 3, 2, 8), None, torch.ones(1), r"the scale is \(1,\); give one number, or one for each"),
        (torch.zeros(1, 4, 4, 3, 2, 8), torch.zeros(2, 4, 4, device="meta"), 1.0, "the bias is on meta and qkv on cpu"),
    ],
    ids=["parts", "integers", "heads", "tokens", "scales", "device"],
)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_tensors_that_do_not_fit_are_refused(
    qkv: Tensor, bias: Tensor | None, scale: Any, message: str, backend: Any
) -> None:
    plain = getattr(window_attention, "__wrapped__", window_attention)  # the hook that checks shapes would be first
    with pytest.raises(ShapeError, match=message):
        plain(qkv, bias, window=(2, 2), shift=(0, 0), scale=scale, backend=backend)
