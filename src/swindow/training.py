"""`train`: one function, from settings to a judged model, read from top to bottom."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from swindow.checkpoints import load, load_weights, open_weights
from swindow.config import read_toml
from swindow.data import (
    Annotated,
    DataSource,
    Images,
    Scenes,
    duplicates_across,
    open_data,
    sample_check,
    split_changes,
    split_record,
)
from swindow.data.augment import Augment, build_augment
from swindow.data.boxes import ObjectAugment
from swindow.data.joint import JointAugment
from swindow.data.legends import palette
from swindow.data.loading import BadImages, Batch, train_loader
from swindow.devices import Precision, pick_device, pick_precision
from swindow.distributed import ALONE, Ranks, joined
from swindow.errors import ConfigError, DataError, OutOfMemory, TrainingDiverged, need
from swindow.evaluation import AnyEvaluation, evaluate, paint
from swindow.fitting_batch import SAMPLE, find_batch
from swindow.images import ImageLimits
from swindow.inference import ready
from swindow.learner import Learner
from swindow.memory import how_to_fit, is_out_of_memory
from swindow.meter import Meter
from swindow.model import Model, build, composition
from swindow.objectives import DistillConfig, MaskedImages, Objective, Stream, distilled
from swindow.optim import for_images
from swindow.preprocess import Preprocess
from swindow.progress import Progress, Silent, Stopper, clock, counting, watcher
from swindow.rasters import InMemory
from swindow.reporting import draw_progress, fixed_rows, forget_progress, write_report
from swindow.run_folder import RunFolder
from swindow.settings import FREE, TrainConfig, default_out, pixel_statistics
from swindow.sliding import Segmenter

SIGNALS = ("SIGINT", "SIGTERM")


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended: `stopped_by` is ``finished``, a limit's name or a signal's; the rest is None after a signal."""

    run: Path
    step: int
    stopped_by: str
    evaluation: AnyEvaluation | None = None
    report: Path | None = None


def train(config: TrainConfig, *, resume: bool = False, progress: Progress | None = None) -> TrainResult:
    """Train a classifier, segmenter or detector, or pretrain any, as `config` says; everything is in its run folder.

    With `resume`, go on from the folder's last state, to the bit as if there had been no stop. Under ``torchrun`` the
    processes train one model together, and a group that was restarted resumes by itself.

    Raises:
        ConfigError: settings that cannot be, or a run folder that belongs to another run.
        DataError: images or labels that cannot be used; the message names the file.
        TrainingDiverged: a loss or gradient is not finite; the last good state is in the run folder.
        OutOfMemory: a step needs more memory than there is; the last save is as it was.
    """
    with joined() as ranks:
        progress = (progress or watcher()) if ranks.is_first else Silent()
        # Each machine counts its own restarts, and one that has none may be the first.
        again = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        resume = bool(ranks.highest(int(again)))
        out = ranks.first_of(config.out or default_out(config, resume=resume))
        try:
            return _train(dataclasses.replace(config, out=out), resume, progress, ranks)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(config, out, ranks) from error


