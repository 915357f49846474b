"""Boxes against loops, torchvision and their own way back."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert

from swindow.objects import Frames
from swindow.ops.boxes import LARGEST, centred, clipped, cornered, covered, decode, encode, limits

DEVIATIONS = (0.1, 0.1, 0.2, 0.3)


def boxes(count: int = 40) -> Tensor:
    low = torch.rand(count, 2, dtype=torch.float64) * 100
    return torch.cat([low, low + 1 + torch.rand(count, 2, dtype=torch.float64) * 50], 1)


@pytest.mark.parametrize("deviations", [(1.0, 1.0, 1.0, 1.0), DEVIATIONS])
def test_deltas_lead_back(deviations: tuple[float, float, float, float]) -> None:
    there, here = boxes(), boxes()
    torch.testing.assert_close(decode(encode(there, here, deviations), here, deviations), there, rtol=0, atol=1e-10)


def test_deltas_are_torchvision_s() -> None:
    there, here = boxes(), boxes()
    coder = BoxCoder(tuple(1 / x for x in DEVIATIONS))
    torch.testing.assert_close(encode(there, here, DEVIATIONS), coder.encode_single(there, here))
    deltas = torch.randn(40, 4, dtype=torch.float64) * 10  # some grow more than is allowed
    expected = coder.decode_single(deltas, here)
    torch.testing.assert_close(decode(deltas, here, DEVIATIONS, smallest=-math.inf), expected)


def test_a_delta_by_hand() -> None:
    anchor, box = torch.tensor([[10.0, 20.0, 20.0, 40.0]]), torch.tensor([[15.0, 20.0, 35.0, 50.0]])
    expected = torch.tensor([[1.0, 0.25, math.log(2), math.log(1.5)]])
    torch.testing.assert_close(encode(box, anchor), expected)
    torch.testing.assert_close(encode(box, anchor, (0.5, 0.5, 1.0, 2.0)), expected / torch.tensor([[0.5, 0.5, 1, 2]]))


def test_growth_has_bounds() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode(torch.tensor([[0.0, 0.0, 50.0, -50.0]]), anchor)
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0))
    torch.testing.assert_close(grown[0, 3] - grown[0, 1], torch.tensor(16 * 16 / 1000))
    assert math.isclose(math.exp(LARGEST), 1000 / 16)


def test_middles_and_corners() -> None:
    found = centred(boxes())
    torch.testing.assert_close(found, box_convert(cornered(found), "xyxy", "cxcywh"))
    torch.testing.assert_close(cornered(found), box_convert(found, "cxcywh", "xyxy"))


def test_nothing_lies_outside_of_its_picture() -> None:
    limit = limits(Frames((50, 60), ((50, 40), (30, 60))), like=torch.zeros(1))
    assert limit.tolist() == [[40, 50, 40, 50], [60, 30, 60, 30]]
    found = clipped(torch.tensor([[-5.0, 10.0, 70.0, 80.0]] * 2), limit)
    assert found.tolist() == [[0, 10, 40, 50], [0, 10, 60, 30]]


def test_covered_shares_by_loops() -> None:
    some, regions = boxes(12), boxes(7)
    some[3, 2] = some[3, 0]  # no area
    found = covered(some, regions)
    for i, (x1, y1, x2, y2) in enumerate(some.tolist()):
        for j, (a1, b1, a2, b2) in enumerate(regions.tolist()):
            width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            both, own = max(width, 0) * max(height, 0), (x2 - x1) * (y2 - y1)
            assert math.isclose(float(found[i, j]), both / own if own else 0, abs_tol=1e-12)
    assert (found > 0).any()
    assert (found[3] == 0).all()
