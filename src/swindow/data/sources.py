"""A data source divided: which images are in which split, what was held out, and how that is written down."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from swindow.data.annotated import Annotated
from swindow.data.inventory import Problem, relative
from swindow.data.labelled import Images
from swindow.data.scenes import Scenes
from swindow.data.splits import digest, held_out
from swindow.errors import DataError

MOST_VALIDATION = 5_000  # an accuracy measured on so many is known to within a percent
DIGITS_TEST = 0.2

AnyImages = TypeVar("AnyImages", Images, Scenes, Annotated)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DataSource:
    """What was found at a source and how it was divided."""

    source: str
    kind: str
    """folder, idx, table, torchvision or digits; masks, volumes, ade20k, cityscapes or voc; coco, voc-boxes or yolo;
    pictures, which need no labels."""
    task: Literal["classify", "segment", "detect", "pretrain"]
    classes: tuple[str, ...]
    """None to pretrain, whatever labels there are."""
    channels: int
    image_size: tuple[int, int]
    """Height and width of a typical image (their medians)."""
    train: Images | Scenes | Annotated | None
    val: Images | Scenes | Annotated | None
    test: Images | Scenes | Annotated | None
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
    note: str = ""
    """What was taken for granted about masks, or done about annotations."""

    def describe(self) -> str:
        """The one line that is said aloud."""
        height, width = self.image_size
        parts = [f"{split} {len(images):,}" for split, images in self.splits().items()]
        colour = "grey" if self.channels == 1 else "colour" if self.channels == 3 else f"{self.channels}-channel"
        task, what = "classification", "images"
        if self.task == "segment":
            task, what = "segmentation", "slices" if self.kind == "volumes" else "images"
        if self.task == "detect":
            task = "detection"
        count = len(self.classes)
        classes = f"{task}, {count} class{'es' if count != 1 else ''}"
        if self.task == "pretrain":
            classes = "pretraining without labels"
        return (
            f"{self.source} ({self.kind}): {classes}, {' / '.join(parts)} "
            f"{colour} {what} of about {height} × {width}{self._cases()}{self._objects()}; {self.split_note}"
            + (f"; {self.note}" if self.note else "")
        )

    def _cases(self) -> str:
        """How many cases the pictures of each split belong to, where these are fewer."""
        splits = {name: images for name, images in self.splits().items() if isinstance(images, Scenes)}
        counts = {name: len(set(scenes.cases)) for name, scenes in splits.items()}
        if all(counts[name] == len(scenes) for name, scenes in splits.items()):
            return ""
        return f" from {' / '.join(f'{count:,}' for count in counts.values())} cases"

    def _objects(self) -> str:
        """How many objects the pictures of each split show."""
        counts = [one.count_objects() for one in self.splits().values() if isinstance(one, Annotated)]
        if not counts:
            return ""
        masks = any(isinstance(one, Annotated) and one.has_masks for one in self.splits().values())
        return f" with {' / '.join(f'{count:,}' for count in counts)} {'boxes and masks' if masks else 'boxes'}"

    def split(self, name: str) -> Images | Scenes | Annotated:
        """One split by its name.

        Raises:
            DataError: there is no such split.
        """
        splits = self.splits()
        if name not in splits:
            raise DataError(f"{self.source}: has no {name} images; there are {', '.join(splits)}")
        return splits[name]

    def splits(self) -> dict[str, Images | Scenes | Annotated]:
        """The splits that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}


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


def divide(
    splits: dict[str, AnyImages],
    root: str,
    *,
    seed: int,
    val_fraction: float,
    record: Mapping[str, Any] | None,
    digits: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Hold images out of ``train`` in place, scenes by whole cases; the names that each new split got.

    Raises:
        DataError: images that `record` has in a split are gone, or the split is there by itself now.
    """
    if record is not None:
        recorded = {name: list(names) for name, names in record["held_out"].items()}
        return {name: _take_recorded(splits, root, name, names) for name, names in recorded.items()}
    chosen = {}
    whole = len(splits["train"]) if "train" in splits else 0
    if digits:
        chosen["test"] = _take(splits, root, "test", DIGITS_TEST, seed=0)
    if "val" not in splits and whole and val_fraction:
        of_rest = val_fraction * whole / len(splits["train"])
        chosen["val"] = _take(splits, root, "val", min(of_rest, 1.0), seed=seed, at_most=MOST_VALIDATION)
    return {name: names for name, names in chosen.items() if names}


def few(names: Sequence[str], most: int = 5) -> str:
    """Some names and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def note_on_splits(
    splits: Mapping[str, Images | Scenes | Annotated], chosen: Mapping[str, Any], seed: int, recorded: bool
) -> str:
    """Where the validation images come from, in words."""
    if "val" in chosen:
        val, train = splits["val"], splits["train"]
        cases = " by case" if isinstance(val, Scenes) and len(set(val.cases)) < len(val) else ""
        share = len(val) / (len(val) + len(train))
        return f"val held out of train{cases} ({share:.1%}, {'as recorded' if recorded else f'seed {seed}'})"
    return "val as found" if "val" in splits else "no val"


def _take(splits: dict[str, AnyImages], root: str, name: str, fraction: float, **how: Any) -> tuple[str, ...]:
    train = splits["train"]
    keys = _keys(train, root)
    if isinstance(train, Scenes):
        return _move(splits, name, keys, _by_case(train, fraction, **how))
    if isinstance(train, Annotated):
        return _move(splits, name, keys, held_out(train.rarest(), keys, fraction=fraction, **how))
    return _move(splits, name, keys, held_out(train.labels, keys, fraction=fraction, **how))


def _by_case(scenes: Scenes, fraction: float, **how: Any) -> np.ndarray:
    """A mask of the scenes of about that share of the cases; at least one case stays."""
    cases, members = np.unique(np.asarray(scenes.cases), return_inverse=True)
    taken = held_out(np.zeros(len(cases), np.int64), cases.tolist(), fraction=fraction, **how)
    return taken[members]


def _take_recorded(splits: dict[str, AnyImages], root: str, name: str, wanted: Sequence[str]) -> tuple[str, ...]:
    if name in splits:
        raise DataError(
            f"the data now has {name} images of its own, where the run had held out {len(wanted):,} of its training "
            f"images; put the data back as it was, or start a new run"
        )
    keys = _keys(splits["train"], root) if "train" in splits else []
    missing = sorted(set(wanted) - set(keys))
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(wanted):,} recorded {name} images are gone: {few(missing)}; "
            f"put them back, or start a new run"
        )
    return _move(splits, name, keys, np.isin(keys, list(wanted)))


def _move(splits: dict[str, AnyImages], name: str, keys: Sequence[str], mask: np.ndarray) -> tuple[str, ...]:
    if mask.any():
        splits[name], splits["train"] = splits["train"].subset(mask), splits["train"].subset(~mask)
    return tuple(key for key, taken in zip(keys, mask, strict=True) if taken)


def _keys(images: Images | Scenes | Annotated, root: str) -> list[str]:
    return [relative(name, root) for name in images.names] if root else list(images.names)
