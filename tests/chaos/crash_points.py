"""Bar: every system-call crash point. Killed before each file operation of a sitting, and within each write."""

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.faults import Orders
from chaos.lanes import Lanes, Result
from chaos.operations import Operation, read_log
from chaos.tracing import traced
from chaos.trial import Training, Trial, trial

Half = Mapping[str, Any]
"""Settings of a start that stops halfway; none to take a whole run."""


def crash_points(training: Training, lanes: Lanes, *, half: Half, every: int = 1, strace: bool = True) -> Result:
    """A run that was stopped halfway (by the settings `half`) goes on, and is killed at its first file operation, then
    at its second, until it survives. That takes in saving, rotation, deletion, and replacing the best weights.

    Passes if each of them ends, gone on with, in the state of the run that was left alone.
    """
    with trial(training, lanes.place) as base:
        want, operations = sitting(training, base, half)
        points = [(number, "kill") for number in range(1, len(operations) + 1, every)]
        points += [(n, "half") for n, one in enumerate(operations, 1) if one.kind == "write" and one.length > 1][
            ::every
        ]
        stopped = base.folder / "stopped" if half else None

        def work(point: tuple[int, str], place: Path) -> Result:
            number, action = point
            with trial(training, place, like=stopped) as one:
                code, _, _ = one.go(Orders(at=number, action=action))  # type: ignore[arg-type]
                died = code == -signal.SIGKILL
                return {"point": number, "action": action, "died": died, "state": one.finish(), "exit": code}

        done = lanes.map(work, points)
        missed = traced(training, base, stopped) if strace and stopped else "not asked"
    wrong = [one for one in done if one["state"] != want or not one["died"]]
    return {
        "bar": "crash-points",
        "operations": len(operations),
        "points": len(done),
        "within_a_write": sum(one["action"] == "half" for one in done),
        "same_final_state": sum(one["state"] == want for one in done),
        "operations_that_strace_saw_and_we_did_not": missed,
        "passed": not wrong and (isinstance(missed, str) or not missed),
        "failures": wrong[:3],
    }


def sitting(training: Training, base: Trial, half: Half) -> tuple[str, list[Operation]]:
    """Stop a run halfway, keep it as ``stopped``; the final state, and the file operations from there to the end."""
    if half:
        code, said, _ = base.go(extra=half)
        if code:
            raise RuntimeError(f"the training does not work without faults either:\n{said}")
        shutil.copytree(base.run, base.folder / "stopped")
    log = base.folder / "operations.log"
    code, said, _ = base.go(Orders(log=log))
    if code:
        raise RuntimeError(f"a run that was stopped halfway does not go on:\n{said}")
    want, operations = training.state(base.run), read_log(log, base.run)
    shutil.rmtree(base.run)
    return want, operations
