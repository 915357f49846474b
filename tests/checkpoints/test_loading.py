"""From a file to a model: what is found out, what is assumed and said, what is made to fit, what is refused."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import swindow
from swindow.backbones.resnet import ResNetConfig
from swindow.backbones.swin_v2 import log_spaced_offsets
from swindow.checkpoints import AssumedWarning, convert, load, load_weights, save
from swindow.errors import CheckpointError, ConfigError, UnknownName
from swindow.model import Model, backbone, build
from swindow.ops import resample
from swindow.preprocess import Preprocess
from vit_peers import scramble

TINY: dict[str, Any] = {"dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "image_size": 32}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = build("swin_tiny", num_classes=5, **TINY)
    scramble(model)
    return model.eval()


@pytest.fixture
def bare(model: Model, tmp_path: Path) -> Path:
    """Only tensors, under the original's names, in a file whose name says nothing."""
    return convert(save(model, tmp_path / "own"), tmp_path / "weights.pth", to="microsoft")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_what_a_bare_file_does_not_tell_is_said_aloud(model: Model, bare: Path) -> None:
    with pytest.warns(AssumedWarning, match=r"weights\.pth: assumed image_size 32 .*; ImageNet's mean and deviation"):
        found = load(bare)
    assert equal(found.state_dict(), model.state_dict())
    assert found.preprocess is not None
    assert found.preprocess.mean == swindow.preprocess.IMAGENET_MEAN
    with pytest.warns(AssumedWarning, match="assumed ImageNet's mean"):
        assert load(bare, image_size=32).preprocess.size == (32, 32)  # type: ignore[union-attr]


def test_a_file_s_name_speaks_for_it(bare: Path) -> None:
    said: list[str] = []
    named = bare.rename(bare.with_name("swin_tiny_patch4_window4_192.pth"))
    assert load(named, say=said.append).config.backbone.image_size == 192
    assert "image_size 192 (from the file's name)" in said[0]


def test_pixels_and_classes_come_from_the_files_beside(model: Model, tmp_path: Path) -> None:
    model.classes = ("ant", "bee", "cat", "dog", "eel")
    model.preprocess = Preprocess(
        size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), fit="squash", crop_ratio=1.0
    )
    folder = convert(save(model, tmp_path / "own"), tmp_path / "theirs", to="huggingface")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "model.safetensors")  # without our card: only what transformers knows
    found = load(folder)
    assert (found.classes, found.preprocess) == (model.classes, model.preprocess)
    assert found.config.backbone.image_size == 32


def test_timm_s_config_tells_pixels_and_window(tmp_path: Path) -> None:
    model = build("swin_v2_tiny_w8", num_classes=3, **TINY | {"window": 4})
    scramble(model)
    target = convert(save(model, tmp_path / "own"), tmp_path / "hub", to="timm")
    weights = safetensors.torch.load_file(target / "model.safetensors")
    safetensors.torch.save_file(weights, target / "model.safetensors")
    about = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 0.95,
        "interpolation": "bilinear",
    }
    config = {"architecture": "swinv2_tiny_window2to4_32", "pretrained_cfg": about, "label_names": ["a", "b", "c"]}
    (target / "config.json").write_text(json.dumps(config | {"pretrained_cfg": about}))
    found = load(target)
    assert found.config.backbone.window == 4
    assert found.preprocess == Preprocess(
        size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_ratio=0.95, interpolation="bilinear"
    )
    assert found.classes == ("a", "b", "c")


def test_norms_that_we_do_not_have_are_refused(model: Model, tmp_path: Path) -> None:
    folder = convert(save(model, tmp_path / "own"), tmp_path / "theirs", to="huggingface")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"layer_norm_eps": 1e-6}))
    with pytest.raises(ConfigError, match="layer_norm_eps is 1e-06"):
        load(folder)


def test_another_window_resamples_the_tables(model: Model, bare: Path) -> None:
    said: list[str] = []
    found = load(bare, window=6, say=said.append)
    for block, old in zip(found.backbone.blocks(), model.backbone.blocks(), strict=True):
        expected = resample.bias_table(old.attn.position_bias.table, (4, 4), (6, 6))
        assert torch.equal(block.attn.position_bias.table, expected)
    assert "resized: backbone.stages.0.blocks.0.attn.position_bias.table from 49×1 to 121×1" in said[0]


