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
