"""Two columns of names: where a tensor of ours lies in somebody else's state dict, and the way back, from one table.

A row is a pair of templates, ours and theirs. ``{i}``, ``{j}`` and ``{k}`` stand for numbers, also as ``{i+1}`` or
``{2i+1}``, and ``{*}`` for whatever follows. The first row that fits wins, in either direction.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from swindow.errors import CheckpointError

_NUMBER = re.compile(r"\{(\d*)([ijk])([+-]\d+)?\}")
State = dict[str, Tensor]
Rename = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of (our template, their template)."""

    rows: tuple[tuple[str, str], ...]

    def to_ours(self, name: str) -> str | None:
        """Our name of a tensor that they call `name`; None when no row has it."""
        return self._translate(name, source=1)

    def to_theirs(self, name: str) -> str | None:
        """Their name of a tensor that we call `name`; None when no row has it."""
        return self._translate(name, source=0)

    def _translate(self, name: str, source: int) -> str | None:
        for row in self.rows:
            values = _read(row[source], name)
            if values is not None:
                return _fill(row[1 - source], values)
        return None


def renamed(state: Mapping[str, Tensor], rename: Rename) -> tuple[State, tuple[str, ...]]:
    """The tensors under their new names, and the names that have none."""
    names = {name: rename(name) for name in state}
    found = {new: state[name] for name, new in names.items() if new is not None}
    return found, tuple(name for name, new in names.items() if new is None)


def needed(state: State, name: str) -> Tensor:
    """A tensor that every model of the kind has.

    Raises:
        CheckpointError: the file lacks it.
    """
    if name not in state:
        raise CheckpointError(f"{name} is missing from the file; it is not a whole model")
    return state[name]


def parts(state: State, path: str) -> int:
    """How many parts a list of them has, by the highest number."""
    numbers = (re.match(rf"{re.escape(path)}\.(\d+)\.", name) for name in state)
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def joined(*tables: Iterable[tuple[str, str]]) -> Table:
    """One table of the rows of several, in this order."""
    return Table(tuple(row for table in tables for row in table))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression, with a group for each number, named by its letter, and one for the rest."""
    parts, at = [], 0
    for match in _NUMBER.finditer(template):
        parts += [re.escape(template[at : match.start()]), rf"(?P<{match[2]}>\d+)"]
        at = match.end()
    return re.compile("".join([*parts, re.escape(template[at:]).replace(r"\{\*\}", "(?P<rest>.+)")]))


def _read(template: str, name: str) -> dict[str, str | int] | None:
    """What the placeholders of `template` stand for in `name`; None when it does not fit."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    values: dict[str, str | int] = {"rest": match.groupdict().get("rest") or ""}
    for factor, letter, offset in _NUMBER.findall(template):
        number, remainder = divmod(int(match[letter]) - int(offset or 0), int(factor or 1))
        if remainder or number < 0:
            return None
        values[letter] = number
    return values


def _fill(template: str, values: Mapping[str, str | int]) -> str:
    """`template` with numbers and the rest put in."""

    def number(match: re.Match[str]) -> str:
        return str(int(match[1] or 1) * int(values[match[2]]) + int(match[3] or 0))

    return _NUMBER.sub(number, template).replace("{*}", str(values["rest"]))
