"""Prediction: one image or many, the same answer; bad ones are rows like the others; files are whole or absent."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import hostile
from pictures import HUES, class_folders, picture
from swindow.checkpoints import save
from swindow.errors import ConfigError, DataError
from swindow.images import ImageLimits, read_image
from swindow.predict import Failure, Prediction, Predictor, classified, predict_files
from swindow.preprocess import Preprocess

# A comma, a quote, a line break, markup and letters that no font here has.
CLASSES = ('red, "dark"', "grün\nжёлтый", "<b>青い🟦</b>")


@pytest.fixture
def model(tiny):
    model = tiny(num_classes=3)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    model.classes = CLASSES
    torch.nn.init.normal_(model.head.linear.weight, std=1.0)
    return model


@pytest.fixture
def predictor(model):
    return Predictor(model, batch=4)


def rows_of(folder):
    """Both files of predictions, read back."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in lines], list(csv.DictReader(file))


def test_probabilities_are_the_models_own(model, predictor):
    image = picture(HUES["red"], 1)
    found = predictor(image)
    with torch.no_grad():
        wanted = model(model.preprocess(read_image(image))[None])[0].softmax(0)
    np.testing.assert_allclose(found.probabilities, wanted.numpy(), atol=1e-6)
    order = sorted(range(3), key=lambda k: -wanted[k])
    assert found.top(2) == [(CLASSES[k], pytest.approx(float(wanted[k]), abs=1e-6)) for k in order[:2]]
    assert len(found.top(99)) == 3


