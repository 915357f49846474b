"""`swindow train --devices 2`, as a user runs it: who is told of signals, errors and deaths, and what is left then."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pictures import class_folders
from swindow.cli import launching
from swindow.cli.launching import processes_for
from swindow.distributed import ALONE, Ranks, standing
from swindow.errors import ConfigError
from test_training_together import saved

SHAPE = ("--fields", "patch", "2", "window", "4", "dim", "8", "depths", "1", "1", "num_heads", "1", "2")
PLAIN = ("--model", "swin_micro", *SHAPE, "--size", "16", "--batch", "8", "--device", "cpu", "--workers", "0")
PLAIN += ("--precision", "fp32", "--val-fraction", "0.25", "--no-tensorboard", "--no-report", "--eval-every", "100")
PATIENCE = 240


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("pictures"))


@dataclasses.dataclass
class Started:
    process: subprocess.Popen
    run: Path

    def workers(self) -> list[int]:
        """The processes that train; newer ones after a restart."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "swindow.cli.launching" in line]

    def saved_steps(self, least: int) -> None:
        """Wait until that step is saved."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            if any(int(path.name[-8:]) >= least for path in self.run.glob("steps/step-" + 8 * "[0-9]")):
                return
            time.sleep(0.05)
        raise AssertionError(f"step {least} was not saved: {self.ended()}")

    def ended(self) -> tuple[int, str, str]:
        """Exit code, what was printed, what was said; nobody is left."""
        before = self.workers()
        out, error = self.process.communicate(timeout=PATIENCE)
        for worker in before:
            assert not Path(f"/proc/{worker}").exists() or _is_gone(worker)
        return self.process.returncode, out, error


def _is_gone(process: int) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{process}").exists():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def start(pictures) -> Iterator[Callable[..., Started]]:
    """Start a training; whatever becomes of the test, it is over afterwards."""
    begun: list[Started] = []

    def begin(run: Path, *words: str) -> Started:
        command = [sys.executable, "-m", "swindow", "train", str(pictures), *PLAIN, "--out", str(run), *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        begun.append(Started(process, run))
        return begun[-1]

    yield begin
    for started in begun:
        if started.process.poll() is None:
            started.process.kill()  # its workers notice
        started.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_all_after_a_step_that_is_saved(start, tmp_path, name):
    started = start(tmp_path / "run", "--devices", "2", "--epochs", "5000", "--save-steps", "2")
    started.saved_steps(2)
    started.process.send_signal(getattr(signal, name))
    code, _, said = started.ended()
    assert code == 128 + getattr(signal, name)
    assert f"stopped by {name} at step" in said
    assert "Traceback" not in said
    assert "a process died" not in said, "a polite stop is no reason to start again"


@pytest.mark.slow
def test_a_dead_process_costs_nothing_but_time(start, tmp_path):
    words = ("--epochs", "4", "--save-steps", "2", "--devices", "2", "--optim.ema", "0.9")
    whole = start(tmp_path / "whole", *words)
    code, printed, said = whole.ended()
    assert (code, printed.count("accuracy")) == (0, 1), said
    killed = start(tmp_path / "killed", *words)
    killed.saved_steps(2)
    os.kill(killed.workers()[-1], signal.SIGKILL)
    code, _, said = killed.ended()
    assert code == 0, said
    assert "a process died; all start again from the last saved state (1 of 3)" in said
    assert "resumed at step" in said
    assert "Traceback" not in said
    assert saved(tmp_path / "killed") == saved(tmp_path / "whole")


@pytest.mark.slow
def test_an_error_of_the_user_is_said_once_and_not_tried_again(start, tmp_path):
    code, _, said = start(tmp_path / "run", "--devices", "2", "--batch", "9").ended()
    assert code == 2
    assert said.count("cannot be shared evenly") == 1
    assert "Traceback" not in said
    assert "a process died" not in said


@pytest.mark.slow
def test_the_processes_go_with_their_launcher(start, tmp_path):
    started = start(tmp_path / "run", "--devices", "2", "--epochs", "5000", "--save-steps", "2")
    started.saved_steps(2)
    workers = started.workers()
    assert len(workers) == 2
    started.process.kill()
    started.process.communicate(timeout=PATIENCE)
    assert all(_is_gone(worker) for worker in workers)


@pytest.mark.slow
def test_torchrun_starts_the_same(pictures, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "swindow", "train", str(pictures), *PLAIN, "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--epochs", "1"], capture_output=True, text=True, env=environment, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy") == 1


def test_as_many_processes_as_there_are_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes_for("auto", "auto") == 4
    assert processes_for(2, "cuda") == 2
    assert processes_for(8, "cpu") == 8
    assert processes_for("auto", "cpu") == 1
    with pytest.raises(ConfigError, match="this machine has 4 GPUs; give at most 4, or --device cpu"):
        processes_for(5, "auto")
    with pytest.raises(ConfigError, match="each process takes its own; leave out --device"):
        processes_for(2, "cuda:1")
    with pytest.raises(ConfigError, match="at least 1, or auto"):
        processes_for(0, "auto")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun has started processes already"):
        processes_for(2, "auto")


def test_srun_says_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert standing() == ALONE, "a batch script has a number too"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(ConfigError, match="export MASTER_ADDR="):
        standing()
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert standing() == Ranks(5, 8, 1)
    assert os.environ["MASTER_PORT"] == "29500"


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system does not tell")
def test_signals_go_to_children_alone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert launching._is_ours(child.pid)
    child.communicate(b"\n")
    assert not launching._is_ours(child.pid)
    assert not launching._is_ours(os.getppid())


def test_a_code_is_written_by_the_first_alone(tmp_path):
    assert launching._write_once(tmp_path / "verdict", "2")
    assert not launching._write_once(tmp_path / "verdict", "143")
    assert launching._read(tmp_path / "verdict") == 2
    assert launching._read(tmp_path / "stop") is None
