"""Which detection is of which object: against pycocotools' matches, and against counting one by one."""

import contextlib
import io
from collections import Counter

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detections import detections, objects, random_set
from swindow.errors import ConfigError
from swindow.metrics import ObjectMatches, boxes_as_coco, matches
from swindow.metrics.matching import CROWD, NONE, THRESHOLD
from swindow.objects import no_objects

CUTS = (0.0, 0.3, 0.52, 0.8, 1.0)


def gathered(pairs, classes=4):
    found = ObjectMatches(classes)
    for pair in pairs:
        found.update(*pair)
    return found


def iou(a, b, *, crowd):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.double().tolist(), b.double().tolist()
    inner = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    first, second = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    return inner / (first if crowd else first + second - inner)


def one_by_one(truth, found, *, cut, any_class):
    """For each detection above a score the object that it is of, or what else it is; the rule as it is written down."""
    taken, said = set(), {}
    for row in sorted((r for r in range(len(found)) if found.scores[r] >= cut), key=lambda r: -float(found.scores[r])):
        near = {}
        for place in range(len(truth)):
            if any_class or truth.labels[place] == found.labels[row]:
                near[place] = iou(found.boxes[row], truth.boxes[place], crowd=bool(truth.crowd[place]))
        free = {p: v for p, v in near.items() if v >= 0.5 and p not in taken and not truth.crowd[p]}
        if free:
            said[row] = max(free, key=lambda place: free[place])
            taken.add(said[row])
        else:
            inside = any(value >= 0.5 and truth.crowd[place] for place, value in near.items())
            said[row] = CROWD if inside else NONE
    return said


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_matching_one_by_one_above_the_score(seed, cut):
    pairs = random_set(seed=40 + seed)
    found = gathered(pairs)
    confusion, classes = np.zeros((5, 5), np.int64), Counter()
    for (truth, said), counts in zip(pairs, found.per_image(cut), strict=True):
        own = one_by_one(truth, said, cut=cut, any_class=False)
        real = [place for place in range(len(truth)) if not truth.crowd[place]]
        hits = [row for row, place in own.items() if place >= 0]
        wrong = [row for row, place in own.items() if place == NONE]
        assert (counts.hits, counts.misses, counts.false_alarms) == (len(hits), len(real) - len(hits), len(wrong))
        classes.update([("hit", int(said.labels[row])) for row in hits])
        classes.update([("wrong", int(said.labels[row])) for row in wrong])
        classes.update([("there", int(truth.labels[place])) for place in real])
        met = one_by_one(truth, said, cut=cut, any_class=True)
        for row, place in met.items():
            if place != CROWD:
                confusion[4 if place == NONE else int(truth.labels[place]), int(said.labels[row])] += 1
        for place in set(real) - set(met.values()):
            confusion[int(truth.labels[place]), 4] += 1
    assert np.array_equal(found.confusion(cut), confusion)
    assert confusion.sum() > 0
    for k, counts in enumerate(found.per_class(cut)):
        there = classes["hit", k], classes["there", k] - classes["hit", k], classes["wrong", k]
        assert (counts.hits, counts.misses, counts.false_alarms) == there


def test_hits_are_those_of_pycocotools():
    pairs = random_set(seed=7)
    theirs = matched_by_pycocotools(pairs)
    for number, (truth, found) in enumerate(pairs):
        ours = matches(truth, found)
        for row, place in enumerate(ours.tolist()):
            wanted = theirs[number, row]
            assert wanted == ("crowd" if place == CROWD else None if place == NONE else place)


def matched_by_pycocotools(pairs):
    """By image and detection: the row of its object, or ``crowd``, or None."""
    annotations, results, rows = [], [], {}
    for number, (truth, found) in enumerate(pairs, 1):
        for place, box in enumerate(boxes_as_coco(truth.boxes).tolist()):
            row = {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": int(truth.crowd[place])}
            annotations.append(row | {"category_id": int(truth.labels[place]), "area": 1.0})
            rows[len(annotations)] = place, bool(truth.crowd[place])
        for place, box in enumerate(boxes_as_coco(found.boxes).tolist()):
            row = {"image_id": number, "category_id": int(found.labels[place]), "bbox": box}
            results.append(row | {"score": float(found.scores[place])})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": n + 1} for n in range(len(pairs))], "annotations": annotations}
        coco.dataset["categories"] = [{"id": k} for k in range(4)]
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.params.areaRng = evaluator.params.areaRng[:1]
        evaluator.evaluate()
    first = {number: sum(len(found) for _, found in pairs[:number]) for number in range(len(pairs))}
    said = {}
    for part in filter(None, evaluator.evalImgs):
        for name, object_id in zip(part["dtIds"], part["dtMatches"][0], strict=True):
            number = part["image_id"] - 1
            place, crowd = rows.get(int(object_id), (None, False))
            said[number, name - 1 - first[number]] = "crowd" if crowd else place
    return said


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_has_the_best_f1(seed):
    pairs = random_set(seed=60 + seed)
    found = gathered(pairs)
    scores = sorted({float(score) for _, said in pairs for score in said.scores.double()})

    def f1(cut):
        counts = found.per_image(cut)
        hits = sum(one.hits for one in counts)
        return 2 * hits / (2 * hits + sum(one.misses + one.false_alarms for one in counts))

    best = max(map(f1, scores))
    assert f1(found.best_threshold()) == best
    assert found.best_threshold() == max(score for score in scores if f1(score) == best)


def test_without_a_right_detection_the_threshold_is_a_half():
    assert (
        gathered([(objects([[0, 0, 9, 9]], [0]), detections([[50, 50, 60, 60]], [0.9], [0]))]).best_threshold() == 0.5
    )
    assert gathered([(no_objects(), detections([], [], []))]).best_threshold() == THRESHOLD


def test_one_object_is_found_once():
    box = [10.0, 10.0, 30.0, 30.0]
    found = gathered([(objects([box], [1]), detections([box, box], [0.9, 0.8], [1, 1]))], classes=2)
    (counts,) = found.per_image(0.5)
    assert (counts.hits, counts.misses, counts.false_alarms) == (1, 0, 1)
    assert found.confusion(0.5).tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert found.confusion(0.85).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_another_class_is_a_miss_and_a_false_alarm_and_a_confusion():
    box = [10.0, 10.0, 30.0, 30.0]
    found = gathered([(objects([box], [1]), detections([box], [0.9], [0]))], classes=2)
    (counts,) = found.per_image(0.5)
    assert (counts.hits, counts.misses, counts.false_alarms) == (0, 1, 1)
    assert (counts.precision, counts.recall, counts.f1) == (0, 0, 0)
    assert found.confusion(0.5).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_nothing_to_divide_by_is_none():
    (counts,) = gathered([(no_objects(), detections([], [], []))]).per_image(0.5)
    assert (counts.precision, counts.recall, counts.f1) == (None, None, None)


def test_classes_there_must_be():
    with pytest.raises(ConfigError, match="num_classes is 0"):
        ObjectMatches(0)
