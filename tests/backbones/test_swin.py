"""The backbone: published shapes, published initialisation, any size of image, what a forward leaves behind."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.backbones.swin import VARIANTS, SwinConfig
from swindow.backbones.windowed import RelativeBias
from swindow.errors import ConfigError, ShapeError
from swindow.model import Model, backbone, build

Tiny = Callable[..., Model]


SMALL = {"dim": 4, "depths": (1, 1, 1), "num_heads": (1, 1, 2), "patch": 2, "window": 4}


@pytest.fixture(params=VARIANTS)
def small(request: pytest.FixtureRequest) -> Model:
    """Each variant with its own depths, windows and patches, but two channels a head."""
    config = VARIANTS[request.param]
    return build(request.param, num_classes=3, dim=2 * config.num_heads[0], drop_path=0.0)


def test_every_parameter_of_every_variant_has_a_gradient(small: Model) -> None:
    small.train()(torch.randn(2, 3, 40, 36)).square().sum().backward()
    without = [name for name, value in small.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_blocks_of_every_variant_shift_in_turn_by_half_a_window(small: Model) -> None:
    config = small.config.backbone
    for stage, depth, window in zip(small.backbone.stages, config.depths, config.windows, strict=True):
        half = window[0] // 2
        assert [block.attn.windowing.shift for block in stage.blocks] == [(0, 0), (half, half)] * (depth // 2)


def test_stochastic_depth_of_every_variant_grows_linearly() -> None:
    for name, config in VARIANTS.items():
        blocks = list(build(name, dim=config.num_heads[0]).backbone.blocks())
        last = sum(config.depths) - 1
        assert [block.drop_path.rate for block in blocks] == pytest.approx(
            [config.drop_path * index / last for index in range(last + 1)]
        )


def test_the_published_shapes() -> None:
    """Swin, section 3.3; stochastic depth as in the published training configurations."""
    table = {name: VARIANTS[name] for name in ("swin_tiny", "swin_small", "swin_base", "swin_large")}
    assert [config.dim for config in table.values()] == [96, 96, 128, 192]
    assert [config.depths[2] for config in table.values()] == [6, 18, 18, 18]
    assert [config.drop_path for config in table.values()] == [0.2, 0.3, 0.5, 0.2]
    for config in table.values():
        assert (config.window, config.patch, config.mlp_ratio, config.dropout) == (7, 4, 4.0, 0.0)
        assert config.channels == tuple(config.dim * 2**stage for stage in range(4))
        assert [channels // heads for channels, heads in zip(config.channels, config.num_heads, strict=True)] == [
            32
        ] * 4
        assert config.strides == (4, 8, 16, 32)


BLOCK_KEYS = [
    "norm1.weight",
    "norm1.bias",
    "attn.position_bias.table",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
]


def test_the_names_of_the_weights_are_pinned(tiny: Tiny) -> None:
    """Checkpoints hold these names: changing one makes every saved model unreadable."""
    blocks = [
        [f"backbone.stages.{stage}.blocks.{block}.{key}" for block in (0, 1) for key in BLOCK_KEYS] for stage in (0, 1)
    ]
    merge = [f"backbone.stages.0.merge.{key}" for key in ("norm.weight", "norm.bias", "reduction.weight")]
    embed = [f"backbone.patch_embed.{key}" for key in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")]
    ends = ["backbone.norms.1.weight", "backbone.norms.1.bias", "head.linear.weight", "head.linear.bias"]
    assert list(tiny().state_dict()) == [*embed, *blocks[0], *merge, *blocks[1], *ends]


def test_initialisation() -> None:
    body = build("swin_nano").backbone
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(module.weight.mean().item()) < 1e-3, name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
            assert module.eps == 1e-5
        if isinstance(module, RelativeBias):
            assert module.table.std().item() == pytest.approx(0.02, rel=0.15), name


@settings(max_examples=60)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_size_is_the_size_padded_to_whole_patches(height: int, width: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = SwinConfig(dim=4, depths=(1, 2), num_heads=(1, 2), window=3, patch=4)
    body = config.build(in_channels=channels, out_stages=(0, 1)).eval()
    images = torch.randn(1, channels, height, width)
    whole = F.pad(images, (0, -width % 4, 0, -height % 4))
    grid = (whole.shape[2] // 4, whole.shape[3] // 4)
    maps = body(images)
    for stage, x in enumerate(maps):
        assert x.shape == (1, *(-(-side // 2**stage) for side in grid), 4 * 2**stage)
        assert torch.isfinite(x).all()
        assert torch.equal(x, body(whole)[stage])


def test_every_pixel_reaches_the_last_map(tiny: Tiny) -> None:
    images = torch.randn(1, 3, 13, 9, requires_grad=True)
    tiny()(images).square().sum().backward()
    assert (images.grad != 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("stages", [(0,), (1,), (0, 1), (2,), (0, 2), (0, 1, 2)])
def test_output_maps_are_the_normed_stage_maps(stages: tuple[int, ...]) -> None:
    maps = backbone("swin_micro", out_stages=stages, **SMALL).eval()
    images = torch.randn(2, 3, 20, 24)
    inner = maps.body.stage_maps(images)
    assert maps.channels == tuple(4 * 2**stage for stage in stages)
    assert maps.strides == tuple(2 * 2**stage for stage in stages)
    outputs = maps(images)
    assert len(outputs) == len(stages)
    for stage, output in zip(stages, outputs, strict=True):
        assert output.is_contiguous()
        norm = maps.body.norms[str(stage)]
        expected = F.layer_norm(inner[stage], inner[stage].shape[-1:], norm.weight, norm.bias)
        torch.testing.assert_close(output, expected.permute(0, 3, 1, 2))


def test_every_stage_is_asked_for_by_default(small: Model) -> None:
    config = small.config.backbone
    maps = backbone(small.config.name, dim=config.dim)
    assert maps.channels == config.channels
    assert [x.shape[1] for x in maps(torch.randn(1, 3, 32, 32))] == list(config.channels)


def test_stages_that_nobody_asked_for_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = backbone("swin_micro", out_stages=(0,), **SMALL)
    monkeypatch.setattr(maps.body.stages[1], "forward", None)
    maps(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("stages", [(), (3,), (-1, 0), (1, 0), (0, 0)])
def test_stages_that_do_not_exist_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must be ascending stage numbers from 0 to 2"):
        backbone("swin_micro", out_stages=stages, **SMALL)


def test_images_with_other_channels_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ShapeError, match="images have 1 channels and the model takes 3; convert them, or build"):
        tiny()(torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (2, 2)}, r"depths \(2, 2\) and num_heads \(3, 6, 12\) must name the same stages"),
        ({"depths": (), "num_heads": ()}, "must name the same stages"),
        ({"window": 0}, r"window 0: every entry must be a side or \(height, width\) of at least 1"),
        ({"window": (7, 7)}, r"window \(7, 7\) names 2 stages of 3; give one side for all, or an entry per stage"),
        ({"window": (7, (7, 0), 7)}, "every entry must be a side or"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1 pixel"),
        ({"patch": 0}, "must be at least 1"),
        ({"depths": (2, 0, 2)}, "must be at least 1"),
        ({"dim": 50}, "50 channels cannot be split over 3 heads; change dim or num_heads"),
        ({"drop_path": 1.0}, r"drop_path 1.0 and dropout 0.0 must lie in \[0, 1\)"),
        ({"dropout": -0.5}, r"drop_path 0.1 and dropout -0.5 must lie in \[0, 1\)"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SwinConfig(dim=48, depths=(2, 2, 2), num_heads=(3, 6, 12)), **fields)


def gradients(model: Model, images: Tensor, *, checkpointing: bool) -> list[Tensor]:
    model.backbone.checkpoint_blocks(checkpointing)
    model.zero_grad()
    torch.manual_seed(7)
    logits = model(images)
    logits.square().sum().backward()
    return [logits, *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]


def test_checkpointing_changes_nothing_to_the_bit(tiny: Tiny) -> None:
    model = tiny(drop_path=0.5, dropout=0.1).train()
    images = torch.randn(3, 3, 16, 20)
    for plain, again in zip(*(gradients(model, images, checkpointing=on) for on in (False, True)), strict=True):
        assert torch.equal(plain, again)


def test_checkpointing_runs_each_block_twice_and_keeps_only_its_input(tiny: Tiny) -> None:
    model, calls = tiny().train(), []
    for block in model.backbone.blocks():
        block.attn.proj.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, torch.randn(1, 3, 16, 16), checkpointing=True)
    assert len(calls) == 2 * 4
    calls.clear()
    gradients(model, torch.randn(1, 3, 16, 16), checkpointing=False)
    assert len(calls) == 4


def state_of(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Every attribute of every module, copied deeply; gradients and child modules aside."""
    return [(name, copy.deepcopy({**vars(module), "_modules": None})) for name, module in model.named_modules()]


def same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and torch.equal(old, new) and old.grad is None
    if isinstance(old, dict):
        return isinstance(new, dict) and list(old) == list(new) and all(same(old[key], new[key]) for key in old)
    return bool(old == new)


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_changes_no_attribute(tiny: Tiny, training: bool) -> None:
    model = tiny(drop_path=0.3).train(training)
    before = state_of(model)
    large, little = torch.randn(2, 3, 24, 20), torch.randn(1, 3, 4, 3)
    torch.manual_seed(1)
    first = model(large)
    model(little)  # a map smaller than the window made other libraries forget their window
    with torch.no_grad():
        model(little)
    for (name, old), (_, new) in zip(before, state_of(model), strict=True):
        changed = [key for key in old | new if key not in old or key not in new or not same(old[key], new[key])]
        assert changed == [], name
    torch.manual_seed(1)
    assert torch.equal(model(large), first)
