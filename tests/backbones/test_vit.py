"""ViT and DeiT: published shapes and counts, any size of image, tokens and maps, what a forward leaves behind."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from swindow.backbones.vit import VARIANTS, ViT, ViTConfig
from swindow.config import from_dict, to_dict
from swindow.errors import ConfigError, ShapeError
from swindow.model import backbone, build, use_backend
from swindow.ops import reference
from swindow.ops.cpu import native
from vit_peers import Whole, changed_attributes, gradients, without_gradient

TINY: dict[str, Any] = {"dim": 24, "depths": (1, 1, 1, 1), "num_heads": 3, "patch": 8, "image_size": 32}
DISTILLED: dict[str, Any] = {"distillation_token": True, "pool": "tokens"}


def tiny(**fields: Any) -> Whole:
    return Whole(ViTConfig(**(TINY | fields))).eval()


def body(out_stages: tuple[int, ...] = (3,), **fields: Any) -> ViT:
    return ViTConfig(**(TINY | fields)).build(in_channels=3, out_stages=out_stages).eval()


def shrunk(name: str, **fields: Any) -> ViTConfig:
    """A variant with its own depths, tokens and heads, but two channels a head and nine patches of its size."""
    config = VARIANTS[name]
    small = {"dim": 2 * config.num_heads, "image_size": 3 * config.patch, "drop_path": 0.0}
    return dataclasses.replace(config, **(small | fields))


# -- what was published ------------------------------------------------------------------------------------------------

PARAMETERS = {
    "vit_tiny": 5_717_416,
    "vit_small": 22_050_664,
    "vit_base": 86_567_656,
    "vit_base_384": 86_859_496,
    "vit_base_32": 88_224_232,
    "vit_large": 304_326_632,
    "vit_large_384": 304_715_752,
    "vit_large_32": 306_535_400,
    "vit_huge_14": 632_045_800,
    "deit_tiny": 5_717_416,
    "deit_tiny_distilled": 5_910_800,
    "deit_small": 22_050_664,
    "deit_small_distilled": 22_436_432,
    "deit_base": 86_567_656,
    "deit_base_distilled": 87_338_192,
    "deit_base_384": 86_859_496,
    "deit_base_distilled_384": 87_630_032,
}


def parameters(config: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Whole(config, num_classes=1000).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_numbers_of_parameters(name: str) -> None:
    assert parameters(VARIANTS[name]) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "size", "number"), [("vit_large", 512, 305_174_504), ("vit_huge_14", 518, 633_470_440)]
)
def test_torchvision_s_numbers_of_parameters_at_other_sizes(name: str, size: int, number: int) -> None:
    assert parameters(dataclasses.replace(VARIANTS[name], image_size=size)) == number


def test_variants_differ_from_each_other_only_as_their_names_say() -> None:
    for name, config in VARIANTS.items():
        assert config.image_size == (384 if name.endswith("_384") else 224)
        assert config.patch == (32 if "_32" in name else 14 if "_14" in name else 16)
        assert config.pool == ("tokens" if "distilled" in name else "token")
        assert config.num_prefix == (2 if "distilled" in name else 1)
        assert config.drop_path == (0.1 if name.startswith("deit") else 0.0)
        assert len(set(config.depths)) == 1
        assert config.strides == (config.patch,) * 4
        assert config.channels == (config.dim,) * 4
        assert from_dict(ViTConfig, to_dict(config)) == config


BLOCK_KEYS = [
    "norm1.weight",
    "norm1.bias",
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


def test_the_names_of_the_weights_are_pinned() -> None:
    """Checkpoints hold these names: changing one makes every saved model unreadable."""
    blocks = [f"backbone.stages.{stage}.blocks.0.{key}" for stage in range(4) for key in BLOCK_KEYS]
    start = [
        "class_token",
        "distillation_token",
        "position_embedding",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    ]
    ends = ["backbone.norms.3.weight", "backbone.norms.3.bias", "head.linear.weight", "head.linear.bias"]
    second = ["head.distilled.weight", "head.distilled.bias"]
    names = list(tiny(**DISTILLED).state_dict())
    assert names == [*(f"backbone.{name}" for name in start), *blocks, *ends, *second]
    assert list(tiny(pool="mean_norm").state_dict())[-4:] == [*ends[2:], "head.norm.weight", "head.norm.bias"]


def test_initialisation() -> None:
    model = Whole(dataclasses.replace(VARIANTS["vit_tiny"], depths=(1, 1)))
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert module.eps == 1e-6
    assert model.backbone.position_embedding.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.backbone.class_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_stochastic_depth_grows_linearly() -> None:
    blocks = list(body(depths=(1, 2, 1), drop_path=0.3, out_stages=(2,)).blocks())
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


# -- any input ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_size_is_the_size_padded_to_whole_patches(height: int, width: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = ViTConfig(**(TINY | {"depths": (1, 1)}))
    model = config.build(in_channels=channels, out_stages=(0, 1), prefix=True).eval()
    images = torch.randn(1, channels, height, width)
    whole = F.pad(images, (0, -width % 8, 0, -height % 8))
    outputs = model(images)
    assert [x.shape for x in outputs] == [(1, 1, 1, 24)] + [(1, whole.shape[2] // 8, whole.shape[3] // 8, 24)] * 2
    for found, expected in zip(outputs, model(whole), strict=True):
        assert torch.isfinite(found).all()
        assert torch.equal(found, expected)


def test_the_position_embedding_of_the_built_grid_is_taken_as_it_is() -> None:
    model = body(image_size=(32, 56))
    assert model.position_at((4, 7)) is model.position_embedding
    resampled = model.position_at((7, 4))
    assert resampled.shape == model.position_embedding.shape
    assert torch.equal(resampled[:, :1], model.position_embedding[:, :1])


def test_a_constant_position_embedding_is_constant_at_any_size() -> None:
    model = body()
    nn.init.constant_(model.position_embedding, 0.25)
    for grid in ((1, 1), (3, 9), (20, 5)):
        torch.testing.assert_close(model.position_at(grid), torch.full((1, 1 + grid[0] * grid[1], 24), 0.25))


def test_every_pixel_reaches_the_logits() -> None:
    images = torch.randn(1, 3, 13, 9, requires_grad=True)
    tiny()(images).square().sum().backward()
    assert (images.grad != 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [{}, DISTILLED, {"pool": "mean"}, {"pool": "mean_norm"}])
def test_a_batch_is_its_images(fields: dict[str, Any]) -> None:
    model, images = tiny(**fields), torch.randn(3, 3, 24, 40)
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]))


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="images have 1 channels and the model takes 3; convert them, or build"):
        tiny()(torch.randn(1, 1, 16, 16))


# -- maps and tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [(0,), (3,), (0, 2), (0, 1, 2, 3)])
def test_output_maps_are_the_normed_stage_maps(stages: tuple[int, ...]) -> None:
    model, images = body(out_stages=stages), torch.randn(2, 3, 24, 40)
    assert model.channels == (24,) * len(stages)
    assert model.strides == (8,) * len(stages)
    assert list(model.norms) == [str(stage) for stage in stages]
    inner, outputs = model.stage_maps(images), model(images)
    assert len(inner) == stages[-1] + 1
    for stage, output in zip(stages, outputs, strict=True):
        assert output.shape == (2, 3, 5, 24)
        torch.testing.assert_close(output, F.layer_norm(inner[stage], (24,), eps=1e-6))


def test_the_head_has_the_last_norm_where_it_comes_after_the_mean() -> None:
    model, images = body(out_stages=(1, 3), pool="mean_norm"), torch.randn(2, 3, 32, 32)
    assert list(model.norms) == ["1"]
    assert torch.equal(model(images)[1], model.stage_maps(images)[3])


def test_learned_tokens_come_before_the_maps_class_token_first() -> None:
    config = ViTConfig(**(TINY | DISTILLED))
    model = config.build(in_channels=3, out_stages=(1, 3), prefix=True).eval()
    images = torch.randn(2, 3, 24, 40)
    prefix, *maps = model(images)
    last = F.layer_norm(model.sequences(images)[0][3], (24,), eps=1e-6)
    torch.testing.assert_close(prefix, last[:, :, :2])
    torch.testing.assert_close(maps[1].flatten(1, 2), last[:, 0, 2:])
    zeroed = copy.deepcopy(model)
    for stage in zeroed.stages:
        for parameter in stage.parameters():
            nn.init.zeros_(parameter)  # blocks do nothing: what goes in comes out
    expected = torch.cat([model.class_token, model.distillation_token], 1) + model.position_embedding[:, :2]
    torch.testing.assert_close(zeroed(images)[0][0], F.layer_norm(expected, (24,), eps=1e-6))


def test_attention_weights_are_what_attention_takes() -> None:
    attention = next(body().blocks()).attn
    x = torch.randn(2, 1, 7, 24)
    weights, values = attention.attention_weights(x), attention.project(x)[:, 0, :, 2]
    assert weights.shape == (2, 3, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))
    expected = torch.einsum("bnqk,bknd->bqnd", weights, values).flatten(2)
    torch.testing.assert_close(attention(x)[:, 0], attention.proj(expected))


def test_backends_agree() -> None:
    model, images = tiny(), torch.randn(2, 3, 24, 40)
    fused = model(images)
    use_backend(model, "reference")
    torch.testing.assert_close(model(images), fused)


def test_many_tokens_are_attended_to_without_the_matrix_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on a CPU without our kernels, few tokens go through plain products, which are as fast there."""
    model = tiny()
    monkeypatch.setattr(native, "refusal", lambda: "there is no compiler")
    monkeypatch.setattr(reference, "window_attention", None)
    assert model(torch.randn(1, 3, 8 * 32, 8 * 32)).isfinite().all()
    with pytest.raises(TypeError, match="not callable"):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_s_classifier_reads_what_the_variant_says(name: str) -> None:
    config = shrunk(name)
    model = build(name, num_classes=5, dim=config.dim, image_size=config.image_size).eval()
    assert model.head.config.pool == config.pool
    images = torch.randn(2, 3, 40, 24)
    prefix, _ = model.backbone(images)
    outputs = [
        head(prefix[:, 0, index]) for index, head in enumerate((model.head.linear, model.head.distilled)) if head
    ]
    assert len(outputs) == config.num_prefix
    torch.testing.assert_close(model(images), torch.stack(outputs).mean(0))


