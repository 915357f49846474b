"""Objects of many pictures by column, and what is done with annotations that are not as they should be."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from swindow.data.inventory import Problem
from swindow.data.outlines import Outlines
from swindow.errors import ConfigError, DataError
from swindow.images import name_of

MOST_TOLD = 1_000  # problems of one kind that are told one by one when data is opened; `check` tells all
ROUNDING = 1.0  # pixels that a box may reach beyond its picture before anything is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectConfig:
    """What is done with annotations that are not as they should be: stop at the first, or go on and count them."""

    outside: Literal["clip", "drop", "stop"] = "clip"
    """Boxes and polygons that reach beyond their picture."""
    empty: Literal["drop", "stop"] = "drop"
    """Boxes without width or height, or of which nothing lies in their picture."""
    malformed: Literal["drop", "stop"] = "stop"
    """What cannot be understood, and what has no picture, no known class, or another size than its picture."""
    difficult: Literal["crowd", "keep", "drop"] = "crowd"
    """Objects that Pascal VOC calls difficult: neither learned nor counted (crowd), like any other, or left out."""

    def __post_init__(self) -> None:
        allowed = {
            "outside": ("clip", "drop", "stop"),
            "empty": ("drop", "stop"),
            "malformed": ("drop", "stop"),
            "difficult": ("crowd", "keep", "drop"),
        }
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise ConfigError(f"objects {name} {getattr(self, name)!r} is not one of {', '.join(words)}")


class AnnotationError(DataError):
    """A file of annotations of which nothing can be used: the message, and the kind that `check` calls it."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class Faults:
    """What is wrong with the annotations of a source: told one by one, up to some of a kind, and counted."""

    def __init__(self, config: ObjectConfig, most: int | None = MOST_TOLD) -> None:
        self.config, self.most = config, most
        self.problems: list[Problem] = []
        self._told: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._left: Counter[str] = Counter()

    def add(self, kind: str, path: str, why: str, *, repair: str = "repair it") -> str:
        """Note one fault, for `why` of it; what is to be done with its object or picture: clip, drop or stop."""
        policy = {"outside-box": "outside", "empty-box": "empty"}.get(kind, "malformed")
        action = getattr(self.config, policy)
        advice = f"{repair}, or leave such out with objects.{policy} drop"
        ending = {"clip": "it is clipped; repair it if that is wrong", "drop": f"it is left out; {repair} to use it"}
        self.tell(kind, path, f"{why}; {ending.get(action, advice)}", fatal=action == "stop")
        self._done[action] += 1
        return action

    def tell(self, kind: str, path: str, message: str, *, fatal: bool = False) -> None:
        """Note what no policy is for."""
        self._told[kind] += 1
        if self.most is None or self._told[kind] <= self.most:
            self.problems.append(Problem(kind, path, message, fatal))

    def leave_out(self, what: str) -> None:
        """Count what a policy leaves out without a fault: objects called difficult."""
        self._left[what] += 1

    def untold(self) -> list[Problem]:
        """A line for each kind of which there was more than is told one by one."""
        return [
            Problem(kind, "", f"{count - self.most:,} more of {kind}; `swindow data check` lists all")
            for kind, count in self._told.items()
            if self.most is not None and count > self.most
        ]

    def note(self) -> str:
        """How many were clipped and left out, in words; empty where none was."""
        words = {"clip": "clipped", "drop": "left out"}
        counts = [f"{self._done[action]:,} {word}" for action, word in words.items() if self._done[action]]
        counts += [f"{count:,} {what} left out" for what, count in self._left.items()]
        return f"of the annotations {', '.join(counts)}" if counts else ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTable:
    """The objects of many pictures, those of one picture next to each other."""

    starts: np.ndarray
    """int64 N + 1: the first object of each picture, and how many there are in all."""
    ids: np.ndarray
    """int64: the number that the file gives to each, for messages."""
    labels: np.ndarray
    """int64: class indices."""
    boxes: np.ndarray
    """float32 ``A 4``: x1 y1 x2 y2, within their picture."""
    areas: np.ndarray
    """float32, by the file; NaN where it says none."""
    crowd: np.ndarray
    """bool."""
    outlines: Outlines | None = None

    def of(self, row: int) -> slice:
        """Where the objects of one picture lie."""
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def outlined(self) -> tuple[int, int]:
        """How many objects there are to learn, crowds left out, and how many of them have an outline."""
        learned = int((~self.crowd).sum())
        return learned, 0 if self.outlines is None else int(self.outlines.given[~self.crowd].sum())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The pictures of one split with their objects."""

    names: list[str]
    """The file of each."""
    image_ids: np.ndarray
    """int64: the file's own number of each picture, or its row."""
    sizes: np.ndarray
    """int64 ``N 2``: height and width, as the annotations have them."""
    objects: ObjectTable
    category_ids: tuple[int, ...]
    """The file's own number of each class."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What a reader found, object by object, before anything was judged: a row for each in every column."""

    rows: np.ndarray
    """int64: its picture."""
    ids: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    """float64 ``A 4``: x1 y1 x2 y2, wherever they lie."""
    areas: np.ndarray
    crowd: np.ndarray
    beyond: np.ndarray
    """bool: an outline that reaches beyond its picture, whatever its box does."""
    outlines: Outlines | None = None


def judged(
    found: Columns, sizes: np.ndarray, faults: Faults, files: str | Sequence[str], word: str = "annotation"
) -> ObjectTable:
    """The columns as a table, boxes clipped to their pictures (of `sizes`, ``N 2``), by the policies of `faults`.

    Messages name the file of the annotations (`files`, or that of each picture) and the `word` with its number.
    """
    keep = np.ones(len(found.rows), bool)
    height, width = sizes[found.rows].T.astype(np.float64) if len(found.rows) else np.zeros((2, 0))
    limits = np.stack([width, height, width, height], axis=1)
    x1, y1, x2, y2 = found.boxes.T
    with np.errstate(over="ignore"):
        flat = ~((x2 > x1) & (y2 > y1))
        beyond = found.beyond | (found.boxes < -ROUNDING).any(1) | (found.boxes > limits + ROUNDING).any(1)
        boxes = np.clip(found.boxes, 0, limits).astype(np.float32)
    gone = ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    for place in np.flatnonzero(flat | gone | beyond).tolist():
        box = _shown(found.boxes[place])
        file = files if isinstance(files, str) else files[found.rows[place]]
        where = f"{name_of(file)}, {word} {found.ids[place]}"
        tall, wide = int(height[place]), int(width[place])
        if flat[place]:
            action = faults.add("empty-box", file, f"{where}: box {box} has no width or height")
        elif gone[place]:
            action = faults.add("empty-box", file, f"{where}: box {box} lies outside its {wide} × {tall} pixels")
        else:
            action = faults.add("outside-box", file, f"{where}: box {box} reaches beyond {wide} × {tall} pixels")
        keep[place] = action == "clip"
    return _ordered(found, boxes, np.flatnonzero(keep), len(sizes))


def _ordered(found: Columns, boxes: np.ndarray, kept: np.ndarray, count: int) -> ObjectTable:
    order = kept[np.argsort(found.rows[kept], kind="stable")]
    return ObjectTable(
        starts=np.searchsorted(found.rows[order], np.arange(count + 1)).astype(np.int64),
        ids=found.ids[order],
        labels=found.labels[order],
        boxes=boxes[order],
        areas=found.areas[order].astype(np.float32),
        crowd=found.crowd[order],
        outlines=None if found.outlines is None else found.outlines[order],
    )


def _shown(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{number:g}" for number in box.tolist()) + ")"
