"""How a training is started: as a copy of this process, which has imported everything, or as a program of its own."""

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from chaos.faults import Board

PARENT_DIED = 1  # PR_SET_PDEATHSIG
PATIENCE = 300.0
"""Seconds after which a start that does not end is a failure."""


class Hung(Exception):
    """A start that did not end in time."""


@dataclasses.dataclass
class Started:
    """A training under way, in a process group of its own."""

    pid: int
    log: Path
    """What it has written to stdout and stderr."""
    code: int | None = None
    """How it ended: its exit status, or minus the signal that killed it."""

    def ended(self) -> bool:
        """Whether it has."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float = PATIENCE) -> int:
        """How it ended; a start that takes longer than `seconds` is killed, and is a failure."""
        limit = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > limit:
                self.kill()
                raise Hung(f"no end after {seconds:g} s: {self.said()[-2000:]}")
            time.sleep(0.002)
        return self.code  # type: ignore[return-value]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the whole group; after SIGKILL, see it go."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        if number == signal.SIGKILL:
            self.wait()

    def tell(self, number: int) -> None:
        """Send a signal to its first process alone, as a scheduler does."""
        os.kill(self.pid, number)

    def said(self) -> str:
        """All that it has written."""
        return self.log.read_text(errors="replace")


class Start(Protocol):
    """Begin a training in a run folder, or go on with it: the same call for both."""

    def __call__(self, run: Path, board: Board, log: Path, *, extra: Mapping[str, Any] = {}) -> Started:
        """`extra` are settings of this start, for those that understand them."""


@dataclasses.dataclass(frozen=True)
class Forked:
    """Copies of this process: it has imported everything and started no thread, so a start costs milliseconds."""

    main: Callable[[Path, Board, Mapping[str, Any]], int]
    """Trains in a run folder, and returns the exit status."""

    def __call__(self, run: Path, board: Board, log: Path, *, extra: Mapping[str, Any] = {}) -> Started:
        log.touch()
        pid = os.fork()
        if pid:
            with contextlib.suppress(PermissionError, ProcessLookupError):  # the copy does the same: whoever is first
                os.setpgid(pid, pid)
            return Started(pid, log)
        with _ending_here():
            _become_one_of_its_own(log)
            board.obey()
            code = _status_of(lambda: self.main(run, board, extra))
            atexit._run_exitfuncs()
            os._exit(code)
        raise AssertionError("a copy never gets here")


@dataclasses.dataclass(frozen=True)
class Spawned:
    """A program of its own; ``{run}`` in its words is the run folder."""

    words: Sequence[str]
    library: Path
    """That of `faults`, to preload."""
    again: Sequence[str] = ()
    """Words to go on, where those differ from the words to begin."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, run: Path, board: Board, log: Path, *, extra: Mapping[str, Any] = {}) -> Started:
        words = self.again if self.again and run.exists() else self.words
        words = [word.replace("{run}", str(run)) for word in words]
        words += [word for name, value in extra.items() for word in (f"--{name}", str(value))]
        ours = {"LD_PRELOAD": str(self.library), "CHAOS_BOARD": str(board.path)}
        with log.open("ab") as file:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | ours | dict(self.environment),
                process_group=0,
            )
        process.returncode = 0  # it is waited for here, not there
        return Started(process.pid, log)


def import_what_is_needed(start: Forked, run: Path, board: Board, log: Path, *, first: Sequence[str] = ()) -> None:
    """Train once in a copy, and import here what it imported, so that no later copy has to; `first` are known to be
    needed, and spare that copy the most of it."""
    for name in first:
        importlib.import_module(name)
    names = log.with_suffix(".modules")

    def main(run: Path, board: Board, extra: Mapping[str, Any]) -> int:
        code = _status_of(lambda: start.main(run, board, extra))
        names.write_text("\n".join(sys.modules))
        return code

    started = Forked(main)(run, board, log)
    if started.wait():
        raise RuntimeError(f"training does not work without faults either:\n{started.said()}")
    for name in names.read_text().split():
        if name not in sys.modules and name != "__mp_main__":
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    gc.freeze()  # what was imported stays: copies need not look through it again and again
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise RuntimeError(f"{threads} threads run here after the imports, and copies would lack all but one of them")


def _become_one_of_its_own(log: Path) -> None:
    """A group of its own, that dies with its parent, and writes to `log`."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(number, target)


def _status_of(main: Callable[[], int]) -> int:
    """The exit status that a program of this `main` would have; never an exception."""
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:  # noqa: BLE001 - what a program would print and exit with
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


@contextlib.contextmanager
def _ending_here() -> NoReturn:  # type: ignore[misc]
    """Whatever happens in a copy, it never goes on as if it were the harness."""
    try:
        yield
    except BaseException:  # noqa: BLE001 - the parent reads it in the log
        traceback.print_exc()
    finally:
        os._exit(70)
