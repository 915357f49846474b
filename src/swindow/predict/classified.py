"""What is written about classified images: rows, and a contact sheet."""

import collections
import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from swindow import sheets
from swindow.errors import DataError
from swindow.images import ImageLimits, read_image
from swindow.predict.answers import Failure, Prediction
from swindow.predict.drafts import LINES, SHEET_MOST, TABLE, draft


class Tally:
    """What is kept of the answers that go by."""

    def __init__(self) -> None:
        self.classes: collections.Counter[str] = collections.Counter()
        self.failures: list[Failure] = []
        self.first: list[Prediction | Failure] = []

    def add(self, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            self.failures.append(answer)
        else:
            self.classes[answer.top(1)[0][0]] += 1
        if len(self.first) < SHEET_MOST:
            self.first.append(answer)


def write_rows(answers: Iterable[Prediction | Failure], out: Path, top: int) -> Tally:
    """One row per answer in both files, which take their names when all are written."""
    tally = Tally()
    header = [f"{name}_{place}" for place in range(1, top + 1) for name in ("class", "probability")]
    with draft(out / LINES) as lines, draft(out / TABLE) as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["source", "error", *header])
        for answer in answers:
            lines.write(json.dumps(_record(answer, top), ensure_ascii=False) + "\n")
            writer.writerow(_row(answer, top))
            tally.add(answer)
    return tally


def _record(answer: Prediction | Failure, top: int) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"source": answer.source, "error": answer.error}
    best = [{"class": name, "probability": round(share, 6)} for name, share in answer.top(top)]
    return {"source": answer.source, "top": best}


def _row(answer: Prediction | Failure, top: int) -> list[str]:
    if isinstance(answer, Failure):
        return [answer.source, answer.error, *[""] * (2 * top)]
    return [answer.source, "", *(cell for name, share in answer.top(top) for cell in (name, f"{share:.6f}"))]


def contact_sheet(files: list[Path], answers: list[Prediction | Failure], limits: ImageLimits) -> bytes:
    """The first answers as a PNG, each under its picture."""
    tiles = [_tile(path, answer, limits) for path, answer in zip(files[: len(answers)], answers, strict=True)]
    rest = len(files) - len(tiles)
    footer = f"the first {len(tiles)} of {len(files)} images; {rest} more in {TABLE}" if rest else ""
    content = io.BytesIO()
    sheets.sheet(tiles, footer=footer).save(content, "PNG")
    return content.getvalue()


def _tile(path: Path, answer: Prediction | Failure, limits: ImageLimits) -> sheets.Tile:
    if isinstance(answer, Failure):
        return sheets.Tile(None, "cannot be read", path.name)
    (label, share), *_ = answer.top(1)
    try:
        picture = sheets.thumbnail(read_image(path, limits=limits), sheets.SIDE)
    except DataError:  # it was read a moment ago: its answer stands, its picture is gone
        picture = None
    return sheets.Tile(picture, label, path.name, share)
