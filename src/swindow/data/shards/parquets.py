"""Parquet files of encoded images: a column of bytes, or of ``{bytes, path}`` as Hugging Face writes, and a label."""

import json
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from swindow.data.shards.stores import RemoteStore, Store, is_passing
from swindow.errors import DataError, require

IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "picture", "content")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "fine_label")


class Columns(NamedTuple):
    """Which column has what."""

    image: str
    inner: str
    """Field of the image's struct that has the bytes; empty where the column itself has them."""
    label: str
    classes: tuple[str, ...] | None
    """Names of the labels, where the file knows them."""


class Part(NamedTuple):
    """One Parquet file by its footer and its labels."""

    columns: Columns
    labels: list[str]
    groups: list[int]
    """Samples of each row group."""
    heavy: list[int]
    """Bytes of the images of each row group, unpacked."""


def holds_images(stream: BinaryIO) -> bool:
    """Whether a Parquet file has a column of image bytes; False for anything else, such as a table of paths."""
    arrow, parquet = _arrow()
    try:
        return bool(image_columns(arrow, parquet.ParquetFile(stream).schema_arrow))
    except (OSError, arrow.ArrowException):
        return False


def scan(store: Store, name: str) -> Part:
    """The labels of one file; no image is read.

    Raises:
        DataError: it is damaged, or has no two such columns.
    """
    arrow, parquet = _arrow()
    with store.open(name) as stream:
        try:
            file = parquet.ParquetFile(stream)
            columns = choose(arrow, file.schema_arrow, store.place(name))
            labels = file.read(columns=[columns.label]).column(0).to_pylist()
            groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            heavy = [_heavy(file.metadata.row_group(number), columns) for number in range(len(groups))]
        except (OSError, EOFError, arrow.ArrowException) as error:
            raise _damaged(store.place(name), error) from error
    empty = next((row for row, label in enumerate(labels) if label is None or str(label) == ""), None)
    if empty is not None:
        raise DataError(f"{store.place(name)}, row {empty}: has no label; leave the row out")
    return Part(columns, [_named(label, columns.classes) for label in labels], groups, heavy)


def read_group(store: Store, name: str, group: int, columns: Columns) -> list[bytes | None]:
    """The encoded images of one row group; None where there are no bytes.

    Raises:
        DataError: it cannot be read, from object storage also not by another attempt.
    """
    arrow, parquet = _arrow()
    wanted = f"{columns.image}.{columns.inner}" if columns.inner else columns.image

    def read() -> Any:
        """The table, or an error that another attempt would not mend; `open` has made its own."""
        try:
            with store.open(name) as stream:
                return parquet.ParquetFile(stream, pre_buffer=True).read_row_group(group, columns=[wanted])
        except DataError as error:
            return error
        except (OSError, EOFError, IndexError, arrow.ArrowException) as error:
            if isinstance(store, RemoteStore) and not is_damage(error):
                raise
            return _damaged(store.place(name), error)

    table = store.retried(read, store.place(name)) if isinstance(store, RemoteStore) else read()
    if isinstance(table, DataError):
        raise table
    column = table.column(0)
    if columns.inner:
        column = arrow.compute.struct_field(column, columns.inner)
    return column.to_pylist()


def is_damage(error: BaseException) -> bool:
    """Whether an error met in reading is the file's own, or at least one that no other attempt would mend.

    pyarrow tells of damage by an `OSError` without a number; what a network fails by has one, or a type of its own.
    """
    return not is_passing(error) or (type(error) is OSError and error.errno is None)


def columns_of(store: Store, name: str) -> Columns:
    """Which column has what, by one file's schema."""
    arrow, parquet = _arrow()
    with store.open(name) as stream:
        try:
            return choose(arrow, parquet.ParquetFile(stream).schema_arrow, store.place(name))
        except (OSError, EOFError, arrow.ArrowException) as error:
            raise _damaged(store.place(name), error) from error


def choose(arrow: Any, schema: Any, place: str) -> Columns:
    """Which column has what.

    Raises:
        DataError: not one column for each.
    """
    images = image_columns(arrow, schema)
    labels = [name for name in LABEL_COLUMNS if name in schema.names]
    if len(images) != 1 or not labels:
        have = ", ".join(f"{field.name} ({field.type})" for field in schema)[:300]
        raise DataError(
            f"{place}: has {have}; classification needs one column of image bytes ({', '.join(IMAGE_COLUMNS[:4])}; "
            f"binary, or a struct with bytes) and one of {', '.join(LABEL_COLUMNS[:4])} (masks and boxes in shards are "
            f"not read)"
        )
    inner = "bytes" if arrow.types.is_struct(schema.field(images[0]).type) else ""
    kind = schema.field(labels[0]).type
    if not (arrow.types.is_integer(kind) or arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise DataError(f"{place}: column {labels[0]} is of {kind}; labels are whole numbers or names")
    return Columns(images[0], inner, labels[0], _class_names(schema, labels[0]))


def schema_for(classes: Sequence[str]) -> Any:
    """What we write: the columns of Hugging Face's image classification, names of classes included."""
    arrow, _ = _arrow()
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    known = {"huggingface": json.dumps({"info": {"features": features}})}
    return arrow.schema([("image", image), ("label", arrow.int64())], metadata=known)


def write_group(writer: Any, samples: Sequence[tuple[str, bytes, int]]) -> None:
    """One row group of (path, bytes, label)."""
    arrow, _ = _arrow()
    images = [{"bytes": data, "path": path} for path, data, _ in samples]
    schema = writer.schema
    columns = [arrow.array(images, schema.field(0).type), arrow.array([label for *_, label in samples], arrow.int64())]
    writer.write_table(arrow.Table.from_arrays(columns, schema=schema), row_group_size=len(samples))


def open_writer(path: str, classes: Sequence[str]) -> Any:
    """A writer that does not try to compress images again."""
    _, parquet = _arrow()
    return parquet.ParquetWriter(
        path, schema_for(classes), compression="none", use_dictionary=False, write_statistics=False, store_schema=True
    )


def _arrow() -> tuple[Any, Any]:
    arrow, parquet = require("pyarrow", extra="shards"), require("pyarrow.parquet", extra="shards")
    require("pyarrow.compute", extra="shards")
    return arrow, parquet


def image_columns(arrow: Any, schema: Any) -> list[str]:
    """The columns that hold the bytes of images, by their names and types."""
    return [field.name for field in schema if field.name.lower() in IMAGE_COLUMNS and _has_bytes(arrow, field.type)]


def _has_bytes(arrow: Any, kind: Any) -> bool:
    if arrow.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _has_bytes(arrow, kind.field(place).type)
    return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Names from Hugging Face's description in the schema, if there is one."""
    try:
        known = json.loads((schema.metadata or {})[b"huggingface"])
        names = known["info"]["features"][label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _named(label: int | str, classes: tuple[str, ...] | None) -> str:
    """A number that has no name stays one, and is reported as a label without a class."""
    if isinstance(label, int) and classes is not None and 0 <= label < len(classes):
        return classes[label]
    return str(label).strip()


def _heavy(group: Any, columns: Columns) -> int:
    start = columns.image
    chunks = [group.column(place) for place in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == start)


def _damaged(place: str, error: BaseException) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{place}: cannot be read as Parquet ({reason}); fetch or pack it anew")