def test_v2_keeps_the_window_that_its_bias_was_trained_for(tmp_path: Path) -> None:
    model = build("swin_v2_tiny_w8", num_classes=3, **TINY | {"small_maps": "pad"})
    path = save(model, tmp_path / "own")
    found = load(path, window=6)
    assert found.config.backbone.pretrained_windows == ((4, 4), (4, 4))
    offsets = next(found.backbone.blocks()).attn.position_bias.offsets
    assert torch.equal(offsets, log_spaced_offsets((6, 6), (4, 4)).flatten(0, 1))
    bare = convert(path, tmp_path / "bare.pth", to="timm")  # not even an index says which window it is
    with pytest.warns(AssumedWarning, match="pretrained_window"):
        assert load(bare, window=4, image_size=32).config.backbone.window == 4


def test_load_weights_fits_channels_windows_places_and_classes(model: Model, tmp_path: Path) -> None:
    source = build("swin_tiny", num_classes=5, absolute_position=True, **TINY)
    scramble(source)
    path = save(source, tmp_path / "own")
    fields = TINY | {"window": 3, "image_size": 64}
    other = build("swin_tiny", num_classes=2, in_channels=1, absolute_position=True, **fields)
    head = copy.deepcopy(other.head.state_dict())
    report = load_weights(other, path, head="reset", say=None)
    assert torch.equal(
        other.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight.sum(1, keepdim=True)
    )
    table = resample.place_table(source.backbone.absolute_position.table, (16, 16))
    assert torch.equal(other.backbone.absolute_position.table, table)
    assert equal(other.head.state_dict(), head)
    assert len(report.resized) == 4 + 2  # a table for each block; the places, the first convolution
    assert report.reset == ("head.linear.weight", "head.linear.bias")
    assert report.problems == []


@pytest.mark.parametrize("distilled", [False, True])
def test_a_vit_s_positions_fit_another_grid_and_its_kernel_other_channels(distilled: bool, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"dim": 12, "depths": (1, 1), "num_heads": 2}
    name = "deit_tiny_distilled" if distilled else "vit_tiny"
    source = build(name, num_classes=5, image_size=48, **fields)
    scramble(source)
    path = save(source, tmp_path / "own")
    other = build(name, num_classes=5, in_channels=1, image_size=(32, 80), **fields)
    report = load_weights(other, path, say=None)
    assert torch.equal(other.backbone.position_embedding, source.backbone.position_at((2, 5)))
    kernel = source.backbone.patch_embed.proj.weight.sum(1, keepdim=True)
    assert torch.equal(other.backbone.patch_embed.proj.weight, kernel)
    assert len(report.resized) == 2
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(path, image_size=64)(images), source.eval()(images))  # as the forward resamples


@pytest.mark.parametrize("form", ["timm", "huggingface", "torchvision"])
def test_a_vit_s_stages_are_grouped_again(form: str, tmp_path: Path) -> None:
    source = build("vit_tiny", num_classes=5, dim=12, depths=(1, 2), num_heads=2, image_size=32)
    scramble(source)
    path = save(source, tmp_path / "own")
    assert equal(load(convert(path, tmp_path / "x.safetensors", to=form)).state_dict(), source.state_dict())
    other = build("vit_tiny", num_classes=5, dim=12, depths=(1, 2), num_heads=2, image_size=32)
    load_weights(other, convert(path, tmp_path / "x.pth", to=form), say=None)
    assert equal(other.state_dict(), source.state_dict())


def test_a_hybrid_s_stem_fits_other_channels_and_the_patches_of_its_trunk_nothing_else(tmp_path: Path) -> None:
    trunk = ResNetConfig(depths=(1, 1), width=64, norm="group")
    fields: dict[str, Any] = {"dim": 12, "depths": (1,), "num_heads": 2, "image_size": 32}
    source = build("hybrid_small_r26_32", num_classes=2, trunk=trunk, **fields)
    path = save(source, tmp_path / "own")
    other = build("hybrid_small_r26_32", num_classes=2, in_channels=1, trunk=trunk, **fields)
    assert len(load_weights(other, path, say=None).resized) == 1
    wide = build("hybrid_small_r26_32", num_classes=2, trunk=dataclasses.replace(trunk, width=128), **fields)
    with pytest.raises(CheckpointError, match=r"backbone\.patch_embed\.proj\.weight is "):
        load_weights(wide, path, say=None)


