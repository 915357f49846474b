"""``swindow data``."""

import dataclasses
from typing import Annotated, Literal

from swindow.cli.arguments import Flat, Positional, parse
from swindow.data import check, open_data
from swindow.data.annotations import ObjectConfig
from swindow.data.masks import MaskConfig
from swindow.data.shards.packing import PackConfig, pack
from swindow.errors import UnknownName
from swindow.images import ImageLimits
from swindow.progress import watcher


@dataclasses.dataclass(frozen=True)
class Check:
    """Decode every image and mask of a data set and list everything that cannot be used, each with what to do.

    Annotations of objects are read to the last one, each problem named with its file and id. Shards are compared with
    the hashes of their index.
    """

    action: Annotated[Literal["check"], Positional]
    """check, or pack (swindow data pack --help)."""
    data: Annotated[str, Positional]
    """Any DATA that train takes."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""
    task: Literal["auto", "classify", "segment", "detect"] = "auto"
    """What the data is for; auto is to segment where there are masks, to detect where objects have boxes."""
    masks: MaskConfig = MaskConfig()
    """How masks and volumes are read."""
    objects: ObjectConfig = ObjectConfig()
    """What is done with boxes that are not as they should be: what is listed does not depend on it."""


@dataclasses.dataclass(frozen=True)
class Pack:
    """Write images with a label each as shards: tar files (WebDataset) or Parquet (Hugging Face).

    Train with them by naming the place: swindow train OUT. Files keep their bytes unless --size says otherwise.
    """

    action: Annotated[Literal["pack"], Positional]
    """pack."""
    data: Annotated[str, Positional]
    """Any DATA to classify that train takes."""
    out: Annotated[str, Positional]
    """An empty or new folder, or a URL such as s3://bucket/prefix."""
    config: Annotated[PackConfig, Flat] = PackConfig()
    """How they are written."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""


def data_command(words: list[str]) -> int:
    """What can be done with a data set."""
    action = words[0] if words else "--help"
    if action == "pack":
        return _pack(words)
    if action in ("check", "-h", "--help"):
        return _check(words)
    raise UnknownName("action", action, ("check", "pack"))


def _check(words: list[str]) -> int:
    asked = parse(Check, words, prog="swindow data")
    limits = ImageLimits(max_pixels=asked.max_pixels)
    report = check(
        asked.data, limits=limits, task=asked.task, masks=asked.masks, objects=asked.objects, progress=watcher()
    )
    print(report.text())
    return 1 if report.problems else 0


def _pack(words: list[str]) -> int:
    asked = parse(Pack, words, prog="swindow data")
    limits = ImageLimits(max_pixels=asked.max_pixels)
    source = open_data(asked.data, limits=limits, for_training=False, task="classify")
    report = pack(source, asked.out, asked.config, progress=watcher())
    print(report.text())
    return 1 if report.bad else 0
