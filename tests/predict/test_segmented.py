"""Segmented files: masks that hold exactly the answer, rows of what they cover, nobody else's files overwritten."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segmenters import Layers
from swindow.data import open_data
from swindow.data.legends import palette
from swindow.errors import ConfigError, DataError
from swindow.images import read_image
from swindow.predict import Failure, Predictor, Segmentation, predict_files, segmented
from swindow.preprocess import Preprocess
from swindow.sliding import Views
from tiny_segmenters import segmenter as tiny_segmenter
from tiny_segmenters import stirred

CLASSES = ('red, "dark"', "grün\nжёлтый", "background")
COLOURS = ((200, 30, 20), (20, 190, 40), (0, 0, 0))
PURE = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250)], np.uint8)


def brightest(classes=CLASSES, colours=COLOURS, **preprocess):
    """A model that names the brightest channel of each pixel: what it answers is known."""
    layer = nn.Conv2d(3, len(classes), 1)
    with torch.no_grad():
        layer.weight.zero_()[range(3), range(3)] = 1.0
        layer.bias.zero_()[3:] = -1e3
    model = Layers(layer, len(classes)).eval()
    how = {"size": (64, 64), "mean": (0.5,) * 3, "std": (0.25,) * 3, "fit": "native"} | preprocess
    model.classes, model.colours, model.preprocess = tuple(classes), colours, Preprocess(**how)
    return model


def scene(path, seed=0, size=(30, 40)):
    """A picture of coarse blocks at `path`, and the labels that `brightest` gives it."""
    blocks = np.random.default_rng(seed).integers(0, 3, (size[0] // 10 + 1, size[1] // 10 + 1))
    labels = blocks.repeat(10, 0).repeat(10, 1)[: size[0], : size[1]].astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PURE[labels]).save(path)
    return labels


@pytest.fixture
def predictor():
    return Predictor(brightest())


def rows_of(folder):
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in lines], list(csv.DictReader(file))


def test_the_answer_is_the_models_own(tmp_path):
    model = stirred(tiny_segmenter("upernet"))
    model.preprocess = Preprocess(size=(64, 64), mean=(0.5,) * 3, std=(0.2,) * 3, fit="native")
    scene(tmp_path / "a.png", size=(64, 64))
    found = Predictor(model)(tmp_path / "a.png")
    with torch.no_grad():
        wanted = model(model.preprocess(read_image(tmp_path / "a.png"))[None])[0].argmax(0).numpy()
    assert isinstance(found, Segmentation)
    np.testing.assert_array_equal(found.mask, wanted)
    assert len(np.unique(wanted)) > 1
    assert found.classes == ("0", "1", "2", "3", "4")
    assert found.colours == palette(5)


def test_any_form_of_an_image_and_many_at_once(predictor, tmp_path):
    labels = scene(tmp_path / "a.png")
    array = np.array(Image.open(tmp_path / "a.png"))
    np.save(tmp_path / "a.npy", array)
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), array, tmp_path / "a.npy"]
    forms += [Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)]
    for answer in [*predictor(forms), predictor(forms[0])]:
        np.testing.assert_array_equal(answer.mask, labels)
        assert answer.mask.dtype == np.uint8
    assert predictor(forms[:1])[0].source == str(tmp_path / "a.png")
    assert predictor([]) == []


def test_coverage_is_what_the_mask_covers(predictor, tmp_path):
    labels = scene(tmp_path / "a.png", seed=3)
    coverage = predictor(tmp_path / "a.png").coverage()
    assert list(coverage) == list(CLASSES)
    assert list(coverage.values()) == [pytest.approx((labels == k).mean()) for k in range(3)]
    assert sum(coverage.values()) == pytest.approx(1)


def test_pictures_of_one_size_are_asked_together_and_answers_stay_in_order(tmp_path):
    model = brightest()
    sizes = [(20, 20)] * 5 + [(20, 30)] * 2 + [(20, 20), (90, 90), (20, 20)]  # one of them is slid over
    wanted = [scene(tmp_path / f"{n}.png", seed=n, size=size) for n, size in enumerate(sizes)]
    found = list(Predictor(model, batch=4).stream([tmp_path / f"{n}.png" for n in range(len(sizes))]))
    for labels, answer in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(answer.mask, labels)
    assert [shape[0] for shape in model.inputs[:4]] == [4, 1, 2, 1]


def test_a_bad_image_among_good_ones_changes_only_itself(predictor, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    wanted = [scene(path, seed=number) for number, path in enumerate(paths)]
    paths[2].write_bytes(b"no image")
    found = list(predictor.stream([*paths, tmp_path / "missing.png"]))
    assert [isinstance(answer, Failure) for answer in found] == [False, False, True, False, False, True]
    assert "2.png" in found[2].error
    for number in (0, 1, 3, 4):
        np.testing.assert_array_equal(found[number].mask, wanted[number])
    with pytest.raises(DataError, match=r"2\.png"):
        predictor(paths)


def test_answers_that_are_not_finite_are_errors_of_their_own(tmp_path):
    model = brightest()
    for name in ("a", "b"):
        scene(tmp_path / f"{name}.png")
    with torch.no_grad():
        model.layers.bias[1] = torch.nan
    found = list(Predictor(model).stream([tmp_path / "a.png", tmp_path / "b.png"]))
    assert [answer.error.split(":")[0] for answer in found] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert all("not finite" in answer.error for answer in found)


def test_views_are_how_the_model_looks(tmp_path):
    model = brightest(size=(16, 16))
    scene(tmp_path / "a.png", size=(40, 40))
    Predictor(model, views=Views(mode="slide", overlap=0.5, flip=True))(tmp_path / "a.png")
    assert {shape[2:] for shape in model.inputs} == {(16, 16)}
    assert len(model.inputs) == 2  # as they are and mirrored, all windows at once
    assert model.inputs[0][0] == 16
    with pytest.raises(ConfigError, match="axis is 3"):
        Predictor(model, axis=3)


def test_a_classifier_takes_no_views(tiny):
    model = tiny()
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    assert Predictor(model, views=Views()).segmenter is None
    for wrong in ({"views": Views(flip=True)}, {"axis": 0}):
        with pytest.raises(ConfigError, match=f"not of its pixels: it takes no {next(iter(wrong))}"):
            Predictor(model, **wrong)


def test_files_hold_masks_overlays_and_a_row_for_every_image(predictor, tmp_path):
    wanted = {f"{n}.png": scene(tmp_path / "in" / f"{n}.png", seed=n, size=(30 + n, 40)) for n in range(3)}
    wanted["photo.jpg"] = scene(tmp_path / "in" / "photo.jpg", seed=9, size=(60, 60))
    (tmp_path / "in" / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    summary = predict_files(predictor, [tmp_path / "in"], out)
    lines, table = rows_of(out)
    assert [line["source"] for line in lines] == [row["source"] for row in table]
    assert [line["source"].rsplit("/")[-1] for line in lines] == ["0.png", "1.png", "2.png", "bad.png", "photo.jpg"]
    for line, row in zip(lines, table, strict=True):
        name = line["source"].rsplit("/")[-1]
        if name == "bad.png":
            assert row["error"] == line["error"]
            assert list(line) == ["source", "error"]
            assert row["mask"] == row[f"share of {CLASSES[0]}"] == ""
            continue
        labels = wanted[name]
        assert line["size"] == {"height": labels.shape[0], "width": labels.shape[1]}
        assert (row["depth"], row["height"], row["width"], row["error"]) == ("", *map(str, labels.shape), "")
        assert line["files"]["mask"] == row["mask"] == f"masks/{name[:-4]}.png"
        assert line["files"]["overlay"] == row["overlay"] == f"overlays/{name}"
        for k, named in enumerate(CLASSES):
            assert line["coverage"][named] == pytest.approx((labels == k).mean(), abs=0.02 if "jpg" in name else 1e-6)
            assert float(row[f"share of {named}"]) == pytest.approx(line["coverage"][named], abs=1e-6)
        with Image.open(out / line["files"]["mask"]) as mask:
            assert mask.mode == "P"
            assert tuple(mask.getpalette()[:9]) == tuple(np.ravel(COLOURS))
            np.testing.assert_array_equal(np.asarray(mask), predictor(line["source"]).mask)
            assert mask.size == labels.shape[::-1]
        with Image.open(out / line["files"]["overlay"]) as drawn:
            assert drawn.format == ("JPEG" if "jpg" in name else "PNG")
            assert min(drawn.size) > 400  # enlarged: these pictures are tiny
    assert (summary.count, len(summary.failures)) == (5, 1)
    assert summary.classes == dict.fromkeys(CLASSES, 4)
    assert {path.name for path in summary.files} == {path.name for path in out.iterdir()}
    assert sorted(path.name for path in (out / "masks").iterdir()) == [
        ".swindow",
        "0.png",
        "1.png",
        "2.png",
        "photo.png",
    ]
    said = summary.text().splitlines()
    assert len(said) == 5 + 1 + 6
    assert "5 images: " in said[5]
    assert "background in 4" in said[5]
    assert "1 without a prediction" in said[5]


def test_what_was_predicted_can_be_trained_on(predictor, tmp_path):
    wanted = scene(tmp_path / "out" / "images" / "a.png")
    predict_files(predictor, [tmp_path / "out" / "images"], tmp_path / "out")
    source = open_data(tmp_path / "out", for_training=False)
    (split,) = source.splits().values()
    assert (source.classes, split.colours) == (CLASSES, COLOURS)
    np.testing.assert_array_equal(split.mask(0).numpy(), wanted)


def test_overlays_show_the_classes_over_the_picture(predictor, tmp_path):
    Image.fromarray(PURE[np.tile([[0], [2]], (1, 2)).astype(np.uint8)]).save(tmp_path / "a.png")
    predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out" / "overlays" / "a.png")).astype(int)
    picture = drawn[12 + 24 : 12 + 24 + 480, 12:492]
    assert (picture[300, 240] == PURE[2]).all()  # the background is left alone
    assert np.abs(picture[100, 240] - (0.7 * PURE[0] + 0.3 * np.array(COLOURS[0]))).max() < 2
    assert (picture[239, 240] == COLOURS[0]).all()  # the outline
    key = drawn[12 + 24 + 480 + 12 :]
    assert (key == COLOURS[0]).all(axis=2).any()
    assert not (key == COLOURS[1]).all(axis=2).any()  # a class that does not occur is not explained


def test_more_than_256_classes_take_16_bits(tmp_path):
    classes = tuple(f"class {number}" for number in range(300))
    model = brightest(classes, None)
    with torch.no_grad():
        model.layers.weight[299] = torch.tensor([0.0, 0.0, 2.0])[:, None, None]
        model.layers.bias[299] = 0.0
    labels = scene(tmp_path / "a.png").astype(np.uint16)
    labels[labels == 2] = 299
    predict_files(Predictor(model), [tmp_path / "a.png"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert mask.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(mask), labels)
    assert len(rows_of(tmp_path / "out")[0][0]["coverage"]) == 300


@pytest.mark.parametrize("classes", [255, 256, 257])
def test_every_index_up_to_the_last_survives_its_png(classes, tmp_path):
    mask = np.arange(classes, dtype=np.uint16).reshape(1, -1)
    (tmp_path / "m.png").write_bytes(segmented.index_png(mask, palette(classes)))
    with Image.open(tmp_path / "m.png") as read:
        assert read.mode == ("P" if classes <= 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(read), mask)


def test_stems_that_are_alike_get_numbers(predictor, tmp_path):
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/x.jpg", "c/X.png", "c/x-2.png")]
    wanted = [scene(path, seed=number) for number, path in enumerate(paths)]
    predict_files(predictor, paths, tmp_path / "out")
    lines, _ = rows_of(tmp_path / "out")
    names = [line["files"]["mask"] for line in lines]
    assert len({name.casefold() for name in names}) == 5
    assert names[0] == "masks/x.png"
    assert names[1] == "masks/x-2.png"
    for line, labels, path in zip(lines, wanted, paths, strict=True):
        if path.suffix == ".png":
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / line["files"]["mask"])), labels)
    first = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    predict_files(predictor, paths, tmp_path / "out")  # again: in the same places, and nothing more
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")} == first


def test_masks_that_people_made_are_never_replaced(predictor, tmp_path):
    scene(tmp_path / "data" / "images" / "a.png")
    truth = scene(tmp_path / "data" / "masks" / "a.png", seed=7)
    before = (tmp_path / "data" / "masks" / "a.png").read_bytes()
    with pytest.raises(ConfigError, match=r"masks/a\.png: is there already.*--out"):
        predict_files(predictor, [tmp_path / "data" / "images"], tmp_path / "data")
    assert (tmp_path / "data" / "masks" / "a.png").read_bytes() == before
    assert not (tmp_path / "data" / "overlays").exists()
    assert truth.any()


def test_predicting_into_the_folder_of_images_leaves_our_own_files_out(predictor, tmp_path):
    scene(tmp_path / "a.png")
    scene(tmp_path / "masks.png", seed=1)
    assert predict_files(predictor, [tmp_path], tmp_path).count == 2
    assert predict_files(predictor, [tmp_path], tmp_path).count == 2


def test_an_interrupted_call_leaves_the_rows_and_goes_on_the_next_time(predictor, tmp_path, monkeypatch):
    for number in range(3):
        scene(tmp_path / "in" / f"{number}.png", seed=number)
    out, record = tmp_path / "out", segmented._record

    def interrupted(*arguments):
        if (out / "masks" / "1.png").exists():
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(segmented, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [tmp_path / "in"], out)
    assert sorted(path.name for path in out.iterdir()) == ["classes.toml", "masks", "overlays"]
    monkeypatch.setattr(segmented, "_record", record)
    assert predict_files(predictor, [tmp_path / "in"], out).count == 3
    assert len(rows_of(out)[0]) == 3


def test_a_place_that_cannot_be_written_is_one_line(predictor, tmp_path):
    scene(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: cannot write predictions here .*--out"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "file")


def test_no_sheet_is_made_when_none_is_asked_for_and_it_shows_failures_too(predictor, tmp_path):
    scene(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    predict_files(predictor, [tmp_path / "in"], tmp_path / "none", sheet=False)
    assert not (tmp_path / "none" / "sheet.png").exists()
    predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))
    assert (sheet == COLOURS[0]).all(axis=2).any()
    assert (sheet == (0xC4, 0x38, 0x2B)).all(axis=2).any()  # the cross of what cannot be used


def test_first_answers_keep_no_masks(predictor, tmp_path):
    scene(tmp_path / "a.png")
    (first,) = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out").first
    assert not hasattr(first.mask, "shape")
    assert first.size == (30, 40)
    assert first.mask == tmp_path / "out" / "masks" / "a.png"
