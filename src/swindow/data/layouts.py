"""Where pictures and their masks lie: folders by their usual names, and the layouts of well-known data sets."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from swindow.data.folders import subfolders, walk_files
from swindow.data.inventory import POOL, SPLIT_NAMES, Problem, natural_key
from swindow.data.legends import Legend
from swindow.data.volume_files import volume_suffix
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, name_of

IMAGE_FOLDERS = frozenset({"images", "imgs", "image", "img", "jpegimages", "pictures", "photos", "scans"})
MASK_FOLDERS = frozenset(
    {"masks", "mask", "labels", "label", "annotations", "annotation", "segmentation", "segmentations", "seg", "gt"}
    | {"segmentationclass", "groundtruth", "ground_truth", "targets", "labelmaps"}
)
_IMAGE_ENDS = re.compile(r"[_-](image|img|leftimg8bit|0000)$", re.IGNORECASE)
_MASK_ENDS = re.compile(
    r"[_-](masks?|labels?|seg|segmentation|gt|annotations?|groundtruth|gtfine[_-]label(train)?ids|label(train)?ids|l)$",
    re.IGNORECASE,
)
_STARTS = re.compile(r"^(images?|img|masks?|labels?|seg|gt)[_-]", re.IGNORECASE)
EXAMPLE = (
    "root/images/train + root/masks/train, root/train/images + root/train/masks, or root/images + root/masks, "
    "with files of the same stems"
)


class Pair(NamedTuple):
    """A picture (or volume) and its mask."""

    image: str
    mask: str
    key: str
    """What both are called: their path within the folders, without suffixes."""
    more: tuple[str, ...] = ()
    """Files of further channels."""


@dataclass(kw_only=True)
class SceneInventory:
    """Everything found at one source of pictures with masks."""

    kind: str
    """masks, volumes, ade20k, cityscapes or voc."""
    root: str
    splits: dict[str, list[Pair]] = field(default_factory=dict)
    legend: Legend | None = None
    """Where the layout has its own classes; else they are in a table, or in the masks."""
    reduce_zero_label: bool = False
    volumes: bool = False
    problems: list[Problem] = field(default_factory=list)


class Places(NamedTuple):
    """The folders of one split."""

    images: Path
    masks: Path | None


def read_masks(root: Path) -> SceneInventory | None:
    """Folders of images and masks, or of volumes, by their names; None where there are none.

    Raises:
        DataError: two folders could be the same split, or pictures and volumes are mixed.
    """
    places = find_places(root)
    if places is None:
        return None
    found = SceneInventory(kind="masks", root=str(root))
    for split, (images, masks) in places.items():
        if masks is None:
            message = f"{name_of(images)}: has no folder of masks, and is not used; add {split} masks, or remove it"
            found.problems.append(Problem("no-masks", str(images), message))
            continue
        found.splits[split] = pair_up(_usable(images), _usable(masks), images, masks, found.problems)
    volumes = {bool(volume_suffix(pair.image)) for pairs in found.splits.values() for pair in pairs}
    if len(volumes) > 1:
        raise DataError(f"{name_of(root)}: holds both pictures and volumes; give each a source of its own")
    found.volumes = volumes == {True}
    found.kind = "volumes" if found.volumes else "masks"
    return found


def find_places(root: Path) -> dict[str, Places] | None:
    """The image and mask folders of every split, or of all under `POOL`; None where there are none."""
    candidates: dict[tuple[str, str], list[Path]] = {}
    for folder in _tree(root):
        split, role = _meaning(folder.relative_to(root).parts)
        if role and next(iter(_usable(folder)), None) is not None:  # detection's ``labels`` are text
            candidates.setdefault((split, role), []).append(folder)
    roles = {(split, role): _outermost(folders, split, role, root) for (split, role), folders in candidates.items()}
    splits = {split for split, _ in roles if split != POOL}
    if ("train", "image") in roles and ("train", "mask") in roles:
        return {
            split: Places(roles[split, "image"], roles.get((split, "mask")))
            for split in ("train", "val", "test")
            if split in splits and (split, "image") in roles
        }
    judged = [split for split in ("val", "test") if (split, "image") in roles and (split, "mask") in roles]
    if (POOL, "image") in roles and (POOL, "mask") in roles:
        divided = tuple(f"{roles[split, 'image']}{os.sep}" for split in judged)
        if any(not name.startswith(divided) for name in _usable(roles[POOL, "image"])):  # else it only holds these
            return {POOL: Places(roles[POOL, "image"], roles[POOL, "mask"])}
    return {split: Places(roles[split, "image"], roles[split, "mask"]) for split in judged} or None


def pair_up(
    images: Iterable[str], masks: Iterable[str], image_root: Path, mask_root: Path, problems: list[Problem]
) -> list[Pair]:
    """Files that belong together by their names; what has no twin becomes a problem."""
    keyed = {_key(name, image_root, ()): name for name in images}
    groups: dict[str, list[str]] = {}
    for name in masks:
        groups.setdefault(_key(name, mask_root, ()), []).append(name)
    loose: dict[str, list[str]] = {}
    for names in groups.values():
        for name in names:
            loose.setdefault(_key(name, mask_root, (_MASK_ENDS, _STARTS)), []).append(name)
    pairs, used = [], set()
    for key, image in keyed.items():
        twins = groups.get(key) or loose.get(_key(image, image_root, (_IMAGE_ENDS, _STARTS)), [])
        if len(twins) > 1:
            shown = " and ".join(name_of(twin) for twin in twins[:2])
            message = f"{name_of(image)}: {shown} could both be its mask; remove one"
            problems.append(Problem("two-masks", image, message, fatal=True))
        elif not twins:
            message = f"{name_of(image)}: has no mask of its name in {name_of(mask_root)}; add it, or remove the image"
            problems.append(Problem("missing-mask", image, message, fatal=True))
        else:
            pairs.append(Pair(image, twins[0], key))
        used.update(twins)
    for names in groups.values():
        for name in names:
            if name not in used:
                message = (
                    f"{name_of(name)}: has no image of its name in {name_of(image_root)}; add it, or remove the mask"
                )
                problems.append(Problem("missing-image", name, message))
    return sorted(pairs, key=lambda pair: natural_key(pair.key))


def _tree(root: Path) -> list[Path]:
    """Folders down to two levels; not below those whose names mean nothing here, which may hold a million files."""
    top = [folder for folder in subfolders(root) if _words(folder.name)]
    return [*top, *(below for folder in top for below in subfolders(folder))]


def _meaning(parts: Sequence[str]) -> tuple[str, str]:
    """Split and role ("image" or "mask") that the names of a folder say; the role is empty where they say none.

    A name may say both: ``train_images``.
    """
    splits: list[str] = []
    roles: list[str] = []
    for part in parts:
        meant = _words(part)
        if not meant:
            return POOL, ""
        splits += [split for split, _ in meant if split]
        roles += [role for _, role in meant if role]
    if len(splits) > 1 or len(roles) != 1:
        return POOL, ""
    return (splits[0] if splits else POOL), roles[0]


def _words(name: str) -> list[tuple[str, str]]:
    """Split and role that each word of a folder's name says; none at all where one of them says neither."""
    whole = name.lower()
    words = [whole] if whole in MASK_FOLDERS else re.split(r"[_\-\s.]+", whole)
    meant = [(SPLIT_NAMES.get(word, ""), _role(word)) for word in words]
    return meant if all(split or role for split, role in meant) else []


