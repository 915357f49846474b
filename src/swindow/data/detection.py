"""From annotations to `Annotated`: which classes there are, how large pictures are, what is wrong with them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swindow.data.annotated import Annotated, PartReader
from swindow.data.annotations import MOST_TOLD, Faults, ObjectConfig, Part
from swindow.data.inventory import POOL, Problem
from swindow.data.known_layouts import find_layout
from swindow.data.object_layouts import EXAMPLE, ObjectPlaces, coco_images, coco_places
from swindow.data.paired import read_pairs
from swindow.data.voc_boxes import voc_form, voc_places
from swindow.data.yolo import yolo_form, yolo_places
from swindow.errors import DataError, need
from swindow.images import ImageLimits, name_of, probe_image

PREFIXES = ("coco", "voc-boxes", "yolo")
PROBES = 64


@dataclass(kw_only=True)
class ObjectInventory:
    """All annotations of a source, read and judged."""

    kind: str
    root: str
    classes: tuple[str, ...]
    parts: dict[str, Part]
    """By ``train``, ``val``, ``test``; or all under `POOL`."""
    problems: list[Problem]
    note: str
    """What was taken for granted, clipped and left out, to be said aloud."""


def find_objects(source: str | Path, *, task: str = "auto") -> ObjectPlaces | None:
    """Where annotations of objects are at `source`; None where there are none.

    ``coco:PATH``, ``voc-boxes:PATH`` and ``yolo:PATH`` say which form they have.

    Raises:
        DataError: `source` says that there are some, or `task` does, and there are none.
    """
    prefix, colon, rest = str(source).partition(":")
    asked = prefix.lower() if colon and prefix.lower() in PREFIXES else ""
    if task in ("classify", "segment"):
        return None
    if task == "detect" and prefix.lower() == "voc" and colon:
        asked = "voc-boxes"
    path = Path(rest if asked else source)
    if not path.exists():
        if not asked and task != "detect":
            return None
        raise DataError(f"{name_of(path)}: no such file or folder; give {EXAMPLE}")
    found = _places(path, asked, task)
    if found is None and (asked or task == "detect"):
        form = {"coco": "COCO JSON", "voc-boxes": "Pascal VOC XML", "yolo": "YOLO text"}.get(asked, "boxes of any kind")
        raise DataError(f"{name_of(path)}: no annotations as {form} are there; give {EXAMPLE}")
    return found


def _places(path: Path, asked: str, task: str) -> ObjectPlaces | None:
    """The first form that there is; COCO's goes before what else a folder holds, masks go before the others."""
    forms = {"coco": coco_places, "voc-boxes": voc_places, "yolo": yolo_places}
    if asked:
        return forms[asked](path)
    found = next((found for found in (read(path) for read in forms.values()) if found is not None), None)
    if found is None or task == "detect":
        return found
    if found.kind == "coco":
        found.note = "; ".join(note for note in (found.note, _passed_over(path)) if note)
        return found
    return None if path.is_dir() and find_layout(path) is not None else found


def _passed_over(path: Path) -> str:
    """Other annotations at the same place, to be said aloud."""
    other = voc_places(path)
    return "" if other is None else f"its XML files are not read (voc-boxes:{path} reads them)"


def read_objects(
    places: ObjectPlaces, config: ObjectConfig, limits: ImageLimits, *, most: int | None = MOST_TOLD
) -> ObjectInventory:
    """Every annotation of a source, each judged by `config`; up to `most` problems of a kind are told one by one.

    Raises:
        DataError: a file that cannot be read at all.
    """
    faults = Faults(config, most)
    classes, parts = _read_coco(places, faults, limits) if places.files else _read_pairs(places, faults, limits)
    _tell_of_all(classes, parts, faults)
    notes = [places.note, faults.note(), _negatives(parts)]
    return ObjectInventory(
        kind=places.kind,
        root=_root(places, parts),
        classes=classes,
        parts=parts,
        problems=[*faults.problems, *faults.untold()],
        note="; ".join(note for note in notes if note),
    )


