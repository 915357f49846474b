"""The report: one file that needs nothing else, says the run's figures, and cannot be broken by names."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from report_pages import EVIL, FACTS, Page
from swindow.data import Images
from swindow.errors import DataError
from swindow.evaluation import Evaluation
from swindow.metrics import ClassificationMetrics, class_scores
from swindow.reporting import read_metrics, write_report


def judged(classes, *, count=60, side=12, channels=3, right=False):
    """Random images and what a model that is better than chance says about them."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(len(classes), (count,), generator=generator)
    logits = torch.randn(count, len(classes), generator=generator)
    logits[torch.arange(count), labels] += 50 if right else 1
    metrics = ClassificationMetrics(len(classes))
    metrics.update(logits, labels)
    figures = metrics.compute()
    pixels = torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    names = [f"/data/photos/{classes[label]}/{row}.png" for row, label in enumerate(labels)]
    images = Images(names=names, labels=labels.numpy(), classes=classes, channels=channels, pixels=pixels)
    evaluation = Evaluation(
        split="test",
        classes=classes,
        per_class=class_scores(figures["confusion"], classes),
        probabilities=logits.softmax(dim=1).numpy(),
        labels=labels.numpy(),
        names=tuple(names),
        **figures,
    )
    return evaluation, images


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it."""
    rows = [
        {"kind": "train", "step": s, "epoch": 0, "loss": 3 / s, "accuracy": 0.5, "lr_share": 1.0} for s in range(1, 40)
    ]
    rows += [{"kind": "val", "step": s, "epoch": 0, "loss": 2 / s, "accuracy": 0.6} for s in (20, 39)]
    folder = tmp_path / "first <run>"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text('data = "<b>photos</b>"\nepochs = 100\n')
    (folder / "environment.json").write_text(json.dumps({"torch": "2.14.1", "gpus": [], "cores": 2}))
    return folder


def report(run, evaluation, images, **changes):
    given = {"batch": images.pixels[:30], "labels": torch.from_numpy(images.labels[:30]), "facts": FACTS, **changes}
    path = write_report(run, evaluation=evaluation, images=images, classes=evaluation.classes, **given)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_says_the_figures_of_the_run(run):
    evaluation, images = judged(("ant", "bee", "cat", "dog"))
    text, page = report(run, evaluation, images)
    said = " ".join(" ".join(page.texts).split())
    right = round(evaluation.accuracy * 60)
    for figure in (
        f"{evaluation.accuracy:.2%}",
        f"{right} of 60 images",
        f"{evaluation.loss:.3f}",
        "1.39 by chance",
        "2.6 M",
        "2:35",
        "100 epochs, 1,900 steps, stopped by max_minutes, 3 unreadable images skipped",
        "1.23 GiB tensors on cuda:0",
        "photos (folder): 4 classes",
        "swin_nano: first <run>",
        "2.14.1",
        'data = "<b>photos</b>"',
        f"{evaluation.confusions()[0].truth} taken for {evaluation.confusions()[0].predicted}",
    ):
        assert figure in said
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert len(headings) == len(set(headings)) == 8
    assert text.count("<polyline") == 5  # loss and accuracy twice, the learning rate once


def test_the_page_needs_nothing_and_runs_nothing(run):
    _, page = report(run, *judged(EVIL))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith("data:image/")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "//" not in re.sub(r'src="data:[^"]*"', "", text).replace("</", "")


def test_names_are_shown_as_they_are_written_and_do_nothing(run):
    evaluation, images = judged(EVIL)
    text, page = report(run, evaluation, images)
    assert "<script" not in text
    assert "\x00" not in text
    said = "".join(page.texts)
    for name in EVIL[:3]:
        assert name in said
    assert "犬 \ufffd?" in said


def test_mistakes_are_the_surest_ones_with_their_pictures(run):
    evaluation, images = judged(("ant", "bee", "cat", "dog"))
    text, _ = report(run, evaluation, images)
    figures = re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL)
    rows = evaluation.mistakes()[:24]
    assert len(figures) == len(rows) + 24
    for row, figure in zip(rows, figures, strict=False):
        said = evaluation.classes[evaluation.probabilities[row].argmax()]
        assert f"{evaluation.probabilities[row].max():.1%}" in figure
        assert f'<span class="said">{said} ' in figure
        assert f"{evaluation.classes[evaluation.labels[row]]}/{row}.png</small>" in figure
        data = re.search(r'alt="[^"]+" src="data:image/png;base64,([^"]+)"', figure).group(1)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(shown, images.read(row).permute(1, 2, 0).numpy())


def test_classes_come_hardest_first_with_bars_as_long_as_their_scores(run):
    evaluation, images = judged(("ant", "bee", "cat", "dog"))
    text, _ = report(run, evaluation, images)
    rows = re.findall(r"<tr><td class=\"name\">(\w+)</td>.*?</tr>", text)
    f1 = {score.name: score.f1 for score in evaluation.per_class}
    assert rows == sorted(f1, key=f1.__getitem__)
    widths = re.findall(r"<i style=\"width:([\d.]+)%\">", text)
    hardest = next(score for score in evaluation.per_class if score.name == rows[0])
    assert [float(width) for width in widths[:3]] == [
        pytest.approx(100 * share, abs=0.05) for share in (hardest.recall, hardest.precision, hardest.f1)
    ]


def test_a_class_without_images_has_no_score(run):
    evaluation, images = judged(("ant", "bee", "cat"))
    object.__setattr__(evaluation, "per_class", class_scores(np.diag([30, 30, 0]), evaluation.classes))
    text, _ = report(run, evaluation, images)
    assert re.findall(
        r"<tr><td class=\"name\">cat</td><td class=\"number\">0</td>(<td class=\"share\"><span>–</span></td>)", text
    )


def test_a_faultless_model_has_no_mistakes_to_show(run):
    text, _ = report(run, *judged(("ant", "bee"), right=True))
    assert "None: every image was answered rightly." in text
    assert "taken for" not in re.sub("most often taken for|What is taken for what", "", text)


def test_a_run_that_left_little_still_gets_its_page(tmp_path):
    evaluation, images = judged(("ant", "bee"), channels=1)
    text, page = report(tmp_path, evaluation, images, batch=None, labels=None, facts={})
    assert "No measurements." in text
    assert "What the model saw" not in text
    assert tmp_path.name in "".join(page.texts)


def test_the_page_stays_below_3_mb_however_large_the_data(run):
    classes = tuple(f"class {'long ' * 10}{k}" for k in range(300))
    evaluation, images = judged(classes, count=6000, side=64)
    big = torch.randint(256, (30, 3, 512, 512), dtype=torch.uint8)
    text, _ = report(run, evaluation, images, batch=big, labels=torch.eye(300)[:30])
    assert len(text.encode()) < 3_000_000
    assert "The 100 classes with the most mistakes, of 300." in text
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(data))).size for data in re.findall(r"image/jpeg;base64,([^\"]+)", text)
    ]
    assert sizes == [(192, 192)] * 24


def test_measurements_are_read_in_order_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"kind": "train", "step": 2, "loss": 9}', '{"kind": "train", "step": 1, "loss": 3}', '{"kind": "tra']
    path.write_text("\n".join([*lines, '{"kind": "train", "step": 2, "loss": 1}', "[]", '{"kind": "val", "step": 2}']))
    found = read_metrics(path)
    assert [(row["step"], row["loss"]) for row in found["train"]] == [(1, 3), (2, 1)]
    assert [row["step"] for row in found["val"]] == [2]
    assert read_metrics(tmp_path / "none") == {}


def test_values_that_are_not_finite_are_left_out_of_the_curves(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 40, "loss": NaN, "accuracy": null, "lr_share": Infinity}\n')
    text, _ = report(run, *judged(("ant", "bee")))
    assert "nan" not in re.findall("<svg.*?</svg>", text, flags=re.DOTALL)[0].lower()


def test_images_of_another_split_are_refused(run):
    evaluation, images = judged(("ant", "bee"))
    with pytest.raises(DataError, match="59 images for an evaluation of 60"):
        report(run, evaluation, images.subset(np.arange(59)))
