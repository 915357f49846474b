"""Charts: the numbers that go in are where they should be on the page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from swindow.charts import (
    HEIGHT,
    WIDTH,
    Recalls,
    Series,
    confusion_chart,
    line_chart,
    recall_chart,
    reliability_chart,
    shown_classes,
)
from swindow.metrics import Bin

SPACE = "{http://www.w3.org/2000/svg}"


def parse(svg):
    """The picture as a tree; a page needs no name space, a parser's rules of well-formedness are those of a page."""
    return ElementTree.fromstring(svg)  # noqa: S314 - our own text


def polyline(tree, style):
    (line,) = (node for node in tree.iter("polyline") if style in node.get("class").split())
    return [tuple(map(float, point.split(","))) for point in line.get("points").split()]


def labels(tree):
    return [node.text for node in tree.iter("text")]


def test_points_lie_where_their_values_say():
    points = [(0, 0.0), (50, 1.0), (100, 0.5)]
    tree = parse(line_chart("accuracy", [Series("validation", "val", points)], form="{:.0%}".format))
    places = polyline(tree, "val")
    ticks = {node.text: float(node.get("y")) - 4 for node in tree.iter("text") if node.text.endswith("%")}
    assert places[0][1] == pytest.approx(ticks["0%"], abs=0.06)
    assert places[1][1] == pytest.approx(ticks["100%"], abs=0.06)
    assert places[2][1] == pytest.approx((ticks["0%"] + ticks["100%"]) / 2, abs=0.06)
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.06)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert "validation ends at 50%" in tree.get("aria-label")


def test_two_lines_share_their_axes_and_are_told_apart():
    series = [Series("training", "train", [(1, 4.0), (2, 3.0)]), Series("validation", "val", [(2, 3.0)])]
    tree = parse(line_chart("loss", series, form="{:g}".format))
    assert polyline(tree, "train")[1] == polyline(tree, "val")[0]
    assert {"training", "validation"} < set(labels(tree))


def test_long_lines_are_drawn_through_means():
    points = [(step, step % 2) for step in range(1600)]
    places = polyline(parse(line_chart("loss", [Series("training", "train", points)], form=str)), "train")
    assert len(places) == 160
    assert len({y for _, y in places}) == 1


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-9, 1e12])
def test_a_single_or_constant_value_is_drawn(value):
    tree = parse(line_chart("loss", [Series("training", "train", [(1, value), (2, value)])], form="{:g}".format))
    (_, y), (_, again) = polyline(tree, "train")
    assert y == again
    assert 0 <= y <= HEIGHT
    assert line_chart("loss", [Series("training", "train", [])], form=str) == ""


def test_every_confusion_is_a_cell_that_says_what_it_is():
    confusion = np.array([[7, 3, 0], [0, 5, 0], [1, 0, 0]])
    tree = parse(confusion_chart(confusion, ["a", "<b>", "c & d"]))
    said = {node.find("title").text: node.get("class") for node in tree.iter("rect") if node.find("title") is not None}
    assert said == {
        "a recognised: 7 (70.0%)": "right",
        "a taken for <b>: 3 (30.0%)": "wrong",
        "<b> recognised: 5 (100.0%)": "right",
        "c & d taken for a: 1 (100.0%)": "wrong",
    }
    assert [text for text in labels(tree) if text.isdecimal()] == ["7", "3", "5", "1"]
    cells = {node.find("title").text[0:7]: node for node in tree.iter("rect") if node.find("title") is not None}
    assert float(cells["a recog"].get("x")) == float(cells["c & d t"].get("x"))
    assert float(cells["a recog"].get("y")) == float(cells["a taken"].get("y"))
    assert float(cells["a recog"].get("fill-opacity")) > float(cells["a taken"].get("fill-opacity"))


def test_pixels_are_told_in_shares_of_their_row():
    confusion = np.array([[9_994, 0, 6], [350, 9_649, 1], [0, 0, 7_000_000]])
    tree = parse(confusion_chart(confusion, ["a", "b", "c"], shares=True))
    said = [node.find("title").text for node in tree.iter("rect") if node.find("title") is not None]
    assert said == [
        "a recognised: 99.9% (9,994 pixels)",
        "a taken for c: 0.1% (6 pixels)",
        "b taken for a: 3.5% (350 pixels)",
        "b recognised: 96.5% (9,649 pixels)",
        "c recognised: 100.0% (7,000,000 pixels)",
    ]  # one pixel of ten thousand is left out
    assert [text for text in labels(tree) if text.endswith("%")] == ["99%", "0.1%", "3.5%", "96%", "100%"]
    assert tree.get("aria-label").endswith("100.0% of 7,020,000 pixels on the diagonal")


def test_of_many_classes_in_shares_fewer_are_shown():
    confusion = np.diag(np.full(60, 90))
    confusion[55, 3], confusion[20, 59] = 5, 1
    tree = parse(confusion_chart(confusion, [f"c{k}" for k in range(60)], shares=True))
    names = {text for text in labels(tree) if text.startswith("c")}
    assert len(names) == 40
    assert {"c55", "c3", "c20", "c59"} < names


