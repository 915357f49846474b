"""Swin-MLP against its definition token by token, the original's steps, and the original's own counts."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.backbones.geometry import Windowing
from swindow.backbones.swin_mlp import VARIANTS, SpatialMlp, SwinMlpConfig
from swindow.counting import count
from swindow.errors import ConfigError, ShapeError
from swindow.heads import ClassifierConfig
from swindow.model import Model, ModelConfig
from who_sees_whom import place_in_window, visible

TINY = SwinMlpConfig(dim=8, depths=(2, 3), num_heads=(2, 4), window=4, patch=2, image_size=32, drop_path=0.0)
Size = tuple[int, int]


def model_of(config: SwinMlpConfig = TINY, **fields: Any) -> Model:
    """In eval mode, with five classes."""
    config = dataclasses.replace(config, **fields)
    return ModelConfig(name="mlp", backbone=config, head=ClassifierConfig(num_classes=5)).build().eval()


def filled(module: nn.Module) -> nn.Module:
    """In fp64, every parameter drawn anew, biases and norms too: nothing is zero or one by initialisation."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def by_definition(x: Tensor, mixer: SpatialMlp, shift: Size) -> Tensor:
    """Every token from the tokens of its window that lie on the map, one at a time."""
    grid, (height, width) = (x.shape[1], x.shape[2]), mixer.window
    weight = mixer.weight.view(mixer.num_heads, height * width, height * width)
    bias = mixer.bias.view(mixer.num_heads, height * width)  # type: ignore[union-attr]
    tokens = x.flatten(1, 2).unflatten(2, (mixer.num_heads, -1))  # B tokens N D
    sees, places = visible(grid, mixer.window, shift), place_in_window(grid, mixer.window, shift)
    mixed = torch.zeros_like(tokens)
    for token, seen in enumerate(sees):
        mixed[:, token] = bias[:, places[token], None]
        for other in seen:
            mixed[:, token] += weight[:, places[token], places[other], None] * tokens[:, other]
    return mixed.flatten(2).unflatten(1, grid)


@settings(max_examples=120)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    heads=st.integers(1, 3),
    keep=st.booleans(),
    data=st.data(),
)
def test_tokens_are_sums_over_their_window(grid: Size, window: Size, heads: int, keep: bool, data: Any) -> None:
    shift = tuple(data.draw(st.integers(0, side - 1)) for side in window)
    cut = Windowing(window, shift, keep)  # type: ignore[arg-type]
    mixer = filled(SpatialMlp(heads, cut))
    x = torch.randn(2, *grid, 2 * heads, dtype=torch.float64)
    with torch.no_grad():
        expected = by_definition(x, mixer, cut.shift_at(*grid))  # type: ignore[arg-type]
        torch.testing.assert_close(mixer(x), expected, atol=1e-12, rtol=0)


def mixed_as_published(x: Tensor, state: dict[str, Tensor], name: str, heads: int, window: int, shift: int) -> Tensor:
    """Zeros window - shift before and shift after the map, whole windows mixed, zeros cut off; by unfold and fold."""
    before, after = (window - shift, shift) if shift else (0, 0)
    image = F.pad(x.permute(0, 3, 1, 2), (before, after, before, after))
    columns = F.unfold(image, window, stride=window).unflatten(1, (heads, -1, window**2))  # B N D T L
    weight = state[f"{name}.weight"].view(heads, window**2, window**2)
    mixed = torch.einsum("nts,bndsl->bndtl", weight, columns) + state[f"{name}.bias"].view(heads, 1, window**2, 1)
    image = F.fold(mixed.flatten(1, 3), image.shape[2:], window, stride=window)
    return image[:, :, before : before + x.shape[1], before : before + x.shape[2]].permute(0, 2, 3, 1)


