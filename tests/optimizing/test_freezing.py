"""Frozen copies: the same outputs to the bit, constants that are constant, and an original that is left alone."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from swin_v2_models import drawn
from swindow.backbones.swin_v2 import LogSpacedBias, QkvLinear
from swindow.backbones.windowed import RelativeBias, WindowAttention
from swindow.model import MapBackbone, Model, build
from swindow.optimizing.freezing import Constant, frozen

SHAPE: dict[str, Any] = {"num_classes": 5, "dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny", SHAPE | {"image_size": 16}),
    "swin without biases": ("swin_tiny", SHAPE | {"image_size": 16, "relative_bias": False, "qkv_bias": False}),
    "swin with places": ("swin_tiny", SHAPE | {"image_size": 16, "absolute_position": True}),
    "swin_v2": ("swin_v2_tiny_w8", SHAPE | {"image_size": 16, "extra_norm_every": 2}),
    "swin_v2 without biases": ("swin_v2_tiny_w8", SHAPE | {"relative_bias": False, "qkv_bias": False}),
    "swin_mlp": ("swin_mlp_tiny_c6", SHAPE | {"image_size": 16}),
    "swin_moe": ("swin_moe_small_e8", SHAPE | {"image_size": 16, "routed": ((0,), (1,)), "experts": 3}),
    "vit": ("vit_tiny", {"num_classes": 5, "dim": 8, "depths": (2,), "num_heads": 2, "patch": 4, "image_size": 16}),
}


def model_of(family: str) -> Model:
    name, fields = FAMILIES[family]
    return drawn(build(name, **fields)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(16, 16), (20, 12)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_model_s_to_the_bit(family: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    model, images = model_of(family).to(dtype), torch.randn(3, 3, *size).to(dtype)
    # Where a map is no block of memory, torch folds it or not by whether weights can be trained, rounding otherwise.
    expected = copy.deepcopy(model).requires_grad_(False)(images)
    assert expected.std() > 0
    found = frozen(model)(images)
    assert not found.requires_grad
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_alone(family: str) -> None:
    model = model_of(family).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    still = frozen(model)
    assert not any(module.training for module in still.modules())
    assert not any(parameter.requires_grad for parameter in still.parameters())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    images = torch.randn(2, 3, 16, 16)
    expected = still(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(still(images), expected)


@pytest.mark.parametrize("family", ["swin", "swin_v2", "swin_moe"])
def test_nothing_is_left_that_does_not_depend_on_images(family: str) -> None:
    still = frozen(model_of(family))
    kinds = {type(module) for module in still.modules()}
    assert not kinds & {RelativeBias, LogSpacedBias, QkvLinear}
    attentions = [module for module in still.modules() if isinstance(module, WindowAttention)]
    assert len(attentions) == 4
    for attention in attentions:
        assert isinstance(attention.position_bias, Constant)
        assert attention.position_bias().is_contiguous()
        assert attention.position_bias() is attention.position_bias()
        assert attention.logit_scale is None or isinstance(attention.logit_scale, Constant)


def test_constants_follow_the_copy_to_another_dtype_and_are_those_of_the_wider() -> None:
    model = model_of("swin_v2")
    still = frozen(model).to(torch.bfloat16)
    for found, made in zip(_biases(still), _biases(model), strict=True):
        assert torch.equal(found, made.to(torch.bfloat16))
    assert {x.dtype for x in (*still.parameters(), *still.buffers())} == {torch.bfloat16}


def test_a_backbone_can_be_frozen_too() -> None:
    body = MapBackbone(model_of("swin_v2").backbone)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = body(images)
    assert all(torch.equal(x, y) for x, y in zip(frozen(body)(images), expected, strict=True))


def _biases(model: nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return [module.position_bias() for module in model.modules() if isinstance(module, WindowAttention)]
