"""The same weights in torchvision's and timm's Swin give the same numbers."""

import re
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from swindow.model import Model, build

pytestmark = pytest.mark.parity

CLOSE = 1e-5
TINY = {"dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 3), "num_classes": 7, "window": 4}

TABLE = (r"relative_position_bias_table", "position_bias.table")
TORCHVISION = [
    TABLE,
    (r"^features\.0\.0\.", "backbone.patch_embed.proj."),
    (r"^features\.0\.2\.", "backbone.patch_embed.norm."),
    (r"^features\.(\d+)\.(\d+)\.", lambda m: f"backbone.stages.{(int(m[1]) - 1) // 2}.blocks.{m[2]}."),
    (r"^features\.(\d+)\.", lambda m: f"backbone.stages.{int(m[1]) // 2 - 1}.merge."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.linear."),
]
TIMM = [
    TABLE,
    (r"^patch_embed\.", "backbone.patch_embed."),
    (r"^layers\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"backbone.stages.{int(m[1]) - 1}.merge."),  # at a stage's start there
    (r"^head\.fc\.", "head.linear."),
]


def take_weights(ours: Model, theirs: nn.Module, renaming: list) -> None:
    """Give `ours` the weights of `theirs`, all of them, none left over, each first drawn anew so that none is zero."""
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.1)
    last = len(ours.config.backbone.depths) - 1
    state = {}
    for name, value in theirs.state_dict().items():
        if name.endswith("relative_position_index"):
            continue
        for pattern, new in [*renaming, (r"^norm\.", f"backbone.norms.{last}.")]:
            name = re.sub(pattern, new, name)
        state[name] = value
    ours.load_state_dict(state)
    ours.eval()
    theirs.eval()


def assert_same(ours: Model, theirs: nn.Module, stages: Iterable[nn.Module], images: Tensor) -> None:
    """Logits and every stage's map, before and after which they are merged."""
    maps: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda _, __, out: maps.append(out)) for stage in stages]
    with torch.no_grad():
        logits = theirs(images)
        for found, expected in zip(ours.backbone.stage_maps(images), maps, strict=True):
            scale = expected.abs().max().clamp(min=1)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= CLOSE * scale
        assert logits.abs().max() > 0.1  # a comparison of noughts proves nothing
        assert (ours(images) - logits).abs().max() <= CLOSE
    for hook in hooks:
        hook.remove()


def torchvision_stages(model: nn.Module) -> list[nn.Module]:
    return list(model.features[1::2])


@pytest.fixture(scope="module")
def torchvision_pair() -> tuple[Model, nn.Module]:
    from torchvision.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    theirs = SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2, 2, 2], num_heads=[1, 2, 3], window_size=[4, 4], num_classes=7
    )
    ours = build("swin_tiny", **TINY)
    take_weights(ours, theirs, TORCHVISION)
    return ours, theirs


# Multiples of 4, torchvision drops what is beyond: whole windows, padded windows, odd grids, maps under one window.
@pytest.mark.parametrize(
    "size",
    [(64, 64), (128, 64), (32, 96), (60, 44), (100, 36), (16, 16), (12, 80), (20, 20), (4, 4), (8, 52), (68, 132)],
)
def test_torchvision_s_classes_at_any_multiple_of_the_patch(
    torchvision_pair: tuple[Model, nn.Module], size: tuple[int, int]
) -> None:
    ours, theirs = torchvision_pair
    assert_same(ours, theirs, torchvision_stages(theirs), torch.randn(2, 3, *size))


def test_torchvision_s_gradients(torchvision_pair: tuple[Model, nn.Module]) -> None:
    ours, theirs = torchvision_pair
    images = torch.randn(2, 3, 44, 60)
    gradients = []
    for model in (ours, theirs):
        pixels = images.clone().requires_grad_()
        gradients.append(torch.autograd.grad(model(pixels).square().sum(), pixels)[0])
    assert (gradients[0] - gradients[1]).abs().max() <= CLOSE * gradients[1].abs().max()


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_timm_s_class_where_windows_divide_the_maps(size: tuple[int, int]) -> None:
    """Elsewhere timm pads after rolling, which makes windows that the mask does not know (its issue 2438)."""
    from timm.models.swin_transformer import SwinTransformer

    theirs = SwinTransformer(
        img_size=size, patch_size=4, embed_dim=12, depths=(2, 2, 2), num_heads=(1, 2, 3), window_size=4, num_classes=7
    )
    ours = build("swin_tiny", **TINY)
    take_weights(ours, theirs, TIMM)
    assert_same(ours, theirs, theirs.layers, torch.randn(2, 3, *size))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "peer"), [("swin_tiny", "swin_t"), ("swin_small", "swin_s"), ("swin_base", "swin_b")])
def test_torchvision_at_full_size(name: str, peer: str) -> None:
    import torchvision

    theirs = torchvision.models.get_model(peer, weights=None)
    ours = build(name)
    take_weights(ours, theirs, TORCHVISION)
    for size in ((224, 224), (200, 316)):
        assert_same(ours, theirs, torchvision_stages(theirs), torch.randn(1, 3, *size))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny", "swin_small", "swin_base"])
def test_timm_at_full_size(name: str) -> None:
    import timm

    theirs = timm.create_model(f"{name}_patch4_window7_224", pretrained=False)
    ours = build(name)
    take_weights(ours, theirs, TIMM)
    assert_same(ours, theirs, theirs.layers, torch.randn(1, 3, 224, 224))
