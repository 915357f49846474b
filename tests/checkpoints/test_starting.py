"""Models that start from weights trained for something else: what is taken, mirrored, left behind and fresh."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swindow.checkpoints import LoadReport, convert, load_weights, save
from swindow.errors import CheckpointError
from swindow.model import Model, backbone, build
from swindow.ops import resample
from vit_peers import scramble

SHAPE: dict[str, Any] = {"dim": 12, "num_heads": (1, 2, 3, 4), "window": 4, "image_size": 128}
TINY: dict[str, Any] = SHAPE | {"depths": (2, 2, 2, 2)}
UPERNET: dict[str, Any] = TINY | {"decoder_width": 16, "auxiliary_width": 8}
SMALL_VIT: dict[str, Any] = {"dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2, "image_size": 64}


def made(name: str, **fields: Any) -> Model:
    model = build(name, **fields)
    scramble(model)
    return model.eval()


@pytest.fixture
def imagenet(tmp_path: Path) -> tuple[Model, Path]:
    """A classifier, in the original's own file, as ImageNet's come."""
    torch.manual_seed(0)
    model = made("swin_tiny", num_classes=11, **SHAPE | {"depths": (2, 2, 4, 2)})
    there = convert(save(model, tmp_path / "own"), tmp_path / "imagenet.pth", to="microsoft")
    return model, there


class Loaded:
    """What a model was before and is after, and what was said of it."""

    def __init__(self, model: nn.Module, path: Path, **options: Any) -> None:
        self.before = copy.deepcopy(model.state_dict())
        said: list[str] = []
        self.report: LoadReport = load_weights(model, path, say=said.append, **options)
        assert said == [str(self.report)]
        self.after = model.state_dict()

    def all_are_accounted_for(self) -> None:
        """Every tensor is loaded, or named as something else; what is fresh is as it was."""
        report = self.report
        assert report.problems == []
        named = [text.split(" ")[0].rstrip(",") for text in (*report.resized, *report.reset, *report.mirrored)]
        assert len(set(named)) == len(named)
        assert report.loaded + len(named) == len(self.after)
        for text in report.reset:
            name = text.split(",")[0]
            assert torch.equal(self.after[name], self.before[name]), name

    def took(self, source: dict[str, Tensor], start: str) -> None:
        """Under this path, all that the file's model has."""
        names = [name for name in self.after if name.startswith(start)]
        assert names
        assert [name for name in names if not torch.equal(self.after[name], source[name])] == []