def pool_objects(found: ObjectInventory, channels: int | None, limits: ImageLimits) -> dict[str, Annotated]:
    """Every split, ready to be read."""
    learned, outlined = (
        sum(counts) for counts in zip(*(p.objects.outlined() for p in found.parts.values()), strict=True)
    )
    return {
        split: Annotated(
            names=part.names,
            classes=found.classes,
            channels=channels or 3,
            has_masks=0 < learned == outlined,
            category_ids=part.category_ids,
            limits=limits,
            reader=PartReader(part, limits),
            rows=np.arange(len(part.names)),
        )
        for split, part in found.parts.items()
    }


def typical(found: ObjectInventory, limits: ImageLimits) -> tuple[int, tuple[int, int]]:
    """Channels by the headers of some images spread evenly over all, and the median height and width of all.

    Raises:
        DataError: there are no images, or none of those looked at can be read.
    """
    names = [name for part in found.parts.values() for name in part.names]
    if not names:
        raise DataError(f"{name_of(found.root)}: there are no images; add some")
    channels, problem = [], None
    for place in np.unique(np.linspace(0, len(names) - 1, PROBES).round().astype(int)):
        try:
            channels.append(probe_image(names[place], limits=limits).channels)
        except DataError as error:
            problem = problem or error
    if not channels and problem is not None:
        raise problem
    height, width = np.median(np.concatenate([part.sizes for part in found.parts.values()]), axis=0)
    return max(channels), (int(height), int(width))


def _read_coco(places: ObjectPlaces, faults: Faults, limits: ImageLimits) -> tuple[tuple[str, ...], dict[str, Part]]:
    """The classes are those of the first file: of train, where there is one."""
    need("msgspec", extra="detect")
    from swindow.data.coco import open_coco, read_coco  # here, since it may not be there

    classes: tuple[str, ...] = ()
    parts = {}
    for split, path in places.files.items():
        file = open_coco(path)
        classes = classes or tuple(file.categories.values())
        parts[split] = read_coco(file, classes, coco_images(path, split), faults, limits=limits)
    return classes, parts


def _read_pairs(places: ObjectPlaces, faults: Faults, limits: ImageLimits) -> tuple[tuple[str, ...], dict[str, Part]]:
    form = yolo_form() if places.kind == "yolo" else voc_form(faults.config.difficult)
    try:
        return read_pairs(places.pairs, form, places.classes, faults, limits)
    except DataError as error:
        raise DataError(f"{name_of(places.root)}: {error}") from error


def _tell_of_all(classes: Sequence[str], parts: Mapping[str, Part], faults: Faults) -> None:
    """What only all objects together show: classes without any, objects without a mask among those with one."""
    train = parts.get("train", parts.get(POOL))
    if train is not None and len(train.objects.ids):
        counts = np.bincount(train.objects.labels, minlength=len(classes))
        for place in np.flatnonzero(counts == 0).tolist():
            message = f"class {classes[place]!r} has no training object; add some, or take it out of the classes"
            faults.tell("unused-class", classes[place], message)
    tables = [part.objects for part in parts.values()]
    learned, outlined = (sum(counts) for counts in zip(*(table.outlined() for table in tables), strict=True))
    if 0 < outlined < learned:
        message = f"{learned - outlined:,} of {learned:,} objects have no mask, so none is used; outline those too"
        faults.tell("missing-mask", "", message)


def _negatives(parts: Mapping[str, Part]) -> str:
    count = sum(int((np.diff(part.objects.starts) == 0).sum()) for part in parts.values())
    return f"{count:,} image{'s' if count != 1 else ''} without an object" if count else ""


def _root(places: ObjectPlaces, parts: Mapping[str, Part]) -> str:
    """The folder that recorded names are relative to: the source, or what holds all the images that it names."""
    folders = {os.path.dirname(name) for part in parts.values() for name in part.names}  # noqa: PTH120
    if all(f"{folder}{os.sep}".startswith(f"{places.root}{os.sep}") for folder in folders):
        return places.root
    if len({Path(folder).is_absolute() for folder in folders}) > 1:
        return ""
    return os.path.commonpath(folders)
