"""Flags whose defaults are what the run in question was trained with."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from swindow.cli.arguments import parse
from swindow.config import from_dict

Arguments = TypeVar("Arguments")


def parse_as_in_run(shape: type[Arguments], words: list[str], *, prog: str, kinds: Mapping[str, type]) -> Arguments:
    """`parse`, and then once more with those fields that `kinds` names as the run has them, so that flags win."""
    first: Any = parse(shape, words, prog=prog)
    from swindow.predict.predictor import settings_of  # after parsing: --help does not wait for torch

    settings = settings_of(first.run)
    own: dict[str, Any] = {name: from_dict(kind, settings[name]) for name, kind in kinds.items() if name in settings}
    return parse(shape, words, prog=prog, default=dataclasses.replace(first, **own)) if own else first
