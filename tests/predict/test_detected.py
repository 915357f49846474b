"""Detected files: COCO results that its own tools read, rows of what is sure, overlays, nobody's files overwritten."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from spotters import CLASSES, Spotter, picture
from swindow.data.legends import palette
from swindow.errors import ConfigError, DataError
from swindow.objects import Detections
from swindow.predict import Counted, Failure, Found, Predictor, predict_files
from swindow.predict.coco import mask_in_runs
from swindow.preprocess import Preprocess
from swindow.sliding import Views

# pycocotools' own business, on every mask that it decodes
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPOTS = [(0, 0.9, (3, 4, 10, 12)), (1, 0.8, (20, 2, 30, 9)), (0, 0.6, (15, 20, 38, 28)), (2, 0.4, (1, 20, 6, 25))]


def save(path, spots=SPOTS, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(*size, spots)).save(path)
    return path


@pytest.fixture
def predictor():
    return Predictor(Spotter())


def results_of(folder):
    """What the four files hold."""
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results, images = (json.loads((folder / f"{name}.json").read_text()) for name in ("detections", "images"))
    return lines, rows, results, images


def test_the_answer_is_the_models_own_in_the_pictures_pixels(tmp_path):
    save(tmp_path / "a.png")
    found = Predictor(Spotter(zoom=2.0, interpolation="bilinear"))(tmp_path / "a.png")
    assert isinstance(found, Found)
    assert found.size == (30, 40)
    assert found.detections.labels.tolist() == [0, 1, 0, 2]
    np.testing.assert_allclose(found.detections.boxes, [box for *_, box in SPOTS], atol=0.5)
    assert found.classes == CLASSES
    assert found.colours == palette(3)
    assert found.top(2) == [("red", pytest.approx(0.9, abs=0.01)), ("green", pytest.approx(0.8, abs=0.01))]
    assert found.counts() == {"red": 2, "green": 1}
    assert found.counts(0.85) == {"red": 1}
    assert len(found.above(0.0)) == 4


def test_any_form_of_an_image_and_many_at_once(predictor, tmp_path):
    save(tmp_path / "a.png")
    array = picture(30, 40, SPOTS)
    forms = [
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    for answer in [*predictor(forms), predictor(forms[2])]:
        assert answer.detections.boxes.tolist() == [list(box) for *_, box in SPOTS]
    assert predictor([]) == []


def test_like_pictures_are_asked_together_and_answers_stay_in_order():
    sizes = [(20, 20)] * 3 + [(24, 20), (200, 20), (20, 20)]
    spots = [[(k % 3, 0.9, (k, 1, k + 4, 9))] for k in range(len(sizes))]
    model = Spotter()
    found = Predictor(model)([picture(*size, some) for size, some in zip(sizes, spots, strict=True)])
    assert [answer.detections.boxes.tolist() for answer in found] == [[list(some[0][2])] for some in spots]
    assert [shape[0] for shape in model.inputs] == [4, 1, 1]  # a long one would be mostly padding beside the others
    model.inputs.clear()
    Predictor(model, batch=2)([picture(*size, some) for size, some in zip(sizes, spots, strict=True)])
    assert [shape[0] for shape in model.inputs] == [2, 2, 1, 1]


def test_a_bad_image_among_good_ones_changes_only_itself(predictor, tmp_path):
    paths = [save(tmp_path / f"{number}.png") for number in range(4)]
    paths[1].write_bytes(b"no image")
    found = list(predictor.stream([*paths, tmp_path / "missing.png"]))
    assert [isinstance(answer, Failure) for answer in found] == [False, True, False, False, True]
    assert "1.png" in found[1].error
    with pytest.raises(DataError, match=r"1\.png"):
        predictor(paths)


def test_answers_that_are_not_finite_are_errors_of_their_own(tmp_path):
    paths = [save(tmp_path / f"{width}.png", size=(30, width)) for width in (40, 41, 42)]
    model = Spotter(broken=41)
    found = list(Predictor(model).stream(paths))
    assert [type(answer) for answer in found] == [Found, Failure, Found]
    assert found[1].error.startswith(f"{paths[1]}: ")
    assert "not finite" in found[1].error
    assert [shape[0] for shape in model.inputs] == [3, 1, 1, 1]


def test_detectors_take_no_views_and_others_no_threshold(tmp_path, tiny):
    with pytest.raises(ConfigError, match="finds objects in whole pictures: it takes no views"):
        Predictor(Spotter(), views=Views(flip=True))
    with pytest.raises(ConfigError, match="takes no axis"):
        Predictor(Spotter(), axis=1)
    model = tiny()
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ConfigError, match="finds no objects: it takes no threshold"):
        predict_files(Predictor(model), [save(tmp_path / "a.png")], tmp_path / "out", threshold=0.5)
    with pytest.raises(ConfigError, match=r"threshold is 1\.5; scores lie in 0\.\.1"):
        predict_files(Predictor(Spotter()), [tmp_path / "a.png"], tmp_path / "out", threshold=1.5)


def test_files_hold_rows_results_and_overlays(predictor, tmp_path):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.jpg", spots=[])
    (tmp_path / "in" / "bad.png").write_bytes(b"not an image")
    save(tmp_path / "in" / "c.png", spots=SPOTS[1:2], size=(60, 50))
    out = tmp_path / "out"
    summary = predict_files(predictor, [tmp_path / "in"], out)
    lines, rows, results, images = results_of(out)
    first, empty, bad, last = lines
    assert first["size"] == {"height": 30, "width": 40}
    assert first["counts"] == {"red": 2, "green": 1}
    assert [one["class"] for one in first["objects"]] == ["red", "green", "red"]
    assert [one["box"] for one in first["objects"]] == [list(box) for *_, box in SPOTS[:3]]
    assert first["files"] == {"overlay": "overlays/a.jpg"}
    assert (empty["objects"], empty["counts"]) == ([], {})
    assert list(bad) == ["source", "error"]
    assert (last["image_id"], last["counts"]) == (4, {"green": 1})

    assert [row["class"] for row in rows] == ["red", "green", "red", "", "", "green"]
    assert [float(rows[0][side]) for side in ("left", "top", "right", "bottom")] == list(SPOTS[0][2])
    assert float(rows[1]["score"]) == pytest.approx(0.8, abs=0.01)
    assert rows[4]["error"] == bad["error"]
    assert rows[4]["image_id"] == rows[4]["overlay"] == ""
    assert rows[3]["overlay"] == "overlays/b.jpg"

    assert [row["image_id"] for row in results] == [1, 1, 1, 1, 4]  # with what is below the threshold
    assert [row["category_id"] for row in results] == [1, 2, 1, 3, 2]
    assert results[0]["bbox"] == [3, 4, 7, 8]
    assert results[0]["file_name"] == first["source"]
    assert "segmentation" not in results[0]
    assert [image["id"] for image in images["images"]] == [1, 2, 4]
    assert images["categories"] == [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]

    for name in ("a", "b", "c"):
        with Image.open(out / "overlays" / f"{name}.jpg") as drawn:
            assert min(drawn.size) > 400  # enlarged: these pictures are tiny
    assert {path.name for path in summary.files} == {path.name for path in out.iterdir()}
    assert (summary.count, len(summary.failures)) == (4, 1)
    assert summary.classes == {"red": 2, "green": 2}
    assert isinstance(summary.first[0], Counted)
    said = summary.text().splitlines()
    assert said[0].endswith("a.png: 2 red, 1 green")
    assert said[1].endswith("b.jpg: nothing with a score of 0.5 or more")
    assert said[4] == "4 images: 2 red, 2 green, 1 without a prediction"


def test_a_threshold_changes_what_is_listed_and_not_the_results(predictor, tmp_path):
    save(tmp_path / "a.png")
    summary = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", threshold=0.85, sheet=False)
    lines, rows, results, _ = results_of(tmp_path / "out")
    assert (len(lines[0]["objects"]), len(rows), len(results)) == (1, 1, 4)
    assert not (tmp_path / "out" / "sheet.png").exists()
    assert summary.text().splitlines()[1] == "1 image: 1 red"
    none = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", threshold=1.0, sheet=False)
    assert none.text().splitlines()[1] == "1 image: nothing found"


@pytest.mark.parametrize("whole", [False, True])
def test_cocos_own_tools_read_the_results(tmp_path, whole):
    api = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    pictures = {"a.png": SPOTS, "b.png": [], "c.png": SPOTS[:2]}
    for name, spots in pictures.items():
        save(tmp_path / "in" / name, spots)
    predict_files(Predictor(Spotter(masks=True, whole=whole)), [tmp_path / "in"], tmp_path / "out")
    truth = json.loads((tmp_path / "out" / "images.json").read_text())
    truth["info"] = {}
    for image, spots in zip(truth["images"], pictures.values(), strict=True):
        for label, _, (left, top, right, below) in spots:
            box = [left, top, right - left, below - top]
            outline = [left, top, right, top, right, below, left, below]
            one = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": label + 1, "bbox": box}
            one |= {"area": box[2] * box[3], "iscrowd": 0, "segmentation": [outline]}
            truth["annotations"].append(one)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = api.COCO(str(tmp_path / "truth.json"))
        found = loaded.loadRes(str(tmp_path / "out" / "detections.json"))
        for kind in ("bbox", "segm"):
            judged = evaluation.COCOeval(loaded, found, kind)
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
            assert judged.stats[0 if kind == "bbox" or whole else 1] == pytest.approx(1.0)  # corners are rounded
    mask = found.annToMask(found.loadAnns(found.getAnnIds(imgIds=[1]))[0])
    left, top, right, below = SPOTS[0][2]
    assert mask.sum() == mask[top:below, left:right].sum()
    area = (right - left) * (below - top)
    assert int(mask.sum()) in ([area] if whole else range(area - 4, area + 1))


def random_masks(seed, whole):
    draw = torch.Generator().manual_seed(seed)
    start = torch.rand(12, 2, generator=draw) * torch.tensor([30.0, 20])
    boxes = torch.cat([start, start + torch.rand(12, 2, generator=draw) * 20 + 0.3], dim=1).clamp(max=37.0)
    boxes[0] = torch.tensor([0.0, 0, 41, 37])
    masks = torch.rand(12, 6, 5, generator=draw)
    masks[1] = 0
    masks[2] = masks[0] = 1
    return Detections(
        boxes=boxes, scores=torch.ones(12), labels=torch.zeros(12).long(), size=(37, 41), masks=masks, whole=whole
    )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_masks_in_runs_are_those_that_the_answer_has(seed, whole):
    coding = pytest.importorskip("pycocotools.mask")
    found = random_masks(seed, whole)
    for index in range(len(found)):
        wanted = found.mask(index).numpy()
        runs = mask_in_runs(found, index)
        np.testing.assert_array_equal(coding.decode(runs), wanted)
        assert runs["counts"] == coding.encode(np.asfortranarray(wanted.astype(np.uint8)))["counts"].decode()


def test_masks_of_large_pictures_take_no_canvas_each(monkeypatch):
    """Only the columns of a mask are pasted: a hundred of them in 48 million pixels are a matter of a second."""
    made = []
    from swindow import objects

    real = objects.pasted
    monkeypatch.setattr(objects, "pasted", lambda mask, box, size: made.append(size) or real(mask, box, size))
    boxes = torch.tensor([[7000.0, 5000, 7100, 5050]])
    found = Detections(
        boxes=boxes, scores=torch.ones(1), labels=torch.zeros(1).long(), size=(6000, 8000), masks=torch.ones(1, 28, 28)
    )
    runs = mask_in_runs(found, 0)
    assert made == [(6000, 101)]
    coding = pytest.importorskip("pycocotools.mask")
    assert coding.area(runs) == 100 * 50 - 4  # bilinear between 1 and 0: its corners are below a half
    assert coding.toBbox(runs).tolist() == [7000, 5000, 100, 50]


def test_names_that_are_alike_get_numbers(predictor, tmp_path):
    paths = [save(tmp_path / name) for name in ("x/a.png", "y/a.png", "y/A.jpg")]
    predict_files(predictor, paths, tmp_path / "out")
    lines = results_of(tmp_path / "out")[0]
    assert [line["files"]["overlay"] for line in lines] == ["overlays/a.jpg", "overlays/a-2.jpg", "overlays/A-3.jpg"]


@pytest.mark.parametrize("name", ["detections.json", "images.json", "overlays/a.jpg"])
def test_what_somebody_else_wrote_is_not_replaced(predictor, tmp_path, name):
    source = save(tmp_path / "a.png")
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"no prediction of before; give another --out"):
        predict_files(predictor, [source], tmp_path / "out")
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]


def test_a_second_call_replaces_the_first_and_does_not_predict_its_overlays(predictor, tmp_path):
    save(tmp_path / "data" / "a.png")
    for _ in range(2):
        summary = predict_files(predictor, [tmp_path / "data"], tmp_path / "data")
        assert summary.count == 1
    assert len(results_of(tmp_path / "data")[2]) == 4


def test_an_interrupted_call_leaves_the_files_of_the_one_before(predictor, tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{number}.png") for number in range(3)]
    predict_files(predictor, paths[:1], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    monkeypatch.setattr("swindow.predict.detected.draw_detections", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_files(predictor, paths, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def test_overlays_and_sheet_show_the_objects_in_their_colours(predictor, tmp_path):
    grey = [(label, score, box) for label, score, box in SPOTS]
    save(tmp_path / "a.png", grey)
    predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as drawn:
        pixels = np.asarray(drawn).astype(int)
    colours = palette(3)
    seen = [int((np.abs(pixels - colour).max(axis=2) < 12).sum()) for colour in colours]
    assert seen[0] > 500
    assert seen[1] > 500
    assert seen[2] < 100  # below the threshold: only named nowhere
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert (np.asarray(sheet) == colours[0]).all(axis=2).any()
