"""`train`: one function, from settings to a judged model, read from top to bottom."""

import dataclasses
import os
import time

import torch

from swindow.data import DataSource, open_data
from swindow.data.loading import BadImages, train_loader
from swindow.devices import pick_device, pick_precision
from swindow.distributed import Ranks, joined
from swindow.errors import DataError, OutOfMemory, TrainingDiverged
from swindow.images import ImageLimits
from swindow.judging import TrainResult, finish, judge
from swindow.learner import Learner
from swindow.memory import how_to_fit, is_out_of_memory
from swindow.meter import Meter
from swindow.optim import for_images
from swindow.preparing import (
    augmentation,
    compile_blocks,
    keep_split,
    need_extras,
    new_model,
    objective_for,
    readable,
    steps,
    tell_problems,
    with_batch,
)
from swindow.progress import Progress, Silent, Stopped, Stopper, counting, watcher
from swindow.reporting import forget_progress
from swindow.run_folder import RunFolder
from swindow.settings import FREE, TrainConfig, default_out

SIGNALS = ("SIGINT", "SIGTERM")


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
    need_extras(config)

    # Where we run
    device = pick_device(config.device, ranks.local)
    precision = pick_precision(config.precision, device)

    if ranks.world == 1 and config.parallel.strategy == "fsdp":
        progress.say("one process alone: nothing is cut up, and --parallel.* changes nothing; see --devices")

    # Where it goes
    run = RunFolder(
        config.out,
        tensorboard=config.tensorboard,
        keep=config.keep,
        behind=config.save_behind,
        ranks=ranks,
        say=progress.say,
    )
    run.probe()

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
    judged_on = readable(source, bad) if config.max_bad else source
    tell_problems(source, progress)

    # Batch
    if config.batch == "auto":
        config = with_batch(config, source, device, precision, resume, progress, ranks)

    # Model
    torch.manual_seed(config.seed)
    model, preprocess = new_model(config, source, progress)
    model.to(device).checkpoint_blocks(config.checkpointing)
    if config.compile:
        compile_blocks(model)

    # Batches
    loader = train_loader(
        source.split("train"),
        augmentation(config, source, preprocess),
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
        objective=objective_for(config, model, source, precision, ranks),
        ranks=ranks,
        plan=config.parallel,
    )

    # Resume
    saved = run.open(config, resume=resume, free=FREE)
    with run, Stopper() as stopper:
        keep_split(run, source)
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
                    for batches in steps(loader, epoch, position.batch, config.optim.accumulate):
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
                            with stopper.all_saved(ranks.world == 1):  # several would wait for each other
                                judge(learner, judged_on, config, epochs, run, progress)
                            meter.restart()
                        position.epoch, position.batch = epoch + 1, 0
                    if stops.reason():
                        break
        except (DataError, TrainingDiverged) as error:
            # The last good step outlives what ended the run. Diverged are all processes; what cannot be read, one.
            if ranks.world == 1 or isinstance(error, TrainingDiverged):
                run.save(learner)
            raise

        except Stopped as stopped:
            return _stopped(run, position.step, str(stopped), progress)

        # Finish
        reason = stops.reason() or "finished"
        run.save(learner)
        run.finish_saving()
        if reason in SIGNALS:
            return _stopped(run, position.step, reason, progress)
        try:
            with stopper.all_saved(ranks.world == 1):
                return finish(config, learner, judged_on, loader, epochs, run, reason, meter.peak_gib(), progress)
        except Stopped as stopped:
            return _stopped(run, position.step, str(stopped), progress)


def _stopped(run: RunFolder, step: int, reason: str, progress: Progress) -> TrainResult:
    progress.say(f"stopped by {reason} at step {step}; the same command with --resume goes on ({run.path})")
    return TrainResult(run.path, step, reason)


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


def _forget_pictures(run: RunFolder, source: DataSource, judged: int) -> None:
    """Drop the pictures of evaluations that a resumed run will take again, and those of an earlier run."""
    if source.task != "classify":
        forget_progress(run.path, judged)


def _plan(config: TrainConfig, learner: Learner, epochs: int, per_epoch: int, run: RunFolder) -> str:
    """The one line that says what is about to happen."""
    count = sum(parameter.numel() for parameter in learner.model.parameters()) / 1e6
    fields = "".join(f" {name} {value}" for name, value in config.fields.items())
    return (
        f"{config.model}{fields} ({count:.1f} M parameters) at {config.size} px, recipe {config.recipe}: "
        f"{epochs} epochs of {per_epoch} steps, {learner.precision} on {learner.device} -> {run.path}"
    )
