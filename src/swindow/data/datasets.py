"""Images with labels or masks, whatever form they come in: `open_data` infers the rest and says so in one line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from swindow.data.annotations import ObjectConfig
from swindow.data.detection import ObjectInventory, find_objects, pool_objects, read_objects, typical
from swindow.data.folders import read_folder
from swindow.data.idx import holds_idx, read_idx
from swindow.data.inventory import POOL, Inventory, Rows
from swindow.data.labelled import Images
from swindow.data.layouts import SceneInventory
from swindow.data.masks import MaskConfig
from swindow.data.named import TORCHVISION, read_digits, read_torchvision, torchvision_name
from swindow.data.segmentation import Pool, find_scenes, pool_scenes
from swindow.data.shards.finding import holds_shards, read_shards
from swindow.data.sources import DataSource, divide, few, note_on_splits, split_changes, split_record
from swindow.data.tables import TABLE_SUFFIXES, read_table
from swindow.data.unlabelled import find_unlabelled
from swindow.errors import ConfigError, DataError
from swindow.images import LIMITS, ImageLimits, name_of, probe_image, read_image

__all__ = ["DataSource", "Images", "align_classes", "open_data", "split_changes", "split_record", "take_inventory"]

PROBES = 64

Task = Literal["auto", "classify", "segment", "detect", "pretrain"]


def take_inventory(source: str | Path, *, limits: ImageLimits = LIMITS, root: Path | None = None) -> Inventory:
    """What is at `source`, problems included, before anything is decided about it.

    Raises:
        DataError: no such source, or one that cannot be read at all; the message says what is allowed.
    """
    found = _find(source, limits, root)
    found.splits = {split: found.splits[split] for split in (POOL, "train", "val", "test") if split in found.splits}
    return found


def _find(source: str | Path, limits: ImageLimits, root: Path | None) -> Inventory:
    text, path = str(source), Path(source)
    name = torchvision_name(text)
    if text == "digits":
        return read_digits()
    if text.startswith("torchvision:") or (name and not path.exists()):
        if name is None:
            raise DataError(f"{text}: no such torchvision data set here; there are {', '.join(TORCHVISION)}")
        return read_torchvision(name, root or Path("data"))
    if holds_shards(source):
        return read_shards(source)
    if path.is_dir():
        return read_idx(path, limits) if holds_idx(path) else read_folder(path)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return read_table(path)
    raise DataError(
        f"{name_of(text)}: {'not a source of data' if path.exists() else 'no such source of data'}; give a folder of "
        f"class folders, a folder of IDX files, a CSV, TSV or Parquet table of path and label, shards (a folder or URL "
        f"of .tar or .parquet files that hold images), digits, or one of {', '.join(TORCHVISION)}"
    )


def open_data(
    source: str | Path,
    *,
    channels: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    limits: ImageLimits = LIMITS,
    root: Path | None = None,
    split_record: Mapping[str, Any] | None = None,
    for_training: bool = True,
    task: Task = "auto",
    masks: MaskConfig = MaskConfig(),
    objects: ObjectConfig = ObjectConfig(),
    classes: Sequence[str] | None = None,
) -> DataSource:
    """Find the images at `source`, infer classes, channels and size, and hold out validation images if there are none.

    A validation split that is made takes `val_fraction` of every class, at most 5,000 images, chosen by `seed`; with
    the answer of `split_record`, the images recorded there. ``digits`` also gets a test split of a fifth, the same for
    every seed. What torchvision fetches goes to `root`, by default ``data`` in the current folder.

    A folder of images and masks, or of volumes, is for segmentation; `task` decides where that is in doubt. `masks`
    says how masks are read. There the validation split takes whole cases. Masks that no table explains hold values of
    `classes`, a model's, if these are given and could be meant.

    A COCO JSON, a folder of such, Pascal VOC's XML files and YOLO's text files are for detection. `objects` says what
    is done with annotations that are not as they should be.

    To ``pretrain``, the pictures of any of these will do, and of any folder, flat or nested; labels are no matter.

    With ``for_training=False`` nothing but the test split of ``digits`` is held out, and a source may lack training
    images, have a single class, or classes that only other splits have: enough to judge a model on it.

    Raises:
        DataError: there is no such source, or its images or labels cannot be trained on; the message says which.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be in [0, 1)")
    if task not in get_args(Task):
        raise ConfigError(f"task {task!r} is not one of {', '.join(get_args(Task))}")
    if task == "pretrain":
        unlabelled = _unlabelled(source, limits, root)
        return _open_images(
            source, unlabelled, channels, limits, seed, val_fraction, split_record, for_training, task=task
        )
    shards = holds_shards(source)
    if shards and task in ("segment", "detect"):
        raise DataError(
            f"{name_of(source)}: shards hold images with a label each, and this is to {task}; masks and boxes are read "
            f"from folders"
        )
    annotated = None if shards else find_objects(source, task=task)
    if annotated is not None:
        found_objects = read_objects(annotated, objects, limits)
        return _open_objects(
            str(source), found_objects, channels, limits, seed, val_fraction, split_record, for_training
        )
    scenes = None if shards else find_scenes(source, task=task)
    if scenes is not None:
        pool = pool_scenes(_sound(scenes), masks, channels, limits, classes)
        return _open_scenes(str(source), scenes, pool, seed, val_fraction, split_record, for_training)
    found = take_inventory(source, limits=limits, root=root)
    return _open_images(source, found, channels, limits, seed, val_fraction, split_record, for_training)


