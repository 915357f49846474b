"""Explanations of models whose weights are set by hand, so that the right answer is known."""

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from known_models import colour_blobs, noise, ready
from swindow.checkpoints import save
from swindow.errors import CheckpointError, ConfigError, DataError, MissingExtra, UnknownName
from swindow.explanation import Explanation, Frame, explain
from swindow.explanation.tracing import grad_cam, trace
from swindow.model import Model, build

Tiny = Callable[..., Model]
RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("depths", [(2,), (2, 2)])
@pytest.mark.parametrize("stage", [-1, 0])
def test_gradcam_peaks_on_the_patch_that_lights_the_channel(tiny: Tiny, depths: tuple[int, ...], stage: int) -> None:
    model = ready(colour_blobs(tiny(depths=depths, num_heads=(2, 4)[: len(depths)], num_classes=3)), (24, 24))
    photo = np.zeros((24, 24, 3), np.uint8)
    photo[4:8, 16:20], photo[12:16, 8:12] = RED, GREEN
    for target, rows, columns in (("red", (4, 8), (16, 20)), ("green", (12, 16), (8, 12)), (1, (12, 16), (8, 12))):
        result = explain(model, photo, target=target, size="native", stage=stage)
        assert result.target == ("green" if target == 1 else target)
        lit = np.zeros((24, 24), bool)
        lit[slice(*rows), slice(*columns)] = True
        assert result.gradcam.max() == 1
        assert (result.gradcam[lit] > 0.4).all()
        assert result.gradcam[~lit].max() < result.gradcam[lit].max()
        stride = 2 * 2 ** (len(depths) - 1) if stage == -1 else 2
        apart = F.max_pool2d(torch.from_numpy(lit)[None].float(), 2 * stride + 1, 1, stride)[0].numpy() == 0
        assert not result.gradcam[apart].any()  # bilinear: nothing further than a token from the patch
        assert lit[result.point.y, result.point.x]  # nobody chose a point: it is the brightest


def test_gradcam_of_a_class_without_evidence_is_dark(tiny: Tiny) -> None:
    result = explain(ready(colour_blobs(tiny(num_classes=3))), noise(16, 16), target="neither")
    assert not result.gradcam.any()
    assert (result.point.x, result.point.y, result.point.chosen) == (9, 9, False)  # in the middle of the middle token


def test_gradcam_of_the_last_stage_is_the_class_activation_map(tiny: Tiny) -> None:
    model, images = tiny(), torch.randn(1, 3, 26, 34)
    features = model.backbone(images)[-1][0]
    for target in range(5):
        with torch.no_grad():
            found = grad_cam(model, images, target, 1)
        expected = (features @ model.head.linear.weight[target] / features[..., 0].numel()).relu()
        torch.testing.assert_close(found.heat, expected, rtol=1e-4, atol=1e-7)
        assert found.target == target
        torch.testing.assert_close(found.logits, model(images)[0].detach())
    assert grad_cam(model, images, None, 1).target == int(model(images).argmax())


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("photo", "size"), [((40, 60), (16, 16)), ((90, 30), (24, 32)), ((60, 60), (40, 24))])
def test_maps_lie_on_the_pixels_that_they_speak_of(
    tiny: Tiny, fit: str, photo: tuple[int, int], size: tuple[int, int]
) -> None:
    model = ready(
        colour_blobs(tiny(depths=(2,), num_heads=(2,), num_classes=3)), size, fit=fit, interpolation="bilinear"
    )
    top, left, height, width = model.preprocess.region(*photo)
    for down, across in ((0.3, 0.3), (0.7, 0.4), (0.4, 0.8)):
        y, x = int(max(top, 0) + down * min(height, photo[0])), int(max(left, 0) + across * min(width, photo[1]))
        pixels = np.zeros((*photo, 3), np.uint8)
        pixels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = RED
        result = explain(model, pixels, target="red")
        rows, columns = np.indices(photo)
        assert abs(np.average(rows, weights=result.gradcam) - y) <= height / size[0] + 0.5  # half a token of 2 pixels
        assert abs(np.average(columns, weights=result.gradcam) - x) <= width / size[1] + 0.5
        seen = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        np.testing.assert_array_equal(result.frame.seen(), seen)
        assert not result.gradcam[~seen].any()


