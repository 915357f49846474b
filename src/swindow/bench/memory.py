"""Most memory that a piece of work takes, in a process of its own.

Above what the libraries take when imported: the process first imports everything and takes a step with a model of a
handful of weights, and counts from there. On a GPU it is what torch's allocator held, where importing takes nothing.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swindow.bench.contenders import Contender, entry, network
from swindow.bench.work import Work, runner
from swindow.config import from_dict, to_dict
from swindow.devices import peak_memory
from swindow.errors import ConfigError
from swindow.model import ModelConfig

STEPS = 3
STATUS = Path("/proc/self/status")


def peak(someone: Contender, config: ModelConfig, work: Work) -> int | None:
    """Bytes, measured in a fresh process; None on a CPU for what a compiler or an exporter runs in: they would count.

    Raises:
        ConfigError: the process failed.
    """
    kind = work.device.split(":")[0]
    if kind not in ("cpu", "cuda") or ((someone.compiled or someone.engine) and kind == "cpu"):
        return None
    asked = {
        "contender": dataclasses.asdict(someone),
        "config": to_dict(config),
        "work": to_dict(work),
        "threads": torch.get_num_threads(),
    }
    script = "from swindow.bench.memory import child; child()"
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", script], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"{someone.name}: peak memory could not be measured: {said[-1]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def child() -> None:
    """Read what to do from standard input, do it, write the bytes to standard output."""
    asked: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    someone = from_dict(Contender, asked["contender"])
    config, work = from_dict(ModelConfig, asked["config"]), from_dict(Work, asked["work"])
    sys.stdout.write(json.dumps({"bytes": above_imports(someone, config, work)}) + "\n")


def above_imports(someone: Contender, config: ModelConfig, work: Work) -> int:
    """Bytes that building the contender and `STEPS` steps of its work take at most, on top of its imports."""
    _import_everything(someone, config, work)
    device = torch.device(work.device)
    before = _resident(device)
    run = entry(someone, network(someone, config, work), work)
    for _ in range(STEPS):
        run()
    return _most(device) - before


def _import_everything(someone: Contender, config: ModelConfig, work: Work) -> None:
    """What libraries import when they are first used, used: on shapes without memory, and on a few weights."""
    small = dataclasses.replace(work, size=(4, 4), batch=1, classes=2, dtype="fp32")
    runner(nn.Sequential(nn.Flatten(), nn.Linear(16 * work.channels, 2)), dataclasses.replace(small, mode="train"))()
    plain = dataclasses.replace(someone, ways=())
    if ".py:" not in someone.source:
        with torch.device("meta"):
            network(plain, config, dataclasses.replace(work, device="meta"))


def _resident(device: torch.device) -> int:
    """Bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or peak_memory(device)


def _most(device: torch.device) -> int:
    """Most bytes held so far. Linux's `ru_maxrss` is inherited from the parent, which holds all models at once."""
    return peak_memory(device) if device.type == "cuda" else _status("VmHWM") or peak_memory(device)


def _status(key: str) -> int:
    """A size from the process's own account, in bytes; 0 where the system keeps none."""
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
