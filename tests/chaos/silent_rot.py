"""Bar for any command: is a flipped bit in what it saved ever used without a word?"""

import shutil
from pathlib import Path

from chaos.bit_rot import Damage
from chaos.faults import Orders
from chaos.lanes import Lanes, Result
from chaos.trial import Training, seeded, trial


def silent_rot(training: Training, lanes: Lanes, *, flips: int, seed: int) -> Result:
    """Kill a run halfway, flip one bit of what it has saved, go on.

    Passes if each time it refuses, or ends in the state of the run that was left alone: it noticed, or did not need
    that bit. A run that ends well in another state has used damaged numbers without a word.
    """
    with trial(training, lanes.place) as base:
        code, said, board = base.go(Orders(only=training.saves))
        if code:
            raise RuntimeError(f"the training does not work without faults either:\n{said}")
        want, half = training.state(base.run), board.operations // 2
        shutil.rmtree(base.run)
        base.go(Orders(only=training.saves, at=half, action="kill"))
        chance = seeded(seed)
        words = training.saves.split("|")
        paths = [path.relative_to(base.run) for path in sorted(base.run.rglob("*")) if path.is_file()]
        paths = [path for path in paths if any(word in f"/{path}" for word in words)]
        if not paths:
            raise RuntimeError(
                f"nothing whose path has {training.saves!r} was saved by half of the operations ({half})"
            )
        damages = [Damage("flip", str(chance.choice(paths)), chance.random()) for _ in range(flips)]

        def work(damage: Damage, place: Path) -> Result:
            with trial(training, place, like=base.run) as one, damage.done_to(one.run):
                code, said, _ = one.go()
                state = training.state(one.run) if code == 0 else ""
            return {"file": damage.name, "exit": code, "silent": bool(state) and state != want, "said": said[-300:]}

        done = lanes.map(work, damages)
    silent = [one for one in done if one["silent"]]
    return {
        "bar": "silent-rot",
        "flips": len(done),
        "refused": sum(one["exit"] != 0 for one in done),
        "ended_in_the_right_state": sum(one["exit"] == 0 and not one["silent"] for one in done),
        "used_without_a_word": len(silent),
        "passed": not silent,
        "failures": silent[:3],
    }