def _train(config: TrainConfig, resume: bool, progress: Progress, ranks: Ranks) -> TrainResult:
    _need_extras(config)

    # Where we run
    device = pick_device(config.device, ranks.local)
    precision = pick_precision(config.precision, device)

    # Data
    source = open_data(
        config.data,
        channels=config.channels,
        seed=config.seed,
        val_fraction=config.val_fraction,
        limits=ImageLimits(max_pixels=config.max_pixels),
        task=config.task,
        masks=config.masks,
        objects=config.objects,
    )
    progress.say(source.describe())
    source.split("val")  # without one there is nothing to choose the best weights by: say so before the work
    bad = BadImages(config.max_bad)
    judged_on = _readable(source, bad) if config.max_bad else source
    _warn(source, progress)

    # Batch
    if config.batch == "auto":
        config = _with_batch(config, source, device, precision, resume, progress, ranks)

    # Model
    torch.manual_seed(config.seed)
    model, preprocess = _new_model(config, source, progress)
    model.to(device).checkpoint_blocks(config.checkpointing)
    if config.compile:
        _compile_blocks(model)

    # Batches
    loader = train_loader(
        source.split("train"),
        _augment(config, source, preprocess),
        batch=config.images,
        seed=config.seed,
        workers=config.workers,
        max_bad=config.max_bad,
        pin_memory=device.type == "cuda",
        divisor=getattr(model.head.config, "divisor", 1),
        ranks=ranks,
        window=config.shuffle_window,
        cache=config.cache,
    )
    per_epoch = -(-len(loader) // config.optim.accumulate)
    epochs = -(-config.steps // per_epoch) if config.steps else config.epochs

    # Optimiser
    learner = Learner(
        model,
        for_images(config.optim, config.images),
        config.augment,
        total=config.steps or per_epoch * epochs,
        seed=config.seed,
        device=device,
        precision=precision,
        objective=_objective(config, model, source, precision, ranks),
        ranks=ranks,
        plan=config.parallel,
    )

    # Resume
    run = RunFolder(
        config.out,
        tensorboard=config.tensorboard,
        keep=config.keep,
        behind=config.save_behind,
        ranks=ranks,
        say=progress.say,
    )
    saved = run.open(config, resume=resume, free=FREE)
    with run, Stopper() as stopper:
        _keep_split(run, source)
        if saved is not None:
            learner.take_up(saved)
            progress.say(f"resumed at step {learner.position.step} of {learner.total}")
        elif resume:
            progress.say(f"nothing to resume in {run.path}: starting")
        position = learner.position
        run.forget_after(position.step, judged=position.judged)
        _forget_pictures(run, source, position.judged)
        progress.say(_plan(config, learner, epochs, per_epoch, run))

        # Loop
        stops = Stops(config, stopper, learner)
        meter = Meter(device, ranks)
        try:
            with counting(progress, "train", learner.total, position.step):
                for epoch in range(position.epoch, epochs):
                    for batches in _steps(loader, epoch, position.batch, config.optim.accumulate):
                        if stops.reason():  # asked before a step, since a resumed run may be at its limit already
                            break
                        if config.max_bad:
                            bad.add(
                                [
                                    line
                                    for lines in ranks.everyones([b.bad for b in batches])
                                    for b in lines
                                    for line in b
                                ]
                            )
                        rate = learner.rate
                        report = learner.step(batches)
                        if report.wrong:
                            progress.say(f"step {position.step}: {report.wrong} is not finite; the step moved nothing")
                        meter.add(report)
                        position.bad, position.seconds = max(position.bad, bad.count), stops.seconds()
                        progress.advance(1, epoch=f"{epoch + 1}/{epochs}", **meter.shown())
                        if due(position.step, max(per_epoch // 10, 1), learner.total):
                            run.record(
                                {"kind": "train", "step": position.step, "epoch": epoch, "lr_share": rate}
                                | {**meter.read(), "skipped_steps": position.skipped}
                            )
                        if stops.save_is_due():
                            run.save(learner)
                    else:
                        if stops.reason() in SIGNALS:
                            break
                        if due(epoch + 1, config.eval_every, epochs):
                            run.save(learner)  # what was learned outlives an evaluation that fails
                            _judge(learner, judged_on, config, epochs, run, progress)
                            meter.restart()
                        position.epoch, position.batch = epoch + 1, 0
                    if stops.reason():
                        break
        except (DataError, TrainingDiverged) as error:
            # The last good step outlives what ended the run. Diverged are all processes; what cannot be read, one.
            if ranks.world == 1 or isinstance(error, TrainingDiverged):
                run.save(learner)
            raise

        # Finish
        reason = stops.reason() or "finished"
        run.save(learner)
        run.finish_saving()
        if reason in SIGNALS:
            progress.say(
                f"stopped by {reason} at step {position.step}; the same command with --resume goes on ({run.path})"
            )
            return TrainResult(run.path, position.step, reason)
        return _finish(config, learner, judged_on, loader, epochs, run, reason, meter.peak_gib(), progress)


def _with_batch(
    config: TrainConfig,
    source: DataSource,
    device: torch.device,
    precision: Precision,
    resume: bool,
    progress: Progress,
    ranks: Ranks,
) -> TrainConfig:
    """`config` with a number for batch auto: that of the run to go on with, or else the largest that fits.

    It is found by a learner of each process for itself, uncompiled, whole and thrown away; all take the smallest.
    """
    own = Path(config.out) / "config.toml"
    found = ranks.first_of(read_toml(own).get("batch") if resume and own.exists() else None)
    if isinstance(found, int):
        return dataclasses.replace(config, batch=found)
    train = source.split("train")
    usual = config.optim.lr_images // config.optim.accumulate or 64
    most = max(min(4 * usual, len(train) // 8) // ranks.world, 1)
    usual = min(max(usual // ranks.world, 1), most)
    trial = dataclasses.replace(config, batch=usual, weights=None, distillation=_uncached(config.distillation))
    model, preprocess = _new_model(trial, source, Silent())
    model.to(device).checkpoint_blocks(config.checkpointing)
    learner = Learner(
        model,
        config.optim,
        config.augment,
        total=2**40,
        seed=config.seed,
        device=device,
        precision=precision,
        objective=_objective(trial, model, source, precision, ALONE),
    )
    augment = _augment(trial, source, preprocess)
    divisor = getattr(model.head.config, "divisor", 1)
    sample = train_loader(
        train, augment, batch=SAMPLE, seed=config.seed, workers=0, max_bad=config.max_bad, divisor=divisor
    )
    fitting = find_batch(learner, next(iter(sample)), usual=usual, most=most)
    batch = -ranks.highest(-fitting.batch) * ranks.world
    progress.say(
        f"batch {batch}: {fitting.batch} images a process fit on {device}, about {fitting.images_per_second:.0f} "
        f"images/s in each; {fitting.reason}"
    )
    return dataclasses.replace(config, batch=batch)


def _uncached(distillation: DistillConfig) -> DistillConfig:
    return dataclasses.replace(distillation, cache="")


def _out_of_memory(config: TrainConfig, out: str, ranks: Ranks) -> OutOfMemory:
    """What to say where memory ends."""
    return OutOfMemory(
        how_to_fit(
            pick_device(config.device, ranks.local),
            batch=config.batch,
            accumulate=config.optim.accumulate,
            size=config.size,
            world=ranks.world,
            out=out,
        )
    )


def due(done: int, every: int, total: int) -> bool:
    """Whether to act after `done` of `total`: every so often, and at the end."""
    return done % every == 0 or done == total


class Stops:
    """Everything that can end a run early, asked once a step."""

    def __init__(self, config: TrainConfig, stopper: Stopper, learner: Learner) -> None:
        self.config, self.stopper, self.learner = config, stopper, learner
        self.earlier = learner.position.seconds
        self.began = self.saved = time.monotonic()

    def seconds(self) -> float:
        """Seconds that the run has taken, earlier sittings included."""
        return self.earlier + time.monotonic() - self.began

    def reason(self) -> str | None:
        """The signal or the limit that was reached, if any, by any of the processes; all of them must ask."""
        config, position = self.config, self.learner.position
        limits = {
            "patience": 0 < config.patience <= position.waited,
            "finished": position.step >= self.learner.total,
            "max_steps": 0 < config.max_steps <= position.step,
            "max_minutes": 0 < config.max_minutes * 60 <= self.seconds(),
            **{name: self.stopper.signal == name for name in SIGNALS},
        }
        reached = [number for number, one in enumerate(limits.values(), start=1) if one]
        agreed = self.learner.ranks.highest(max(reached, default=0))
        return [None, *limits][agreed]

    def save_is_due(self) -> bool:
        """Whether the last save is long enough ago, by the first process's clock; asking counts as saving."""
        every, now = self.config.save_steps, time.monotonic()
        by_steps = every > 0 and self.learner.position.step % every == 0
        late = now - self.saved >= 60 * self.config.save_minutes
        if not by_steps and not self.learner.ranks.first_of(late):
            return False
        self.saved = now
        return True


def _need_extras(config: TrainConfig) -> None:
    """Say what is not installed before the work, not after it."""
    for module, needed in {"torchmetrics": True, "tensorboard": config.tensorboard}.items():
        if needed:
            need(module, extra="train")


def _readable(source: DataSource, bad: BadImages) -> DataSource:
    """The source without the unreadable images of val and test, each counted and told; evaluation itself skips none.

    Raises:
        DataError: more of them than allowed, or a split of which nothing is left.
    """
    kept: dict[str, Any] = {}
    for name, images in source.splits().items():
        if name != "train":
            found = [index for index in range(len(images)) if _reads(images, index, bad)]
            if not found:
                raise DataError(f"{source.source}: not one image of {name} can be read")
            kept[name] = images.subset(found)
    return dataclasses.replace(source, **kept)


def _reads(images: Images | Scenes | Annotated, index: int, bad: BadImages) -> bool:
    try:
        if isinstance(images, Scenes | Annotated):
            images.pair(index)
        else:
            images.read(index)
    except DataError as error:
        bad.add([str(error)])
        return False
    return True


def _compile_blocks(model: Model) -> None:
    """Compile every block by itself: seconds instead of minutes, and the state dict keeps its names.

    Blocks share one piece of code, and each (stage, shift, training) is a variant of it; torch gives up compiling
    after eight unless told otherwise.
    """
    blocks = list(model.blocks())
    limit = 4 * len(blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile()


def _forget_pictures(run: RunFolder, source: DataSource, judged: int) -> None:
    """Drop the pictures of evaluations that a resumed run will take again, and those of an earlier run."""
    if source.task != "classify":
        forget_progress(run.path, judged)


def _keep_split(run: RunFolder, source: DataSource) -> None:
    """Record which image is in which split; refuse to go on with images that have changed sides, come or gone.

    Raises:
        DataError: the data is not what the run was started with.
    """
    path = run.path / "split.json"
    if path.exists():
        changes = split_changes(source, json.loads(path.read_text(encoding="utf-8")))
        if changes:
            raise DataError(f"{source.source} is not what {run.path} was started with ({'; '.join(changes)})")
    run.write_json("split.json", split_record(source))


def _warn(source: DataSource, progress: Progress) -> None:
    """One line for each kind of problem that does not stop training, and for files that stand in two splits.

    Masks are looked at in a sample: what is wrong with one of them stops the run before its first step.
    """
    problems = [*source.problems, *(sample_check(source) if source.task == "segment" else ())]
    kinds = {problem.kind: problem for problem in reversed(problems)}
    for kind, first in kinds.items():
        more = sum(problem.kind == kind for problem in problems) - 1
        progress.say(
            f"warning: {first.message}" + (f" (and {more} more: swindow data check lists them)" if more else "")
        )
    leaks = duplicates_across(source)
    if leaks:
        pair = f"{leaks[0].name} ({leaks[0].split}) and {leaks[0].other_name} ({leaks[0].other_split})"
        progress.say(
            f"warning: {len(leaks)} image{'s' if len(leaks) > 1 else ''} in more than one split, such as {pair}; "
            "accuracy will look too good. swindow data check lists them"
        )


def _new_model(config: TrainConfig, source: DataSource, progress: Progress) -> tuple[Model, Preprocess]:
    """The model to train, from scratch or from `config.weights`, and how images become its input.

    Raises:
        ConfigError: the model is for another task than the data.
    """
    parts = composition(config.model)
    if parts.head.task != source.task:
        raise ConfigError(
            f"{config.model} is to {parts.head.task} and {config.data} is data to {source.task}; choose another "
            "--model: upernet_… and unet_… name every pixel's class; mask_rcnn_…, cascade_mask_rcnn_…, retinanet_… and "
            "detr_… find objects; simmim_… is to pretrain; a backbone's own name is its classifier's"
        )
    rates = {"drop_path": config.drop_path, "decoder_drop_path": config.drop_path}
    known = {field.name for part in parts for field in dataclasses.fields(part)}  # ResNets have no stochastic depth
    fields: dict[str, Any] = {**rates, "label_smoothing": config.label_smoothing, "masks": _has_masks(source)}
    fields = {name: value for name, value in fields.items() if name in known} | config.fields
    classes = None if source.task == "pretrain" else len(source.classes)
    model = build(config.model, num_classes=classes, in_channels=config.channels, **fields)
    if source.task == "detect" and getattr(model.config.head, "masks", False) and not _has_masks(source):
        raise ConfigError(f"{config.data} has boxes alone, and the model is to make masks; leave out fields masks")
    mean, std = pixel_statistics(config.channels)
    longest = config.longest or config.size * 5 // 3
    preprocess = Preprocess(
        size=(config.size, longest if config.fit == "within" else config.size),
        mean=mean,
        std=std,
        fit=config.fit,
        crop_ratio=config.crop_ratio,
        zoom=config.zoom,
        intensity=config.masks.intensity,
    )
    model.classes, model.colours = source.classes, getattr(source.split("train"), "colours", None)
    if source.task == "detect":
        model.colours = palette(len(source.classes))
    if config.weights:
        other, note = _start_from(model, config.weights)
        progress.say(note)
        if other is not None and other.channels == config.channels:
            preprocess = dataclasses.replace(preprocess, mean=other.mean, std=other.std)
    model.preprocess = preprocess
    return model, preprocess


def _has_masks(source: DataSource) -> bool:
    """Whether the training pictures' objects have masks, so that a model can learn to make them."""
    train = source.split("train")
    return isinstance(train, Annotated) and train.has_masks


def _augment(config: TrainConfig, source: DataSource, preprocess: Preprocess) -> Augment | JointAugment | ObjectAugment:
    """How training images vary, their masks or boxes with them where they have some."""
    if source.task == "detect":
        return ObjectAugment(config.augment, preprocess)
    return (JointAugment if source.task == "segment" else build_augment)(config.augment, preprocess)


def _objective(
    config: TrainConfig, model: Model, source: DataSource, precision: Precision, ranks: Ranks
) -> Objective | None:
    """What is learned besides the labels, or in their place; None for the labels alone.

    Raises:
        ConfigError: settings of a teacher, and no teacher; or one that cannot teach this model.
    """
    if source.task == "pretrain":
        if config.teacher or config.augment.mixes:
            given = "--teacher" if config.teacher else "augment.mixup and augment.cutmix"
            raise ConfigError(f"pretraining learns from images alone; leave out {given}")
        return MaskedImages(model)
    if not config.teacher:
        if config.distill != "soft" or config.distillation != DistillConfig():
            raise ConfigError("distill and distillation say how to learn from a teacher; add --teacher RUN_OR_WEIGHTS")
        return None
    train = source.split("train")
    stream = None
    if isinstance(train, Images):
        stream = Stream(
            images=train,
            augment=config.augment,
            preprocess=model.preprocess,
            seed=config.seed,
            precision=precision,
            batch=config.images,
            accumulate=config.optim.accumulate,
            world=ranks.world,
        )
    return distilled(model, config.teacher, config.distill, config.distillation, stream=stream)


def _start_from(model: Model, weights: str) -> tuple[Preprocess | None, str]:
    """Copy a checkpoint's weights into `model`, the head if its classes are the same; its pixels, what was done."""
    card = open_weights(weights).card
    theirs, ours = card.model.head, model.config.head
    alike = theirs.kind == ours.kind and theirs.num_classes == ours.num_classes
    kept = alike and (not card.classes or card.classes == model.classes)
    report = load_weights(model, weights, head="strict" if kept else "reset", say=None)
    new = "new; the mask token and decoder of pretraining stay behind"
    new = new if theirs.task == "pretrain" else "new, for other classes"
    return card.preprocess, f"weights from {report}\n  the head is {'kept' if kept else new}"


def _steps(loader: Any, epoch: int, done: int, accumulate: int) -> Iterator[list[Batch]]:
    """An epoch's batches from `done` on, as many together as make a step."""
    loader.batch_sampler.start(epoch, done)
    batches = iter(loader)
    while group := list(itertools.islice(batches, accumulate)):
        yield group


def _judge(
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


def _plan(config: TrainConfig, learner: Learner, epochs: int, per_epoch: int, run: RunFolder) -> str:
    """The one line that says what is about to happen."""
    count = sum(parameter.numel() for parameter in learner.model.parameters()) / 1e6
    fields = "".join(f" {name} {value}" for name, value in config.fields.items())
    return (
        f"{config.model}{fields} ({count:.1f} M parameters) at {config.size} px, recipe {config.recipe}: "
        f"{epochs} epochs of {per_epoch} steps, {learner.precision} on {learner.device} -> {run.path}"
    )


def _finish(
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
    if run.best() is None:
        position.best = -1.0
    # A run that a limit ended mid-epoch is judged where it stands. Its saved position stays that of a run which was
    # not stopped, so that resuming it changes nothing.
    if position.judged != position.step or run.best() is None:
        _judge(learner, source, config, epochs, run, progress)
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
        pixels, targets = learner.as_seen(next(_steps(loader, 0, 0, 1))[0])
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
