"""Tags of names beside boxes: where each finds room, and that it can be read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from swindow.data.legends import RGB
from swindow.sheets import clean, font, shortened

MOST_TAGS = 300
"""Objects that are named, the first ones; more could not be told apart."""
COVERED, COVERED_OWN = 0.3, 0.6
"""How much of another object's box, and of its own, a tag may hide."""
LONGEST_NAME = 10.0
"""Of a name that must be shortened, in widths of the font."""


class Tag(NamedTuple):
    """A text and the rectangle that it is written into, in pixels."""

    text: str
    left: int
    top: int
    right: int
    bottom: int


def wordings(name: str, score: float | None, before: str, size: int) -> list[str]:
    """What a tag may say, from all to as little as is worth saying."""
    name, number = clean(name), "" if score is None else f"{score:.2f}"
    short = shortened(name, round(LONGEST_NAME * size), font(size))
    texts = [f"{before} {name} {number}", f"{before} {short} {number}", f"{before} {number}" if number else short]
    return list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))


def place_tags(
    boxes: np.ndarray, texts: Sequence[Sequence[str]], order: Sequence[int], canvas: tuple[int, int], size: int
) -> list[Tag | None]:
    """A tag for each box, or None where there is no room: inside the canvas, over no other tag and no small object.

    `texts` are the wordings of each, the first that fits is taken; those that come first in `order` choose first.
    """
    tags: list[Tag | None] = [None] * len(boxes)
    taken: list[Tag] = []
    for index in order[:MOST_TAGS]:
        tags[index] = next(
            filter(None, (_placed(boxes, index, text, taken, canvas, size) for text in texts[index])), None
        )
        taken += [found] if (found := tags[index]) else []
    return tags


def write_tag(draw: ImageDraw.ImageDraw, tag: Tag, colour: RGB, size: int) -> None:
    """The text on its class's colour, black or white, whichever is easier to read."""
    draw.rectangle((tag.left, tag.top, tag.right - 1, tag.bottom - 1), fill=colour)
    draw.text((tag.left + 2, (tag.top + tag.bottom) / 2), tag.text, font=font(size), fill=ink_on(colour), anchor="lm")


def ink_on(colour: RGB) -> RGB:
    """Black or white: a contrast of at least 4.5 to any colour (WCAG 2's relative luminance)."""
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    bright = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179
    return (0, 0, 0) if bright else (255, 255, 255)


def _placed(
    boxes: np.ndarray, index: int, text: str, taken: Sequence[Tag], canvas: tuple[int, int], size: int
) -> Tag | None:
    height, width = size + 4, int(np.ceil(font(size).getlength(text))) + 4
    if height > canvas[0] or width > canvas[1]:
        return None
    x1, y1, x2, y2 = (round(float(side)) for side in boxes[index])
    corners = np.array([
        (x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2),  # outside: above, below
        (x1, y1), (x2 - width, y1), (x1, y2 - height), (x2, y1), (x1 - width, y1),  # inside; to the right, to the left
    ])  # fmt: skip
    corners[:, 0] = corners[:, 0].clip(0, canvas[1] - width)
    inside = (corners[:, 1] >= 0) & (corners[:, 1] + height <= canvas[0])
    places = np.concatenate([corners, corners + np.array([width, height])], axis=1)
    others = np.array([tag[1:] for tag in taken], float).reshape(-1, 4)
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    hidden = _shared(places, boxes) / areas
    allowed = np.full(len(boxes), COVERED)
    allowed[index] = COVERED_OWN
    free = inside & ~(_shared(places, others) > 0).any(axis=1) & (hidden <= allowed).all(axis=1)
    if not free.any():
        return None
    left, top, right, bottom = (int(side) for side in places[free.argmax()])
    return Tag(text, left, top, right, bottom)


def _shared(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that each of some rectangles has in common with each of others."""
    start = np.maximum(some[:, None, :2], others[None, :, :2])
    sides = np.minimum(some[:, None, 2:], others[None, :, 2:]) - start
    return sides.clip(0).prod(axis=2)