def forward_as_published(state: dict[str, Tensor], images: Tensor, config: SwinMlpConfig) -> Tensor:
    """The original's steps on our weights, for square maps that its windows divide."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    embed = "backbone.patch_embed"
    x = F.conv2d(images, state[f"{embed}.proj.weight"], state[f"{embed}.proj.bias"], stride=config.patch)
    x = norm(x.permute(0, 2, 3, 1), f"{embed}.norm")
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        window, shift = (config.window, config.window // 2) if x.shape[1] > config.window else (x.shape[1], 0)
        for index in range(depth):
            block = f"backbone.stages.{stage}.blocks.{index}"
            by = shift if index % 2 else 0
            x = x + mixed_as_published(norm(x, f"{block}.norm1"), state, f"{block}.spatial_mlp", heads, window, by)
            x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        if stage + 1 < len(config.depths):
            merge = f"backbone.stages.{stage}.merge"
            cells = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = linear(norm(torch.cat(cells, -1), f"{merge}.norm"), f"{merge}.reduction")
    return linear(norm(x, f"backbone.norms.{len(config.depths) - 1}").mean((1, 2)), "head.linear")


@pytest.mark.parametrize("size", [32, 16, 8])
def test_the_original_s_steps_give_the_same(size: int) -> None:
    """At 8 the last window is shrunk to its map of 2 tokens a side, as the original does when it is built."""
    model = filled(model_of(small_maps="shrink", image_size=size))
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = forward_as_published(model.state_dict(), images, model.config.backbone)  # type: ignore[arg-type]
        torch.testing.assert_close(model(images), expected, atol=1e-10, rtol=1e-10)


def parameters_of(config: SwinMlpConfig, window: int, classes: int = 1000) -> int:
    total = 3 * 16 * config.dim + 3 * config.dim
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        channels = config.dim * 2**stage
        spatial = heads * (window**4 + window**2)
        total += depth * (4 * channels + spatial + 8 * channels**2 + 5 * channels)
        total += 8 * channels + 8 * channels**2 if stage < 3 else 2 * channels + channels * classes + classes
    return total


def microsoft_flops(config: SwinMlpConfig, window: int, size: int, classes: int = 1000) -> int:
    """The sum of every `flops()` in Microsoft's models/swin_mlp.py."""
    patches = size // 4
    total = patches**2 * config.dim * 3 * 16 + patches**2 * config.dim
    for stage, depth in enumerate(config.depths):
        side, channels = patches // 2**stage, config.dim * 2**stage
        for index in range(depth):
            windows = side // window + (index % 2 if side > window else 0)
            total += 2 * channels * side**2 + windows**2 * channels * window**4 + 8 * side**2 * channels**2
        total += side**2 * channels + side**2 // 4 * 8 * channels**2 if stage < 3 else 0
    last = config.dim * 8
    return total + last * patches**2 // 16 + last * classes