def test_another_way_to_pool_is_a_field_away() -> None:
    model = build("vit_tiny", **TINY, num_classes=5, pool="mean_norm")
    assert (model.config.backbone.pool, model.head.config.pool) == ("mean_norm", "mean_norm")
    assert list(model.head.norm.state_dict()) == ["weight", "bias"]
    assert list(model.backbone.norms) == []


def test_maps_of_every_stage_are_as_fine_as_the_patches() -> None:
    maps = backbone("vit_tiny", **TINY)(torch.randn(1, 3, 24, 40))
    assert [x.shape for x in maps] == [(1, 24, 3, 5)] * 4


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_has_a_gradient(name: str) -> None:
    assert without_gradient(Whole(shrunk(name)), torch.randn(2, 3, 80, 50)) == []


@pytest.mark.parametrize("fields", [{"pool": "mean"}, {"pool": "mean_norm", "class_token": False}])
def test_every_parameter_has_a_gradient_when_patches_are_pooled(fields: dict[str, Any]) -> None:
    assert without_gradient(tiny(**fields), torch.randn(2, 3, 32, 32)) == []


def test_checkpointing_changes_nothing_to_the_bit() -> None:
    model, images = tiny(drop_path=0.5, dropout=0.1), torch.randn(3, 3, 32, 40)
    for plain, again in zip(*(gradients(model, images, checkpointing=on) for on in (False, True)), strict=True):
        assert torch.equal(plain, again)


