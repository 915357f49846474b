"""YOLO text: for each picture a file with a line for each object, its class and where it is in shares of the picture.

Five columns are a box: class, x and y of its centre, width, height. Seven or more are the class and a polygon.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from swindow.data.annotations import Faults
from swindow.data.folders import subfolders
from swindow.data.inventory import POOL, SPLIT_NAMES, natural_key
from swindow.data.layouts import IMAGE_FOLDERS
from swindow.data.object_layouts import CLASS_LISTS, ObjectPlaces, class_list, unlike
from swindow.data.paired import Form, Marked, Marks, Paired, annotation_bytes, pictures_below
from swindow.data.yolo_yaml import Yaml, is_description, read_yaml
from swindow.errors import DataError
from swindow.images import name_of

MOST_SHARE = 2.0  # further from 0 than that are no shares of a picture, but pixels
LABEL_FOLDER = "labels"
_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def yolo_places(source: Path) -> ObjectPlaces | None:
    """``images`` and ``labels`` with ``data.yaml``, ``classes.txt`` or ``obj.names``; None where they are not.

    Raises:
        DataError: a description that cannot be understood, or no list of classes.
    """
    if source.is_file():
        if source.suffix.lower() not in (".yaml", ".yml"):
            return None
        about = read_yaml(source)
        if "names" not in about or not any(split in about for split in SPLIT_NAMES):
            raise DataError(f"{name_of(source)}: has no names and train; describe the data set as YOLO does")
        return _described(source, about)
    described = next((source / name for name in _DESCRIPTIONS if is_description(source / name)), None)
    if described is not None:
        return _described(described, read_yaml(described))
    if not source.is_dir():
        return None
    return _by_folders(source) or _darknet(source)


def yolo_form() -> Form:
    """How the files are read."""
    return Form(read=read_yolo_file, word="line", shares=True, first=0)


def read_yolo_file(path: str, faults: Faults) -> Marks | None:
    """What one file says; lines that cannot be understood are told to `faults` and left out."""
    try:
        lines = annotation_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        faults.add("bad-text", path, f"{name_of(path)}: is no text in UTF-8")
        return None
    objects = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            mark = _marked(line.split(), number, path, faults)
            objects += [] if mark is None else [mark]
    return Marks(None, objects)


def _marked(words: Sequence[str], number: int, path: str, faults: Faults) -> Marked | None:
    where = f"{name_of(path)}, line {number}"
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        why = f"{where}: has {len(words)} columns; a box has 5, a polygon the class and an x and y for each of 3 points"
        faults.add("bad-annotation", path, why)
        return None
    try:
        label, values = float(words[0]), tuple(map(float, words[1:]))
    except ValueError:
        label, values = math.nan, ()
    shown = " ".join(words)[:60]
    if not label.is_integer() or not all(map(math.isfinite, values)):
        faults.add("bad-annotation", path, f"{where}: {shown!r} is not a class and finite numbers")
        return None
    if max(map(abs, values)) > MOST_SHARE:
        faults.add("bad-annotation", path, f"{where}: {shown!r} are no shares of the picture, which lie in 0..1")
        return None
    if len(values) == 4:
        x, y, width, height = values
        return Marked(number, int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    across, down = values[::2], values[1::2]
    return Marked(number, int(label), (min(across), min(down), max(across), max(down)), outline=values)


def _described(path: Path, about: Mapping[str, Yaml]) -> ObjectPlaces:
    """What ``data.yaml`` says: folders (or lists) of images, whose labels lie beside them."""
    names = about["names"]
    if isinstance(names, dict):
        numbers = sorted(int(number) if str(number).isdecimal() else -1 for number in names)
        if numbers != list(range(len(names))):
            raise DataError(f"{name_of(path)}: names are numbered {numbers}; number them from 0 without a gap")
        names = [names[number] for number in sorted(names, key=int)]
    if not isinstance(names, list):
        raise DataError(f"{name_of(path)}: names are {names!r}; give a list of them")
    count = about.get("nc")
    if count is not None and count != str(len(names)):
        raise DataError(f"{name_of(path)}: nc is {count}, and there are {len(names)} names; correct one of them")
    base = str(about.get("path") or "")
    pairs: dict[str, Sequence[Paired]] = {}
    for key, split in SPLIT_NAMES.items():
        places = about.get(key)
        if not places:
            continue
        if split in pairs:
            raise DataError(f"{name_of(path)}: has {split} images twice, under two names; remove one")
        listed = places if isinstance(places, list) else [places]
        pairs[split] = [pair for place in listed for pair in _images_at(str(place), base, path)]
    classes = unlike([str(name) for name in names], path)
    return ObjectPlaces(kind="yolo", root=str(path.parent), pairs=pairs, classes=classes).in_order()


def _images_at(place: str, base: str, path: Path) -> list[Paired]:
    """The images of a folder or list; Roboflow's ``../train/images`` lies beside the description all the same."""
    here = path.parent
    tries = [here / base / place, here / place, here / place.removeprefix("../"), Path(base) / place]
    found = next((each for each in tries if os.path.exists(each)), None)  # noqa: PTH110 - exists() raises as is_file() does
    if found is None:
        raise DataError(f"{name_of(path)}: {place!r} is not there; correct the path, or remove it")
    return _listed(found) if found.is_file() else _in_folder(found)


