"""What is written about objects: COCO results, overlays with boxes and masks, rows, a sheet."""

import collections
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from PIL import Image
from torch import Tensor

from swindow import sheets
from swindow.checkpoints.files import write_atomic
from swindow.data.legends import RGB
from swindow.errors import ConfigError
from swindow.overlays import draw_detections, legend, with_legend
from swindow.predict import segmented
from swindow.predict.answers import Counted, Failure, Found, count_text
from swindow.predict.coco import category_rows, image_row, result_rows
from swindow.predict.drafts import LINES, OURS, OVERLAYS, SHEET_MOST, TABLE, draft, free_name

RESULTS, IMAGES = "detections.json", "images.json"
THRESHOLD = 0.5
"""The score from which objects are drawn, listed and counted."""
SEEN_SIDE, OVERLAY_SIDE = 800, 1600
"""Longest side of an overlay in pixels: smaller pictures are enlarged, larger ones reduced."""
SHORT_SIDE, LONGEST_SIDE = 240, 6400
"""Of long and narrow pictures, the short side that an overlay has if the long one stays below the second."""
TILE_SIDE = 220
_COLUMNS = ("source", "error", "image_id", "height", "width", "class", "score", "left", "top", "right", "bottom")


class Target(NamedTuple):
    """A picture and where its overlay goes."""

    source: Path
    overlay: Path


class Tally:
    """What is kept of the answers that go by."""

    def __init__(self) -> None:
        self.classes: collections.Counter[str] = collections.Counter()
        self.failures: list[Failure] = []
        self.first: list[Counted | Failure] = []
        self.tiles: list[sheets.Tile] = []

    def add(self, done: Counted | Failure, tile: sheets.Tile | None) -> None:
        if isinstance(done, Failure):
            self.failures.append(done)
        else:
            self.classes.update(done.counts)
        if len(self.first) < SHEET_MOST:
            self.first.append(done)
            self.tiles += [] if tile is None else [tile]


def targets(sources: Sequence[Path], out: Path) -> list[Target]:
    """Names for all overlays: the source's stem, with a number where that is taken.

    Raises:
        ConfigError: a file would be replaced that was not written by a call like this.
    """
    taken: set[str] = set()
    found = [Target(path, out / OVERLAYS / f"{free_name(path.stem, taken)}.jpg") for path in sources]
    names = [out / RESULTS, out / IMAGES, *(target.overlay for target in found)]
    clash = None if are_ours(out) else next((path for path in names if path.exists()), None)
    if clash is not None:
        raise ConfigError(f"{clash}: is there already, and no prediction of before; give another --out")
    return found


def are_ours(out: Path) -> bool:
    """Whether the overlays in `out`, if there are any, are from an earlier call."""
    return (out / OVERLAYS / OURS).exists() or segmented.are_ours(out)


def write_all(
    found: Iterable[tuple[Target, Tensor | None, Found | Failure]], out: Path, classes: Sequence[str], threshold: float
) -> Tally:
    """The overlay of each answer as it comes, and its rows in four files, which take their names at the end."""
    tally = Tally()
    (out / OVERLAYS).mkdir(parents=True, exist_ok=True)
    (out / OVERLAYS / OURS).write_text("Overlays here were written by swindow predict, and are replaced by it.\n")
    with ExitStack() as stack:
        lines, table, results, images = (
            stack.enter_context(draft(out / name)) for name in (LINES, TABLE, RESULTS, IMAGES)
        )
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow([*_COLUMNS, "overlay"])
        rows, pictures = (
            _Array(results),
            _Array(images, before=f'{{"categories": {_json(category_rows(classes))},\n"images": '),
        )
        for number, (target, pixels, answer) in enumerate(found, start=1):
            done, tile = _kept(target, pixels, answer, threshold, wanted=len(tally.first) < SHEET_MOST)
            if isinstance(answer, Found):
                rows.extend(result_rows(answer.detections, number, answer.source))
                pictures.extend([image_row(number, answer.source, answer.size)])
            lines.write(_json(_record(answer, done, number, out)) + "\n")
            writer.writerows(_rows(answer, done, number, out))
            tally.add(done, tile)
        rows.close("\n")
        pictures.close(',\n"annotations": []}\n')
    return tally


