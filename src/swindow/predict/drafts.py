"""The files of predictions: their names, and that they are there whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from swindow.errors import ConfigError

LINES, TABLE, SHEET = "predictions.jsonl", "predictions.csv", "sheet.png"
SHEET_MOST = 64
"""Images on a contact sheet."""
OVERLAYS = "overlays"
OURS = ".swindow"
"""In a folder of masks or overlays: they are from here, and may be replaced."""


@contextlib.contextmanager
def draft(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when it is complete, and is gone if it never is.

    Names that are no valid text (a path's stray bytes) are written as escapes, which JSON reads back.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with unfinished.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{out}: cannot write predictions here ({error.strerror}); give another --out") from error


def free_name(stem: str, taken: set[str]) -> str:
    """A name that differs from those taken in more than upper and lower case, which some file systems do not tell."""
    name, number = stem, 2
    while name.casefold() in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name.casefold())
    return name