def _by_folders(root: Path) -> ObjectPlaces | None:
    """``images/train`` and ``labels/train``, ``train/images`` and ``train/labels``, or ``images`` and ``labels``."""
    folders: dict[str, list[Path]] = {}
    for folder in subfolders(root):
        if folder.name.lower() in IMAGE_FOLDERS and (root / LABEL_FOLDER).is_dir():
            parts = [inner for inner in subfolders(folder) if inner.name.lower() in SPLIT_NAMES]
            for part in parts or [folder]:
                folders.setdefault(SPLIT_NAMES[part.name.lower()] if parts else POOL, []).append(part)
        elif folder.name.lower() in SPLIT_NAMES and (folder / LABEL_FOLDER).is_dir():
            pictures = [inner for inner in subfolders(folder) if inner.name.lower() in IMAGE_FOLDERS]
            folders.setdefault(SPLIT_NAMES[folder.name.lower()], []).extend(pictures)
    pairs = {split: [pair for place in places for pair in _in_folder(place)] for split, places in folders.items()}
    pairs = {split: rows for split, rows in pairs.items() if rows}
    if not any(pair.file for rows in pairs.values() for pair in rows):
        return None
    return _with_classes(root, pairs)


def _darknet(root: Path) -> ObjectPlaces | None:
    """``obj.names`` and lists of images, with the text beside each image."""
    if not (root / "obj.names").is_file():
        return None
    lists = {SPLIT_NAMES[path.stem.lower()]: path for path in root.glob("*.txt") if path.stem.lower() in SPLIT_NAMES}
    pairs = {split: _listed(path) for split, path in lists.items()} or {POOL: _in_folder(root)}
    return _with_classes(root, pairs) if any(pair.file for rows in pairs.values() for pair in rows) else None


def _with_classes(root: Path, pairs: Mapping[str, Sequence[Paired]]) -> ObjectPlaces:
    classes = class_list(root) or class_list(root / LABEL_FOLDER)
    if classes is None:
        raise DataError(
            f"{name_of(root)}: YOLO's labels are there, and no list of their classes; add a classes.txt with a name on "
            f"each line, or data.yaml"
        )
    return ObjectPlaces(kind="yolo", root=str(root), pairs=dict(pairs), classes=classes).in_order()


def _in_folder(images: Path) -> list[Paired]:
    """All images below a folder, and the labels that have no image."""
    pictures = pictures_below(images)
    labels = _label_of(images / "any.jpg").parent
    pairs = [_paired(name) for name in pictures.values()]
    if labels != images and labels.is_dir():
        for path in sorted(labels.rglob("*.txt")):
            stem = path.relative_to(labels).with_suffix("").as_posix()
            if stem not in pictures and path.name not in CLASS_LISTS:
                pairs.append(Paired(str(images / stem), str(path), there=False))
    return sorted(pairs, key=lambda pair: natural_key(pair.image))


def _listed(path: Path) -> list[Paired]:
    """The images that the lines of a file name, from the file's folder or from where the list was made."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name_of(path)}: cannot be read as a list of images ({error}); save it as UTF-8") from error
    pairs = []
    for line in filter(None, lines):
        parts = Path(line).parts
        tries = [path.parent.joinpath(*parts[start:]) for start in range(len(parts))]
        pairs.append(_paired(str(next(filter(os.path.isfile, tries), tries[0]))))
    return pairs


def _paired(image: str) -> Paired:
    label, there = str(_label_of(Path(image))), os.path.isfile(image)  # noqa: PTH113 - is_file() raises if a name is too long
    return Paired(image, label if os.path.isfile(label) or not there else "", there)  # noqa: PTH113


def _label_of(image: Path) -> Path:
    """Where the text of an image lies: the last folder called images becomes labels, or else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    last = next((place for place in range(len(parts) - 2, -1, -1) if parts[place].lower() in IMAGE_FOLDERS), None)
    if last is not None and os.path.isdir(Path(*parts[:last], LABEL_FOLDER)):  # noqa: PTH112
        parts[last] = LABEL_FOLDER
    return Path(*parts)