def test_one_image_in_any_form_and_many_at_once(predictor, tmp_path):
    image = picture(HUES["blue"], 2, (30, 20))
    path = tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    forms = [str(path), path, path.read_bytes(), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    singles = [predictor(form) for form in forms]
    for single, together in zip(singles, predictor(forms), strict=True):
        np.testing.assert_array_equal(single.probabilities, singles[0].probabilities)
        np.testing.assert_allclose(together.probabilities, single.probabilities, atol=1e-6)
        assert together.source == single.source
    assert singles[0].source == singles[1].source == str(path)
    assert predictor([]) == []


def test_batch_equals_singles_in_any_order(predictor):
    pictures = [picture(hue, seed, (16 + seed, 40)) for seed, hue in enumerate([*HUES.values()] * 4)]
    together = predictor(pictures)
    for image, answer in zip(reversed(pictures), reversed(together), strict=True):
        np.testing.assert_allclose(predictor(image).probabilities, answer.probabilities, atol=1e-6)


def test_the_model_is_asked_in_eval_mode_and_left_as_it_was(tiny, model):
    random = tiny(num_classes=3, dropout=0.5, drop_path=0.5)
    random.load_state_dict(model.state_dict())
    random.preprocess = model.preprocess
    random.train()
    image = picture(HUES["red"], 1)
    found = Predictor(random)(image)
    np.testing.assert_array_equal(found.probabilities, Predictor(model)(image).probabilities)
    assert found.classes == ("0", "1", "2")
    assert all(module.training for module in random.modules())


def test_a_grey_model_takes_colour_and_the_other_way_round(tiny, predictor):
    grey = tiny(num_classes=3, in_channels=1)
    grey.preprocess = Preprocess(size=(16, 16), mean=(0.5,), std=(0.2,))
    colour = picture(HUES["green"], 3)
    np.testing.assert_array_equal(
        Predictor(grey)(colour).probabilities, Predictor(grey)(colour.convert("L")).probabilities
    )
    assert predictor(colour.convert("L")).probabilities.sum() == pytest.approx(1)


def test_a_bad_image_among_good_ones_changes_only_itself(predictor, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        picture(HUES["red"], number).save(path)
    wanted = predictor(paths)
    paths[3].write_bytes(b"")
    paths[8] = tmp_path / "missing.png"
    found = list(predictor.stream(paths))
    assert [number for number, answer in enumerate(found) if isinstance(answer, Failure)] == [3, 8]
    assert "3.png: is empty" in found[3].error
    assert "missing.png" in found[8].error
    for number in (0, 1, 2, 4, 5, 6, 7):
        np.testing.assert_allclose(found[number].probabilities, wanted[number].probabilities, atol=1e-6)
    with pytest.raises(DataError, match=r"3\.png"):
        predictor(paths)


def test_every_hostile_file_is_an_answer_or_an_error(predictor, tmp_path):
    bad = list(hostile.write_bad(tmp_path / "bad"))
    odd = [tmp_path / "odd" / file.name for file in hostile.write_odd(tmp_path / "odd")]
    found = list(predictor.stream([*bad, *odd]))
    assert all(isinstance(answer, Failure) for answer in found[: len(bad)])
    assert all(isinstance(answer, Prediction) for answer in found[len(bad) :])


def test_limits_are_passed_on(model):
    with pytest.raises(DataError, match="over the limit of 100"):
        Predictor(model, limits=ImageLimits(max_pixels=100))(picture(HUES["red"], 0))


def test_reading_stays_a_bounded_step_ahead(predictor):
    given = []

    def images():
        for seed in range(100):
            given.append(seed)
            yield picture(HUES["red"], seed)

    answers = predictor.stream(images())
    next(answers)
    assert 4 <= len(given) <= 4 + 2 * predictor.batch
    answers.close()


def test_an_answer_that_is_not_finite_is_an_error_of_its_own(model):
    with torch.no_grad():
        model.head.linear.bias[0] = torch.nan
    (answer,) = Predictor(model).stream([picture(HUES["red"], 0)])
    assert isinstance(answer, Failure)
    assert "not finite" in answer.error


def test_what_cannot_predict_is_refused(tiny, model):
    with pytest.raises(ConfigError, match=r"no preprocessing.*swindow\.load"):
        Predictor(tiny())
    with pytest.raises(ConfigError, match="batch is 0"):
        Predictor(model, batch=0)


def test_a_saved_model_predicts_the_same(model, predictor, tmp_path):
    save(model, tmp_path / "model.safetensors")
    image = picture(HUES["green"], 5)
    again = Predictor(tmp_path / "model.safetensors", device="cpu")(image)
    assert again.classes == CLASSES
    np.testing.assert_array_equal(again.probabilities, predictor(image).probabilities)


def test_files_hold_a_row_for_every_image(predictor, tmp_path):
    class_folders(tmp_path / "in", per_class=3)
    bad = tmp_path / "in" / "green" / "001.png"
    bad.write_bytes(b"not an image")
    summary = predict_files(predictor, [tmp_path / "in"], tmp_path / "out", top=2)
    lines, table = rows_of(tmp_path / "out")
    paths = sorted((tmp_path / "in").rglob("*.png"))
    assert [line["source"] for line in lines] == [row["source"] for row in table] == [str(path) for path in paths]
    for path, line, row in zip(paths, lines, table, strict=True):
        if path == bad:
            assert "error" in line
            assert row["error"] == line["error"]
            assert (row["class_1"], row["probability_2"]) == ("", "")
            continue
        wanted = predictor(path).top(2)
        assert [(pair["class"], pair["probability"]) for pair in line["top"]] == [
            (name, pytest.approx(share, abs=2e-6)) for name, share in wanted
        ]
        assert [row["class_1"], row["class_2"]] == [name for name, _ in wanted]
        assert float(row["probability_1"]) == pytest.approx(wanted[0][1], abs=2e-6)
        assert row["error"] == ""
    assert summary.count == 9
    assert [failure.source for failure in summary.failures] == [str(bad)]
    assert sum(summary.classes.values()) == 8
    assert {path.name for path in summary.files} == {path.name for path in (tmp_path / "out").iterdir()}
    said = summary.text()
    assert len(said.splitlines()) == 9 + 1 + 3
    assert "9 images: " in said
    assert "1 without a prediction" in said


def test_the_sheet_shows_pictures_and_failures(predictor, tmp_path):
    class_folders(tmp_path / "in", per_class=2)
    (tmp_path / "in" / "zero.jpg").write_bytes(b"")
    predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))
    side, step = 168, 186  # three columns of seven tiles
    middle = sheet[24 + side // 2, 24 + side // 2]
    assert middle[2] > middle[0] + 50  # blue comes first
    assert tuple(sheet[24 + 2 * 238 + side // 2, 24 + side // 2]) != (255, 255, 255)
    assert sheet.shape[1] == 2 * 24 + 3 * step - 18


def test_the_sheet_holds_64_images_and_says_how_many_more(predictor, tmp_path, monkeypatch):
    drawn = {}
    blank = Image.new("RGB", (4, 4))

    def draw(tiles, footer):
        return drawn.update(n=len(tiles), said=footer) or blank

    monkeypatch.setattr(classified.sheets, "sheet", draw)
    paths = class_folders(tmp_path / "in", per_class=22)
    predict_files(predictor, [paths], tmp_path / "out")
    assert drawn == {"n": 64, "said": "the first 64 of 66 images; 2 more in predictions.csv"}


def test_no_sheet_is_made_when_none_is_asked_for(predictor, tmp_path):
    paths = class_folders(tmp_path / "in", per_class=1)
    summary = predict_files(predictor, [paths], tmp_path / "out", sheet=False)
    assert sorted(path.name for path in summary.files) == ["predictions.csv", "predictions.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.jsonl"]


def test_predicting_into_the_folder_of_images_leaves_the_sheet_out(predictor, tmp_path):
    class_folders(tmp_path, per_class=1)
    first = predict_files(predictor, [tmp_path], tmp_path)
    assert predict_files(predictor, [tmp_path], tmp_path).count == first.count == 3


def test_an_interrupted_call_leaves_what_was_there(predictor, tmp_path, monkeypatch):
    paths = class_folders(tmp_path / "in", per_class=3)
    predict_files(predictor, [paths], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    record, calls = classified._record, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(classified, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [paths], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_place_that_cannot_be_written_is_one_line(predictor, tmp_path):
    paths = class_folders(tmp_path / "in", per_class=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file: cannot write predictions here .*--out"):
        predict_files(predictor, [paths], tmp_path / "file")
    with pytest.raises(ConfigError, match="top is 0"):
        predict_files(predictor, [paths], tmp_path / "out", top=0)
    assert not (tmp_path / "out").exists()


def test_paths_that_are_no_text_survive_in_json(predictor, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    picture(HUES["red"], 0).save(path)
    predict_files(predictor, [path], tmp_path / "out")
    lines, table = rows_of(tmp_path / "out")
    assert os.fsencode(lines[0]["source"]) == os.fsencode(path)
    assert table[0]["source"].endswith("caf\\udce9.png")


def test_a_volume_is_called_one(predictor, tmp_path):
    np.savez(tmp_path / "scan.npz", image=np.zeros((4, 16, 16), np.uint8))
    (failure,) = predictor.stream([tmp_path / "scan.npz"])
    assert "scan.npz: is a volume, and " in failure.error
    assert "give a segmenter" in failure.error
