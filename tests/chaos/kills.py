"""Bar: killed anywhere, nothing is lost. SIGKILL of the whole process group at random moments, until it is done."""

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chaos.faults import Orders
from chaos.lanes import Lanes, Result
from chaos.trial import Training, seeded, trial

PER_RUN = 5
"""Kills that one run has to live through."""
SLOW = 0.002
"""Seconds by which every file operation of a save is stretched, so that kills fall into saves."""
AIMED, AIM = 0.5, 2.0
"""Share of the kills that wait, from their moment on, for the next operation of a save; and for how many seconds."""


def kills(training: Training, lanes: Lanes, *, count: int, seed: int, extra: Mapping[str, Any] | None = None) -> Result:
    """`count` kills, half of them aimed at saves; those that came inside a file operation of one are counted.

    Passes if every run ends in the state of the one that was left alone, and redoes no more than an interval.
    """
    began = time.monotonic()
    with trial(training, lanes.place) as alone:
        code, said, _ = alone.go(Orders(only=training.saves, pause=SLOW), extra or {})
        if code:
            raise RuntimeError(f"the training does not work without faults either:\n{said}")
        want, long = training.state(alone.run), time.monotonic() - began
    runs = [(seed * 1000 + number, min(PER_RUN, count - PER_RUN * number)) for number in range(-(-count // PER_RUN))]

    def work(item: tuple[int, int], place: Path) -> Result:
        return _one_run(training, place, seeded(item[0]), item[1], long, extra or {}) | {"seed": item[0]}

    done = lanes.map(work, runs)
    redone = [steps for run in done for steps in run["redone"]]
    wrong = [run for run in done if run["state"] != want]
    late = training.interval is not None and max(redone, default=0) > training.interval
    return {
        "bar": "kills",
        "kills": sum(run["kills"] for run in done),
        "inside_a_save": sum(run["inside"] for run in done),
        "runs": len(done),
        "same_final_state": len(done) - len(wrong),
        "most_steps_redone": max(redone, default=None),
        "interval": training.interval,
        "passed": not wrong and not late,
        "failures": wrong[:3],
    }


def _one_run(
    training: Training, place: Path, chance: random.Random, count: int, long: float, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A run that is killed `count` times and then left alone."""
    done, inside, redone, reached = 0, 0, [], -1
    left = long
    with trial(training, place) as one:
        while done < count:
            started, board = one.start(Orders(only=training.saves, pause=SLOW), extra)
            began = time.monotonic()
            moment = began + chance.uniform(0, 2 * left / (count - done + 1))
            aimed = chance.random() < AIMED
            while not started.ended() and (now := time.monotonic()) < moment + AIM:
                if now >= moment and (board.inside or not aimed):
                    break
                time.sleep(0.0005)
            lived = time.monotonic() - began
            if started.code is not None:
                if started.code:
                    return _report(done, inside, redone, f"exit {started.code}: {started.said()[-1500:]}")
                left = lived  # it was done before its time had come: it goes on from its end, and is killed there
                continue
            started.kill()
            left = max(left - lived, 0.1 * long)
            done, inside = done + 1, inside + board.inside
            if board.began >= 0:
                redone += [max(reached - board.began, 0)] if reached >= 0 else []
                reached = board.step
        code, said, board = one.go(extra=extra)
        if board.began >= 0 and reached >= 0:
            redone.append(max(reached - board.began, 0))
        state = training.state(one.run) if code == 0 else f"exit {code}: {said[-1500:]}"
    return _report(done, inside, redone, state)


def _report(kills: int, inside: int, redone: list[int], state: str) -> dict[str, Any]:
    return {"kills": kills, "inside": inside, "redone": redone, "state": state}