PUBLISHED = {  # the repository's table: millions of parameters, GFLOPs
    "swin_mlp_tiny_c24": (20, 4.0),
    "swin_mlp_tiny_c12": (21, 4.0),
    "swin_mlp_tiny_c6": (23, 4.0),
    "swin_mlp_base": (61, 10.4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_microsoft_s(name: str) -> None:
    config = VARIANTS[name]
    with torch.device("meta"):
        model = ModelConfig(name=name, backbone=config, head=ClassifierConfig()).build()
    counts = count(model, config.image_size)
    assert counts.parameters == parameters_of(config, config.window)  # type: ignore[arg-type]
    assert counts.macs == microsoft_flops(config, config.window, config.image_size)  # type: ignore[arg-type]
    assert (round(counts.parameters / 1e6), round(counts.macs / 1e9, 1)) == PUBLISHED[name]


def test_the_names_of_the_weights_are_pinned() -> None:
    """Those of the spatial MLP are Microsoft's, and so are its shapes."""
    state = model_of().state_dict()
    start = "backbone.stages.0.blocks.0."
    assert [name.removeprefix(start) for name in state if name.startswith(start)] == [
        *("norm1.weight", "norm1.bias", "spatial_mlp.weight", "spatial_mlp.bias", "norm2.weight", "norm2.bias"),
        *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    ]
    assert state[f"{start}spatial_mlp.weight"].shape == (2 * 16, 16, 1)
    assert state[f"{start}spatial_mlp.bias"].shape == (2 * 16,)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_has_a_gradient(name: str) -> None:
    heads = VARIANTS[name].num_heads
    model = model_of(VARIANTS[name], dim=heads[0], drop_path=0.0, window=2).train()
    model(torch.randn(2, 3, 36, 44)).square().sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_shift_in_turn_by_half_a_window(name: str) -> None:
    config = VARIANTS[name]
    half = config.window // 2  # type: ignore[operator]
    with torch.device("meta"):
        body = config.build(in_channels=3, out_stages=(3,))
    for stage, depth in zip(body.stages, config.depths, strict=True):
        shifts = [block.spatial_mlp.windowing.shift for block in stage.blocks]  # type: ignore[union-attr]
        assert shifts == [(0, 0), (half, half)] * (depth // 2)


def test_initialisation() -> None:
    body = dataclasses.replace(TINY, dim=48, window=8).build(in_channels=3, out_stages=(1,))
    mixers = [module for module in body.modules() if isinstance(module, SpatialMlp)]
    assert len(mixers) == 5
    for mixer in mixers:
        assert mixer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not mixer.bias.any()  # type: ignore[union-attr]


@settings(max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 5))
def test_any_size_is_the_size_padded_to_whole_patches(height: int, width: int, channels: int) -> None:
    body = TINY.build(in_channels=channels, out_stages=(0, 1)).eval()
    images = torch.randn(1, channels, height, width)
    whole = F.pad(images, (0, -width % 2, 0, -height % 2))
    for stage, (x, expected) in enumerate(zip(body(images), body(whole), strict=True)):
        grid = (-(-whole.shape[2] // 2 // 2**stage), -(-whole.shape[3] // 2 // 2**stage))
        assert x.shape == (1, *grid, 8 * 2**stage)
        assert torch.isfinite(x).all()
        assert torch.equal(x, expected)


def test_images_of_a_batch_do_not_meet() -> None:
    model, images = model_of(), torch.randn(3, 3, 21, 30)
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]))


@pytest.mark.parametrize("policy", ["pad", "pad_shift", "shrink"])
def test_policies_differ_on_small_maps_only(policy: str) -> None:
    """At 32 pixels no map is smaller than a window; on a map of 4 tokens the shift is kept by ``pad_shift`` alone."""
    torch.manual_seed(1)
    model, plain = model_of(small_maps=policy), model_of()
    model.load_state_dict(plain.state_dict())
    large, little = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 8, 8)
    assert torch.equal(model(large), plain(large))
    assert torch.equal(model(little), plain(little)) == (policy != "pad_shift")


def outcome(model: Model, images: Tensor) -> list[Tensor]:
    """Logits and every gradient."""
    model.zero_grad()
    torch.manual_seed(7)
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]


def test_checkpointing_changes_nothing_to_the_bit() -> None:
    model, images = model_of(drop_path=0.5, dropout=0.1).train(), torch.randn(3, 3, 16, 20)
    plain = outcome(model, images)
    model.backbone.checkpoint_blocks()
    assert all(torch.equal(one, other) for one, other in zip(plain, outcome(model, images), strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_changes_no_attribute(training: bool) -> None:
    def attributes() -> list[str]:
        return [repr(sorted({**vars(module), "_modules": None}.items())) for module in model.modules()]

    model = model_of(drop_path=0.3).train(training)
    before, weights = attributes(), copy.deepcopy(model.state_dict())
    for shape in ((2, 3, 24, 20), (1, 3, 4, 3)):
        model(torch.randn(shape))
    assert attributes() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.compiled
@pytest.mark.parametrize("size", [(32, 32), (13, 18)])
def test_compiling_changes_nothing(size: Size) -> None:
    torch._dynamo.reset()
    model, images = model_of(depths=(2,), num_heads=(2,)), torch.randn(2, 3, *size)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for eager, fused in zip(outcome(model, images), outcome(compiled, images), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": (2,)}, r"must name the same stages"),
        ({"num_heads": (3, 4)}, "8 channels cannot be split over 3 heads"),
        ({"window": 0}, "every entry must be a side or"),
        ({"drop_path": 1.0}, "must lie in"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0; the MLP needs at least 1 hidden channel for dim 8"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1 pixel"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **fields)


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="images have 1 channels and the model takes 3"):
        model_of()(torch.randn(1, 1, 16, 16))
