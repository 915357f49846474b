"""What a job over many images is: its parts, a function of the inputs, and the file that a second start is held to."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import swindow
from swindow.data.shards.stores import Store
from swindow.errors import ConfigError, DataError, require
from swindow.predict.bulk.listing import IMAGE, PARQUET, TAR, Item
from swindow.predict.bulk.tables import row_groups

PLAN, INPUTS = "plan.json", "inputs.parquet"
VERSION = "swindow-predictions 1"


class Span(NamedTuple):
    """An image, a whole tar, or rows of a row group of a Parquet file."""

    source: str
    kind: str
    size: int
    stamp: str
    group: int = 0
    start: int = 0
    """Of rows, counted in the row group."""
    stop: int = 0
    first: int = 0
    """The row of the file that the row group begins with."""

    @property
    def images(self) -> int | None:
        """How many, where that is known without reading it."""
        return {IMAGE: 1, TAR: None, PARQUET: self.stop - self.start}[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A job, as its folder has it from the first start on."""

    parts: int
    images: int | None
    """In all; None where tars are among the inputs, whose images are counted when they are read."""
    inputs: str
    """SHA-256 of the names, sizes and stamps of the inputs, and of where parts begin."""
    model: Mapping[str, Any]
    settings: Mapping[str, Any]

    def name(self, part: int) -> str:
        """Of a part, in all folders that have something of it."""
        return f"part-{part:0{max(5, len(str(self.parts - 1)))}}"


def divided(items: Iterable[Item], most: int) -> Iterator[list[Span]]:
    """Parts of `most` images each, in the order of the inputs; a tar is a part of its own, however many it holds.

    A tar is read in one go from its beginning to its end, as its format wants; Parquet files are cut between rows.

    Raises:
        DataError: a Parquet file that cannot be read or has no column of image bytes.
    """
    part: list[Span] = []
    filled = 0
    for span in _spans(items):
        if span.kind == TAR:
            if part:
                yield part
            yield [span]
            part, filled = [], 0
            continue
        while span.images:
            taken = min(span.images, most - filled)
            part.append(span if span.kind == IMAGE else span._replace(stop=span.start + taken))
            filled += taken
            if filled == most:
                yield part
                part, filled = [], 0
            if span.kind == IMAGE:
                break
            span = span._replace(start=span.start + taken)
    if part:
        yield part


def _spans(items: Iterable[Item]) -> Iterator[Span]:
    for item in items:
        if item.kind != PARQUET:
            yield Span(*item)
            continue
        first = 0
        for group, rows in enumerate(row_groups(item.source)):
            yield Span(*item, group, 0, rows, first)
            first += rows


def write_inputs(parts: Iterable[list[Span]], path: Path) -> tuple[int, int | None, str]:
    """A table of all spans with a row group for each part, so that whoever does a part reads its own rows alone.

    Returns how many parts and images there are, and their hash.
    """
    arrow, parquet = require("pyarrow", extra="shards"), require("pyarrow.parquet", extra="shards")
    schema, digest = _schema(arrow), hashlib.sha256()
    count, images, known = 0, 0, True
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            rows = [span._asdict() | {"source": _bytes(span.source)} for span in part]
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema), row_group_size=len(rows))
            for span in part:
                digest.update(b"\0".join(_bytes(str(value)) for value in span) + b"\n")
                images += span.images or 0
                known = known and span.images is not None
            digest.update(b"\n")
            count += 1
    if not count:
        raise DataError("the inputs hold no images; give folders or shards that do")
    return count, images if known else None, digest.hexdigest()


class Inputs:
    """The spans of each part, read from the table that `write_inputs` left."""

    def __init__(self, store: Store) -> None:
        self._stream = store.open(INPUTS)
        self._file = require("pyarrow.parquet", extra="shards").ParquetFile(self._stream)

    def close(self) -> None:
        """No part can be asked for after this."""
        self._file.close()
        self._stream.close()

    def __getitem__(self, part: int) -> list[Span]:
        rows = self._file.read_row_group(part).to_pylist()
        return [Span(**(row | {"source": row["source"].decode("utf-8", "surrogateescape")})) for row in rows]


def plan_text(plan: Plan) -> str:
    """As it lies in its folder."""
    facts = {"version": VERSION, "swindow": swindow.__version__} | dataclasses.asdict(plan)
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def refuse_another(plan: Plan, found: bytes, place: str) -> None:
    """Nothing, if the plan in a folder is this one.

    Raises:
        ConfigError: it is not, and what differs.
    """
    advice = "give another --out, or remove this one to begin again"
    try:
        before = json.loads(found)
        if before["version"] != VERSION:
            raise ValueError(f"version {before['version']!r}, this program writes {VERSION!r}")
        old = Plan(**{field.name: before[field.name] for field in dataclasses.fields(Plan)})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place}: cannot be understood ({error}); {advice}") from error
    if old.settings != plan.settings:
        names = sorted({*old.settings, *plan.settings})
        changed = [name for name in names if old.settings.get(name) != plan.settings.get(name)]
        said = ", ".join(f"{name} {old.settings.get(name)!r}, now {plan.settings.get(name)!r}" for name in changed)
        raise ConfigError(f"{place}: was begun with other settings ({said}); {advice}")
    if old.model != plan.model:
        raise ConfigError(
            f"{place}: was begun with another model ({old.model.get('name')}, weights {_short(old.model)}; "
            f"now {plan.model.get('name')}, {_short(plan.model)}); {advice}"
        )
    if old.inputs != plan.inputs:
        counts = f"{_images(old)} then, {_images(plan)} now" if _images(old) != _images(plan) else "as many, but others"
        raise ConfigError(
            f"{place}: was begun with other inputs ({counts}: names, sizes or times of change differ); {advice}"
        )


def _images(plan: Plan) -> str:
    return f"{plan.images:,} images" if plan.images is not None else f"{plan.parts:,} parts"


def _short(model: Mapping[str, Any]) -> str:
    return str(model.get("sha256"))[:12]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _schema(arrow: Any) -> Any:
    kinds = {"source": arrow.binary(), "kind": arrow.string(), "stamp": arrow.string()}
    return arrow.schema([(name, kinds.get(name, arrow.int64())) for name in Span._fields])
