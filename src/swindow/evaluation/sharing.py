"""The images of a split shared out over the processes of a run, and what each found put together again."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from swindow.distributed import Ranks
from swindow.errors import SwindowError

T = TypeVar("T")


def gathered(ranks: Ranks, ask: Callable[[], T]) -> list[T]:
    """What `ask` returns in each process, everywhere, in order of rank; a process may have been asked nothing.

    Raises:
        SwindowError: what `ask` raised, in every process: that of the first which has an error.
    """
    answer: T | SwindowError
    try:
        answer = ask()
    except SwindowError as error:
        if ranks.world == 1:
            raise
        answer = error
    answers: list[T] = []
    for one in ranks.everyones(answer):
        if isinstance(one, SwindowError):
            raise one
        answers.append(one)
    return answers


def share_of_rows(count: int, ranks: Ranks) -> range:
    """The rows of `count` that are this process's: as many as the others', give or take one, and in one piece."""
    return range(count * ranks.rank // ranks.world, count * (ranks.rank + 1) // ranks.world)


def share_of_cases(cases: Sequence[str], ranks: Ranks) -> list[int]:
    """The rows that are this process's where rows of one case must stay together; about as many as the others'."""
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(cases):
        rows.setdefault(case, []).append(row)
    mine: list[int] = []
    before = 0
    for of_case in rows.values():
        if before * ranks.world // len(cases) == ranks.rank:
            mine += of_case
        before += len(of_case)
    return sorted(mine)
