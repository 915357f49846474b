"""What the processes of a `Company` are asked to do: train from settings, watched step by step."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from swindow.data.loading import Batch
from swindow.learner import Learner, StepReport
from swindow.progress import Silent
from swindow.settings import TrainConfig
from swindow.training import train


def trained(config: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """How a run ended; the images and the loss of each step, of all processes together."""
    steps: list[list[int]] = []
    losses: list[float] = []

    def note(learner: Learner, batches: list[Batch], report: StepReport) -> None:
        mine = [index for batch in batches for index in batch.indices.tolist()]
        steps.append(sorted(index for share in learner.ranks.everyones(mine) for index in share))
        loss = sum(report.losses.values()).detach()
        losses.append(float(learner.ranks.sums(loss)) / learner.ranks.world)

    with _watched(note):
        result = train(config, resume=resume, progress=Silent())
    score = result.evaluation and result.evaluation.score
    return {"stopped_by": result.stopped_by, "step": result.step, "score": score, "steps": steps, "losses": losses}


def signalled(config: TrainConfig, at: int, rank: int) -> tuple[str, int]:
    """How a run ended in which one process alone is asked to stop."""

    def note(learner: Learner, _: Any, __: Any) -> None:
        if learner.position.step == at and learner.ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    with _watched(note):
        result = train(config, progress=Silent())
    return result.stopped_by, result.step


@contextlib.contextmanager
def _watched(note: Callable[[Learner, list[Batch], StepReport], None]) -> Iterator[None]:
    step = Learner.step

    def noted(learner: Learner, batches: list[Batch]) -> StepReport:
        report = step(learner, batches)
        note(learner, batches, report)
        return report

    Learner.step = noted
    try:
        yield
    finally:
        Learner.step = step
