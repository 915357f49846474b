"""Bar: a full or failing disk is loud, and costs nothing that was there. Each file operation of a sitting fails."""

import dataclasses
import errno
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.crash_points import Half, sitting
from chaos.faults import KINDS, Board, Orders
from chaos.lanes import Lanes, Result
from chaos.starting import Forked
from chaos.trial import Training, trial

GROWING = ("create", "write", "sync", "mkdir", "truncate")
"""What fails on a full disk; deleting and renaming do not."""
FAULTS = (
    ("ENOSPC", Orders(action="fail", error=errno.ENOSPC, kinds=GROWING, for_good=True)),
    ("EIO", Orders(action="fail", error=errno.EIO)),
    ("EACCES", Orders(action="fail", error=errno.EACCES)),
)


def io_errors(training: Training, lanes: Lanes, *, half: Half, every: int = 1) -> Result:
    """A run that was stopped halfway goes on, and its N-th file operation fails: for N = 1, 2, 3 … with each errno; a
    disk that is full stays so. Then the fault is lifted and the run goes on.

    Passes if each time it says which place failed and exits with a status other than 0 (or copes, and ends in the right
    state), leaves nothing unfinished behind, and ends, the fault lifted, in the state of the run that was left alone.
    """
    with trial(training, lanes.place) as base:
        want, operations = sitting(training, base, half)
        stopped = base.folder / "stopped" if half else None
        points = [
            (name, number)
            for name, fault in FAULTS
            for number in range(1, sum(one.kind in fault.kinds for one in operations) + 1, every)
        ]

        def work(point: tuple[str, int], place: Path) -> Result:
            fault = dict(FAULTS)[point[0]]
            with trial(training, place, like=stopped) as one:
                code, said, _ = one.go(dataclasses.replace(fault, at=point[1]))
                left = [path.name for path in one.run.rglob("*") if ".tmp" in path.name]
                loud = code != 0 and str(one.run) in said and "Traceback" not in said
                coped = code == 0
                state = one.finish()
                return {
                    "fault": point,
                    "operation": _name(operations, fault.kinds, point[1]),
                    "exit": code,
                    "loud": loud,
                    "coped": coped,
                    "left": left,
                    "said": said[-600:],
                    "state": state,
                }

        done = lanes.map(work, points)
        full = _file_size_limit(training, lanes.place, want)
    refused = _unwritable(training, lanes.place)
    bad = [one for one in done if one["state"] != want or one["left"] or not (one["loud"] or one["coped"])]
    return {
        "bar": "io-errors",
        "operations": len(operations),
        "faults": len(done),
        "failed_loudly": sum(one["loud"] for one in done),
        "coped_with": sum(one["coped"] for one in done),
        "left_unfinished_files": sum(bool(one["left"]) for one in done),
        "same_final_state_afterwards": sum(one["state"] == want for one in done),
        "file_size_limit": full,
        "unwritable_folder": refused,
        "passed": not bad and full["passed"] and refused["passed"],
        "failures": bad[:6],
    }


def _name(operations: list, kinds: tuple[str, ...], number: int) -> str:
    return str([one for one in operations if one.kind in kinds][number - 1])


def _file_size_limit(training: Training, place: Path, want: str) -> Result:
    """A limit of the system's own: no file may grow beyond 64 KiB, so that the first save fails; then it is lifted."""
    start = training.start
    if not isinstance(start, Forked):
        return {"passed": True, "skipped": "only for trainings in this process"}

    def limited(run: Path, board: Board, extra: Mapping[str, Any]) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
        return start.main(run, board, extra)

    with trial(Training(Forked(limited), training.state), place) as one:
        code, said, _ = one.go()
        left = [path.name for path in one.run.rglob("*") if ".tmp" in path.name]
        loud = code > 0 and str(one.run) in said and "Traceback" not in said
        again = trial_of(training, one.folder, one.run)
        return {"exit": code, "loud": loud, "passed": loud and not left and again == want, "said": said[-400:]}


def trial_of(training: Training, folder: Path, run: Path) -> str:
    """The final state of a copy of a run that is gone on with."""
    with trial(training, folder, like=run) as one:
        return one.finish()


def _unwritable(training: Training, place: Path) -> Result:
    """Nothing at all may be written from the first operation on: refused before the data is read."""
    with trial(training, place) as one:
        began = time.monotonic()
        code, said, board = one.go(Orders(at=1, action="fail", error=errno.EACCES, for_good=True, kinds=KINDS))
        took = time.monotonic() - began
    loud = code not in (0, None) and str(one.run) in said and "Traceback" not in said
    passed = loud and took < 2 and board.began < 0
    return {"exit": code, "seconds": round(took, 2), "passed": passed, "said": said[-300:]}
