"""COCO JSON: boxes, polygons, run-length codes and crowds, read piece by piece so that large files fit in memory.

The file is split into the texts of its images and annotations (which takes a scan, and no objects), and each text is
decoded by itself, checked, and written into columns. Only outlines stay text.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from swindow.data.annotations import ROUNDING, AnnotationError, Columns, Faults, Part, judged
from swindow.data.outlines import Outlines, polygon_fault, run_fault, runs_of
from swindow.data.picture_sizes import PictureSizes
from swindow.images import LIMITS, ImageLimits, name_of
from swindow.objects import Size

Find = Callable[[Sequence[str]], Callable[[str], str | None]]
"""Given the names of a file's images, gives the way to the path of each, which is None for those that are not there."""


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw] = []


_Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 2)]  # as large as a column holds
_Side = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Image(msgspec.Struct):
    id: _Number | str
    file_name: str
    width: _Side | None = None
    height: _Side | None = None


class _Category(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31)]
    name: str


class _Annotation(msgspec.Struct):
    image_id: _Number | str
    category_id: int
    bbox: tuple[float, float, float, float]
    id: _Number | str | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Runs(msgspec.Struct):
    size: tuple[_Side, _Side]
    counts: str | list[_Side]


_FILE, _IMAGE, _CATEGORY, _ANNOTATION = map(msgspec.json.Decoder, (_File, _Image, _Category, _Annotation))
_POLYGONS, _RUNS = msgspec.json.Decoder(list[list[float]]), msgspec.json.Decoder(_Runs)
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError)
_NO_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')


@dataclass(frozen=True)
class CocoFile:
    """A file split into its parts, its categories known."""

    path: str
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: dict[int, str]
    """Name of each category by its number, in the order of the numbers."""


def open_coco(path: str | Path) -> CocoFile:
    """Split a file into its parts.

    Raises:
        DataError: it is no COCO JSON; the message says where it ends, or what is missing.
    """
    found = _split(str(path), _bytes(path))
    categories: dict[int, str] = {}
    for text in found.categories:
        category = _decoded(_CATEGORY, text, f"{name_of(path)}, categories")
        if category.id in categories or category.name in categories.values():
            raise AnnotationError(
                f"{name_of(path)}: category {category.id} {category.name!r} is there twice, or has the number or name "
                f"of another; give each a number and a name of its own",
                "duplicate-category",
            )
        categories[category.id] = category.name
    if not categories:
        message = f"{name_of(path)}: has no categories; add the classes that its annotations name"
        raise AnnotationError(message, "no-classes")
    return CocoFile(str(path), found.images, found.annotations, dict(sorted(categories.items())))


def read_coco(
    file: CocoFile, classes: Sequence[str], find: Find, faults: Faults, *, limits: ImageLimits = LIMITS
) -> Part:
    """The images and objects of a file, in `classes` (names); what is wrong with them goes to `faults`."""
    images = _read_images(file, find, faults, limits)
    places = {name: place for place, name in enumerate(classes)}
    labels = {number: places[name] for number, name in file.categories.items() if name in places}
    columns = _read_annotations(file, images, labels, faults)
    sizes = np.array(images.sizes, np.int64).reshape(-1, 2)
    numbers = {label: number for number, label in labels.items()}
    after = max(file.categories) + 1
    ids = [number for number in images.rows if isinstance(number, int)]
    return Part(
        names=images.names,
        image_ids=np.array(ids if len(ids) == len(sizes) else range(len(sizes)), np.int64),
        sizes=sizes,
        objects=judged(columns, sizes, faults, file.path),
        category_ids=tuple(numbers.get(label, after + label) for label in range(len(classes))),
    )


@dataclass(frozen=True)
class _ImageTable:
    names: list[str]
    sizes: list[Size]
    rows: dict[int | str, int]
    """Row of each image by its number in the file."""
    left_out: set[Any]
    """Numbers of images that are in the file and are not used: already told of."""


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        message = f"{name_of(path)}: cannot be read ({error.strerror}); check the path"
        raise AnnotationError(message, "bad-json") from error


