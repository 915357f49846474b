"""``swindow train --devices N``: one process for each device, watched by torch's elastic agent, as torchrun does it.

The agent runs in this process, in a thread: signals come here and are handed on, and nobody reads its tracebacks.
The processes and the launcher share a folder: in it each leaves its number (so that a signal finds it) and, where
starting again would not help, the exit code of the whole command. A process that finds such a code there has nothing
to do; so what a user must change is said once, and a polite stop stays one.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from swindow.data.processes import cores
from swindow.errors import ConfigError

DESK = "SWINDOW_LAUNCHER"
"""Environment variable that names the folder which a launcher shares with its processes."""
GRACE = "10"
"""Seconds that the survivors of a dead process have before they are killed; a collective never ends without it."""
ORPHANED = 120
"""Seconds that a process has to finish its step and save when the launcher is gone."""
FINAL = (2, 130, 143)
"""Exit codes after which processes are not started again: refused, and stopped by a signal."""


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return DESK in os.environ


def processes_for(devices: int | Literal["auto"], device: str) -> int:
    """How many processes `devices` asks for.

    Raises:
        ConfigError: fewer than one, more than there are GPUs, one certain GPU for all, or torchrun has started us.
    """
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0
    count = max(gpus, 1) if devices == "auto" else devices
    if count < 1:
        raise ConfigError(f"devices is {count}; it must be at least 1, or auto for every GPU")
    if count == 1:
        return count
    if "RANK" in os.environ:
        raise ConfigError(f"devices is {count}, and torchrun has started processes already; leave out --devices")
    if ":" in device:
        raise ConfigError(f"device is {device}, and devices {count}: each process takes its own; leave out --device")
    if gpus and count > gpus:
        raise ConfigError(f"devices is {count}, and this machine has {gpus} GPUs; give at most {gpus}, or --device cpu")
    return count


def launch(words: list[str], count: int, restarts: int) -> int:
    """Run ``swindow WORDS`` in `count` processes that train together; the exit code of the whole.

    When one of them dies, all start again from the last saved state, at most `restarts` times.
    """
    # Each process computes with its share of the cores, unless somebody has said otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE)
    with tempfile.TemporaryDirectory(prefix="swindow-") as folder:
        desk = Path(folder)
        os.environ[DESK] = folder
        try:
            failed = _watched(words, count, restarts, desk)
        finally:
            del os.environ[DESK]
        verdict, stopped = _read(desk / "verdict"), _read(desk / "stop")
    if verdict is not None:
        return verdict
    if failed and stopped is not None:
        return stopped
    if failed:
        print(f"swindow: {failed}; what was saved is kept: the same command with --resume goes on", file=sys.stderr)
    return 1 if failed else 0


def _watched(words: list[str], count: int, restarts: int, desk: Path) -> str:
    """Let the agent work in a thread until all is done; what it says of a process that died too often, or nothing."""
    outcome: list[str | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_agent(words, count, restarts, desk))
        except BaseException as error:  # noqa: BLE001  # raised again by whoever waits for this thread
            outcome.append(error)

    agent = threading.Thread(target=work, name="elastic agent")
    with _handing_on(desk):
        agent.start()
        agent.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _agent(words: list[str], count: int, restarts: int, desk: Path) -> str:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # processes speak for themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(desk / "logs")),  # by default a folder that nobody would remove
    )
    try:
        elastic_launch(config, sys.executable)("-m", "swindow.cli.launching", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "ended by an error"
        return f"process {rank} of {count} was {how}, and {restarts} restarts are used up"
    return ""


@contextmanager
def _handing_on(desk: Path) -> Iterator[None]:
    """Hand SIGINT and SIGTERM on to every process that has left its number, and leave word for those that have not.

    The second one ends them at once: they may be waiting for each other and hear nothing.
    """

    def hand_on(number: int, _: Any) -> None:
        first = _write_once(desk / "stop", str(128 + number))
        for path in desk.glob("*.pid"):
            if not _is_ours(int(path.stem)):
                continue
            try:
                os.kill(int(path.stem), number if first else signal.SIGKILL)
            except ProcessLookupError:  # it has ended, and may have been followed by another
                continue

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ours(process: int) -> bool:
    """Whether a process is a child of this one: when a child has ended, others may get its number.

    The agent starts the processes from a thread of this one, so each is a child of it until it has been waited for.
    """
    if not hasattr(os, "waitid"):  # Windows, and macOS before Python 3.13
        return True
    try:
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def member(words: list[str]) -> NoReturn:
    """One of the processes that `launch` starts: run the command and leave word how it ended."""
    from swindow.cli import concluded, settle

    desk = Path(os.environ[DESK])
    _enter(desk)
    settle()
    _speak_once()
    try:
        code, message = concluded(words)
    except Exception as error:  # noqa: BLE001  # the last to see it
        code, message = 1, _said(error)
    if code in FINAL:
        if _write_once(desk / "verdict", str(code)) and message:
            print(f"swindow: {message}", file=sys.stderr)
        # Whoever waits for one that was refused would wait for long: a failure lets the agent stop them all.
        sys.exit(code if code == 2 else 0)
    if message and not _follows(desk / "verdict"):
        print(f"swindow: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # a group that has lost a member cannot be left in good order


def _enter(desk: Path) -> None:
    """Leave our number, see to signals, and go again where all is decided."""
    for number in (signal.SIGINT, signal.SIGTERM):  # until training asks for them: there is nothing to save yet
        signal.signal(number, _leave)
    (desk / f"{os.getpid()}.pid").touch()
    if (stopped := _read(desk / "stop")) is not None:
        _write_once(desk / "verdict", str(stopped))
    if (desk / "verdict").exists():
        sys.exit(0)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _speak_once() -> None:
    """The first process warns and says that it starts again; the others would say the same."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if int(os.environ["RANK"]):
        warnings.simplefilter("ignore")
    elif again:
        most = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "")
        print(
            f"swindow: a process died; all start again from the last saved state ({again} of {most})", file=sys.stderr
        )


def _said(error: Exception) -> str:
    """One line for the loss of another process, which says itself what it died of; else the traceback."""
    import torch.distributed as dist

    lines = str(error).strip().splitlines() or [type(error).__name__]
    lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
    return f"another process is gone ({lines[0]})" if lost else traceback.format_exc().rstrip()


def _leave(number: int, _: Any) -> NoReturn:
    """Go at once; a signal that all get is the end, one that a single process gets lets the agent start all again."""
    desk = Path(os.environ[DESK])
    stopped = _read(desk / "stop")
    if stopped is not None:
        _write_once(desk / "verdict", str(stopped))
    os._exit(128 + number if stopped is None else 0)


def _leave_with(parent: int) -> None:
    """Stop as by SIGTERM when the launcher is gone: nobody would watch any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHANED)
    os._exit(128 + signal.SIGTERM)


def _read(path: Path) -> int | None:
    """The exit code in a file, if it is there."""
    return int(path.read_text()) if path.exists() else None


def _follows(verdict: Path) -> bool:
    """Whether another process says what is the matter: one that leaves tears the connection first."""
    for _ in range(20):
        if verdict.exists():
            return True
        time.sleep(0.1)
    return False


def _write_once(path: Path, text: str) -> bool:
    """Whether this is the first to write it."""
    draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    draft.write_text(text)
    try:
        os.link(draft, path)  # whole or not at all
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


if __name__ == "__main__":
    member(sys.argv[1:])
