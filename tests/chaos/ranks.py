"""Bar: a process of several dies, and the group goes on from the last commit. torchrun, two processes, gloo."""

import os
import random
import signal
import sys
import time
from pathlib import Path

from chaos import ours
from chaos.faults import Orders
from chaos.lanes import Lanes, Result
from chaos.starting import Spawned, Started
from chaos.trial import Training, Trial, seeded, trial
from swindow.settings import TrainConfig

RESTARTS = 3
"""Kills of one run, and what torchrun is allowed."""
SLOW = 0.004


def ranks(config: TrainConfig, library: Path, lanes: Lanes, *, kills: int, seed: int, most: float = 15.0) -> Result:
    """`kills` SIGKILLs of one of two processes, at random moments, a part of them inside a save.

    Passes if every run ends by itself in the state of the one that was left alone, it never takes longer than `most`
    seconds to be back in training, and no process is left when torchrun has ended.
    """
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--max-restarts", str(RESTARTS), "-m", "swindow"]
    words += ours.words(config, lanes.place / "ranks.toml", "{run}")
    start = Spawned(words, library, environment={"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})
    training = Training(start, ours.state_of, saves="/steps|/best")
    with trial(training, lanes.place) as alone:
        began = time.monotonic()
        want = alone.finish()
        long = time.monotonic() - began
    done = []
    chance = seeded(seed)
    while sum(run["kills"] for run in done) < kills:
        with trial(training, lanes.place) as one:
            done.append(_one_run(one, chance, min(RESTARTS, kills - sum(run["kills"] for run in done))))
    bad = [run for run in done if run["state"] != want or run["orphans"]]
    slowest = max((seconds for run in done for seconds in run["recovered"]), default=None)
    return {
        "bar": "ranks",
        "kills": sum(run["kills"] for run in done),
        "inside_a_save": sum(run["inside"] for run in done),
        "runs": len(done),
        "same_final_state": len(done) - len([run for run in done if run["state"] != want]),
        "slowest_recovery_seconds": slowest and round(slowest, 1),
        "orphans": sum(run["orphans"] for run in done),
        "seconds_of_a_run_without_faults": round(long, 1),
        "passed": not bad and not want.startswith("exit") and (slowest is None or slowest <= most),
        "failures": bad[:3] or ([want] if want.startswith("exit") else []),
    }


def _one_run(one: Trial, chance: random.Random, kills: int) -> Result:
    """One call of torchrun, whose processes are killed one after the other."""
    started, board = one.start(Orders(only=one.training.saves, pause=SLOW))
    done, inside, recovered, killed = 0, 0, [], 0.0
    while not started.ended() and done < kills:
        if not _trains(started, done):
            time.sleep(0.02)
            continue
        if killed:
            recovered.append(time.monotonic() - killed)
        _wait(started, chance.uniform(0.0, 0.8), board.operations if chance.random() < 0.5 else None, board)
        victims = _ranks_of(str(board.path))
        if started.ended() or not victims:
            break
        was_inside = board.inside
        board.page.inside = 0  # of a process that is killed nobody counts the end
        os.kill(chance.choice(victims), signal.SIGKILL)
        killed, done, inside = time.monotonic(), done + 1, inside + was_inside
    while killed and not started.ended() and not _trains(started, done):
        time.sleep(0.02)
    if killed and not started.ended():
        recovered.append(time.monotonic() - killed)
    code = started.wait()
    time.sleep(0.3)
    left = _processes_of(str(board.path))
    state = one.training.state(one.run) if code == 0 else f"exit {code}: {started.said()[-1500:]}"
    return {"kills": done, "inside": inside, "recovered": recovered, "orphans": len(left), "state": state}


def _trains(started: Started, restarts: int) -> bool:
    """Whether training is under way for the so many-th time: the first process says its plan before the first step."""
    return started.said().count(" steps, ") > restarts


def _wait(started: Started, seconds: float, operations: int | None, board: object) -> None:
    """So long, or until a save begins."""
    limit = time.monotonic() + (3 if operations is not None else seconds)
    while time.monotonic() < limit and not started.ended():
        if operations is not None and board.operations > operations:  # type: ignore[attr-defined]
            time.sleep(seconds / 10)
            return
        time.sleep(0.002)


def _ranks_of(board: str) -> list[int]:
    """The processes that train: those with a rank."""
    return [pid for pid in _processes_of(board) if b"\0RANK=" in _environment(pid)]


def _processes_of(board: str) -> list[int]:
    """All that live and were started with this board."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if f"CHAOS_BOARD={board}".encode() in _environment(pid)]


def _environment(pid: int) -> bytes:
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
