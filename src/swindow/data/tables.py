"""A CSV, TSV or Parquet table of image paths and labels."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swindow.data.inventory import POOL, SPLIT_NAMES, Inventory, Problem, Rows
from swindow.errors import DataError, require
from swindow.images import name_of

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
COLUMNS = {"path": ("path", "image", "file", "filename"), "label": ("label", "class", "target"), "split": ("split",)}


def read_table(path: Path) -> Inventory:
    """One image a row: its path (relative to the table's folder, or absolute), its label, and its split if it has one.

    Raises:
        DataError: not a table, or without the two columns.
    """
    read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_csv
    columns = read(path)
    found = Inventory(kind="table", root=str(path.parent))
    splits = columns.get("split")
    wheres = (
        [POOL] * len(columns["path"]) if splits is None else [SPLIT_NAMES.get(split.lower(), "") for split in splits]
    )
    parts: dict[str, tuple[list[str], list[str]]] = {}
    rows = zip(columns["path"], columns["label"], wheres, strict=True)
    for number, (image, label, where) in enumerate(rows, start=1):
        if not (image and label and where):
            found.problems.append(_bad_row(f"{name_of(path)}, data row {number}", image, label))
            continue
        names, labels = parts.setdefault(where, ([], []))
        names.append(str(path.parent / image))
        labels.append(label)
    found.splits = {split: Rows(*part) for split, part in parts.items()}
    return found


def _bad_row(where: str, image: str, label: str) -> Problem:
    reason = f"its split is not one of {', '.join(SPLIT_NAMES)}" if image and label else "its path or label is empty"
    return Problem("bad-row", where, f"{where}: {reason}; repair or remove the row", fatal=True)


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name_of(path)}: cannot be read as a table ({error}); save it as CSV in UTF-8") from error
    rows = [row for row in rows if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    places = _places(path, header)
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise DataError(
                f"{name_of(path)}, data row {number}: {len(row)} cells where the header has {len(header)}; repair it"
            )
    return {meaning: [row[place].strip() for row in rows[1:]] for meaning, place in places.items()}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    parquet = require("pyarrow.parquet", extra="train")
    arrow = require("pyarrow", extra="train")
    try:
        file = parquet.ParquetFile(path)
        header = list(file.schema_arrow.names)
        places = _places(path, [name.lower() for name in header])
        table = file.read(columns=[header[place] for place in places.values()])
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{name_of(path)}: cannot be read as Parquet ({reason}); write it anew") from error
    return {meaning: [_text(value) for value in table[header[place]].to_pylist()] for meaning, place in places.items()}


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """The column of each meaning, by any of its names."""
    places = {}
    for meaning, names in COLUMNS.items():
        matches = [place for place, name in enumerate(header) if name in names]
        if len(matches) == 1:
            places[meaning] = matches[0]
        elif meaning != "split" or matches:
            have = ", ".join(header) or "none"
            count = "no" if not matches else "more than one"
            raise DataError(
                f"{name_of(path)}: {count} {meaning} column among {have}; name one column of the first row "
                f"{' or '.join(names)}"
            )
    return places
