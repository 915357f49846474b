"""Odd models through files and back, and files beside weights that say what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import swindow
from swindow.checkpoints import AssumedWarning, convert, load, save
from swindow.checkpoints.converting import save_as
from swindow.checkpoints.own import card_text
from swindow.errors import CheckpointError, ConfigError
from swindow.model import build
from swindow.preprocess import Preprocess

SWIN = {"dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2, "image_size": 32, "num_classes": 5}
VIT = {"dim": 32, "num_heads": 2, "patch": 4, "image_size": 16, "num_classes": 5}


def same(model, path):
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return torch.equal(model.eval()(images), swindow.load(path)(images))


@pytest.mark.parametrize("depths", [(4,), (2, 2), (2, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("form", ["timm", "torchvision", "huggingface"])
def test_a_vit_keeps_its_stages_in_files_of_others(depths, form, tmp_path):
    model = swindow.build("vit_tiny", depths=depths, **VIT)
    assert same(model, save_as(model, tmp_path / "model.safetensors", form))


@pytest.mark.filterwarnings("ignore::swindow.checkpoints.AssumedWarning")
def test_hidden_channels_rounded_down_in_every_stage_are_found(tmp_path):
    """3.3 x 16 and 3.3 x 32 are 52 and 105, which 52 / 16 does not give; 61 / 28 times 28 is a bit less than 61."""
    model = swindow.build("swin_nano", **SWIN | {"mlp_ratio": 3.3})
    assert same(model, save_as(model, tmp_path / "swin.pth", "timm"))
    model = swindow.build("swin_nano", **SWIN | {"dim": 28, "mlp_ratio": 2.18})
    assert model.state_dict()["backbone.stages.0.blocks.0.mlp.fc1.weight"].shape[0] == 61
    assert same(model, save_as(model, tmp_path / "swin61.pth", "timm"))


@pytest.mark.filterwarnings("ignore::swindow.checkpoints.AssumedWarning")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_absolute_positions_tell_the_image_size_and_are_told_it_where_no_square(suffix, tmp_path):
    model = swindow.build("swin_nano", **SWIN, absolute_position=True)
    assert same(model, save_as(model, tmp_path / f"square{suffix}", "microsoft"))
    model = swindow.build("swin_nano", **SWIN | {"image_size": (32, 16)}, absolute_position=True)
    path = save_as(model, tmp_path / f"wide{suffix}", "microsoft")
    if suffix == ".pth":
        with pytest.raises(CheckpointError, match=r"128 places.*give image_size=\(height, width\)"):
            swindow.load(path)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(images), swindow.load(path, image_size=(32, 16))(images))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Swin V2 as transformers has it, without our card."""
    model = swindow.build("swin_v2_tiny_w8", **SWIN)
    model.preprocess = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    path = save_as(model, tmp_path_factory.mktemp("odd") / "model", "huggingface")
    weights = path / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(weights), weights, metadata={"format": "pt"})
    return path


def altered(folder, target, file, **values):
    """A copy of the folder whose `file` says other things."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / file).write_text(json.dumps(json.loads((target / file).read_text()) | values))
    return target


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": "x"},
        {"image_size": []},
        {"image_size": 10**9},
        {"window_size": "7"},
        {"window_size": 10**9},
        {"window_size": 0},
        {"drop_path_rate": "x"},
        {"layer_norm_eps": float("nan")},
        {"pretrained_window_sizes": [[4, 4]]},
        {"pretrained_window_sizes": -1},
        {"id2label": {"a": "cat"}},
        {"id2label": 7},
        {"architecture": None},
        {"pretrained_cfg": "x"},
        {"pretrained_cfg": {"input_size": [3]}},
        {"pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5]}},
        {"label_names": -1, "architecture": "swinv2"},
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_refused_in_one_line(values, folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        swindow.load(altered(folder, tmp_path / "model", "config.json", **values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [{"size": "x"}, {"crop_size": {"height": 32}}, {"crop_size": [32, "b"]}, {"image_mean": -1}, {"image_std": None}],
    ids=str,
)
def test_so_is_a_preprocessor_that_cannot_be(values, folder, tmp_path):
    with pytest.raises(ConfigError):
        swindow.load(altered(folder, tmp_path / "model", "preprocessor_config.json", **values))


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 2.5), ("window", "x"), ("window", ()), ("depths", None), ("mlp_ratio", float("nan"))],
)
def test_so_are_fields_of_another_type(field, value, folder):
    with pytest.raises(ConfigError, match=field):
        swindow.load(folder, **{field: value})


def test_a_tensor_of_an_unheard_of_shape_is_refused_in_one_line(folder, tmp_path):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for name in tensors:
        odd = tensors | {name: torch.tensor(1.0)}
        safetensors.torch.save_file(odd, tmp_path / "odd.safetensors", metadata={"format": "pt"})
        if tensors[name].numel() > 1 and "index" not in name and "coords" not in name:
            with pytest.raises((CheckpointError, ConfigError)):
                swindow.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    "change", [("dim = 12", "dim = 1000000000"), ("depths = [\n    2,\n    2,\n]", "depths = [1000000000, 2]")]
)
def test_a_card_that_asks_for_far_more_than_its_weights_is_refused(change: tuple[str, str], tmp_path: Path) -> None:
    shape = {"dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "image_size": 32}
    model = build("swin_tiny", num_classes=3, **shape)  # type: ignore[arg-type]
    text = card_text(model)
    assert change[0] in text
    state = dict(model.state_dict())
    path = tmp_path / "bomb.safetensors"
    safetensors.torch.save_file(state, path, metadata={"swindow": text.replace(*change)})
    with pytest.raises(CheckpointError, match="far larger than its weights"):
        load(path)


def test_a_class_that_treats_small_maps_in_another_way_is_named(tmp_path: Path) -> None:
    model = build("swin_tiny", num_classes=3, dim=12, depths=(2, 2), num_heads=(1, 2), window=4, image_size=32)
    own = save(model, tmp_path / "own")
    with pytest.warns(AssumedWarning, match="openmmlab's class has small_maps 'pad_shift' and this model 'pad'"):
        convert(own, tmp_path / "theirs.pth", to="openmmlab")


def test_a_stored_index_tells_windows_that_are_not_square(tmp_path: Path) -> None:
    shape = {"dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window": ((4, 2), (2, 4)), "image_size": 64}
    model = build("swin_v2_tiny_w8", num_classes=3, **shape)  # type: ignore[arg-type]
    target = convert(save(model, tmp_path / "own"), tmp_path / "theirs.pth", to="microsoft")
    assert load(target, image_size=64, say=lambda _: None).config.backbone.windows == ((4, 2), (2, 4))


@pytest.mark.parametrize("fields", [{"window": "x"}, {"depths": 3}, {"dim": 1.5}])
def test_a_field_of_another_type_is_one_line(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="which is not"):
        build("swin_tiny", **fields)
