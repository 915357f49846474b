"""The assignment against every assignment there is, and what a pair costs against the definitions."""

import itertools

import pytest
import torch
from torch import Tensor

from swindow.heads.matching import Costs, Matches, assigned, match, pair_costs

COSTS = Costs()


def likely(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def boxes(*shape: int) -> Tensor:
    """Centres, widths and heights as shares."""
    return torch.rand(*shape, 4, dtype=torch.float64) * 0.5 + 0.1


def corners(box: Tensor) -> tuple[float, float, float, float]:
    x, y, width, height = box.tolist()
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def giou(one: Tensor, other: Tensor) -> float:
    """Rezatofighi et al. 2019, algorithm 1, for one pair."""
    (a, b, c, d), (e, f, g, h) = corners(one), corners(other)
    both = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    union = (c - a) * (d - b) + (g - e) * (h - f) - both
    hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
    return both / union - (hull - union) / hull


def test_what_a_pair_costs() -> None:
    logits, found, labels, truth = likely(2, 4, 6), boxes(2, 4), torch.tensor([3, 0, 4]), boxes(3)
    costs = Costs(classes=1.5, l1=4.0, giou=3.0)
    table = pair_costs(logits, found, labels, truth, costs)
    for layer, query, one in itertools.product(range(2), range(4), range(3)):
        share = logits[layer, query].softmax(0)[labels[one]].item()
        far = (found[layer, query] - truth[one]).abs().sum().item()
        expected = 4.0 * far - 1.5 * share - 3.0 * giou(found[layer, query], truth[one])
        assert table[layer, query, one].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0.5, 0.5, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), 1.0),
        ((0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0), 0.0),  # side by side: nothing shared, nothing between
        ((0.1, 0.5, 0.2, 1.0), (0.9, 0.5, 0.2, 1.0), -0.6),  # three fifths of the hull lie between
        ((0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), 0.25),
    ],
)
def test_generalised_iou_by_hand(one: tuple[float, ...], other: tuple[float, ...], expected: float) -> None:
    a, b = (torch.tensor([[values]], dtype=torch.float64) for values in (one, other))
    table = pair_costs(likely(1, 1, 3), a, torch.tensor([0]), b[0], Costs(classes=0.0, l1=0.0, giou=1.0))
    assert -table.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("queries", "objects"), [(5, 3), (5, 5), (3, 5), (6, 1), (1, 1), (4, 0)])
def test_no_assignment_costs_less(queries: int, objects: int) -> None:
    for seed in range(20):
        costs = torch.randn(queries, objects, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        rows, columns = assigned(costs)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert len(set(columns.tolist())) == len(rows) == min(queries, objects)
        table = costs if objects <= queries else costs.T  # each of the fewer ones gets another of the many
        every = itertools.permutations(range(len(table)), table.shape[1])
        least = min(sum(table[row, column].item() for column, row in enumerate(chosen)) for chosen in every)
        assert costs[rows, columns].sum().item() == pytest.approx(least, abs=1e-12)


def random_batch(counts: tuple[int, ...], layers: int = 2) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    labels = [torch.randint(5, (count,)) for count in counts]
    return likely(layers, len(counts), 7, 6), boxes(layers, len(counts), 7), labels, [boxes(count) for count in counts]


def of_picture(matches: Matches, image: int) -> tuple[Tensor, Tensor]:
    own = matches.images == image
    return matches.queries[:, own], matches.objects[:, own]


@pytest.mark.parametrize("counts", [(3, 0, 9, 1), (0, 0), (2,)])
def test_a_batch_is_matched_as_its_pictures_and_layers_alone(counts: tuple[int, ...]) -> None:
    logits, found, labels, truth = random_batch(counts)
    matches = match(logits, found, labels, truth, COSTS)
    assert matches.queries.shape == matches.objects.shape == (2, sum(min(7, count) for count in counts))
    for image, layer in itertools.product(range(len(counts)), range(2)):
        queries, objects = of_picture(matches, image)
        one = logits[layer : layer + 1, image : image + 1], found[layer : layer + 1, image : image + 1]
        alone = match(*one, labels[image : image + 1], truth[image : image + 1], COSTS)
        assert torch.equal(queries[layer], alone.queries[0])
        assert torch.equal(objects[layer], alone.objects[0] + sum(counts[:image]))
        assert queries.dtype == objects.dtype == matches.images.dtype == torch.int64


def test_pairs_find_the_objects_that_they_are() -> None:
    logits, found, labels, truth = random_batch((4, 3), layers=1)
    for image, order in enumerate(((6, 0, 3, 2), (1, 5, 4))):
        for one, query in enumerate(order):
            found[0, image, query] = truth[image][one]
            logits[0, image, query, labels[image][one]] = 20.0
    matches = match(logits, found, labels, truth, COSTS)
    pairs = dict(zip(matches.objects[0].tolist(), matches.queries[0].tolist(), strict=True))
    assert pairs == dict(enumerate((6, 0, 3, 2, 1, 5, 4)))


def test_what_is_no_number_is_taken_last() -> None:
    logits, found, labels, truth = random_batch((3,), layers=1)
    found[0, 0, :3] = torch.nan
    logits[0, 0, 3] = torch.inf
    matches = match(logits, found, labels, truth, COSTS)
    assert set(matches.queries[0].tolist()) <= {4, 5, 6}
    found[:] = torch.nan
    assert match(logits, found, labels, truth, COSTS).queries.shape == (1, 3)


def test_matching_asks_for_no_gradient() -> None:
    logits, found, labels, truth = random_batch((3,))
    assert not any(part.requires_grad for part in match(logits.requires_grad_(), found, labels, truth, COSTS))
