"""Charts as SVG text: no plotting library, sharp at any size, and coloured by the style sheet of the page they lie in.

Classes that the page's style sheet colours: ``grid`` ``axis`` ``label`` ``line`` ``dot`` ``bar`` ``over``
``under`` ``right`` ``wrong`` ``count``, and ``train`` ``val`` ``mean`` ``means`` for what a line shows.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from swindow.metrics import Bin
from swindow.sheets import clean

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 26, 26
MOST_POINTS = 160
MOST_CLASSES = 100
MOST_OF_SHARES = 40
"""Classes of a confusion in shares: of pixels nearly every cell has some, and each is text in the page."""
LEAST_SHARE = 0.0005

Number = int | float


class Recalls(NamedTuple):
    """Precision at recalls 0, 0.01 … 1: of one class in its colour, or without one in a style of the page."""

    name: str
    precision: np.ndarray
    colour: tuple[int, int, int] | None = None
    style: str = ""


class Series(NamedTuple):
    """A line: its name, the class that colours it, and points of finite x and y in rising x."""

    name: str
    style: str
    points: Sequence[tuple[Number, Number]]


def line_chart(
    title: str, series: Sequence[Series], *, form: Callable[[Number], str], floor: Number | None = None
) -> str:
    """Lines over steps; the y axis starts at `floor` where one is given, and `form` writes its values.

    A line of more than 160 points is drawn through the means of as many equal parts.
    """
    lines = [line._replace(points=_thinned(line.points)) for line in series if line.points]
    if not lines:
        return ""
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    y_ticks = _ticks(min(ys) if floor is None else floor, max(ys))
    x = _Scale(min(0.0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    y = _Scale(y_ticks[0], max(y_ticks[-1], max(ys)), HEIGHT - BOTTOM, TOP)
    parts = [_horizontal(y(value), form(value)) for value in y_ticks]
    parts += [
        _text(x(value), HEIGHT - 8, _short_count(value), "middle")
        for value in _ticks(x.low, x.high)
        if x.low <= value <= x.high
    ]
    parts += [_line(line, x, y) for line in lines]
    parts += _legend(lines) if len(lines) > 1 else []
    summary = "; ".join(f"{line.name} ends at {form(line.points[-1][1])}" for line in lines)
    return _svg(f"{title} over steps: {summary}", WIDTH, HEIGHT, parts)


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Accuracy against confidence, with the gap to the diagonal, over the number of answers in each bin."""
    side, strip = 250, 46
    x, y = _Scale(0, 1, LEFT, LEFT + side), _Scale(0, 1, TOP + side, TOP)
    base = TOP + side + 18 + strip
    most = max(bin.count for bin in bins)
    parts = [_horizontal(y(value), f"{value:.0%}", LEFT + side) for value in (0, 0.25, 0.5, 0.75, 1)]
    for bin in bins:
        left, width = x(bin.low) + 1, x(bin.high) - x(bin.low) - 2
        said = f"confidence {bin.confidence:.1%}, right {bin.accuracy:.1%}, {bin.count} images"
        low, high = sorted((bin.accuracy, bin.confidence))
        parts.append(_box(left, y(low), width, y(0) - y(low), "bar", said))
        parts.append(_box(left, y(high), width, y(low) - y(high), "over" if low == bin.accuracy else "under", said))
        tall = max(strip * bin.count / most, 1)
        parts.append(_box(left, base - tall, width, tall, "bar quiet", said))
    parts.append(_tag("line", cls="diagonal", x1=x(0), y1=y(0), x2=x(1), y2=y(1)))
    parts += [_text(x(value), base + 16, f"{value:.0%}", "middle") for value in (0, 0.5, 1)]
    parts.append(_text(LEFT - 6, base - 2, "images", "end"))
    parts.append(_text(LEFT, TOP - 12, "answers that are right", "start"))
    parts.append(_text(LEFT + side, base + 32, "confidence of the answer", "end"))
    told = "; ".join(f"{bin.confidence:.0%} sure, {bin.accuracy:.0%} right" for bin in bins)
    return _svg(f"Reliability diagram: {told}", LEFT + side + 22, base + 40, parts)


