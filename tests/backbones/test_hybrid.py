"""ResNets and hybrids: published counts, other libraries' weights, any size of image, any trunk before a ViT."""

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swindow.backbones import resnet
from swindow.backbones.hybrid import VARIANTS, HybridConfig
from swindow.backbones.resnet import ResNetConfig, StandardizedConv, pad_same
from swindow.backbones.swin import SwinConfig
from swindow.checkpoints.names import HYBRID_TIMM
from swindow.checkpoints.tables import Table
from swindow.config import from_dict, to_dict
from swindow.errors import ConfigError, ShapeError
from vit_peers import (
    Whole,
    assert_close,
    assert_same,
    changed_attributes,
    gradients,
    ours_of,
    same_weights,
    scramble,
    theirs_of,
    without_gradient,
)

BLOCK = "backbone.stages.{i}.blocks.{j}."
TORCHVISION = Table(
    (
        ("backbone.patch_embed.unit.conv.{*}", "conv1.{*}"),
        ("backbone.patch_embed.unit.norm.{*}", "bn1.{*}"),
        *((f"{BLOCK}units.{n}.conv.{{*}}", f"layer{{i+1}}.{{j}}.conv{n + 1}.{{*}}") for n in range(3)),
        *((f"{BLOCK}units.{n}.norm.{{*}}", f"layer{{i+1}}.{{j}}.bn{n + 1}.{{*}}") for n in range(3)),
        (f"{BLOCK}shortcut.conv.{{*}}", "layer{i+1}.{j}.downsample.0.{*}"),
        (f"{BLOCK}shortcut.norm.{{*}}", "layer{i+1}.{j}.downsample.1.{*}"),
        ("head.linear.{*}", "fc.{*}"),
    )
)

BIT = ResNetConfig(depths=(1, 2), width=64, norm="group")
ENCODER: dict[str, Any] = {"dim": 24, "depths": (1, 1), "num_heads": 3, "image_size": 32}
TRUNKS = [
    BIT,
    ResNetConfig(depths=(1, 1), width=4, block="basic"),
    ResNetConfig(depths=(1, 2, 1), width=4),
    SwinConfig(dim=8, depths=(2, 2), num_heads=(2, 4), window=4, patch=2, drop_path=0.0),
]


def hybrid(trunk: Any = BIT, **fields: Any) -> Whole:
    return Whole(HybridConfig(**(ENCODER | fields), trunk=trunk)).eval()


# -- what was published ------------------------------------------------------------------------------------------------

# torchvision publishes the ResNets' numbers, timm the hybrids' in millions: 98.95, 36.43 and 328.99 (329.09 at 384).
PARAMETERS = {"resnet_18": 11_689_512, "resnet_34": 21_797_672, "resnet_50": 25_557_032, "resnet_101": 44_549_160}
PEERS = {
    "hybrid_small_r26_32": "vit_small_r26_s32_224",
    "hybrid_small_r26_32_384": "vit_small_r26_s32_384",
    "hybrid_base_r50_16": "vit_base_r50_s16_224",
    "hybrid_base_r50_16_384": "vit_base_r50_s16_384",
    "hybrid_large_r50_32": "vit_large_r50_s32_224",
    "hybrid_large_r50_32_384": "vit_large_r50_s32_384",
}
MILLIONS = {"hybrid_base_r50_16_384": 98.95, "hybrid_small_r26_32": 36.43, "hybrid_large_r50_32": 328.99}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_torchvision_s_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        assert parameters(Whole(resnet.VARIANTS[name], num_classes=1000)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PEERS)
def test_timm_s_numbers_of_parameters(name: str) -> None:
    import timm

    with torch.device("meta"):
        number = parameters(Whole(VARIANTS[name], num_classes=1000))
        assert number == parameters(timm.create_model(PEERS[name], pretrained=False, num_classes=1000))
    if name in MILLIONS:
        assert round(number / 1e6, 2) == MILLIONS[name]


def test_every_variant_has_a_peer_and_the_stride_of_its_name() -> None:
    assert VARIANTS.keys() == PEERS.keys()
    for name, config in VARIANTS.items():
        assert set(config.strides) == {int(name.removesuffix("_384").rsplit("_", 1)[1])}
        assert config.image_size == (384 if name.endswith("_384") else 224)
        assert from_dict(HybridConfig, to_dict(config)) == config


