"""The page of a segmenter: its figures, its pictures, and that no data makes it large or breaks it."""

import base64
import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from report_pages import EVIL, FACTS, Page
from swindow.data import Images
from swindow.data.legends import palette
from swindow.data.scenes import scenes_in_memory
from swindow.errors import ConfigError, DataError
from swindow.evaluation import CaseScore, ImageScore, SegmentationEvaluation
from swindow.metrics import confusion_of_pixels, dice_scores, mean_of_known, pixel_accuracy, pixel_scores
from swindow.overlays import overlay
from swindow.reporting import write_evaluation, write_progress, write_report
from swindow.reporting.page import compressed
from swindow.reporting.panels import wrong_pixels
from swindow.reporting.progress import Moment
from swindow.shapes import IGNORE

CLASSES = ("background", "liver", "spleen")


def blocks(classes, *, count=12, side=24, seed=1):
    """Masks of rectangles with a strip that does not count, answers that are moved by more and more, and images."""
    draw = np.random.default_rng(seed)
    truths, answers = [], []
    for row in range(count):
        mask = np.zeros((side, side), np.int64)
        for k in range(1, len(classes)):
            top, left = draw.integers(0, side - 6, 2)
            mask[top : top + 5, left : left + 6] = k
        answers.append(torch.from_numpy(np.roll(mask, row // 2, 1)))
        mask[0] = IGNORE
        truths.append(torch.from_numpy(mask))
    slope = torch.add(*torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    images = [(slope + 10 * row).repeat(3, 1, 1).to(torch.uint8) for row in range(count)]
    return truths, answers, images


def judged(classes=CLASSES, *, per_case=4, background=0, unit="mm", given=None):
    """An evaluation, its scenes and the answers; distances are 1.25 for the first object, 2.25 for the second, ..."""
    truths, answers, images = given or blocks(classes)
    names = [f"/data/organs/{row}.png" for row in range(len(truths))]
    cases = [f"patient {row // per_case}" for row in range(len(truths))] if per_case > 1 else names
    colours = palette(len(classes), background)
    scenes = scenes_in_memory(images, truths, classes=classes, cases=cases, background=background)
    counts = [confusion_of_pixels(said, mask, len(classes)) for said, mask in zip(answers, truths, strict=True)]
    far = tuple(None if unit is None or k == background else 1.25 + k - 1 for k in range(len(classes)))
    per_case_ = [
        CaseScore(
            case=case, dice=dice_scores(sum(n for n, of in zip(counts, cases, strict=True) if of == case)), hd95=far
        )
        for case in dict.fromkeys(cases)
    ]
    per_class = [
        dataclasses.replace(score, dice=mean_of_known(case.dice[k] for case in per_case_), hd95=far[k])
        for k, score in enumerate(pixel_scores(sum(counts), classes))
    ]
    overlaps = [[score.iou for score in pixel_scores(count, classes)] for count in counts]
    per_image = [
        ImageScore(
            name=names[row],
            case=cases[row],
            mean_iou=mean_of_known(overlaps[row]),
            pixel_accuracy=pixel_accuracy(counts[row]),
            score=mean_of_known(iou for k, iou in enumerate(overlaps[row]) if k != background),
        )
        for row in range(len(counts))
    ]
    evaluation = SegmentationEvaluation(
        split="test",
        classes=tuple(classes),
        colours=colours,
        background=background,
        count=len(truths),
        loss=0.123,
        confusion=sum(counts),
        per_class=tuple(per_class),
        mean_iou=mean_of_known(score.iou for score in per_class),
        mean_accuracy=mean_of_known(score.accuracy for score in per_class),
        pixel_accuracy=pixel_accuracy(sum(counts)),
        mean_dice=mean_of_known(score.dice for k, score in enumerate(per_class) if k != background),
        hd95_unit=unit,
        per_image=tuple(per_image),
        per_case=tuple(per_case_),
    )
    return evaluation, scenes, answers


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it."""
    folder = tmp_path / "first <run>"
    folder.mkdir()
    rows = [{"kind": "train", "step": s, "loss": 3 / s, "accuracy": 0.5, "lr_share": 1.0} for s in range(1, 40)]
    rows += [
        {"kind": "val", "step": s, "loss": 2 / s, "mean_iou": 0.4, "mean_dice": 0.5, "pixel_accuracy": 0.6}
        for s in (20, 39)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text('data = "<b>organs</b>"\n')
    (folder / "environment.json").write_text(json.dumps({"torch": "2.14.1"}))
    return folder


def report(run, evaluation, scenes, answers, **changes):
    given = {"batch": None, "labels": None, "facts": FACTS, "answer": answers.__getitem__, **changes}
    path = write_report(run, evaluation=evaluation, images=scenes, **{"classes": evaluation.classes, **given})
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def said(page):
    return " ".join(" ".join(page.texts).split())


def pictures(text, caption):
    """Embedded pictures by what stands below them, in the order of the page."""
    found = re.findall(rf'base64,([^"]+)"></div><figcaption>{caption}</figcaption>', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in found]


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_page_says_the_figures_of_the_run(run):
    evaluation, scenes, answers = judged()
    write_progress(run, 20, [Moment("watched", *[Image.new("RGB", (9, 9))] * 3)])
    batch, labels = torch.stack([scenes.read(row) for row in range(4)]), torch.stack([scenes.mask(r) for r in range(4)])
    text, page = report(run, evaluation, scenes, answers, batch=batch, labels=labels)
    for figure in (
        f"mean Dice on test {evaluation.mean_dice:.2%} over 3 cases, 12 images",
        f"mean IoU {evaluation.mean_iou:.1%}",
        f"pixel accuracy {evaluation.pixel_accuracy:.1%}",
        "HD95 1.8 mm",  # the mean of 1.25 and 2.25
        "2.6 M",
        "2:35",
        "1.23 GiB tensors on cuda:0",
        "swin_nano: first <run>",
        'data = "<b>organs</b>"',
        "2.14.1",
        "4 of 4 images of a training batch",
        "step 20",
    ):
        assert figure in said(page)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        "How it learned",
        "Class by class",
        "Best, median and worst",
        "Case by case",
        "What is taken for what",
        "The same images over time",
        "What the model saw",
        "Settings",
        "Where it ran",
    ]
    assert re.findall("<h3>(.*?)</h3>", text)[:5] == [
        "Loss", "Mean Dice", "Mean IoU", "Pixel accuracy", "Learning rate, share of the peak",
    ]  # fmt: skip
    assert text.count("<polyline") == 7  # loss and pixel accuracy twice, the others once


def test_without_a_background_the_page_is_about_iou(run):
    evaluation, scenes, answers = judged(per_case=1, background=None, unit=None)
    text, page = report(run, evaluation, scenes, answers)
    pixels = int(evaluation.confusion.sum())
    assert f"mean IoU on test {evaluation.mean_iou:.2%} 12 images, {pixels:,} pixels" in said(page)
    assert "HD95" not in text
    assert "Case by case" not in text


def test_every_class_has_its_scores_the_hardest_first(run):
    evaluation, scenes, answers = judged()
    text, _ = report(run, evaluation, scenes, answers)
    table = text[text.index("Class by class") : text.index("Best, median")]
    rows = [re.sub("<[^>]+>", "|", row) for row in re.findall("<tr>(.*?)</tr>", table)[1:]]
    order = sorted(evaluation.per_class, key=lambda score: score.iou)
    total = evaluation.confusion.sum()
    for row, score in zip(rows, order, strict=True):
        k = evaluation.classes.index(score.name)
        others = np.delete(evaluation.confusion[k], k).max() / evaluation.confusion[k].sum()
        shares = [f"{share:.1%}" for share in (score.pixels / total, score.iou, score.accuracy, score.dice)]
        far = "–" if score.hd95 is None else f"{score.hd95:.2f}"
        cells = [cell for cell in row.split("|") if cell.strip()]
        assert cells[:7] == [score.name, f"{score.pixels:,} ", *shares, far]
        assert cells[7].endswith(f"({others:.1%})")
        colour = evaluation.colours[k]
        assert f'style="background:rgb{colour}"></i>{score.name}<' in table


def test_a_class_that_never_occurs_has_dashes_and_comes_last(run):
    truths, answers, images = blocks(CLASSES)
    given = [mask.where(mask != 2, torch.tensor(0)) for mask in truths], [a.clamp(max=1) for a in answers], images
    evaluation, scenes, answers = judged(given=given)
    text, _ = report(run, evaluation, scenes, answers)
    table = text[text.index("Class by class") : text.index("Best, median")]
    last = re.findall("<tr>(.*?)</tr>", table)[-1]
    assert "spleen" in last
    assert last.count("<span>–</span>") == 3
    assert "spleen" not in text[text.index("Best, median") : text.index("Case by case")]


def test_cases_come_hardest_first_with_the_dice_of_each_object(run):
    evaluation, scenes, answers = judged()
    text, _ = report(run, evaluation, scenes, answers)
    table = text[text.index("Case by case") : text.index("What is taken")]
    head, *rows = re.findall("<tr>(.*?)</tr>", table)
    assert re.findall("<th[^>]*>(.*?)</th>", head) == [
        "case", "images", "mean Dice", "Dice, liver", "Dice, spleen", "HD95, mm",
    ]  # fmt: skip
    order = sorted(evaluation.per_case, key=lambda case: mean_of_known(case.dice[1:]))
    for row, case in zip(rows, order, strict=True):
        cells = [cell for cell in re.sub("<[^>]+>", "|", row).split("|") if cell]
        dice = [mean_of_known(case.dice[1:]), *case.dice[1:]]
        assert cells == [case.case, "4", *(f"{share:.1%}" for share in dice), "1.75"]


def test_of_very_many_cases_the_hardest_are_listed(run):
    evaluation, scenes, answers = judged(per_case=2, given=blocks(CLASSES, count=404))
    text, page = report(run, evaluation, scenes, answers)
    cases = text[text.index("Case by case") : text.index("What is taken")]
    assert cases.count("<tr>") == 1 + 200
    assert "The first 200 of 202." in said(page)


def test_best_median_and_worst_show_truth_beside_answer_and_what_is_wrong(run):
    evaluation, scenes, answers = judged()
    asked = []
    text, _ = report(run, evaluation, scenes, answers, answer=lambda row: asked.append(row) or answers[row])
    rows = [row for group in evaluation.best_median_worst(3).values() for row in group]
    assert asked == rows
    assert len(set(rows)) == 9
    names = re.findall(r"<h4>(\S+) <small>IoU ([\d.]+%), ([\d.]+%) of its pixels right", text)
    scores = [evaluation.per_image[row] for row in rows]
    assert names == [
        (f"organs/{r}.png", f"{s.score:.1%}", f"{s.pixel_accuracy:.1%}") for r, s in zip(rows, scores, strict=True)
    ]
    for caption, masks in (
        ("truth", [scenes.mask(row) for row in rows]),
        ("prediction", [answers[row] for row in rows]),
    ):
        for shown, row, mask in zip(pictures(text, caption), rows, masks, strict=True):
            wanted = overlay(scenes.read(row), mask, evaluation.colours, side=240, background=0)
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(wanted))
    for shown, row in zip(pictures(text, "wrong pixels"), rows, strict=True):
        red = np.asarray(shown, int)[5::10, 5::10]  # 24 pixels a side, each shown as 10
        wrong = (scenes.mask(row) != answers[row]) & (scenes.mask(row) != IGNORE)
        np.testing.assert_array_equal(red[..., 0] - red[..., 1] > 80, wrong.numpy())


def test_wrong_pixels_of_a_reduced_picture_are_as_red_as_their_share():
    truth = torch.zeros(400, 400, dtype=torch.int64)
    answer = truth.clone()
    answer[:100, :100] = 1
    answer[300::2, 300:] = 1
    answer[:100, 300:], truth[:100, 300:] = 1, IGNORE
    shown = wrong_pixels(torch.full((3, 400, 400), 90, dtype=torch.uint8), truth.numpy(), answer.numpy(), side=100)
    red = np.asarray(shown, int)[..., 0] - np.asarray(shown, int)[..., 1]
    assert shown.size == (100, 100)
    assert red[:25, :25].min() == 164  # wholly red
    assert red[75:, 75:].mean() == pytest.approx(82, abs=2)
    assert np.abs(red[:70, 30:]).max() == 0


def test_masks_of_a_batch_are_painted_by_the_names_of_their_classes(run):
    evaluation, scenes, answers = judged()
    other = ("spleen", "background", "liver")
    order = torch.tensor([other.index(name) for name in CLASSES])
    mask = scenes.mask(0)
    batch = scenes.read(0)[None].repeat(16, 1, 1, 1)
    labels = order[mask.clamp(min=0)].where(mask != IGNORE, IGNORE)[None].repeat(16, 1, 1)
    text, page = report(run, evaluation, scenes, answers, batch=batch, labels=labels, classes=other)
    assert "12 of 16 images of a training batch" in said(page)
    saw = text[text.index("What the model saw") :]
    shown = pictures(saw, "")
    assert len(shown) == 12
    wanted = overlay(scenes.read(0), mask, evaluation.colours, side=240, background=0)
    np.testing.assert_array_equal(np.asarray(shown[0]), np.asarray(wanted))
    assert 'alt="training image with spleen, liver"' in saw


def test_scenes_with_classes_in_another_order_are_shown_in_the_models(run):
    evaluation, scenes, answers = judged()
    text, _ = report(run, evaluation, scenes, answers)
    order = np.array([2, 0, 1])
    turned = scenes_in_memory(
        scenes.reader.images,
        [torch.from_numpy(np.append(np.argsort(order), IGNORE))[mask] for mask in scenes.reader.masks],
        classes=[CLASSES[k] for k in order],
        cases=scenes.cases,
        background=1,
    )
    again, _ = report(run, evaluation, turned, answers)
    assert again == text


def test_what_is_taken_for_what_is_told_in_shares_of_pixels(run):
    evaluation, scenes, answers = judged()
    text, page = report(run, evaluation, scenes, answers)
    first = evaluation.confusions()[0]
    wrong = evaluation.confusion.sum() - np.trace(evaluation.confusion)
    row = evaluation.confusion[evaluation.classes.index(first.truth)].sum()
    assert f"{first.count / wrong:.0%} {first.truth} taken for {first.predicted}" in said(page)
    title = f"{first.truth} taken for {first.predicted}: {first.count / row:.1%} ({first.count:,} pixels)"
    assert f"<title>{title}</title>" in text


def test_the_page_needs_nothing_and_runs_nothing(run):
    write_progress(run, 20, [Moment(EVIL[0], *[Image.new("RGB", (9, 9))] * 3)])
    evaluation, scenes, answers = judged(EVIL)
    cases = tuple(
        dataclasses.replace(case, case=name) for case, name in zip(evaluation.per_case, EVIL[:3], strict=True)
    )
    per_image = tuple(dataclasses.replace(image, name=EVIL[0], case=EVIL[0]) for image in evaluation.per_image)
    evaluation = dataclasses.replace(evaluation, per_case=cases, per_image=per_image)
    scenes = dataclasses.replace(scenes, cases=tuple(name for name in EVIL[:3] for _ in range(4)))
    batch, labels = scenes.read(0)[None], scenes.mask(0)[None]
    text, page = report(run, evaluation, scenes, answers, batch=batch, labels=labels)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith("data:image/")
        if name == "style":
            assert re.fullmatch(r"width:[\d.]+%|max-width:[\d.]+px|background:rgb\(\d+, \d+, \d+\)", value)
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "//" not in re.sub(r'src="data:[^"]*"', "", text).replace("</", "")
    for name in EVIL[:3]:
        assert name in "".join(page.texts)


def test_the_page_stays_below_3_mb_whatever_the_pictures_and_however_many_classes(run):
    draw = np.random.default_rng(0)
    classes = tuple(f"class {'long ' * 6}{k}" for k in range(150))
    noise = [torch.from_numpy(draw.integers(0, 256, (3, 260, 260), dtype=np.uint8)) for _ in range(12)]
    truths = [torch.from_numpy(draw.integers(0, 150, (260, 260))) for _ in range(12)]
    answers = [mask.where(torch.rand(260, 260) < 0.5, mask.flip(0)) for mask in truths]
    evaluation, scenes, answers = judged(classes, per_case=3, given=(truths, answers, noise))
    shown = [Image.fromarray(draw.integers(0, 256, (160, 160, 3), dtype=np.uint8)) for _ in range(3)]
    for step in range(6):
        write_progress(run, step, [Moment(f"{n}", *shown) for n in range(8)])
    batch, labels = torch.stack(noise), torch.stack(truths)
    text, page = report(run, evaluation, scenes, answers, batch=batch, labels=labels)
    assert len(pictures(text, "[^<]*")) == 9 * 4 + 12 + 8 * (2 + 6)
    assert len(text.encode()) < 3_000_000
    assert "The 40 classes with the most mistakes, of 150." in text
    assert "and 109 more" in said(page)


@pytest.mark.parametrize("side", [40, 240])
def test_pictures_are_compressed_to_what_they_may_take(side):
    draw = np.random.default_rng(0)
    smooth = Image.fromarray(np.add.outer(np.arange(side), np.arange(side)).astype(np.uint8))
    noise = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
    assert compressed(smooth, 18_000).startswith(b"\x89PNG")
    assert len(compressed(noise, 18_000)) <= 18_000
    with Image.open(io.BytesIO(compressed(noise, 18_000))) as picture:
        assert picture.size == (side, side)


def test_an_evaluation_leaves_a_page_and_tables(tmp_path):
    evaluation, scenes, answers = judged()
    out = tmp_path / "new" / "judged"
    path = write_evaluation(out, evaluation, scenes, answers.__getitem__, {"model": "unet", "data": "organs"})
    assert path == out / "evaluation.html"
    assert sorted(file.name for file in out.iterdir()) == [
        "evaluation.html", "figures.json", "per_case.csv", "per_class.csv", "per_image.csv",
    ]  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Class by class", "Best, median and worst", "Case by case", "What is taken for what",
    ]  # fmt: skip
    assert "<h1>unet: judged</h1><p>organs</p>" in text
    assert json.loads((out / "figures.json").read_text()) == json.loads(json.dumps(evaluation.summary()))
    rows = table(out / "per_class.csv")
    assert [row["name"] for row in rows] == list(CLASSES)
    assert float(rows[1]["iou"]) == evaluation.per_class[1].iou
    assert rows[0]["hd95"] == ""
    assert [float(row["score"]) for row in table(out / "per_image.csv")] == [
        image.score for image in evaluation.per_image
    ]
    cases = table(out / "per_case.csv")
    assert [float(row["dice liver"]) for row in cases] == [case.dice[1] for case in evaluation.per_case]
    assert {row["hd95 spleen"] for row in cases} == {"2.25"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    evaluation, scenes, answers = judged()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match="taken: cannot write here"):
        write_evaluation(tmp_path / "taken", evaluation, scenes, answers.__getitem__)


def test_what_does_not_belong_together_is_refused(run):
    evaluation, scenes, answers = judged()
    with pytest.raises(DataError, match="11 images for an evaluation of 12"):
        report(run, evaluation, scenes.subset(range(11)), answers)
    with pytest.raises(ConfigError, match="give `answer`"):
        report(run, evaluation, scenes, answers, answer=None)
    images = Images(names=["a"] * 12, labels=np.zeros(12, np.int64), classes=CLASSES, channels=3)
    with pytest.raises(ConfigError, match="Images for a page of SegmentationEvaluation"):
        report(run, evaluation, images, answers)
