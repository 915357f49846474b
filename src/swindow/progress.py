"""Long work says how far it is: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console


@runtime_checkable
class Progress(Protocol):
    """What a long computation tells whoever watches."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start counting `total` items, of which `done` are behind us."""

    def advance(self, items: int = 1, **values: Any) -> None:
        """Count `items` more and show `values` beside the bar."""

    def end(self) -> None:
        """Stop counting."""


class Silent:
    """Says nothing."""

    def say(self, line: str) -> None:
        return

    def begin(self, title: str, total: int, done: int = 0) -> None:
        return

    def advance(self, items: int = 1, **values: Any) -> None:
        return

    def end(self) -> None:
        return


class Lines:
    """One plain line now and then, for logs and pipes."""

    def __init__(self, every: float = 30.0) -> None:
        self.every = every
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.start = title, total, done, done
        self.began = self.spoke = time.monotonic()

    def advance(self, items: int = 1, **values: Any) -> None:
        self.done += items
        now = time.monotonic()
        if now - self.spoke >= self.every:
            self.spoke = now
            left = (now - self.began) / max(self.done - self.start, 1) * (self.total - self.done)
            shown = " ".join(f"{key} {value}" for key, value in values.items())
            self.say(f"{self.title} {self.done}/{self.total} {shown} left {clock(left)}")

    def end(self) -> None:
        return


class Bar:
    """A live bar with values and time left."""

    def __init__(self) -> None:
        from rich import progress

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[values]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
        )
        self.task: progress.TaskID | None = None

    def say(self, line: str) -> None:
        self.bar.console.print(line, markup=False)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self.task = self.bar.add_task(title, total=total, completed=done, values="")
        self.bar.start()

    def advance(self, items: int = 1, **values: Any) -> None:
        if self.task is not None:
            shown = "  ".join(f"{key} {value}" for key, value in values.items())
            self.bar.update(self.task, advance=items, values=shown)

    def end(self) -> None:
        if self.task is not None:
            self.bar.stop()
            self.bar.remove_task(self.task)
            self.task = None


@contextlib.contextmanager
def counting(progress: Progress, title: str, total: int, done: int = 0) -> Iterator[None]:
    """Count within a block; the bar is taken down however the block ends."""
    progress.begin(title, total, done)
    try:
        yield
    finally:
        progress.end()


def watcher() -> Progress:
    """A bar when stderr is a terminal, plain lines when it is not."""
    return Bar() if sys.stderr.isatty() else Lines()


def clock(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Stopped(KeyboardInterrupt):
    """A signal that came while all was saved."""


class Stopper:
    """Turns SIGINT and SIGTERM into a wish: finish the step, save and stop. A second signal stops at once."""

    saved = False
    """Whether all there is to lose is saved, so that a signal may end what goes on."""

    @contextlib.contextmanager
    def all_saved(self, enabled: bool = True) -> Iterator[None]:
        """Within, a signal raises `Stopped` at once; also one that came before."""
        if enabled and self.signal is not None:
            raise Stopped(self.signal)
        self.saved = enabled
        try:
            yield
        finally:
            self.saved = False

    def __enter__(self) -> "Stopper":
        import signal

        self.signal: str | None = None
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in self.before:
                signal.signal(number, self._wish)
        except ValueError:  # not the main thread: signals go to whoever runs it, and that is right
            self.before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _wish(self, number: int, _: Any) -> None:
        import signal

        self.signal = signal.Signals(number).name
        self._restore()
        if self.saved:
            raise Stopped(self.signal)

    def _restore(self) -> None:
        import signal

        for number, handler in self.before.items():
            signal.signal(number, handler)