@pytest.mark.parametrize("classes", [10, 21, 47, 100])
def test_names_are_legible_and_inside_whatever_the_number_of_classes(classes):
    names = [f"class number {k}" for k in range(classes)]
    tree = parse(confusion_chart(np.eye(classes, dtype=np.int64), names))
    sizes = [float(node.get("font-size")) for node in tree.iter("text") if node.text in names]
    assert len(sizes) == 2 * classes
    assert min(sizes) >= 9
    width, height = (float(tree.get(side)) for side in ("width", "height"))
    boxes = [[float(node.get(key)) for key in ("x", "y", "width", "height")] for node in tree.iter("rect")]
    assert all(x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in boxes)
    assert width < 1250
    rows = sorted(
        {float(node.get("y")) for node in tree.iter("text") if node.text in names and not node.get("transform")}
    )
    assert np.diff(rows).min() > sizes[0]


def test_of_very_many_classes_the_most_confused_are_shown():
    confusion = np.diag(np.full(150, 9))
    confusion[140, 3], confusion[20, 149] = 5, 1
    shown = shown_classes(confusion)
    assert len(shown) == 100
    assert {140, 3, 20, 149} < set(shown)
    assert shown == sorted(shown)
    tree = parse(confusion_chart(confusion, [f"c{k}" for k in range(150)]))
    said = [node.find("title").text for node in tree.iter("rect") if node.find("title") is not None]
    assert "c140 taken for c3: 5 (35.7%)" in said
    assert shown_classes(confusion[:100, :100]) == list(range(100))


def test_bars_of_the_reliability_diagram():
    over = Bin(low=0.4, high=0.5, count=10, confidence=0.45, accuracy=0.2)
    under = Bin(low=0.9, high=1.0, count=40, confidence=0.95, accuracy=1.0)
    tree = parse(reliability_chart([over, under]))
    bars = list(tree.iter("rect"))
    scale = next(float(node.get("y1")) for node in tree.iter("line") if node.get("class") == "diagonal")
    by_class = {}
    for node in bars:
        by_class.setdefault(node.get("class"), []).append(node)
    heights = [float(node.get("height")) for node in by_class["bar"]]
    assert heights == pytest.approx([0.2 * 250, 0.95 * 250], abs=0.01)
    assert float(by_class["over"][0].get("height")) == pytest.approx(0.25 * 250, abs=0.01)
    assert float(by_class["under"][0].get("height")) == pytest.approx(0.05 * 250, abs=0.01)
    assert all(
        float(node.get("y")) + float(node.get("height")) == pytest.approx(scale, abs=0.02) for node in by_class["bar"]
    )
    small, tall = (float(node.get("height")) for node in by_class["bar quiet"])
    assert tall == pytest.approx(4 * small, abs=0.01)
    assert bars[0].find("title").text == "confidence 45.0%, right 20.0%, 10 images"


def test_names_of_any_kind_stay_well_formed():
    names = ["<script>alert(1)</script>", "a\nb\x00c", "\udce9", "x" * 200, "\"quoted\" & 'so'"]
    svg = confusion_chart(np.ones((5, 5), dtype=np.int64), names)
    assert "<script" not in svg
    svg.encode("utf-8")
    assert len(re.findall("x{24,}", "".join(labels(parse(svg))))) == 0


def test_precision_is_drawn_until_the_recall_that_is_not_reached():
    half = np.concatenate([np.ones(31), np.full(20, 0.5), np.zeros(50)])
    curves = [
        Recalls("cat <1>", half, (10, 200, 30)),
        Recalls("nothing", np.zeros(101), (1, 2, 3)),
        Recalls("all", np.linspace(1, 0.2, 101), style="mean"),
    ]
    tree = parse(recall_chart(curves))
    ticks = {node.text: float(node.get("y")) - 4 for node in tree.iter("text") if node.get("text-anchor") == "end"}
    across = {node.text: float(node.get("x")) for node in tree.iter("text") if node.get("text-anchor") == "middle"}
    lines = [
        (node, [tuple(map(float, point.split(","))) for point in node.get("points").split()])
        for node in tree.iter("polyline")
    ]
    (cat, points), (_, nothing), (mean, whole) = lines
    assert cat.get("style") == "stroke:rgb(10, 200, 30)"
    assert points[0] == pytest.approx((across["0%"], ticks["100%"]), abs=0.06)
    assert points[-2] == pytest.approx((across["50%"], ticks["50%"]), abs=0.06)
    assert points[-1] == pytest.approx((across["50%"], ticks["0%"]), abs=0.06)
    assert len(points) == 52
    assert len(set(nothing)) == 1
    assert mean.get("class") == "line mean"
    assert len(whole) == 101
    assert whole[-1][0] == pytest.approx(across["100%"], abs=0.06)
    assert {"cat <1>", "nothing", "all"} <= set(labels(tree))
    assert "cat <1>: 40.6% on average" in tree.get("aria-label")
