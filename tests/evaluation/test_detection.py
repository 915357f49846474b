"""Judging a detector: every picture once and under its own name, whatever sizes and batches they come in."""

import json

import numpy as np
import pytest
import torch

from annotating import box, coco
from detections import detections, objects, random_set
from detectors import CLASSES, answering, numbered, pictures_of, tiny_detr, tiny_rcnn
from swindow.checkpoints import save
from swindow.config import dumps
from swindow.data import open_data, split_record
from swindow.data.annotated import annotated_in_memory
from swindow.data.annotations import ObjectConfig
from swindow.errors import ConfigError, DataError, TrainingDiverged
from swindow.evaluation import evaluate, finding
from swindow.inference import ReadyModel
from swindow.metrics import DetectionMetrics, ObjectMatches
from swindow.objects import no_objects
from swindow.settings import TrainConfig

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
FIGURES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def measured(pairs, *, masks=False):
    metrics = DetectionMetrics(len(CLASSES), masks=masks)
    for pair in pairs:
        metrics.update(*pair)
    return metrics.compute()


@pytest.mark.parametrize("masks", [False, True])
def test_figures_are_those_of_all_pictures(monkeypatch, masks):
    pairs = random_set(seed=3, masks=masks)
    answering(monkeypatch, pairs)
    found = evaluate(tiny_detr(masks=masks), pictures_of(pairs), split="val", batch=3)
    boxes, of_masks = measured(pairs, masks=masks)
    wanted = {f"box_{name}": getattr(boxes, name) for name in FIGURES}
    wanted |= {f"mask_{name}": getattr(of_masks, name) for name in FIGURES} if masks else {}
    assert found.figures() == {name: value for name, value in wanted.items() if value is not None}
    assert found.score_name == ("mask AP" if masks else "box AP")
    assert found.score == (of_masks if masks else boxes).ap
    assert (found.split, found.count, found.classes) == ("val", len(pairs), CLASSES)
    assert [score.box_ap for score in found.per_class] == list(boxes.per_class)
    assert [score.mask_ap for score in found.per_class] == list(of_masks.per_class if masks else [None] * 4)
    assert found.objects == sum(int((~truth.crowd).sum()) for truth, _ in pairs)


def test_masks_are_judged_where_data_and_model_both_have_them(monkeypatch):
    pairs = random_set(seed=3, masks=True)
    answering(monkeypatch, pairs)
    boxes_alone = [(objects(t.boxes, t.labels, crowd=t.crowd, areas=t.areas), found) for t, found in pairs]
    assert evaluate(tiny_detr(masks=False), pictures_of(pairs)).masks is None
    assert evaluate(tiny_detr(masks=True), pictures_of(boxes_alone)).masks is None
    assert evaluate(tiny_detr(masks=True), pictures_of(pairs)).masks is not None


@pytest.mark.parametrize("threshold", [None, 0.0, 0.6])
def test_pictures_have_their_own_counts(monkeypatch, threshold):
    pairs = random_set(seed=5)
    answering(monkeypatch, pairs)
    found = evaluate(tiny_detr(), pictures_of(pairs), batch=4, threshold=threshold)
    matches = ObjectMatches(len(CLASSES))
    for pair in pairs:
        matches.update(*pair)
    cut = matches.best_threshold() if threshold is None else threshold
    assert found.threshold == cut
    assert found.best_f1 == (threshold is None)
    assert np.array_equal(found.confusion, matches.confusion(cut))
    for row, (image, counts) in enumerate(zip(found.per_image, matches.per_image(cut), strict=True)):
        assert image.name == f"image[{row}]"
        assert (image.hits, image.misses, image.false_alarms) == (counts.hits, counts.misses, counts.false_alarms)
        assert image.score == counts.f1
    for score, counts in zip(found.per_class, matches.per_class(cut), strict=True):
        assert (score.precision, score.recall, score.f1) == (counts.precision, counts.recall, counts.f1)
        assert score.objects == counts.hits + counts.misses


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_every_picture_is_asked_about_once_in_groups_of_at_most_a_batch(monkeypatch, batch):
    pairs = random_set(seed=6, images=23)
    asked = answering(monkeypatch, pairs)
    evaluate(tiny_detr(), pictures_of(pairs), batch=batch)
    assert sorted(row for group in asked for row in group) == list(range(23))
    assert max(len(group) for group in asked) == min(batch, max(len(group) for group in asked))
    for group in asked:  # wide ones with wide ones
        assert len({pairs[row][1].size[0] > pairs[row][1].size[1] for row in group}) == 1
    if batch == 5:
        assert [len(group) for group in asked].count(5) >= 3


def test_large_canvases_are_shared_by_few(monkeypatch):
    pairs = random_set(seed=6, images=8, size=(100, 150))
    asked = answering(monkeypatch, pairs)
    monkeypatch.setattr(finding, "_AT_ONCE", 3 * 32 * 48 + 1)  # pictures become 32 × 48 pixels
    evaluate(tiny_detr(), pictures_of(pairs))
    assert [len(group) for group in asked] == [3, 3, 2]


