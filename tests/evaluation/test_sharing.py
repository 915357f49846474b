"""Several processes judge a model as one does: each image once, the same result everywhere, an error in all."""

from collections.abc import Iterator

import pytest

from company import Company
from judging_together import judged, refused
from swindow.distributed import Ranks
from swindow.evaluation.sharing import share_of_cases, share_of_rows


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    two = Company(2)
    yield two
    two.end()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("classes", {}),
        ("classes", {"count": 3}),  # one batch: the second process is asked nothing
        ("painting", {}),
        ("pixels", {}),
        ("pixels", {"cases": "aaaaaaa"}),  # one case: all of it is the first one's
        ("objects", {}),
        ("objects", {"images": 1}),
    ],
)
def test_two_processes_find_what_one_finds(company, kind, how):
    alone = judged(kind, together=False, **how)
    assert company.ask(judged, kind, **how) == [alone, alone]


@pytest.mark.parametrize(("kind", "bad"), [("pixels", 0), ("pixels", 5), ("objects", 1), ("objects", 11)])
def test_what_one_cannot_read_stops_both(company, kind, bad):
    said = company.ask(refused, kind, bad=bad)
    assert said[0] == said[1]
    assert f"picture {bad} cannot be read" in said[0]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_row_is_in_one_share(world):
    every = [Ranks(rank, world, rank) for rank in range(world)]
    assert [row for ranks in every for row in share_of_rows(10, ranks)] == list(range(10))
    cases = "aabacccdee"
    shares = [share_of_cases(cases, ranks) for ranks in every]
    assert sorted(row for share in shares for row in share) == list(range(10))
    held = [{cases[row] for row in share} for share in shares]
    assert sum(map(len, held)) == 5, "a case in two shares cannot be measured"