def _unlabelled(source: str | Path, limits: ImageLimits, root: Path | None) -> Inventory:
    """The images at `source` whatever they show; those in memory and in tables as they are for a classifier."""
    path = Path(source)
    others = holds_shards(source) or (path.is_dir() and holds_idx(path))
    return (None if others else find_unlabelled(source, limits)) or take_inventory(source, limits=limits, root=root)


def _open_images(
    source: str | Path,
    found: Inventory,
    channels: int | None,
    limits: ImageLimits,
    seed: int,
    val_fraction: float,
    record: Mapping[str, Any] | None,
    for_training: bool,
    *,
    task: Literal["classify", "pretrain"] = "classify",
) -> DataSource:
    """Images with a label each, divided; to pretrain, labels are no matter and need not be right."""
    labelled = task == "classify"
    classes = found.class_names(for_training=for_training and labelled)
    _refuse(found, classes, name_of(source), for_training, labelled=labelled)
    guessed, size = _typical(found, limits)
    make = _ImageMaker(classes, channels or guessed, limits)
    splits = {("train" if name == POOL else name): make(rows) for name, rows in found.splits.items() if rows.names}
    chosen = divide(
        splits,
        found.root,
        seed=seed,
        val_fraction=val_fraction if for_training else 0.0,
        record=record,
        digits=found.kind == "digits",
    )
    return DataSource(
        source=str(source),
        kind=found.kind,
        task=task,
        classes=classes if labelled else (),
        channels=make.channels,
        image_size=size,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        split_note=note_on_splits(splits, chosen, seed, record is not None),
        seed=seed,
        val_fraction=val_fraction,
        root=found.root,
        held_out=chosen,
        problems=(*found.problems, *(found.label_problems(for_training=for_training) if labelled else ())),
    )


