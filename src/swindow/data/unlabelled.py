"""Images for a model that learns without labels: every picture of a folder, nested or flat, or of any known source.

Labels that happen to be there play no part in learning. They are kept to one side, so that the validation images that
are held out are those that a classifier's run would hold out with the same seed.
"""

import os
from pathlib import Path

from swindow.data.annotations import ObjectConfig
from swindow.data.detection import find_objects, read_objects
from swindow.data.folders import walk_files
from swindow.data.inventory import POOL, SPLIT_NAMES, Inventory, Problem, Rows
from swindow.data.segmentation import find_scenes
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, ImageLimits, name_of


def find_unlabelled(source: str | Path, limits: ImageLimits) -> Inventory | None:
    """The pictures of a folder or of an annotation file, without their masks; None where `source` is neither.

    Raises:
        DataError: volumes, or a folder without pictures.
    """
    scenes = find_scenes(source)
    if scenes is not None:
        if scenes.volumes:
            raise DataError(f"{name_of(source)}: holds volumes, and pretraining takes pictures; save slices as PNG")
        splits = {split: [pair.image for pair in pairs] for split, pairs in scenes.splits.items()}
        return _inventory(scenes.kind, scenes.root, splits)
    objects = find_objects(source)
    if objects is not None:
        found = read_objects(objects, ObjectConfig(), limits)
        return _inventory(found.kind, found.root, {split: part.names for split, part in found.parts.items()})
    return _read_folder(Path(source)) if Path(source).is_dir() else None


def _inventory(kind: str, root: str, splits: dict[str, list[str]]) -> Inventory:
    rows = {split: Rows(names, [""] * len(names)) for split, names in splits.items() if names}
    return Inventory(kind=kind, root=root, splits=rows)


def _read_folder(root: Path) -> Inventory:
    """Every image below a folder; what lies in a folder ``train``, ``val`` or ``test`` is of that split.

    Where there is a split, images that lie in none of these folders are for training.
    """
    found = Inventory(kind="pictures", root=str(root))
    parts: dict[str, tuple[list[str], list[str]]] = {}
    for file in walk_files(root):
        if os.path.splitext(file)[1].lower() not in IMAGE_SUFFIXES:  # noqa: PTH122 - a million Path objects take seconds
            message = f"{name_of(file)}: is no image by its name and is not used; rename or remove it"
            found.problems.append(Problem("not-an-image", file, message))
            continue
        above = Path(file).relative_to(root).parts[:-1]
        split = SPLIT_NAMES.get(above[0].lower(), "") if above else ""
        names, labels = parts.setdefault(split, ([], []))
        names.append(file)
        labels.append(next(iter(above[1 if split else 0 :]), ""))
    if not parts:
        raise DataError(f"{name_of(root)}: holds no images; give a folder of pictures, at any depth")
    if parts.keys() == {""}:
        found.splits[POOL] = Rows(*parts[""])
        return found
    loose, train = parts.pop("", ([], [])), parts.pop("train", ([], []))
    found.splits = {"train": Rows(train[0] + loose[0], train[1] + loose[1])}
    found.splits |= {split: Rows(*part) for split, part in parts.items()}
    return found
