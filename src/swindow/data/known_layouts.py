"""Layouts of well-known data sets, with their classes: ADE20K, Cityscapes, Pascal VOC, and medical volumes."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swindow.data.folders import is_litter, subfolders, walk_files
from swindow.data.inventory import POOL, SPLIT_NAMES, Problem, natural_key
from swindow.data.layouts import Pair, SceneInventory, pair_up, read_masks
from swindow.data.legends import RGB, Legend, make_legend
from swindow.data.volume_files import volume_stem, volume_suffix
from swindow.errors import DataError
from swindow.images import name_of

# The 19 classes that Cityscapes is judged on: name, id in labelIds, colour (cityscapesScripts, helpers/labels.py).
CITYSCAPES: tuple[tuple[str, int, RGB], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
ADE20K_CLASSES = 150


def read_ade20k(root: Path) -> SceneInventory | None:
    """``images/training`` and ``annotations/training``; value 0 is ignored, names are in ``objectInfo150.txt``."""
    if not ((root / "images" / "training").is_dir() and (root / "annotations" / "training").is_dir()):
        return None
    found = read_masks(root)
    if found is None:
        return None
    names = _ade20k_names(root / "objectInfo150.txt")
    found.kind, found.reduce_zero_label = "ade20k", True
    found.legend = make_legend(names, ids=range(1, ADE20K_CLASSES + 1), ignored=(0, 255), source="ADE20K")
    return found


def is_ade20k(root: Path) -> bool:
    """Whether it says so: other sets have folders of the same names."""
    return (root / "objectInfo150.txt").is_file() or root.name.startswith("ADEChallengeData")


def read_cityscapes(root: Path) -> SceneInventory | None:
    """``leftImg8bit/train/CITY`` and ``gtFine/train/CITY``: ``labelTrainIds`` if there are any, or ``labelIds``."""
    images, labels = root / "leftImg8bit", root / "gtFine"
    if not (images.is_dir() and labels.is_dir()):
        return None
    found = SceneInventory(kind="cityscapes", root=str(root))
    masks = [name for name in walk_files(labels) if re.search(r"_label(Train)?Ids\.png$", name)]
    chosen = "_labelTrainIds.png" if any(name.endswith("_labelTrainIds.png") for name in masks) else "_labelIds.png"
    for folder in subfolders(images):
        split = SPLIT_NAMES.get(folder.name.lower())
        of_split = [name for name in masks if Path(name).is_relative_to(labels / folder.name) and name.endswith(chosen)]
        if split is None:
            continue
        if not of_split:
            found.problems.append(_no_masks(folder, split))
            continue
        pictures = [name for name in walk_files(folder) if name.lower().endswith(".png")]
        found.splits[split] = pair_up(pictures, of_split, folder, labels / folder.name, found.problems)
    names, ids, colours = zip(*CITYSCAPES, strict=True)
    train_ids = chosen == "_labelTrainIds.png"
    found.legend = make_legend(
        names,
        ids=range(len(names)) if train_ids else ids,
        colours=colours,
        ignored=(255,) if train_ids else {255, *range(34)} - set(ids),
        source="Cityscapes",
    )
    return found


def read_voc(root: Path) -> SceneInventory | None:
    """``JPEGImages``, ``SegmentationClass``, and the lists of ``ImageSets/Segmentation``; also below ``VOCdevkit``."""
    years = [*root.glob("VOC20*"), *root.glob("VOCdevkit/VOC20*")]
    root = next((place for place in (root, *sorted(years, reverse=True)) if _is_voc(place)), root)
    if not _is_voc(root):
        return None
    found = SceneInventory(kind="voc", root=str(root))
    images = {Path(name).stem: name for name in walk_files(root / "JPEGImages")}
    masks = {Path(name).stem: name for name in walk_files(root / "SegmentationClass")}
    for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        split = SPLIT_NAMES.get(file.stem.lower())
        if split is None:  # trainval is both
            continue
        stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if stems and not any(stem in masks for stem in stems):
            found.problems.append(_no_masks(file, split))
            continue
        found.splits[split] = [
            Pair(images[stem], masks[stem], stem) for stem in stems if _there(stem, images, masks, file, found.problems)
        ]
    colours = [_voc_colour(index) for index in range(len(VOC))]
    # Its background is a class like any other there, so none is named: the published figure counts it.
    legend = make_legend(VOC, colours=colours, ignored=(255,), ignored_colours=(_voc_colour(255),), source="Pascal VOC")
    found.legend = Legend(**{**legend.__dict__, "background": None})
    return found


def read_decathlon(root: Path) -> SceneInventory | None:
    """``imagesTr``, ``labelsTr`` and perhaps ``dataset.json``: the layout of nnU-Net and the Decathlon.

    nnU-Net's files end in the channel: ``case_0000.nii.gz``, ``case_0001.nii.gz``.
    """
    if not ((root / "imagesTr").is_dir() and (root / "labelsTr").is_dir()):
        return None
    about = _json(root / "dataset.json")
    found = SceneInventory(kind="volumes", root=str(root), volumes=True, legend=_json_legend(about, root))
    for split, ending in ((POOL, "Tr"), ("test", "Ts")):
        images, labels = root / f"images{ending}", root / f"labels{ending}"
        if not images.is_dir():
            continue
        if not labels.is_dir():
            found.problems.append(_no_masks(images, split))
            continue
        found.splits[split] = _channels(images, labels, found.problems)
    return found


def read_volumes(root: Path) -> SceneInventory | None:
    """Volumes in any of their layouts: the Decathlon's, folders of images and labels, ``.npz`` files of both."""
    found = read_decathlon(root) or read_masks(root)
    return found if found is not None and found.volumes else read_packed(root)


