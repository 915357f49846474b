"""Our backbones in Hugging Face's models: the maps are ours, and files give back what was saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

from swindow.errors import CheckpointError, ConfigError, UnknownName
from swindow.interop.transformers import SwindowBackbone, SwindowConfig, register
from swindow.model import backbone

ALL = ["stage1", "stage2", "stage3", "stage4"]
PYRAMID: dict[str, Any] = {"depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "dim": 8, "window": 4, "image_size": 64}
FAMILIES = {
    "swin_tiny": PYRAMID | {"absolute_position": True},
    "swin_v2_tiny_w8": PYRAMID | {"pretrained_window": [2, 2, 4, 4]},
    "swin_mlp_tiny_c24": {"depths": [1, 2, 1, 1], "window": 4},
    "vit_tiny": {"dim": 12, "depths": [1, 1, 1, 1], "image_size": 64},
    "resnet_18": {"width": 8},
}


@pytest.fixture(autouse=True)
def registered() -> None:
    """Twice, since a user may."""
    register()
    register()


def config(variant: str = "swin_tiny", **more: Any) -> SwindowConfig:
    return SwindowConfig(variant=variant, fields=FAMILIES[variant], **({"out_features": ALL} | more))


def segmenter(**more: Any) -> UperNetForSemanticSegmentation:
    about = UperNetConfig(
        backbone_config=config(**more), hidden_size=8, pool_scales=[1, 2], num_labels=3, use_auxiliary_head=False
    )
    return UperNetForSemanticSegmentation(about)


@pytest.mark.parametrize("variant", sorted(FAMILIES))
def test_maps_are_those_of_our_backbone(variant: str) -> None:
    theirs = AutoBackbone.from_config(config(variant)).eval()
    assert isinstance(theirs, SwindowBackbone)
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in FAMILIES[variant].items()}
    ours = backbone(variant, **fields).eval()
    ours.load_state_dict(theirs.body.state_dict())
    images = torch.randn(2, 3, 52, 70)
    for one, other in zip(theirs(images).feature_maps, ours(images), strict=True):
        assert torch.equal(one, other)
    assert theirs.channels == list(ours.channels)


def test_our_own_initialisation_stands() -> None:
    body = SwindowBackbone(config("swin_v2_tiny_w8")).body
    block = next(body.body.blocks())
    assert (block.norm1.weight == 0).all()  # res-post-norm starts as the identity; Hugging Face would write ones


@pytest.mark.parametrize("variant", sorted(FAMILIES))
def test_files_give_back_the_same_model(variant: str, tmp_path: Path) -> None:
    before = SwindowBackbone(config(variant)).eval()
    before.save_pretrained(tmp_path)
    after = SwindowBackbone.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 52, 70)
    for one, other in zip(before(images).feature_maps, after(images).feature_maps, strict=True):
        torch.testing.assert_close(one, other)  # mapped files lie in memory otherwise, which rounding knows
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, after.get_parameter(name)), name
    for name, buffer in before.named_buffers():
        assert torch.equal(buffer, after.get_buffer(name)), name


def test_out_features_and_out_indices_say_the_same(tmp_path: Path) -> None:
    named, numbered = config(out_features=["stage2", "stage4"]), config(out_features=None, out_indices=[1, -1])
    assert named.out_indices == [1, 3]
    assert SwindowConfig(variant="swin_nano").out_features == ["stage2"]
    for about in (named, numbered):
        model = SwindowBackbone(about)
        assert model.channels == [16, 64]
        assert [x.shape[1] for x in model(torch.randn(1, 3, 64, 64)).feature_maps] == [16, 64]
    named.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == named.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["out_features"] == ["stage2", "stage4"]


def test_more_stages_than_the_file_has_norms_for(tmp_path: Path) -> None:
    before = SwindowBackbone(config(out_features=["stage4"])).eval()
    before.save_pretrained(tmp_path)
    after = SwindowBackbone.from_pretrained(tmp_path, out_features=ALL)
    images = torch.randn(1, 3, 64, 64)
    maps = after(images).feature_maps
    torch.testing.assert_close(maps[3], before(images).feature_maps[0])
    mean, variance = maps[0].mean(dim=1), maps[0].var(dim=1, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)  # fresh norms: ones and zeros
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0)


def test_a_file_without_a_table_is_refused(tmp_path: Path) -> None:
    SwindowBackbone(config(variant="swin_tiny")).save_pretrained(tmp_path)
    fields = FAMILIES["swin_tiny"] | {"depths": [2, 2, 1, 1]}
    with pytest.raises(CheckpointError, match="the file lacks table of a RelativeBias; it is of another backbone"):
        SwindowBackbone.from_pretrained(tmp_path, fields=fields)


def test_upernet_trains_and_its_files_give_it_back(tmp_path: Path) -> None:
    model = segmenter(num_channels=4)
    images, labels = torch.randn(2, 4, 64, 64), torch.randint(0, 3, (2, 64, 64))
    model.train()(images, labels=labels).loss.backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval().save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(images).logits, model(images).logits)


def test_tuples_where_asked_for() -> None:
    model = SwindowBackbone(config(out_features=["stage4"])).eval()
    images = torch.randn(1, 3, 64, 64)
    (maps,) = model(images, return_dict=False)
    assert torch.equal(maps[0], model(images).feature_maps[0])


def test_what_cannot_be_is_said() -> None:
    model = SwindowBackbone(config(out_features=["stage4"]))
    with pytest.raises(ConfigError, match="this backbone gives feature maps only"):
        model(torch.randn(1, 3, 64, 64), output_attentions=True)
    with pytest.raises(UnknownName, match="unknown model 'swin_tny'; did you mean swin_tiny"):
        SwindowConfig(variant="swin_tny")
    with pytest.raises(UnknownName, match="did you mean depths"):
        SwindowConfig(variant="swin_tiny", fields={"depth": [1]})
    with pytest.raises(ValueError, match="out_features must be a subset"):
        config(out_features=["stem"])
