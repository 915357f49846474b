"""`train`: one function, from settings to a judged model, read from top to bottom."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from swindow.checkpoints import find_weights, load, load_state, read_tensors
from swindow.data import DataSource, duplicates_across, open_data, split_changes, split_record
from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.loading import BadImages, Batch, train_loader
from swindow.devices import pick_device, pick_precision
from swindow.errors import ConfigError, DataError, need
from swindow.evaluation import Evaluation, evaluate
from swindow.images import ImageLimits
from swindow.learner import Learner
from swindow.meter import Meter
from swindow.model import Model, build
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess
from swindow.progress import Progress, Stopper, clock, watcher
from swindow.run_folder import RunFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run."""

    data: str = ""
    """A folder of class folders, an IDX folder, a CSV or Parquet table, a torchvision dataset's name, or digits."""
    out: str = ""
    """Where the run goes; empty for runs/DATA-MODEL."""
    recipe: str = "auto"
    """The recipe that the other settings started from."""
    model: str = "swin_tiny"
    """Which model; `swindow models` lists them."""
    fields: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Fields of the model that differ from its variant, such as patch 2 window 4."""
    weights: str | None = None
    """A checkpoint to start from; a head for other classes is left out."""
    size: int = 224
    """Side of the square that the model sees, in pixels."""
    channels: Literal[1, 3] = 3
    """1 to train on grey images, 3 on colour."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How an image becomes a square in evaluation: its centre, the whole squeezed, or the whole with borders."""
    crop_ratio: float = 0.875
    """Side of the centre crop as a share of the short side."""
    epochs: int = 100
    """Passes over the training images."""
    batch: int = 64
    """Images per forward pass; with optim.accumulate, several make a step."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    label_smoothing: float = 0.1
    """Share of each target spread evenly over the classes."""
    optim: OptimConfig = OptimConfig()
    """How weights move."""
    augment: AugmentConfig = AugmentConfig()
    """How training images vary."""
    val_fraction: float = 0.1
    """Share of the training images held out when the data has no validation split."""
    seed: int = 0
    """Everything random is a function of it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products; auto is bf16 where the device has it natively."""
    workers: int = -1
    """Processes that load images; -1 decides by the data and the machine."""
    compile: bool = False
    """Compile the blocks with torch.compile."""
    checkpointing: bool = False
    """Trade time for memory: compute activations again in the backward pass."""
    eval_every: int = 1
    """Epochs between evaluations."""
    patience: int = 0
    """Stop after this many evaluations without a better one; 0 never does."""
    max_minutes: float = 0.0
    """Stop after this many minutes; 0 never does."""
    max_steps: int = 0
    """Stop after this many steps in all, the schedule unchanged; 0 never does."""
    save_minutes: float = 10.0
    """Minutes between saves within an epoch."""
    max_bad: int = 0
    """Unreadable training images to skip before giving up; 0 stops at the first."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    report: bool = True
    """Write report.html at the end."""

    def __post_init__(self) -> None:
        lowest = {"size": 1, "epochs": 1, "batch": 1, "eval_every": 1, "workers": -1, "max_bad": 0, "max_pixels": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction is {self.val_fraction}; it must lie between 0 and 1")


# What may differ when a run is resumed: it changes when and where the work is done, not what comes out.
FREE = frozenset(
    {"out", "device", "workers", "compile", "checkpointing", "patience", "max_minutes", "max_steps", "save_minutes"}
    | {"recipe", "tensorboard", "report"}
)
SIGNALS = ("SIGINT", "SIGTERM")


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended: `stopped_by` is ``finished``, a limit's name or a signal's; the rest is None after a signal."""

    run: Path
    step: int
    stopped_by: str
    evaluation: Evaluation | None = None
    report: Path | None = None


def train(config: TrainConfig, *, resume: bool = False, progress: Progress | None = None) -> TrainResult:
    """Train a classifier as `config` says and leave everything in its run folder.

    With `resume`, go on from the folder's last state, to the bit as if there had been no stop.

    Raises:
        ConfigError: settings that cannot be, or a run folder that belongs to another run.
        DataError: images or labels that cannot be used; the message names the file.
        TrainingDiverged: a loss or gradient is not finite; the last good state is in the run folder.
    """
    progress = progress or watcher()
    _need_extras(config)

    # Where we run
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)

    # Data
    source = open_data(
        config.data,
        channels=config.channels,
        seed=config.seed,
        val_fraction=config.val_fraction,
        limits=ImageLimits(max_pixels=config.max_pixels),
    )
    progress.say(source.describe())
    source.split("val")  # without one there is nothing to choose the best weights by: say so before the work
    _warn_of_leaks(source, progress)

    # Model
    torch.manual_seed(config.seed)
    model, preprocess = _new_model(config, source, progress)
    model.to(device).backbone.checkpoint_blocks(config.checkpointing)
    if config.compile:
        for block in model.backbone.blocks():
            block.compile()

    # Batches
    loader = train_loader(
        source.split("train"),
        build_augment(config.augment, preprocess),
        batch=config.batch,
        seed=config.seed,
        workers=config.workers,
        max_bad=config.max_bad,
        pin_memory=device.type == "cuda",
    )
    per_epoch = -(-len(loader) // config.optim.accumulate)

    # Optimiser
    learner = Learner(
        model,
        config.optim,
        config.augment,
        total=per_epoch * config.epochs,
        seed=config.seed,
        device=device,
        precision=precision,
    )

    # Resume
    run = RunFolder(config.out or default_out(config), tensorboard=config.tensorboard)
    saved = run.open(config, resume=resume, free=FREE)
    with run, Stopper() as stopper:
        _keep_split(run, source)
        if saved is not None:
            learner.take_up(saved)
            progress.say(f"resumed at step {learner.position.step} of {learner.total}")
        position = learner.position
        run.forget_after(position.step)
        bad = BadImages(config.max_bad, position.bad)
        progress.say(_plan(config, learner, per_epoch, run))

        # Loop
        stops = Stops(config, stopper, learner)
        meter = Meter(device)
        progress.begin("train", learner.total, position.step)
        for epoch in range(position.epoch, config.epochs):
            for batches in _steps(loader, epoch, position.batch, config.optim.accumulate):
                for batch in batches:
                    bad.add(batch.bad)
                meter.add(learner.step(batches))
                position.bad, position.seconds = bad.count, stops.seconds()
                progress.advance(1, epoch=f"{epoch + 1}/{config.epochs}", **meter.shown())
                if due(position.step, max(per_epoch // 10, 1), learner.total):
                    run.record(
                        {"kind": "train", "step": position.step, "epoch": epoch, "lr": learner.rate, **meter.read()}
                    )
                if stops.reason():
                    break
                if stops.save_is_due():
                    run.save_last(learner)
            else:
                position.epoch, position.batch = epoch + 1, 0
                if due(position.epoch, config.eval_every, config.epochs):
                    _judge(learner, source, config, run, progress)
                    run.save_last(learner)
            if stops.reason():
                break
        progress.end()

        # Finish
        reason = stops.reason() or "finished"
        run.save_last(learner)
        if reason in SIGNALS:
            progress.say(f"stopped by {reason} at step {position.step}; the same command with --resume goes on")
            return TrainResult(run.path, position.step, reason)
        return _finish(config, learner, source, loader, run, reason, progress)


def default_out(config: TrainConfig) -> str:
    """Where a run goes when nobody says: ``runs/DATA-MODEL``, with a number while that is taken."""
    name = f"{Path(config.data).stem or 'data'}-{config.model}"
    candidates = (f"runs/{name}{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    return next(candidate for candidate in candidates if not Path(candidate).exists())


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
        """The signal or the limit that was reached, if any."""
        config, position = self.config, self.learner.position
        limits = {
            self.stopper.signal: self.stopper.signal is not None,
            "max_minutes": 0 < config.max_minutes * 60 <= self.seconds(),
            "max_steps": 0 < config.max_steps <= position.step,
            "patience": 0 < config.patience <= position.waited,
        }
        return next((name for name, reached in limits.items() if reached), None)

    def save_is_due(self) -> bool:
        """Whether the last save is long enough ago; asking counts as saving."""
        if time.monotonic() - self.saved < 60 * self.config.save_minutes:
            return False
        self.saved = time.monotonic()
        return True


def _need_extras(config: TrainConfig) -> None:
    """Say what is not installed before the work, not after it."""
    for module, needed in {
        "torchmetrics": True,
        "tensorboard": config.tensorboard,
        "matplotlib": config.report,
    }.items():
        if needed:
            need(module, extra="train")


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


def _warn_of_leaks(source: DataSource, progress: Progress) -> None:
    """Say which files stand in two splits: what is learned by heart there looks like accuracy."""
    leaks = duplicates_across(source)
    if leaks:
        first = f"{leaks[0].name} ({leaks[0].split}) and {leaks[0].other_name} ({leaks[0].other_split})"
        progress.say(
            f"warning: {len(leaks)} image{'s' if len(leaks) > 1 else ''} in more than one split, such as {first}; "
            "accuracy will look too good. swindow data check lists them"
        )


def _new_model(config: TrainConfig, source: DataSource, progress: Progress) -> tuple[Model, Preprocess]:
    """The model to train, from scratch or from `config.weights`, and how images become its input."""
    fields: dict[str, Any] = {"drop_path": config.drop_path, "label_smoothing": config.label_smoothing, **config.fields}
    model = build(config.model, num_classes=len(source.classes), in_channels=config.channels, **fields)
    mean, std = PIXELS[config.channels]
    preprocess = Preprocess(
        size=(config.size, config.size), mean=mean, std=std, fit=config.fit, crop_ratio=config.crop_ratio
    )
    model.classes = source.classes
    if config.weights:
        other, note = _start_from(model, config.weights)
        progress.say(note)
        if other is not None and other.channels == config.channels:
            preprocess = dataclasses.replace(preprocess, mean=other.mean, std=other.std)
    model.preprocess = preprocess
    return model, preprocess


def _start_from(model: Model, weights: str) -> tuple[Preprocess | None, str]:
    """Copy a checkpoint's weights into `model`, the head if its classes are the same; its pixels, what was done."""
    other = load(weights)
    kept = other.classes == model.classes if other.classes else other.config.head == model.config.head
    state = read_tensors(find_weights(Path(weights)))[1]
    load_state(model, state, source=Path(weights), reset=() if kept else ("head.",))
    return other.preprocess, f"weights from {weights}; the head is {'kept' if kept else 'new, for other classes'}"


def _steps(loader: Any, epoch: int, done: int, accumulate: int) -> Iterator[list[Batch]]:
    """An epoch's batches from `done` on, as many together as make a step."""
    loader.batch_sampler.start(epoch, done)
    batches = iter(loader)
    while group := list(itertools.islice(batches, accumulate)):
        yield group


def _judge(learner: Learner, source: DataSource, config: TrainConfig, run: RunFolder, progress: Progress) -> None:
    """Evaluate on the validation split, keep the best, count the evaluations without a better one."""
    position = learner.position
    evaluation = _evaluate(learner.usable, source, "val", config, learner)
    figures = {
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
        "calibration_error": evaluation.calibration_error,
    }
    run.record({"kind": "val", "step": position.step, "epoch": position.epoch, **figures})
    position.waited += 1
    if evaluation.accuracy > position.best:
        position.best, position.waited = evaluation.accuracy, 0
        run.save_best(learner.usable, {"step": position.step, **figures})
    progress.say(
        f"epoch {position.epoch}/{config.epochs}  val accuracy {evaluation.accuracy:.2%}  loss {evaluation.loss:.3f}  "
        f"best {position.best:.2%}  {clock(position.seconds)}"
    )


def _evaluate(model: Model, source: DataSource, split: str, config: TrainConfig, learner: Learner) -> Evaluation:
    return evaluate(
        model,
        source.split(split),
        split=split,
        batch=config.batch,
        device=str(learner.device),
        precision=learner.precision,
        workers=config.workers,
    )


def _plan(config: TrainConfig, learner: Learner, per_epoch: int, run: RunFolder) -> str:
    """The one line that says what is about to happen."""
    count = sum(parameter.numel() for parameter in learner.model.parameters()) / 1e6
    fields = "".join(f" {name} {value}" for name, value in config.fields.items())
    return (
        f"{config.model}{fields} ({count:.1f} M parameters) at {config.size} px, recipe {config.recipe}: "
        f"{config.epochs} epochs of {per_epoch} steps, {learner.precision} on {learner.device} -> {run.path}"
    )


def _finish(
    config: TrainConfig,
    learner: Learner,
    source: DataSource,
    loader: Any,
    run: RunFolder,
    reason: str,
    progress: Progress,
) -> TrainResult:
    """Judge the best weights on the test split, or on the validation split where there is none; write the results."""
    position = learner.position
    if not (run.path / "best").exists():
        _judge(learner, source, config, run, progress)
    model = load(run.path / "best").to(learner.device)
    split = "test" if source.test is not None else "val"
    evaluation = _evaluate(model, source, split, config, learner)
    facts = {
        "accuracy": evaluation.accuracy,
        "split": split,
        "selected_on": "val",
        "stopped_by": reason,
        "steps": position.step,
        "epochs": position.epoch,
        "seconds": round(position.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "skipped_images": position.bad,
        **evaluation.summary(),
    }
    run.write_json("result.json", facts)
    progress.say(
        f"{split} accuracy {evaluation.accuracy:.2%} of {evaluation.count} images in {clock(position.seconds)}"
    )
    report = None
    if config.report:
        from swindow.reporting import write_report  # matplotlib takes a second; a run without a report does without

        pixels, targets = learner.as_seen(next(_steps(loader, 0, 0, 1))[0])
        report = write_report(
            run.path,
            evaluation=evaluation,
            images=source.split(split),
            batch=pixels,
            labels=targets,
            classes=source.classes,
            facts={"data": source.describe(), "model": config.model, "recipe": config.recipe, **facts},
        )
        progress.say(f"report: {report}")
    return TrainResult(run.path, position.step, reason, evaluation, report)


# Mean and deviation of pixel values in 0..1: ImageNet's, as every published Swin was trained with, and their average.
PIXELS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.449,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
