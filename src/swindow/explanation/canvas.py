"""The drawing board: a photo with a heat map over it, in rows of panels, with a title and a colour bar.

Figures are made directly, without pyplot, so nothing global is touched and no window opens.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from swindow.errors import require
from swindow.explanation.frame import Box, Frame
from swindow.ops.windows import Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORMAP = "inferno"
WINDOW, SEEN = "#35d6ff", "#ffffff"
DPI = 110
WIDTH = 10.0  # inches
EDGE, GAP, BAR, HEADER, LABEL, FOOTER = 0.18, 0.14, 1.0, 0.82, 0.26, 0.42


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of paper and ink."""

    paper: str
    ink: str
    faint: str


LIGHT = Theme(paper="#ffffff", ink="#1a1f26", faint="#5b6470")
DARK = Theme(paper="#161b22", ink="#e8edf3", faint="#9aa5b1")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One picture in a figure: a photo's pixels, perhaps a part of them, a caption and what is drawn on top."""

    pixels: Float[ndarray, "h w 3"]
    caption: str
    boxes: tuple[tuple[Box, str], ...] = ()
    """Rectangles and their line styles, in pixels of the whole photo."""
    point: tuple[float, float] | None = None
    """A position (x, y) to mark."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Where the top left pixel (x, y) lies on the whole photo."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """A photo at a size fit for drawing, as RGB in 0..1, and the frame at that size."""

    photo: Float[ndarray, "h w 3"]
    frame: Frame

    def overlay(self, heat: Float[ndarray, "h w"]) -> Float[ndarray, "h w 3"]:
        """The photo under a heat map with values in 0..1: the hotter, the less of the photo; dim where unseen."""
        return _blend(self._backdrop(), heat, self.frame.seen())

    def dimmed(self) -> Float[ndarray, "h w 3"]:
        """The photo in its colours, dim where it was not seen."""
        return np.where(self.frame.seen()[:, :, None], self.photo, _unseen(self.photo))

    def _backdrop(self) -> ndarray:
        """The photo with little colour and less contrast, so that the heat's colours cannot be mistaken for its own."""
        grey = self.photo @ np.array([0.299, 0.587, 0.114])
        return 0.12 + 0.70 * (0.8 * grey[:, :, None] + 0.2 * self.photo)


def canvas(photo: UInt8[ndarray, "h w C"], frame: Frame, longest: int) -> Canvas:
    """The photo with its longer side at most `longest` pixels; a small one is enlarged by a whole factor, in blocks."""
    pixels = photo if photo.shape[2] == 3 else photo.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    side = max(pixels.shape[:2])
    if side > longest:
        size = tuple(max(1, round(length * longest / side)) for length in pixels.shape[:2])
        resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=3.0))
    else:
        factor = longest // side
        resized = pixels.repeat(factor, 0).repeat(factor, 1)
    return Canvas(photo=resized / 255, frame=frame.scaled((resized.shape[0], resized.shape[1])))


