"""Where memory ends: what is left is known, and a run that takes more says what to change and loses nothing."""

import dataclasses
import hashlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swindow import memory
from swindow.errors import OutOfMemory
from swindow.learner import Learner
from swindow.memory import available_memory, how_to_fit, is_out_of_memory
from swindow.progress import Silent
from swindow.recipes import configure
from swindow.training import train

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which is Linux's")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_full_memory(error, is_one):
    assert is_out_of_memory(error) == is_one


def test_a_real_refusal_is_recognised():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@linux
def test_what_is_left_is_the_least_of_system_group_and_process(tmp_path, monkeypatch):
    mib = 2**20
    (tmp_path / "meminfo").write_text(f"MemTotal: {900 * 1024} kB\nMemAvailable: {500 * 1024} kB\n")
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert available_memory(CPU) == 500 * mib
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(CPU) == 500 * mib
    (tmp_path / "memory.max").write_text(f"{400 * mib}\n")
    (tmp_path / "memory.current").write_text(f"{150 * mib}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {50 * mib}\nactive_file 7\n")
    assert available_memory(CPU) == 300 * mib
    monkeypatch.setattr(resource, "getrlimit", lambda which: (memory._kib(memory.OWN, "VmSize") + 10 * mib, -1))
    assert 0 <= available_memory(CPU) <= 11 * mib


def test_version_1_of_control_groups_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "none")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("700\n")
    (tmp_path / "memory" / "memory.stat").write_text("cache 90\ntotal_inactive_file 80\n")
    assert available_memory(CPU) == 380


def test_where_nobody_says_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "none")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert available_memory(CPU) is None


def test_what_to_change_keeps_the_steps_as_they_are():
    said = how_to_fit(CPU, batch=64, accumulate=2, size=224, world=1, out="runs/a")
    assert said.startswith("out of memory on cpu with batch 64 at 224 px; --batch 32 --optim.accumulate 4 ")
    assert "--checkpointing" in said
    assert "runs/a is as it was" in said
    assert "fsdp" not in said
    assert "\n" not in said
    several = how_to_fit(CPU, batch=4, accumulate=1, size=224, world=4, out="runs/a")
    assert "--parallel.strategy fsdp" in several
    assert "--batch" not in several  # each process has one image already


def settings(out, **changes):
    return configure("digits", out=str(out), report=False, tensorboard=False, device="cpu", **changes)


def digest(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "lock"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_device_that_is_full_stops_the_run_and_leaves_the_save(tmp_path, monkeypatch):
    config = settings(tmp_path / "run", max_steps=2, batch=32)
    train(config, progress=Silent())
    before = digest(tmp_path / "run")
    step = Learner.step

    def full(self, batches):
        if self.position.step >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, batches)

    monkeypatch.setattr(Learner, "step", full)
    longer = dataclasses.replace(config, max_steps=4)
    with pytest.raises(OutOfMemory, match=r"with batch 32 at 8 px; --batch 16 --optim\.accumulate 2"):
        train(longer, resume=True, progress=Silent())
    after = digest(tmp_path / "run")
    kept = [name for name in before if name.endswith(".safetensors")]
    assert kept
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    monkeypatch.undo()
    assert train(longer, resume=True, progress=Silent()).step == 4


LIMITED = """
import resource, sys
import torch
torch.set_num_threads(1)
from swindow.cli import main
from swindow.learner import Learner
from swindow.memory import OWN, _kib
step = Learner.step
def limited(self, batches):
    if self.position.step == 3:
        most = _kib(OWN, "VmSize") + 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    return step(self, batches)
Learner.step = limited
main(sys.argv[1:])
"""


@linux
@pytest.mark.slow
def test_a_process_that_gets_no_more_memory_says_what_to_change(tmp_path):
    """T18: a limit on the address space, set between two steps, as small as what the process has already."""
    words = ["train", "digits", "--out", str(tmp_path / "run"), "--size", "64", "--batch", "64", "--max-steps", "5"]
    words += ["--save-steps", "2", "--device", "cpu", "--workers", "0", "--precision", "fp32", "--no-report"]
    words += ["--no-tensorboard", "--eval-every", "100"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("swindow: out of memory on cpu with batch 64 at 64 px; --batch 32 --optim.accumulate 2 ")

    resumed = [sys.executable, "-m", "swindow", *words, "--resume", "--checkpointing"]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 2" in done.stderr + done.stdout
