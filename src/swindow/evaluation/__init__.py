"""How good a model is on images that people have labelled or drawn on: every one of them, none replaced."""

import json
from pathlib import Path
from typing import Any, Literal

from swindow.config import from_dict, read_toml
from swindow.data import DataSource, Images, Scenes, open_data, split_changes
from swindow.data.annotated import Annotated
from swindow.data.annotations import ObjectConfig
from swindow.data.masks import MaskConfig
from swindow.distributed import ALONE, Ranks
from swindow.errors import ConfigError, DataError
from swindow.evaluation.classification import Evaluation, judge_classifier
from swindow.evaluation.confusions import Confusion
from swindow.evaluation.detection import DetectionEvaluation, FoundScore, ObjectScore
from swindow.evaluation.finding import judge_detector
from swindow.evaluation.painting import Painted, PaintedScore, PaintingEvaluation, judge_painter, paint
from swindow.evaluation.pixels import judge_segmenter
from swindow.evaluation.segmentation import CaseScore, ImageScore, SegmentationEvaluation
from swindow.images import LIMITS, ImageLimits
from swindow.inference import ReadyModel, ready
from swindow.model import Model
from swindow.progress import Progress, Silent
from swindow.sliding import Views

__all__ = [
    "AnyEvaluation",
    "CaseScore",
    "Confusion",
    "DetectionEvaluation",
    "Evaluation",
    "FoundScore",
    "ImageScore",
    "ObjectScore",
    "Painted",
    "PaintedScore",
    "PaintingEvaluation",
    "SegmentationEvaluation",
    "evaluate",
    "open_split",
    "paint",
]

AnyEvaluation = Evaluation | SegmentationEvaluation | DetectionEvaluation | PaintingEvaluation
"""What they share: split, classes, count, score, score_name, figures(), summary(), table()."""