def _role(word: str) -> str:
    return "image" if word in IMAGE_FOLDERS else "mask" if word in MASK_FOLDERS else ""


def _outermost(folders: Sequence[Path], split: str, role: str, root: Path) -> Path:
    if len(folders) > 1:
        shown = " and ".join(repr(str(folder.relative_to(root))) for folder in folders[:2])
        what = "" if split == POOL else f"{split} "
        raise DataError(f"{name_of(root)}: both {shown} could be the {what}{role}s; rename or remove one")
    return folders[0]


def _usable(folder: Path) -> Iterable[str]:
    for name in walk_files(folder):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million Path objects take seconds
        if suffix in IMAGE_SUFFIXES or volume_suffix(name) in (".npy", ".nii", ".nii.gz"):
            yield name


def _key(name: str, root: Path, ends: Sequence[re.Pattern[str]]) -> str:
    """A file's path within its folder without suffix, and without what only says that it is a mask (or an image)."""
    inner = os.path.relpath(name, root).replace(os.sep, "/")
    suffix = volume_suffix(inner) or os.path.splitext(inner)[1]  # noqa: PTH122
    folder, _, stem = inner[: len(inner) - len(suffix)].rpartition("/")
    for end in ends:
        stem = end.sub("", stem) or stem
    return f"{folder}/{stem}" if folder else stem
