"""Parquet files as inputs: how many images their row groups have, and the bytes of a range of rows."""

from collections.abc import Iterator
from typing import Any

from swindow.data.shards import parquets
from swindow.data.shards.stores import is_passing
from swindow.errors import DataError, require
from swindow.predict.bulk.places import stored

AT_ONCE = 64
"""Rows that are unpacked together: an image has some hundred thousand bytes."""


def row_groups(source: str) -> list[int]:
    """Rows of each row group.

    Raises:
        DataError: it cannot be read, or has no column of image bytes.
    """
    store, name = stored(source)
    arrow, parquet = require("pyarrow", extra="shards"), require("pyarrow.parquet", extra="shards")
    with store.open(name) as stream:
        try:
            file = parquet.ParquetFile(stream)
            _image_column(arrow, file.schema_arrow, source)
            return [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        except Exception as error:
            if not isinstance(error, arrow.ArrowException | OSError) and not is_passing(error):
                raise
            raise _failed(source, error) from error


def rows_of(source: str, group: int, start: int, stop: int) -> Iterator[tuple[str | None, bytes | None]]:
    """Path (where the file has one) and bytes of the images in some rows of a row group.

    Raises:
        DataError: it cannot be read.
    """
    store, name = stored(source)
    arrow, parquet = require("pyarrow", extra="shards"), require("pyarrow.parquet", extra="shards")
    with store.open(name) as stream:
        try:
            file = parquet.ParquetFile(stream)
            image, inner = _image_column(arrow, file.schema_arrow, source)
            row = 0
            for batch in file.iter_batches(batch_size=AT_ONCE, row_groups=[group], columns=[image]):
                wanted = batch.column(0).slice(max(start - row, 0), max(stop - max(start, row), 0))
                row += len(batch)
                for value in wanted.to_pylist():
                    yield (value.get("path"), value["bytes"]) if inner and value else (None, value)
                if row >= stop:
                    return
        except Exception as error:  # libraries of storage have errors of their own
            if not isinstance(error, arrow.ArrowException | OSError) and not is_passing(error):
                raise
            raise _failed(source, error) from error


def _image_column(arrow: Any, schema: Any, source: str) -> tuple[str, bool]:
    """The column of image bytes, and whether it is one of ``{bytes, path}``."""
    names = parquets.image_columns(arrow, schema)
    if len(names) != 1:
        have = ", ".join(f"{field.name} ({field.type})" for field in schema)[:300]
        raise DataError(
            f"{source}: has {have}; predicting needs one column of image bytes, called "
            f"{', '.join(parquets.IMAGE_COLUMNS[:4])} or the like (binary, or a struct with bytes)"
        )
    return names[0], arrow.types.is_struct(schema.field(names[0]).type)


def _failed(source: str, error: BaseException) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if not parquets.is_damage(error):
        return DataError(f"{source}: cannot be read ({reason}); check the network, and start again")
    return DataError(f"{source}: cannot be read as Parquet ({reason}); fetch or pack it anew")
