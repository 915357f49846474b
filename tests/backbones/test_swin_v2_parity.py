"""Swin V2s of other libraries, every parameter drawn, and ours with the same weights: the same maps and logits.

Scales stay moderate: others forbid a pair by adding -100 to its logit, which a scale near its limit can outweigh.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swin_v2_models import model_of, tiny
from swindow.backbones.swin_v2 import VARIANTS, SwinV2Config
from swindow.model import Model

pytestmark = pytest.mark.parity

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
FEW: dict[str, Any] = {"dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}
TWICE = pytest.mark.parametrize("dtype", CLOSE, ids=str)
Size = tuple[int, int]
Maps = Callable[[nn.Module, Tensor], tuple[Tensor, list[Tensor]]]


def draw(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            nn.init.uniform_(parameter, 0.0, 2.5)
        else:
            nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.1)


# What each calls our tensors; the tables of `swindow.checkpoints` are tested elsewhere, and these are a second opinion.
Names = list[tuple[str, str | Callable[[re.Match[str]], str]]]
BLOCKS: Names = [
    (r"(cpb|continuous_position_bias)_mlp", "position_bias.mlp"),
    (r"\.logit_scale$", ".logit_scale.log"),
    (r"\.([qv]_bias)$", r".qkv.\1"),
    (r"^(classifier|head\.fc|head)\.", "head.linear."),
]
NAMES: dict[str, Names] = {
    "timm": [
        (r"^patch_embed\.", "backbone.patch_embed."),
        (r"^layers\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
        (r"^layers\.(\d+)\.downsample\.", lambda m: f"backbone.stages.{int(m[1]) - 1}.merge."),  # starts a stage there
        *BLOCKS,
    ],
    "torchvision": [
        (r"^features\.0\.0\.", "backbone.patch_embed.proj."),
        (r"^features\.0\.2\.", "backbone.patch_embed.norm."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^features\.(\d+)\.(\d+)\.", lambda m: f"backbone.stages.{(int(m[1]) - 1) // 2}.blocks.{m[2]}."),
        (r"^features\.(\d+)\.", lambda m: f"backbone.stages.{int(m[1]) // 2 - 1}.merge."),
        *BLOCKS,
    ],
    "transformers": [
        (r"^swinv2\.(embeddings|encoder|)\.?", ""),
        (r"^patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
        (r"^norm\.", "backbone.patch_embed.norm."),
        (r"^layers\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
        (r"^layers\.(\d+)\.downsample\.", r"backbone.stages.\1.merge."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.self\.", ".attn."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        *BLOCKS,
    ],
}


def ours_of(state: dict[str, Tensor], source: str, stages: int) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, new in [*NAMES[source], (r"^(layernorm|norm)\.", f"backbone.norms.{stages - 1}.")]:
            name = re.sub(pattern, new, name)
        if not name.endswith(("relative_coords_table", "relative_position_index")):
            ours[name] = value.flatten() if name.endswith("logit_scale.log") else value
    for stem in [name.removesuffix(".logit_scale.log") for name in ours if name.endswith(".logit_scale.log")]:
        if f"{stem}.qkv.bias" in ours:  # torchvision never uses the third for keys
            ours[f"{stem}.qkv.q_bias"], _, ours[f"{stem}.qkv.v_bias"] = ours.pop(f"{stem}.qkv.bias").chunk(3)
        if f"{stem}.query.weight" in ours:
            parts = [ours.pop(f"{stem}.{part}.weight") for part in ("query", "key", "value")]
            ours[f"{stem}.qkv.weight"] = torch.cat(parts)
            ours |= {f"{stem}.qkv.{part[0]}_bias": ours.pop(f"{stem}.{part}.bias") for part in ("query", "value")}
    return ours


def same_weights(theirs: nn.Module, config: SwinV2Config, source: str, num_classes: int = 7) -> Model:
    """Our model with the weights of theirs: all of them, none left over."""
    draw(theirs)
    ours = model_of(config, num_classes)
    ours.load_state_dict(ours_of(theirs.eval().state_dict(), source, len(config.depths)))
    return ours


@torch.no_grad()
def assert_same(ours: Model, theirs: nn.Module, run: Maps, size: Size, dtype: torch.dtype) -> None:
    images = torch.randn(1, 3, *size).to(dtype)
    logits, maps = run(theirs.to(dtype), images)
    assert (logits - logits[:, :1]).abs().max() > 0.1  # a comparison of noughts proves nothing
    found = ours.to(dtype).backbone.stage_maps(images)
    for actual, expected in zip([*found, ours(images)], [*maps, logits], strict=True):
        assert actual.numel() == expected.numel()
        error = (actual.flatten() - expected.flatten()).abs().max()
        assert error <= CLOSE[dtype] * expected.abs().max().clamp(min=1)


def hooked(stages: Callable[[nn.Module], Sequence[nn.Module]]) -> Maps:
    """Logits, and what the stages put out; of several things, the map before it is merged."""

    def run(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda _, __, out: maps.append(out[1] if isinstance(out, tuple) else out))
            for stage in stages(model)
        ]
        out = model(images)
        for hook in hooks:
            hook.remove()
        return getattr(out, "logits", out), maps

    return run


TIMM = hooked(lambda model: model.layers)
TORCHVISION = hooked(lambda model: model.features[1::2])
TRANSFORMERS = hooked(lambda model: model.swinv2.encoder.layers)


# -- timm: every published window ------------------------------------------------------------------------------------

PUBLISHED = {name: config for name, config in VARIANTS.items() if name.split("_")[-1].startswith("w")}


TRAINED_AT_12 = ("base_w12", "base_w12to16", "base_w12to24")


def timm_name(name: str) -> str:
    """``swin_v2_base_w12to16`` as ``swinv2_base_window12to16_192to256``."""
    size = VARIANTS[name].image_size
    return re.sub(r"swin_v2_(\w+)_w", r"swinv2_\1_window", name) + (f"_192to{size}" if "to" in name else f"_{size}")


@TWICE
@pytest.mark.parametrize("name", [f"swin_v2_{name}" for name in ("tiny_w8", "tiny_w16", *TRAINED_AT_12)])
def test_timm_s_windows(name: str, dtype: torch.dtype) -> None:
    import timm

    few = {"embed_dim": 8, "depths": FEW["depths"], "num_heads": FEW["num_heads"], "num_classes": 7}
    theirs = timm.create_model(timm_name(name), pretrained=False, **few)
    config = dataclasses.replace(VARIANTS[name], **FEW)
    assert_same(same_weights(theirs, config, "timm"), theirs, TIMM, (config.image_size,) * 2, dtype)


@TWICE
@pytest.mark.parametrize(("size", "window"), [((64, 128), (4, 8)), ((128, 64), 8), ((32, 32), 1), ((64, 64), (8, 2))])
def test_timm_s_class_with_other_shapes(size: Size, window: int | Size, dtype: torch.dtype) -> None:
    """Where windows divide the maps: elsewhere timm pads after rolling (its issue 2438)."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    few = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 7}
    theirs = SwinTransformerV2(img_size=size, window_size=window, pretrained_window_sizes=(3, 0), **few)
    windows = window if isinstance(window, int) else (window, window)
    config = tiny(patch=4, image_size=size, window=windows, pretrained_window=(3, 0))
    assert_same(same_weights(theirs, config, "timm"), theirs, TIMM, size, dtype)