def figure(
    panels: Sequence[Panel | None],
    *,
    columns: int,
    title: str,
    subtitle: str,
    theme: Theme,
    bar: Sequence[tuple[float, str]] = (),
    key: Sequence[tuple[str, str]] = (),
) -> "Figure":
    """Panels in rows of `columns` (None leaves a gap), all as large as the width of the page allows.

    `bar` gives the ticks of the colour bar, a position in 0..1 and a text each; `key` explains marks: a mark (a line
    style, or ``o`` for the point) and a text each.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("matplotlib", extra="train")
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    shape = next(panel.pixels.shape for panel in panels if panel is not None)
    aspect = min(max(shape[0] / shape[1], 0.4), 1.6)
    room = WIDTH - 2 * EDGE - (BAR if bar else 0.0) - (columns - 1) * GAP
    width = min(room / columns, 5.2)
    height = width * aspect
    tall = HEADER + rows * (height + LABEL + GAP) + (FOOTER if key else EDGE)
    out = Figure(figsize=(WIDTH, tall), dpi=DPI, facecolor=theme.paper)
    left = EDGE + (room - width * columns) / 2
    for index, panel in enumerate(panels):
        if panel is not None:
            row, column = divmod(index, columns)
            bottom = tall - HEADER - (row + 1) * (height + LABEL) - row * GAP
            x = left + column * (width + GAP)
            _draw(_axes(out, (x, bottom, width, height)), panel, theme)
    middle = HEADER + LABEL + (rows * (height + LABEL + GAP) - GAP - LABEL) / 2
    if bar:
        long = min(rows * (height + LABEL + GAP) - GAP - LABEL, 3.6)
        _bar(_axes(out, (left + columns * (width + GAP) + 0.06, tall - middle - long / 2, 0.16, long)), bar, theme)
    _titles(out, title, subtitle, theme)
    _key(out, key, theme)
    return out


def outline(box: Box) -> tuple[tuple[float, float], float, float]:
    """A box (top, left, height, width) as matplotlib wants it: corner, width, height."""
    top, left, height, width = box
    return (left, top), width, height


def part(pixels: ndarray, box: Box, size: Size) -> tuple[ndarray, tuple[float, float]]:
    """The `size` pixels around the middle of a box, moved inside the photo, and where they begin (x, y)."""
    starts = []
    for axis in (0, 1):
        middle = box[axis] + box[axis + 2] / 2
        starts.append(int(min(max(middle - size[axis] / 2, 0), pixels.shape[axis] - size[axis])))
    top, left = starts
    return pixels[top : top + size[0], left : left + size[1]], (left, top)


def _blend(backdrop: ndarray, heat: ndarray, seen: ndarray) -> ndarray:
    alpha = 0.9 * np.clip(heat, 0, 1)[:, :, None] ** 0.6
    out = (1 - alpha) * backdrop + alpha * _colours(heat)
    return np.where(seen[:, :, None], out, _unseen(backdrop))


def _colours(heat: ndarray) -> ndarray:
    """The upper part of the map: its black end would only darken the photo."""
    from matplotlib import colormaps

    return colormaps[COLORMAP](0.25 + 0.73 * np.clip(heat, 0, 1))[..., :3]


def _unseen(photo: ndarray) -> ndarray:
    """A photo's pixels where the model saw nothing: pale, with fine diagonal stripes."""
    grey = photo.mean(2, keepdims=True) * 0.25 + 0.38
    rows, columns = np.indices(photo.shape[:2])
    period = max(6, max(photo.shape[:2]) // 70)
    stripes = ((rows + columns) // (period // 2) % 2)[:, :, None] * 0.06
    return np.broadcast_to(grey + stripes, photo.shape)


def _axes(out: "Figure", inches: tuple[float, float, float, float]) -> "Axes":
    wide, tall = out.get_size_inches()
    x, y, width, height = inches
    return out.add_axes((x / wide, y / tall, width / wide, height / tall))


def _draw(axes: "Axes", panel: Panel, theme: Theme) -> None:
    from matplotlib.patches import Rectangle

    (x, y), (height, width) = panel.origin, panel.pixels.shape[:2]
    axes.imshow(panel.pixels.clip(0, 1), extent=(x, x + width, y + height, y), interpolation="antialiased")
    for box, style in panel.boxes:
        corner, across, down = outline(box)
        for colour, line in (("#00000099", 3.2), (WINDOW, 1.5)):  # dark under bright: seen on any photo
            axes.add_patch(Rectangle(corner, across, down, fill=False, ec=colour, lw=line, ls=style, joinstyle="miter"))
    if panel.point is not None:
        _mark(axes, *panel.point)
    axes.set(xlim=(x, x + width), ylim=(y + height, y), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=theme.faint, linewidth=0.5)
    axes.set_title(panel.caption, fontsize=8.5, color=theme.ink, pad=4, parse_math=False)


def _mark(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], "o", ms=8, mfc="none", mec="#000000cc", mew=3.4, clip_on=False)
    axes.plot([x], [y], "o", ms=8, mfc="none", mec="#ffffff", mew=1.7, clip_on=False)


def _bar(axes: "Axes", ticks: Sequence[tuple[float, str]], theme: Theme) -> None:
    ramp = np.linspace(1, 0, 256)[:, None]
    pixels = _blend(np.full((256, 1, 3), 0.47), ramp, np.ones((256, 1), bool))
    axes.imshow(pixels, extent=(0, 1, 0, 1), aspect="auto")
    axes.set(xticks=[], yticks=[place for place, _ in ticks], yticklabels=[text for _, text in ticks])
    axes.tick_params(axis="y", right=True, labelright=True, left=False, labelleft=False, labelsize=8.5, length=3)
    axes.tick_params(colors=theme.ink)
    for spine in axes.spines.values():
        spine.set(color=theme.faint, linewidth=0.5)


def _titles(out: "Figure", title: str, subtitle: str, theme: Theme) -> None:
    tall: float = out.get_size_inches()[1]
    place: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    out.text(EDGE / WIDTH, 1 - 0.14 / tall, title, fontsize=14, fontweight="bold", color=theme.ink, **place)
    out.text(EDGE / WIDTH, 1 - 0.46 / tall, subtitle, fontsize=9.5, color=theme.faint, **place)


def _key(out: "Figure", key: Sequence[tuple[str, str]], theme: Theme) -> None:
    if not key:
        return
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = {"o": {"marker": "o", "ls": "", "mfc": "none", "mec": theme.ink, "mew": 1.7, "ms": 8}}
    handles = [
        Patch(facecolor="#9a9a9a", edgecolor="#b4b4b4", hatch="////")
        if mark == "unseen"
        else Line2D([], [], **marks.get(mark, {"ls": mark, "color": WINDOW, "lw": 2}))
        for mark, _ in key
    ]
    out.legend(
        handles, [text for _, text in key], loc="lower left", bbox_to_anchor=(EDGE / WIDTH, 0.0), ncols=len(key),
        frameon=False, fontsize=9, labelcolor=theme.ink, borderaxespad=0.4, handletextpad=0.6, columnspacing=2.0,
    )  # fmt: skip
