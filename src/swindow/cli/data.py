"""``swindow data``."""

import dataclasses
from typing import Annotated, Literal

from swindow.cli.arguments import Positional, parse
from swindow.data import check
from swindow.images import ImageLimits
from swindow.progress import watcher


@dataclasses.dataclass(frozen=True)
class Check:
    """Decode every image of a data set and list everything that cannot be used, each with what to do."""

    action: Annotated[Literal["check"], Positional]
    """check is what there is."""
    data: Annotated[str, Positional]
    """Any DATA that train takes."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""


def data_command(words: list[str]) -> int:
    """What can be done with a data set."""
    asked = parse(Check, words, prog="swindow data")
    report = check(asked.data, limits=ImageLimits(max_pixels=asked.max_pixels), progress=watcher())
    print(report.text())
    return 1 if report.problems else 0
