"""Class names of ImageNet and COCO, in the order of published heads; where they are from is in the README beside this.

Every class of ImageNet is a WordNet noun with an id of its own, its synset; all lists are sorted by it. COCO's 80 have
the numbers 1 to 90, of which ten name nothing.
"""

import functools
import gzip
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

from swindow.errors import UnknownName

LISTS = {"imagenet1k": "1", "imagenet22k": "2", "imagenet21k": "g"}
NOTHING = "N/A"
"""What a number that COCO never gave to a class is called, in every published list."""
_TEDDY, _CHEMISE = "n04399382", "n03013580"


class Class(NamedTuple):
    """One class: its synset, and a name that no other class has."""

    synset: str
    name: str


def imagenet1k() -> tuple[str, ...]:
    """Names of the 1,000 classes of ImageNet-1k (ILSVRC 2012)."""
    return _names("1")


def imagenet22k() -> tuple[str, ...]:
    """Names of the 21,841 classes of ImageNet-22k (the release of autumn 2011), as in Swin's 22k heads."""
    return _names("2")


def imagenet21k() -> tuple[str, ...]:
    """Names of Google's 21,843 classes, as in ViT's 21k heads: those of ImageNet-22k and two that it lost."""
    return _names("g")


@functools.cache
def coco() -> tuple[str, ...]:
    """Names of COCO's 80 classes of objects in the order of their numbers, as in OpenMMLab's heads."""
    return tuple(name for name in coco_by_id() if name != NOTHING)


@functools.cache
def coco_by_id() -> tuple[str, ...]:
    """The same where each stands at its own number, 0 to 90, as in DETR's heads; the others are ``N/A``."""
    lines = files(__name__).joinpath("coco.tsv").read_text(encoding="utf-8").splitlines()
    named = {int(number): name for number, name in (line.split("\t") for line in lines)}
    return tuple(named.get(number, NOTHING) for number in range(max(named) + 1))


def coco_from_1() -> tuple[str, ...]:
    """The same from number 1 on, as in torchvision's heads, whose number 0 is background."""
    return coco_by_id()[1:]


def class_names(name: str) -> tuple[str, ...]:
    """The names of ``imagenet1k``, ``imagenet21k``, ``imagenet22k``, ``coco``, ``coco_by_id`` or ``coco_from_1``.

    Raises:
        UnknownName: no such list.
    """
    others: dict[str, Callable[[], tuple[str, ...]]] = {
        "coco": coco,
        "coco_by_id": coco_by_id,
        "coco_from_1": coco_from_1,
    }
    if name not in LISTS and name not in others:
        raise UnknownName("list of classes", name, [*LISTS, *others])
    return others[name]() if name in others else _names(LISTS[name])


@functools.cache
def map_22k_to_1k() -> tuple[int, ...]:
    """For each class of ImageNet-1k the row of a 22k head that knows it: ``head.weight[list(map_22k_to_1k())]``.

    Synset by synset, but for teddy (850), which ImageNet-22k lacks: it gets the row that Microsoft's ``map22kto1k.txt``
    gives it, the other teddy, which is worn. That file counts rows as Google does and so is, from pier (718) on, one or
    two rows off in a head of 21,841.
    """
    row = {entry.synset: number for number, entry in enumerate(_members("2"))}
    row[_TEDDY] = row[_CHEMISE]
    return tuple(row[entry.synset] for entry in _members("1"))


@functools.cache
def _names(mark: str) -> tuple[str, ...]:
    return tuple(entry.name for entry in _members(mark))


@functools.cache
def _members(mark: str) -> tuple[Class, ...]:
    """The classes of one list, whose letter stands in the file's second column."""
    rows = (line.split("\t") for line in _text().splitlines())
    return tuple(Class(synset, name) for synset, marks, name in rows if mark in marks)


def _text() -> str:
    packed = files(__name__).joinpath("imagenet.tsv.gz").read_bytes()
    return gzip.decompress(packed).decode()