def test_classes_are_matched_by_name_and_others_of_the_model_count_nowhere(monkeypatch):
    box, other = [10.0, 10.0, 30.0, 30.0], [60.0, 60.0, 90.0, 90.0]
    said = detections([box, other, other], [0.9, 0.8, 0.7], [2, 0, 1])  # parasite, cell, platelet
    truth = objects([box, other], [1, 0])  # parasite, platelet
    answering(monkeypatch, [(truth, said)])
    images = annotated_in_memory([numbered((100, 100), 0)], [truth], classes=("platelet", "parasite"))
    found = evaluate(tiny_detr(), images)
    assert found.judged == (1, 2)
    assert found.boxes.per_class == (None, 1, 1, None)
    assert found.score == 1
    assert (found.per_image[0].hits, found.per_image[0].false_alarms) == (2, 0)
    assert found.confusion.sum() == 2
    assert [row["name"] for row in found.summary()["per_class"]] == ["platelet", "parasite"]
    assert "cell" not in found.table()


def test_the_worst_pictures_come_first():
    images = [(1, 1, 0), (9, 1, 0), (0, 1, 0), (0, 4, 3), (5, 0, 0), (0, 0, 0), (2, 0, 0)]
    found = judged_as(images)
    assert found.worst() == [3, 2, 0, 1]
    assert found.worst(2) == [3, 2]
    assert found.best() == [4, 6, 1]


def judged_as(images):
    """An evaluation of pictures with so many hits, misses and false alarms."""
    pairs = []
    for hits, misses, wrong in images:
        boxes = [[9.0 * k, 0.0, 9.0 * k + 8, 8.0] for k in range(hits + misses + wrong)]
        truth = objects(boxes[: hits + misses], [0] * (hits + misses))
        found = boxes[:hits] + boxes[hits + misses :]
        pairs.append((truth, detections(found, [0.9] * len(found), [0] * len(found))))
    with pytest.MonkeyPatch.context() as patch:
        answering(patch, pairs)
        return evaluate(tiny_detr(), pictures_of(pairs), threshold=0.5)


def test_what_is_told(monkeypatch):
    pairs = random_set(seed=8, masks=True)
    answering(monkeypatch, pairs)
    found = evaluate(tiny_detr(masks=True), pictures_of(pairs), split="test")
    told = json.loads(json.dumps(found.summary(most=3)))
    assert (told["split"], told["count"], told["score_name"]) == ("test", 12, "mask AP")
    assert told["box_ap50"] == found.boxes.ap50
    assert told["threshold"] == found.threshold
    assert len(told["confusions"]) == len(told["worst"]) == 3
    assert told["confusions"][0]["count"] >= told["confusions"][1]["count"]
    assert told["per_class"][0]["name"] == "cell"
    table = found.table()
    first = f"test: mask AP {found.masks.ap:.1%}, mask AP50 {found.masks.ap50:.1%}"
    assert table.startswith(first)
    assert f"box AP {found.boxes.ap:.1%}" in table
    assert f"above a score of {found.threshold:.2f} (the best F1)" in table
    for score in found.per_class:
        assert any(line.startswith(score.name) and f"{score.box_ap50:.1%}" in line for line in table.splitlines())
    assert "and 2 classes with a higher AP" in found.table(most=2)


def test_confusions_say_what_was_missed_and_what_was_made_up():
    found = judged_as([(1, 2, 3)])
    said = [(pair.truth, pair.predicted, pair.count) for pair in found.confusions()]
    assert said == [("background", "cell", 3), ("cell", "background", 2)]
    assert "3 × cell where there is nothing" in found.table()
    assert "2 × cell missed" in found.table()


def test_pictures_without_objects_are_judged_too(monkeypatch):
    box = [[0.0, 0.0, 40.0, 40.0]]
    pairs = [
        (objects(box, [0]), detections(box, [0.5], [0])),
        (no_objects(), detections(box, [0.9], [0])),
        (no_objects(), detections([], [], [])),
    ]
    answering(monkeypatch, pairs)
    found = evaluate(tiny_detr(), pictures_of(pairs))
    assert found.score == pytest.approx(0.5)
    assert [image.score for image in found.per_image] == [1, 0, None]


def test_a_real_detector_is_judged_and_batches_change_nothing():
    model = tiny_detr(score_threshold=0.05)
    images = pictures_of(random_set(seed=9, images=7, size=(64, 90)))
    one, many = (evaluate(model, images, batch=batch, threshold=0.05, device="cpu") for batch in (1, 7))
    assert one.figures() == pytest.approx(many.figures(), abs=1e-6)
    assert [image.misses for image in one.per_image] == [image.misses for image in many.per_image]
    assert sum(image.hits + image.false_alarms for image in one.per_image) > 0
    assert not any(module.training for module in model.modules())


