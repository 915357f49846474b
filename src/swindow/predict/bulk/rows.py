"""Answers as rows of a part: the columns of each task, and files of them as Parquet or as JSON lines."""

import collections
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from swindow.errors import require
from swindow.predict.answers import Failure, Found, Prediction, Segmentation
from swindow.predict.bulk.reading import Picture
from swindow.predict.coco import mask_in_runs

Format = Literal["parquet", "jsonl"]
AT_ONCE = 1000
"""Rows that are held before they are written."""
Row = dict[str, Any]


class Kept(NamedTuple):
    """What of an answer is written."""

    top: int
    """Classes of a classifier."""
    threshold: float
    """The score from which a detector's objects are written."""
    task: str
    """classify, segment or detect."""


def row_of(picture: Picture, answer: Prediction | Segmentation | Found | Failure, kept: Kept, mask: str | None) -> Row:
    """The row of one image: the same columns for all of one task, None where there is nothing to say."""
    row: Row = {"source": _text(picture.source), "key": None if picture.key is None else _text(picture.key)}
    if isinstance(answer, Failure):
        return row | {"error": _text(answer.error)} | dict.fromkeys(_columns(kept.task))
    row["error"] = None
    if isinstance(answer, Prediction):
        best = [{"class": name, "probability": round(share, 6)} for name, share in answer.top(kept.top)]
        return row | {"top": best}
    height, width = answer.mask.shape if isinstance(answer, Segmentation) else answer.size
    row |= {"height": height, "width": width}
    if isinstance(answer, Segmentation):
        return row | {"coverage": {name: round(share, 6) for name, share in answer.coverage().items()}, "mask": mask}
    return row | {"objects": list(_objects(answer, kept.threshold))}


def counted(row: Row) -> collections.Counter[str]:
    """Of a row, the class that it names, those that cover something, or those of its objects with their number."""
    if row["error"] is not None:
        return collections.Counter()
    if "top" in row:
        return collections.Counter([row["top"][0]["class"]])
    if "coverage" in row:
        return collections.Counter(name for name, share in row["coverage"].items() if share)
    return collections.Counter(one["class"] for one in row["objects"])


def _objects(answer: Found, threshold: float) -> Iterator[Row]:
    """The surest first, with their masks as COCO's compressed runs where there are masks."""
    shown = answer.above(threshold)
    for index, (label, score, box) in enumerate(
        zip(shown.labels.tolist(), shown.scores.tolist(), shown.boxes.tolist(), strict=True)
    ):
        runs = None if shown.masks is None else mask_in_runs(shown, index)
        sides = [round(side, 2) for side in box]
        yield {"class": answer.classes[label], "score": round(score, 6), "box": sides, "segmentation": runs}


class Writer(Protocol):
    """A file of rows that is being written."""

    def add(self, row: Row) -> None:
        """Write one more."""


@contextlib.contextmanager
def open_rows(path: Path, shape: Format, task: str) -> Iterator[Writer]:
    """A new file of rows at a path of this machine."""
    if shape == "jsonl":
        with path.open("w", encoding="utf-8", newline="") as file:
            yield _Lines(file)
        return
    arrow, parquet = require("pyarrow", extra="shards"), require("pyarrow.parquet", extra="shards")
    schema = _schema(arrow, task)
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        table = _Table(arrow, file, schema)
        yield table
        table.flush()


class _Lines:
    def __init__(self, file: Any) -> None:
        self.file = file

    def add(self, row: Row) -> None:
        self.file.write(json.dumps({name: value for name, value in row.items() if value is not None}) + "\n")


class _Table:
    def __init__(self, arrow: Any, file: Any, schema: Any) -> None:
        self.arrow, self.file, self.schema, self.rows = arrow, file, schema, list[Row]()

    def add(self, row: Row) -> None:
        if row.get("coverage") is not None:  # Arrow takes a map as a list of pairs
            row = row | {"coverage": list(row["coverage"].items())}
        self.rows.append(row)
        if len(self.rows) == AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.file.write_table(self.arrow.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []


def _schema(arrow: Any, task: str) -> Any:
    text, real, whole = arrow.string(), arrow.float64(), arrow.int32()
    runs = arrow.struct([("size", arrow.list_(whole)), ("counts", text)])
    sides = arrow.list_(real)
    kinds: Mapping[str, Any] = {
        "top": arrow.list_(arrow.struct([("class", text), ("probability", real)])),
        "height": whole,
        "width": whole,
        "coverage": arrow.map_(text, real),
        "mask": text,
        "objects": arrow.list_(
            arrow.struct([("class", text), ("score", real), ("box", sides), ("segmentation", runs)])
        ),
    }
    first = [("source", text), ("key", text), ("error", text)]
    return arrow.schema([*first, *((name, kinds[name]) for name in _columns(task))])


def _columns(task: str) -> tuple[str, ...]:
    """Beside source, key and error."""
    return {
        "classify": ("top",),
        "segment": ("height", "width", "coverage", "mask"),
        "detect": ("height", "width", "objects"),
    }[task]


def _text(name: str) -> str:
    """Names that are no valid text (a path's stray bytes) as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