def align_classes(found: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """For each class of a data set, its index among the classes of a model, matched by name (int64).

    Raises:
        DataError: the data has classes that the model does not know; the message lists the differences.
    """
    places = {name: index for index, name in enumerate(known)}
    unknown = [name for name in found if name not in places]
    if unknown:
        missing = [name for name in known if name not in set(found)]
        raise DataError(
            f"the data has {len(found)} classes, the model {len(known)}: the model does not know {few(unknown)}"
            + (f", the data lacks {few(missing)}" if missing else "")
            + "; rename the classes of the data, or leave those out"
        )
    return np.asarray([places[name] for name in found], np.int64)


AnyInventory = TypeVar("AnyInventory", SceneInventory, ObjectInventory)


def _sound(found: AnyInventory) -> AnyInventory:
    """The same, if training and judging can do with it."""
    fatal = [problem for problem in found.problems if problem.fatal]
    if fatal:
        more = f" (and {len(fatal) - 1:,} more: `swindow data check` lists all)" if len(fatal) > 1 else ""
        raise DataError(fatal[0].message + more)
    return found


def _open_scenes(
    source: str,
    found: SceneInventory,
    pool: Pool,
    seed: int,
    val_fraction: float,
    record: Mapping[str, Any] | None,
    for_training: bool,
) -> DataSource:
    """Pictures with masks, divided."""
    scenes = pool.scenes
    splits = {("train" if split == POOL else split): scenes.subset(rows) for split, rows in pool.splits.items()}
    if for_training and "train" not in splits:
        raise DataError(f"{name_of(found.root)}: there are no training images; add them under train")
    if for_training and len(scenes.classes) < 2:
        raise DataError(
            f"{name_of(found.root)}: the only class is {scenes.classes[0]!r}; at least two are needed (a background "
            f"counts as one)"
        )
    return _divided(
        splits,
        record,
        for_training,
        source=source,
        kind=found.kind,
        task="segment",
        classes=scenes.classes,
        channels=scenes.channels,
        image_size=pool.size,
        seed=seed,
        val_fraction=val_fraction,
        root=found.root,
        problems=tuple(found.problems),
        note=pool.note,
    )


def _open_objects(
    source: str,
    found: ObjectInventory,
    channels: int | None,
    limits: ImageLimits,
    seed: int,
    val_fraction: float,
    record: Mapping[str, Any] | None,
    for_training: bool,
) -> DataSource:
    """Pictures with objects, divided."""
    guessed, size = typical(_sound(found), limits)
    pooled = pool_objects(found, channels or guessed, limits)
    splits = {("train" if split == POOL else split): annotated for split, annotated in pooled.items()}
    if for_training and not len(splits.get("train", ())):
        raise DataError(f"{name_of(found.root)}: there are no training images; add them under train")
    if for_training and not splits["train"].count_objects():
        raise DataError(f"{name_of(source)}: no training image shows an object; annotate some")
    return _divided(
        splits,
        record,
        for_training,
        source=source,
        kind=found.kind,
        task="detect",
        classes=found.classes,
        channels=channels or guessed,
        image_size=size,
        seed=seed,
        val_fraction=val_fraction,
        root=found.root,
        problems=tuple(found.problems),
        note=found.note,
    )


def _divided(splits: dict[str, Any], record: Mapping[str, Any] | None, for_training: bool, **facts: Any) -> DataSource:
    """A source of pictures with masks or objects, a validation split held out where one is needed and there is none."""
    seed, held_back = facts["seed"], facts["val_fraction"] if for_training else 0.0
    chosen = divide(splits, facts["root"], seed=seed, val_fraction=held_back, record=record)
    return DataSource(
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        split_note=note_on_splits(splits, chosen, seed, record is not None),
        held_out=chosen,
        **facts,
    )


class _ImageMaker:
    """Rows of an inventory to `Images`, all of one source alike."""

    def __init__(self, classes: tuple[str, ...], channels: int, limits: ImageLimits) -> None:
        self.classes, self.channels, self.limits = classes, channels, limits
        self._index = {name: index for index, name in enumerate(classes)}

    def __call__(self, rows: Rows) -> Images:
        labels = np.asarray([self._index[label] for label in rows.labels], np.int64)
        common: dict[str, Any] = {"classes": self.classes, "channels": self.channels, "limits": self.limits}
        if rows.encoded is not None:
            common |= {"encoded": rows.encoded, "rows": np.arange(len(labels))}
        return Images(names=rows.names, labels=labels, pixels=self._pixels(rows.pixels), **common)

    def _pixels(self, pixels: Tensor | None) -> Tensor | None:
        if pixels is None or pixels.shape[1] == self.channels:
            return pixels
        if pixels.shape[1] == 1:
            return pixels.expand(-1, self.channels, -1, -1)
        return torch.stack([read_image(image, channels=self.channels) for image in pixels])


def _refuse(
    found: Inventory, classes: tuple[str, ...], name: str, for_training: bool, *, labelled: bool = True
) -> None:
    """Stop at what training or judging cannot do without."""
    problems = [problem for problem in found.problems if for_training or problem.kind == "bad-row"]
    problems += found.label_problems(for_training=for_training) if labelled else []
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        more = f" (and {len(fatal) - 1:,} more: `swindow data check` lists all)" if len(fatal) > 1 else ""
        raise DataError(fatal[0].message + more)
    if not any(rows.names for rows in found.splits.values()):
        raise DataError(f"{name}: there are no images; add some")
    if for_training and not found.training_rows.names:
        raise DataError(f"{name}: there are no training images; add them under train")
    if for_training and labelled and len(classes) < 2:
        raise DataError(
            f"{name}: the only class is {classes[0]!r}; at least two are needed, each with images of its own"
        )


def _typical(found: Inventory, limits: ImageLimits) -> tuple[int, tuple[int, int]]:
    """Channels and median size, by the headers of some images spread evenly over a split."""
    rows = found.training_rows if found.training_rows.names else next(r for r in found.splits.values() if r.names)
    if rows.pixels is not None:
        return rows.pixels.shape[1], (rows.pixels.shape[2], rows.pixels.shape[3])
    headers, problem = [], None
    places = np.unique(np.linspace(0, len(rows.names) - 1, PROBES).round().astype(int)).tolist()
    for source in [rows.names[place] for place in places] if rows.encoded is None else rows.encoded.read(places):
        try:
            if isinstance(source, DataError):
                raise source
            headers.append(probe_image(source, limits=limits))
        except DataError as error:
            problem = problem or error
    if not headers and problem is not None:
        raise problem
    height, width = (int(np.median([getattr(header, side) for header in headers])) for side in ("height", "width"))
    return max(header.channels for header in headers), (height, width)