def test_checkpointing_runs_each_block_twice() -> None:
    model, calls = tiny(), []
    for block in model.backbone.blocks():
        block.attn.proj.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, torch.randn(1, 3, 16, 16), checkpointing=True)
    assert len(calls) == 2 * 4
    calls.clear()
    gradients(model, torch.randn(1, 3, 16, 16), checkpointing=False)
    assert len(calls) == 4


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_changes_no_attribute(training: bool) -> None:
    model = tiny(drop_path=0.3, **DISTILLED).train(training)
    before = copy.deepcopy(model)
    torch.manual_seed(1)
    first = model(torch.ones(2, 3, 24, 40))
    model(torch.randn(1, 3, 4, 3))
    assert changed_attributes(before, model) == []
    torch.manual_seed(1)
    assert torch.equal(model(torch.ones(2, 3, 24, 40)), first)


def test_dropout_acts_in_training_only() -> None:
    model, images = tiny(dropout=0.2), torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


@pytest.mark.compiled
def test_it_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    model, images = tiny(**DISTILLED), torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True)(images)
    torch.testing.assert_close(compiled, expected)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": ()}, "every entry of depths must be at least 1"),
        ({"depths": (1, 0)}, "every entry of depths must be at least 1"),
        ({"patch": 0}, "must be at least 1"),
        ({"image_size": (32, 0)}, "must be at least 1"),
        ({"num_heads": 5}, "24 channels cannot be split over 5 heads; change dim or num_heads"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"drop_path": 1.0}, r"drop_path 1.0 and dropout 0.0 must lie in \[0, 1\)"),
        ({"class_token": False}, "pool 'token' reads the class token; set class_token, or pool='mean'"),
        ({"pool": "mean", "class_token": False, "distillation_token": True}, "comes after a class token"),
        ({"pool": "tokens"}, "pool 'tokens' reads a class and a distillation token; set distillation_token"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTConfig(**(TINY | fields))


@pytest.mark.parametrize("stages", [(), (4,), (1, 0)])
def test_stages_that_do_not_exist_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must be ascending stage numbers from 0 to 3"):
        body(out_stages=stages)


def test_tokens_that_are_not_there_are_refused() -> None:
    config = ViTConfig(**TINY, pool="mean", class_token=False)
    with pytest.raises(ConfigError, match="prefix asks for learned tokens and the model has none; set class_token"):
        config.build(in_channels=3, out_stages=(3,), prefix=True)
