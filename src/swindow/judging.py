"""How good a run is: judged on its validation split as it goes, and on its test split at the end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swindow.checkpoints import load
from swindow.data import Annotated, DataSource
from swindow.evaluation import AnyEvaluation, evaluate, paint
from swindow.inference import ready
from swindow.learner import Learner
from swindow.model import Model
from swindow.preparing import steps
from swindow.progress import Progress, clock
from swindow.rasters import InMemory
from swindow.reporting import draw_progress, fixed_rows, write_report
from swindow.run_folder import RunFolder
from swindow.settings import TrainConfig
from swindow.sliding import Segmenter


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended: `stopped_by` is ``finished``, a limit's name or a signal's; the rest is None after a signal."""

    run: Path
    step: int
    stopped_by: str
    evaluation: AnyEvaluation | None = None
    report: Path | None = None


def judge(
    learner: Learner, source: DataSource, config: TrainConfig, epochs: int, run: RunFolder, progress: Progress
) -> None:
    """Evaluate on the validation split, keep the best, count the evaluations without a better one.

    A segmenter, a detector or a painter is also asked about a few images that are always the same, for the report.
    """
    position = learner.position
    model = learner.judged()
    evaluation = _evaluate(model, source, "val", config, learner, surfaces=False)
    figures = evaluation.figures()
    epoch = position.epoch + (position.batch > 0)
    run.record({"kind": "val", "step": position.step, "epoch": epoch, **figures})
    position.judged, position.waited = position.step, position.waited + 1
    if evaluation.score > position.best:
        position.best, position.waited = evaluation.score, 0
        run.save_best(model, {"step": position.step, **figures})
    answer = _answers(model, source.val, config, learner) if config.report and learner.ranks.is_first else None
    if source.val is not None and answer is not None:
        rows = fixed_rows(source.val)
        draw_progress(run.path, position.step, source.val, rows, answer, learner.model.colours or ())
    loss = f"  loss {figures['loss']:.3f}" if "loss" in figures else ""
    progress.say(
        f"epoch {epoch}/{epochs}  val {evaluation.score_name} {evaluation.score:.2%}{loss}  "
        f"best {position.best:.2%}  {clock(position.seconds)}"
    )


def finish(
    config: TrainConfig,
    learner: Learner,
    source: DataSource,
    loader: Any,
    epochs: int,
    run: RunFolder,
    reason: str,
    peak_gib: float,
    progress: Progress,
) -> TrainResult:
    """Judge the best weights on the test split, or on the validation split where there is none; write the results."""
    position = learner.position
    none = learner.ranks.first_of(run.best() is None)
    if none:
        position.best = -1.0
    # A run that a limit ended mid-epoch is judged where it stands. Its saved position stays that of a run which was
    # not stopped, so that resuming it changes nothing.
    if position.judged != position.step or none:
        judge(learner, source, config, epochs, run, progress)
    learner.ranks.wait()  # for the first process to have written the best
    model = load(run.best() or run.path).to(learner.device)
    split = "test" if source.test is not None else "val"
    evaluation = _evaluate(model, source, split, config, learner)
    facts = {
        "score_name": evaluation.score_name,
        "score": evaluation.score,
        "split": split,
        "selected_on": "val",
        "stopped_by": reason,
        "steps": position.step,
        "epochs": position.epoch + (position.batch > 0),
        "seconds": round(position.seconds, 1),
        "device": str(learner.device),
        "peak_memory_gib": round(peak_gib, 3),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "skipped_images": position.bad,
        "skipped_steps": position.skipped,
        "processes": learner.ranks.world,
        **({"teacher": config.teacher, "distill": config.distill} if config.teacher else {}),
        **evaluation.summary(),
    }
    run.write_json("result.json", facts)
    progress.say(
        f"{split} {evaluation.score_name} {evaluation.score:.2%} of {evaluation.count} images "
        f"in {clock(position.seconds)}, "
        f"peak memory {facts['peak_memory_gib']:.2f} GiB on {learner.device}"
    )
    report = None
    if config.report and learner.ranks.is_first:
        pixels, targets = learner.as_seen(next(steps(loader, 0, 0, 1))[0])
        images = source.split(split)
        report = write_report(
            run.path,
            evaluation=evaluation,
            images=images,
            batch=pixels,
            labels=targets,
            classes=source.classes,
            facts={"data": source.describe(), "model": config.model, "recipe": config.recipe, **facts},
            answer=_answers(model, images, config, learner),
        )
        progress.say(f"report: {report}")
    return TrainResult(run.path, position.step, reason, evaluation, report)


def _evaluate(
    model: Model, source: DataSource, split: str, config: TrainConfig, learner: Learner, *, surfaces: bool | None = None
) -> AnyEvaluation:
    return evaluate(
        model,
        source.split(split),
        split=split,
        batch=max(config.images // learner.ranks.world, 1),
        device=str(learner.device),
        precision=learner.precision,
        workers=config.workers,
        views=config.views,
        surfaces=surfaces,
        ranks=learner.ranks,
    )


def _answers(model: Model, images: Any, config: TrainConfig, learner: Learner) -> Callable[[int], Any] | None:
    """What a segmenter or detector sees in one of some pictures, by its row: labels of pixels, or `Detections`.

    Of a model that is pretrained, what it paints; of a classifier nothing.
    """
    if model.task == "classify":
        return None
    asked = ready(model, device=str(learner.device), precision=learner.precision)
    if model.task == "pretrain":
        return lambda row: paint(asked, images, row)
    if isinstance(images, Annotated):
        return lambda row: asked.detect(images.read(row))[0]
    segmenter = Segmenter(asked, config.views)
    return lambda row: segmenter.labels(InMemory(images.read(row)))
