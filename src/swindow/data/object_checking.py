"""What is wrong with pictures and their objects that only looking at the pixels shows."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from swindow.data.annotated import Annotated, PartReader, other_size
from swindow.data.inventory import Problem
from swindow.errors import DataError
from swindow.images import ImageTooLarge, name_of


def unusable(annotated: Annotated, rows: Sequence[int]) -> Iterator[Problem]:
    """Some pictures read with their objects: those that cannot be, or have another size than their annotations say."""
    for row in rows:
        name = annotated.names[row]
        try:
            height, width = annotated.read(row).shape[1:]
            if (height, width) != annotated.size(row):
                message = other_size(name, annotated.size(row), (height, width))
                yield Problem("other-size", name, message, fatal=True)
                continue
            annotated.objects(row)
        except DataError as error:
            kind = "too-large" if isinstance(error, ImageTooLarge) else "unreadable"
            yield Problem(kind, name, str(error))


def unfilled(annotated: Annotated) -> Iterator[Problem]:
    """Masks without a pixel: polygons so thin that they fill none."""
    if not annotated.has_masks:
        return
    for row in range(len(annotated)):
        masks = annotated.objects(row).masks
        for place in [] if masks is None else (~masks.flatten(1).any(dim=1)).nonzero()[:, 0].tolist():
            where = f"{name_of(annotated.names[row])}, {_number(annotated, row, place)}"
            message = f"{where}: its polygon is so thin that it fills no pixel; outline it anew, or remove it"
            yield Problem("empty-mask", annotated.names[row], message)


def shown_by(classes: Sequence[str], splits: Iterable[Annotated]) -> dict[str, int]:
    """For each class, how many images show one of it."""
    counts = np.zeros(len(classes), np.int64)
    for annotated in splits:
        for row in range(len(annotated)):
            counts[np.unique(annotated.labels(row))] += 1
    return dict(zip(classes, counts.tolist(), strict=True))


def _number(annotated: Annotated, row: int, place: int) -> str:
    """What the file calls one of the objects of a picture."""
    reader = annotated.reader
    if not isinstance(reader, PartReader):
        return f"object {place}"
    table = reader.part.objects
    return f"annotation {table.ids[table.of(int(annotated.rows[row])).start + place]}"