def test_another_image_size_is_the_pixels_size_too(tmp_path: Path) -> None:
    model = build("swin_nano", num_classes=2)
    model.preprocess = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    path = save(model, tmp_path / "own")
    assert load(path, window=4).preprocess == model.preprocess
    assert load(path, image_size=64).preprocess == dataclasses.replace(model.preprocess, size=(64, 64))


@pytest.mark.parametrize("field", ["num_classes", "in_channels"])
def test_load_says_where_other_classes_and_channels_are_asked_for(field: str, bare: Path) -> None:
    with pytest.raises(ConfigError, match=rf"swindow\.load_weights\(swindow\.build\(…, {field}=1\), path, head="):
        load(bare, image_size=32, **{field: 1})


def test_a_dense_backbone_takes_a_classifier_s_weights_and_says_which_norms_are_its_own(
    model: Model, bare: Path
) -> None:
    body = backbone("swin_tiny", out_stages=(0, 1), **TINY)
    said: list[str] = []
    report = load_weights(body, bare, say=said.append)
    assert report.reset == ("backbone.norms.0.weight", "backbone.norms.0.bias")
    assert "head.linear.weight" in report.dropped
    assert torch.equal(body.body.norms["1"].weight, model.backbone.norms["1"].weight)
    assert said == [str(report)]


