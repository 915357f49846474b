"""Swin-Unet's decoder against an independent reading of the paper, and what is ours: any size, depths, other blocks."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swindow
from original_unet import OriginalUNet
from swindow.errors import ConfigError
from swindow.heads.unet import PatchExpand, UNetConfig
from swindow.model import Model
from tiny_segmenters import segmenter, stirred

NAMES = [
    (r"^backbone\.norms\.\d\.", "norm."),
    (r"^backbone\.", ""),
    (r"^stages\.", "layers."),
    (r"\.merge\.", ".downsample."),
    (r"\.position_bias\.table$", ".relative_position_bias_table"),
    (r"\.position_bias\.mlp\.", ".cpb_mlp."),
    (r"\.logit_scale\.\w+$", ".logit_scale"),
    (r"\.qkv\.([qv])_bias$", r".\1_bias"),
    (r"^head\.expands\.0\.", "layers_up.0."),
    (r"^head\.expands\.(\d)\.", r"layers_up.\1.upsample."),
    (r"^head\.joins\.(\d)\.", lambda m: f"concat_back_dim.{int(m[1]) + 1}."),
    (r"^head\.stages\.(\d)\.", lambda m: f"layers_up.{int(m[1]) + 1}."),
    (r"^head\.norm\.", "norm_up."),
    (r"^head\.final\.", "up."),
    (r"^head\.classifier\.", "output."),
    (r"^(layers_up\..*|up)\.linear\.", r"\1.expand."),
]
SHAPE: dict[str, Any] = {"dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "drop_path": 0.0}


def published(model: Model) -> dict[str, Tensor]:
    """A model's state under the published names."""
    state = {}
    for name, value in model.state_dict().items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        state[name] = value
    return state


def original(model: Model, windows: tuple[int, ...]) -> OriginalUNet:
    shape, head = model.config.backbone, model.config.head
    return OriginalUNet(
        published(model),
        depths=shape.depths,
        decoder_depths=head.decoder_depths,
        heads=shape.num_heads,
        windows=windows,
    )


# Windows and merges divide the map; they do not; maps within a window; another side than the other.
@pytest.mark.parametrize("size", [(64, 64), (50, 37), (12, 20)], ids=str)
@pytest.mark.parametrize(
    ("name", "depths"), [("swin_unet", (2, 2, 2)), ("swin_unet", (3, 1, 2)), ("swin_unet_v2", (2, 2, 1))]
)
def test_it_computes_what_the_paper_says(name: str, depths: tuple[int, ...], size: tuple[int, int]) -> None:
    """Depths of the decoder are its own, which the published program ignores."""
    fields = {"window": 4, "small_maps": "pad", "decoder_depths": depths, "num_classes": 3}
    model = stirred(swindow.build(name, **(SHAPE | fields))).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model(images), original(model, (4,) * 4).logits(images)
    assert expected.std() > 0.05  # a comparison of noughts proves nothing
    assert (found - expected).abs().max() <= 1e-10
    assert [len(stage.blocks) for stage in model.head.stages] == list(depths)


