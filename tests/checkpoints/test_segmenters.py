"""Segmenters through files: ours, and everybody else's in ours and ours in theirs, the same numbers out."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import swindow
from original_segmenters import SwinUnet, UperNet, names_of_swin_unet, names_of_upernet
from original_swin import openmmlab, same
from swindow.checkpoints import AssumedWarning, convert, load, open_weights, save
from swindow.checkpoints.own import card_text
from swindow.errors import CheckpointError, ConfigError
from swindow.heads import UperNetConfig
from swindow.model import Model, build
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vit_peers import scramble

TINY: dict[str, Any] = {"dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4), "num_classes": 5, "window": 4}
UPERNET: dict[str, Any] = TINY | {"decoder_width": 16, "auxiliary_width": 8, "image_size": 64}
CLASSES = ("background", "road", "tree", 'a "lake"', "дом")
COLOURS = ((0, 0, 0), (128, 64, 128), (0, 255, 0), (0, 0, 255), (7, 8, 9))


def ready(model: Model) -> Model:
    """With numbers everywhere, statistics and counters included, and all that travels with weights."""
    scramble(model)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(len(name))
    model.classes, model.colours = CLASSES, COLOURS
    model.preprocess = Preprocess(size=(64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="short")
    return model.eval()


@pytest.fixture
def upernet() -> Model:
    torch.manual_seed(0)
    return ready(build("upernet_swin_tiny", small_maps="pad_shift", **UPERNET))


@pytest.fixture
def swin_unet() -> Model:
    """Its first stages' maps are larger than a window, the last is as large as one, as the published one's."""
    torch.manual_seed(0)
    model = ready(build("swin_unet", image_size=128, **TINY))
    model.preprocess = Preprocess(size=(128, 128), mean=(0.0,) * 3, std=(1.0,) * 3, fit="squash")
    return model


def quietly(path: Path, **fields: Any) -> tuple[Model, str]:
    said: list[str] = []
    return load(path, say=said.append, **fields), said[0]


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    assert list(found.state_dict()) == list(state)
    assert [name for name, x in found.state_dict().items() if not torch.equal(x, state[name])] == []


def assert_close(found: Tensor, expected: Tensor, close: float) -> None:
    assert found.shape == expected.shape
    assert (expected - expected[:, :1]).abs().max() > 0.1  # a comparison of noughts proves nothing
    assert (found - expected).abs().max() <= close * expected.abs().max().clamp(min=1)


# -- our own -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("upernet_swin_tiny", UPERNET),
        ("upernet_swin_v2_tiny_w8", UPERNET),
        ("upernet_resnet_18", {"width": 16, "decoder_width": 16, "auxiliary_width": 8, "num_classes": 5}),
        ("unet_swin_tiny", TINY | {"decoder_depths": (1, 2, 3), "decoder_window": 3}),
        ("swin_unet_v2", TINY),
    ],
)
def test_a_checkpoint_alone_rebuilds_a_segmenter(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = ready(build(name, **fields))
    found = load(save(model, tmp_path / "own"))
    assert (found.config, found.preprocess) == (model.config, model.preprocess)
    assert (found.classes, found.colours) == (CLASSES, COLOURS)
    assert_same_state(found, model)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(images), model(images))


def test_a_card_of_before_there_were_segmenters_is_read(tmp_path: Path) -> None:
    model = build("swin_nano", num_classes=3, dim=16, depths=(1, 1), num_heads=(1, 2), window=4)
    lines = card_text(model).splitlines()
    old = "\n".join(line for line in lines if not line.startswith("colours"))
    assert len(old.splitlines()) == len(lines) - 1
    safetensors.torch.save_file(model.state_dict(), tmp_path / "old.safetensors", metadata={"swindow": old})
    found = load(tmp_path / "old.safetensors")
    assert (found.config, found.colours) == (model.config, None)


@pytest.mark.parametrize(
    ("field", "value"), [("decoder_depths", (2, 2, 1)), ("decoder_window", 3), ("num_classes", 7), ("dice", 1.0)]
)
def test_a_head_s_fields_cannot_be_changed_on_loading(field: str, value: Any, swin_unet: Model, tmp_path: Path) -> None:
    own = save(swin_unet, tmp_path / "own")
    with pytest.raises(ConfigError, match=rf"load keeps a file's {field}, .*build\(…, {field}="):
        load(own, **{field: value})
    assert_same_state(load(own, decoder_depths=[2, 2, 2]), swin_unet)  # what it is may be said


def test_another_window_resamples_the_decoder_s_tables_too(swin_unet: Model, tmp_path: Path) -> None:
    found, report = quietly(save(swin_unet, tmp_path / "own"), window=5)
    own = dict(swin_unet.named_parameters())
    for name, table in found.named_parameters():
        if name.endswith("position_bias.table"):
            expected = swindow.ops.resample.bias_table(own[name].detach(), (4, 4), (5, 5))
            assert torch.equal(table, expected), name
    assert f"{(4 + 3) * 2} tensors" not in report
    assert "and 8 more" in report  # 14 tables, of which the report names 6


@pytest.mark.parametrize(
    "change",
    [
        ("decoder_width = 16", "decoder_width = 1000000000"),
        ("pools = [\n    1,\n    2,\n    3,\n    6,\n]", f"pools = {[1] * 3000}"),
        ("num_classes = 5", "num_classes = 1000000000"),
        ("auxiliary_width = 8", "auxiliary_width = 1000000000"),
    ],
)
def test_a_card_that_asks_for_a_far_larger_head_is_refused(
    change: tuple[str, str], upernet: Model, tmp_path: Path
) -> None:
    text = card_text(upernet)
    assert change[0] in text
    path = tmp_path / "bomb.safetensors"
    safetensors.torch.save_file(upernet.state_dict(), path, metadata={"swindow": text.replace(*change)})
    with pytest.raises(CheckpointError, match="far larger than its weights"):
        load(path)


# -- mmsegmentation and the fork ---------------------------------------------------------------------------------------

DENSE: dict[str, dict[str, Any]] = {
    "microsoft_dense": {"names": same},
    "openmmlab": {"names": openmmlab, "unfold": True},
}


@pytest.mark.parametrize("form", DENSE)
@pytest.mark.parametrize("size", [(64, 64), (72, 40)])
def test_a_published_upernet_s_names_and_equations_give_our_logits(
    form: str, size: tuple[int, int], upernet: Model, tmp_path: Path
) -> None:
    there = convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.pth", to=form)
    content = torch.load(there, weights_only=True)
    assert content["meta"]["CLASSES"] == CLASSES
    assert content["meta"]["dataset_meta"]["palette"] == [list(colour) for colour in COLOURS]
    state = content["state_dict"]
    assert set(state) == names_of_upernet(fork=form == "microsoft_dense", depths=TINY["depths"])
    options = DENSE[form] | {"depths": TINY["depths"], "heads": TINY["num_heads"], "windows": (4,) * 4}
    oracle = UperNet(state, shift_small=True, **options)
    found, _ = quietly(there)
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(found.double()(images), oracle.logits(images), 1e-10)
        early = found.head.auxiliary(found.backbone(images)[2].permute(0, 3, 1, 2))
        assert_close(early, oracle.auxiliary(images), 1e-10)


@pytest.mark.parametrize("form", DENSE)
def test_theirs_come_back_with_statistics_classes_colours_and_how_they_are_evaluated(
    form: str, upernet: Model, tmp_path: Path
) -> None:
    there = convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.pth", to=form)
    with pytest.warns(AssumedWarning, match=r"image_size 512 .*pools \(1, 2, 3, 6\) .*the short side made 512 pixels"):
        found = load(there)
    assert_same_state(found, upernet)
    assert (found.classes, found.colours) == (CLASSES, COLOURS)
    assert found.preprocess == Preprocess(
        size=(512, 512), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="short", interpolation="bilinear"
    )
    assert found.config.head == upernet.config.head
    assert found.config.name == "upernet_swin_nano"  # the nearest by its windows
    assert load(there, image_size=640, say=lambda _: None).preprocess.size == (640, 640)  # type: ignore[union-attr]
    whole = convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.safetensors", to=form)
    again = load(whole)  # our card lies in it: nothing is assumed
    assert (again.config, again.colours, again.preprocess) == (upernet.config, COLOURS, upernet.preprocess)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": CLASSES, "PALETTE": [list(colour) for colour in COLOURS]},
        {"dataset_meta": {"classes": list(CLASSES), "palette": COLOURS}, "cfg": "model = dict()"},
        {"dataset_meta": {"CLASSES": list(CLASSES), "PALETTE": COLOURS}},
    ],
    ids=["0.x", "1.x", "1.0"],
)
def test_either_generation_s_classes_are_read(meta: dict[str, Any], upernet: Model, tmp_path: Path) -> None:
    state = torch.load(
        convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.pth", to="openmmlab"), weights_only=True
    )["state_dict"]
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    found, report = quietly(tmp_path / "a.pth")
    assert (found.classes, found.colours) == (CLASSES, COLOURS)
    assert "took classes and palette of 'meta'" in report


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"CLASSES": CLASSES, "PALETTE": torch.zeros(5, 3)}, "palette of 'meta'"),
        ({"CLASSES": CLASSES, "PALETTE": [[0, 0, 256]] * 5}, "palette of 'meta'"),
        ({"CLASSES": [1, 2, 3, 4, 5]}, "classes of 'meta'"),
        ({"CLASSES": ["a\x1b[31m"] * 5}, "classes of 'meta'"),
        ({"CLASSES": object.__class__}, "classes of 'meta'"),
    ],
)
def test_what_is_not_plain_is_ignored_by_name(meta: dict[str, Any], says: str, upernet: Model, tmp_path: Path) -> None:
    state = torch.load(
        convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.pth", to="openmmlab"), weights_only=True
    )["state_dict"]
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    found, report = quietly(tmp_path / "a.pth")
    assert f"ignored: {says}" in report
    assert (found.classes, found.colours) == (CLASSES if says.startswith("palette") else None, None)


def test_a_decoder_that_we_lack_is_an_error_and_one_of_another_name_is_left_behind(
    upernet: Model, tmp_path: Path
) -> None:
    there = convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.pth", to="openmmlab")
    state = torch.load(there, weights_only=True)["state_dict"]
    torch.save(state | {"auxiliary_head.convs.1.conv.weight": torch.ones(8, 8, 3, 3)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"unexpected auxiliary_head\.convs\.1\.conv\.weight"):
        load(tmp_path / "more.pth", say=lambda _: None)
    other = {name.replace("fpn_bottleneck", "fusion"): x for name, x in state.items()}
    torch.save(other, tmp_path / "other.pth")
    found, _ = quietly(tmp_path / "other.pth")  # its backbone alone
    assert (found.task, found.config.head.num_classes) == ("classify", 0)
    assert "decode_head.fusion.conv.weight" in open_weights(tmp_path / "other.pth").weights.dropped


def test_a_file_without_the_second_classifier_or_counters_loads(upernet: Model, tmp_path: Path) -> None:
    there = convert(save(upernet, tmp_path / "own"), tmp_path / "theirs.pth", to="microsoft_dense")
    state = torch.load(there, weights_only=True)["state_dict"]
    kept = {
        name: x
        for name, x in state.items()
        if not name.startswith("auxiliary_head.") and not name.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": kept}, tmp_path / "less.pth")
    found, report = quietly(tmp_path / "less.pth")
    assert found.config.head.auxiliary == 0
    assert "reset: head.pooled.0.norm.num_batches_tracked" in report
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(images), upernet(images))


# -- transformers ------------------------------------------------------------------------------------------------------


def of_transformers(**changes: Any) -> nn.Module:
    from transformers import SwinConfig
    from transformers import UperNetConfig as TheirConfig
    from transformers import UperNetForSemanticSegmentation as Theirs

    shape = {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 4], "window_size": 4, "image_size": 64}
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    named = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    body = SwinConfig(**shape, out_features=stages)
    config = TheirConfig(backbone_config=body, hidden_size=16, auxiliary_channels=8, **named, **changes)
    model = Theirs(config).eval()
    scramble(model)
    return model


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("size", [(64, 64), (72, 40)])
def test_transformers_upernet_gives_its_logits_here(
    dtype: torch.dtype, close: float, size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = of_transformers(pool_scales=[1, 2, 4, 5])
    theirs.save_pretrained(tmp_path / "theirs")
    found, report = quietly(tmp_path / "theirs")
    assert "huggingface format, upernet_swin_nano" in report
    assert found.classes == CLASSES
    assert found.config.head == UperNetConfig(num_classes=5, decoder_width=16, pools=(1, 2, 4, 5), auxiliary_width=8)
    images = torch.randn(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        expected = theirs.to(dtype)(images)
        assert_close(found.to(dtype)(images), expected.logits, close)


def test_transformers_loads_what_we_write_and_nothing_is_left_over(upernet: Model, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, UperNetForSemanticSegmentation

    folder = convert(save(upernet, tmp_path / "own"), tmp_path / "theirs", to="huggingface")
    theirs, about = UperNetForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(about.values())
    assert tuple(theirs.config.id2label.values()) == CLASSES
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(upernet(images), theirs.eval()(images).logits, 1e-4)
        early = theirs.auxiliary_head([None, None, upernet.backbone(images)[2].permute(0, 3, 1, 2)])
        assert_close(upernet.head.auxiliary(upernet.backbone(images)[2].permute(0, 3, 1, 2)), early, 1e-4)
    photo = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8)
    upernet.preprocess = Preprocess(size=(64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="short")
    pixels = AutoImageProcessor.from_pretrained(folder)(images=photo, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == upernet.preprocess(photo).shape == (3, 64, 115)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "model.safetensors")  # without our card: what transformers knows
    found, _ = quietly(folder)
    assert_same_state(found, upernet)
    assert (found.classes, found.preprocess) == (CLASSES, upernet.preprocess)


@pytest.mark.parametrize(
    ("about", "fit"),
    [
        ({"size": {"height": 48, "width": 64}}, "squash"),
        ({"size": {"shortest_edge": 48}}, "short"),
        ({"size": {"height": 48, "width": 64}, "do_resize": False}, "native"),
    ],
)
def test_a_processor_s_word_goes_before_what_is_usual(about: dict[str, Any], fit: str, tmp_path: Path) -> None:
    of_transformers().save_pretrained(tmp_path / "theirs")
    folder = tmp_path / "theirs"
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels | about))
    preprocess = load(folder).preprocess
    size = (48, 48) if fit == "short" else (48, 64)
    assert preprocess == Preprocess(
        size=size,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        fit=fit,  # type: ignore[arg-type]
        interpolation="bilinear",
    )


def test_pixels_that_transformers_cannot_prepare_are_said(upernet: Model, tmp_path: Path) -> None:
    upernet.preprocess = Preprocess(size=(64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="pad")
    own = save(upernet, tmp_path / "own")
    with pytest.warns(AssumedWarning, match="no name for fit 'pad' and zoom 1"):
        folder = convert(own, tmp_path / "theirs", to="huggingface")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_its_upernet_on_a_swinv2_is_refused(tmp_path: Path) -> None:
    from transformers import Swinv2Config
    from transformers import UperNetConfig as TheirConfig
    from transformers import UperNetForSemanticSegmentation as Theirs

    shape = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32}
    body = Swinv2Config(**shape, out_features=["stage1", "stage2"])
    Theirs(TheirConfig(backbone_config=body, hidden_size=8, use_auxiliary_head=False)).save_pretrained(tmp_path / "v2")
    with pytest.raises(CheckpointError, match="the tensors are a swin_v2's, and transformers' UperNet on a Swin"):
        load(tmp_path / "v2")


# -- Swin-Unet ---------------------------------------------------------------------------------------------------------


def test_swin_unet_s_names_and_equations_give_our_logits(swin_unet: Model, tmp_path: Path) -> None:
    there = convert(save(swin_unet, tmp_path / "own"), tmp_path / "theirs.pth", to="swin_unet")
    state = torch.load(there, weights_only=True)
    assert set(state) == names_of_swin_unet(masked=(True, True, True, False))
    masks = {name: x.shape[0] for name, x in state.items() if name.endswith("attn_mask")}
    assert masks["swin_unet.layers_up.3.blocks.1.attn_mask"] == 64  # 32 tokens a side, in windows of 4
    oracle = SwinUnet(state, depths=(2, 2, 2, 2), heads=TINY["num_heads"], windows=(4, 4, 4, 4))
    images = torch.randn(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        assert_close(swin_unet.double()(images), oracle.logits(images), 1e-10)


@pytest.mark.parametrize("before", ["module.swin_unet.", "swin_unet.", "module.", ""])
def test_swin_unet_comes_back_under_any_of_its_prefixes(before: str, swin_unet: Model, tmp_path: Path) -> None:
    there = convert(save(swin_unet, tmp_path / "own"), tmp_path / "theirs.pth", to="swin_unet")
    state = torch.load(there, weights_only=True)
    torch.save({before + name.removeprefix("swin_unet."): x for name, x in state.items()}, tmp_path / "x.pth")
    with pytest.warns(AssumedWarning, match=r"x\.pth: assumed values in 0\.\.1, grey ones in every channel"):
        found = load(tmp_path / "x.pth")  # nothing else: its masks tell the image size
    assert_same_state(found, swin_unet)
    assert (found.config.name, found.config.backbone.image_size) == ("swin_unet", 128)
    assert found.config.head == swin_unet.config.head.__class__(num_classes=5, decoder_depths=(2, 2, 2))
    assert found.preprocess == swin_unet.preprocess
    assert (found.classes, found.colours) == (None, None)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(found(images), swin_unet(images))


def test_a_published_swin_unet_has_the_keys_of_its_source(tmp_path: Path) -> None:
    model = build("swin_unet", dim=12, num_heads=(1, 2, 3, 4))  # windows of 7 on 224 pixels, as published
    there = convert(save(model, tmp_path / "own"), tmp_path / "theirs.pth", to="swin_unet")
    state = torch.load(there, weights_only=True)
    assert set(state) == names_of_swin_unet(masked=(True, True, True, False))
    assert load(there, say=lambda _: None).preprocess.size == (224, 224)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "fields", "form", "says"),
    [
        (
            "unet_swin_tiny",
            {"depths": (2, 2, 6, 2)},
            "swin_unet",
            r"has a decoder of the encoder's own blocks, \(6, 2, 2",
        ),
        ("swin_unet", {"decoder_window": 3}, "swin_unet", "has the encoder's windows; this decoder's are 3"),
        ("swin_unet", {"patch": 2}, "swin_unet", "has patch 4; this model has 2"),
        (
            "swin_unet",
            {"depths": (1, 1, 1), "num_heads": (1, 2, 3), "decoder_depths": (1, 1)},
            "swin_unet",
            "has 4 stages",
        ),
        ("swin_unet_v2", {}, "swin_unet", "the swin_unet format cannot hold a swin_v2; it holds swin"),
        (
            "swin_unet",
            {},
            "timm",
            "cannot hold a swin with a unet head, only with a classifier; give swin_unet or swindow",
        ),
        ("upernet_swin_tiny", {}, "torchvision", "give huggingface or microsoft_dense or openmmlab or swindow"),
        (
            "upernet_swin_tiny",
            {"decoder_norm": "group"},
            "openmmlab",
            "has decoder_norm 'batch'; this model has 'group'",
        ),
        ("upernet_swin_v2_tiny_w8", {}, "huggingface", "cannot hold a swin_v2 with a upernet head"),
        ("upernet_resnet_18", {}, "openmmlab", "cannot hold a resnet with a upernet head, only with a mask_rcnn or"),
        ("swin_tiny", {}, "swin_unet", "cannot hold a swin with a classifier head, only with a unet"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*small_maps:swindow.checkpoints.AssumedWarning")
def test_what_a_class_cannot_build_is_refused(
    name: str, fields: dict[str, Any], form: str, says: str, tmp_path: Path
) -> None:
    shape = {"width": 8} if "resnet" in name else TINY | {"image_size": 64}
    if name.startswith("upernet"):
        shape |= {"decoder_width": 8, "auxiliary_width": 8, "num_classes": 5}
    path = save(build(name, **shape | fields), tmp_path / "own")
    with pytest.raises(CheckpointError, match=says) as caught:
        convert(path, tmp_path / "x.pth", to=form)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.pth").exists()
