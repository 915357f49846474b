"""The stack machine that a pickle is a program for, without the instructions that act.

It builds containers, numbers and strings. Where the program would import, call or instantiate anything that is not in
a short table, it puts an inert placeholder, and whatever the program then does to that has no effect.
"""

import io
import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = 1_000_000  # instructions of one file; 400 tensors and their optimiser's state take 60,000
NAME_LENGTH = 512


class Refused(Exception):
    """Why a file is not read: what a sentence says after the file's name."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle would import."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """What stands for an object that was not made."""

    name: str


@dataclass(slots=True, kw_only=True)
class Machine:
    """The stack, its marks and its memory; what it may call, and what it makes of persistent ids."""

    calls: Mapping[str, "Act"]
    persistent: "Act"
    storages: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By key: type and count of the numbers of every storage that was named."""
    inert: set[str] = field(default_factory=set)
    """Names that were not imported."""
    stack: list[Any] = field(default_factory=list)
    marked: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    steps: int = 0

    def run(self, stream: io.BytesIO) -> Any:
        """The object that the pickle at the stream's position describes; the stream is left behind it.

        Raises:
            Refused: the pickle is damaged, or takes too long.
        """
        self.stack, self.marked, self.memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.spend(1)
                if opcode.name in ARGUMENTS:
                    self.stack.append(argument)
                else:
                    INSTRUCTIONS[opcode.name](self, argument)
            return self.stack.pop()
        except (ValueError, KeyError, IndexError, OverflowError, struct.error, RecursionError) as error:
            raise Refused(f"is damaged: its pickle cannot be followed ({type(error).__name__})") from error

    def spend(self, steps: int) -> None:
        """Count work that is in proportion to the file's length, so that nothing else is possible."""
        self.steps += steps
        if self.steps > STEPS:
            raise Refused(f"takes more than {STEPS:,} steps to unpickle, which no model's weights do")

    def unmark(self) -> list[Any]:
        """What was stacked since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.unmark()

    def remember(self, index: int) -> None:
        if index >= 2**32:  # larger ones can be chosen so that all hash alike
            raise Refused("is damaged: its pickle remembers things under absurd numbers")
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise Refused(f"is damaged: its pickle appends to a {type(target).__name__}")

    def assign(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(pairs(items))
        elif not isinstance(target, Inert):
            raise Refused(f"is damaged: its pickle sets entries of a {type(target).__name__}")

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call makes: a container or a tensor where the function is one of those few, else a placeholder."""
        known = self.calls.get(function.name) if isinstance(function, Global) else None
        if known is not None and isinstance(arguments, tuple):
            return known(self, arguments)
        return self.stub(function)

    def stub(self, thing: Any) -> Inert:
        """A placeholder for what `thing` would have made."""
        name = thing.name if isinstance(thing, Global | Inert) else type(thing).__name__
        name = name if name.isprintable() and len(name) <= NAME_LENGTH else "something unprintable"
        self.inert.add(name)
        return Inert(name)


def pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    """Keys and values in turn. Only keys that are quick to hash stay themselves: nested tuples are not."""
    if len(items) % 2:
        raise Refused("is damaged: its pickle leaves a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        quick = type(key) is str or (type(key) is int and abs(key) < 2**31)
        yield (key if quick else Inert(type(key).__name__)), value


Act = Callable[[Machine, Any], Any]

NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "STRING", "BINSTRING", "SHORT_BINSTRING")
TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
ARGUMENTS = frozenset((*NUMBERS, *BYTES, *TEXTS))
"""Instructions whose argument is what they put on the stack."""


def _push(make: Act) -> Act:
    """An instruction that leaves one more thing on the stack."""

    def act(machine: Machine, argument: Any) -> None:
        made = make(machine, argument)  # may put another stack in place
        machine.stack.append(made)

    return act


def _tuple_of(count: int) -> Act:
    def act(machine: Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return act


def _mark(machine: Machine, _: Any) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _global(_: Machine, line: str) -> Global:
    return Global(line.replace(" ", ".", 1))


def _global_of_stack(machine: Machine, _: Any) -> Global:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Refused("is damaged: its pickle imports what is not a name")
    return Global(f"{module}.{name}")


def _call(machine: Machine, _: Any) -> Any:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    return machine.call(function, arguments)


def _call_with_keywords(machine: Machine, _: Any) -> Any:
    machine.stack.pop()
    return _call(machine, None)


def _instance(machine: Machine, line: str | None) -> Inert:
    items = machine.unmark()
    return machine.stub(items[0] if line is None else _global(machine, line))


def _frozen_set(machine: Machine, _: Any) -> Inert:
    machine.unmark()
    return Inert("frozenset")


def _set_item(machine: Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.assign([key, value])


def _set_state(machine: Machine, _: Any) -> None:
    machine.stack.pop()
    if not machine.stack:
        raise Refused("is damaged: its pickle gives a state to nothing")


INSTRUCTIONS: Mapping[str, Act] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": _push(lambda machine, _: None),
    "NEWTRUE": _push(lambda machine, _: True),
    "NEWFALSE": _push(lambda machine, _: False),
    "MARK": _mark,
    "POP": lambda machine, _: machine.drop(),
    "POP_MARK": lambda machine, _: machine.unmark(),
    "DUP": _push(lambda machine, _: machine.stack[-1]),
    "EMPTY_LIST": _push(lambda machine, _: []),
    "EMPTY_TUPLE": _push(lambda machine, _: ()),
    "EMPTY_DICT": _push(lambda machine, _: {}),
    "EMPTY_SET": _push(lambda machine, _: Inert("set")),
    "LIST": _push(lambda machine, _: machine.unmark()),
    "TUPLE": _push(lambda machine, _: tuple(machine.unmark())),
    "DICT": _push(lambda machine, _: dict(pairs(machine.unmark()))),
    "FROZENSET": _push(_frozen_set),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.unmark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.assign(machine.unmark()),
    "ADDITEMS": lambda machine, _: machine.unmark(),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _push(lambda machine, index: machine.memo[index])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.remember(index)),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GLOBAL": _push(_global),
    "STACK_GLOBAL": _push(_global_of_stack),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _push(lambda machine, _: Global("an extension of copyreg"))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _push(_call)),
    "NEWOBJ_EX": _push(_call_with_keywords),
    **dict.fromkeys(("INST", "OBJ"), _push(_instance)),
    "BUILD": _set_state,
    "BINPERSID": _push(lambda machine, _: machine.persistent(machine, machine.stack.pop())),
}
