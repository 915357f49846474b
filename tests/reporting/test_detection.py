"""The page of a detector: its figures, its pictures, and that no data makes it large or breaks it."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from detections import detections, objects, random_set
from detectors import CLASSES, answering, numbered, pictures_of, tiny_detr
from report_pages import EVIL, FACTS, Page
from swindow.data import Images
from swindow.data.annotated import annotated_in_memory
from swindow.errors import ConfigError, DataError
from swindow.evaluation import evaluate
from swindow.objects import Frames, Targets, no_objects
from swindow.overlays import OUTCOMES
from swindow.reporting import draw_progress, fixed_rows, read_progress, worst_sheet, write_evaluation, write_report
from swindow.reporting.found import MOST_BEST, MOST_WORST, compared
from swindow.reporting.progress import SIDE


@pytest.fixture
def judge(monkeypatch):
    """Evaluation, images and finder of some pairs."""

    def judged(pairs, *, classes=CLASSES, masks=False, threshold=None):
        answering(monkeypatch, pairs)
        images = pictures_of(pairs, classes=classes)
        evaluation = evaluate(tiny_detr(classes=classes, masks=masks), images, split="test", threshold=threshold)
        return evaluation, images, lambda row: pairs[row][1]

    return judged


def written(tmp_path, evaluation, images, finder, **fields):
    given = {"batch": None, "labels": None, "classes": images.classes, "facts": FACTS, "answer": finder}
    path = write_report(tmp_path, evaluation=evaluation, images=images, **(given | fields))
    return Page(path.read_text(encoding="utf-8"))


def headings(page):
    return [text for text in page.texts if text in WORDS]


WORDS = (
    "Average precision",
    "Class by class",
    "Worst and best",
    "What it costs to find more",
    "What is taken for what",
    "The same images over time",
    "What the model saw",
)


@pytest.mark.parametrize("masks", [False, True])
def test_the_page_tells_the_figures(tmp_path, judge, masks):
    evaluation, images, finder = judge(random_set(seed=3, masks=masks), masks=masks)
    page = written(tmp_path, evaluation, images, finder)
    told = " ".join(page.texts)
    assert headings(page) == list(WORDS[:5])
    for found in (evaluation.boxes, evaluation.masks) if masks else (evaluation.boxes,):
        for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar1", "ar100"):
            assert f"{getattr(found, name):.1%}" in told
    for score in evaluation.per_class:
        assert {score.name, f"{score.box_ap50:.1%}", f"{score.recall:.1%}"} <= set(page.texts)
    assert ("mask AP50" in page.texts) == masks
    assert f"{evaluation.score_name} on test" in page.texts
    assert f"least {evaluation.threshold:.2f}, which has the best F1 on these images" in told
    assert page.tags.count("polyline") == (4 + 2) * (1 + masks)  # classes, their mean at IoU 0.5, over all IoU
    count = evaluation.confusion[-1, 0]
    assert any(text.startswith(f"background taken for cell: {count}") for text in page.texts)


def test_the_worst_and_the_best_are_shown_with_what_became_of_each(tmp_path, judge):
    pairs = random_set(seed=3, images=20)
    evaluation, images, finder = judge(pairs)
    page = written(tmp_path, evaluation, images, finder)
    alts = [value for name, value in page.attributes if name == "alt"]
    rows = [*evaluation.worst(MOST_WORST), *evaluation.best(MOST_BEST)]
    assert alts == [f"image[{row}]: {what}" for row in rows for what in ("what is there", "what was found")]
    for row in rows:
        one, image = compared(evaluation, images, row, finder), evaluation.per_image[row]
        assert (one.there.count("hit"), one.there.count("missed")) == (image.hits, image.misses)
        assert (one.said.count("hit"), one.said.count("false alarm")) == (image.hits, image.false_alarms)
        assert one.there.count("ignored") == int(pairs[row][0].crowd.sum())
        assert any(text.startswith(f"{image.hits} of {image.hits + image.misses} found") for text in page.texts)
        assert (one.found.scores >= evaluation.threshold).all()


def test_misses_and_false_alarms_are_drawn_in_their_colours(tmp_path, judge):
    pairs = [(objects([[10, 10, 40, 40]], [0]), detections([[60, 60, 90, 90]], [0.9], [0]))]
    evaluation, images, finder = judge(pairs, threshold=0.5)
    page = written(tmp_path, evaluation, images, finder)
    there, found = (picture_of(value) for name, value in page.attributes if name == "src")
    assert near(there, OUTCOMES["missed"]) > 30
    assert near(there, OUTCOMES["false alarm"]) == 0
    assert near(found, OUTCOMES["false alarm"]) > 30
    assert near(found, OUTCOMES["missed"]) == 0


def picture_of(source):
    return Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB")


def near(picture, colour):
    """Pixels of about that colour."""
    return int((np.abs(np.asarray(picture).astype(int) - colour).max(axis=2) < 12).sum())


def test_a_training_batch_is_shown_without_its_padding(tmp_path, judge):
    evaluation, images, finder = judge(random_set(seed=3))
    batch = torch.full((2, 3, 64, 96), 90, dtype=torch.uint8)
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[:, 4:20, 4:30] = True
    truth = (objects([[4, 4, 30, 20]], [2], masks=masks), no_objects(masks=(64, 96)))
    targets = Targets(truth, Frames((64, 96), ((32, 96), (64, 50))))
    page = written(tmp_path, evaluation, images, finder, batch=batch, labels=targets)
    shown = [
        v for (n, v), (_, a) in zip(page.attributes[1:], page.attributes, strict=False) if n == "src" and "train" in a
    ]
    assert [picture_of(source).size for source in shown] == [(96 * 3, 32 * 3), (50 * 5, 64 * 5)]
    assert near(picture_of(shown[0]), evaluation.colours[2]) > 100
    assert {"1 parasite", "no object"} <= set(page.texts)
    assert "What the model saw" in page.texts


def test_the_same_images_over_time(tmp_path, judge):
    pairs = random_set(seed=3, images=9)
    evaluation, images, finder = judge(pairs)
    rows = fixed_rows(images, 3)
    for step in (10, 200):
        draw_progress(tmp_path, step, images, rows, finder, evaluation.colours)
    courses = read_progress(tmp_path)
    assert [course.name for course in courses] == [f"image[{row}]" for row in rows]
    for course, row in zip(courses, rows, strict=True):
        assert list(course.answers) == [10, 200]
        with Image.open(io.BytesIO(course.truth)) as truth:
            assert max(truth.size) <= SIDE
            for label in set(pairs[row][0].labels.tolist()):
                assert near(truth.convert("RGB"), evaluation.colours[label]) > 0
    page = written(tmp_path, evaluation, images, finder)
    assert "The same images over time" in page.texts
    assert "step 200" in page.texts


def test_images_that_show_much_are_watched():
    pairs = [(objects([[0, 0, 5, 5]] * n, list(range(n))), None) for n in (0, 1, 0, 0, 2, 4, 0, 3)]
    pictures = [numbered((8, 8), row) for row in range(8)]
    images = annotated_in_memory(pictures, [truth for truth, _ in pairs], classes=CLASSES)
    assert fixed_rows(images, 2) == [1, 5]


def test_only_sure_detections_are_drawn_over_time(tmp_path):
    images = annotated_in_memory([numbered((90, 90), 0)], [no_objects()], classes=CLASSES)
    said = detections([[5, 5, 40, 40], [50, 50, 80, 80]], [0.31, 0.29], [0, 1])
    colours = ((250, 0, 0), (0, 0, 250), (0, 250, 0), (9, 9, 9))
    draw_progress(tmp_path, 1, images, [0], lambda row: said, colours)
    (course,) = read_progress(tmp_path)
    with Image.open(io.BytesIO(course.answers[1])) as drawn:
        assert near(drawn.convert("RGB"), colours[0]) > 20
        assert near(drawn.convert("RGB"), colours[1]) == 0


def test_an_evaluation_leaves_tables(tmp_path, judge):
    evaluation, images, finder = judge(random_set(seed=3, masks=True), masks=True)
    path = write_evaluation(tmp_path / "new" / "folder", evaluation, images, finder, {"model": "detr_tiny"})
    folder = path.parent
    assert path.name == "evaluation.html"
    Page(path.read_text(encoding="utf-8"))
    rows = table(folder / "per_class.csv")
    assert [row["name"] for row in rows] == list(CLASSES)
    assert [float(row["box_ap"]) for row in rows] == pytest.approx(evaluation.boxes.per_class)
    assert [float(row["mask_ap50"]) for row in rows] == pytest.approx(evaluation.masks.per_class50)
    rows = table(folder / "per_image.csv")
    assert [int(row["misses"]) for row in rows] == [image.misses for image in evaluation.per_image]
    boxes, masks = table(folder / "average_precision.csv")
    assert (boxes["of"], masks["of"]) == ("boxes", "masks")
    assert float(masks["AP50"]) == evaluation.masks.ap50
    assert boxes["large"] == ""
    points = table(folder / "precision_recall.csv")
    assert len(points) == 2 * 4 * 101
    of_cells = [float(row["precision at IoU 0.5"]) for row in points if (row["of"], row["class"]) == ("boxes", "cell")]
    assert np.mean(of_cells) == pytest.approx(evaluation.boxes.per_class50[0])
    over = [
        float(row["precision at IoU 0.5 to 0.95"]) for row in points if (row["of"], row["class"]) == ("masks", "cell")
    ]
    assert np.mean(over) == pytest.approx(evaluation.masks.per_class[0])
    assert points[50]["recall"] == "0.50"
    assert json.loads((folder / "figures.json").read_text())["score_name"] == "mask AP"
    with Image.open(folder / "sheet.png") as sheet:
        assert min(sheet.size) > 400


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_sheet_shows_truth_beside_what_was_found(judge):
    pairs = [(objects([[10, 10, 40, 40]], [0]), detections([[60, 60, 90, 90]], [0.9], [0]))] * 2
    pairs = [(truth, found) for truth, found in pairs]
    sheet = worst_sheet(*judge(pairs, threshold=0.5))
    left, right = (
        sheet.crop((0, 0, sheet.width // 2, sheet.height - 60)),
        sheet.crop((sheet.width // 2, 0, *sheet.size)),
    )
    assert near(left, OUTCOMES["missed"]) > 60
    assert near(left, OUTCOMES["false alarm"]) == 0
    assert near(right, OUTCOMES["false alarm"]) > 60


def test_of_an_evaluation_without_mistakes_the_sheet_shows_the_best(judge):
    pairs = [(objects([[10, 10, 40, 40]], [0]), detections([[10, 10, 40, 40]], [0.9], [0]))]
    sheet = worst_sheet(*judge(pairs))
    assert near(sheet, OUTCOMES["hit"]) > 60


def test_names_of_any_kind_stay_well_formed_and_inert(tmp_path, judge):
    pairs = random_set(seed=3, classes=len(EVIL))
    evaluation, images, finder = judge(pairs, classes=EVIL)
    evaluation = evaluation.__class__(**{**vars(evaluation), "split": EVIL[0]})
    page = written(tmp_path, evaluation, images, finder)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    write_evaluation(tmp_path / "evaluation", evaluation, images, finder, {"model": EVIL[1]})


def test_many_classes_and_large_pictures_keep_the_page_below_four_megabytes(tmp_path, judge):
    classes = tuple(f"class number {k}" for k in range(130))
    random = np.random.default_rng(2)
    pairs = random_set(seed=3, images=16, classes=130, masks=True, size=(700, 900))
    evaluation, images, finder = judge(pairs, classes=classes, masks=True)
    noisy = [torch.from_numpy(random.integers(0, 256, (3, 700, 900), np.uint8)) for _ in pairs]
    images = annotated_in_memory(noisy, [truth for truth, _ in pairs], classes=classes)
    page = written(tmp_path, evaluation, images, finder)
    assert (tmp_path / "report.html").stat().st_size < 4_000_000
    assert any(re.search(r"The 12 classes with the most objects, of \d+", text) for text in page.texts)
    assert any("The 100 classes with the most mistakes, of 131" in text for text in page.texts)


def test_images_in_other_classes_are_aligned(tmp_path, judge, monkeypatch):
    evaluation, images, finder = judge(random_set(seed=3))
    same = written(tmp_path, evaluation, images, finder)
    order = np.array([2, 0, 3, 1])
    turned = images.aligned(order, [CLASSES[k] for k in np.argsort(order)])
    other = written(tmp_path, evaluation, turned, finder, classes=CLASSES)
    pictures = [[value for name, value in page.attributes if name == "src"] for page in (same, other)]
    assert pictures[0] == pictures[1]


def test_what_cannot_be_reported(tmp_path, judge):
    evaluation, images, finder = judge(random_set(seed=3))
    with pytest.raises(ConfigError, match="give `answer`"):
        written(tmp_path, evaluation, images, None)
    with pytest.raises(DataError, match="3 images for an evaluation of 12"):
        written(tmp_path, evaluation, images.subset([0, 1, 2]), finder)
    others = Images(
        names=[str(row) for row in range(12)],
        labels=np.zeros(12, np.int64),
        classes=("a", "b"),
        channels=1,
        pixels=torch.zeros(12, 1, 4, 4, dtype=torch.uint8),
    )
    with pytest.raises(ConfigError, match="Images for a page of DetectionEvaluation"):
        written(tmp_path, evaluation, others, finder)
