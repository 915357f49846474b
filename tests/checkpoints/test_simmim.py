"""Pretrained models in SimMIM's own layout: whole, there and back, and as a start for others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from swindow.checkpoints import convert, load, load_weights, save
from swindow.errors import CheckpointError
from swindow.model import Model, build
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vit_peers import scramble

SHAPE: dict[str, Any] = {"dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "image_size": 64}
SAID: dict[str, Any] = {"window": 4, "image_size": 64, "num_heads": (1, 2), "small_maps": "pad"}

pytestmark = [pytest.mark.filterwarnings("ignore::swindow.checkpoints.AssumedWarning")]


def painter(name: str) -> Model:
    torch.manual_seed(0)
    model = build(name, **SHAPE).eval()
    scramble(model)
    model.preprocess = Preprocess(size=(64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return model


@pytest.mark.parametrize("name", ["simmim_swin_tiny", "simmim_swin_v2_tiny_w8"])
def test_the_original_s_names_there_and_back(name: str, tmp_path: Path) -> None:
    model = painter(name)
    there = convert(save(model, tmp_path / "own"), tmp_path / "theirs.pth", to="microsoft_simmim")
    state = torch.load(there, weights_only=True)["model"]
    assert state["encoder.mask_token"].shape == (1, 1, 12)
    assert state["decoder.0.weight"].shape == (8 * 8 * 3, 24, 1, 1)
    assert "encoder.layers.0.blocks.0.attn.qkv.weight" in state
    assert {name.split(".")[0] for name in state} == {"encoder", "decoder"}
    found = load(there, **SAID | ({"pretrained_window": 0} if "v2" in name else {}))
    assert found.task == "pretrain"
    assert found.config.head.mask_patch == 32
    assert found.config.head.norm_target == (47 if "v2" in name else 0)
    assert all(torch.equal(x, found.state_dict()[key]) for key, x in model.state_dict().items())
    images, cells = torch.randn(1, 3, 64, 64), torch.tensor([[[True, False], [False, True]]])
    with torch.no_grad():
        assert torch.allclose(found(images, hidden=cells), model(images, hidden=cells), atol=1e-5)


def test_a_classifier_starts_from_the_original_s_file(tmp_path: Path) -> None:
    model = painter("simmim_swin_tiny")
    there = convert(save(model, tmp_path / "own"), tmp_path / "theirs.pth", to="microsoft_simmim")
    fine = build("swin_tiny", num_classes=5, **SHAPE)
    report = load_weights(fine, there, head="reset", say=None)
    assert all(torch.equal(x, model.backbone.state_dict()[key]) for key, x in fine.backbone.state_dict().items())
    assert {"head.mask_token", "head.decoder.weight", "head.decoder.bias"} <= set(report.dropped)


def test_windows_of_6_become_windows_of_7(tmp_path: Path) -> None:
    """As published: pretrained at 192 pixels, fine-tuned at 224."""
    torch.manual_seed(0)
    shape = SHAPE | {"window": 6, "image_size": 192}
    model = build("simmim_swin_tiny", **shape)
    save(model, tmp_path / "own")
    fine = build("swin_tiny", num_classes=5, **shape | {"window": 7, "image_size": 224})
    report = load_weights(fine, tmp_path / "own", head="reset", say=None)
    assert sum("position_bias.table from 121×" in line for line in report.resized) == 4


def test_a_vit_has_no_place_in_it(tmp_path: Path) -> None:
    model = build("simmim_vit_tiny", dim=12, depths=(1,), num_heads=2, image_size=32)
    with pytest.raises(CheckpointError, match="microsoft_simmim format cannot hold a vit; it holds swin, swin_v2"):
        convert(save(model, tmp_path / "own"), tmp_path / "x.pth", to="microsoft_simmim")
    with pytest.raises(CheckpointError, match="cannot hold a vit with a simmim head"):
        convert(tmp_path / "own", tmp_path / "x.pth", to="timm")