@pytest.mark.slow
@TWICE
@pytest.mark.parametrize("name", PUBLISHED)
def test_timm_at_full_size(name: str, dtype: torch.dtype) -> None:
    import timm

    theirs = timm.create_model(timm_name(name), pretrained=False, num_classes=1000)
    config = VARIANTS[name]
    assert_same(same_weights(theirs, config, "timm", 1000), theirs, TIMM, (config.image_size,) * 2, dtype)


# -- torchvision: any multiple of the patch --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_pair() -> tuple[Model, nn.Module]:
    from torchvision.models import swin_transformer as tv

    torch.manual_seed(0)
    theirs = tv.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=8,
        depths=[2, 2, 2],
        num_heads=[2, 2, 4],
        window_size=[4, 4],
        num_classes=7,
        block=tv.SwinTransformerBlockV2,
        downsample_layer=tv.PatchMergingV2,
    )
    config = tiny(patch=4, depths=(2, 2, 2), num_heads=(2, 2, 4), small_maps="pad")
    return same_weights(theirs, config, "torchvision"), theirs


@TWICE
@pytest.mark.parametrize(
    "size", [(64, 64), (32, 96), (60, 44), (100, 36), (16, 16), (12, 80), (20, 20), (4, 4), (68, 132)]
)
def test_torchvision_s_classes(torchvision_pair: tuple[Model, nn.Module], size: Size, dtype: torch.dtype) -> None:
    ours, theirs = torchvision_pair
    assert_same(ours, theirs, TORCHVISION, size, dtype)


@pytest.mark.slow
@TWICE
@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_torchvision_at_full_size(name: str, dtype: torch.dtype) -> None:
    import torchvision

    theirs = torchvision.models.get_model(f"swin_v2_{name[0]}", weights=None)
    config = dataclasses.replace(VARIANTS[f"swin_v2_{name}_w8"], small_maps="pad")
    ours = same_weights(theirs, config, "torchvision", 1000)
    for size in ((256, 256), (200, 316), (268, 180)):
        assert_same(ours, theirs, TORCHVISION, size, dtype)


# -- transformers ----------------------------------------------------------------------------------------------------


def transformers(config: SwinV2Config, num_classes: int) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    shape = Swinv2Config(
        image_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window,
        pretrained_window_sizes=config.pretrained_window or [0] * len(config.depths),
        num_labels=num_classes,
    )
    return Swinv2ForImageClassification(shape)


@TWICE
@pytest.mark.parametrize(
    "name", ["swin_v2_tiny_w8", "swin_v2_tiny_w16", "swin_v2_base_w12to16", "swin_v2_base_w12to24"]
)
def test_transformers(name: str, dtype: torch.dtype) -> None:
    config = dataclasses.replace(VARIANTS[name], **FEW)
    theirs = transformers(config, 7)
    assert_same(same_weights(theirs, config, "transformers"), theirs, TRANSFORMERS, (config.image_size,) * 2, dtype)


@TWICE
@pytest.mark.parametrize("size", [(52, 44), (64, 30), (35, 64)])
def test_transformers_where_nothing_divides(size: Size, dtype: torch.dtype) -> None:
    """On maps larger than the window; on smaller ones its windows shrink when it runs."""
    config = tiny(image_size=64)
    theirs = transformers(config, 7)
    assert_same(same_weights(theirs, config, "transformers"), theirs, TRANSFORMERS, size, dtype)


@pytest.mark.slow
@TWICE
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_at_full_size(name: str, dtype: torch.dtype) -> None:
    config = VARIANTS[name]
    theirs = transformers(config, 1000)
    assert_same(
        same_weights(theirs, config, "transformers", 1000), theirs, TRANSFORMERS, (config.image_size,) * 2, dtype
    )
