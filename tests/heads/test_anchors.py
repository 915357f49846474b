"""Anchors against torchvision's, and as the papers say them."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from swindow.heads.anchors import AnchorShapes, anchors, outside, protruding
from swindow.heads.detect import CONVENTIONS
from swindow.objects import Frames

GRIDS, STRIDES = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)], (4.0, 8.0, 16.0, 32.0, 64.0)


@pytest.mark.parametrize("scales", [(8.0,), (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))], ids=["one", "three"])
def test_torchvision_s(scales: tuple[float, ...]) -> None:
    shapes = AnchorShapes(scales=scales)
    found = anchors(GRIDS, STRIDES, (96, 160), shapes, CONVENTIONS["torchvision"])
    sizes = tuple(tuple(int(scale * stride) for scale in scales) for stride in STRIDES)
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.zeros(1, 1, *grid) for grid in GRIDS]
    expected = theirs(ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)]), maps)[0]
    assert torch.equal(torch.cat(found), expected)
    assert [len(one) for one in found] == [rows * columns * shapes.count for rows, columns in GRIDS]


def test_openmmlab_s() -> None:
    found = anchors(GRIDS, STRIDES, (96, 160), AnchorShapes(scales=(8.0, 3.0)), CONVENTIONS["openmmlab"])
    for one, (rows, columns), stride in zip(found, GRIDS, STRIDES, strict=True):
        cells = one.reshape(rows, columns, 3, 2, 4)
        sides = cells[..., 2:] - cells[..., :2]
        middles = (cells[..., 2:] + cells[..., :2]) / 2
        torch.testing.assert_close(middles[1, 2, 0, 0], torch.tensor([2.0 * stride, stride]), atol=1e-4, rtol=0)
        torch.testing.assert_close(middles[0, 0], torch.zeros(3, 2, 2), atol=1e-4, rtol=0)
        areas = torch.tensor([8.0, 3.0]).square() * stride**2
        torch.testing.assert_close(sides.prod(-1), areas.expand(rows, columns, 3, 2), rtol=1e-5, atol=0)
        ratios = torch.tensor([0.5, 1, 2])[:, None].expand(rows, columns, 3, 2)
        torch.testing.assert_close(sides[..., 1] / sides[..., 0], ratios, rtol=1e-5, atol=0)


def test_whose_middle_is_in_no_picture() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 0.0, 50.0, 10.0], [0.0, 30.0, 10.0, 70.0]])
    found = outside(boxes, Frames((64, 64), ((64, 64), (64, 40), (50, 64), (10, 10))))
    assert found.tolist() == [[False, False, False], [False, True, False], [False, False, True], [True, True, True]]


def test_which_stick_out() -> None:
    boxes = torch.tensor([[0.0, 0, 64, 48], [-1.0, 0, 10, 10], [0.0, 0, 65, 10], [0.0, 0, 10, 49], [3.0, -2, 9, 9]])
    assert protruding(boxes, (48, 64)).tolist() == [False, True, True, True, True]