def _split(path: str, data: bytes) -> _File:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return _FILE.decode(data)
    except msgspec.ValidationError as error:
        message = f"{name_of(path)}: is no COCO JSON ({_words(error)}); it has lists of images, annotations, categories"
        raise AnnotationError(message, "bad-json") from error
    except msgspec.DecodeError as error:
        reason = _words(error)
    except RecursionError:
        reason = "lists within lists without end"
    if b"NaN" in data or b"Infinity" in data:  # Python writes these, though JSON has no word for them
        data = _NO_NUMBER.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", data)
        try:
            return _FILE.decode(data)
        except _REFUSED as error:
            reason = _words(error)
    cut = "ends too early" if "truncated" in reason else reason
    message = f"{name_of(path)}: cannot be read as JSON ({cut}, {len(data):,} bytes); write or fetch it anew"
    raise AnnotationError(message, "bad-json")


def _read_images(file: CocoFile, find: Find, faults: Faults, limits: ImageLimits) -> _ImageTable:
    where = name_of(file.path)
    decoded: list[_Image] = []
    table = _ImageTable([], [], {}, set())
    for place, text in enumerate(file.images):
        try:
            decoded.append(_decoded(_IMAGE, text, f"{where}, image {_number(text, place)}"))
        except AnnotationError as error:
            faults.add("bad-image", file.path, str(error).split("; ")[0])
            table.left_out.add(_number(text, ""))
    locate = find([image.file_name for image in decoded])
    measure = PictureSizes(len(decoded), faults, limits)
    for image in decoded:
        name = f"{where}, image {image.id}"
        if image.id in table.rows or image.id in table.left_out:
            faults.add("duplicate-image-id", file.path, f"{name}: {image.file_name} has the number of another image")
            continue
        found = locate(image.file_name)
        if found is None:
            why = f"{name}: {name_of(image.file_name)} is not there"
            faults.add("missing-image", file.path, why, repair="add it")
            table.left_out.add(image.id)
            continue
        said = (image.height, image.width) if image.height and image.width else None
        size = measure.of(found, said, file.path, name)
        if size is None:
            table.left_out.add(image.id)
            continue
        table.rows[image.id] = len(table.names)
        table.names.append(found)
        table.sizes.append(size)
    return table


def _read_annotations(file: CocoFile, images: _ImageTable, labels: dict[int, int], faults: Faults) -> Columns:
    reader = _AnnotationReader(file, images, labels, faults)
    for place, text in enumerate(file.annotations):
        reader.add(place, text)
    return reader.columns()


