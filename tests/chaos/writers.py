"""Bar: one writer at a time, and the same command twice gives the same bits."""

from pathlib import Path

from chaos.lanes import Lanes, Result
from chaos.trial import Training, trial


def writers(training: Training, lanes: Lanes, *, races: int) -> Result:
    """Two starts at once in one folder, `races` times.

    Passes if each time one trains to the end, the other is refused in so many words, and the state is as it should be.
    """
    with trial(training, lanes.place) as alone:
        want = alone.finish()

    def work(number: int, place: Path) -> Result:
        with trial(training, place) as one:
            both = [one.start()[0], one.start()[0]]
            codes = [started.wait() for started in both]
            said = [started.said() for started in both]
            refused = sorted(codes)[0] == 0 and sorted(codes)[1] > 0
            words = [text for code, text in zip(codes, said, strict=True) if code]
            polite = all(str(one.run) in text and "Traceback" not in text for text in words)
            state = training.state(one.run) if 0 in codes else f"exits {codes}: {said}"
            return {"codes": codes, "refused": refused and polite, "state": state, "said": words}

    done = lanes.map(work, range(races))
    bad = [one for one in done if not one["refused"] or one["state"] != want]
    return {
        "bar": "writers",
        "races": races,
        "one_refused": sum(one["refused"] for one in done),
        "same_final_state": sum(one["state"] == want for one in done),
        "passed": not bad,
        "failures": bad[:3],
    }


def same_twice(training: Training, lanes: Lanes, *, count: int) -> Result:
    """The same command `count` times in folders of their own; what all other bars rest on."""

    def work(number: int, place: Path) -> Result:
        with trial(training, place) as one:
            return {"state": one.finish()}

    states = [one["state"] for one in lanes.map(work, range(count))]
    return {
        "bar": "same-twice",
        "runs": count,
        "different_states": len(set(states)),
        "passed": len(set(states)) == 1 and not states[0].startswith("exit"),
        "failures": sorted(set(states))[1:3],
    }
