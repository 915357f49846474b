"""How the point, a class and a share are called and marked in pictures."""

import numpy as np
from numpy import ndarray
from PIL import Image

from swindow.explanation.canvas import Canvas
from swindow.explanation.frame import Box
from swindow.explanation.results import Detected, Explanation


def subject(e: Explanation) -> str:
    """What the point is called."""
    if e.detected is not None:
        return "middle of the box"
    if e.segmented is None:
        return "chosen point"
    return f"pixel {place_in_picture(e)}"


def place_in_picture(e: Explanation) -> str:
    """The point's x and y in the picture given, of which the photo may be a window."""
    x, y = (0, 0) if e.segmented is None else e.segmented.origin
    return f"({e.point.x + x}, {e.point.y + y})"


def point_mark(e: Explanation) -> tuple[str, str]:
    """The point's line in a key."""
    return "point", f"the {subject(e)}"


def place(e: Explanation, on: Canvas) -> tuple[float, float]:
    """The middle of the point's pixel on the canvas."""
    down, across = (new / old for new, old in zip(on.frame.photo, e.frame.photo, strict=True))
    return (e.point.x + 0.5) * across, (e.point.y + 0.5) * down


def object_box(found: Detected, on: Canvas) -> Box:
    """The explained object's box on the canvas."""
    height, width = found.found.size
    down, across = on.frame.photo[0] / height, on.frame.photo[1] / width
    x1, y1, x2, y2 = found.box
    return y1 * down, x1 * across, (y2 - y1) * down, (x2 - x1) * across


def resized(heat: ndarray, on: Canvas) -> ndarray:
    """A map on the photo's pixels, at the canvas's size."""
    height, width = on.frame.photo
    return np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))


def percent(value: float) -> str:
    """A share for people."""
    return f"{100 * value:.1f} %" if value >= 0.001 else "< 0.1 %"


def shortened(text: str, most: int = 40) -> str:
    """A class name that fits a title."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
