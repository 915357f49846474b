"""A folder of class folders, with or without train, val and test above them."""

import os
from collections.abc import Iterator
from pathlib import Path

from swindow.data.inventory import POOL, SPLIT_NAMES, Inventory, Problem, Rows
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, name_of

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})


def read_folder(root: Path) -> Inventory:
    """The images below every class folder, at any depth, hidden files left out.

    Raises:
        DataError: no class folders, or two folders for the same split.
    """
    splits = _split_folders(root)
    found = Inventory(kind="folder", root=str(root))
    for split, folder in splits.items():
        found.splits[split] = _read_classes(folder, found.problems, split)
    if POOL not in splits:
        found.problems += _strays(root)
    if not any(rows.names for rows in found.splits.values()) and not any(
        p.kind == "empty-class" for p in found.problems
    ):
        strays = sum(problem.kind == "stray-image" for problem in found.problems)
        have = f"{strays:,} images lie directly in it" if strays else "it holds no images"
        raise DataError(
            f"{name_of(root)}: no class folders ({have}); put the images of every class in a folder of its own, "
            f"or name a CSV file of path and label"
        )
    return found


def is_litter(name: str) -> bool:
    """Hidden files, and what file managers leave behind."""
    return name.startswith(".") or name.lower() in LITTER


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split, or the root itself as the pool.

    ``train`` holds the training images if it holds folders. One that also has images of its own, beside folders that
    are no splits, is a class: ``train`` next to ``bus`` and ``car``.
    """
    splits: dict[str, Path] = {}
    folders = subfolders(root)
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise DataError(
                f"{name_of(root)}: both {splits[split].name!r} and {folder.name!r} could be the {split} images; "
                f"rename or remove one"
            )
        if split is not None:
            splits[split] = folder
    train = splits.get("train")
    if train is None or not subfolders(train) or (len(splits) < len(folders) and _strays(train)):
        return {POOL: root}
    return splits


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, litter left out."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))
    except OSError as error:
        raise DataError(f"{name_of(folder)}: cannot be listed ({error.strerror}); check its permissions") from error


def _strays(folder: Path) -> list[Problem]:
    """Images beside the class folders, where nothing says what they show."""
    return [
        Problem("stray-image", str(path), f"{name_of(path)}: lies in no class folder and is not used; move it into one")
        for path in sorted(folder.iterdir())
        if path.is_file() and not is_litter(path.name) and path.suffix.lower() in IMAGE_SUFFIXES
    ]


def _read_classes(folder: Path, problems: list[Problem], split: str) -> Rows:
    names: list[str] = []
    labels: list[str] = []
    problems += _strays(folder)
    for class_folder in subfolders(folder):
        before = len(names)
        for path in walk_files(class_folder):
            if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 - a million Path objects take seconds
                names.append(path)
            else:
                message = f"{name_of(path)}: is no image by its name and is not used; rename or remove it"
                problems.append(Problem("not-an-image", path, message))
        labels += [class_folder.name] * (len(names) - before)
        if len(names) == before:
            message = f"{name_of(class_folder)}: class folder without images; add some, or remove the folder"
            problems.append(Problem("empty-class", str(class_folder), message, fatal=split in ("train", POOL)))
    return Rows(names, labels)


def walk_files(folder: Path) -> Iterator[str]:
    """Every file below, in sorted order; each folder once, however links lead to it, and never one above."""
    seen = {(status.st_dev, status.st_ino) for status in (parent.stat() for parent in folder.resolve().parents)}
    for here, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)  # noqa: PTH116 - os.walk gives text
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in sorted(files):
            if not is_litter(name):
                yield f"{here}{os.sep}{name}"
