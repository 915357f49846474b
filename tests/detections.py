"""Objects and detections for tests: given, or random ones that resemble what detectors find."""

import numpy as np
import torch

from swindow.objects import Detections, Objects


def objects(boxes, labels, *, crowd=None, areas=None, masks=None):
    """Objects of one picture; areas are those of the boxes unless they are given."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Objects(
        boxes=boxes,
        labels=torch.as_tensor(labels, dtype=torch.int64),
        masks=masks,
        crowd=torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else torch.as_tensor(crowd),
        areas=sides.prod(1) if areas is None else torch.as_tensor(areas, dtype=torch.float32),
    )


def detections(boxes, scores, labels, *, size=(100, 100), masks=None):
    """Detections of one picture."""
    return Detections(
        boxes=torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.as_tensor(scores, dtype=torch.float32),
        labels=torch.as_tensor(labels, dtype=torch.int64),
        size=size,
        masks=masks,
    )


def random_set(*, seed, images=12, classes=4, most=14, masks=False, absent=(), size=None):
    """Objects of all sizes, some crowds, areas below those of the boxes, and detections that are moved copies of them.

    Some copies have another class, some objects have several or none, scores repeat, one image in four has no object.
    """
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(images):
        sides = size or (int(random.integers(90, 260)), int(random.integers(90, 260)))
        count = 0 if number % 4 == 3 else int(random.integers(1, most))
        truth = random_boxes(random, count, sides)
        labels = random.choice([k for k in range(classes) if k not in absent], count)
        drawn = filled(truth, sides) if masks else None
        filling = (truth[:, 2:] - truth[:, :2]).prod(1) * random.uniform(0.5, 1, count)
        areas = drawn.flatten(1).sum(1) if masks else filling
        pairs.append(
            (
                objects(truth, labels, crowd=random.random(count) < 0.15, areas=areas, masks=drawn),
                _moved(random, truth, labels, sides, classes, masks),
            )
        )
    return pairs


def _moved(random, truth, labels, size, classes, masks):
    copies = random.integers(0, 3, len(truth))
    moved = np.repeat(truth, copies, axis=0) + random.normal(0, 3, (copies.sum(), 4))
    extra = random_boxes(random, int(random.integers(1, 8)), size)
    found = np.clip(np.concatenate([moved, extra]), 0, np.array([size[1], size[0]] * 2))
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    called = np.concatenate([np.repeat(labels, copies), random.integers(0, classes, len(extra))])
    called = np.where(random.random(len(called)) < 0.1, random.integers(0, classes, len(called)), called)
    scores = np.sort(random.choice(np.linspace(0.05, 1, 21), len(found)))[::-1].copy()
    grids = torch.from_numpy(round_grids(random, len(found))).float() if masks else None
    return detections(found, scores, called, size=size, masks=grids)


def random_boxes(random, count, size):
    """Corners inside a picture, sides from a few pixels to nearly all of it."""
    sides = np.exp(random.uniform(np.log(6), np.log(min(size) * 0.9), (count, 2)))
    corner = random.random((count, 2)) * (np.array([size[1], size[0]]) - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def round_grids(random, count, side=9):
    """Probabilities over boxes, above a half in about an ellipse."""
    places = (np.arange(side) + 0.5) / side * 2 - 1
    middle = 1 - places[:, None] ** 2 - places[None, :] ** 2
    return np.clip(0.5 + middle + random.normal(0, 0.1, (count, side, side)), 0, 1)


def filled(boxes, size):
    """Ellipses in boxes."""
    down, across = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        x, y = (across - (x1 + x2) / 2) / (x2 - x1) * 2, (down - (y1 + y2) / 2) / (y2 - y1) * 2
        mask |= x * x + y * y <= 1
    return masks
