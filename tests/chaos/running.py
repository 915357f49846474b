"""Which bars there are, how often each is tried, and where their figures go."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from chaos.faults import Board, library, preloaded
from chaos.lanes import Lanes, Result

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def main() -> None:
    """The command line; exits 1 if a bar does not hold."""
    asked, command = _words(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has its background jobs ignore it
    if not preloaded():
        _begin_again_with_the_library()
    with _place() as place:
        lanes = Lanes(asked.lanes, place)
        bars = theirs(asked, command, lanes) if command else ours(asked, lanes, place)
        unknown = set(asked.bars) - bars.keys()
        if unknown:
            sys.exit(f"no such bar: {', '.join(sorted(unknown))}; there are {', '.join(bars)}")
        results = [_timed(name, bars[name], asked.seed) for name in asked.bars or bars]
        if asked.out:
            print(_record(asked.out, results, asked))  # noqa: T201
    sys.exit(not all(result["passed"] for result in results))


def ours(asked: argparse.Namespace, lanes: Lanes, place: Path) -> dict[str, Callable[[], Result]]:
    """The bars of swindow's own training."""
    from chaos import ours
    from chaos.bit_rot import Saved, bit_rot
    from chaos.crash_points import crash_points
    from chaos.io_errors import io_errors
    from chaos.kills import kills
    from chaos.non_finite import non_finite
    from chaos.power_loss import power_loss
    from chaos.ranks import ranks
    from chaos.starting import Forked, import_what_is_needed
    from chaos.stops import stops
    from chaos.writers import same_twice, writers

    config = ours.settings(place)
    training = ours.training(config)
    assert isinstance(training.start, Forked)
    board = Board(place / "first.board", place / "first")
    import_what_is_needed(training.start, place / "first", board, place / "log", first=ours.NEEDED)
    saved = Saved(ours.newest, ours.step_of, ours.chosen)
    few, seed = asked.short, asked.seed
    half = {"max_steps": ours.STEPS - 1}  # then a step, a commit, rotation, an evaluation, the best, the end
    return {
        "same-twice": partial(same_twice, training, lanes, count=2 if few else 20),
        "kills": partial(kills, training, lanes, count=4 if few else 200, seed=seed),
        "kills-with-workers": partial(kills, training, lanes, count=2 if few else 10, seed=seed, extra={"workers": 1}),
        "crash-points": partial(crash_points, training, lanes, half=half, every=40 if few else 1, strace=not few),
        "power-loss": partial(power_loss, training, lanes, half=half, count=10 if few else 600, seed=seed),
        "bit-rot": partial(
            bit_rot,
            training,
            lanes,
            saved,
            half=half,
            flips=80 if few else 2000,
            cuts=10 if few else 200,
            resumed=1 if few else 40,
            seed=seed,
        ),
        "stops": partial(stops, training, lanes, count=3 if few else 60, seed=seed),
        "io-errors": partial(io_errors, training, lanes, half=half, every=90 if few else 1),
        "non-finite": partial(non_finite, config, lanes, count=4 if few else 100, diverging=1 if few else 4, seed=seed),
        "writers": partial(writers, training, lanes, races=1 if few else 20),
        "ranks": partial(ranks, config, Path(os.environ["LD_PRELOAD"]), lanes, kills=1 if few else 20, seed=seed),
    }


def theirs(asked: argparse.Namespace, command: list[str], lanes: Lanes) -> dict[str, Callable[[], Result]]:
    """The bars that any training command can be held against."""
    from chaos.crash_points import crash_points
    from chaos.io_errors import io_errors
    from chaos.kills import kills
    from chaos.power_loss import power_loss
    from chaos.silent_rot import silent_rot
    from chaos.starting import Spawned
    from chaos.stops import stops
    from chaos.trial import Training, hash_of_files
    from chaos.writers import same_twice, writers

    if not asked.state:
        sys.exit("give --state GLOB: the files, below the run folder, that a finished run is known by")
    start = Spawned(command, Path(os.environ["LD_PRELOAD"]))
    training = Training(start, partial(hash_of_files, pattern=asked.state), saves=asked.saves)
    seed, count = asked.seed, asked.count
    return {
        "same-twice": partial(same_twice, training, lanes, count=2),
        "kills": partial(kills, training, lanes, count=count, seed=seed),
        "crash-points": partial(crash_points, training, lanes, half={}, strace=False),
        "power-loss": partial(power_loss, training, lanes, half={}, count=count, seed=seed),
        "stops": partial(stops, training, lanes, count=count, seed=seed),
        "io-errors": partial(io_errors, training, lanes, half={}),
        "silent-rot": partial(silent_rot, training, lanes, flips=count, seed=seed),
        "writers": partial(writers, training, lanes, races=count),
    }


def _words(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="chaos", description="Faults on purpose: what does a training lose?")
    parser.add_argument("bars", nargs="*", help="which ones; all of them unless given")
    parser.add_argument("--short", action="store_true", help="a few seconds each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=len(os.sched_getaffinity(0)), help="trials at once")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="folder for a dated record of the figures")
    parser.add_argument("--count", type=int, default=20, help="of another command: kills, signals, races")
    parser.add_argument("--state", default="", help="of another command: its final state's files, as a glob pattern")
    parser.add_argument(
        "--saves", default="", help="of another command: words in the paths of saved states, split by |"
    )
    ours, command = (words, []) if "--" not in words else (words[: words.index("--")], words[words.index("--") + 1 :])
    return parser.parse_args(ours), command


def _begin_again_with_the_library() -> None:
    """Become a process that has it preloaded, and arithmetic without threads, so that copies can be made of it."""
    one = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MKL_NUM_THREADS": "1"}
    os.execve(  # noqa: S606 - this same program
        sys.executable,
        [sys.executable, "-m", "chaos", *sys.argv[1:]],
        os.environ | one | {"LD_PRELOAD": str(library(Path(tempfile.mkdtemp(prefix="chaos-"))))},
    )


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A folder for all trials, in memory where there is such a place; kept if a bar ends in an error."""
    memory = Path("/dev/shm")  # noqa: S108 - a new folder in it
    place = Path(tempfile.mkdtemp(prefix="chaos-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield place
    except Exception:
        print(f"what the trials left is in {place}", file=sys.stderr)  # noqa: T201
        raise
    else:
        shutil.rmtree(place)
    finally:
        shutil.rmtree(Path(os.environ["LD_PRELOAD"]).parent)


def _timed(name: str, bar: Callable[[], Result], seed: int) -> Result:
    """Its figures, printed as a line of JSON."""
    began = time.monotonic()
    result = bar() | {"bar": name, "seed": seed, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result), flush=True)  # noqa: T201
    return result


def _record(folder: Path, results: list[Result], asked: argparse.Namespace) -> Path:
    """The figures of all bars with date, commit and machine, beside the other measurements."""
    from swindow.bench.record import record, today

    facts: dict[str, Any] = {"short": asked.short, "lanes": asked.lanes, "bars": results}
    path = folder / f"chaos-{today()}.json"
    path.write_text(json.dumps(record() | facts, indent=1) + "\n")
    return path
