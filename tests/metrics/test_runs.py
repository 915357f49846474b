"""Masks in runs: the very bytes that pycocotools writes, whatever part of the picture a mask lies in."""

import dataclasses

import numpy as np
import pytest
import torch
from pycocotools import mask as coding

from detections import detections, random_boxes, round_grids
from swindow.errors import ShapeError
from swindow.metrics import detection_in_runs, mask_in_runs


def encoded(mask):
    return coding.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_of_a_picture(share):
    mask = torch.rand(33, 47) < share
    assert mask_in_runs(mask) == encoded(mask)


def test_of_a_picture_with_one_pixel_in_a_corner():
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        mask = torch.zeros(5, 7, dtype=torch.bool)
        mask[row, column] = True
        assert mask_in_runs(mask) == encoded(mask)


@pytest.mark.parametrize("whole", [False, True])
def test_of_detections(whole):
    random = np.random.default_rng(1)
    size, count = (61, 83), 40
    boxes = random_boxes(random, count, size)
    boxes[:8] = [0, 0, 83, 61]  # all of it
    boxes[8:12] = [70.3, 40.2, 83, 61]  # to the last pixel
    boxes[12:15] = [5.2, 5.2, 5.2, 9]  # of no width
    found = detections(boxes, np.linspace(1, 0.1, count), [0] * count, size=size)
    grids = random.random((count, 5, 6)) if whole else round_grids(random, count)
    found = dataclasses.replace(found, masks=torch.from_numpy(grids).float(), whole=whole)
    filled = 0
    for index in range(count):
        mask = found.mask(index)
        filled += int(mask.any())
        assert detection_in_runs(found, index) == encoded(mask)
    assert filled > 30


def test_of_boxes_alone_there_are_none():
    with pytest.raises(ShapeError, match="boxes alone"):
        detection_in_runs(detections([[0, 0, 5, 5]], [0.5], [0]), 0)