def recall_chart(curves: Sequence[Recalls]) -> str:
    """Precision against recall, each curve until the recall that is not reached, their names to the right."""
    side, names = 270, 190
    x, y = _Scale(0, 1, LEFT, LEFT + side), _Scale(0, 1, TOP + side, TOP)
    parts = [_horizontal(y(value), f"{value:.0%}", LEFT + side) for value in (0, 0.25, 0.5, 0.75, 1)]
    parts += [_text(x(value), TOP + side + 16, f"{value:.0%}", "middle") for value in (0, 0.5, 1)]
    parts.append(_text(LEFT, TOP - 12, "precision: found that are right", "start"))
    parts.append(_text(LEFT + side, TOP + side + 32, "recall: objects that are found", "end"))
    for place, curve in enumerate(curves):
        reached = int(np.flatnonzero(curve.precision > 0)[-1]) if (curve.precision > 0).any() else 0
        points = [(x(step / 100), y(float(curve.precision[step]))) for step in range(reached + 1)]
        points += [(points[-1][0], y(0))] if reached < 100 else []
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        how: dict[str, str] = {"style": f"stroke:rgb{curve.colour}"} if curve.colour else {}
        name, height = _cut(clean(curve.name), 26), TOP + 8 + 17 * place
        said = _tag("title", html.escape(clean(curve.name)))
        parts.append(_tag("polyline", said, cls=f"line {curve.style}".strip(), points=path, **how))
        left = LEFT + side + 18
        parts.append(
            _tag("line", cls=f"line {curve.style}".strip(), x1=left, y1=height, x2=left + 18, y2=height, **how)
        )
        parts.append(_text(left + 24, height + 4, name, "start"))
    height = max(TOP + side + 40, TOP + 17 * len(curves) + 12)
    told = "; ".join(f"{clean(curve.name)}: {float(curve.precision.mean()):.1%} on average" for curve in curves)
    return _svg(f"Precision against recall: {told}", LEFT + side + names, height, parts)


def confusion_chart(confusion: np.ndarray, classes: Sequence[str], *, shares: bool = False) -> str:
    """True classes as rows, predicted ones as columns; colour is the share of a row, numbers are images or boxes.

    With `shares` what is counted are pixels: numbers are shares of the row, and those below 0.05 % are left out.

    Of more than 100 classes (40 with `shares`) it shows those with the most mistakes; see `shown_classes`.
    """
    shown = shown_classes(confusion, MOST_OF_SHARES if shares else MOST_CLASSES)
    names = [_cut(clean(classes[k]), 24) for k in shown]
    cell = next(side for limit, side in ((12, 46), (25, 32), (50, 18), (MOST_CLASSES, 10)) if len(shown) <= limit)
    size = min(12.0, cell - 1.0)
    longest = max(len(name) for name in names) * size * 0.6
    turned = longest > cell - 6
    left, top = round(max(longest, 34)) + 10, round(longest if turned else size) + 30
    parts = [_text(left, 13, "predicted →", "start"), _text(left - 8, top - 8, "true ↓", "end")]
    for place, name in enumerate(names):
        parts.append(_text(left - 8, top + cell * (place + 0.5) + size * 0.35, name, "end", size))
        parts.append(_column_name(left + cell * (place + 0.5), top - 8, name, size, turned=turned))
    row_sums = np.maximum(confusion.sum(axis=1), 1)
    for row, true in enumerate(shown):
        for column, predicted in enumerate(shown):
            count, share = int(confusion[true, predicted]), confusion[true, predicted] / row_sums[true]
            if (share < LEAST_SHARE) if shares else (count == 0):
                continue
            said = f"{clean(classes[true])} taken for {clean(classes[predicted])}"
            said = f"{clean(classes[true])} recognised" if true == predicted else said
            said += f": {share:.1%} ({count:,} pixels)" if shares else f": {count} ({share:.1%})"
            box = _Cell(left + cell * column, top + cell * row, cell, right=true == predicted)
            parts += box.drawn(share, said, [_short_share(share)] if shares else [str(count), f"{share:.0%}"])
    side = cell * len(shown)
    parts.append(_tag("rect", cls="frame", x=left, y=top, width=side, height=side))
    told = f"Confusion matrix: {_on_diagonal(confusion, shares=shares)} on the diagonal"
    return _svg(told, left + side + 2, top + side + 2, parts, fixed=True)


def shown_classes(confusion: np.ndarray, most: int = MOST_CLASSES) -> list[int]:
    """All classes, or the `most` with the most mistakes, in their own order."""
    if len(confusion) <= most:
        return list(range(len(confusion)))
    mistakes = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return sorted(int(k) for k in np.argsort(-mistakes, kind="stable")[:most])


class _Scale(NamedTuple):
    """Values to places on the page."""

    low: Number
    high: Number
    start: Number
    end: Number

    def __call__(self, value: Number) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def _column_name(x: Number, y: Number, name: str, size: Number, *, turned: bool) -> str:
    if not turned:
        return _text(x, y, name, "middle", size)
    turn = f"translate({x + size * 0.35:.5g} {y:.5g}) rotate(-90)"
    return _tag("text", html.escape(name), cls="label", font_size=f"{size:g}", transform=turn)


