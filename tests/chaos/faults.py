"""File operations of a program: counted, slowed down, recorded; made to fail, or to be its last.

`faults.c` does it, preloaded into the program, whatever that is written in. `Board` is the page of memory by which the
harness and the program's processes speak.
"""

import ctypes
import dataclasses
import mmap
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("faults.c")
KINDS = ("create", "write", "sync", "rename", "unlink", "rmdir", "mkdir", "truncate", "link", "reopen")
ACTIONS = ("nothing", "kill", "fail", "half")


class _Page(ctypes.Structure):
    """The same as `struct board` in faults.c."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("count", "inside", "at", "action", "error", "for_good", "kinds")),
        *((name, ctypes.c_long) for name in ("pause_us", "step", "began")),
        ("folder", ctypes.c_char * 1024),
        ("only", ctypes.c_char * 256),
        ("log", ctypes.c_char * 1024),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orders:
    """What is to happen to the file operations under a folder."""

    at: int = 0
    """At which one, counted from 1 over all processes; 0 never."""
    action: Literal["nothing", "kill", "fail", "half"] = "nothing"
    """Kill the process group before it is done; fail it; or do the first half of a write, and kill."""
    error: int = 0
    """With which errno it fails."""
    for_good: bool = False
    """Those after it fail too."""
    kinds: tuple[str, ...] = KINDS
    """Which ones count."""
    only: str = ""
    """Words of which a path must contain one, split by |."""
    pause: float = 0.0
    """Seconds by which every one is delayed."""
    log: Path | None = None
    """Where they are written down."""


NO_FAULTS = Orders()


class Board:
    """Orders to one start of a program, and what became of it; shared by all of its processes."""

    def __init__(self, path: Path, folder: Path, orders: Orders = NO_FAULTS) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Page)))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        page = self.page = _Page.from_buffer(self.memory)
        page.at, page.action, page.error = orders.at, ACTIONS.index(orders.action), orders.error
        page.for_good, page.pause_us = orders.for_good, round(orders.pause * 1e6)
        page.kinds = sum(1 << KINDS.index(kind) for kind in orders.kinds)
        page.only, page.log = orders.only.encode(), os.fsencode(orders.log or "")
        page.step = page.began = -1
        page.folder = os.fsencode(folder.resolve())

    @property
    def operations(self) -> int:
        """Met so far."""
        return self.page.count

    @property
    def inside(self) -> bool:
        """Whether one is under way: asked after a kill, whether that came within it."""
        return self.page.inside > 0

    @property
    def step(self) -> int:
        """The step that training has reached, -1 before it began or where it does not say."""
        return self.page.step

    @property
    def began(self) -> int:
        """The step that training went on from."""
        return self.page.began

    def reached(self, step: int) -> None:
        """Said by the training: so many steps are behind it."""
        self.page.step = step

    def begins(self, step: int) -> None:
        """Said by the training: it goes on from here."""
        self.page.began = self.page.step = step

    def obey(self) -> None:
        """Let this process, which has the library preloaded, and those that it starts, take orders from here."""
        os.environ["CHAOS_BOARD"] = str(self.path)
        if ctypes.CDLL(None).chaos_board(os.fsencode(self.path)):
            raise OSError(f"{self.path}: cannot be mapped")


def library(folder: Path) -> Path:
    """The library, compiled into a folder.

    Raises:
        RuntimeError: this is not Linux, or there is no C compiler.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not Path("/proc/self/fd").exists() or compiler is None:
        raise RuntimeError("faults are injected by a preloaded library: that needs Linux and a C compiler (cc)")
    built = folder / "faults.so"
    words = [compiler, "-O1", "-Wall", "-fPIC", "-shared", "-o", str(built), str(SOURCE), "-ldl", "-pthread"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{SOURCE} cannot be compiled: {done.stderr.strip()}")
    return built


def preloaded() -> bool:
    """Whether this process has the library, so that its copies can be told what to do."""
    return hasattr(ctypes.CDLL(None), "chaos_board")