def test_the_names_of_the_weights_are_pinned() -> None:
    """Checkpoints hold these names: changing one makes every saved model unreadable."""
    names = list(hybrid(ResNetConfig(depths=(1,), width=4, block="basic")).backbone.patch_embed.state_dict())
    statistics = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    units = ["trunk.patch_embed.unit", *(f"trunk.stages.0.blocks.0.units.{number}" for number in (0, 1))]
    expected = [[f"{unit}.conv.weight", *(f"{unit}.norm.{key}" for key in statistics)] for unit in units]
    assert names == [*itertools.chain(*expected), "proj.weight", "proj.bias"]
    shortcut = [f"shortcut.{key}" for key in ("conv.weight", "norm.weight", "norm.bias")]
    first = hybrid().backbone.patch_embed.trunk.stages[1].blocks[0]
    assert [name for name in first.state_dict() if not name.startswith("units.")] == shortcut


# -- other libraries' weights ------------------------------------------------------------------------------------------

SIZES = [(32, 32), (64, 48), (45, 61), (5, 90), (1, 1)]


def timm_hybrid(**fields: Any) -> nn.Module:
    """timm's hybrid as small as the groups of its norms let it be."""
    from functools import partial

    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    trunk = ResNetV2(
        layers=(1, 2),
        channels=(256, 512),
        stem_chs=64,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    shape = {"img_size": 32, "patch_size": 1, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
    return VisionTransformer(**shape, embed_layer=partial(HybridEmbed, backbone=trunk), dynamic_img_size=True, **fields)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timm_at_any_size(dtype: torch.dtype) -> None:
    peer = timm_hybrid()
    scramble(peer)
    ours = hybrid()
    ours.load_state_dict(_one_stage_less(ours_of(peer.state_dict(), HYBRID_TIMM)))
    ours, peer = ours.to(dtype), peer.to(dtype).eval()
    for size in SIZES:
        assert_same(ours, peer, torch.randn(2, 3, *size, dtype=dtype))
    peer.load_state_dict(theirs_of(ours.state_dict(), HYBRID_TIMM), strict=True)


def _one_stage_less(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two blocks are read as one stage of two; here they are two stages, for the maps of both."""
    moved = ((name, tensor) for name, tensor in state.items())
    names = (
        (name.replace("backbone.stages.0.blocks.1.", "backbone.stages.1.blocks.0."), tensor) for name, tensor in moved
    )
    return {name.replace("backbone.norms.0.", "backbone.norms.1."): tensor for name, tensor in names}


@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_s_resnets_at_any_size(name: str) -> None:
    import torchvision

    peer = torchvision.models.get_model(name, weights=None, num_classes=7)
    ours = same_weights(resnet.VARIANTS[name.replace("resnet", "resnet_")], peer, TORCHVISION, ())
    for size in ((64, 64), (75, 33), (1, 50)):
        assert_same(ours, peer, torch.randn(2, 3, *size))
    peer.load_state_dict(theirs_of(ours.state_dict(), TORCHVISION, ()), strict=True)


@pytest.mark.parity
def test_torchvision_s_resnets_in_training() -> None:
    """Norms over the batch, and the statistics that they leave."""
    import torchvision

    peer = torchvision.models.resnet18(num_classes=7)
    ours = same_weights(resnet.VARIANTS["resnet_18"], peer, TORCHVISION, ()).double().train()
    peer, images = peer.double().train(), torch.randn(4, 3, 40, 56).double()
    assert_close(ours(images), peer(images), 1e-9)
    for name, tensor in theirs_of(ours.state_dict(), TORCHVISION, ()).items():
        torch.testing.assert_close(tensor, peer.state_dict()[name])


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", PEERS)
def test_timm_at_full_size(name: str) -> None:
    import timm

    peer = timm.create_model(PEERS[name], pretrained=False, num_classes=7, dynamic_img_size=True)
    ours = same_weights(VARIANTS[name], peer, HYBRID_TIMM)
    native = VARIANTS[name].image_size
    for size in ((native, native), (150, 215)):
        assert_same(ours, peer, torch.randn(1, 3, *size))
    assert_same(ours.double(), peer.double(), torch.randn(1, 3, 90, 115).double())


# -- parts -------------------------------------------------------------------------------------------------------------


def test_kernels_are_standardised() -> None:
    conv = StandardizedConv(3, 8, 3, bias=False)
    nn.init.normal_(conv.weight, mean=3.0, std=5.0)
    flat = conv.weight.flatten(1)
    kernels = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)
    images = torch.randn(1, 3, 6, 6)
    expected = nn.functional.conv2d(images, kernels.view_as(conv.weight), padding=1)
    torch.testing.assert_close(conv(images), expected, rtol=1e-4, atol=1e-4)


@given(side=st.integers(1, 30), kernel=st.integers(1, 7), stride=st.integers(1, 3))
def test_padding_makes_room_for_one_place_per_stride_and_is_at_most_one_more_at_the_end(
    side: int, kernel: int, stride: int
) -> None:
    x = torch.ones(1, 1, side, 1)
    padded = pad_same(x, kernel, stride)[0, 0, :, 0] if kernel <= 1 else pad_same(x, kernel, stride)[0, 0].amax(1)
    places = -(-side // stride)
    assert (len(padded) - kernel) // stride + 1 == places
    assert len(padded) == side or len(padded) == (places - 1) * stride + kernel
    before, after = int(padded.argmax()), len(padded) - side - int(padded.argmax())
    assert after - before in (0, 1)
    assert padded.sum() == side


# -- any trunk, any input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_encoder_reads_the_trunk_s_last_map(trunk: Any) -> None:
    model, images = hybrid(trunk), torch.randn(2, 3, 40, 52)
    stride = trunk.strides[-1]
    assert model.backbone.strides == (stride,)
    embed = model.backbone.patch_embed
    last = embed.trunk(images)[-1]
    assert last.shape[1:] == (-(-40 // stride), -(-52 // stride), trunk.channels[-1])
    weight = embed.proj.weight[:, :, 0, 0]
    torch.testing.assert_close(embed(images), last @ weight.T + embed.proj.bias)
    assert model.backbone(images)[-1].shape == (2, *last.shape[1:3], 24)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_parameter_has_a_gradient(trunk: Any) -> None:
    assert without_gradient(hybrid(trunk), torch.randn(3, 3, 64, 48)) == []


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_batch_is_its_images(trunk: Any) -> None:
    model, images = hybrid(trunk), torch.randn(3, 3, 40, 24)
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_checkpointing_changes_nothing_and_reaches_the_trunk(trunk: Any) -> None:
    plain, images = hybrid(trunk, drop_path=0.5), torch.randn(3, 3, 32, 40)
    again, calls = copy.deepcopy(plain), []
    assert len(list(again.backbone.blocks())) == sum(trunk.depths) + 2
    next(again.backbone.blocks()).register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(plain, images, checkpointing=False)
    for new, old in zip(gradients(again, images, checkpointing=True), expected, strict=True):
        torch.testing.assert_close(new, old)
    assert len(calls) == 2
    for (name, new), old in zip(again.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(new, old), name


def test_a_forward_changes_no_attribute() -> None:
    model = hybrid().train()
    before = copy.deepcopy(model)
    model(torch.randn(2, 3, 40, 24))
    model(torch.randn(1, 3, 4, 3))
    assert changed_attributes(before, model) == []


@settings(max_examples=20)
@given(height=st.integers(1, 50), width=st.integers(1, 50), channels=st.integers(1, 5), patch=st.integers(1, 2))
def test_any_size_any_channels(height: int, width: int, channels: int, patch: int) -> None:
    config = HybridConfig(**ENCODER, trunk=ResNetConfig(depths=(1, 1), width=4), patch=patch)
    maps = config.build(in_channels=channels, out_stages=(0, 1)).eval()(torch.randn(1, channels, height, width))
    grid = (-(-height // (8 * patch)), -(-width // (8 * patch)))
    assert [x.shape for x in maps] == [(1, *grid, 24)] * 2
    assert all(torch.isfinite(x).all() for x in maps)


def test_a_resnet_alone_is_a_pyramid() -> None:
    config = ResNetConfig(depths=(1, 1, 1), width=4)
    body = config.build(in_channels=3, out_stages=(0, 2)).eval()
    maps = body(torch.randn(1, 3, 40, 50))
    assert (body.channels, body.strides) == ((16, 64), (4, 16))
    assert [x.shape for x in maps] == [(1, 10, 13, 16), (1, 3, 4, 64)]
    with pytest.raises(ShapeError, match="images have 1 channels and the model takes 3"):
        body(torch.randn(1, 1, 8, 8))


@pytest.mark.compiled
def test_it_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    model, images = hybrid(), torch.randn(2, 3, 45, 61)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": ()}, "width and every entry of depths must be at least 1"),
        ({"depths": (2, 0)}, "width and every entry of depths must be at least 1"),
        ({"width": 0}, "must be at least 1"),
        ({"width": 96, "norm": "group"}, "width is 96; norm='group' needs a multiple of 64 for its groups"),
    ],
)
def test_a_resnet_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(ResNetConfig(depths=(1, 1)), **fields)
