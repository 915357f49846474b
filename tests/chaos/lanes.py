"""Trials side by side, one lane a core: copies of the harness, so that each can make copies of its own."""

import dataclasses
import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lanes:
    """How many trials at once, and where they keep what they write."""

    count: int
    place: Path

    def map(self, work: Callable[[Item, Path], Result], items: Sequence[Item]) -> list[Result]:
        """`work(item, folder)` for every item, in lanes with a folder each; results are plain values.

        Raises:
            RuntimeError: an error in one of the lanes, with its traceback.
        """
        results: dict[int, Result] = {}
        begun = [(pid, path) for pid, path in (self._begin(lane, work, items) for lane in range(self.count))]
        try:
            for pid, path in begun:
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                if status or (lines and "error" in lines[-1]):
                    raise RuntimeError(lines[-1]["error"] if lines else f"a lane ended with {status}")
                results |= {line["number"]: line["result"] for line in lines}
        except BaseException:
            for pid, _ in begun:
                _end(pid)
            raise
        return [results[number] for number in range(len(items))]

    def _begin(self, lane: int, work: Callable[[Item, Path], Result], items: Sequence[Item]) -> tuple[int, Path]:
        folder = self.place / f"lane-{lane}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "results.jsonl"
        path.write_text("")
        pid = os.fork()
        if pid:
            return pid, path
        try:
            with path.open("a") as file:
                for number in range(lane, len(items), self.count):
                    file.write(json.dumps({"number": number, "result": work(items[number], folder)}) + "\n")
        except BaseException:  # noqa: BLE001 - the harness raises it
            with path.open("a") as file:
                file.write(json.dumps({"error": traceback.format_exc()}) + "\n")
            os._exit(1)
        os._exit(0)


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return
