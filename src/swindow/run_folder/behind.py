"""One piece of work at a time, beside the run or within it, whose error is never lost."""

import threading
from collections.abc import Callable


class Work:
    """`start` it, then ask `ended`: the error that it ended with, once."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, task: Callable[[], None], *, behind: bool) -> None:
        """Do it now, or in a thread; the one before must have been asked for."""
        if not behind:
            self._do(task)
            return
        self.thread = threading.Thread(target=self._do, args=(task,), name="swindow-save")
        self.thread.start()

    def ended(self) -> BaseException | None:
        """Wait for the end; the error, if there was one that nobody has heard of."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - it is raised where the run asks
            self.error = error