def read_packed(root: Path) -> SceneInventory | None:
    """``.npz`` files that hold image and label, directly in split folders or, without these, in the root.

    Raises:
        DataError: two folders could be the same split.
    """
    folders: dict[str, Path] = {}
    packed: dict[str, list[str]] = {}
    for folder in subfolders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None or not (names := _packed(folder)):
            continue
        if split in folders:
            raise DataError(
                f"{name_of(root)}: both {folders[split].name!r} and {folder.name!r} could be the {split} volumes; "
                f"rename or remove one"
            )
        folders[split], packed[split] = folder, names
    packed = packed or {POOL: _packed(root)}
    if not any(packed.values()):
        return None
    found = SceneInventory(kind="volumes", root=str(root), volumes=True)
    found.legend = _json_legend(_json(root / "dataset.json"), root)
    for split, names in packed.items():
        pairs = [Pair(name, name, volume_stem(name)) for name in names]
        found.splits[split] = sorted(pairs, key=lambda pair: natural_key(pair.key))
    return found


LAYOUTS: Mapping[str, Callable[[Path], SceneInventory | None]] = {
    "ade20k": read_ade20k,
    "cityscapes": read_cityscapes,
    "voc": read_voc,
    "volumes": read_volumes,
    "masks": read_masks,
}
"""By the prefix that asks for each: ``voc:PATH``."""


def find_layout(root: Path) -> SceneInventory | None:
    """Pictures with masks, or volumes, in whatever layout a folder has; None where it has none.

    Raises:
        DataError: a layout that cannot be understood.
    """
    if is_ade20k(root) and (found := read_ade20k(root)) is not None:
        return found
    readers = (read_cityscapes, read_voc, read_decathlon, read_masks, read_packed)
    return next((found for found in (read(root) for read in readers) if found is not None), None)


def _packed(folder: Path) -> list[str]:
    return [str(path) for path in folder.iterdir() if volume_suffix(path) == ".npz" and not is_litter(path.name)]


def _channels(images: Path, labels: Path, problems: list[Problem]) -> list[Pair]:
    """Labels with the files of their channels: ``case.nii.gz``, or ``case_0000.nii.gz`` and so on."""
    files: dict[str, list[str]] = {}
    for name in walk_files(images):
        if volume_suffix(name):
            files.setdefault(re.sub(r"_\d{4}$", "", volume_stem(name)), []).append(name)
    masks = {volume_stem(name): name for name in walk_files(labels) if volume_suffix(name)}
    pairs = []
    for stem in sorted({*files, *masks}, key=natural_key):
        if stem not in masks:
            message = (
                f"{name_of(files[stem][0])}: has no label {stem} in {name_of(labels)}; add it, or remove the image"
            )
            problems.append(Problem("missing-mask", files[stem][0], message, fatal=True))
        elif stem not in files:
            message = f"{name_of(masks[stem])}: has no image {stem} in {name_of(images)}; add it, or remove the label"
            problems.append(Problem("missing-image", masks[stem], message))
        else:
            first, *more = sorted(files[stem])
            pairs.append(Pair(first, masks[stem], stem, tuple(more)))
    return pairs


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{name_of(path)}: cannot be read as JSON ({error}); repair or remove it") from error


def _json_legend(about: Any, root: Path) -> Legend | None:
    """The ``labels`` of ``dataset.json``: number to name (the Decathlon's way) or name to number (nnU-Net's)."""
    labels = about.get("labels") if isinstance(about, dict) else None
    if not labels:
        return None
    where = name_of(root / "dataset.json")
    try:
        pairs = [
            (int(key), str(value)) if str(key).isdecimal() else (int(value), str(key)) for key, value in labels.items()
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: its labels are no table of numbers and names (regions are not supported)") from error
    ignored = [number for number, name in pairs if name.lower() == "ignore"]
    pairs = sorted((number, name) for number, name in pairs if number not in ignored)
    numbers, names = zip(*pairs, strict=True)
    background = numbers.index(0) if 0 in numbers else None
    return make_legend(names, ids=numbers, ignored=ignored, source=where, background=background)


def _ade20k_names(path: Path) -> tuple[str, ...]:
    """The first of each class's names; plain numbers where the list is not there."""
    if not path.is_file():
        return tuple(f"class {number}" for number in range(1, ADE20K_CLASSES + 1))
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdecimal()]
    if len(names) != ADE20K_CLASSES or not all(names):
        raise DataError(
            f"{name_of(path)}: has {len(names)} classes, not {ADE20K_CLASSES}; fetch it again, or remove it"
        )
    counts = {name: names.count(name) for name in names}
    return tuple(name if counts[name] == 1 else f"{name} ({place + 1})" for place, name in enumerate(names))


def _is_voc(root: Path) -> bool:
    lists = root / "ImageSets" / "Segmentation"
    return lists.is_dir() and (root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir()


def _there(stem: str, images: Mapping[str, str], masks: Mapping[str, str], file: Path, problems: list[Problem]) -> bool:
    for kind, what, there in (("missing-image", "image", images), ("missing-mask", "mask", masks)):
        if stem not in there:
            message = f"{name_of(file)}: names {stem}, which has no {what}; add it, or remove the line"
            problems.append(Problem(kind, f"{file}: {stem}", message, fatal=True))
    return stem in images and stem in masks


def _voc_colour(index: int) -> RGB:
    """The development kit's colours: the index's bits, dealt out to red, green and blue from the highest."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def _no_masks(place: Path, split: str) -> Problem:
    message = f"{name_of(place)}: has no masks, and is not used; add those of {split}, or remove it"
    return Problem("no-masks", str(place), message)
