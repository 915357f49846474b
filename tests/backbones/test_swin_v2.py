"""Swin V2: published shapes, counts and initialisation, any size of image, what a forward leaves behind."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from any_backend import BACKENDS
from swin_v2_models import drawn, model_of, tiny
from swindow.backbones.swin_v2 import VARIANTS, LogitScale, QkvLinear, SwinV2Config
from swindow.config import from_dict, to_dict
from swindow.counting import count
from swindow.errors import ConfigError
from swindow.layers import PatchMerge
from swindow.model import Model, use_backend
from swindow.ops.attention import Backend

Size = tuple[int, int]


# -- what was published ------------------------------------------------------------------------------------------------

PUBLISHED = {
    # name: parameters, GMACs of Microsoft at the size that it is made for; what of these was published
    "swin_v2_tiny_w8": (28_347_154, 5.9257),
    "swin_v2_tiny_w16": (28_347_154, 6.6052),
    "swin_v2_small_w8": (49_728_418, 11.5149),
    "swin_v2_small_w16": (49_728_418, 12.6473),
    "swin_v2_base_w8": (87_918_816, 20.2857),
    "swin_v2_base_w16": (87_918_816, 21.7956),
    "swin_v2_base_w12": (87_918_816, 11.7609),
    "swin_v2_base_w12to16": (87_918_816, 21.7956),
    "swin_v2_base_w12to24": (87_918_816, 54.7483),
    "swin_v2_large_w12": (196_739_932, None),
    "swin_v2_large_w12to16": (196_739_932, 47.4909),
    "swin_v2_large_w12to24": (196_739_932, 115.4169),
    "swin_v2_huge": (None, None),
    "swin_v2_giant": (None, None),
    "swin_v2_g": (None, None),
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> tuple[str, SwinV2Config]:
    return request.param, VARIANTS[request.param]


@pytest.fixture
def small(variant: tuple[str, SwinV2Config]) -> Model:
    """Each variant with its own depths and windows, but few channels."""
    _, config = variant
    return model_of(dataclasses.replace(config, dim=4, num_heads=(1, 2, 4, 8), drop_path=0.0))


def on_meta(config: SwinV2Config) -> Model:
    """Shapes without memory."""
    with torch.device("meta"):
        return model_of(config, num_classes=1000)


def test_published_counts(variant: tuple[str, SwinV2Config]) -> None:
    name, config = variant
    parameters, macs = PUBLISHED[name]
    counts = count(on_meta(config), config.image_size)
    assert parameters is None or counts.parameters == parameters
    assert macs is None or round(counts.macs / 1e9, 4) == macs


def test_22k_classes() -> None:
    for name, parameters in (("tiny_w8", 44_373_883), ("base_w12", 109_280_841), ("large_w12", 228_772_549)):
        with torch.device("meta"):
            model = model_of(VARIANTS[f"swin_v2_{name}"], num_classes=21841)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_largest_have_the_size_that_their_papers_say() -> None:
    """The encoder without its classifier: 655 M and 1.06 B (SimMIM), and 3.0 B (V2, table 2)."""
    sizes = [sum(x.numel() for x in on_meta(VARIANTS[f"swin_v2_{name}"]).backbone.parameters()) for name in LARGEST]
    assert [float(f"{size / 1e9:.3g}") for size in sizes] == [0.655, 1.06, 3.0]


LARGEST = ("huge", "giant", "g")


@pytest.mark.parametrize(("name", "macs"), [("tiny", 5.940), ("small", 11.546), ("base", 20.325)])
def test_product_macs_are_torchvision_s(name: str, macs: float) -> None:
    counts = count(on_meta(VARIANTS[f"swin_v2_{name}_w8"]), 256)
    assert round(counts.product_macs / 1e9, 3) == macs


def test_the_published_shapes() -> None:
    """Microsoft's configurations: windows as built at each variant's size, 32 channels a head, stochastic depth."""
    windows = {name.removeprefix("swin_v2_"): [h for h, _ in config.windows] for name, config in VARIANTS.items()}
    assert windows["tiny_w8"] == windows["base_w8"] == [8, 8, 8, 8]
    assert windows["tiny_w16"] == windows["large_w12to16"] == [16, 16, 16, 8]
    assert windows["base_w12"] == windows["huge"] == windows["g"] == [12, 12, 12, 6]
    assert windows["base_w12to24"] == [24, 24, 24, 12]
    for name, config in VARIANTS.items():
        assert [dim // heads for dim, heads in zip(config.channels, config.num_heads, strict=True)] == [32] * 4
        trained = ((12, 12),) * 3 + ((6, 6),) if "w12to" in name else config.windows
        assert config.pretrained_windows == trained
        assert config.extra_norm_every == (6 if name.removeprefix("swin_v2_") in LARGEST else 0)
        assert (config.patch, config.mlp_ratio, config.dropout) == (4, 4.0, 0.0)
    rates = [VARIANTS[f"swin_v2_{name}"].drop_path for name in ("tiny_w8", "small_w16", "base_w8", "base_w12to16")]
    assert rates == [0.2, 0.3, 0.5, 0.2]


def test_every_parameter_of_every_variant_has_a_gradient(small: Model) -> None:
    drawn(small).train()(torch.randn(2, 3, 40, 36)).square().sum().backward()
    assert [name for name, value in small.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_blocks_of_every_variant_shift_in_turn_by_half_a_window(small: Model) -> None:
    config = small.config.backbone
    for stage, depth, window in zip(small.backbone.stages, config.depths, config.windows, strict=True):
        half = window[0] // 2
        assert [block.attn.windowing.shift for block in stage.blocks] == [(0, 0), (half, half)] * (depth // 2)


def test_stochastic_depth_grows_linearly() -> None:
    rates = [block.drop_path.rate for block in model_of(tiny(drop_path=0.3)).backbone.blocks()]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


BLOCK_KEYS = [
    "attn.position_bias.mlp.0.weight",
    "attn.position_bias.mlp.0.bias",
    "attn.position_bias.mlp.2.weight",
    "attn.logit_scale.log",
    "attn.qkv.weight",
    "attn.qkv.q_bias",
    "attn.qkv.v_bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm1.weight",
    "norm1.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
    "norm2.weight",
    "norm2.bias",
]


def test_the_names_of_the_weights_are_pinned() -> None:
    """Checkpoints hold these names: changing one makes every saved model unreadable."""
    blocks = [f"backbone.stages.{stage}.blocks.{block}.{k}" for stage in (0, 1) for block in (0, 1) for k in BLOCK_KEYS]
    merge = [f"backbone.stages.0.merge.{key}" for key in ("norm.weight", "norm.bias", "reduction.weight")]
    embed = [f"backbone.patch_embed.{key}" for key in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")]
    ends = ["backbone.norms.1.weight", "backbone.norms.1.bias", "head.linear.weight", "head.linear.bias"]
    extra = [f"backbone.stages.{stage}.blocks.1.norm3.{key}" for stage in (0, 1) for key in ("weight", "bias")]
    assert sorted(model_of(tiny()).state_dict()) == sorted([*embed, *blocks, *merge, *ends])
    assert sorted(model_of(tiny(extra_norm_every=2)).state_dict()) == sorted([*embed, *blocks, *merge, *ends, *extra])


def test_initialisation() -> None:
    body = model_of(tiny(dim=64, extra_norm_every=1)).backbone
    silent = {norm for block in body.blocks() for norm in (block.norm1, block.norm2)}
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == (0 if module in silent else 1)).all(), name
            assert not module.bias.any(), name
            assert module.eps == 1e-5
        if isinstance(module, LogitScale):
            torch.testing.assert_close(module(), torch.full_like(module.log, 10.0))
        if isinstance(module, QkvLinear):
            assert not torch.cat([module.q_bias, module.v_bias]).any()


def test_a_block_is_the_identity_at_the_start() -> None:
    for block in model_of(tiny()).train().backbone.blocks():
        x = torch.randn(2, 5, 7, block.norm1.weight.numel())
        assert torch.equal(block(x), x)


def test_a_block_norms_what_joins_the_residual() -> None:
    block = drawn(model_of(tiny()).backbone.stages[0].blocks[1])
    x = torch.randn(2, 8, 6, 8)
    between = x + F.layer_norm(block.attn(x), (8,), block.norm1.weight, block.norm1.bias)
    after = between + F.layer_norm(block.mlp(between), (8,), block.norm2.weight, block.norm2.bias)
    torch.testing.assert_close(block(x), after)
    block.drop_path.rate = 1 - 1e-6
    assert torch.equal(block.train()(x), x)


def test_extra_norms_end_every_so_many_blocks_of_a_stage() -> None:
    body = model_of(tiny(depths=(3, 7), extra_norm_every=3)).backbone
    assert [block.norm3 is not None for block in body.blocks()] == [False, False, True] + [False, False, True] * 2 + [
        False
    ]
    first = body.stages[0].blocks[2]
    out = drawn(first)(torch.randn(1, 4, 4, 8))
    standard = (out - first.norm3.bias) / first.norm3.weight
    torch.testing.assert_close(standard.mean(-1), torch.zeros(1, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.var(-1, correction=0), torch.ones(1, 4, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrained_window": (4, 4, 4)}, r"pretrained_window is \(4, 4, 4\); give one side for all, or an entry"),
        ({"pretrained_window": -1}, "pretrained_window is -1; give one side"),
        ({"pretrained_window": (4, (4, -1))}, "where 0 is the window itself"),
        ({"extra_norm_every": -2}, "extra_norm_every is -2; give a number of blocks, or 0 for never"),
        ({"window": 0}, r"window 0: every entry must be a side or \(height, width\) of at least 1"),
        ({"drop_path": 1.0}, r"drop_path 1.0 and dropout 0.0 must lie in \[0, 1\)"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**fields)


@pytest.mark.parametrize(
    ("policy", "window", "shift"), [("shrink", (3, 4), (0, 0)), ("pad", (4, 4), (0, 0)), ("pad_shift", (4, 4), (2, 2))]
)
def test_maps_no_larger_than_the_window(policy: Any, window: Size, shift: Size) -> None:
    last = model_of(tiny(small_maps=policy, image_size=(12, 16))).backbone.stages[1].blocks[1].attn
    assert (last.window, last.windowing.shift_at(3, 4)) == (window, shift)


def test_pretrained_windows_are_the_windows_where_nothing_is_said() -> None:
    assert tiny(window=6).pretrained_windows == ((6, 6), (4, 4))  # shrunk to the last map
    assert tiny(window=6, pretrained_window=12).pretrained_windows == ((12, 12), (12, 12))
    assert tiny(window=6, pretrained_window=((0, 5), 0)).pretrained_windows == ((6, 5), (4, 4))


def test_a_configuration_survives_being_written_down() -> None:
    config = tiny(window=((3, 5), 4), pretrained_window=((2, 3), 0), image_size=(24, 48), extra_norm_every=2)
    assert from_dict(SwinV2Config, to_dict(config)) == config


# -- any input, and what is left behind --------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_merging_norms_what_it_projected(grid: Size) -> None:
    merge = drawn(PatchMerge(3, norm_last=True))
    x = torch.randn(2, *grid, 3)
    even = F.pad(x, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    cell = torch.cat([even[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    projected = cell @ merge.reduction.weight.T
    expected = F.layer_norm(projected, (6,), merge.norm.weight, merge.norm.bias)
    torch.testing.assert_close(merge(x), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    policy=st.sampled_from(["shrink", "pad", "pad_shift"]),
    channels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_size_is_the_size_padded_to_whole_patches(
    size: Size, window: Size, policy: Any, channels: int, seed: int
) -> None:
    torch.manual_seed(seed)
    config = tiny(window=(window, window), depths=(1, 2), patch=4, image_size=(24, 40), small_maps=policy)
    body = drawn(config.build(in_channels=channels, out_stages=(0, 1)).eval())
    images = torch.randn(1, channels, *size)
    whole = F.pad(images, (0, -size[1] % 4, 0, -size[0] % 4))
    for stage, x in enumerate(body(images)):
        assert x.shape == (1, *(-(-side // (4 * 2**stage)) for side in size), 8 * 2**stage)
        assert torch.isfinite(x).all()
        assert torch.equal(x, body(whole)[stage])


def test_every_pixel_reaches_the_last_map() -> None:
    images = torch.randn(1, 3, 13, 9, requires_grad=True)
    drawn(model_of(tiny()))(images).square().sum().backward()
    assert (images.grad != 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", ["shrink", "pad", "pad_shift"])
def test_an_image_does_not_depend_on_its_batch(policy: Any) -> None:
    model = drawn(model_of(tiny(small_maps=policy, absolute_position=True))).double()
    images = torch.randn(3, 3, 22, 14, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_bears_padded_tokens_whose_keys_are_zero(backend: Backend, dtype: torch.dtype) -> None:
    model = drawn(model_of(tiny(small_maps="pad")))
    use_backend(model, backend)
    images = torch.randn(2, 3, 22, 18)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(model(images).float(), expected, atol=0.1, rtol=0.1)
        low = copy.deepcopy(model).to(dtype)(images.to(dtype))
        torch.testing.assert_close(low.float(), expected, atol=0.1, rtol=0.1)


def test_the_ablations_are_a_field_away() -> None:
    model = drawn(model_of(tiny(relative_bias=False, qkv_bias=False, shifted=False, absolute_position=True)))
    names = " ".join(name for name, _ in model.named_parameters())
    assert "absolute_position.table" in names
    assert not any(word in names for word in ("position_bias", "q_bias", "v_bias"))
    assert {block.attn.windowing.shift for block in model.backbone.blocks()} == {(0, 0)}
    assert torch.isfinite(model(torch.randn(1, 3, 19, 30))).all()


def gradients(model: Model, images: Tensor, *, checkpointing: bool) -> list[Tensor]:
    model.backbone.checkpoint_blocks(checkpointing)
    model.zero_grad()
    torch.manual_seed(7)
    logits = model(images)
    logits.square().sum().backward()
    return [logits, *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]


def test_checkpointing_changes_nothing_to_the_bit() -> None:
    model = drawn(model_of(tiny(drop_path=0.5, dropout=0.1, extra_norm_every=2)).train())
    images = torch.randn(3, 3, 16, 20)
    for plain, again in zip(*(gradients(model, images, checkpointing=on) for on in (False, True)), strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_changes_no_attribute(training: bool) -> None:
    model = drawn(model_of(tiny(drop_path=0.3)).train(training))
    before = copy.deepcopy(model)
    large, little = torch.randn(2, 3, 24, 20), torch.randn(1, 3, 4, 3)
    torch.manual_seed(1)
    first = model(large)
    model(little)  # a map smaller than the window made other libraries forget their window
    for (name, old), (_, new) in zip(before.named_modules(), model.named_modules(), strict=True):
        assert [key for key in vars(old) | vars(new) if not same(vars(old).get(key), vars(new).get(key))] == [], name
    torch.manual_seed(1)
    assert torch.equal(model(large), first)


def same(old: Any, new: Any) -> bool:
    """Equal by value; modules are compared one by one."""
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and torch.equal(old, new)
    if isinstance(old, dict):
        return isinstance(new, dict) and list(old) == list(new) and all(same(old[key], new[key]) for key in old)
    return isinstance(old, nn.Module) or bool(old == new)
