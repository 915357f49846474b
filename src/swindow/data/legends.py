"""Which value of a mask file means which class: names, ids and colours, from a table or by the values themselves."""

import colorsys
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from swindow.errors import DataError
from swindow.images import name_of
from swindow.shapes import IGNORE

RGB = tuple[int, int, int]

UNKNOWN = IGNORE - 1  # in `Legend.codes`: a value that no class is for
BACKGROUND = frozenset({"background", "bg", "_background_"})
UNLABELLED = frozenset({"ignore", "ignored", "void", "unlabeled", "unlabelled"})
MOST_FOUND = 256  # more different values than that are no classes but instances, or a picture

# Okabe and Ito's colours (jfly.uni-koeln.de/color), told apart by colour-blind eyes too, then Paul Tol's "muted" ones.
_DISTINCT: tuple[RGB, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51), (221, 204, 119), (204, 102, 119),
    (136, 34, 85), (170, 68, 153), (221, 221, 221),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Legend:
    """The classes of a source, and how its mask files spell them."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    """The value that stands for each class in a mask file; a class's index is its place here."""
    colours: tuple[RGB, ...]
    """Of each class; those that RGB masks are painted in, where `painted`."""
    ignored: tuple[int, ...] = ()
    """Values of pixels that do not count."""
    ignored_colours: tuple[RGB, ...] = ()
    painted: bool = False
    """Whether a table gives the colours (else they are ours)."""
    background: int | None = None
    """Index of the class that is no object."""
    source: str = ""
    """Where it comes from, for messages."""

    def codes(self) -> np.ndarray:
        """int16: for every value up to the highest known, the class's index, `IGNORE` or `UNKNOWN`."""
        table = np.full(max((*self.ids, *self.ignored), default=0) + 1, UNKNOWN, np.int16)
        table[list(self.ignored)] = IGNORE
        table[list(self.ids)] = np.arange(len(self.ids))
        return table

    def colour_codes(self) -> dict[RGB, int]:
        """For every colour of an RGB mask, the class's index or `IGNORE`; empty where no table gives colours."""
        if not self.painted:
            return {}
        classes = dict(zip(self.colours, range(len(self)), strict=True))
        return dict.fromkeys(self.ignored_colours, IGNORE) | classes

    def __len__(self) -> int:
        return len(self.names)

    def without_zero(self) -> "Legend":
        """Value 0 no longer counts, and the classes after it move up by one."""
        if 0 not in self.ids:
            return replace(self, ignored=tuple(sorted({0, *self.ignored})))
        place = self.ids.index(0)

        def rest(values: Sequence[Any]) -> tuple[Any, ...]:
            return (*values[:place], *values[place + 1 :])

        return replace(
            self,
            names=rest(self.names),
            ids=rest(self.ids),
            colours=rest(self.colours),
            ignored=tuple(sorted({0, *self.ignored})),
            ignored_colours=(*self.ignored_colours, self.colours[place]),
            background=None,
        )


def make_legend(
    names: Sequence[str],
    *,
    ids: Sequence[int] | None = None,
    colours: Sequence[RGB] | None = None,
    ignored: Iterable[int] = (),
    ignored_colours: Sequence[RGB] = (),
    source: str = "",
    background: int | None = None,
) -> Legend:
    """A legend whose missing parts are filled in: ids from 0, colours from `palette`, the background by its name."""
    ids = tuple(range(len(names))) if ids is None else tuple(ids)
    if background is None:
        background = next((place for place, name in enumerate(names) if name.lower() in BACKGROUND), None)
    return Legend(
        names=tuple(names),
        ids=ids,
        colours=tuple(colours) if colours else palette(len(names), background),
        ignored=tuple(sorted(set(ignored) - set(ids))),
        ignored_colours=tuple(ignored_colours),
        painted=bool(colours),
        background=background,
        source=source,
    )


def palette(count: int, background: int | None = None) -> tuple[RGB, ...]:
    """So many different colours, always the same; the background is black."""
    colours = [_DISTINCT[place] if place < len(_DISTINCT) else _spread(place) for place in range(count)]
    if background is not None:
        colours.insert(background, (0, 0, 0))
    return tuple(colours[:count])


