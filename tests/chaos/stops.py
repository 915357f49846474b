"""Bar: stopped politely, no step is lost. SIGTERM and SIGINT at random moments, from start to end."""

import signal
import time
from pathlib import Path

from chaos.faults import Orders
from chaos.lanes import Lanes, Result
from chaos.trial import Training, seeded, trial

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SLOW = 0.001


def stops(training: Training, lanes: Lanes, *, count: int, seed: int, longest: float = 10.0) -> Result:
    """`count` signals, one to a run, four of five of them SIGTERM; then the run goes on.

    A signal before the first step or after the last save may end the program by default: there is nothing to lose. One
    that comes too late finds the run finished.
    Passes if no step is done twice, no exit takes longer than `longest` seconds, exit codes are right, nobody sees a
    traceback, and every run ends in the state of the one that was left alone.
    """
    began = time.monotonic()
    with trial(training, lanes.place) as alone:
        want = alone.finish()
    long = time.monotonic() - began

    def work(item: int, place: Path) -> Result:
        chance = seeded(seed * 1000 + item)
        number = signal.SIGINT if item % 5 == 4 else signal.SIGTERM
        with trial(training, place) as one:
            started, board = one.start(Orders(only=training.saves, pause=SLOW))
            moment = time.monotonic() + chance.uniform(0, 1.1 * long)
            while not started.ended() and time.monotonic() < moment:
                time.sleep(0.001)
            if started.ended():
                return {"signal": number.name, "sent": False, "state": one.finish(), "lost": 0, "said": started.said()}
            told, inside, at = time.monotonic(), board.inside, board.step
            started.tell(number)
            code = started.wait(60)
            took, reached = time.monotonic() - told, board.step
            code, said, again = one.go() if (first := code) in (CODES[number], -number) else (code, "", board)
            state = training.state(one.run) if code == 0 else f"exit {code}: {said[-1500:]}"
            lost = max(reached - again.began, 0) if first and reached >= 0 and again.began >= 0 else 0
            return {
                "signal": number.name,
                "sent": True,
                "step": at,
                "inside_a_save": inside,
                "exit": first,
                "seconds": took,
                "lost": lost,
                "state": state,
                "said": started.said(),
            }

    done = lanes.map(work, range(count))
    sent = [one for one in done if one["sent"]]
    bad = [one for one in done if one["state"] != want or one["lost"] or "Traceback" in one["said"]]
    slow = max((one["seconds"] for one in sent), default=0.0)
    return {
        "bar": "stops",
        "signals": len(sent),
        "after_the_end": len(done) - len(sent),
        "inside_a_save": sum(one["inside_a_save"] for one in sent),
        "by_default_before_the_first_step_or_after_the_last": sum(one["exit"] < 0 for one in sent),
        "steps_lost": sum(one["lost"] for one in done),
        "tracebacks": sum("Traceback" in one["said"] for one in done),
        "slowest_exit_seconds": round(slow, 2),
        "same_final_state": sum(one["state"] == want for one in done),
        "passed": not bad and slow <= longest,
        "failures": bad[:3],
    }
