"""Models optimized for the CPU against themselves in fp64: the error budget, any size, and nothing else touched."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import swindow
from swindow.errors import ConfigError, UnknownName
from swindow.model import Model
from swindow.objects import Frames
from swindow.ops.cpu import native
from swindow.optimizing import Optimized, cpu
from tiny_segmenters import HEADS, segmenter, stirred
from tolerance import assert_within_budget

TINY = {
    "swin": ("swin_micro", {"dim": 24, "num_heads": (2, 2, 4), "image_size": 32}),
    "swin pads": ("swin_micro", {"dim": 16, "num_heads": (1, 2, 4), "window": 5, "depths": (2, 2, 1)}),
    "swin shifts all": ("swin_micro", {"dim": 16, "num_heads": (1, 2, 4), "small_maps": "pad_shift"}),
    "swin bare": ("swin_micro", {"dim": 8, "num_heads": (1, 1, 1), "relative_bias": False, "qkv_bias": False}),
    "swin positions": ("swin_micro", {"dim": 16, "absolute_position": True, "mlp_ratio": 2.6}),
    "swin_v2": ("swin_v2_tiny_w8", {"dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "image_size": 64}),
    "swin_v2 norms": (
        "swin_v2_tiny_w8",
        {"dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window": 4, "image_size": 64, "extra_norm_every": 2},
    ),
    "swin_mlp": ("swin_mlp_tiny_c24", {"dim": 24, "depths": (2, 2), "num_heads": (1, 2), "window": 4}),
    "swin_moe": (
        "swin_moe_small_e8",
        {"dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "experts": 2, "routed": ((0,), (1,))},
    ),
    "vit": ("vit_tiny", {"dim": 24, "depths": (1, 1), "num_heads": 3, "image_size": 32, "patch": 8}),
    "deit": ("deit_tiny_distilled", {"dim": 32, "depths": (1, 1), "num_heads": 2, "image_size": 32, "patch": 8}),
    "resnet": ("resnet_18", {"width": 8}),
}
DTYPES = [torch.float32, torch.bfloat16]


def tiny(name: str) -> Model:
    """A small model of a family whose every parameter matters, those that start at zero or one too."""
    torch.manual_seed(0)
    variant, fields = TINY[name]
    model = swindow.build(variant, num_classes=200, **fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def images(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def within_budget(model: Model, optimized: Optimized, x: Tensor, dtype: torch.dtype, times: int = 3) -> None:
    """Both in `dtype`, against the model of that dtype's weights in fp64.

    Three times, where an operation has two: what one rounds up and another down adds up over a model, and the largest
    error of a few hundred logits is luck. Operations are judged one by one in tests/ops/test_cpu.py.
    """
    with torch.no_grad():
        rounded = copy.deepcopy(model).to(dtype)
        truth = copy.deepcopy(rounded).double()(x.to(dtype).double())
        assert_within_budget(optimized(x).to(dtype), truth, rounded(x.to(dtype)), times=times)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "refusal", lambda: "there is no compiler")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


needs_kernels = pytest.mark.skipif(native.refusal() is not None, reason=f"kernels: {native.refusal()}")


# Not experts in bf16: a token to which two are nearly equal goes to another one.
PAIRS = [(name, dtype) for name in TINY for dtype in DTYPES if (name, dtype) != ("swin_moe", torch.bfloat16)]


@needs_kernels
@pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=str)
def test_it_computes_what_the_model_computes(name: str, dtype: torch.dtype, threads: int) -> None:
    model = tiny(name)
    optimized = swindow.optimize(model, size=32, dtype=dtype, batch=2)
    for size, batch in (((32, 32), 2), ((40, 24), 1), ((64, 37), 3)):
        within_budget(model, optimized, images(size, batch), dtype)


SEGMENTERS = [(head, family) for head in HEADS for family in ("swin", "swin_v2", "swin_mlp", "vit", "resnet")]


def check_segmenter(head: str, family: str, dtype: torch.dtype) -> list[str]:
    """Every answer of an optimized segmenter, three times over: nothing is left of one image for the next."""
    torch.manual_seed(0)
    model = stirred(segmenter(head, family))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimized = swindow.optimize(model, size=32, dtype=dtype, batch=2)
    for size, batch in (((32, 32), 2), ((40, 24), 1), ((64, 37), 3)):
        x = images(size, batch)
        within_budget(model, optimized, x, dtype, times=4)  # with norms folded, kernels are rounded once more
        assert optimized(x).shape == (batch, 5, *size)
        assert torch.equal(optimized(x), optimized(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return list(optimized.did)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head", "family"), SEGMENTERS)
def test_segmenters(head: str, family: str, dtype: torch.dtype, threads: int) -> None:
    """What enters a stage is a U-Net's skip, and not a block's to overwrite."""
    did = check_segmenter(head, family, dtype)
    folded = {"upernet": 8, "unet": 0}[head] + {"resnet": 8}.get(family, 0)
    assert not folded or f"{folded} batch norms folded into the convolutions before them" in did


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(("head", "family"), SEGMENTERS)
def test_segmenters_without_kernels(head: str, family: str) -> None:
    check_segmenter(head, family, torch.float32)


@needs_kernels
@pytest.mark.parametrize("name", ["swin", "swin_v2", "vit"])
def test_widths_that_fill_registers(name: str) -> None:
    """Channels, heads and hidden channels beyond what one panel or one pass over the hidden ones takes."""
    variant, fields = TINY[name]
    wide = fields | ({"dim": 192, "num_heads": 3} if name == "vit" else {"dim": 96, "num_heads": (3,), "depths": (2,)})
    torch.manual_seed(0)
    model = swindow.build(variant, num_classes=200, **wide, mlp_ratio=9.0).eval()
    for dtype in DTYPES:
        within_budget(model, swindow.optimize(model, dtype=dtype), images((64, 64), batch=12), dtype)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=str)
def test_layers_are_packed_where_there_are_no_kernels(name: str, dtype: torch.dtype) -> None:
    model = tiny(name)
    optimized = swindow.optimize(model, size=32, dtype=dtype)
    assert any("there is no compiler" in line for line in optimized.did)
    within_budget(model, optimized, images((40, 24)), dtype)


def test_fp16_runs_without_kernels_and_says_so() -> None:
    model = tiny("swin")
    optimized = swindow.optimize(model, dtype="fp16")
    assert any("float32 and bfloat16" in line for line in optimized.did)
    torch.testing.assert_close(optimized(images((32, 32))), model(images((32, 32))).detach(), atol=0.02, rtol=0.02)


@needs_kernels
def test_what_was_done_is_said_and_shown() -> None:
    optimized = swindow.optimize(tiny("swin"), dtype="bf16")
    assert "6 blocks of window attention and MLP as two kernels each, from norm to residual" in optimized.did
    assert "weights and tokens in bfloat16" in optimized.did
    assert all(line in repr(optimized) for line in optimized.did)


@needs_kernels
def test_neither_the_model_nor_the_images_change() -> None:
    model, x = tiny("swin"), images((32, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given, answer = x.clone(), model(x).detach()
    optimized = swindow.optimize(model)
    first = optimized(x)
    assert torch.equal(optimized(x), first)
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x).detach(), answer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(optimized(x), first)


@needs_kernels
def test_an_image_does_not_depend_on_its_batch_nor_on_its_strides() -> None:
    model, x = tiny("swin_v2"), images((64, 64), batch=3)
    optimized = swindow.optimize(model)
    alone = torch.cat([optimized(image[None]) for image in x])
    torch.testing.assert_close(optimized(x), alone, atol=2e-6, rtol=0)
    assert torch.equal(optimized(x.to(memory_format=torch.channels_last)), optimized(x))


@needs_kernels
def test_it_answers_in_the_model_s_own_dtype_and_takes_any() -> None:
    model = tiny("swin")
    optimized = swindow.optimize(model, dtype=torch.bfloat16)
    assert optimized(images((32, 32))).dtype == torch.float32
    assert optimized(images((32, 32)).bfloat16()).dtype == torch.float32
    assert swindow.optimize(model.bfloat16())(images((32, 32))).dtype == torch.bfloat16


def test_what_is_no_model_is_refused() -> None:
    for other in (nn.Linear(2, 2), swindow.backbone("swin_nano"), swindow.optimize(tiny("swin"))):
        with pytest.raises(ConfigError, match="optimize takes a model of swindow"):
            swindow.optimize(other)


def test_it_is_neither_moved_nor_saved() -> None:
    optimized = swindow.optimize(tiny("swin"))
    for attempt in (optimized.half, optimized.cpu, optimized.state_dict, lambda: copy.deepcopy(optimized)):
        with pytest.raises(ConfigError, match="optimize the model again"):
            attempt()


def test_a_backend_asked_for_by_name_is_kept_and_said() -> None:
    model = tiny("swin")
    swindow.use_backend(model, "reference")
    optimized = swindow.optimize(model)
    assert "6 blocks as they were: their attention is to be the reference backend's" in optimized.did
    torch.testing.assert_close(optimized(images((32, 32))), model(images((32, 32))).detach(), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("context", ["float64", "bfloat16", "meta"])
def test_torch_s_defaults_do_not_matter(context: str) -> None:
    model, x = tiny("swin_v2"), images((64, 64))
    expected = swindow.optimize(model)(x)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    try:
        if context == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, context))
        found = swindow.optimize(model)(x)
    finally:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
    assert torch.equal(found, expected)


@needs_kernels
def test_an_empty_batch_is_an_empty_answer() -> None:
    assert swindow.optimize(tiny("swin"))(images((32, 32), batch=0)).shape == (0, 200)


@needs_kernels
def test_what_is_not_finite_stays_so() -> None:
    x = images((32, 32))
    x[0, 0, 3, 3] = float("nan")
    out = swindow.optimize(tiny("swin"))(x)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_it_has_no_gradients_and_cannot_be_trained() -> None:
    optimized = swindow.optimize(tiny("swin"))
    assert not optimized(images((32, 32))).requires_grad
    assert not optimized.training
    assert not nn.Sequential(optimized).train()[0].training


def test_other_channels_are_refused_as_by_the_model() -> None:
    with pytest.raises(swindow.errors.ShapeError, match="images have 1 channels and the model takes 3"):
        swindow.optimize(tiny("swin"))(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"dtype": "int8"}, UnknownName, "unknown dtype 'int8'"),
        ({"dtype": torch.float64}, ConfigError, "dtype is torch.float64; optimize computes in"),
        ({"batch": 0}, ConfigError, "batch 0 of 32x32 pixels: all must be at least 1"),
        ({"size": (0, 4)}, ConfigError, "batch 1 of 0x4 pixels"),
        ({"size": (4, 4, 4)}, ConfigError, r"size is \(4, 4, 4\); give a number of pixels, or \(height, width\)"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        swindow.optimize(tiny("swin"), **asked)  # type: ignore[arg-type]


@needs_kernels
def test_amx_goes_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    _, did = cpu.optimize_for_cpu(tiny("swin"), size=(32, 32), dtype=torch.bfloat16, batch=1)
    assert any("AMX" in line for line in did)


@pytest.mark.parametrize("name", ["mask_rcnn_swin_nano", "detr_swin_nano", "retinanet_resnet_18"])
@pytest.mark.parametrize("kernels", [True, False])
def test_detectors_have_a_fast_backbone_and_their_own_head(
    name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(native, "refusal", lambda: "none here")
    model = swindow.build(name, num_classes=3, **({"width": 16} if "resnet" in name else {})).eval()
    x, frames = torch.randn(2, 3, 48, 64), Frames((48, 64), ((48, 64), (40, 50)))
    fast = swindow.optimize(model, size=(48, 64), batch=2)
    for ours, plain in zip(fast(x, frames), model(x, frames), strict=True):
        torch.testing.assert_close(ours.scores, plain.scores, atol=1e-4, rtol=1e-4)
    half = swindow.optimize(model, dtype="bf16")
    assert half(x)[0].boxes.dtype == torch.float32
    assert any("backbone's weights and tokens in bfloat16" in line for line in half.did)