@pytest.mark.parametrize("form", ["microsoft", "timm", "torchvision", "huggingface", "swindow"])
def test_an_upernet_starts_from_a_classifier_in_any_format(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = made("swin_tiny", num_classes=11, **TINY)
    own = save(source, tmp_path / "own")
    path = own if form == "swindow" else convert(own, tmp_path / "x.safetensors", to=form)
    model = made("upernet_swin_tiny", num_classes=5, **UPERNET)
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    for part in ("backbone.patch_embed.", "backbone.stages.", "backbone.norms.3."):
        loaded.took(source.state_dict(), part)
    fresh = {f"backbone.norms.{stage}.{part}" for stage in range(3) for part in ("weight", "bias")}
    assert set(loaded.report.reset) == fresh | {name for name in loaded.after if name.startswith("head.")}
    assert {"head.linear.weight", "head.linear.bias"} <= set(loaded.report.dropped)


def test_a_swin_unet_starts_as_the_original_does(imagenet: tuple[Model, Path]) -> None:
    """Encoder and decoder from an ImageNet Swin whose third stage is deeper than Swin-Unet's."""
    source, path = imagenet
    model = made("swin_unet", num_classes=5, **TINY)
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    theirs = source.state_dict()
    loaded.took(theirs, "backbone.")
    for decoder, encoder in ((0, 2), (1, 1), (2, 0)):
        blocks = {name for name in loaded.after if name.startswith(f"head.stages.{decoder}.")}
        assert len(blocks) == 2 * 13
        for name in blocks:
            mirrored = name.replace(f"head.stages.{decoder}.", f"backbone.stages.{encoder}.")
            assert torch.equal(loaded.after[name], theirs[mirrored]), name
            assert f"{name} from {mirrored}" in loaded.report.mirrored
    assert len(loaded.report.mirrored) == 3 * 2 * 13
    others = {name for name in loaded.after if name.startswith("head.") and not name.startswith("head.stages.")}
    assert set(loaded.report.reset) == others
    deeper = {
        name for name in theirs if name.startswith(("backbone.stages.2.blocks.2.", "backbone.stages.2.blocks.3."))
    }
    assert deeper | {"head.linear.weight", "head.linear.bias"} <= set(loaded.report.dropped)
    assert "mirrored: head.stages.0.blocks.0.norm1.weight from backbone.stages.2.blocks.0.norm1.weight" in str(
        loaded.report
    )


def test_a_deeper_encoder_is_cut_for_a_u_net_only(imagenet: tuple[Model, Path]) -> None:
    _, path = imagenet
    with pytest.raises(CheckpointError, match=r"unexpected backbone\.stages\.2\.blocks\.2\."):
        load_weights(build("upernet_swin_tiny", num_classes=5, **UPERNET), path, head="reset")
    with pytest.raises(CheckpointError, match=r"unexpected backbone\.stages\.2\.blocks\.2\."):
        load_weights(build("swin_tiny", num_classes=5, **TINY), path, head="reset")


def test_a_decoder_of_other_windows_or_depths_gets_what_fits(imagenet: tuple[Model, Path]) -> None:
    source, path = imagenet
    fields = SHAPE | {"depths": (2, 2, 4, 2), "decoder_depths": (5, 1, 2), "decoder_window": 3}
    model = made("unet_swin_tiny", num_classes=5, **fields)
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    theirs = source.state_dict()
    part = "attn.position_bias.table"
    table = theirs[f"backbone.stages.2.blocks.3.{part}"]
    assert torch.equal(loaded.after[f"head.stages.0.blocks.3.{part}"], resample.bias_table(table, (4, 4), (3, 3)))
    fifth = [name for name in loaded.after if name.startswith("head.stages.0.blocks.4.")]  # the encoder has four
    assert set(fifth) <= set(loaded.report.reset)
    assert len(loaded.report.mirrored) == (4 + 1 + 2) * 13


def test_a_decoder_of_another_make_is_not_mirrored(imagenet: tuple[Model, Path]) -> None:
    """Norms of V1's and V2's blocks have the same names and shapes and stand elsewhere."""
    _, path = imagenet
    model = made("unet_swin_tiny", num_classes=5, decoder_block="swin_v2", **SHAPE | {"depths": (2, 2, 4, 2)})
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    assert loaded.report.mirrored == ()


def test_v2_is_mirrored_too(tmp_path: Path) -> None:
    source = made("swin_v2_tiny_w8", num_classes=3, **TINY)
    model = made("swin_unet_v2", num_classes=5, **TINY)
    loaded = Loaded(model, save(source, tmp_path / "own"), head="reset")
    loaded.all_are_accounted_for()
    for name in loaded.after:
        if name.startswith("head.stages.1."):
            assert torch.equal(loaded.after[name], source.state_dict()[name.replace("head.", "backbone.")]), name


@pytest.mark.parametrize("kind", ["upernet", "unet"])
def test_a_segmenter_of_other_classes_gives_all_but_what_names_them(kind: str, tmp_path: Path) -> None:
    name, fields = {"upernet": ("upernet_swin_tiny", UPERNET), "unet": ("swin_unet", TINY)}[kind]
    source = made(name, num_classes=7, **fields)
    path = save(source, tmp_path / "own")
    model = made(name, num_classes=5, **fields)
    with pytest.raises(CheckpointError, match=r'head\.classifier\.weight is .*head="reset"'):
        load_weights(model, path)
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    own = {name for name in loaded.after if name.startswith(("head.classifier.", "head.auxiliary.classifier."))}
    assert set(loaded.report.reset) == own
    state = source.state_dict()
    assert [name for name in loaded.after if name not in own and not torch.equal(loaded.after[name], state[name])] == []
    assert loaded.report.mirrored == ()  # it has a decoder of its own


def test_a_decoder_of_another_width_keeps_what_does_not_fit_and_names_it(tmp_path: Path) -> None:
    source = made("upernet_swin_tiny", num_classes=7, **UPERNET)
    model = made("upernet_swin_tiny", num_classes=7, **UPERNET | {"decoder_width": 8})
    path = save(source, tmp_path / "own")
    with pytest.raises(CheckpointError, match="the model's is 8"):
        load_weights(model, path)
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    loaded.took(source.state_dict(), "head.auxiliary.conv.")
    assert "head.fuse.norm.running_mean, which is 16 in the file and 8 here" in loaded.report.reset


@pytest.mark.parametrize("name", ["upernet_swin_tiny", "swin_unet"])
def test_a_segmenter_s_encoder_goes_into_a_classifier_and_into_a_bare_backbone(name: str, tmp_path: Path) -> None:
    source = made(name, num_classes=7, **UPERNET if name.startswith("upernet") else TINY)
    path = save(source, tmp_path / "own")
    model = made("swin_tiny", num_classes=3, **TINY)
    with pytest.raises(CheckpointError, match=r'missing head\.linear\.weight.*head="reset"'):
        load_weights(model, path)
    loaded = Loaded(model, path, head="reset")
    loaded.all_are_accounted_for()
    loaded.took(source.state_dict(), "backbone.")
    assert loaded.report.reset == ("head.linear.weight", "head.linear.bias")
    assert "head.classifier.weight" in loaded.report.dropped
    body = backbone("swin_tiny", **TINY)
    bare = Loaded(body, path)
    assert bare.report.problems == []
    own = {f"backbone.{key.removeprefix('body.')}": x for key, x in bare.after.items()}
    fresh = set(bare.report.reset)
    norms = {f"backbone.norms.{stage}.{part}" for stage in range(3) for part in ("weight", "bias")}
    assert fresh == (norms if name == "swin_unet" else set())
    assert [key for key, x in own.items() if key not in fresh and not torch.equal(x, source.state_dict()[key])] == []


def test_one_segmenter_starts_from_another_s_encoder(tmp_path: Path) -> None:
    source = made("upernet_swin_tiny", num_classes=7, small_maps="pad_shift", **UPERNET)
    there = convert(save(source, tmp_path / "own"), tmp_path / "x.safetensors", to="openmmlab")
    model = made("swin_unet", num_classes=7, small_maps="pad_shift", **TINY)
    loaded = Loaded(model, there, head="reset")
    loaded.all_are_accounted_for()
    loaded.took(source.state_dict(), "backbone.")
    assert len(loaded.report.mirrored) == 3 * 2 * 13


@pytest.mark.parametrize("name", ["upernet", "unet"])
def test_vits_and_resnets_start_the_same_way(name: str, tmp_path: Path) -> None:
    head = {"decoder_width": 16, "auxiliary_width": 8} if name == "upernet" else {}
    for variant, fields in (("vit_tiny", SMALL_VIT), ("resnet_18", {"width": 8})):
        source = made(variant, num_classes=3, **fields)
        loaded = Loaded(
            made(f"{name}_{variant}", num_classes=5, **fields, **head),
            save(source, tmp_path / f"{name}-{variant}"),
            head="reset",
        )
        loaded.all_are_accounted_for()
        loaded.took(source.state_dict(), "backbone.stages.")
        assert loaded.report.mirrored == ()