def find_legend(root: Path, ignore_index: int | None) -> Legend | None:
    """The table of classes in a source's folder, ``classes.toml`` or ``classes.txt``, if there is one.

    Raises:
        DataError: it cannot be understood; the message names file and line.
    """
    for name, read in (("classes.toml", _read_toml), ("classes.txt", _read_lines)):
        if (root / name).is_file():
            try:
                text = (root / name).read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{name_of(root / name)}: cannot be read ({error}); save it in UTF-8") from error
            return read(text, name_of(root / name), ignore_index)
    return None


def legend_of_values(values: Iterable[int], ignore_index: int | None, *, volumes: bool, where: str) -> Legend:
    """The classes of masks that no table explains: every value that they hold, in order.

    Masks of nothing but 0 and 255 show one object on a background, so 255 is an object's value there and ignores
    nothing. ``volumes``: 0 is the background, as every medical data set has it.

    Raises:
        DataError: more values than there can be classes.
    """
    found = sorted(set(values))
    if found == [0, 255]:
        return make_legend(("background", "object"), ids=(0, 255), source="the masks' own values")
    ids = [value for value in found if value != ignore_index]
    if len(ids) > MOST_FOUND:
        raise DataError(
            f"{where}: the masks hold {len(ids):,} different values, too many for classes; give masks of class indices "
            f"(not instances, not pictures), or a classes.txt"
        )
    if not found:
        raise DataError(f"{where}: no mask can be read; add masks, or a classes.txt")
    if not ids:
        raise DataError(f"{where}: every pixel of the masks is {ignore_index}, which is ignored; label some")
    names = [f"class {value}" for value in ids]
    if ids in ([0, 1], [0]):
        names = ["background", "object"][: len(ids)]
    elif volumes and ids[0] == 0:
        names[0] = "background"
    ignored = [] if ignore_index is None else [ignore_index]
    return make_legend(names, ids=ids, ignored=ignored, source="the masks' own values")


def legend_of_model(values: Iterable[int], classes: Sequence[str], ignore_index: int | None) -> Legend | None:
    """The classes of a model, for masks that no table explains: some of its classes may not occur in them.

    A class called by its value, as `legend_of_values` does, has that value; other classes are numbered from 0. None
    where a mask holds a value that would be no class.
    """
    found, ids = set(values), list(range(len(classes)))
    if tuple(classes) == ("background", "object") and found <= {0, 255}:
        ids = [0, 255] if 255 in found else ids
    elif all(
        re.fullmatch(r"class \d+", name) or (place == 0 and name == "background") for place, name in enumerate(classes)
    ):
        ids = [0 if name == "background" else int(name.removeprefix("class ")) for name in classes]
    ignored = [] if ignore_index is None else [ignore_index]
    if not found <= {*ids, *ignored}:
        return None
    return make_legend(classes, ids=ids, ignored=ignored, source="the model's classes")


