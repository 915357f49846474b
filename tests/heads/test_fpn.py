"""The feature pyramid against torchvision's, and its extra levels."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from swindow.heads.fpn import FPN
from tiny_rcnns import CHANNELS, STRIDES, batch, stirred


def theirs(fpn: FPN, extra: torch.nn.Module) -> FeaturePyramidNetwork:
    """torchvision's with the same weights."""
    other = FeaturePyramidNetwork(list(CHANNELS), 16, extra)
    names = {"inner_blocks.{}.0": fpn.laterals, "layer_blocks.{}.0": fpn.smooths, "extra_blocks.p{}": fpn.extras}
    state = {}
    for name, layers in names.items():
        for number, layer in enumerate(layers, start=6 if "extra" in name else 0):
            state |= {f"{name.format(number)}.{part}": value for part, value in layer.state_dict().items()}
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("kind", ["pool", "relu_conv"])
@pytest.mark.parametrize("size", [(96, 160), (32, 32)], ids=str)
def test_levels_are_torchvision_s(kind: str, size: tuple[int, int]) -> None:
    count = 1 if kind == "pool" else 2
    fpn = stirred(FPN(CHANNELS, STRIDES, 16, extra=kind, extra_levels=count))  # type: ignore[arg-type]
    other = theirs(fpn, LastLevelMaxPool() if kind == "pool" else LastLevelP6P7(CHANNELS[-1], 16))
    maps, _ = batch(size)
    expected = other(OrderedDict((str(i), x.permute(0, 3, 1, 2)) for i, x in enumerate(maps)))
    found = fpn(maps)
    assert fpn.strides == (4, 8, 16, 32, 64, 128)[: len(found)]
    assert len(found) == len(expected) == 4 + count
    for mine, other_level in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(mine, other_level, rtol=1e-4, atol=1e-4)


def test_openmmlab_s_extra_levels_have_no_relu() -> None:
    fpn = stirred(FPN(CHANNELS, STRIDES, 16, extra="conv", extra_levels=2))
    maps, _ = batch((96, 160))
    *_, sixth, seventh = fpn(maps)
    torch.testing.assert_close(sixth, fpn.extras[0](maps[-1].permute(0, 3, 1, 2)))
    torch.testing.assert_close(seventh, fpn.extras[1](sixth))
    assert not torch.allclose(seventh, fpn.extras[1](F.relu(sixth)))


def test_maps_of_odd_sides() -> None:
    fpn = FPN((8, 8), (4, 8), 16, extra_levels=2)
    found = fpn((torch.randn(1, 7, 5, 8), torch.randn(1, 4, 3, 8)))
    assert [tuple(x.shape[2:]) for x in found] == [(7, 5), (4, 3), (2, 2), (1, 1)]


def test_maps_of_one_stride_become_a_pyramid() -> None:
    fpn = FPN((16,) * 4, (16,) * 4, 8)
    found = fpn(tuple(torch.randn(2, 4, 6, 16) for _ in range(4)))
    assert fpn.strides == (4, 8, 16, 32, 64)
    assert [tuple(x.shape) for x in found] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3), (2, 8, 1, 2)]


@pytest.mark.parametrize("kind", ["pool", "conv", "relu_conv"])
def test_everything_learns(kind: str) -> None:
    fpn = stirred(FPN(CHANNELS, STRIDES, 16, extra=kind, extra_levels=2))  # type: ignore[arg-type]
    levels: tuple[Tensor, ...] = fpn(batch((64, 64))[0])
    torch.stack([x.square().sum() for x in levels]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fpn.parameters())