def evaluate(
    model: Model | str | Path,
    data: str | Path | Images | Scenes | Annotated | None = None,
    *,
    split: str | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 0,
    limits: ImageLimits = LIMITS,
    masks: MaskConfig | None = None,
    views: Views | None = None,
    surfaces: bool | None = None,
    objects: ObjectConfig | None = None,
    threshold: float | None = None,
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> AnyEvaluation:
    """Ask a model about every image of a split and compare with the labels, the masks or the objects that are there.

    Images, scenes and annotated images are judged as they are given. Data that is opened by name is judged on `split`;
    without one, on its test split, else its validation split, else all of it. Without data, a run is judged on what it
    was trained with, divided as it was then. Classes are matched by name.

    Of a classifier, `batch` images are asked at a time and `workers` processes read them. Of a segmenter, `views` says
    how it looks at a picture and `masks` how masks are read, by default as the run was trained; `surfaces` whether 95 %
    Hausdorff distances are taken, by default where the data has a background, as medical data does. Of a detector at
    most `batch` images are asked at a time, and fewer large ones; `objects` says what is done with annotations that are
    not as they should be, by default as the run was trained. Hits, misses and the confusion are of detections with a
    score of at least `threshold`, by default the one with the best F1 over these very images; AP needs none. Of a model
    that is pretrained, parts of every image are hidden, always the same ones, and what it paints there is compared.

    The processes `ranks` share the images, and each gets the result; all of them must ask, of the same model.

    Raises:
        DataError: an image or mask that cannot be read, no such split, or classes that the model does not have.
        CheckpointError: there is no usable checkpoint at the path.
        ConfigError: a model without preprocessing, data for another task than the model's, no such device or precision,
            or no data for what is no run.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; it must be at least 1")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it must be a score in 0..1")
    asked, progress = ready(model, device=device, precision=precision), progress or Silent()
    if isinstance(data, (Images, Scenes, Annotated)):
        split, images = split or "all", data
    else:
        split, images = open_split(
            asked, model, data, split=split, limits=limits, masks=masks, objects=objects, progress=progress
        )
    if not len(images):
        raise DataError(f"the {split} split has no images; there is nothing to evaluate")
    _refuse_other_task(asked, images)
    if isinstance(images, Images) and asked.model.task == "pretrain":
        return judge_painter(asked, images, split=split, batch=batch, workers=workers, progress=progress, ranks=ranks)
    if isinstance(images, Images):
        return judge_classifier(
            asked, images, split=split, batch=batch, workers=workers, progress=progress, ranks=ranks
        )
    if isinstance(images, Annotated):
        return judge_detector(
            asked, images, split=split, batch=batch, threshold=threshold, progress=progress, ranks=ranks
        )
    views = views or from_dict(Views, _settings(model)[1].get("views", {}))
    return judge_segmenter(asked, images, split=split, views=views, surfaces=surfaces, progress=progress, ranks=ranks)


def open_split(
    asked: ReadyModel,
    model: Model | str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    limits: ImageLimits = LIMITS,
    masks: MaskConfig | None = None,
    objects: ObjectConfig | None = None,
    progress: Progress | None = None,
) -> tuple[str, Images | Scenes | Annotated]:
    """The images that `evaluate` judges a model on, and the name of their split; `asked` is `model`, made ready.

    Raises:
        DataError, ConfigError: as `evaluate`.
    """
    run, settings = _settings(model)
    progress = progress or Silent()
    how: dict[str, Any] = {"masks": _masks(masks, settings, asked)}
    if asked.model.task == "detect":
        how = {"objects": objects or from_dict(ObjectConfig, settings.get("objects", {}))}
    if data is None:
        source = _data_of_run(model, run, settings, how, asked, progress)
    else:
        source = _opened(data, asked, limits, how)
    progress.say(source.describe())
    return _chosen(source, split)


def _settings(model: Model | str | Path) -> tuple[Path | None, dict[str, Any]]:
    """The run folder that a model comes from, if it does, and its settings."""
    run = None if isinstance(model, Model) else _run_of(Path(model))
    return run, {} if run is None else read_toml(run / "config.toml")


def _masks(masks: MaskConfig | None, settings: dict[str, Any], asked: ReadyModel) -> MaskConfig:
    """How masks are read: as asked, else as in the run; intensities as the model knows them, unless that says."""
    values = {"intensity": asked.preprocess.intensity} | settings.get("masks", {})
    return masks or from_dict(MaskConfig, values)


def _opened(data: str | Path, asked: ReadyModel, limits: ImageLimits, how: dict[str, Any]) -> DataSource:
    """Data by its name; nothing is held out of it, since nothing is trained on it."""
    channels, task = asked.preprocess.channels, _task(asked)
    return open_data(
        data, channels=channels, limits=limits, for_training=False, task=task, classes=asked.classes, **how
    )


def _data_of_run(
    model: Model | str | Path,
    run: Path | None,
    settings: dict[str, Any],
    how: dict[str, Any],
    asked: ReadyModel,
    progress: Progress,
) -> DataSource:
    """The data that a run was trained with, divided as it was then."""
    if run is None:
        what = "a model at hand" if isinstance(model, Model) else f"{model}, which is no run folder"
        raise ConfigError(f"no data to judge {what} on; name a folder, table or data set")
    recorded = run / "split.json"
    record = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else None
    source = open_data(
        settings["data"],
        channels=settings["channels"],
        seed=settings["seed"],
        val_fraction=settings["val_fraction"],
        limits=ImageLimits(max_pixels=settings["max_pixels"]),
        split_record=record,
        task=_task(asked),
        **how,
    )
    for change in split_changes(source, record) if record else ():
        progress.say(f"the data is not what the run was trained with: {change}")
    return source


def _run_of(path: Path) -> Path | None:
    """The run folder that a path leads to: itself, or one that its checkpoint lies in."""
    return next((folder for folder in (path, *path.parents[:2]) if (folder / "config.toml").is_file()), None)


def _chosen(source: DataSource, split: str | None) -> tuple[str, Images | Scenes | Annotated]:
    if split is None:
        split = next(name for name in ("test", "val", "train") if name in source.splits())
    images = source.split(split)
    return ("all" if list(source.splits()) == ["train"] else split), images


def _task(asked: ReadyModel) -> Literal["classify", "segment", "detect", "pretrain"]:
    task: Any = asked.model.task
    return task


def _refuse_other_task(asked: ReadyModel, images: Images | Scenes | Annotated) -> None:
    wanted = asked.model.task
    given = "classify" if isinstance(images, Images) else "segment" if isinstance(images, Scenes) else "detect"
    has = {
        "classify": "one label an image; give a classifier",
        "segment": "masks; give a segmentation model",
        "detect": "objects; give a detector",
    }
    if wanted == "pretrain" and given != "classify":
        raise ConfigError(f"{asked.model.config.name} paints plain images; open the data to pretrain, or name it")
    if wanted not in (given, "pretrain"):
        raise ConfigError(f"{asked.model.config.name} is to {wanted} and the data is to {given}: it has {has[given]}")
