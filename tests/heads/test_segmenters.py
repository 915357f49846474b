"""What every head that names the class of every pixel must do on every kind of backbone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import swindow
from swindow.errors import ConfigError, ShapeError
from swindow.model import MODELS, Model
from swindow.shapes import IGNORE
from tiny_segmenters import HEADS, SEGMENTERS, segmenter, stirred

EVERY = pytest.mark.parametrize(("head", "family"), SEGMENTERS)
HEAD = pytest.mark.parametrize("head", HEADS)


def total(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    outputs, losses = model.outputs_and_losses(images)
    return torch.stack([*losses.values(), *model.head.loss(outputs, labels).values()]).sum()


@EVERY
def test_a_logit_for_every_class_and_pixel_at_any_size(head: str, family: str) -> None:
    """Whole windows, padding everywhere, maps within a window, a single pixel."""
    model = segmenter(head, family)
    for size in ((32, 48), (37, 61), (9, 4), (1, 1)):
        with torch.no_grad():
            logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 5, *size)
        assert torch.isfinite(logits).all()


@EVERY
def test_every_parameter_has_a_gradient(head: str, family: str) -> None:
    model = stirred(segmenter(head, family)).train()
    labels = torch.randint(0, 5, (2, 40, 52))
    labels[:, :7] = IGNORE
    total(model, torch.randn(2, 3, 40, 52), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert "experts" in name or (parameter.grad != 0).any(), name  # no token may have been sent to an expert


@EVERY
def test_two_images_are_as_one_and_one(head: str, family: str) -> None:
    model, images = stirred(segmenter(head, family)).double(), torch.randn(2, 3, 37, 30, dtype=torch.float64)
    with torch.no_grad():
        both = model(images)
        assert torch.equal(model(images), both)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-10)


@EVERY
def test_fp32_and_strides_change_nothing_but_rounding(head: str, family: str) -> None:
    model, images = segmenter(head, family), torch.randn(2, 3, 37, 30)
    with torch.no_grad():
        found = model(images)
        truth = copy.deepcopy(model).double()(images.double())
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-4)
        torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), found, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.to(memory_format=torch.channels_last)(images), found, rtol=0, atol=1e-5)


@HEAD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(head: str, dtype: torch.dtype) -> None:
    model, images = segmenter(head), torch.randn(2, 3, 37, 30)
    expected = model(images).detach()
    low = copy.deepcopy(model).to(dtype)(images.to(dtype)).detach()
    assert low.dtype == dtype
    assert (low.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    with torch.autocast("cpu", dtype):
        loss = total(model.train(), images, torch.randint(0, 5, (2, 37, 30)))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@HEAD
def test_a_single_image_can_be_learned_from(head: str) -> None:
    """Where batch norm would see one value a channel, it is said what to do; groups have no such trouble."""
    images, labels = torch.randn(1, 3, 24, 24), torch.randint(0, 5, (1, 24, 24))
    if head == "upernet":
        with pytest.raises(ShapeError, match="give a batch of 2 or more, or decoder_norm='group'"):
            total(segmenter(head).train(), images, labels)
    model = segmenter(head, **({"decoder_norm": "group"} if head == "upernet" else {})).train()
    total(model, images, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@HEAD
def test_one_class_and_many_channels(head: str) -> None:
    model = segmenter(head, num_classes=1, in_channels=6)
    assert model(torch.randn(1, 6, 20, 20)).shape == (1, 1, 20, 20)


@HEAD
def test_answers_and_labels_of_another_size(head: str) -> None:
    model = segmenter(head).train()
    outputs = model.outputs(torch.randn(2, 3, 24, 20))
    with pytest.raises(ShapeError, match="a pixel is labelled 5; 5 classes are 0 to 4"):
        model.head.loss(outputs, torch.full((2, 24, 20), 5))
    right, counted = model.head.right(outputs, torch.zeros(2, 24, 20, dtype=torch.int64))
    assert 0 <= right <= counted
    right, counted = model.head.right(outputs, torch.full((2, 24, 20), IGNORE))
    assert (right, counted) == (0, 0)


@HEAD
@pytest.mark.parametrize("family", ["swin", "swin_v2", "vit", "resnet"])
def test_checkpointing_changes_no_bit(head: str, family: str) -> None:
    """The decoder's blocks too; their random numbers are drawn twice, alike."""
    plain = segmenter(head, family, noise=0.3).train()
    again = copy.deepcopy(plain)
    again.checkpoint_blocks()
    calls: list[int] = []
    for block in again.blocks():
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    images, labels = torch.randn(2, 3, 24, 20), torch.randint(0, 5, (2, 24, 20))
    gradients = []
    for model in (plain, again):
        torch.manual_seed(7)
        loss = total(model, images, labels)
        loss.backward()
        gradients.append([loss, *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert len(calls) == 2 * len(list(again.blocks()))
    decoders = {"upernet": 0, "unet": 2}
    assert len(list(again.blocks())) == len(list(again.backbone.blocks())) + decoders[head]


@pytest.mark.parametrize("name", ["upernet_swin_nano", "upernet_swin_micro", "unet_swin_nano", "unet_swin_micro"])
def test_small_backbones_have_fewer_stages(name: str) -> None:
    model = swindow.build(name, num_classes=3).eval()
    assert model(torch.randn(1, 3, 50, 33)).shape == (1, 3, 50, 33)


def test_a_single_stage() -> None:
    shape: dict[str, Any] = {"depths": (1,), "num_heads": (2,), "num_classes": 3}
    model = swindow.build("upernet_swin_nano", **shape, decoder_width=8, auxiliary_width=4).train()
    loss = total(model, torch.randn(2, 3, 24, 24), torch.randint(0, 3, (2, 24, 24)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ConfigError, match=r"decoder_depths .* names 1 sizes; a pyramid of 1 maps has 0 to join"):
        swindow.build("unet_swin_nano", **shape)


PUBLISHED = {
    "upernet_swin_tiny": "60M",
    "upernet_swin_small": "81M",
    "upernet_swin_base": "121M",
    "upernet_swin_large": "234M",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name: str) -> None:
    with torch.device("meta"):
        model = swindow.build(name)
    assert f"{sum(x.numel() for x in model.parameters()) / 1e6:.0f}M" == PUBLISHED[name]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 27_168_900),
        ({"num_classes": 4}, 27_168_420),
        ({"depths": (2, 2, 6, 2), "decoder_depths": (6, 2, 2)}, 41_380_836),
    ],
)
def test_parameters_of_swin_unet(fields: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = swindow.build("swin_unet", **fields)
    assert sum(x.numel() for x in model.parameters()) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds_and_gives_pixels(name: str) -> None:
    with torch.device("meta"):
        model = swindow.build(name).eval()
        swindow.use_backend(model, "reference") if any(hasattr(x, "backend") for x in model.modules()) else None
        assert model(torch.empty(1, 3, 70, 45)).shape == (1, model.config.head.num_classes, 70, 45)
