"""What the commands' arguments share: how words become a dataclass, and what a size is."""

from typing import TypeVar

import tyro

from swindow.errors import ConfigError

Positional = tyro.conf.Positional
"""Marks a field that is given by its place, not by a flag."""

Flat = tyro.conf.arg(name="")
"""Marks a dataclass whose fields are flags of their own, without the name of the field that holds it."""

Arguments = TypeVar("Arguments")


def parse(shape: type[Arguments], words: list[str], *, prog: str, default: Arguments | None = None) -> Arguments:
    """`words` as an instance of the dataclass `shape`; tyro prints help and usage errors and exits by itself."""
    if default is None:
        return tyro.cli(shape, args=words, prog=prog)
    return tyro.cli(shape, args=words, prog=prog, default=default)


def height_and_width(asked: tuple[int, ...]) -> tuple[int, int] | None:
    """What --size says; None when it says nothing."""
    if len(asked) > 2 or any(side < 1 for side in asked):
        raise ConfigError(f"size {asked} is neither a side nor a height and a width in pixels")
    return (asked[0], asked[-1]) if asked else None
