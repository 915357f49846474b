"""What one process of a run does or fails to do, all of them learn: none waits for one that has given up."""

from collections.abc import Callable
from typing import TypeVar

from swindow.distributed import Ranks
from swindow.errors import CheckpointError, SwindowError

T = TypeVar("T")


def by_first(ranks: Ranks, action: Callable[[], T]) -> T:
    """What `action` returns in the first process, everywhere; the others do not do it.

    Raises:
        SwindowError: what the first process raised, everywhere.
    """
    result: T | None = None
    error: Exception | None = None
    if ranks.is_first:
        try:
            result = action()
        except Exception as caught:  # noqa: BLE001 - it is raised below, where the others have heard of it
            error = caught
    told, result = ranks.first_of((_portable(error), result))
    if error is not None or told is not None:
        raise error or told  # type: ignore[misc]
    return result  # type: ignore[return-value]


def agree(ranks: Ranks, error: BaseException | None) -> None:
    """Hear what went wrong anywhere; every process must ask.

    Raises:
        SwindowError: this process's own error, or else that of the first one that has one.
    """
    everyones = ranks.everyones(_portable(error))
    if error is not None:
        raise error
    for told in everyones:
        if told is not None:
            raise told


def _portable(error: BaseException | None) -> SwindowError | None:
    """An error as another process can raise it."""
    if error is None or type(error) in SwindowError.__subclasses__():
        return error  # type: ignore[return-value]
    return CheckpointError(f"another process failed: {type(error).__name__}: {error}")