def test_laying_is_bilinear_and_aligned_to_cells() -> None:
    heat = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    frame = Frame(photo=(20, 28), region=(0.0, 0.0, 20.0, 28.0), input=(20, 28))
    expected = F.interpolate(torch.from_numpy(heat)[None, None], scale_factor=4, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(frame.lay(heat, 4), expected[0, 0].numpy(), atol=1e-6)
    np.testing.assert_array_equal(frame.cells(heat, 4), heat.repeat(4, 0).repeat(4, 1))


def test_laying_a_ramp_gives_a_ramp_on_a_crop() -> None:
    frame = Frame(photo=(90, 70), region=(15.0, 20.0, 60.0, 40.0), input=(30, 20))  # an input pixel is two of the photo
    centres = (np.arange(10, dtype=np.float32) + 0.5) * 2  # of tokens two input pixels wide, in input pixels
    laid = frame.lay(np.tile(centres, (15, 1)), 2)
    positions = (np.arange(70) + 0.5 - 20) / 2
    inner = (positions >= 1) & (positions <= 19)
    np.testing.assert_allclose(laid[40, inner], positions[inner], atol=1e-5)
    assert not laid[:15].any()
    assert not laid[75:].any()
    assert not laid[:, :20].any()
    assert not laid[:, 60:].any()


def test_tokens_pixels_and_boxes_agree() -> None:
    frame = Frame(photo=(90, 70), region=(15.0, 20.0, 60.0, 40.0), input=(30, 20))
    assert frame.token(20, 15, 4) == (0, 0)
    assert frame.token(59, 74, 4) == (7, 4)
    for token in ((0, 0), (3, 2), (7, 4)):
        assert frame.token(*frame.pixel(token, 4), 4) == token
    mask = np.zeros((8, 5), bool)
    mask[6:, 1:3] = True
    assert frame.box(mask, 4) == (15 + 48, 20 + 8, 12, 16)  # the last row's cells end with the input


def test_the_model_is_left_exactly_as_it_was(tiny: Tiny) -> None:
    model = ready(tiny(drop_path=0.3, dropout=0.2)).train()
    model.backbone.stages[1].eval()  # as when part of a model is frozen
    model.head.linear.weight.requires_grad_(False)
    before, state = _attributes(model), copy.deepcopy(model.state_dict())
    results = [explain(model, noise(30, 20), stage=stage) for stage in (0, 1, 1)]
    np.testing.assert_array_equal(results[1].gradcam, results[2].gradcam)  # and dropout was off
    assert _attributes(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything on every module but its tensors: flags, numbers, hooks."""
    skipped = ("_parameters", "_buffers", "_modules")
    return {
        name: {key: copy.copy(value) for key, value in vars(module).items() if key not in skipped}
        | {f"{key}.requires_grad": value.requires_grad for key, value in module.named_parameters(recurse=False)}
        for name, module in model.named_modules()
    }


def test_an_error_inside_gives_the_modes_back_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(tiny()).train()
    monkeypatch.setattr(model.head, "decode", lambda outputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain(model, noise(16, 16))
    assert all(module.training for module in model.modules())


def test_it_works_where_gradients_are_off(tiny: Tiny) -> None:
    model, photo = ready(tiny()), noise(20, 20)
    expected = explain(model, photo).gradcam
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            np.testing.assert_array_equal(explain(model, photo).gradcam, expected)


def test_prediction_is_the_models(tiny: Tiny) -> None:
    model, photo = ready(tiny(num_classes=7)), noise(32, 32)
    model.classes = tuple("abcdefg")
    images = model.preprocess(torch.from_numpy(photo).permute(2, 0, 1))[None]
    probabilities = model(images)[0].softmax(0).detach()
    result = explain(model, photo)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [name for name, _ in result.prediction] == ["abcdefg"[index] for index in order]
    np.testing.assert_allclose([value for _, value in result.prediction], probabilities[order], atol=1e-6)
    assert (result.target, result.probability) == (result.prediction[0][0], pytest.approx(result.prediction[0][1]))


def test_a_saved_model_explains_alike(tiny: Tiny, tmp_path: Path) -> None:
    model, photo = ready(tiny()), noise(20, 30)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    result = explain(save(model, tmp_path / "run"), tmp_path / "photo.png", device="cpu")
    np.testing.assert_array_equal(result.gradcam, explain(model, photo).gradcam)
    assert result.name.endswith("photo.png")
    with pytest.raises(CheckpointError, match="no such"):
        explain(tmp_path / "nothing", photo)


@pytest.mark.parametrize(
    ("size", "pixels"),
    [(24, (24, 24)), ((20, 36), (20, 36)), ("28", (28, 28)), ("20x36", (20, 36)), ("native", (30, 50))],
)
def test_any_input_size(tiny: Tiny, size: Any, pixels: tuple[int, int]) -> None:
    model = ready(tiny())
    result = explain(model, noise(30, 50), size=size)
    assert result.frame.input == pixels
    assert result.stages[0].grid == (pixels[0] // 2, pixels[1] // 2)
    assert result.gradcam.shape == (30, 50)
    assert model.preprocess.size == (16, 16)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"point": (0, 0)}, ConfigError, r"point \(0, 0\).*x from 16 to 33 and y from 6 to 23"),
        ({"point": (50, 10)}, ConfigError, "point"),
        ({"point": (20, -1)}, ConfigError, "point"),
        ({"target": "blu"}, UnknownName, "did you mean blue"),
        ({"target": 3}, ConfigError, "0 to 2"),
        ({"target": "3"}, ConfigError, "0 to 2"),
        ({"stage": 2}, ConfigError, "0 to 1"),
        ({"size": "large"}, ConfigError, "native"),
        ({"size": 0}, ConfigError, "size"),
    ],
)
def test_impossible_wishes_say_what_is_possible(
    tiny: Tiny, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = ready(tiny(num_classes=3), crop_ratio=0.6)
    model.classes = ("red", "green", "blue")
    with pytest.raises(error, match=message):
        explain(model, noise(30, 50), **asked)


def test_a_model_that_does_not_know_its_pixels_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="preprocess"):
        explain(tiny(), noise(30, 50))


@pytest.fixture(name="written", scope="module")
def written_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, list[Path]]:
    from conftest import tiny

    model = ready(tiny(num_classes=3))
    model.classes = ("<b>&amp; $x^2$", "日本", "c" * 90)
    folder = tmp_path_factory.mktemp("out") / "deep" / "er"
    result = explain(model, noise(21, 40), target=0, out=folder)
    return result, sorted(folder.iterdir())


def test_every_picture_is_written(written: tuple[Explanation, list[Path]]) -> None:
    names = {path.name for path in written[1]}
    assert names == {"index.html", "gradcam.png", "rollout.png", "stages.png", "point.png", "point-heads.png",
                     "receptive-field.png", "heads-stage1.png", "heads-stage2.png"}  # fmt: skip
    for path in written[1]:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.width == 1100
                assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 500  # not an empty sheet


def test_the_page_needs_nothing_beside_itself(written: tuple[Explanation, list[Path]]) -> None:
    text = next(path for path in written[1] if path.name == "index.html").read_text(encoding="utf-8")
    links = re.findall(r"(?:src|srcset|href)=\"([^\"]{0,30})", text)
    assert len(links) == 16
    assert all(link.startswith("data:image/webp;base64,") for link in links)
    assert "http" not in text
    assert "<b>&amp; $" not in text
    assert "&lt;b&gt;&amp;amp; $x^2$" in text
    assert "prefers-color-scheme: dark" in text


def test_a_grey_photo_of_an_odd_shape_can_be_drawn(tiny: Tiny, tmp_path: Path) -> None:
    result = explain(ready(tiny(in_channels=1, depths=(1,), num_heads=(2,))), noise(6, 300, 1), size="native")
    paths = result.save(tmp_path)
    assert paths[0].name == "index.html"
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_place_that_cannot_be_written_is_one_clear_line(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file: cannot write an explanation here \(.+\)$"):
        explain(ready(tiny(depths=(1,), num_heads=(2,))), noise(16, 16), out=tmp_path / "file")


def test_without_matplotlib_the_arrays_are_there_and_the_pictures_say_how(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = explain(ready(tiny()), noise(16, 16))
    with pytest.raises(MissingExtra, match=r"swindow\[train\]"):
        result.save(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_v2_is_explained_by_what_its_attention_reads() -> None:
    """Its blocks norm last: attention reads the map itself."""
    shape = {"dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2, "image_size": 16}
    model = ready(build("swin_v2_tiny_w8", num_classes=3, **shape).eval())
    read: list[torch.Tensor] = []
    for block in model.backbone.blocks():
        for parameter in block.parameters():  # zero at first, as norms last are
            nn.init.normal_(parameter, std=0.5)
        block.attn.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    images = torch.randn(1, 3, 20, 16)
    traces = trace(model.backbone, images, [(0, 0), (0, 0)])
    blocks = zip(model.backbone.blocks(), (block for stage in traces for block in stage), read, strict=True)
    for block, found, x in blocks:
        with torch.no_grad():
            expected = block.attn.attention_weights(x)[0]
        assert found.received.shape[1:] == x.shape[1:3]
        assert ((found.received >= 0) & torch.isfinite(found.received)).all()
        if not any(side % 4 for side in x.shape[1:3]):  # without padding nothing is put right afterwards
            torch.testing.assert_close(found.step.weights, expected.mean(1))


def test_what_has_no_window_attention_is_refused() -> None:
    model = ready(build("vit_tiny", num_classes=3, dim=24, depths=(1, 1), image_size=32), size=(32, 32))
    with pytest.raises(ConfigError, match="vit_tiny has no window attention to explain"):
        explain(model, noise(32, 32))


def test_a_mixture_of_experts_is_explained_like_the_swin_that_it_is() -> None:
    fields = {"dim": 16, "depths": (2,), "num_heads": (2,), "window": 4, "patch": 4, "image_size": 32}
    model = ready(build("swin_moe_small_e8", num_classes=3, routed=((1,),), experts=2, **fields), size=(32, 32))
    assert explain(model, noise(32, 32)).target
