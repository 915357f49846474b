"""Images with labels, whatever form they come in: `open_data` infers the rest and says so in one line."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from swindow.data.folders import read_folder
from swindow.data.idx import holds_idx, read_idx
from swindow.data.inventory import POOL, Inventory, Problem, Rows, relative
from swindow.data.named import TORCHVISION, read_digits, read_torchvision, torchvision_name
from swindow.data.splits import digest, held_out
from swindow.data.tables import TABLE_SUFFIXES, read_table
from swindow.errors import ConfigError, DataError
from swindow.images import LIMITS, ImageLimits, name_of, probe_image, read_image

MOST_VALIDATION = 5_000  # an accuracy measured on so many is known to within a percent
DIGITS_TEST = 0.2
PROBES = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one split, read when asked for."""

    names: Sequence[str]
    """Path of each, or its place in a data set in memory, such as ``digits[17]``."""
    labels: np.ndarray
    """int64, index into `classes`."""
    classes: tuple[str, ...]
    channels: int
    limits: ImageLimits = LIMITS
    pixels: Tensor | None = None
    """uint8 ``N C h w`` where the images are in memory, all of one size."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> UInt8[Tensor, "C h w"]:
        """The pixels of one image.

        Raises:
            DataError: it cannot be used; the message names it.
        """
        if self.pixels is None:
            return read_image(self.names[index], channels=self.channels, limits=self.limits)
        return self.batch(np.asarray([index]))[0]

    def batch(self, indices: np.ndarray) -> UInt8[Tensor, "B C h w"]:
        """Pixels of several images in memory, as a copy."""
        if self.pixels is None:
            raise DataError("these images are files of different sizes; read them one by one")
        return self.pixels[torch.from_numpy(np.asarray(indices, np.int64))]

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Images":
        """Some of the images, in the order given; a boolean mask keeps the order there is."""
        places = np.arange(len(self))[np.asarray(indices)]
        pixels = None if self.pixels is None else self.pixels[torch.from_numpy(places)]
        names = [self.names[place] for place in places]
        return dataclasses.replace(self, names=names, labels=self.labels[places], pixels=pixels)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DataSource:
    """What was found at a source and how it was divided."""

    source: str
    kind: str
    """folder, idx, table, torchvision or digits."""
    task: str
    """classify."""
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    """Height and width of a typical image (their medians)."""
    train: Images | None
    val: Images | None
    test: Images | None
    split_note: str
    """Where the validation images come from."""
    seed: int
    val_fraction: float
    root: str
    """Folder that recorded names are relative to; empty where they are no files."""
    held_out: Mapping[str, tuple[str, ...]]
    """Names in each split that was made here rather than found."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with the source, though not so wrong that it cannot be trained on."""

    def describe(self) -> str:
        """The one line that is said aloud."""
        height, width = self.image_size
        parts = [f"{split} {len(images):,}" for split, images in self.splits().items()]
        colour = "grey" if self.channels == 1 else "colour" if self.channels == 3 else f"{self.channels}-channel"
        return (
            f"{self.source} ({self.kind}): classification, {len(self.classes)} classes, {' / '.join(parts)} "
            f"{colour} images of about {height} × {width}; {self.split_note}"
        )

    def split(self, name: str) -> Images:
        """One split by its name.

        Raises:
            DataError: there is no such split.
        """
        splits = self.splits()
        if name not in splits:
            raise DataError(f"{self.source}: has no {name} images; there are {', '.join(splits)}")
        return splits[name]

    def splits(self) -> dict[str, Images]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}


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
    if path.is_dir():
        return read_idx(path, limits) if holds_idx(path) else read_folder(path)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return read_table(path)
    raise DataError(
        f"{name_of(text)}: {'not a source of data' if path.exists() else 'no such source of data'}; give a folder of "
        f"class folders, a folder of IDX files, a CSV, TSV or Parquet table of path and label, digits, "
        f"or one of {', '.join(TORCHVISION)}"
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
) -> DataSource:
    """Find the images at `source`, infer classes, channels and size, and hold out validation images if there are none.

    A validation split that is made takes `val_fraction` of every class, at most 5,000 images, chosen by `seed`; with
    the answer of `split_record`, the images recorded there. ``digits`` also gets a test split of a fifth, the same for
    every seed. What torchvision fetches goes to `root`, by default ``data`` in the current folder.

    With ``for_training=False`` nothing but the test split of ``digits`` is held out, and a source may lack training
    images, have a single class, or classes that only other splits have: enough to judge a model on it.

    Raises:
        DataError: there is no such source, or its images or labels cannot be trained on; the message says which.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; it must be in [0, 1)")
    found = take_inventory(source, limits=limits, root=root)
    classes = found.class_names(for_training=for_training)
    _refuse(found, classes, name_of(source), for_training)
    guessed, size = _typical(found, limits)
    make = _ImageMaker(classes, channels or guessed, limits)
    splits = {("train" if name == POOL else name): make(rows) for name, rows in found.splits.items() if rows.names}
    chosen = _divide(splits, found, seed, val_fraction if for_training else 0.0, split_record)
    return DataSource(
        source=str(source),
        kind=found.kind,
        task="classify",
        classes=classes,
        channels=make.channels,
        image_size=size,
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        split_note=_note(splits, chosen, seed, recorded=split_record is not None),
        seed=seed,
        val_fraction=val_fraction,
        root=found.root,
        held_out=chosen,
        problems=(*found.problems, *found.label_problems(for_training=for_training)),
    )


def split_record(source: DataSource) -> dict[str, Any]:
    """Who is in which split, for JSON: all names of the splits that were made here, count and hash of every split."""
    keys = {name: _keys(images, source.root) for name, images in source.splits().items()}
    return {
        "seed": source.seed,
        "val_fraction": source.val_fraction,
        "held_out": {name: list(names) for name, names in source.held_out.items()},
        "count": {name: len(names) for name, names in keys.items()},
        "sha256": {name: digest(names) for name, names in keys.items()},
    }


def split_changes(source: DataSource, record: Mapping[str, Any]) -> list[str]:
    """What differs between the images now and those recorded, one line a split; empty when they are the same."""
    now = split_record(source)
    return [
        f"{name}: {record['count'].get(name, 0):,} images were recorded, {now['count'].get(name, 0):,} are there now"
        + (" under other names" if record["count"].get(name) == now["count"].get(name) else "")
        for name in sorted(set(record["sha256"]) | set(now["sha256"]))
        if record["sha256"].get(name) != now["sha256"].get(name)
    ]


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
            f"the data has {len(found)} classes, the model {len(known)}: the model does not know {_few(unknown)}"
            + (f", the data lacks {_few(missing)}" if missing else "")
            + "; rename the classes of the data, or leave those out"
        )
    return np.asarray([places[name] for name in found], np.int64)


class _ImageMaker:
    """Rows of an inventory to `Images`, all of one source alike."""

    def __init__(self, classes: tuple[str, ...], channels: int, limits: ImageLimits) -> None:
        self.classes, self.channels, self.limits = classes, channels, limits
        self._index = {name: index for index, name in enumerate(classes)}

    def __call__(self, rows: Rows) -> Images:
        labels = np.asarray([self._index[label] for label in rows.labels], np.int64)
        common: dict[str, Any] = {"classes": self.classes, "channels": self.channels, "limits": self.limits}
        return Images(names=rows.names, labels=labels, pixels=self._pixels(rows.pixels), **common)

    def _pixels(self, pixels: Tensor | None) -> Tensor | None:
        if pixels is None or pixels.shape[1] == self.channels:
            return pixels
        if pixels.shape[1] == 1:
            return pixels.expand(-1, self.channels, -1, -1)
        return torch.stack([read_image(image, channels=self.channels) for image in pixels])


def _refuse(found: Inventory, classes: tuple[str, ...], name: str, for_training: bool) -> None:
    """Stop at what training or judging cannot do without."""
    problems = [problem for problem in found.problems if for_training or problem.kind == "bad-row"]
    fatal = [problem for problem in problems + found.label_problems(for_training=for_training) if problem.fatal]
    if fatal:
        more = f" (and {len(fatal) - 1:,} more: `swindow data check` lists all)" if len(fatal) > 1 else ""
        raise DataError(fatal[0].message + more)
    if not any(rows.names for rows in found.splits.values()):
        raise DataError(f"{name}: there are no images; add some")
    if for_training and not found.training_rows.names:
        raise DataError(f"{name}: there are no training images; add them under train")
    if for_training and len(classes) < 2:
        raise DataError(
            f"{name}: the only class is {classes[0]!r}; at least two are needed, each with images of its own"
        )


def _typical(found: Inventory, limits: ImageLimits) -> tuple[int, tuple[int, int]]:
    """Channels and median size, by the headers of some images spread evenly over a split."""
    rows = found.training_rows if found.training_rows.names else next(r for r in found.splits.values() if r.names)
    if rows.pixels is not None:
        return rows.pixels.shape[1], (rows.pixels.shape[2], rows.pixels.shape[3])
    headers, problem = [], None
    for place in np.unique(np.linspace(0, len(rows.names) - 1, PROBES).round().astype(int)):
        try:
            headers.append(probe_image(rows.names[place], limits=limits))
        except DataError as error:
            problem = problem or error
    if not headers and problem is not None:
        raise problem
    height, width = (int(np.median([getattr(header, side) for header in headers])) for side in ("height", "width"))
    return max(header.channels for header in headers), (height, width)


def _divide(
    splits: dict[str, Images], found: Inventory, seed: int, val_fraction: float, record: Mapping[str, Any] | None
) -> dict[str, tuple[str, ...]]:
    """Hold images out of ``train`` in place; the names that each new split got."""
    if record is not None:
        recorded = {name: list(names) for name, names in record["held_out"].items()}
        return {name: _take_recorded(splits, found, name, names) for name, names in recorded.items()}
    chosen = {}
    whole = len(splits["train"]) if "train" in splits else 0
    if found.kind == "digits":
        chosen["test"] = _take(splits, found, "test", DIGITS_TEST, seed=0)
    if "val" not in splits and whole and val_fraction:
        of_rest = val_fraction * whole / len(splits["train"])
        chosen["val"] = _take(splits, found, "val", min(of_rest, 1.0), seed=seed, at_most=MOST_VALIDATION)
    return {name: names for name, names in chosen.items() if names}


def _take(splits: dict[str, Images], found: Inventory, name: str, fraction: float, **how: Any) -> tuple[str, ...]:
    train = splits["train"]
    keys = _keys(train, found.root)
    return _move(splits, name, keys, held_out(train.labels, keys, fraction=fraction, **how))


def _take_recorded(splits: dict[str, Images], found: Inventory, name: str, wanted: Sequence[str]) -> tuple[str, ...]:
    if name in splits:
        raise DataError(
            f"the data now has {name} images of its own, where the run had held out {len(wanted):,} of its training "
            f"images; put the data back as it was, or start a new run"
        )
    keys = _keys(splits["train"], found.root) if "train" in splits else []
    missing = sorted(set(wanted) - set(keys))
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(wanted):,} recorded {name} images are gone: {_few(missing)}; "
            f"put them back, or start a new run"
        )
    return _move(splits, name, keys, np.isin(keys, list(wanted)))


def _move(splits: dict[str, Images], name: str, keys: Sequence[str], mask: np.ndarray) -> tuple[str, ...]:
    if mask.any():
        splits[name], splits["train"] = splits["train"].subset(mask), splits["train"].subset(~mask)
    return tuple(key for key, taken in zip(keys, mask, strict=True) if taken)


def _keys(images: Images, root: str) -> list[str]:
    return [relative(name, root) for name in images.names] if root else list(images.names)


def _note(splits: Mapping[str, Images], chosen: Mapping[str, Any], seed: int, *, recorded: bool) -> str:
    if "val" in chosen:
        share = len(splits["val"]) / (len(splits["val"]) + len(splits["train"]))
        return f"val held out of train ({share:.1%}, {'as recorded' if recorded else f'seed {seed}'})"
    return "val as found" if "val" in splits else "no val"


def _few(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
