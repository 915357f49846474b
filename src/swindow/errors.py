"""Everything swindow raises on purpose.

SwindowError
├── ConfigError (ValueError)      a setting that cannot be
│   └── UnknownName               a name we do not have; the message offers the nearest ones
├── ShapeError (ValueError)       a tensor of another shape than the operation takes
├── CheckpointError               a file that is no checkpoint of ours, or not of this model
├── DataError                     an image, label or folder that cannot be used
├── BackendUnavailable            an attention backend that cannot run here, and why
├── MissingExtra (ImportError)    an optional dependency, with the line that installs it
├── OutOfMemory                   no memory left for a training step, and what to change
└── TrainingDiverged              a loss or gradient that is no longer finite

Every message is one line: what was given, what is allowed, what to do.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


class SwindowError(Exception):
    """Root of the tree above; the command line prints it as one line and exits with 2."""


class ConfigError(SwindowError, ValueError):
    """A setting that cannot be."""


class UnknownName(ConfigError):
    """A name that is not in the table it was looked up in."""

    def __init__(self, kind: str, name: str, allowed: Iterable[str]) -> None:
        allowed = sorted(allowed)
        near = difflib.get_close_matches(name, allowed, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(allowed)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.arguments = (kind, name, allowed)

    def __reduce__(self) -> tuple[type["UnknownName"], tuple[str, str, list[str]]]:
        # Exceptions cross process borders (data workers) by pickling their constructor's arguments.
        return type(self), self.arguments


class ShapeError(SwindowError, ValueError):
    """A tensor of another shape than the operation takes."""


class CheckpointError(SwindowError):
    """A file that is no checkpoint, or not one of this model."""


class DataError(SwindowError):
    """An image, a label or a folder that cannot be used; the message names it."""


class BackendUnavailable(SwindowError):
    """An attention backend that was asked for by name and cannot run here."""


class MissingExtra(SwindowError, ImportError):
    """An optional dependency that is not installed."""


class OutOfMemory(SwindowError):
    """No memory left for a training step; the message says what to change."""


class TrainingDiverged(SwindowError):
    """A loss or gradient that is no longer finite."""


def need(module: str, *, extra: str) -> None:
    """Say which line installs an optional dependency that is not there, without the time that importing it takes.

    Raises:
        MissingExtra: the module is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"{module} is not installed; run: pip install 'swindow[{extra}]'")


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which line installs it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtra(f"{module} is not installed; run: pip install 'swindow[{extra}]'") from error
