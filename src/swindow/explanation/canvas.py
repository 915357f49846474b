"""The drawing board: a photo under heat maps, in rows of panels, with a title, a colour bar and a key.

Figures are made directly, without pyplot, so nothing global is touched and no window opens.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from swindow.explanation.frame import Box, Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORMAP = "inferno"
OUTLINE, SHADOW = "#35d6ff", "#00000099"
DPI = 110
LARGE = 960  # longest side of a photo that has room, in pixels
EVIDENCE = ((0.0, "none"), (0.5, ""), (1.0, "strongest"))  # ticks for heat without a unit
WIDTH, EDGE, GAP, BAR, HEADER, LABEL, KEY, LINE = 10.0, 0.18, 0.14, 1.05, 0.72, 0.26, 0.4, 0.24  # inches


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
    """A photo's pixels, perhaps a part of them, a caption, and what is drawn on top."""

    pixels: Float[ndarray, "h w 3"]
    caption: str
    box: Box | None = None
    """A rectangle to outline, in pixels of the whole photo."""
    point: tuple[float, float] | None = None
    """A position (x, y) to mark."""
    origin: tuple[int, int] = (0, 0)
    """Where the top left pixel (x, y) lies on the whole photo."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """Panels in rows of `columns` (None leaves a gap) with all that is written around them."""

    name: str
    """Of its file."""
    meaning: str
    """What it shows, in a sentence or two."""
    title: str
    subtitle: str
    panels: tuple[Panel | None, ...]
    columns: int
    bar: tuple[tuple[float, str], ...]
    """Ticks of the colour bar: a position in 0..1 and a text each; without any there is no bar."""
    key: tuple[tuple[str, str], ...]
    """Marks explained: ``point``, ``box``, ``unseen`` or a colour such as ``#c8471f``, and a text each."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """A photo at a size fit for drawing, as RGB in 0..1, and the frame at that size."""

    photo: Float[ndarray, "h w 3"]
    backdrop: Float[ndarray, "h w 3"]
    """The photo with little colour and less contrast, so that the heat's colours cannot be mistaken for its own."""
    frame: Frame

    def overlay(self, heat: Float[ndarray, "h w"]) -> Float[ndarray, "h w 3"]:
        """The photo under a heat map with values in 0..1: the hotter, the less of the photo; striped where unseen."""
        return self._seen(_blend(self.backdrop, heat))

    def plain(self) -> Float[ndarray, "h w 3"]:
        """The photo in its colours, striped where unseen."""
        return self._seen(self.photo)

    def around(self, box: Box, zoom: float) -> tuple["Canvas", tuple[int, int]]:
        """A part as wide as `zoom` of the photo, around the middle of a box, and where it begins (x, y)."""
        size = tuple(max(1, round(side * zoom)) for side in self.frame.photo)
        top, left = (
            int(min(max(box[axis] + box[axis + 2] / 2 - size[axis] / 2, 0), self.frame.photo[axis] - size[axis]))
            for axis in (0, 1)
        )
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        frame = self.frame.part(top, left, (size[0], size[1]))
        return Canvas(photo=self.photo[rows, columns], backdrop=self.backdrop[rows, columns], frame=frame), (left, top)

    def _seen(self, pixels: ndarray) -> ndarray:
        """Pixels where the model saw something; elsewhere the photo, pale and with fine diagonal stripes."""
        seen = self.frame.seen()
        if seen.all():
            return pixels
        grey = self.backdrop.mean(2, keepdims=True) * 0.3 + 0.36
        rows, columns = (np.arange(side, dtype=np.int32) for side in seen.shape)
        stripes = (rows[:, None] + columns) // max(3, max(seen.shape) // 140) % 2
        return np.where(seen[:, :, None], pixels, grey + np.float32(0.06) * stripes[:, :, None])


