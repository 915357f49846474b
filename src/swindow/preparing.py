"""What a run starts from: its data looked over, its batch, its model, what images and losses become of it."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from swindow.checkpoints import load_weights, open_weights
from swindow.config import read_toml
from swindow.data import (
    Annotated,
    DataSource,
    Images,
    Scenes,
    duplicates_across,
    sample_check,
    split_changes,
    split_record,
)
from swindow.data.augment import Augment, build_augment
from swindow.data.boxes import ObjectAugment
from swindow.data.joint import JointAugment
from swindow.data.legends import palette
from swindow.data.loading import BadImages, Batch, train_loader
from swindow.devices import Precision
from swindow.distributed import ALONE, Ranks
from swindow.errors import ConfigError, DataError, need
from swindow.fitting_batch import SAMPLE, find_batch
from swindow.learner import Learner
from swindow.model import Model, build, composition
from swindow.objectives import DistillConfig, MaskedImages, Objective, Stream, distilled
from swindow.preprocess import Preprocess
from swindow.progress import Progress, Silent
from swindow.run_folder import RunFolder
from swindow.settings import TrainConfig, pixel_statistics


def need_extras(config: TrainConfig) -> None:
    """Say what is not installed before the work, not after it."""
    for module, needed in {"torchmetrics": True, "tensorboard": config.tensorboard}.items():
        if needed:
            need(module, extra="train")


def readable(source: DataSource, bad: BadImages) -> DataSource:
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


def tell_problems(source: DataSource, progress: Progress) -> None:
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


def keep_split(run: RunFolder, source: DataSource) -> None:
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


def with_batch(
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
    model, preprocess = new_model(trial, source, Silent())
    model.to(device).checkpoint_blocks(config.checkpointing)
    learner = Learner(
        model,
        config.optim,
        config.augment,
        total=2**40,
        seed=config.seed,
        device=device,
        precision=precision,
        objective=objective_for(trial, model, source, precision, ALONE),
    )
    augment = augmentation(trial, source, preprocess)
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


def new_model(config: TrainConfig, source: DataSource, progress: Progress) -> tuple[Model, Preprocess]:
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


def compile_blocks(model: Model) -> None:
    """Compile every block by itself: seconds instead of minutes, and the state dict keeps its names.

    Blocks share one piece of code, and each (stage, shift, training) is a variant of it; torch gives up compiling
    after eight unless told otherwise.
    """
    blocks = list(model.blocks())
    limit = 4 * len(blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile()


def augmentation(
    config: TrainConfig, source: DataSource, preprocess: Preprocess
) -> Augment | JointAugment | ObjectAugment:
    """How training images vary, their masks or boxes with them where they have some."""
    if source.task == "detect":
        return ObjectAugment(config.augment, preprocess)
    return (JointAugment if source.task == "segment" else build_augment)(config.augment, preprocess)


def objective_for(
    config: TrainConfig, model: Model, source: DataSource, precision: Precision, ranks: Ranks
) -> Objective | None:
    """What is learned besides the labels, or in their place; None for the labels alone.

    Raises:
        ConfigError: settings of a teacher, and no teacher; or one that cannot teach this model.
    """
    if source.task == "pretrain":
        given = "--teacher" if config.teacher else "augment.mixup and augment.cutmix" if config.augment.mixes else ""
        if not given and (config.distill != "soft" or config.distillation != DistillConfig()):
            given = "distill and distillation"
        if given:
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


def steps(loader: Any, epoch: int, done: int, accumulate: int) -> Iterator[list[Batch]]:
    """An epoch's batches from `done` on, as many together as make a step."""
    loader.batch_sampler.start(epoch, done)
    batches = iter(loader)
    while group := list(itertools.islice(batches, accumulate)):
        yield group
