"""Average precision: pycocotools' own numbers, a plain implementation's in fp64, and cases counted by hand."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detections import detections, objects, random_boxes, random_set
from swindow.errors import ConfigError, ShapeError
from swindow.metrics import DetectionMetrics, boxes_as_coco
from swindow.objects import no_objects

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
ROUNDING = 1e-12  # pycocotools divides by hits + false alarms + 2e-16
FIGURES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def measured(pairs, *, classes=4, masks=False, ids=None):
    metrics = DetectionMetrics(classes, masks=masks)
    for number, (truth, found) in enumerate(pairs):
        metrics.update(truth, found, image_id=None if ids is None else ids[number])
    return metrics.compute()


def by_pycocotools(pairs, kind, *, classes=4, ids=None):
    """The evaluator that everybody compares with, fed as its users do."""
    ids = ids or range(len(pairs))
    annotations, results = [], []
    for number, (truth, found) in zip(ids, pairs, strict=True):
        for place, box in enumerate(boxes_as_coco(truth.boxes).tolist()):
            row = {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": int(truth.crowd[place])}
            row |= {"category_id": int(truth.labels[place]), "area": float(truth.areas[place])}
            if kind == "segm":
                row["segmentation"] = encoded(truth.masks[place])
            annotations.append(row)
        for place, box in enumerate(boxes_as_coco(found.boxes).tolist()):
            row = {"image_id": number, "category_id": int(found.labels[place]), "score": float(found.scores[place])}
            row |= {"segmentation": encoded(found.mask(place))} if kind == "segm" else {"bbox": box}
            results.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [
                {"id": number, "height": found.size[0], "width": found.size[1]}
                for number, (_, found) in zip(ids, pairs, strict=True)
            ],
            "annotations": annotations,
            "categories": [{"id": k, "name": str(k)} for k in range(classes)],
        }
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def encoded(mask):
    return coding.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


def numbers(values):
    """NaN for None, which approx does not take."""
    return [np.nan if value is None else value for value in values]


def alike(values):
    return pytest.approx(numbers(values), rel=0, abs=ROUNDING, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_are_those_of_pycocotools(kind, seed):
    pairs = random_set(seed=seed, masks=kind == "segm", absent=(2,) if seed == 1 else ())
    ids = [7 * number % 31 for number in range(len(pairs))]  # not in the order of the images
    theirs = by_pycocotools(pairs, kind, ids=ids)
    boxes, masks = measured(pairs, masks=kind == "segm", ids=ids)
    ours = boxes if kind == "bbox" else masks
    wanted = [None if value == -1 else float(value) for value in theirs.stats]
    assert numbers(getattr(ours, name) for name in FIGURES) == alike(wanted)
    assert 0.05 < ours.ap < 0.9  # something is found, and not all
    every = theirs.eval["precision"][..., 0, 2]
    assert np.abs(ours.precision - every).max() < ROUNDING
    assert np.array_equal(ours.scores, theirs.eval["scores"][..., 0, 2])
    for k in range(4):
        known = every[..., k][every[..., k] > -1]
        wanted = (known.mean(), every[0, :, k].mean()) if known.size else (None, None)
        assert numbers((ours.per_class[k], ours.per_class50[k])) == alike(wanted)
    assert (ours.per_class[2] is None) == (seed == 1)


def test_more_than_a_hundred_detections_of_a_class_are_cut_as_there():
    random = np.random.default_rng(3)
    truth = random_boxes(random, 30, (200, 200))
    found = np.concatenate([random_boxes(random, 120, (200, 200)), truth])
    scores = np.linspace(0.9, 0.1, 150)
    pairs = [(objects(truth, [0] * 30), detections(found, scores, [0] * 150, size=(200, 200)))]
    theirs = by_pycocotools(pairs, "bbox", classes=1)
    assert measured(pairs, classes=1)[0].ap == pytest.approx(theirs.stats[0], abs=ROUNDING)
    assert theirs.stats[0] < 0.2


def plain_average_precision(pairs, k, cut):
    """AP of one class at one IoU, written down from its definition, one number at a time."""
    rows, total = [], 0
    for number, (truth, found) in enumerate(pairs):
        here = [place for place in range(len(truth)) if truth.labels[place] == k]
        total += sum(not truth.crowd[place] for place in here)
        order = sorted((p for p in range(len(found)) if found.labels[p] == k), key=lambda p: -float(found.scores[p]))
        free = {place for place in here if not truth.crowd[place]}
        for p in order:
            near = [(overlap(found.boxes[p], truth.boxes[place]), place) for place in free]
            best = max(near, default=(0.0, -1))
            if best[0] >= cut:
                free.discard(best[1])
                rows.append((float(found.scores[p]), number, True))
            elif not any(covered(found.boxes[p], truth.boxes[q]) >= cut for q in here if truth.crowd[q]):
                rows.append((float(found.scores[p]), number, False))
    if not total:
        return None
    rows.sort(key=lambda row: -row[0])
    curve, right = [], 0
    for seen, (_, _, good) in enumerate(rows, 1):
        right += good
        curve.append((right / total, right / seen))
    reached = [max((p for recall, p in curve if recall >= wanted), default=0.0) for wanted in np.linspace(0, 1, 101)]
    return sum(reached) / 101


def overlap(a, b):
    inner = intersection(a, b)
    return inner / (area(a) + area(b) - inner)


def covered(a, crowd):
    return intersection(a, crowd) / area(a)


def intersection(a, b):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.tolist(), b.tolist()
    return max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))


def area(box):
    x1, y1, x2, y2 = box.tolist()
    return (x2 - x1) * (y2 - y1)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_what_its_definition_says(seed):
    pairs = random_set(seed=20 + seed)
    ours, _ = measured(pairs)
    for k in range(4):
        assert ours.per_class50[k] == pytest.approx(plain_average_precision(pairs, k, 0.5), abs=1e-9)
        cuts = [plain_average_precision(pairs, k, cut) for cut in np.linspace(0.5, 0.95, 10)]
        assert ours.per_class[k] == pytest.approx(np.mean(cuts), abs=1e-9)


def test_half_of_two_objects_found_is_half_of_the_area():
    truth = objects([[0, 0, 50, 50], [60, 60, 90, 90]], [0, 0])
    boxes, masks = measured([(truth, detections([[0, 0, 50, 50]], [0.8], [0]))], classes=2)
    assert masks is None
    assert boxes.ap50 == boxes.ap == pytest.approx(51 / 101)  # recalls 0, 0.01 … 0.5
    assert boxes.per_class == (boxes.ap, None)
    assert boxes.ar100 == pytest.approx(0.5)
    assert boxes.ap_small == 0
    assert boxes.ap_medium == 1
    assert boxes.ap_large is None


def test_crowds_are_neither_missed_nor_mistakes():
    crowd = objects([[0, 0, 80, 80], [85, 85, 99, 99]], [0, 0], crowd=[True, False])
    found = detections([[5, 5, 30, 30], [40, 40, 70, 70], [85, 85, 99, 99]], [0.9, 0.8, 0.7], [0, 0, 0])
    assert measured([(crowd, found)], classes=1)[0].ap == 1
    assert measured([(crowd[~crowd.crowd], found)], classes=1)[0].ap50 == pytest.approx(1 / 3)


def test_areas_are_those_of_the_annotation():
    box = [[0.0, 0.0, 40.0, 40.0]]
    ours, _ = measured([(objects(box, [0], areas=[1000.0]), detections(box, [0.9], [0]))], classes=1)
    assert ours.ap_small == 1
    assert ours.ap_medium is None


def test_images_without_objects_or_without_detections_count():
    box = [[0.0, 0.0, 40.0, 40.0]]
    right = (objects(box, [0]), detections(box, [0.5], [0]))
    empty = detections([], [], [])
    assert measured([right, (no_objects(), empty)], classes=1)[0].ap == 1
    assert measured([right, (no_objects(), detections(box, [0.9], [0]))], classes=1)[0].ap == pytest.approx(0.5)
    assert measured([right, (objects(box, [0]), empty)], classes=1)[0].ap == pytest.approx(51 / 101)
    nothing, _ = measured([(no_objects(), empty)], classes=1)
    assert nothing.ap is None
    assert nothing.figures("box") == {}


def test_figures_have_names():
    ours, _ = measured(random_set(seed=2))
    assert ours.figures("box") == {f"box_{name}": getattr(ours, name) for name in FIGURES}


def test_nothing_is_printed(capfd):
    measured(random_set(seed=2, images=3, masks=True), masks=True)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_is_refused():
    box = [[0.0, 0.0, 40.0, 40.0]]
    right = objects(box, [0]), detections(box, [0.5], [0])
    with pytest.raises(ConfigError, match="no images were added"):
        DetectionMetrics(1).compute()
    with pytest.raises(ConfigError, match="num_classes is 0"):
        DetectionMetrics(0)
    metrics = DetectionMetrics(1)
    metrics.update(*right, image_id=3)
    with pytest.raises(ConfigError, match="image_id 3 was added before"):
        metrics.update(*right, image_id=3)
    with pytest.raises(ConfigError, match="detections have labels 1 to 1; there are 1 classes"):
        metrics.update(right[0], detections(box, [0.5], [1]))
    with pytest.raises(ConfigError, match="objects have labels -1"):
        metrics.update(objects(box, [-1]), right[1])
    with pytest.raises(ShapeError, match="boxes alone"):
        DetectionMetrics(1, masks=True).update(*right)
    small = objects(box, [0], masks=torch.ones(1, 50, 50, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"masks of \(50, 50\) pixels, detections in \(100, 100\)"):
        DetectionMetrics(1, masks=True).update(small, right[1])