def contact_sheet(tally: Tally, count: int, classes: Sequence[str], colours: Sequence[RGB]) -> bytes:
    """The first overlays as a PNG, with the numbers of objects under each, and a legend."""
    rest = count - len(tally.tiles)
    footer = f"the first {len(tally.tiles)} of {count} images; {rest} more in {TABLE}" if rest else ""

    def key(width: int) -> Image.Image:
        return _key(tally.classes, classes, colours, width)

    content = io.BytesIO()
    sheets.sheet(tally.tiles, side=TILE_SIDE, footer=footer, key=key if tally.classes else None).save(content, "PNG")
    return content.getvalue()


class _Array:
    """A JSON array that is written item by item."""

    def __init__(self, file: TextIO, before: str = "") -> None:
        self.file, self.separator = file, "\n"
        file.write(before + "[")

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self.file.write(self.separator + _json(item))
            self.separator = ",\n"

    def close(self, after: str) -> None:
        self.file.write("\n]" + after)


def _kept(
    target: Target, pixels: Tensor | None, answer: Found | Failure, threshold: float, *, wanted: bool
) -> tuple[Counted | Failure, sheets.Tile | None]:
    """An answer with its overlay in a file; and its picture for the sheet, if that is wanted."""
    name = target.source.name
    if isinstance(answer, Failure) or pixels is None:
        assert isinstance(answer, Failure)  # noqa: S101 - what was not read has no answer
        return answer, sheets.Tile(None, "cannot be used", name) if wanted else None
    shown, counts = answer.above(threshold), answer.counts(threshold)
    done = Counted(source=answer.source, size=answer.size, threshold=threshold, counts=counts, overlay=target.overlay)
    drawn = draw_detections(pixels, shown, answer.classes, answer.colours, side=_side(*answer.size))
    key = _key(counts, answer.classes, answer.colours, max(drawn.width, 320))
    title = f"{name}: {sum(counts.values()):,} with a score of {threshold:g} or more"
    content = io.BytesIO()
    with_legend(drawn, key, title=title).save(content, "JPEG", quality=90, subsampling=0)
    write_atomic(target.overlay, content.getvalue())
    if not wanted:
        return done, None
    small = draw_detections(pixels, shown, answer.classes, answer.colours, side=TILE_SIDE, tags=False)
    return done, sheets.Tile(small, count_text(done), name)


def _side(height: int, width: int) -> int:
    """The longest side of a picture's overlay."""
    narrow = math.ceil(SHORT_SIDE * max(height, width) / min(height, width))
    return min(max(height, width, SEEN_SIDE), max(OVERLAY_SIDE, min(narrow, LONGEST_SIDE)))


def _key(
    counts: collections.Counter[str] | dict[str, int], classes: Sequence[str], colours: Sequence[RGB], width: int
) -> Image.Image:
    numbers = [counts.get(name, 0) for name in classes]
    return legend(classes, colours, counts=numbers, width=width)


def _record(answer: Found | Failure, done: Counted | Failure, number: int, out: Path) -> dict[str, Any]:
    if isinstance(answer, Failure) or isinstance(done, Failure):
        return {"source": answer.source, "error": done.error if isinstance(done, Failure) else ""}
    return {
        "source": done.source,
        "image_id": number,
        "size": {"height": done.size[0], "width": done.size[1]},
        "counts": dict(done.counts),
        "objects": [
            {"class": name, "score": score, "box": box} for name, score, box in _listed(answer, done.threshold)
        ],
        "files": {"overlay": _within(done.overlay, out)},
    }


def _rows(answer: Found | Failure, done: Counted | Failure, number: int, out: Path) -> Iterator[list[Any]]:
    """A row for each object, or one without for a picture that has none."""
    if isinstance(answer, Failure) or isinstance(done, Failure):
        error = done.error if isinstance(done, Failure) else ""
        yield [answer.source, error, *[""] * (len(_COLUMNS) - 1)]
        return
    about, overlay = [done.source, "", number, *done.size], _within(done.overlay, out)
    objects = list(_listed(answer, done.threshold))
    for name, score, box in objects:
        yield [*about, name, score, *box, overlay]
    if not objects:
        yield [*about, *[""] * 6, overlay]


def _listed(answer: Found, threshold: float) -> Iterator[tuple[str, float, list[float]]]:
    """Class, score, and left, top, right and bottom of each object, as they are written."""
    shown = answer.above(threshold)
    for label, score, box in zip(shown.labels.tolist(), shown.scores.tolist(), shown.boxes.tolist(), strict=True):
        yield answer.classes[label], round(score, 6), [round(side, 2) for side in box]


def _within(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
