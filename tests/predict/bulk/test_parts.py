"""Predicting in parts by one process: the rows are the predictor's answers, and a second start does what is missing."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest

import hostile
from predicted_parts import (
    CLASSES,
    contents,
    identities,
    images,
    mask_in,
    model_of,
    parquet_of,
    rows_of,
    tar_of,
    write_folder,
)
from swindow import cli
from swindow.checkpoints import save
from swindow.errors import ConfigError, DataError, SwindowError
from swindow.images import LIMITS
from swindow.predict import Failure, Predictor
from swindow.predict.bulk import is_shard, plan, predict_parts, reading, work


@pytest.fixture(scope="module")
def predictor():
    return Predictor(model_of("classify"), batch=4)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "in", images(11))


def tops(row):
    """The probabilities of a row by class; none of one without an answer."""
    return {one["class"]: one["probability"] for one in row.get("top") or ()}


def test_rows_are_the_answers_in_order_and_bad_images_one_row_each(predictor, folder, tmp_path):
    hostile.write_bad(folder / "c")
    summary = predict_parts(predictor, [folder], tmp_path / "out", part_images=4, top=2)
    rows = rows_of(tmp_path / "out")
    files = [row["source"] for row in rows]
    assert len(rows) == len({*files}) == summary.images == sum(1 for path in folder.rglob("*.*"))
    for row, answer in zip(rows, predictor.stream(files), strict=True):
        if isinstance(answer, Failure):
            assert row["error"] == answer.error
            assert row["top"] is None
        else:
            wanted = [{"class": name, "probability": pytest.approx(share, abs=2e-6)} for name, share in answer.top(2)]
            assert row["error"] is None
            assert row["top"] == wanted
    assert summary.failures == sum(row["error"] is not None for row in rows) > 10
    assert sum(summary.classes.values()) == summary.images - summary.failures
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [part["rows"] for part in manifest["parts"]][:-1] == [4] * (summary.parts - 1)
    assert manifest["images"] == summary.images
    assert "without a prediction" in summary.text()


@pytest.mark.parametrize("shape", ["parquet", "jsonl"])
def test_folders_tars_and_parquet_give_the_same_answers(predictor, tmp_path, shape):
    found = images(11)
    found["b/5.png"] = b""
    write_folder(tmp_path / "in", found)
    (tmp_path / "in.tar").write_bytes(tar_of(found))
    (tmp_path / "in.parquet").write_bytes(parquet_of(found))
    rows = {}
    for name in ("in", "in.tar", "in.parquet"):
        summary = predict_parts(predictor, [tmp_path / name], tmp_path / f"{name}.out", part_images=3, format=shape)
        rows[name] = rows_of(tmp_path / f"{name}.out")
        assert summary.failures == 2
        assert not summary.missing
        assert summary.parts == (1 if name == "in.tar" else 4)
    order = sorted(range(11), key=lambda place: [*found][place].split("/")[0])  # a folder comes sorted
    for name in ("in.tar", "in.parquet"):
        for place, row in zip(order, rows["in"], strict=True):
            assert tops(rows[name][place]) == pytest.approx(
                tops(row), abs=3e-6
            )  # other batches: the last digit differs
        assert [row["key"] for row in rows[name]] == [*found]
    assert rows["in.tar"][0]["source"] == f"{tmp_path}/in.tar/a/0.png"
    assert rows["in.parquet"][10]["source"] == f"{tmp_path}/in.parquet#10"
    assert rows["in.tar"][3]["error"].startswith(f"{tmp_path}/in.tar/b/3.png: is damaged")
    assert "is empty" in rows["in.parquet"][5]["error"]


def test_a_damaged_shard_is_a_row_after_those_before_the_damage(predictor, tmp_path):
    whole = tar_of(images(6))
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 - 100])
    summary = predict_parts(predictor, [tmp_path / "cut.tar"], tmp_path / "out")
    *good, last = rows_of(tmp_path / "out")
    assert 0 < len(good) < 6
    assert [row["key"] for row in good] == [*images(6)][: len(good)]
    assert last["source"] == str(tmp_path / "cut.tar")
    assert "at byte" in last["error"]
    assert summary.failures >= 1


def test_rows_of_a_damaged_row_group_are_errors_and_the_others_stand(predictor, tmp_path):
    found = {name: data for name, data in images(13).items() if name != "b/3.png"}
    content = bytearray(parquet_of(found, group=4))
    place = content.index(found["a/4.png"][:40])
    content[place - 60 : place] = bytes(60)  # the header of a page in the first row group or the second
    (tmp_path / "x.parquet").write_bytes(content)
    predict_parts(predictor, [tmp_path / "x.parquet"], tmp_path / "out", part_images=5)
    rows = rows_of(tmp_path / "out")
    assert [row["source"] for row in rows] == [f"{tmp_path}/x.parquet#{row}" for row in range(12)]
    bad = [row for row, one in enumerate(rows) if one["error"] is not None]
    assert bad
    assert {*bad} <= {*range(8)}


@pytest.mark.parametrize("error", [TimeoutError(), type("HTTPClientError", (Exception,), {})("gone for a moment")])
def test_a_table_that_the_network_keeps_back_is_no_answer(predictor, tmp_path, monkeypatch, error):
    (tmp_path / "x.parquet").write_bytes(parquet_of(images(3)))

    class Failing(pyarrow.parquet.ParquetFile):
        def iter_batches(self, *given, **how):
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(pyarrow.parquet, "ParquetFile", Failing)
        with pytest.raises(reading.Unreachable, match=r"x\.parquet: cannot be read \(.*check the network"):
            list(reading.pictures([plan.Span(str(tmp_path / "x.parquet"), "parquet", 1, "", 0, 0, 3)], LIMITS, 1))


def test_large_members_span_blocks(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr("swindow.predict.bulk.reading.BLOCK", 700)
    (tmp_path / "x.tar").write_bytes(tar_of(images(11)))
    predict_parts(predictor, [tmp_path / "x.tar"], tmp_path / "small")
    monkeypatch.undo()
    predict_parts(predictor, [tmp_path / "x.tar"], tmp_path / "large")
    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_a_second_start_does_what_is_missing_and_touches_nothing_else(predictor, folder, tmp_path, monkeypatch):
    out, asked = tmp_path / "out", []
    predict_parts(predictor, [folder], tmp_path / "one", part_images=2)
    do = work.Worker.do

    def stopped(worker, part, advance=None):
        asked.append(part)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return do(worker, part, advance)

    monkeypatch.setattr(work.Worker, "do", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_parts(predictor, [folder], out, part_images=2)
    before = identities(out)
    assert len(before) == 6
    assert not (out / "manifest.json").exists()
    (out / "done" / "part-00001.json").unlink()  # killed between the rows and the marker
    (out / "parts" / "part-00002.parquet").write_bytes(b"short")
    summary = predict_parts(predictor, [folder], out, part_images=2)
    assert asked[4:] == [1, 2, 3, 4, 5]
    assert summary.now == 9
    assert summary.images == 11
    assert contents(out) == contents(tmp_path / "one")
    after = identities(out)
    kept = {name: facts for name, facts in before.items() if "part-00000" in name}
    assert len(kept) == 2
    assert {name: after[name] for name in kept} == kept
    asked.clear()
    assert predict_parts(predictor, [folder], out, part_images=2).now == 0
    assert not asked


def test_another_job_is_refused(predictor, folder, tmp_path):
    out = tmp_path / "out"
    predict_parts(predictor, [folder], out, part_images=4)
    before = contents(out)
    other = model_of("classify")
    other.head.linear.bias.data += 1
    for changed, said in (({"top": 1}, "top 3, now 1"), ({"part_images": 5}, "part_images 4, now 5")):
        with pytest.raises(ConfigError, match=said):
            predict_parts(predictor, [folder], out, **({"part_images": 4} | changed))
    with pytest.raises(ConfigError, match="another model"):
        predict_parts(Predictor(other), [folder], out, part_images=4)
    (folder / "new.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="11 images then, 12 images now"):
        predict_parts(predictor, [folder], out, part_images=4)
    (out / "plan.json").unlink()
    with pytest.raises(ConfigError, match=r"no plan\.json beside it"):
        predict_parts(predictor, [folder], out, part_images=4)
    (out / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be understood"):
        predict_parts(predictor, [folder], out, part_images=4)
    (out / "plan.json").write_bytes(before["plan.json"])
    assert contents(out) == before


def test_storage_that_fails_is_no_answer(predictor, folder, tmp_path, monkeypatch):
    calls = []

    def failing(worker, part, advance=None):
        calls.append(part)
        raise DataError("s3://b: cannot be read after 5 attempts (timeout)")

    do = work.Worker.do
    monkeypatch.setattr(
        work.Worker, "do", lambda worker, part, advance=None: (failing if part == 1 else do)(worker, part)
    )
    summary = predict_parts(predictor, [folder], tmp_path / "out", part_images=4)
    assert calls == [1, 1]
    assert summary.missing == (("parts/part-00001.parquet", "s3://b: cannot be read after 5 attempts (timeout)"),)
    assert "1 of 3 parts are missing; the same command does them" in summary.text()
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    assert predict_parts(predictor, [folder], tmp_path / "out", part_images=4).now == 4


def test_segmenters_leave_shares_and_masks(tmp_path):
    predictor = Predictor(model_of("segment"), batch=2)
    found = images(5)
    (tmp_path / "x.parquet").write_bytes(parquet_of(found))
    predict_parts(predictor, [tmp_path / "x.parquet"], tmp_path / "out", part_images=4, masks=True)
    rows = rows_of(tmp_path / "out")
    assert rows[3]["error"]
    assert rows[3]["mask"] is None
    assert rows[3]["coverage"] is None
    for place in (0, 1, 2):
        write_folder(tmp_path, {"one.png": [*found.values()][place]})
        answer = predictor(tmp_path / "one.png")
        assert dict(rows[place]["coverage"]) == pytest.approx(answer.coverage(), abs=1e-6)
        assert (rows[place]["height"], rows[place]["width"]) == answer.mask.shape
        mask = mask_in(tmp_path / "out", "part-00000", rows[place]["mask"])
        np.testing.assert_array_equal(np.asarray(mask), answer.mask)
    assert rows[4]["mask"] == "000000.png"


def test_detectors_leave_objects(tmp_path):
    predictor = Predictor(model_of("detect"))
    write_folder(tmp_path / "in", images(5))
    predict_parts(predictor, [tmp_path / "in"], tmp_path / "out", threshold=0.0, format="jsonl")
    rows = [row for row in rows_of(tmp_path / "out") if "error" not in row]
    assert len(rows) == 4
    assert all(row["objects"] for row in rows)
    for row, answer in zip(rows, predictor.stream([row["source"] for row in rows]), strict=True):
        found = answer.detections
        assert [one["score"] for one in row["objects"]] == pytest.approx(found.scores.tolist(), abs=1e-6)
        np.testing.assert_allclose([one["box"] for one in row["objects"]], found.boxes, atol=6e-3)
        assert [one["class"] for one in row["objects"]] == [CLASSES[label] for label in found.labels]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"part_images": 0}, "part_images is 0"),
        ({"top": 0}, "top is 0"),
        ({"threshold": 0.5}, "finds no objects"),
        ({"masks": True}, "is no segmenter"),
    ],
)
def test_settings_that_cannot_be_are_refused(predictor, folder, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        predict_parts(predictor, [folder], tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_memory_is_that_of_a_part(predictor, folder, tmp_path, monkeypatch):
    """However many parts there are, no more pictures wait than are read ahead."""
    waiting = []
    answered = work.Worker._answers

    def watched(worker, part):
        for pair in answered(worker, part):
            waiting.append(len(worker.inputs[part]))
            yield pair

    monkeypatch.setattr(work.Worker, "_answers", watched)
    predict_parts(predictor, [folder], tmp_path / "out", part_images=3)
    assert max(waiting) == 3


def command(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "swindow", "predict", *map(str, words)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed_when(process, wanted, limit=120.0):
    """SIGKILL for the whole group as soon as `wanted` holds."""
    end = time.monotonic() + limit
    while not wanted() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_command_goes_on_where_it_was(predictor, tmp_path):
    folder = write_folder(tmp_path / "in", images(160))
    save(predictor.asked.model, tmp_path / "run")
    predict_parts(Predictor(tmp_path / "run", device="cpu"), [folder], tmp_path / "one", part_images=2)
    words = (tmp_path / "run", folder, "--parts", "--part-images", 2, "--device", "cpu", "--out", tmp_path / "out")
    parts = tmp_path / "out" / "done"
    killed_when(command(*words), lambda: len([*parts.glob("*.json")]) > 15)
    before = identities(tmp_path / "out")
    assert 15 < len(before) / 2 < 80
    process = command(*words)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "1 without a prediction" in said
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    after = identities(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    rows = [row["source"] for row in rows_of(tmp_path / "out")]
    assert len(rows) == len({*rows}) == 160


@pytest.mark.slow
def test_killed_again_and_again(predictor, tmp_path):
    folder = write_folder(tmp_path / "in", images(300))
    save(predictor.asked.model, tmp_path / "run")
    predict_parts(Predictor(tmp_path / "run", device="cpu"), [folder], tmp_path / "one", part_images=2)
    words = (tmp_path / "run", folder, "--parts", "--part-images", 2, "--device", "cpu", "--out", tmp_path / "out")
    parts, draw = tmp_path / "out" / "done", np.random.default_rng(0)
    for _ in range(8):
        target = len([*parts.glob("*.json")]) + int(draw.integers(16))
        killed_when(command(*words), lambda: len([*parts.glob("*")]) > target)  # noqa: B023 - called at once
    command(*words).communicate(timeout=240)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.png", "--masks"], "--masks is for predictions in parts; give --parts too"),
        (["x.png", "--part-images", "3"], "--part-images is for predictions in parts"),
        (["x.png", "--parts", "--workers", "2"], "--workers is for --engine ray"),
        (["x.png", "--parts", "--axis", "1"], "--axis is for volumes"),
        (["x.tar", "--parts"], "x.tar: not found"),
    ],
)
def test_flags_that_cannot_be_are_refused(predictor, tmp_path, words, said):
    save(predictor.asked.model, tmp_path / "run")
    with pytest.raises(SwindowError, match=said):
        cli.run(["predict", str(tmp_path / "run"), *words, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_command_writes_parts_when_asked_and_for_shards(predictor, folder, tmp_path, monkeypatch, capsys):
    save(predictor.asked.model, tmp_path / "run")
    (tmp_path / "x.parquet").write_bytes(parquet_of(images(3)))
    for place, flags in ((folder, ["--parts"]), (tmp_path / "x.parquet", []), (folder, [])):
        out = tmp_path / f"{place.name} {' '.join(flags)}"
        code = cli.run(["predict", str(tmp_path / "run"), str(place), *flags, "--device", "cpu", "--out", str(out)])
        assert code == (0 if place.name == "x.parquet" else 1)  # the fourth image is none
        assert (out / "plan.json").exists() == (place != folder or bool(flags))
        assert (out / "predictions.jsonl").exists() == (place == folder and not flags)
    assert "in 1 parts: " in capsys.readouterr().out


def test_a_folder_of_shards_is_predicted_in_parts(predictor, tmp_path, capsys):
    (tmp_path / "in" / "train").mkdir(parents=True)
    (tmp_path / "in" / "train" / "x.tar").write_bytes(tar_of(images(3)))
    assert is_shard(tmp_path / "in")
    save(predictor.asked.model, tmp_path / "run")
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "in"), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert cli.run(words) == 0
    assert (tmp_path / "out" / "plan.json").exists()
    (tmp_path / "in" / "scan.nii.gz").touch()
    assert not is_shard(tmp_path / "in")  # volumes are predicted one by one


def test_help_does_not_wait_for_torch():
    script = "import sys; from swindow.cli import predict; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
