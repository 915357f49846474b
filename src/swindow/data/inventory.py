"""What a data source holds, before any choice is made about it: the common answer of the readers beside this file."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from swindow.data.labelled import Encoded

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
POOL = "all"  # the one part of a source that is not divided


class Problem(NamedTuple):
    """One thing that is wrong with a data source: what kind, where, and one line that says why and what to do."""

    kind: str
    path: str
    message: str
    fatal: bool = False
    """Whether training on the source is refused because of it (an unreadable file is met only when it is read)."""


class Rows(NamedTuple):
    """Images of one split: a name (path) and a class name each, and pixels ``N C h w`` where these are in memory."""

    names: Sequence[str]
    labels: Sequence[str]
    pixels: Tensor | None = None
    encoded: Encoded | None = None
    """Where the images are in shards: row i of it is image i here."""


@dataclass(kw_only=True)
class Inventory:
    """Everything found at one source."""

    kind: str
    root: str = ""
    """Folder that file names begin with; what is recorded of a split is relative to it."""
    splits: dict[str, Rows] = field(default_factory=dict)
    """By ``train``, ``val``, ``test``; or all under `POOL`."""
    classes: tuple[str, ...] | None = None
    """Where the source has its own list; else they are the labels of the training images."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def training_rows(self) -> Rows:
        """Images that training would use; none where there is no such part."""
        return self.splits.get("train") or self.splits.get(POOL) or Rows((), ())

    def class_names(self, *, for_training: bool = True) -> tuple[str, ...]:
        """The source's own list, or all labels (of the training images) in natural order."""
        if self.classes is not None:
            return self.classes
        parts = [self.training_rows] if for_training else list(self.splits.values())
        return tuple(sorted({label for rows in parts for label in rows.labels}, key=natural_key))

    def label_problems(self, *, for_training: bool = True) -> list[Problem]:
        """Labels that no class is for, and classes of a single image."""
        classes = self.class_names(for_training=for_training)
        problems = []
        for split, rows in self.splits.items():
            for label, count in _sorted_counts(rows):
                if label not in classes:
                    problems.append(self._unknown_label(split, label, count, classes))
        counts = Counter(self.training_rows.labels)
        for label in classes:
            if for_training and counts[label] == 1:
                advice = "add images: it can be trained on but not validated"
                problems.append(Problem("one-image-class", label, f"class {label!r} has a single image; {advice}"))
        return problems

    def _unknown_label(self, split: str, label: str, count: int, classes: tuple[str, ...]) -> Problem:
        images = f"{count:,} image{'s' if count != 1 else ''} of {split}"
        if self.kind == "idx":
            there = f"{classes[0]} to {classes[-1]}" if classes else "none"
            message = f"label {label} ({images}) is out of range: the classes are {there}; repair the label file"
            return Problem("label-out-of-range", f"{split} label {label}", message, fatal=True)
        message = f"class {label!r} ({images}) has no training image; add some to train, or remove it from {split}"
        return Problem("class-only-in-" + split, label, message, fatal=True)


def natural_key(text: str) -> tuple[list[int | str], str]:
    """Sorts ``class 2`` before ``class 10``."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if position % 2 else part.casefold() for position, part in enumerate(parts)], text


def relative(name: str, root: str | Path) -> str:
    """A file's name as a record keeps it: without the folder, with forward slashes."""
    prefix = str(root).replace("\\", "/").rstrip("/") + "/"
    return name.replace("\\", "/").removeprefix(prefix)


def _sorted_counts(rows: Rows) -> list[tuple[str, int]]:
    return sorted(Counter(rows.labels).items(), key=lambda item: natural_key(item[0]))