def _spread(place: int) -> RGB:
    """A colour of its own for every number: hues a golden angle apart, in three shades."""
    hue, shade = place * 0.618033988749895 % 1.0, (0.95, 0.7, 0.5)[place % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.55, 0.95)[place // 3 % 3], shade)
    return round(255 * red), round(255 * green), round(255 * blue)


def _read_lines(text: str, where: str, ignore_index: int | None) -> Legend:
    """Lines of ``index name r g b``, the index or the colour left out in all of them."""
    lines = [(number, line.split("#")[0]) for number, line in enumerate(text.splitlines(), start=1)]
    rows = [(number, re.split(r"[\s,;]+", line.strip())) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{where}: names no class; write one a line: index name red green blue")
    coloured = all(len(words) > 3 and all(map(_is_byte, words[-3:])) for _, words in rows)
    least = 5 if coloured else 2
    indexed = all(len(words) >= least and words[0].isdecimal() for _, words in rows)
    entries = []
    for place, (number, words) in enumerate(rows):
        end = -3 if coloured else None
        name = " ".join(words[1:end] if indexed else words[:end])
        colour = tuple(map(int, words[-3:])) if coloured else None
        ignore = not indexed and coloured and name.lower() in UNLABELLED
        entry = {"name": name, "id": int(words[0]) if indexed else place, "colour": colour, "ignore": ignore}
        entries.append((f"{where}, line {number}", entry))
    return _from_entries(entries, where, ignore_index)


def _read_toml(text: str, where: str, ignore_index: int | None) -> Legend:
    """``[[class]]`` tables of name, id and colour; ``ignore`` is a value or several, ``ignore_colour`` an RGB."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where}: is no TOML ({error}); repair it") from error
    classes, ignore = table.get("class"), table.get("ignore", [])
    unknown = sorted(set(table) - {"class", "ignore", "ignore_colour"})
    if unknown or not isinstance(classes, list) or not classes:
        what = f"has {unknown[0]!r}" if unknown else "has no [[class]]"
        raise DataError(f"{where}: {what}; it may have [[class]] tables of name, id, colour, and ignore, ignore_colour")
    entries = [
        (f"{where}, class {place}", {"id": place, "colour": None, "ignore": False} | entry)
        for place, entry in enumerate(classes)
    ]
    ignored = ignore if isinstance(ignore, list) else [ignore]
    if not all(isinstance(value, int) for value in ignored):
        raise DataError(f"{where}: ignore is {ignore!r}; give one of the masks' values, or a list of them")
    legend = _from_entries(entries, where, ignore_index)
    colour = [_colour(table["ignore_colour"], where)] if "ignore_colour" in table else []
    clash = sorted(set(ignored) & set(legend.ids))
    if clash:
        raise DataError(f"{where}: value {clash[0]} is both a class and ignored; decide")
    return replace(
        legend, ignored=tuple(sorted({*legend.ignored, *ignored})), ignored_colours=(*legend.ignored_colours, *colour)
    )


def _from_entries(entries: Sequence[tuple[str, Mapping[str, Any]]], where: str, ignore_index: int | None) -> Legend:
    kept: list[tuple[int, str, RGB | None]] = []
    ignored: set[int] = set() if ignore_index is None else {ignore_index}
    ignored_colours: list[RGB] = []
    seen: dict[object, str] = {}
    for place, entry in entries:
        name, value, colour = _entry(place, entry)
        for what, key in (("name", name), ("value", value), ("colour", colour)):
            if key is not None and seen.setdefault((what, key), place) != place:
                raise DataError(f"{place}: has the same {what} ({key}) as {seen[(what, key)]}; give each class its own")
        if entry["ignore"] or value == ignore_index:
            ignored.add(value)
            ignored_colours += [colour] if colour else []
        else:
            kept.append((value, name, colour))
    kept.sort(key=lambda item: item[0])
    if not kept:
        raise DataError(f"{where}: names no class that counts; add some")
    colours = [colour for _, _, colour in kept if colour is not None]
    if colours and len(colours) != len(kept):
        raise DataError(f"{where}: some classes have a colour and some have none; give all of them one, or none")
    return make_legend(
        [name for _, name, _ in kept],
        ids=[value for value, _, _ in kept],
        colours=colours or None,
        ignored=ignored,
        ignored_colours=ignored_colours,
        source=where,
    )


def _entry(place: str, entry: Mapping[str, Any]) -> tuple[str, int, RGB | None]:
    unknown = sorted(set(entry) - {"name", "id", "colour", "ignore"})
    name, value = entry.get("name"), entry["id"]
    if unknown or not isinstance(name, str) or not name:
        raise DataError(f"{place}: needs a name, and may have an id and a colour; it has {', '.join(entry)}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise DataError(f"{place}: id {value!r} is no value of a mask; it lies in 0..65535")
    return name, value, None if entry["colour"] is None else _colour(entry["colour"], place)


def _colour(given: Any, place: str) -> RGB:
    values = list(given) if isinstance(given, (list, tuple)) else []
    if len(values) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        raise DataError(f"{place}: colour {given!r} is no red, green and blue in 0..255; write [255, 128, 0]")
    red, green, blue = values
    return red, green, blue


def _is_byte(word: str) -> bool:
    return word.isdecimal() and int(word) <= 255