class _Cell(NamedTuple):
    """A field of a confusion matrix."""

    left: Number
    top: Number
    side: Number
    right: bool

    def drawn(self, share: float, said: str, numbers: Sequence[str]) -> list[str]:
        """Its colour and, where there is room, one number or two below each other."""
        strength = 0.12 + 0.88 * share  # so that a single mistake among a hundred is still seen
        cls, side = "right" if self.right else "wrong", self.side
        parts = [_box(self.left + 0.5, self.top + 0.5, side - 1, side - 1, cls, said, round(strength, 3))]
        if side < 30:
            return parts
        ink = "count strong" if strength > 0.55 else "count"
        x, y = self.left + side / 2, self.top + side / 2
        both = side > 40 and len(numbers) > 1
        parts.append(_tag("text", numbers[0], cls=ink, x=x, y=y + (1 if both else 4), text_anchor="middle"))
        if both:
            parts.append(_tag("text", numbers[1], cls=f"{ink} small", x=x, y=y + 14, text_anchor="middle"))
        return parts


def _short_share(share: float) -> str:
    """At most four characters, and never 100% of what is less."""
    return "100%" if share == 1 else f"{share:.1%}" if share < 0.0995 else f"{min(share, 0.99):.0%}"


def _on_diagonal(confusion: np.ndarray, *, shares: bool) -> str:
    right, every = int(np.trace(confusion)), int(confusion.sum())
    return f"{right / max(every, 1):.1%} of {every:,} pixels" if shares else f"{right} of {every}"


def _line(line: Series, x: _Scale, y: _Scale) -> str:
    places = [(x(point[0]), y(point[1])) for point in line.points]
    path = _tag("polyline", cls=f"line {line.style}", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places))
    if len(places) > 40:
        return path
    return path + "".join(
        _tag("circle", cls=f"dot {line.style}", cx=a, cy=b, r=2.4 if len(places) > 8 else 3.2) for a, b in places
    )


def _legend(lines: Sequence[Series]) -> list[str]:
    parts, left = [], float(LEFT)
    for line in lines:
        parts.append(_tag("line", cls=f"line {line.style}", x1=left, y1=11, x2=left + 16, y2=11))
        parts.append(_text(left + 21, 15, line.name, "start"))
        left += 36 + 6.2 * len(line.name)
    return parts


def _thinned(points: Sequence[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    if len(points) <= MOST_POINTS:
        return list(points)
    parts = np.array_split(np.asarray(points, dtype=np.float64), MOST_POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _ticks(low: Number, high: Number, about: int = 4) -> list[Number]:
    """Round values from at most `low` up to at least about `high`, a step of 1, 2 or 5 times a power of ten apart."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _short_count(value: Number) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _horizontal(height: Number, text: str, right: Number = WIDTH - RIGHT) -> str:
    rule = _tag("line", cls="grid", x1=LEFT, y1=height, x2=right, y2=height)
    return rule + _text(LEFT - 6, height + 4, text, "end")


def _text(x: Number, y: Number, text: str, anchor: str, size: Number = 11) -> str:
    return _tag("text", html.escape(text), cls="label", x=x, y=y, text_anchor=anchor, font_size=f"{size:g}")


def _box(x: Number, y: Number, width: Number, height: Number, cls: str, said: str, strength: Number = 1.0) -> str:
    shade = {} if strength == 1.0 else {"fill_opacity": f"{strength:g}"}
    title = _tag("title", html.escape(said))
    return _tag("rect", title, cls=cls, x=x, y=y, width=width, height=height, **shade)


def _svg(said: str, width: Number, height: Number, parts: Sequence[str], *, fixed: bool = False) -> str:
    """The whole picture; `fixed` keeps its size where others shrink with the page."""
    size = {"width": f"{width:g}", "height": f"{height:g}"} if fixed else {"style": f"max-width:{width * 1.4:g}px"}
    box = f"0 0 {width:g} {height:g}"
    return _tag("svg", "".join(parts), viewBox=box, role="img", aria_label=html.escape(said, quote=True), **size)


def _tag(tag: str, content: str = "", *, cls: str = "", **attributes: Any) -> str:
    """One element; `content` and attributes are markup already. Numbers lose the digits that nobody sees."""
    named = {"class": cls, **attributes} if cls else attributes
    written = "".join(
        f' {name.replace("_", "-")}="{value:.5g}"'
        if isinstance(value, (int, float))
        else f' {name.replace("_", "-")}="{value}"'
        for name, value in named.items()
    )
    return f"<{tag}{written}>{content}</{tag}>" if content else f"<{tag}{written}/>"