class _AnnotationReader:
    """Annotations one after the other, into columns."""

    def __init__(self, file: CocoFile, images: _ImageTable, labels: dict[int, int], faults: Faults) -> None:
        self.file, self.images, self.labels, self.faults = file, images, labels, faults
        self.rows, self.ids, self.classes, self.ends = (array("q") for _ in range(4))
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.beyond, self.text = bytearray(), bytearray(), bytearray()
        self.seen: set[int | str] = set()

    def add(self, place: int, text: msgspec.Raw) -> None:
        """Check one, and keep it if it can be used."""
        try:
            one = _ANNOTATION.decode(text)
        except _REFUSED as error:
            self._refuse("bad-annotation", _number(text, place), _why(error, text))
            return
        number = place if one.id is None else one.id
        if one.id is not None:
            self._note_twice(number)
        row = self.images.rows.get(one.image_id)
        label = self.labels.get(one.category_id)
        if row is None:
            if one.image_id not in self.images.left_out:
                self._refuse("unknown-image", number, f"image {one.image_id} is not in the file")
        elif label is None:
            self._refuse("unknown-category", number, f"category {one.category_id} {self._why_unknown(one.category_id)}")
        else:
            self._keep(number, row, label, one)

    def columns(self) -> Columns:
        """All that were kept."""
        ends = np.array(self.ends, np.int64)
        corners = np.array(self.boxes, np.float64).reshape(-1, 4)
        with np.errstate(over="ignore"):
            corners[:, 2:] += corners[:, :2]
        return Columns(
            rows=np.array(self.rows, np.int64),
            ids=np.array(self.ids, np.int64),
            labels=np.array(self.classes, np.int64),
            boxes=corners,
            areas=np.array(self.areas, np.float64),
            crowd=np.frombuffer(self.crowd, np.bool_).copy(),
            beyond=np.frombuffer(self.beyond, np.bool_).copy(),
            outlines=Outlines(bytes(self.text), np.concatenate([[0], ends])[: len(ends)], ends) if self.text else None,
        )

    def _keep(self, number: int | str, row: int, label: int, one: _Annotation) -> None:
        size = self.images.sizes[row]
        try:
            outline, beyond = _outline(one.segmentation, size)
        except _BadOutline as error:
            self._refuse(error.kind, number, str(error))
            return
        self.rows.append(row)
        self.ids.append(number if isinstance(number, int) else len(self.ids))
        self.classes.append(label)
        self.boxes.extend(one.bbox)
        area = one.area or 0.0
        self.areas.append(area if 0 < area <= size[0] * size[1] else np.nan)
        self.crowd.append(bool(one.iscrowd))
        self.beyond.append(beyond)
        self.text += outline
        self.ends.append(len(self.text))

    def _refuse(self, kind: str, number: int | str, why: str) -> str:
        return self.faults.add(kind, self.file.path, f"{name_of(self.file.path)}, annotation {number}: {why}")

    def _note_twice(self, number: int | str) -> None:
        if number in self.seen:
            message = f"{name_of(self.file.path)}, annotation {number}: another has its number too; both are used"
            self.faults.tell("duplicate-annotation-id", self.file.path, message + ", give each its own")
        self.seen.add(number)

    def _why_unknown(self, number: int) -> str:
        name = self.file.categories.get(number)
        return "is not in the file" if name is None else f"{name!r} is none of the classes of train"


class _BadOutline(Exception):
    def __init__(self, message: str, kind: str = "bad-mask") -> None:
        super().__init__(message)
        self.kind = kind


def _outline(text: msgspec.Raw, size: Size) -> tuple[bytes, bool]:
    """The text of an outline (empty where there is none), and whether it reaches beyond a picture of `size`."""
    raw = bytes(text)
    if raw in (b"null", b"[]"):
        return b"", False
    try:
        if raw[:1] == b"{":
            code = _RUNS.decode(raw)
            runs = runs_of(code.counts)
            fault = run_fault(runs, code.size, size)
            if not fault and runs is not None and not runs[1::2].any():
                raise _BadOutline("a mask without a pixel", "empty-box")
            beyond = False
        else:
            polygons = _POLYGONS.decode(raw)
            fault = polygon_fault(polygons)
            beyond = not fault and any(_is_beyond(polygon, size) for polygon in polygons)
    except _REFUSED as error:
        raise _BadOutline(f"segmentation: {_words(error)}") from error
    if fault:
        raise _BadOutline(fault)
    return raw, beyond


def _is_beyond(polygon: list[float], size: Size) -> bool:
    across, down = polygon[::2], polygon[1::2]
    return min(polygon) < -ROUNDING or max(across) > size[1] + ROUNDING or max(down) > size[0] + ROUNDING


def _decoded(decoder: Any, text: msgspec.Raw, where: str) -> Any:
    try:
        return decoder.decode(text)
    except _REFUSED as error:
        raise AnnotationError(f"{where}: {_words(error)}; repair it", "bad-json") from error


def _number(text: msgspec.Raw, place: int | str) -> int | str:
    """The number of something that cannot be understood, or `place`: which it is, from 0."""
    number = _loosely(text).get("id")
    return number if isinstance(number, (int, str)) else place


def _why(error: Exception, text: msgspec.Raw) -> str:
    if "$.bbox" not in str(error):
        return _words(error)
    return f"bbox {str(_loosely(text).get('bbox'))[:80]} is not four finite numbers x, y, width, height"


def _loosely(text: msgspec.Raw) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except _REFUSED:
        return {}
    return found if isinstance(found, dict) else {}


def _words(error: Exception) -> str:
    """msgspec's own words, for people who have not heard of JSON paths."""
    text = str(error).splitlines()[0].replace("`", "")
    return re.sub(r" - at \$\.?", " at ", text).strip()
