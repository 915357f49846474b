"""Predicting in parts by workers of a real Ray: the rows of a single process, whatever is killed on the way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fragile_workers import Fragile
from predicted_parts import contents, identities, images, model_of, parquet_of, rows_of, tar_of, write_folder
from swindow.checkpoints import save
from swindow.errors import ConfigError
from swindow.predict import Predictor
from swindow.predict.bulk import engines, predict_parts

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'swindow[ray]'")
pytest.importorskip("ray.data", reason="ray.data is not installed: pip install 'swindow[ray]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray on two cores, started once; workers compute with one thread each, as this process does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            engines.SETTINGS | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        ).items():
            patch.setenv(name, value)
        settings = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, **settings)
        except Exception as error:  # it waits half a minute for itself, which a busy machine may need twice
            ray.shutdown()
            if "timed out" not in str(error):
                raise
            ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, **settings)
        yield
        ray.shutdown()


def both(predictor, inputs, folder, **settings):
    """A job done by this process and by Ray: with as many threads the folders' contents are the same to the byte."""
    here = predict_parts(predictor, inputs, folder / "here", **settings)
    there = predict_parts(predictor, inputs, folder / "ray", engine="ray", device="cpu", **settings)
    assert contents(folder / "here") == contents(folder / "ray")
    assert not there.missing
    assert (here.images, here.failures, here.classes) == (there.images, there.failures, there.classes)
    return there


def test_ray_leaves_what_one_process_leaves(cluster, tmp_path):
    found = images(11)
    write_folder(tmp_path / "in", found | {"c.tar": tar_of(found), "d.parquet": parquet_of(found)})
    predictor = Predictor(model_of("classify"), batch=4)
    here, there = tmp_path / "here", tmp_path / "ray"
    alone = predict_parts(predictor, [tmp_path / "in"], here, part_images=3, top=2)
    shutil.copytree(here, there)  # as a job that one process began and Ray ends
    for path in there.glob("*/part-*"):
        if "part-00002" not in path.name:
            path.unlink()
    (there / "manifest.json").unlink()
    before = identities(there)
    summary = predict_parts(
        predictor, [tmp_path / "in"], there, engine="ray", device="cpu", part_images=3, top=2, workers=2
    )
    assert contents(here) == contents(there)
    assert len(before) == 2
    assert {name: identities(there)[name] for name in before} == before
    assert (summary.images, summary.failures, summary.now) == (33, 3, 30)
    assert (alone.classes, alone.parts) == (summary.classes, summary.parts)
    with pytest.raises(ConfigError, match="workers is 3; Ray has room for 1 to 2 here"):
        predict_parts(predictor, [tmp_path / "in"], tmp_path / "no", engine="ray", workers=3)
    with pytest.raises(ConfigError, match="Ray has no GPU"):
        predict_parts(predictor, [tmp_path / "in"], tmp_path / "no", engine="ray", device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "detect"])
def test_segmenters_and_detectors(cluster, tmp_path, task):
    write_folder(tmp_path / "in", images(7))
    more = {"masks": True} if task == "segment" else {"threshold": 0.0}
    both(Predictor(model_of(task), batch=2), [tmp_path / "in"], tmp_path, part_images=3, workers=2, **more)


def slow_images(folder: Path, count: int) -> Path:
    """Images that take a while to read."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    for index in range(count):
        Image.fromarray(np.roll(pixels, index, 0)).save(folder / f"{index}.png", compress_level=1)
    return folder


def workers_of_ray() -> list[int]:
    """The processes that predict."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker(MapBatches(RayWorker)" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds Ray's workers in /proc")
def test_a_worker_that_is_killed_is_replaced(cluster, tmp_path):
    import threading

    folder = slow_images(tmp_path / "in", 60)
    predictor = Predictor(model_of("classify"))
    predict_parts(predictor, [folder], tmp_path / "here", part_images=3)
    killed: list[int] = []

    def kill():
        end = time.monotonic() + 60
        while not [*(tmp_path / "ray").glob("done/*.json")] and time.monotonic() < end:
            time.sleep(0.01)
        for process in workers_of_ray():
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = predict_parts(predictor, [folder], tmp_path / "ray", engine="ray", part_images=3, device="cpu", workers=2)
    killer.join()
    assert killed
    assert not summary.missing
    assert contents(tmp_path / "here") == contents(tmp_path / "ray")


@pytest.mark.slow
def test_a_part_that_kills_its_workers_is_told_and_the_others_are_kept(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "RayWorker", Fragile)
    write_folder(tmp_path / "in", images(9))
    predictor = Predictor(model_of("classify"))
    summary = predict_parts(predictor, [tmp_path / "in"], tmp_path / "ray", engine="ray", part_images=3, device="cpu")
    assert summary.missing == (("parts/part-00001.parquet", engines.GIVEN_UP),)
    assert len(rows_of(tmp_path / "ray")) == 6


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path):
    folder = slow_images(tmp_path / "in", 120)
    save(model_of("classify"), tmp_path / "run")
    predict_parts(Predictor(tmp_path / "run", device="cpu"), [folder], tmp_path / "here", part_images=2)
    words = (tmp_path / "run", folder, "--engine", "ray", "--part-images", 2, "--device", "cpu", "--workers", 2)
    script = [sys.executable, "-m", "swindow", "predict", *map(str, words), "--out", str(tmp_path / "ray")]
    silent = {"start_new_session": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    parts = tmp_path / "ray" / "done"
    with subprocess.Popen(script, **silent) as process:
        end = time.monotonic() + 120
        while len([*parts.glob("*.json")]) < 4 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while workers_of_ray() and time.monotonic() < end:  # they see that the job is gone, and go
        time.sleep(0.1)
    before = identities(tmp_path / "ray")
    assert 8 <= len(before) < 120
    with subprocess.Popen(script, **silent) as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    after = identities(tmp_path / "ray")
    assert {name: after[name] for name in before} == before
    assert contents(tmp_path / "here") == contents(tmp_path / "ray")