def test_a_detector_s_backbone_loads_with_the_norms_of_its_stages(model: Model, tmp_path: Path) -> None:
    dense = backbone("swin_tiny", out_stages=(0, 1), **TINY | {"small_maps": "pad_shift"})
    scramble(dense)
    state = {f"backbone.{name.removeprefix('body.')}": x for name, x in dense.state_dict().items()}
    from swindow.checkpoints.formats import format_named

    theirs = format_named("openmmlab", "swin").write(state, dense.body.config)
    beside = {"neck.lateral_convs.0.conv.weight": torch.ones(2, 2), "rpn_head.rpn_cls.bias": torch.ones(3)}
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs | beside}, tmp_path / "detector.pth")
    other = backbone("swin_tiny", out_stages=(0, 1), **TINY | {"small_maps": "pad_shift"})
    report = load_weights(other, tmp_path / "detector.pth", say=None)
    assert equal(other.state_dict(), dense.state_dict())
    assert set(beside) <= set(report.dropped)
    features = load(tmp_path / "detector.pth", image_size=32, say=lambda _: None)  # without a head: features
    assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 24)
    assert features.config.backbone.small_maps == "pad_shift"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda state: state.pop("norm.bias"), r"missing backbone\.norms\.1\.bias"),
        (lambda state: state.update(extra=torch.ones(1)), "unexpected extra"),
        (
            lambda state: state.update({"head.weight": state["head.weight"].T.contiguous()}),
            r"head\.linear\.weight is 24×5, the model's is 5×24.*head=\"reset\"",
        ),
        (
            lambda state: state.update({"layers.0.blocks.0.mlp.fc1.weight": torch.ones(12, 48)}),
            r"mlp\.fc1\.weight is 12×48, the model's is 48×12",
        ),
        (lambda state: state.update({"norm.weight": torch.full((24,), float("nan"))}), "norm.weight.*not finite|NaN"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_touched(
    model: Model, bare: Path, spoil: Any, says: str, tmp_path: Path
) -> None:
    state = torch.load(bare, weights_only=True)["model"]
    spoil(state)
    torch.save(state, tmp_path / "spoilt.pth")
    other = build("swin_tiny", num_classes=5, **TINY)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        load_weights(other, tmp_path / "spoilt.pth")
    assert equal(other.state_dict(), before)


def test_all_problems_come_in_one_message(model: Model, bare: Path, tmp_path: Path) -> None:
    other = build("swin_tiny", num_classes=2, **TINY | {"dim": 8})
    with pytest.raises(CheckpointError) as caught:
        load_weights(other, bare)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("the model's is") > 10


def test_another_family_is_refused(bare: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit this vit_tiny"):
        load_weights(build("vit_tiny", num_classes=5, dim=12, num_heads=1, depths=(1, 1)), bare)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda path: load(path, windwo=8), UnknownName, "unknown field 'windwo'; did you mean window"),
        (
            lambda path: convert(path, path.with_name("x.pth"), to="tim"),
            UnknownName,
            "unknown format 'tim'; did you mean timm",
        ),
        (lambda path: convert(path, path.with_name("x.pth"), to="facebook"), CheckpointError, "cannot hold a swin"),
        (lambda path: convert(path, path.with_name("x.jpg"), to="timm"), CheckpointError, r"give a \.safetensors file"),
        (
            lambda path: load("swin_tiny.ms_in2k"),
            UnknownName,
            "did you mean swin_tiny.ms_in1k|did you mean swin_tiny.ms_in22k",
        ),
        (lambda path: load(path, window=0), ConfigError, "window 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::swindow.checkpoints.AssumedWarning")
def test_a_wrong_word_is_one_line(bare: Path, make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make(bare)


def test_non_square_windows_need_a_word(tmp_path: Path) -> None:
    model = build("swin_tiny", num_classes=5, **TINY | {"window": ((2, 4), (2, 4))})
    scramble(model)
    bare = convert(save(model, tmp_path / "own"), tmp_path / "weights.pth", to="timm")
    with pytest.raises(ConfigError, match="a bias table of 21 rows is for no square window; say which"):
        load(bare)
    found = load(bare, window=((2, 4), (2, 4)), image_size=32, say=lambda _: None)
    assert equal(found.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("name", "field", "form"),
    [
        ("swin_tiny", {"shifted": False}, "timm"),  # in a file it would be a model that shifts
        ("swin_tiny", {"relative_bias": False}, "huggingface"),
        ("swin_tiny", {"absolute_position": True}, "timm"),
        ("swin_tiny", {"qkv_bias": False}, "torchvision"),
        ("swin_v2_tiny_w8", {"extra_norm_every": 2}, "timm"),
        ("vit_tiny", {"class_token": False, "pool": "mean"}, "torchvision"),
        ("vit_tiny", {"pool": "mean"}, "huggingface"),
    ],
)
def test_what_a_class_has_no_choice_in_is_refused(name: str, field: dict[str, Any], form: str, tmp_path: Path) -> None:
    shape = TINY if name.startswith("swin") else {"dim": 12, "depths": (1,), "num_heads": 2, "image_size": 32}
    path = save(build(name, num_classes=5, **shape, **field), tmp_path / "own")
    key, value = next(iter(field.items()))
    with pytest.raises(CheckpointError, match=rf"{form} has {key} .*; this model has {value!r}; choose another format"):
        convert(path, tmp_path / "x.pth", to=form)


@pytest.mark.filterwarnings("ignore:.*small_maps:swindow.checkpoints.AssumedWarning")
@pytest.mark.parametrize("form", ["microsoft_dense", "microsoft_simmim"])
def test_a_backbone_alone_says_that_the_head_stays_behind_and_loads(model: Model, form: str, tmp_path: Path) -> None:
    model.classes = ("ant", "bee", "cat", "dog", "eel")
    said: list[str] = []
    there = convert(save(model, tmp_path / "own"), tmp_path / "x.safetensors", to=form, say=said.append)
    assert said[-1].strip() == f"{form} holds a backbone alone: the head stays behind"
    found = load(there)
    assert (found.config.head.num_classes, found.classes) == (0, None)
    assert equal(found.backbone.state_dict(), model.backbone.state_dict())


def test_one_window_is_all_that_some_formats_have(tmp_path: Path) -> None:
    model = build("swin_tiny", num_classes=5, **TINY | {"window": (4, 2)})
    for form in ("torchvision", "huggingface", "openmmlab"):
        with pytest.raises(CheckpointError, match=f"{form} has one square window for all stages"):
            convert(save(model, tmp_path / "own"), tmp_path / "x.pth", to=form)


def test_predict_and_evaluate_take_the_pixels_that_came_with_the_weights(model: Model, tmp_path: Path) -> None:
    model.preprocess = Preprocess(size=(32, 32), mean=(0.3,) * 3, std=(0.2,) * 3)
    target = convert(save(model, tmp_path / "own"), tmp_path / "timm.safetensors", to="timm")
    predictor = swindow.Predictor(target)
    photo = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    expected = nn.functional.softmax(model(model.preprocess(photo)[None]), -1)[0]
    best = predictor(photo)
    assert best.probabilities == pytest.approx(expected.detach().numpy(), rel=1e-2)  # bf16, where the machine has it
