"""A second witness: strace sees all system calls, ours must have met each of those that change files."""

import collections
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.faults import Board, Orders
from chaos.operations import read_log
from chaos.starting import Forked
from chaos.trial import Training, Trial, trial

CALLS = {
    "openat": "open",
    "open": "open",
    "creat": "open",
    "write": "write",
    "pwrite64": "write",
    "writev": "write",
    "pwritev": "write",
    "pwritev2": "write",
    "sendfile": "write",
    "copy_file_range": "write",
    "fsync": "sync",
    "fdatasync": "sync",
    "sync_file_range": "sync",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "ftruncate": "open",
    "truncate": "open",
    "fallocate": "open",
    "link": "link",
    "linkat": "link",
}
OURS = {"create": "open", "reopen": "open", "truncate": "open"}
"""Kinds that strace does not tell apart."""
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (\d+)")


def traced(training: Training, base: Trial, stopped: Path) -> dict[str, int] | str:
    """By kind, how many more changes under the run folder strace saw than we did; or why it could not look."""
    start = training.start
    if shutil.which("strace") is None or not isinstance(start, Forked):
        return "no strace here" if shutil.which("strace") is None else "only for trainings in this process"

    def main(run: Path, board: Board, extra: Mapping[str, Any]) -> int:
        import os

        os.kill(os.getpid(), signal.SIGSTOP)  # until strace has it
        return start.main(run, board, extra)

    with trial(Training(Forked(main), training.state), base.folder, like=stopped) as one:
        log, seen = one.folder / "ours.log", one.folder / "strace.log"
        started, _ = one.start(Orders(log=log))
        words = [
            "strace",
            "-f",
            "-y",
            "-s",
            "0",
            "-e",
            f"trace={','.join(CALLS)}",
            "-o",
            str(seen),
            "-p",
            str(started.pid),
        ]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as witness:
            if not _is_traced(started.pid):
                started.kill()
                return "strace is not permitted here"
            started.kill(signal.SIGCONT)
            code = started.wait()
            witness.wait()
        if code:
            raise RuntimeError(f"under strace: exit {code}: {started.said()}")
        theirs = _changes(seen.read_text(errors="replace").splitlines(), one.run)
        theirs.subtract(OURS.get(operation.kind, operation.kind) for operation in read_log(log, one.run))
    return {kind: count for kind, count in theirs.items() if count}


def _is_traced(pid: int) -> bool:
    for _ in range(500):
        if "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text():
            return True
        time.sleep(0.01)
    return False


def _changes(lines: list[str], run: Path) -> collections.Counter[str]:
    """Of the calls that succeeded under the run folder, those that change something, by kind."""
    found: collections.Counter[str] = collections.Counter()
    for line in lines:
        parts = _LINE.match(line)
        if parts is None or str(run.resolve()) not in parts[2]:
            continue
        kind = CALLS[parts[1]]
        if parts[1].startswith("open") and "O_CREAT" not in parts[2] and "O_TRUNC" not in parts[2]:
            continue
        if kind == "unlink" and "AT_REMOVEDIR" in parts[2]:
            kind = "rmdir"
        found[kind] += 1
    return found
