"""The command line as a person meets it: what it prints, writes and exits with."""

import csv
import json
import subprocess
import sys

import pytest

from pictures import class_folders
from swindow import cli

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


def test_flags_beat_the_file_and_the_file_beats_the_recipe(tmp_path):
    class_folders(tmp_path / "data")
    (tmp_path / "some.toml").write_text("epochs = 1\nseed = 5\n[optim]\nlr = 0.25\nwarmup = 0.2\n")
    words = ["train", tmp_path / "data", *TINY, "--config", tmp_path / "some.toml", "--out", tmp_path / "run"]
    assert call(*words, "--optim.lr", "0.125", "--max-steps", "1", "--no-report", "--no-tensorboard") == 0
    import tomllib

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
    import tomllib

    written = tomllib.loads((tmp_path / "tuned" / "config.toml").read_text())
    assert (written["recipe"], written["model"], written["size"]) == ("finetune", "swin_nano", 16)
    assert written["fields"]["dim"] == 12


def test_flags_turn_off_what_a_file_turns_on_and_fields_add_up(tmp_path):
    class_folders(tmp_path / "data")
    (tmp_path / "some.toml").write_text("compile = true\nreport = false\n[fields]\npatch = 2\ndepths = [1, 1]\n")
    words = ["train", tmp_path / "data", "--config", tmp_path / "some.toml", "--out", tmp_path / "run", "--no-compile"]
    words += ["--no-report", "--fields", "window", "2", "--max-steps", "1", "--no-tensorboard", "--workers", "0"]
    assert call(*words, "--batch", "8") == 0
    import tomllib

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
