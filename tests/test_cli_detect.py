"""The command line with a detector: trained on COCO's form, judged, asked, explained; what is for others is refused."""

import csv
import json
import tomllib

import numpy as np
import pytest
from PIL import Image

from swindow import cli
from swindow.cli.train import _tuples

TINY = [
    *("--model", "mask_rcnn_swin_nano", "--fields", "patch", "2", "window", "4", "dim", "12", "pyramid_width", "8"),
    *("box_width", "16", "mask_width", "8", "mask_convs", "1", "regions.candidates", "50", "50", "regions.proposals"),
    *("20", "20", "score_threshold", "0.01", "--size", "64", "--batch", "4", "--device", "cpu", "--workers", "0"),
]
CLASSES = ("disc", "square")


def call(*words):
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    return caught.value.code


def scene(seed):
    """A picture of bright squares and discs on grey, and class and box of each."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(90, 110, (48, 64, 3))
    rows, columns = np.ogrid[:48, :64]
    objects = []
    for label, left in ((0, 4), (1, 34)):
        side, top = int(draw.integers(12, 22)), int(draw.integers(2, 24))
        inside = (abs(rows - top - side / 2 + 0.5) < side / 2) & (abs(columns - left - side / 2 + 0.5) < side / 2)
        if label == 0:
            inside = (rows - top - side / 2 + 0.5) ** 2 + (columns - left - side / 2 + 0.5) ** 2 < side**2 / 4
        pixels[inside] = (240, 60, 40) if label == 0 else (40, 80, 240)
        objects.append((label, (left, top, side, side)))
    return pixels.astype(np.uint8), objects


def coco_folder(root):
    """images/ and annotations/ with a file for each split; category 7 and 9."""
    for split, numbers in {"train": range(8), "val": range(20, 24)}.items():
        images, annotations = [], []
        for number in numbers:
            pixels, objects = scene(number)
            path = root / split / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            images.append({"id": number + 100, "file_name": f"{split}/{number:03}.png", "height": 48, "width": 64})
            for label, (left, top, wide, tall) in objects:
                outline = [left, top, left + wide, top, left + wide, top + tall, left, top + tall]
                one = {"id": len(annotations) + 1, "image_id": number + 100, "category_id": 7 + 2 * label}
                one |= {"bbox": [left, top, wide, tall], "area": wide * tall, "iscrowd": 0, "segmentation": [outline]}
                annotations.append(one)
        categories = [{"id": 7 + 2 * k, "name": name} for k, name in enumerate(CLASSES)]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def detecting(tmp_path_factory):
    """A folder with pictures of objects and a run of a detector that saw them for some steps."""
    folder = tmp_path_factory.mktemp("detect")
    coco_folder(folder / "data")
    words = ["train", folder / "data", *TINY, "--epochs", "2", "--eval-every", "2", "--no-report", "--no-tensorboard"]
    assert call(*words, "--objects.malformed", "drop", "--out", folder / "run") == 0
    return folder


def test_what_is_done_with_wrong_boxes_reaches_the_recipe_and_the_run(detecting, tmp_path, capsys):
    written = tomllib.loads((detecting / "run" / "config.toml").read_text())
    assert written["objects"]["malformed"] == "drop"
    assert written["task"] in ("auto", "detect")
    assert written["recipe"] in ("few-objects", "finetune-objects")
    coco_folder(tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["bbox"] = [1, 2, "three", 4]
    path.write_text(json.dumps(content))
    (tmp_path / "some.toml").write_text("[objects]\nmalformed = 'stop'\noutside = 'stop'\n")
    words = ["train", tmp_path / "data", *TINY, "--config", tmp_path / "some.toml", "--no-report", "--no-tensorboard"]
    assert call(*words, "--max-steps", "1", "--out", tmp_path / "run") == 2
    assert "train.json" in capsys.readouterr().err.splitlines()[-1]
    assert call(*words, "--max-steps", "1", "--out", tmp_path / "run", "--objects.malformed", "drop") == 0
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["objects"]
    assert (written["malformed"], written["outside"]) == ("drop", "stop")


def test_data_check_names_wrong_boxes_with_file_and_id(detecting, tmp_path, capsys):
    assert call("data", "check", detecting / "data") == 0
    coco_folder(tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["category_id"] = 8
    path.write_text(json.dumps(content))
    assert call("data", "check", tmp_path / "data", "--task", "detect") == 1
    said = capsys.readouterr().out
    assert "val.json" in said
    assert str(content["annotations"][2]["id"]) in said


def test_predict_writes_results_rows_and_overlays(detecting, tmp_path, capsys):
    new, out = detecting / "data" / "val", tmp_path / "out"
    words = ["predict", detecting / "run", new, "--device", "cpu"]
    assert call(*words, "--out", out, "--threshold", "0.0") == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    results, images = (json.loads((out / f"{name}.json").read_text()) for name in ("detections", "images"))
    assert results
    assert len(results) == sum(len(line["objects"]) for line in lines)
    assert {row["image_id"] for row in results} <= {image["id"] for image in images["images"]} == {1, 2, 3, 4}
    assert {row["category_id"] for row in results} <= {1, 2}
    assert [category["name"] for category in images["categories"]] == list(CLASSES)
    for row in results:
        left, top, wide, tall = row["bbox"]
        assert -1e-3 <= left <= left + wide <= 64 + 1e-3
        assert -1e-3 <= top <= top + tall <= 48 + 1e-3
        assert row["segmentation"]["size"] == [48, 64]
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) >= len(results)
    assert len(list((out / "overlays").glob("*.jpg"))) == 4
    assert "4 images: " in capsys.readouterr().out
    assert call(*words, "--out", out, "--threshold", "1.0", "--no-sheet") == 0
    assert "4 images: nothing found" in capsys.readouterr().out
    assert len(json.loads((out / "detections.json").read_text())) == len(results)
    (tmp_path / "bad.png").write_bytes(b"")
    assert call(*words[:3], tmp_path / "bad.png", *words[3:], "--out", out) == 1
    assert "bad.png" in capsys.readouterr().out


def test_eval_prints_average_precision_and_writes_a_page_tables_and_a_sheet(detecting, tmp_path, capsys):
    out = tmp_path / "eval"
    assert call("eval", detecting / "run", "--out", out, "--device", "cpu", "--threshold", "0.25") == 0
    said = capsys.readouterr().out
    assert "mask AP" in said
    assert "0.25 (as asked)" in said
    assert str(out / "sheet.png") in said
    figures = json.loads((out / "figures.json").read_text())
    assert figures["count"] == 4
    assert figures["threshold"] == 0.25
    assert figures["score"] == pytest.approx(json.loads((detecting / "run" / "result.json").read_text())["score"])
    with (out / "per_class.csv").open(encoding="utf-8", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(CLASSES)
    assert "<html" in (out / "evaluation.html").read_text(encoding="utf-8")
    assert call("eval", detecting / "run", "--out", tmp_path / "eval.json", "--device", "cpu") == 0
    assert json.loads((tmp_path / "eval.json").read_text())["score"] == figures["score"]


def test_explain_takes_the_rank_of_an_object(detecting, tmp_path):
    image = detecting / "data" / "val" / "020.png"
    words = ["explain", detecting / "run", image, "--device", "cpu"]
    assert call(*words, "--object", "1", "--out", tmp_path / "why") == 0
    assert {"index.html", "gradcam.png"} <= {path.name for path in (tmp_path / "why").iterdir()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "RUN", "IMAGE", "--views.flip"], "it takes no views"),
        (["predict", "RUN", "IMAGE", "--axis", "1"], "it takes no axis"),
        (["predict", "RUN", "IMAGE", "--top", "2"], "--threshold says which objects are listed"),
        (["predict", "RUN", "IMAGE", "--threshold", "50"], "scores lie in 0..1"),
        (["eval", "RUN", "--views.mode", "slide", "--masks.case", "x"], "it takes no --views and --masks"),
        (["eval", "RUN", "--threshold", "2"], "0..1"),
        (["explain", "RUN", "IMAGE", "--object", "1000"], "object"),
    ],
)
def test_what_is_for_other_models_or_cannot_be_is_one_line(detecting, tmp_path, capsys, words, says):
    places = {"RUN": detecting / "run", "IMAGE": detecting / "data" / "val" / "020.png"}
    out = ["--out", tmp_path / "out"]
    assert call(*[places.get(word, word) for word in words], *out) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_models_shows_detectors_at_the_size_of_their_papers(capsys, monkeypatch):
    assert call("models", "mask_rcnn_swin_tiny") == 0
    said = capsys.readouterr().out
    assert "47.8 M parameters" in said
    assert "at 800x1280 px" in said
    monkeypatch.setattr("swindow.cli.models.VARIANTS", {"swin_nano": None})
    monkeypatch.setattr("swindow.cli.models.NAMED", ())
    assert call("models") == 0
    said = capsys.readouterr().out
    assert "to find objects:" in said
    assert "mask_rcnn_" in said
    assert call("info", "retinanet_swin_nano", "--classes", "3", "--size", "64", "96") == 0
    assert "64x96" in capsys.readouterr().out


def test_every_detector_that_is_named_exists():
    from swindow.backbones import VARIANTS
    from swindow.cli.models import FINDERS
    from swindow.model import models

    assert {f"{head}_{name}" for head in FINDERS for name in VARIANTS} <= set(models())
    assert {"detr_resnet50", "detr_resnet101"} <= set(models())


def test_one_value_for_a_field_of_several_within_a_field_is_one_of_them():
    given = {"regions.scales": 4, "regions.ratios": (1, 2), "regions.nms": 0.5, "num_heads": 3}
    wanted = {"regions.scales": (4,), "regions.ratios": (1, 2), "regions.nms": 0.5, "num_heads": (3,)}
    assert _tuples(given, "mask_rcnn_swin_nano") == wanted
