"""Where annotations of objects lie: COCO JSON, Pascal VOC XML or YOLO text, by the usual names of files and folders."""

import mmap
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from swindow.data.folders import subfolders
from swindow.data.inventory import POOL, SPLIT_NAMES
from swindow.data.layouts import IMAGE_FOLDERS
from swindow.data.paired import Paired
from swindow.errors import DataError
from swindow.images import name_of

COCO_FOLDERS = frozenset({"annotations", "annotations_coco", "annotation", "coco"})
_COCO_WORDS = frozenset({"instances", "instance", "annotations", "annotation", "coco", "bbox", "boxes", "detection"})
_ORDER = (POOL, "train", "val", "test")
CLASS_LISTS = ("classes.txt", "obj.names", "labels.txt")
LOOKED_FOR = 50  # images of a file by which their folder is chosen
EXAMPLE = (
    "a COCO JSON, a folder with annotations/train.json and images/, Pascal VOC's Annotations/ and JPEGImages/, or "
    "YOLO's images/ and labels/ with data.yaml"
)


@dataclass(kw_only=True)
class ObjectPlaces:
    """What annotations there are at one source, before they are read."""

    kind: str
    """coco, voc-boxes or yolo."""
    root: str
    files: dict[str, Path] = field(default_factory=dict)
    """COCO's JSON of every split, or of all under `POOL`."""
    pairs: dict[str, Sequence[Paired]] = field(default_factory=dict)
    """The pictures of every split with their files, of the other two."""
    classes: tuple[str, ...] | None = None
    """Where a list beside the annotations has them."""
    note: str = ""
    """What was taken for granted, to be said aloud."""

    def in_order(self) -> "ObjectPlaces":
        """The same, train before val before test."""
        self.files = {split: self.files[split] for split in _ORDER if split in self.files}
        self.pairs = {split: self.pairs[split] for split in _ORDER if split in self.pairs}
        return self


def coco_places(source: Path) -> ObjectPlaces | None:
    """A COCO JSON with those of other splits beside it, or a folder that holds such; None where it is neither.

    Raises:
        DataError: two files could be the same split.
    """
    if source.is_file():
        return _coco_beside(source) if source.suffix.lower() == ".json" else None
    found = _by_split(source, named=True) or _by_split(source, named=False)
    if not found:
        return None
    if len(found) > 1 and POOL in found:
        del found[POOL]
    for split, files in found.items():
        if len(files) > 1:
            shown = " and ".join(repr(str(file.relative_to(source))) for file in files[:2])
            what = "annotations" if split == POOL else f"{split} annotations"
            raise DataError(f"{name_of(source)}: both {shown} could be its {what}; name one of them, or remove one")
    chosen = {split: paths[0] for split, paths in found.items()}
    return ObjectPlaces(kind="coco", root=str(source), files=chosen).in_order()


def coco_images(file: Path, split: str) -> Callable[[Sequence[str]], Callable[[str], str | None]]:
    """How to find the images that a COCO JSON names."""

    def find(names: Sequence[str]) -> Callable[[str], str | None]:
        sample = (
            [names[place] for place in np.unique(np.linspace(0, len(names) - 1, LOOKED_FOR).astype(int))]
            if names
            else []
        )
        folders = list(_image_folders(file, split))
        counts = [sum(os.path.isfile(folder / name) for name in sample) for folder in folders]  # noqa: PTH113
        folder = folders[int(np.argmax(counts))]

        def locate(name: str) -> str | None:
            path = os.path.join(folder, name)  # noqa: PTH118 - for a hundred thousand names
            return path if os.path.isfile(path) else None  # noqa: PTH113 - is_file() raises if a name is too long

        return locate

    return find


def class_list(root: Path) -> tuple[str, ...] | None:
    """The names in a file of one class a line, a number before each or not; None where there is none.

    Raises:
        DataError: it cannot be read, or has a name twice.
    """
    path = next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name_of(path)}: cannot be read as a list of classes ({error}); save it as UTF-8") from error
    names = [line for line in lines if line]
    numbered = [re.fullmatch(rf"{row}\s+(\S.*)", name) for row, name in enumerate(names)]
    names = [
        found[1] if found is not None and all(numbered) else name for found, name in zip(numbered, names, strict=True)
    ]
    return unlike(names, path)


