"""``swindow data``."""

import dataclasses
from typing import Annotated, Literal

from swindow.cli.arguments import Positional, parse
from swindow.data import check
from swindow.data.annotations import ObjectConfig
from swindow.data.masks import MaskConfig
from swindow.images import ImageLimits
from swindow.progress import watcher


@dataclasses.dataclass(frozen=True)
class Check:
    """Decode every image and mask of a data set and list everything that cannot be used, each with what to do.

    Annotations of objects are read to the last one, each problem named with its file and id.
    """

    action: Annotated[Literal["check"], Positional]
    """check is what there is."""
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


def data_command(words: list[str]) -> int:
    """What can be done with a data set."""
    asked = parse(Check, words, prog="swindow data")
    limits = ImageLimits(max_pixels=asked.max_pixels)
    report = check(
        asked.data, limits=limits, task=asked.task, masks=asked.masks, objects=asked.objects, progress=watcher()
    )
    print(report.text())
    return 1 if report.problems else 0
