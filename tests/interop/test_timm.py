"""Our backbones through `timm.create_model`."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import is_model

from swindow.backbones import VARIANTS
from swindow.checkpoints.hub import NAMED, Resolved
from swindow.errors import ConfigError, UnknownName
from swindow.interop import timm as interop
from swindow.model import Model, backbone, build

SHAPE: dict[str, Any] = {"dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window": 4}


@pytest.fixture(autouse=True)
def names() -> list[str]:
    """Registered twice, since a user may."""
    interop.register()
    return interop.register()


def test_every_pyramid_is_there(names: list[str]) -> None:
    assert set(timm.list_models("swindow_*")) == set(names)
    assert {"swindow_swin_tiny", "swindow_swin_v2_base_w12to24", "swindow_swin_s3_base", "swindow_resnet_50"} <= set(
        names
    )
    flat = [name for name, config in VARIANTS.items() if config.strides[0] == config.strides[-1]]
    assert "vit_base" in flat
    assert not any(is_model(f"swindow_{name}") for name in flat)


@pytest.mark.parametrize("name", ["swindow/swin_tiny", "swindow_swin_tiny"])
def test_features_are_those_of_our_backbone(name: str) -> None:
    theirs = timm.create_model(name, features_only=True, out_indices=(1, 3), in_chans=4, **SHAPE).eval()
    ours = backbone("swin_tiny", out_stages=(1, 3), in_channels=4, **SHAPE).eval()
    ours.load_state_dict(theirs.body.state_dict())
    images = torch.randn(2, 4, 52, 70)
    for one, other in zip(theirs(images), ours(images), strict=True):
        assert torch.equal(one, other)
    assert theirs.feature_info.channels() == list(ours.channels) == [16, 64]
    assert theirs.feature_info.reduction() == list(ours.strides) == [8, 32]
    assert theirs.feature_info.module_name() == ["stages.1", "stages.3"]


@pytest.mark.parametrize(
    ("indices", "reduction"),
    [(None, [4, 8, 16, 32]), (2, [16, 32]), ((0, 1), [4, 8]), ([-1], [32]), ((0, -2), [4, 16])],
)
def test_out_indices_are_read_as_timm_does(indices: Any, reduction: list[int]) -> None:
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, embed_dim=24, out_indices=indices or 4
    )
    ours = timm.create_model("swindow/swin_tiny", features_only=True, out_indices=indices, **SHAPE)
    assert theirs.feature_info.reduction() == ours.feature_info.reduction() == reduction
    assert [x.shape[1] for x in ours(torch.randn(1, 3, 64, 64))] == ours.feature_info.channels()


@pytest.mark.parametrize("indices", [0, 5, (4,), (1, 0)])
def test_other_indices_are_refused(indices: Any) -> None:
    with pytest.raises(ConfigError, match="out_stages"):
        timm.create_model("swindow/swin_tiny", features_only=True, out_indices=indices, **SHAPE)


def test_classifier_is_our_model() -> None:
    theirs = timm.create_model(
        "swindow/swin_tiny", num_classes=7, in_chans=1, drop_path_rate=0.25, drop_rate=0.5, **SHAPE
    )
    ours = build("swin_tiny", num_classes=7, in_channels=1, drop_path=0.25, head_dropout=0.5, **SHAPE)
    assert theirs.model.config == ours.config
    ours.load_state_dict(theirs.model.state_dict())
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(theirs.eval()(images), ours.eval()(images))
    assert torch.equal(theirs.forward_head(theirs.forward_features(images)), theirs(images))
    assert theirs.num_classes == 7
    assert theirs.get_classifier() is theirs.model.head.linear
    assert timm.data.resolve_model_data_config(theirs)["input_size"] == (1, 224, 224)


def test_without_classes_it_gives_features() -> None:
    model = timm.create_model("swindow/swin_tiny", num_classes=0, **SHAPE).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model.forward_features(images).mean(dim=(1, 2))
    assert expected.shape == (2, model.num_features)
    torch.testing.assert_close(model(images), expected)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    torch.testing.assert_close(model.forward_head(model.forward_features(images), pre_logits=True), expected)
    with pytest.raises(ConfigError, match="global_pool 'max'"):
        model.reset_classifier(3, "max")


def test_timms_optimizer_spares_the_bias_tables() -> None:
    from timm.optim import create_optimizer_v2

    model = timm.create_model("swindow/swin_v2_tiny_w8", num_classes=2, **SHAPE)
    groups = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or "position" in name or "logit_scale" in name
        assert (id(parameter) in decayed) != spared, name


def test_checkpointing_is_switched_on_and_off() -> None:
    model = timm.create_model("swindow/swin_tiny", num_classes=2, **SHAPE)
    stages = model.model.backbone.each_stage()
    model.set_grad_checkpointing()
    assert all(stage.checkpointing for stage in stages)
    model.set_grad_checkpointing(False)
    assert not any(stage.checkpointing for stage in stages)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small timm model's random weights, in the place of ``swin_tiny.ms_in1k``."""
    from safetensors.torch import save_file

    theirs = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, num_classes=1000).eval()
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    asked = []

    def resolve(name: str, *, cache_dir: str | None = None) -> Resolved:
        asked.append((name, cache_dir))
        return Resolved(path, NAMED[name])

    monkeypatch.setattr(interop, "resolve", resolve)
    return theirs, asked


def test_pretrained_takes_the_weights_that_the_tag_names(published: Any) -> None:
    theirs, asked = published
    name = "swindow/swin_tiny.ms_in1k"
    images = torch.randn(1, 3, 224, 224)
    same = timm.create_model(name, pretrained=True, cache_dir="here", dim=24).eval()
    torch.testing.assert_close(same(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert asked == [("swin_tiny.ms_in1k", "here")]
    other = timm.create_model(name, pretrained=True, num_classes=5, dim=24).eval()
    torch.testing.assert_close(other.forward_features(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)
    assert other(images).shape == (1, 5)
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(3,), dim=24).eval()
    torch.testing.assert_close(
        features(images)[0], theirs.forward_features(images).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("swin_tiny", "swindow/swin_tiny.ms_in1k, swindow/swin_tiny.ms_in22k, "),
        ("swin_tiny.in1k", "swindow/swin_tiny.ms_in1k, "),
        ("swin_nano", "none are published for it"),
    ],
)
def test_pretrained_without_a_known_tag_lists_them(name: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"pretrained=True needs a tag that says which weights: {allowed}"):
        timm.create_model(f"swindow/{name}", pretrained=True, dim=24)


def test_other_names_are_still_timms() -> None:
    assert not isinstance(timm.create_model("resnet18", num_classes=2), Model)
    with pytest.raises(ValueError, match="Hugging Face Hub repo id"):
        timm.create_model("somebody/swin_tiny")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("swindow/swin_tny")
    with pytest.raises(UnknownName, match="did you mean dim"):
        timm.create_model("swindow/swin_tiny", dims=8)


def test_the_module_keeps_its_own_public_names() -> None:
    assert interop.__all__ == ["Classifier", "Features", "register"]