def unlike(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """The names of the classes in `path`.

    Raises:
        DataError: there are none, or one is there twice.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"class {twice[0]!r} is there twice" if twice else "has no class"
        raise DataError(f"{name_of(path)}: {what}; give each class a line and a name of its own")
    return tuple(names)


def _coco_beside(file: Path) -> ObjectPlaces:
    """The file, and where it is the training split, those of the other splits that lie where it does."""
    split = _split_of(file) or POOL
    root = file.parent
    if split != "train":
        return ObjectPlaces(kind="coco", root=str(root), files={split: file})
    found: dict[str, list[Path]] = {}
    for path in filter(_is_coco, _siblings(file)):
        found.setdefault(_split_of(path) or "", []).append(path)
    others = {name: found[name][0] for name in ("val", "test") if len(found.get(name, ())) == 1}
    note = ", ".join(f"{name} from {path.name}" for name, path in others.items())
    return ObjectPlaces(kind="coco", root=str(root), files={split: file} | others, note=note).in_order()


def _siblings(file: Path) -> list[Path]:
    """JSON files that differ from it by the name of the split, in its folder or in one beside that."""
    word = next(word for word in _words(file) if SPLIT_NAMES.get(word) == "train")
    beside = sorted(file.parent.glob("*.json"))
    if SPLIT_NAMES.get(file.parent.name.lower()) == "train":
        beside += [folder / file.name for folder in subfolders(file.parent.parent) if (folder / file.name).is_file()]
    rest = [part for part in _words(file) if part != word]
    return [path for path in beside if path != file and [p for p in _words(path) if p not in SPLIT_NAMES] == rest]


def _by_split(root: Path, *, named: bool) -> dict[str, list[Path]]:
    """The JSON files of objects in a folder: those with the usual names, or else with any."""
    found: dict[str, list[Path]] = {}
    for file in _candidates(root):
        split = _split_of(file)
        if split is not None and _is_named(file) == named and _is_coco(file):
            found.setdefault(split, []).append(file)
    return found


def _candidates(root: Path) -> list[Path]:
    folders = [root]
    for folder in subfolders(root):
        if folder.name.lower() in COCO_FOLDERS or folder.name.lower() in SPLIT_NAMES:
            folders.append(folder)
    return [file for folder in folders for file in sorted(folder.glob("*.json"))]


def _split_of(file: Path) -> str | None:
    """The split that a file's name says, `POOL` if it says none, and None if it says two."""
    splits = {SPLIT_NAMES[word] for word in _words(file) if word in SPLIT_NAMES}
    if len(splits) > 1:
        return None
    return splits.pop() if splits else POOL


def _is_named(file: Path) -> bool:
    return all(word in SPLIT_NAMES or word in _COCO_WORDS for word in _words(file))


def _is_coco(file: Path) -> bool:
    """Whether a file holds what COCO JSON does, by its words alone."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return all(data.find(word) >= 0 for word in (b'"images"', b'"annotations"', b'"categories"'))
    except (OSError, ValueError):  # ValueError: it is empty
        return False


def _words(file: Path) -> list[str]:
    """What a file is called, without years: ``instances_train2017.json``; the folder too, if that is a split."""
    words = [word for word in re.split(r"[_\-\s.\d]+", file.stem.lower()) if word]
    folder = file.parent.name.lower()
    return [*words, folder] if folder in SPLIT_NAMES else words


def _image_folders(file: Path, split: str) -> list[Path]:
    """Folders in which the images of a JSON may lie, the likeliest first."""
    here = file.parent
    ends = [re.sub(r"^(instances|annotations)_", "", file.stem), file.stem]
    ends += [word for word, meant in SPLIT_NAMES.items() if meant == split]
    folders = [here]
    for base in (here, here / ".." if here.name in ("", "..") else here.parent):
        pictures = [base, *(folder for folder in subfolders(base) if folder.name.lower() in IMAGE_FOLDERS)]
        folders += [folder / end for folder in pictures for end in ends] + pictures
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
