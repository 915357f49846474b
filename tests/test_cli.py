"""The command line as a person meets it: what it prints, writes and exits with."""

import csv
import json
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

from pictures import class_folders
from swindow import cli
from swindow.cli.train import _tuples

TINY = [
    "--model",
    "swin_nano",
    "--fields",
    "patch",
    "2",
    "window",
    "4",
    "dim",
    "12",
    "--size",
    "16",
    "--batch",
    "8",
    "--device",
    "cpu",
    "--workers",
    "0",
]


def call(*words):
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    return caught.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    class_folders(folder / "data")
    words = ["train", folder / "data", *TINY, "--epochs", "6", "--optim.name", "adamw", "--optim.lr", "3e-3"]
    assert call(*words, "--out", folder / "run", "--augment.crop", "none") == 0
    return folder


def blocks(seed):
    """A picture of red, green and blue blocks with some noise, and its mask: the first row does not count."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    pure = np.array([(240, 20, 20), (20, 240, 20), (20, 20, 240)])[labels]
    mask = labels.copy()
    mask[0] = 255
    return np.clip(pure + draw.integers(-10, 10, (32, 32, 3)), 0, 255).astype(np.uint8), mask


def scene_folders(root):
    """images/ and masks/ of two splits; two pictures a patient, whose number their names begin with."""
    for split, numbers in {"train": range(12), "val": range(20, 24)}.items():
        for number in numbers:
            for kind, values in zip(("images", "masks"), blocks(number), strict=True):
                path = root / kind / split / f"p{number // 2:02}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    (root / "classes.txt").write_text("0 red 200 30 20\n1 green 20 190 40\n2 blue 20 30 210\n")


@pytest.fixture(scope="module")
def segmenting(tmp_path_factory):
    """A folder with scenes and a run of a segmenter that was trained on them, by its views and cases."""
    folder = tmp_path_factory.mktemp("segment")
    scene_folders(folder / "data")
    words = ["train", folder / "data", *TINY, "--model", "unet_swin_nano", "--batch", "4", "--epochs", "6"]
    words += ["--optim.name", "adamw", "--optim.lr", "5e-3", "--masks.case", r"^(p\d+)", "--views.overlap", "0.5"]
    assert call(*words, "--eval-every", "6", "--no-report", "--no-tensorboard", "--out", folder / "run") == 0
    return folder


def test_help_and_version_import_nothing_heavy():
    script = "import sys; from swindow.cli import run; run([sys.argv[1]]); print(sorted(sys.modules))"
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", script, flag], capture_output=True, text=True, check=True)
        loaded = done.stdout.splitlines()[-1]
        for module in ("'torch'", "'numpy'", "'tyro'", "'PIL'", "'rich'"):
            assert module not in loaded
    assert "swindow 0." in done.stdout


def test_every_command_is_in_the_help_and_has_its_own(capsys):
    for name in cli.COMMANDS:
        assert f"\n  {name} " in cli.HELP
        assert call(name, "--help") == 0
        assert f"swindow {name}" in capsys.readouterr().out


def test_a_misspelt_command_gets_a_suggestion_and_exit_code_2(capsys):
    assert call("trian", "digits") == 2
    said = capsys.readouterr().err
    assert "did you mean train?" in said
    assert said.count("\n") == 1


def test_a_misspelt_flag_gets_a_suggestion_and_exit_code_2(capsys):
    assert call("train", "digits", "--epocs", "3") == 2
    assert "--epochs" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train"], "no data"),
        (["train", "nowhere/at/all"], "nowhere/at/all"),
        (["train", "digits", "--model", "swin_tinny"], "did you mean swin_tiny"),
        (["train", "digits", "--recipe", "few-fotos"], "few-photos"),
        (["train", "digits", "--config", "missing.toml"], "missing.toml"),
        (["eval", "nowhere"], "no such file"),
        (["predict", "nowhere", "x.png"], "no such file"),
        (["explain", "nowhere", "x.png"], "no such file"),
        (["info", "swin_tinny"], "swin_tiny"),
        (["models", "swim_*"], "swim_*"),
        (["eval", "nowhere", "--views.mode", "slide"], "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(capsys, words, says):
    assert call(*words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1]
    assert said[-1].startswith("swindow: ")
    assert not [line for line in said if "Traceback" in line]


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "swindow", "eval", "nowhere", "--debug"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr
    assert "CheckpointError" in done.stderr


def test_eval_prints_a_table_and_writes_json(trained, tmp_path, capsys):
    assert call("eval", trained / "run", "--out", tmp_path / "eval.json", "--device", "cpu") == 0
    assert "accuracy" in capsys.readouterr().out
    recorded = json.loads((trained / "run" / "result.json").read_text())
    assert json.loads((tmp_path / "eval.json").read_text())["accuracy"] == recorded["accuracy"]


def test_eval_on_other_classes_is_refused(trained, tmp_path, capsys):
    class_folders(tmp_path / "two", classes=("red", "green"))
    (tmp_path / "two" / "red").rename(tmp_path / "two" / "violet")
    assert call("eval", trained / "run", tmp_path / "two", "--split", "train") == 2
    assert "violet" in capsys.readouterr().err


def test_predict_writes_a_row_for_every_file_and_says_when_one_is_bad(trained, tmp_path):
    class_folders(tmp_path / "new", per_class=2)
    (tmp_path / "new" / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    assert call("predict", trained / "run", tmp_path / "new", "--out", out, "--top", "2", "--device", "cpu") == 1
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    assert sum("error" in row for row in rows) == 1
    assert len(list(csv.reader((out / "predictions.csv").read_text(encoding="utf-8").splitlines()))) == 8
    assert (out / "sheet.png").stat().st_size > 1000


def test_explain_writes_pictures_and_a_page(trained, tmp_path, capsys):
    image = trained / "data" / "red" / "000.png"
    words = ["explain", trained / "run", image, "--out", tmp_path / "why", "--point", "5", "5", "--device", "cpu"]
    assert call(*words) == 0
    assert (tmp_path / "why" / "index.html").exists()
    assert str(tmp_path / "why") in capsys.readouterr().out


def test_info_and_models(capsys):
    assert call("info", "swin_tiny") == 0
    said = capsys.readouterr().out
    assert "28,288,354" in said
    assert "4.49" in said
    assert call("models", "swin_t*") == 0
    said = capsys.readouterr().out
    assert "swin_tiny" in said
    assert "swin_base" not in said


def test_data_check_names_what_is_wrong(tmp_path, capsys):
    class_folders(tmp_path / "data")
    assert call("data", "check", tmp_path / "data") == 0
    (tmp_path / "data" / "red" / "cut.png").write_bytes((tmp_path / "data" / "red" / "000.png").read_bytes()[:99])
    assert call("data", "check", tmp_path / "data") == 1
    assert "cut.png" in capsys.readouterr().out


def test_data_check_of_masks_takes_the_flags_that_training_takes(segmenting, capsys):
    data = segmenting / "data"
    assert call("data", "check", data, "--masks.case", r"^(p\d+)") == 0
    assert call("data", "check", data, "--masks.case", r"^(q\d+)") == 1
    assert "q" in (said := capsys.readouterr().out)
    assert "p00-0" in said
    assert call("data", "check", data, "--masks.ignore-index", "0") == 1  # then 255 is of no class
    assert "255" in capsys.readouterr().out


def test_flags_beat_the_file_and_the_file_beats_the_recipe(tmp_path):
    class_folders(tmp_path / "data")
    (tmp_path / "some.toml").write_text("epochs = 1\nseed = 5\n[optim]\nlr = 0.25\nwarmup = 0.2\n")
    words = ["train", tmp_path / "data", *TINY, "--config", tmp_path / "some.toml", "--out", tmp_path / "run"]
    assert call(*words, "--optim.lr", "0.125", "--max-steps", "1", "--no-report", "--no-tensorboard") == 0
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (written["epochs"], written["seed"]) == (1, 5)
    assert (written["optim"]["lr"], written["optim"]["warmup"]) == (0.125, 0.2)
    assert written["recipe"] == "small-images"


def test_a_run_is_resumed_by_the_same_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "data")
    words = ["train", "data", *TINY, "--epochs", "2", "--no-report", "--no-tensorboard"]
    assert call(*words, "--max-steps", "1") == 0
    assert call(*words, "--max-steps", "2", "--resume") == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["data-swin_nano"]
    assert "resumed at step 1" in capsys.readouterr().err
    assert json.loads((tmp_path / "runs" / "data-swin_nano" / "result.json").read_text())["steps"] == 2
    assert call(*words, "--resume", "--optim.lr", "0.5") == 2
    assert "optim.lr" in capsys.readouterr().err


def test_fine_tuning_takes_the_shape_of_the_weights(trained, tmp_path):
    class_folders(tmp_path / "two", classes=("red", "blue"))
    words = ["train", tmp_path / "two", "--weights", trained / "run", "--out", tmp_path / "tuned", "--batch", "4"]
    assert call(*words, "--max-steps", "1", "--no-report", "--no-tensorboard", "--workers", "0") == 0
    written = tomllib.loads((tmp_path / "tuned" / "config.toml").read_text())
    assert (written["recipe"], written["model"], written["size"]) == ("finetune", "swin_nano", 16)
    assert written["fields"]["dim"] == 12


def test_flags_turn_off_what_a_file_turns_on_and_fields_add_up(tmp_path):
    class_folders(tmp_path / "data")
    (tmp_path / "some.toml").write_text("compile = true\nreport = false\n[fields]\npatch = 2\ndepths = [1, 1]\n")
    words = ["train", tmp_path / "data", "--config", tmp_path / "some.toml", "--out", tmp_path / "run", "--no-compile"]
    words += ["--no-report", "--fields", "window", "2", "--max-steps", "1", "--no-tensorboard", "--workers", "0"]
    assert call(*words, "--batch", "8") == 0
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert written["fields"] == {"patch": 2, "depths": [1, 1], "window": 2}
    assert written["compile"] is False


@pytest.mark.parametrize(
    "line", ['size = "big"', "model = 3", "recipe = 3", "epochs = 0", "unknown = 1", "[optim]\nlr = 'x'"]
)
def test_a_wrong_file_is_one_line(tmp_path, capsys, line):
    (tmp_path / "wrong.toml").write_text(line)
    assert call("train", "digits", "--config", tmp_path / "wrong.toml") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line(trained, tmp_path, capsys):
    assert call("eval", trained / "run", "--out", tmp_path / "nowhere" / "x.json", "--device", "cpu") == 1
    assert "nowhere" in capsys.readouterr().err.splitlines()[-1]


def test_training_prints_the_score_by_its_name(trained, segmenting, capsys):
    for run, name in ((trained / "run", "accuracy"), (segmenting / "run", "mean IoU")):
        settings = ["train", "--config", run / "config.toml", "--out", run, "--resume", "--no-report"]
        assert call(*settings, "--no-tensorboard") == 0  # it is finished: it is judged once more, and says how
        assert f"{run}: {name} " in capsys.readouterr().out


def test_what_the_data_needs_to_be_read_reaches_the_recipe(segmenting):
    written = tomllib.loads((segmenting / "run" / "config.toml").read_text())
    assert written["masks"]["case"] == r"^(p\d+)"
    assert written["recipe"] not in ("tiny-images", "small-images", "few-photos")
    assert written["views"]["overlap"] == 0.5


def test_flags_about_masks_beat_the_file_about_masks(segmenting, tmp_path, capsys):
    (tmp_path / "some.toml").write_text("[masks]\ncase = 'nothing like it'\nignore_index = 255\n")
    words = ["train", segmenting / "data", *TINY, "--model", "unet_swin_nano", "--config", tmp_path / "some.toml"]
    words += ["--batch", "4", "--max-steps", "1", "--no-report", "--no-tensorboard", "--out", tmp_path / "run"]
    assert call(*words) == 2
    assert "nothing like it" in capsys.readouterr().err
    assert call(*words, "--masks.case", r"^(p\d+)") == 0
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["masks"]
    assert (written["case"], written["ignore_index"]) == (r"^(p\d+)", 255)


def test_eval_of_a_segmenter_writes_figures_tables_a_page_and_a_sheet(segmenting, tmp_path, capsys):
    assert call("eval", segmenting / "run", "--out", tmp_path / "eval", "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "mean IoU" in said
    assert str(tmp_path / "eval" / "sheet.png") in said
    figures = json.loads((tmp_path / "eval" / "figures.json").read_text())
    assert figures["count"] == 4
    assert figures["mean_iou"] == pytest.approx(json.loads((segmenting / "run" / "result.json").read_text())["score"])
    with (tmp_path / "eval" / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["red", "green", "blue"]
    assert sum(int(row["pixels"]) for row in rows) == 4 * 31 * 32
    assert "<html" in (tmp_path / "eval" / "evaluation.html").read_text(encoding="utf-8")
    with Image.open(tmp_path / "eval" / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert (pixels == (200, 30, 20)).all(axis=2).any()
    assert sheet.height > 4 * 320  # the best, the median and the worst of four are all four
    assert call("eval", segmenting / "run", "--out", tmp_path / "eval.json", "--device", "cpu") == 0
    assert json.loads((tmp_path / "eval.json").read_text())["mean_iou"] == figures["mean_iou"]


def test_eval_of_a_classifier_writes_a_page_into_a_folder(trained, tmp_path):
    assert call("eval", trained / "run", "--out", tmp_path / "eval", "--device", "cpu") == 0
    assert {path.name for path in (tmp_path / "eval").iterdir()} == {"evaluation.html", "figures.json", "per_class.csv"}


def test_views_and_masks_are_flags_of_eval(segmenting, tmp_path, capsys):
    assert call("eval", segmenting / "run", segmenting / "data", "--split", "val", "--views.flip") == 0
    assert "mean IoU" in capsys.readouterr().out
    assert call("eval", segmenting / "run", "--masks.ignore-index", "0", "--out", tmp_path / "x.json") == 2
    assert "255" in capsys.readouterr().err  # then that value is of no class


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "RUN", "x.png", "--views.flip"], "it takes no views"),
        (["predict", "RUN", "x.png", "--axis", "1"], "it takes no axis"),
        (["eval", "RUN", "--views.mode", "slide"], "it takes no --views"),
        (["eval", "RUN", "--masks.case", "x", "--views.flip"], "it takes no --views and --masks"),
        (["explain", "RUN", "IMAGE", "--region"], "region asks about pixels"),
    ],
)
def test_a_classifier_does_not_quietly_leave_aside_what_is_for_segmenters(trained, tmp_path, capsys, words, says):
    places = {"RUN": trained / "run", "IMAGE": trained / "data" / "red" / "000.png"}
    assert call(*[places.get(word, word) for word in words]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_predict_with_a_segmenter(segmenting, tmp_path, capsys):
    new = segmenting / "data" / "images" / "val"
    words = ["predict", segmenting / "run", new, "--device", "cpu"]
    assert call(*words, "--out", tmp_path / "out", "--views.scales", "1.0", "1.5") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["size"] for row in rows] == [{"height": 32, "width": 32}] * 4
    for row in rows:
        with Image.open(tmp_path / "out" / row["files"]["mask"]) as mask:
            counts = np.bincount(np.asarray(mask).ravel(), minlength=3) / 1024
        assert [row["coverage"][name] for name in ("red", "green", "blue")] == pytest.approx(counts.tolist(), abs=1e-6)
        assert (tmp_path / "out" / row["files"]["overlay"]).exists()
    assert "4 images: " in capsys.readouterr().out
    (tmp_path / "bad.png").write_bytes(b"")
    assert call(*words[:3], tmp_path / "bad.png", *words[3:], "--out", tmp_path / "out") == 1
    assert "bad.png" in capsys.readouterr().out
    assert call(*words, "--out", tmp_path / "out", "--top", "2") == 2
    assert "--top is for classifiers" in capsys.readouterr().err


def test_explain_tells_why_a_pixel_is_of_its_class(segmenting, tmp_path):
    image = segmenting / "data" / "images" / "val" / "p10-20.png"
    words = ["explain", segmenting / "run", image, "--point", "5", "9", "--region", "--device", "cpu"]
    assert call(*words, "--out", tmp_path / "why") == 0
    assert {"index.html", "gradcam.png", "prediction.png"} <= {path.name for path in (tmp_path / "why").iterdir()}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--views.overlap", "2"], "overlap 2"),
        (["--views.mode", "sideways"], "slide"),
        (["--masks.case", "("], "regular expression"),
    ],
)
def test_settings_that_cannot_be_are_refused(trained, capsys, flags, says):
    assert call("eval", trained / "run", *flags) == 2
    assert says in "".join(capsys.readouterr())


def test_models_lists_backbones_and_well_known_segmenters(capsys, monkeypatch):
    monkeypatch.setattr("swindow.cli.models.VARIANTS", {"swin_nano": None})
    monkeypatch.setattr("swindow.cli.models.NAMED", ("swin_unet",))
    assert call("models") == 0
    said = capsys.readouterr().out
    assert said.index("swin_nano") < said.index("to segment:") < said.index("swin_unet ")
    assert "27.2 M parameters" in said
    assert "upernet_*" in said
    assert call("models", "upernet_swin_nano") == 0
    assert capsys.readouterr().out.startswith("upernet_swin_nano ")
    assert call("info", "unet_swin_nano", "--classes", "3", "--channels", "1", "--size", "32") == 0
    assert "32x32" in capsys.readouterr().out


def test_well_known_segmenters_exist():
    from swindow.cli.models import NAMED
    from swindow.model import models

    assert set(NAMED) <= set(models())


def test_one_value_for_a_field_of_several_is_one_of_them() -> None:
    given = {"decoder_depths": 1, "depths": (1, 1), "dim": 12}
    assert _tuples(given, "unet_swin_nano") == {"decoder_depths": (1,), "depths": (1, 1), "dim": 12}