def test_a_real_detector_with_masks_is_judged_by_them():
    pairs = random_set(seed=9, images=4, masks=True, size=(64, 90))
    found = evaluate(tiny_rcnn(), pictures_of(pairs), threshold=0.0)
    assert found.score_name == "mask AP"
    assert set(found.figures()) >= {"box_ap", "mask_ap", "mask_ap50"}
    assert sum(image.hits + image.false_alarms for image in found.per_image) > 20


def annotations(images, *, outside=0):
    """Two objects in each picture; the last reaches so many pixels beyond its right side."""
    found = []
    for image in range(1, images + 1):
        found += [box(2 * image, image, (5, 6, 20, 18)), box(2 * image + 1, image, (30, 20, 14, 12), category=2)]
    found[-1] = box(2 * images + 1, images, (30, 20, 34 + outside, 12), category=2)
    return found


def test_a_file_is_judged_whole_and_a_run_on_what_it_held_out(tmp_path):
    file = coco(tmp_path / "data" / "cells.json", annotations(10), images=10)
    model = tiny_detr(classes=("dog", "cat"))
    found = evaluate(model, file)
    assert (found.split, found.count, found.objects) == ("all", 10, 20)
    assert [score.objects for score in found.per_class] == [10, 10]
    config = TrainConfig(data=str(file), seed=5, val_fraction=0.3, task="detect")
    source = open_data(str(file), seed=5, val_fraction=0.3)
    run = tmp_path / "run"
    save(model, run / "best")
    (run / "config.toml").write_text(dumps(config))
    (run / "split.json").write_text(json.dumps(split_record(source)))
    for path in (run, run / "best" / "model.safetensors"):
        again = evaluate(path, precision="fp32")
        assert (again.split, again.count) == ("val", 3)
        assert [image.name for image in again.per_image] == [str(name) for name in source.split("val").names]


def test_annotations_are_read_as_the_run_read_them_or_as_asked(tmp_path):
    file = coco(tmp_path / "cells.json", annotations(4, outside=9), images=4)
    run, model = tmp_path / "run", tiny_detr(classes=("cat", "dog"))
    save(model, run / "best")
    (run / "config.toml").write_text(dumps(TrainConfig(data=str(file), objects=ObjectConfig(outside="drop"))))
    assert evaluate(model, file).objects == 8
    assert evaluate(run, file).objects == 7
    assert evaluate(run, file, objects=ObjectConfig(outside="clip")).objects == 8
    with pytest.raises(DataError, match=r"cells\.json"):
        evaluate(run, file, objects=ObjectConfig(outside="stop"))


def test_an_answer_that_is_not_finite_names_its_picture(monkeypatch):
    pairs = random_set(seed=10, images=4, size=(60, 60))
    whole = ReadyModel.detect

    def diverged(self, pixels, **options):
        if any(int(picture[0, 0, 0]) == 2 for picture in pixels):
            raise TrainingDiverged("the model's answer is not finite")
        return whole(self, pixels, **options)

    monkeypatch.setattr(ReadyModel, "detect", diverged)
    with pytest.raises(TrainingDiverged, match=r"^image\[2\]: the model's answer is not finite"):
        evaluate(tiny_detr(), pictures_of(pairs))


def test_what_cannot_be_judged(monkeypatch, tiny):
    pairs = random_set(seed=10, images=4)
    images, model = pictures_of(pairs), tiny_detr()
    answering(monkeypatch, pairs)
    with pytest.raises(ConfigError, match=r"threshold is 1.5; it must be a score in 0\.\.1"):
        evaluate(model, images, threshold=1.5)
    with pytest.raises(ConfigError, match="batch is 0"):
        evaluate(model, images, batch=0)
    with pytest.raises(DataError, match="has no images"):
        evaluate(model, images.subset(np.zeros(4, bool)))
    with pytest.raises(DataError, match="the all split's 1 images have no object, apart from crowds"):
        evaluate(model, images.subset([3]))
    classifier = tiny()
    classifier.preprocess = model.preprocess
    with pytest.raises(ConfigError, match="is to classify and the data is to detect: it has objects; give a detector"):
        evaluate(classifier, images)
    model.classes = ("cell", "platelet", "parasite", "other")
    with pytest.raises(DataError, match="debris"):
        evaluate(model, images)


def test_a_detector_is_asked_on_the_device_in_its_precision(monkeypatch):
    seen = []
    model = tiny_detr()
    model.register_forward_pre_hook(
        lambda module, given: seen.append((module.training, torch.is_inference_mode_enabled()))
    )
    model.train()
    evaluate(model, pictures_of(random_set(seed=1, images=2)))
    assert seen == [(False, True)] * len(seen) != []
    assert model.training
