"""The table of docs/reliability.md, from a record: `python -m chaos.table benchmarks/results/chaos-….json`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS = {
    "same-twice": ("the same command twice", "{runs} runs, {different_states} final state"),
    "kills": ("SIGKILL anywhere", "{kills} kills, {inside_a_save} of them inside a save; {same_final_state} of {runs} "
              "runs end in the same state; at most {most_steps_redone} steps done again (interval {interval})"),
    "kills-with-workers": ("the same with a reading process", "{kills} kills; {same_final_state} of {runs} runs"),
    "crash-points": ("SIGKILL before each file operation, and within each write", "{operations} operations, {points} "
                     "points; {same_final_state} end in the same state"),
    "power-loss": ("power cut", "{states} different disks; {same_final_state} end in the same state, "
                   "{behind_the_last_synced_commit} go back behind a synced commit"),
    "bit-rot": ("damaged files", "{flips} flipped bits, {cuts} files cut short, {deletes} deleted, {swaps} swapped, "
                "{zeros} with zeros: {detected} detected; {went_on_from_the_one_before} gone on from the state before"),
    "stops": ("SIGTERM, SIGINT", "{signals} signals, {steps_lost} steps lost, slowest exit {slowest_exit_seconds} s"),
    "io-errors": ("ENOSPC, EIO, EACCES at each file operation", "{faults} faults: {failed_loudly} fail with a message, "
                  "{coped_with} are coped with; {same_final_state_afterwards} end in the same state once it is lifted"),
    "non-finite": ("NaN and infinity in loss, gradient, image; learning rate 1e20", "{injections} injected, {counted} "
                   "skipped and counted; {tensors_not_finite_in_files} such values in files"),
    "writers": ("two starts at once in one folder", "{races} races, {one_refused} times one is refused"),
    "ranks": ("SIGKILL of one of two processes under torchrun", "{kills} kills, {inside_a_save} inside a save; "
              "{same_final_state} of {runs} runs end in the same state; back in training after at most "
              "{slowest_recovery_seconds} s; {orphans} processes left over"),
}  # fmt: skip


def table(record: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| Fault | Figures | Holds |"
    yield "|---|---|---|"
    for bar in record["bars"]:
        what, figures = ROWS[bar["bar"]]
        yield f"| {what} (`{bar['bar']}`) | {figures.format(**bar)} | {'yes' if bar['passed'] else '**no**'} |"
    machine = record["environment"]
    yield ""
    yield f"{record['date']}, commit {record['commit']}, torch {machine['torch']}, {machine['processor']}, "
    yield f"{machine['cores']} cores, {sum(bar['seconds'] for bar in record['bars']) / 60:.0f} minutes."


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text()))))  # noqa: T201
