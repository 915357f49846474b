"""Pascal VOC XML: a file of boxes for each picture.

Coordinates count pixels from 1, and the last one belongs to the box (the development kit's way): a box is from
``xmin - 1`` to ``xmax`` here. Files whose ``xmin`` or ``ymin`` is 0 count from 0; that pixel is not missed.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swindow.data.annotations import Faults
from swindow.data.folders import subfolders
from swindow.data.inventory import POOL, SPLIT_NAMES, natural_key
from swindow.data.object_layouts import ObjectPlaces, class_list
from swindow.data.paired import Form, Marked, Marks, Paired, annotation_bytes, pictures_below
from swindow.errors import DataError, require
from swindow.images import name_of

XML_FOLDERS = frozenset({"annotations", "annotation", "xml", "xmls"})
_MOST_SIDE = 2**31 - 1  # of a picture; what says more says nothing
PICTURE_FOLDERS = frozenset({"jpegimages", "images", "imgs", "img", "image", "pngimages"})


def voc_places(root: Path) -> ObjectPlaces | None:
    """``Annotations`` beside ``JPEGImages`` with the lists of ``ImageSets/Main`` (also below ``VOCdevkit``), or XML
    files beside their images, in folders of splits or without; None where there are none.

    Raises:
        DataError: two folders could be the same split, or a list that cannot be read.
    """
    if not root.is_dir():
        return None
    years = [*root.glob("VOC20*"), *root.glob("VOCdevkit/VOC20*")]
    for place in (root, *sorted(years, reverse=True)):
        folders = {folder.name.lower(): folder for folder in subfolders(place)}
        xml = next((folder for name, folder in folders.items() if name in XML_FOLDERS and _has_xml(folder)), None)
        images = next((folder for name, folder in folders.items() if name in PICTURE_FOLDERS), None)
        if xml is not None and images is not None:
            return _kit(place, xml, images)
    return _beside(root)


def voc_form(difficult: str) -> Form:
    """How the files are read; `difficult` is the policy for objects called so."""
    return Form(read=lambda path, faults: read_voc_file(path, faults, difficult), word="object", shares=False, first=1)


def read_voc_file(path: str, faults: Faults, difficult: str) -> Marks | None:
    """What one file says; None, told to `faults`, where it cannot be understood.

    Declarations of entities and document types are refused unread: what they stand for is never looked up.
    """
    parser = require("defusedxml.ElementTree", extra="detect")
    refused = require("defusedxml", extra="detect").DefusedXmlException
    data = annotation_bytes(path)
    try:
        root = parser.fromstring(data, forbid_dtd=True)
    except refused:
        why = f"{name_of(path)}: declares a document type or entities, which annotations have no use for"
        faults.add("forbidden-xml", path, why, repair="remove the declaration")
        return None
    except (parser.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that nobody knows
        faults.add("bad-xml", path, f"{name_of(path)}: cannot be read as XML ({error})", repair="write it anew")
        return None
    if root.tag != "annotation":
        faults.add("bad-xml", path, f"{name_of(path)}: is XML of {root.tag[:40]!r}, not of an annotation")
        return None
    marks = [_marked(one, number, path, faults, difficult) for number, one in enumerate(root.iterfind("object"), 1)]
    return Marks(_size(root), [mark for mark in marks if mark is not None])


def _marked(one: Any, number: int, path: str, faults: Faults, difficult: str) -> Marked | None:
    where = f"{name_of(path)}, object {number}"
    name = (one.findtext("name") or "").strip()
    if not name:
        faults.add("bad-annotation", path, f"{where}: has no name of a class")
        return None
    texts = [one.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    values = [_number(text) for text in texts]
    if any(value is None for value in values):
        shown = ", ".join((text or "nothing").strip()[:20] for text in texts)
        faults.add("bad-annotation", path, f"{where}: its xmin, ymin, xmax, ymax are {shown}, not four finite numbers")
        return None
    xmin, ymin, xmax, ymax = (value for value in values if value is not None)
    if xmax <= xmin or ymax <= ymin:  # a box of one pixel is a slip of the mouse
        why = f"{where}: xmin {xmin:g} and xmax {xmax:g}, ymin {ymin:g} and ymax {ymax:g} leave no width or height"
        faults.add("empty-box", path, why)
        return None
    hard = (one.findtext("difficult") or "0").strip() not in ("", "0")
    if hard and difficult == "drop":
        faults.leave_out("difficult")
        return None
    left, top = (low - 1 if low >= 1 or low < 0 else low for low in (xmin, ymin))
    return Marked(number, name, (left, top, xmax, ymax), crowd=hard and difficult == "crowd")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _size(root: Any) -> tuple[int, int] | None:
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    if not height or not width or not 1 <= min(height, width) <= max(height, width) <= _MOST_SIDE:
        return None
    return int(height), int(width)


def _has_xml(folder: Path) -> bool:
    return next(folder.glob("*.xml"), None) is not None


def _kit(root: Path, xml: Path, images: Path) -> ObjectPlaces:
    """The development kit's folders: who is in which split stands in lists, or nowhere."""
    pictures = pictures_below(images)
    files = {path.stem: str(path) for path in xml.glob("*.xml")}
    lists = {path.stem.lower(): path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    chosen = {SPLIT_NAMES[name]: path for name, path in lists.items() if name in SPLIT_NAMES}
    if "train" not in chosen and "trainval" in lists:
        chosen[POOL if not chosen else "train"] = lists["trainval"]
    stems = {split: _stems(path) for split, path in chosen.items()} or {
        POOL: sorted({*pictures, *files}, key=natural_key)
    }
    pairs: dict[str, Sequence[Paired]] = {}
    for split, names in stems.items():
        unknown = [name for name in names if name not in pictures and name not in files]
        if unknown:
            raise DataError(
                f"{name_of(chosen[split])}: names {unknown[0]}, which has neither an image in {name_of(images)} nor "
                f"annotations; add them, or remove the line"
            )
        pairs[split] = [_pair(name, pictures, files, images) for name in names]
    places = ObjectPlaces(kind="voc-boxes", root=str(root), pairs=pairs, classes=class_list(root))
    return places.in_order()


def _stems(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name_of(path)}: cannot be read as a list of names ({error}); save it as UTF-8") from error
    return [line.split()[0] for line in lines if line.strip()]


def _pair(name: str, pictures: dict[str, str], files: dict[str, str], images: Path) -> Paired:
    return Paired(pictures.get(name, str(images / name)), files.get(name, ""), there=name in pictures)


def _beside(root: Path) -> ObjectPlaces | None:
    """XML files in the folders of their images: of the splits, or all in one."""
    folders: dict[str, Path] = {}
    for folder in subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None or not _has_xml(folder):
            continue
        if split in folders:
            raise DataError(
                f"{name_of(root)}: both {folders[split].name!r} and {folder.name!r} could be the {split} images; "
                f"rename or remove one"
            )
        folders[split] = folder
    if not folders:
        if not _has_xml(root):
            return None
        folders = {POOL: root}
    pairs: dict[str, Sequence[Paired]] = {split: _all_in(folder) for split, folder in folders.items()}
    if not any(pair.there for rows in pairs.values() for pair in rows):
        return None
    return ObjectPlaces(kind="voc-boxes", root=str(root), pairs=pairs, classes=class_list(root)).in_order()


def _all_in(folder: Path) -> Sequence[Paired]:
    pictures = {name: path for name, path in pictures_below(folder).items() if "/" not in name}
    files = {path.stem: str(path) for path in folder.glob("*.xml")}
    return [_pair(name, pictures, files, folder) for name in sorted({*pictures, *files}, key=natural_key)]
