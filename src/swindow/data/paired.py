"""Pictures that each have a file of annotations: Pascal VOC's XML and YOLO's text, from files to a `Part`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swindow.data.annotations import Columns, Faults, Part, judged
from swindow.data.folders import walk_files
from swindow.data.inventory import natural_key
from swindow.data.outlines import Outlines
from swindow.data.picture_sizes import PictureSizes
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, ImageLimits, name_of
from swindow.objects import Size

MOST_BYTES = 64 * 2**20  # of one file of annotations


class Paired(NamedTuple):
    """A picture and its annotations; one of the two may be missing."""

    image: str
    """Its path, or where it should be if `there` is false."""
    file: str
    """Path of the annotations; empty for a picture without any."""
    there: bool = True


class Marked(NamedTuple):
    """One object as a file has it."""

    number: int
    """Which it is in the file, from 1."""
    label: str | int
    """The name of its class, or its number in the list of classes."""
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2 in pixels, or in shares of width and height."""
    crowd: bool = False
    outline: tuple[float, ...] = ()
    """x y x y … of a polygon, in the unit of the box."""


class Marks(NamedTuple):
    """What one file says."""

    size: Size | None
    """Height and width; None where the file has none."""
    objects: list[Marked]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the files of one form are read."""

    read: Callable[[str, Faults], Marks | None]
    """What a file says; None, its faults told, where that cannot be understood."""
    word: str
    """What messages call one object: object 3, line 3."""
    shares: bool
    """Whether coordinates are shares of width and height rather than pixels, and files have no size."""
    first: int
    """The number of the first class in results."""


def read_pairs(
    splits: Mapping[str, Sequence[Paired]],
    form: Form,
    classes: Sequence[str] | None,
    faults: Faults,
    limits: ImageLimits,
) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Classes (those given, or the names in the first split, in natural order) and the objects of every split.

    Raises:
        DataError: `classes` are not given, and no object says which there are.
    """
    read = {split: [_read(pair, form, faults) for pair in pairs] for split, pairs in splits.items()}
    if classes is None:
        marks = next(iter(read.values()), [])
        classes = sorted({str(one.label) for _, said in marks if said for one in said.objects}, key=natural_key)
    if not classes:
        raise DataError("its annotations name no class; annotate some objects, or add a classes.txt of names")
    maker = _PartMaker(tuple(classes), form, faults, limits)
    return tuple(classes), {split: maker(pairs) for split, pairs in read.items()}


def pictures_below(folder: Path) -> dict[str, str]:
    """The images below a folder by their paths within it, without suffixes."""
    found = {}
    for name in walk_files(folder):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a million Path objects take seconds
        if suffix.lower() in IMAGE_SUFFIXES:
            found[os.path.relpath(stem, folder).replace(os.sep, "/")] = name
    return found


def annotation_bytes(path: str) -> bytes:
    """What is in a file.

    Raises:
        DataError: it cannot be read, or is far too large.
    """
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise DataError(f"{name_of(path)}: is over {MOST_BYTES:,} bytes, too many for the objects of one picture")
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{name_of(path)}: cannot be read ({error.strerror})") from error


def _read(pair: Paired, form: Form, faults: Faults) -> tuple[Paired, Marks | None]:
    if not pair.there:
        why = f"{name_of(pair.file)}: its image {name_of(pair.image)} is not there"
        faults.add("missing-image", pair.file, why, repair="add it, or remove the annotations")
        return pair, None
    if not pair.file:
        return pair, Marks(None, [])
    try:
        return pair, form.read(pair.file, faults)
    except DataError as error:
        faults.add("unreadable", pair.file, str(error))
        return pair, None


class _PartMaker:
    def __init__(self, classes: tuple[str, ...], form: Form, faults: Faults, limits: ImageLimits) -> None:
        self.classes, self.form, self.faults, self.limits = classes, form, faults, limits
        self.places: dict[str | int, int] = {name: place for place, name in enumerate(classes)}
        if form.shares:
            self.places = {place: place for place in range(len(classes))}

    def __call__(self, pairs: Sequence[tuple[Paired, Marks | None]]) -> Part:
        sizes = PictureSizes(len(pairs), self.faults, self.limits)
        names: list[str] = []
        files: list[str] = []
        shown: list[Size] = []
        rows: list[tuple[int, int, Marked]] = []
        for pair, marks in pairs:
            if marks is None:
                continue
            quiet = self.form.shares or not pair.file
            size = sizes.of(pair.image, marks.size, pair.file, name_of(pair.file), quiet=quiet)
            if size is None:
                continue
            rows += [(len(names), label, one) for label, one in self._known(pair.file, marks.objects)]
            names.append(pair.image)
            files.append(pair.file)
            shown.append(size)
        heights_widths = np.array(shown, np.int64).reshape(-1, 2)
        return Part(
            names=names,
            image_ids=np.arange(1, len(names) + 1),
            sizes=heights_widths,
            objects=judged(self._columns(rows, heights_widths), heights_widths, self.faults, files, self.form.word),
            category_ids=tuple(range(self.form.first, self.form.first + len(self.classes))),
        )

    def _known(self, file: str, objects: Sequence[Marked]) -> list[tuple[int, Marked]]:
        known = []
        for one in objects:
            if one.label in self.places:
                known.append((self.places[one.label], one))
                continue
            last = len(self.classes) - 1
            there = f"0 to {last}" if self.form.shares else ", ".join(self.classes[:8]) + (" …" if last > 7 else "")
            why = f"{name_of(file)}, {self.form.word} {one.number}: class {one.label!r} is none of {there}"
            self.faults.add("unknown-category", file, why, repair="rename it, or add it to the classes")
        return known

    def _columns(self, rows: Sequence[tuple[int, int, Marked]], sizes: np.ndarray) -> Columns:
        of = np.array([row for row, _, _ in rows], np.int64)
        scale = np.ones((len(rows), 4))
        if self.form.shares and len(rows):
            scale = sizes[of][:, [1, 0, 1, 0]].astype(np.float64)
        texts = [
            json.dumps([(np.reshape(one.outline, (-1, 2)) * by[:2]).ravel().tolist()]).encode() if one.outline else b""
            for (_, _, one), by in zip(rows, scale, strict=True)
        ]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return Columns(
            rows=of,
            ids=np.array([one.number for _, _, one in rows], np.int64),
            labels=np.array([label for _, label, _ in rows], np.int64),
            boxes=np.array([one.box for _, _, one in rows], np.float64).reshape(-1, 4) * scale,
            areas=np.full(len(rows), np.nan),
            crowd=np.array([one.crowd for _, _, one in rows], bool),
            beyond=np.zeros(len(rows), bool),
            outlines=Outlines(b"".join(texts), np.concatenate([[0], ends])[: len(ends)], ends) if any(texts) else None,
        )
