"""One training that is started as often as it takes, in a folder of its own, and what it leaves in the end."""

import contextlib
import dataclasses
import hashlib
import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chaos.faults import NO_FAULTS, Board, Orders
from chaos.starting import PATIENCE, Start, Started


@dataclasses.dataclass(frozen=True)
class Training:
    """A training command, as far as the harness needs to know it."""

    start: Start
    """Begins or goes on."""
    state: Callable[[Path], str]
    """Fingerprint of what a finished run leaves: equal for equal states."""
    saves: str = ""
    """Words, split by |, of which the paths of saved states contain one; none: all that is written is a save."""
    interval: int | None = None
    """Most steps between two saves; None where it does not say which step it is at."""


class Trial:
    """A run folder and the starts that happened in it."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.run = folder / "run"
        self.numbers = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, orders: Orders = NO_FAULTS, extra: Mapping[str, Any] = {}) -> tuple[Started, Board]:
        """Begin, or go on."""
        name = f"start-{next(self.numbers)}"
        board = Board(self.folder / f"{name}.board", self.run, orders)
        return self.training.start(self.run, board, self.folder / f"{name}.log", extra=extra), board

    def go(
        self, orders: Orders = NO_FAULTS, extra: Mapping[str, Any] = {}, seconds: float = PATIENCE
    ) -> tuple[int, str, Board]:
        """Begin or go on, until it ends: exit status, what it said, what the board says."""
        started, board = self.start(orders, extra)
        return started.wait(seconds), started.said(), board

    def finish(self, extra: Mapping[str, Any] = {}) -> str:
        """Go on to the end, without faults: the fingerprint; or, if that does not work, what it said."""
        code, said, _ = self.go(extra=extra)
        return self.training.state(self.run) if code == 0 else f"exit {code}: {said[-1500:]}"


@contextlib.contextmanager
def trial(training: Training, place: Path, like: Path | None = None) -> Iterator[Trial]:
    """A trial in a new folder under `place`, with a copy of the run folder `like`; removed unless an error ends it."""
    numbers = (place / f"trial-{number}" for number in itertools.count())
    folder = next(path for path in numbers if not path.exists())
    fresh = Trial(training, folder)
    if like is not None:
        shutil.copytree(like, fresh.run)
    yield fresh
    shutil.rmtree(folder)


def seeded(seed: int) -> random.Random:
    """What a bar leaves to chance, the same for the same seed."""
    return random.Random(seed)  # noqa: S311 - nothing secret


def hash_of_files(run: Path, pattern: str) -> str:
    """SHA-256 over the names and bytes of the files of a run folder that match a glob pattern.

    Raises:
        FileNotFoundError: no file does.
    """
    paths = sorted(path for path in run.glob(pattern) if path.is_file())
    if not paths:
        raise FileNotFoundError(f"{run} has no file {pattern}")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(run)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