def canvas(photo: UInt8[ndarray, "h w C"], frame: Frame, longest: int) -> Canvas:
    """The photo with its longer side at most `longest` pixels; a small one is enlarged by a whole factor, in blocks."""
    pixels = photo if photo.shape[2] == 3 else photo.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    side = max(pixels.shape[:2])
    if side > longest:
        height, width = (max(1, round(length * longest / side)) for length in pixels.shape[:2])
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3))
    else:
        pixels = pixels.repeat(longest // side, 0).repeat(longest // side, 1)
    colour = pixels.astype(np.float32) / 255
    grey = (colour @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    return Canvas(
        photo=colour,
        backdrop=0.12 + 0.7 * (0.8 * grey + 0.2 * colour),
        frame=frame.scaled((pixels.shape[0], pixels.shape[1])),
    )


def figure(picture: Picture, theme: Theme) -> "Figure":
    """A picture drawn, its panels as large as the width of the page allows."""
    from matplotlib.figure import Figure

    columns, rows = picture.columns, -(-len(picture.panels) // picture.columns)
    shape = next(panel.pixels.shape for panel in picture.panels if panel is not None)
    width = min((WIDTH - 2 * EDGE - BAR - (columns - 1) * GAP) / columns, 5.2)
    height = width * min(max(shape[0] / shape[1], 0.4), 1.6)
    block = rows * (height + LABEL + GAP) - GAP
    lines = _lines(picture.key)
    tall = HEADER + block + (KEY + LINE * (len(lines) - 1) if lines else 0) + EDGE
    out = Figure(figsize=(WIDTH, tall), dpi=DPI, facecolor=theme.paper)
    page = out.add_axes((0, 0, 1, 1))  # one for all, in inches from the top left: each more would cost 20 ms
    for index, panel in enumerate(picture.panels):
        row, column = divmod(index, columns)
        if panel is not None:
            top = HEADER + LABEL + row * (height + LABEL + GAP)
            _panel(page, panel, (top, EDGE + column * (width + GAP), height, width), theme)
    length = min(block - LABEL, 3.6)
    top = HEADER + LABEL + (block - LABEL - length) / 2
    if picture.bar:
        _bar(page, picture, (top, EDGE + columns * (width + GAP) + 0.04, length, 0.16), theme)
    _text(page, EDGE, 0.14, picture.title, size=14, weight="bold", va="top", color=theme.ink)
    _text(page, EDGE, 0.44, picture.subtitle, size=9.5, va="top", color=theme.faint)
    for number, line in enumerate(reversed(lines)):
        _key(page, line, tall - 0.3 - LINE * number, theme)
    page.set(xlim=(0, WIDTH), ylim=(tall, 0))
    page.set_axis_off()
    return out


def _blend(backdrop: ndarray, heat: ndarray) -> ndarray:
    """Heat over pixels. The lowest quarter of the colour map is left out: its black would only darken the photo."""
    from matplotlib import colormaps

    table = colormaps[COLORMAP](np.linspace(0.25, 0.98, 256))[:, :3].astype(np.float32)
    heat = heat.clip(0, 1)
    alpha = (0.9 * heat**0.7).astype(np.float32)[:, :, None]
    return (1 - alpha) * backdrop + alpha * table[(heat * 255).astype(np.uint8)]


def _panel(page: "Axes", panel: Panel, place: Box, theme: Theme) -> None:
    """A panel in a box on the page; a photo of another shape than the box is centred in it."""
    (height, width), (top, left, tall, wide) = panel.pixels.shape[:2], place
    scale = min(tall / height, wide / width)
    top, left = top + (tall - height * scale) / 2, left + (wide - width * scale) / 2
    inside = (top, left, height * scale, width * scale)
    _image(page, panel.pixels, inside)
    _frame(page, inside, theme.faint, 0.5)
    _text(page, left + width * scale / 2, top - 0.06, panel.caption, size=8.5, ha="center", color=theme.ink)
    x, y = (left - panel.origin[0] * scale, top - panel.origin[1] * scale)
    if panel.box is not None:
        box = (y + panel.box[0] * scale, x + panel.box[1] * scale, panel.box[2] * scale, panel.box[3] * scale)
        _frame(page, box, SHADOW, 3.2)  # dark under bright: seen on any photo
        _frame(page, box, OUTLINE, 1.6)
    if panel.point is not None:
        for colour, line in ((SHADOW, 3.2), ("#ffffff", 1.6)):
            _ring(page, x + panel.point[0] * scale, y + panel.point[1] * scale, colour, line)


def _bar(page: "Axes", picture: Picture, place: Box, theme: Theme) -> None:
    ramp = np.linspace(1, 0, 256)[:, None]
    _image(page, _blend(np.full((256, 1, 3), 0.47, np.float32), ramp), place)
    _frame(page, place, theme.faint, 0.5)
    right = place[1] + place[3]
    for value, text in picture.bar:
        y = place[0] + (1 - value) * place[2]
        page.plot([right, right + 0.04], [y, y], color=theme.ink, lw=0.7)
        _text(page, right + 0.08, y, text, size=8.5, va="center", color=theme.ink)


def _lines(key: tuple[tuple[str, str], ...]) -> list[list[tuple[str, str, float]]]:
    """Marks and their texts in lines that fit the page, each with its place from the left."""
    lines: list[list[tuple[str, str, float]]] = []
    x = WIDTH
    for mark, text in key:
        wide = 0.75 + 0.075 * len(text)
        if x + wide > WIDTH:
            lines.append([])
            x = EDGE
        lines[-1].append((mark, text, x))
        x += wide
    return lines


def _key(page: "Axes", line: list[tuple[str, str, float]], y: float, theme: Theme) -> None:
    for mark, text, x in line:
        if mark == "point":
            _ring(page, x + 0.15, y, theme.ink, 1.6)
        elif mark == "box":
            page.plot([x, x + 0.3], [y, y], color=OUTLINE, lw=2.2)
        elif mark == "unseen":
            _image(page, _swatch(), (y - 0.06, x, 0.12, 0.3))
        else:
            _image(page, _plain_swatch(mark), (y - 0.06, x, 0.12, 0.3))
            _frame(page, (y - 0.06, x, 0.12, 0.3), theme.faint, 0.5)
        _text(page, x + 0.4, y, text, size=9, va="center", color=theme.ink)


def _swatch() -> ndarray:
    """A sample of the stripes over what was not seen."""
    rows, columns = np.indices((24, 60))
    return (0.5 + 0.1 * ((rows + columns) // 4 % 2))[:, :, None].repeat(3, 2)


def _plain_swatch(colour: str) -> ndarray:
    return np.full((24, 60, 3), [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def _image(page: "Axes", pixels: ndarray, place: Box) -> None:
    top, left, height, width = place
    eight_bit = (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    page.imshow(eight_bit, extent=(left, left + width, top + height, top), interpolation="antialiased", aspect="auto")


def _frame(page: "Axes", place: Box, colour: str, line: float) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = place
    page.add_patch(Rectangle((left, top), width, height, fill=False, ec=colour, lw=line))


def _ring(page: "Axes", x: float, y: float, colour: str, line: float) -> None:
    page.plot([x], [y], "o", ms=7, mfc="none", mec=colour, mew=line)


def _text(page: "Axes", x: float, y: float, text: str, **style: Any) -> None:
    page.text(x, y, text, parse_math=False, **style)
