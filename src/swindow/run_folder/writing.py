"""The files of one saved state."""

from pathlib import Path
from typing import Any

from swindow.checkpoints import WEIGHTS
from swindow.checkpoints.files import write_new
from swindow.checkpoints.own import FACTS, METADATA
from swindow.checkpoints.streaming import pieces, refuse_unfinite
from swindow.distributed import Ranks
from swindow.run_folder.saved import STATE, TRAINING
from swindow.run_folder.shards import write_shards
from swindow.run_folder.snapshot import Snapshot


def write(snapshot: Snapshot, folder: Path, ranks: Ranks, group: Any) -> dict[str, dict[str, Any]]:
    """Write this process's files of a snapshot; in the first process, the facts of all files by name.

    Of a model that is cut up all processes write, and hear of each other's errors through `group`.

    Raises:
        OSError: a file cannot be written.
        CheckpointError: values that are not finite, or another process that could not write.
    """
    facts: dict[str, dict[str, Any]] = {}
    if snapshot.is_sharded:
        facts = write_shards(folder, snapshot.training, snapshot.layout, ranks, group)
    if not ranks.is_first:
        return facts
    refuse_unfinite(snapshot.usable, f"step {snapshot.step}")
    if not snapshot.is_sharded:
        refuse_unfinite(snapshot.training, f"step {snapshot.step}")
        facts[TRAINING] = write_new(folder / TRAINING, pieces(snapshot.training))
    facts[WEIGHTS] = write_new(folder / WEIGHTS, pieces(snapshot.usable, {METADATA: snapshot.card}))
    facts[FACTS] = write_new(folder / FACTS, snapshot.card)
    facts[STATE] = write_new(folder / STATE, snapshot.facts)
    return facts