def test_patches_are_expanded_row_by_row() -> None:
    expand = PatchExpand(2, 3, 2).double()
    nn.init.normal_(expand.norm.weight)
    x = torch.randn(1, 2, 5, 2, dtype=torch.float64)
    found = expand(x)
    assert found.shape == (1, 4, 10, 3)
    for row in range(4):
        for column in range(10):
            number = 2 * (row % 2) + column % 2
            part = expand.linear.weight[3 * number : 3 * number + 3] @ x[0, row // 2, column // 2]
            torch.testing.assert_close(found[0, row, column], expand.norm(part))


def test_state_dict_keys() -> None:
    model = swindow.build("unet_swin_nano", depths=(1, 1), num_heads=(1, 2), decoder_depths=(1,))
    block = [
        *("norm1.weight", "norm1.bias", "attn.position_bias.table", "attn.qkv.weight", "attn.qkv.bias"),
        *("attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias"),
        *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
    ]
    head = [name for name in model.state_dict() if name.startswith("head.")]
    assert head == [
        *("head.expands.0.linear.weight", "head.expands.0.norm.weight", "head.expands.0.norm.bias"),
        *("head.joins.0.weight", "head.joins.0.bias"),
        *(f"head.stages.0.blocks.0.{name}" for name in block),
        *("head.norm.weight", "head.norm.bias"),
        *("head.final.linear.weight", "head.final.norm.weight", "head.final.norm.bias", "head.classifier.weight"),
    ]
    norms = [name for name in model.state_dict() if name.startswith("backbone.norms.")]
    assert norms == ["backbone.norms.1.weight", "backbone.norms.1.bias"]  # skips are taken as they enter a stage


def test_blocks_are_those_of_the_encoder_unless_others_are_asked_for() -> None:
    def kinds(name: str, **fields: Any) -> tuple[str, tuple[int, int]]:
        block = swindow.build(name, dim=16, num_heads=(1, 2, 4, 8), **fields).head.stages[-1].blocks[0]
        return type(block).__module__.rsplit(".", 1)[1], block.attn.window

    assert kinds("swin_unet") == ("swin", (7, 7))
    assert kinds("swin_unet", window=(5, 7, 7, 7)) == ("swin", (5, 5))
    assert kinds("swin_unet_v2") == ("swin_v2", (8, 8))
    assert kinds("swin_unet_v2", decoder_window=4) == ("swin_v2", (4, 4))
    assert kinds("swin_unet_v2", decoder_block="swin") == ("swin", (7, 7))
    assert kinds("swin_unet", decoder_block="swin_v2", decoder_window=4) == ("swin_v2", (4, 4))
    with torch.device("meta"):
        other = swindow.build("unet_resnet_18").head.stages[0].blocks[0]
    assert (type(other).__module__, other.attn.window) == ("swindow.backbones.swin", (7, 7))
    assert other.attn.num_heads == 8  # of 32 channels each


def test_position_biases_go_by_the_windows_that_the_encoder_was_pretrained_with() -> None:
    shape: dict[str, Any] = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": 8, "decoder_depths": (1,)}
    model = swindow.build("swin_unet_v2", pretrained_window=(4, 8), image_size=64, **shape)
    (encoder,), (decoder,) = (stages[0].blocks for stages in (model.backbone.stages, model.head.stages))
    offsets = [block.attn.position_bias.offsets for block in (encoder, decoder)]
    assert torch.equal(*offsets)
    fresh = swindow.build("swin_unet_v2", pretrained_window=(4, 8), image_size=64, decoder_window=8, **shape)
    assert not torch.equal(fresh.head.stages[0].blocks[0].attn.position_bias.offsets, offsets[0])


def test_stochastic_depth_is_deepest_at_the_bottom() -> None:
    model = swindow.build("swin_unet", decoder_depths=(1, 2, 3), decoder_drop_path=0.5, dim=8, num_heads=(1, 1, 1, 1))
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in model.head.stages]
    assert rates == [pytest.approx([0.5]), pytest.approx([0.3, 0.4]), pytest.approx([0.0, 0.1, 0.2])]


@pytest.mark.parametrize(("patch", "factor"), [(16, 4), (14, 4), (6, 2), (2, 1)])
def test_cells_of_any_number_of_pixels(patch: int, factor: int) -> None:
    """A pyramid out of patches of 14 has cells of 3.5 pixels: nothing is moved, and nothing is missing."""
    shape: dict[str, Any] = {"dim": 8, "depths": (1, 1, 1, 1), "num_heads": 1, "patch": patch, "image_size": 4 * patch}
    model = swindow.build("unet_vit_tiny", **shape, num_classes=2).eval()
    assert model.head.final.factor == factor
    size = (4 * patch, 3 * patch + 1)
    outputs = model.outputs(torch.randn(1, 3, *size))
    grid = [side // factor for side in outputs.logits.shape[-2:]]
    ramp = torch.arange(grid[1] * factor).add(0.5).div(grid[1] * factor)  # 0 at the left border, 1 at the right one
    answer = model.head.decode(outputs._replace(logits=ramp.expand_as(outputs.logits)), size)
    assert answer.shape == (1, 2, *size)
    across = 4 * patch  # what padding has made of the width
    expected = torch.arange(size[1]).add(0.5).div(across)
    assert (answer[0, 0, 0, factor:-factor] - expected[factor:-factor]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_depths": ()}, r"decoder_depths \(\) must name at least 1 block for each size"),
        ({"decoder_depths": (2, 0)}, r"decoder_depths \(2, 0\) must name at least 1 block for each size"),
        ({"decoder_drop_path": 1.0}, r"decoder_drop_path is 1.0; it must lie in \[0, 1\)"),
        ({"decoder_window": 0}, "decoder_window is 0; a window has at least 1 token a side"),
    ],
)
def test_decoders_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNetConfig(**fields)


def test_depths_must_fit_the_backbone() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 2\) names 2 sizes; a pyramid of 4 maps has 3 to join"):
        swindow.build("swin_unet", decoder_depths=(2, 2))


def test_the_loss_is_a_sum_in_swin_unet_s_proportion() -> None:
    model = segmenter("unet")
    losses = model.head.loss(model.outputs(torch.randn(2, 3, 16, 16)), torch.randint(0, 5, (2, 16, 16)))
    assert list(losses) == ["cross_entropy", "dice"]
    assert (model.config.head.cross_entropy, model.config.head.dice) == (0.4, 0.6)
