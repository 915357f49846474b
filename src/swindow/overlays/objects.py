"""Objects drawn over their picture: masks tinted and outlined, boxes, names and scores that can be read at any size.

The picture is brought to the size of the drawing first, lines and letters go by that. Tags keep inside, cover no other
tag and hide no small object: where there is no room they say less, or nothing, and the colour says the class. The
surest object lies on top.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from PIL import Image, ImageDraw
from torch import Tensor

from swindow.data.legends import RGB
from swindow.errors import ConfigError, ShapeError
from swindow.objects import Detections, Size
from swindow.overlays.keys import GREY, legend
from swindow.overlays.pixels import reduced
from swindow.overlays.tags import ink_on, place_tags, wordings, write_tag
from swindow.rasters import InMemory, Raster
from swindow.shapes import Pixels

Outcome = Literal["hit", "missed", "false alarm", "ignored"]
OUTCOMES: Mapping[Outcome, RGB] = {
    "hit": (0, 158, 115),
    "missed": (214, 0, 160),
    "false alarm": (213, 94, 0),
    "ignored": GREY,
}
"""Colours where objects are drawn by what became of them, not by class."""
DRAWN_SIDE = 1024
TINT = 0.35
"""How much of a masked pixel's colour is that of its class."""
CROWD = 60
"""Objects above which lines are thin and letters small."""
LEAST = 3  # pixels: what is smaller is drawn so large

MaskAt = Callable[[int, Size], Bool[Tensor, "H W"]]
"""The mask of the object with this index, as it is at this height and width."""


def draw_objects(
    pixels: Pixels | Raster,
    boxes: Float[Tensor, "N 4"],
    labels: Int64[Tensor, " N"],
    scores: Float[Tensor, " N"] | None,
    masks: Bool[Tensor, "N h w"] | MaskAt | None,
    classes: Sequence[str],
    colours: Sequence[RGB],
    *,
    side: int | None = DRAWN_SIDE,
    outcomes: Sequence[Outcome] | None = None,
    tags: bool = True,
) -> Image.Image:
    """Objects over the picture that they are in, `boxes` in its own pixels, those that matter most first.

    `side` is the longest side in pixels that the result may have: smaller pictures are enlarged by a whole factor;
    None keeps the picture's size. A function as `masks` is asked for one mask at a time, at the size of the drawing.
    With `outcomes` the colours are those of `OUTCOMES`, misses are dashed, and tags say what went wrong; without `tags`
    there is no writing.

    Raises:
        ShapeError: labels, scores, masks or outcomes of another number than the boxes, or masks of another size.
        ConfigError: a label without a class or colour, or a box that is not finite.
    """
    raster = pixels if isinstance(pixels, Raster) else InMemory(pixels)
    _refuse(boxes, labels, scores, masks, outcomes, min(len(classes), len(colours)))
    if isinstance(masks, Tensor) and tuple(masks.shape[1:]) != (raster.height, raster.width):
        sides = " × ".join(map(str, masks.shape[1:]))
        raise ShapeError(f"masks of {sides} on a picture of {raster.height} × {raster.width} pixels")
    drawn = reduced(raster, side).convert("RGB")
    paint = [OUTCOMES[one] for one in outcomes] if outcomes else [tuple(colours[k]) for k in labels.tolist()]
    places = _places(boxes, (raster.height, raster.width), drawn)
    if masks is not None:
        _tint(drawn, masks, paint)
    draw = ImageDraw.Draw(drawn, "RGBA")
    for index in reversed(range(len(places))):
        dashed = outcomes is not None and outcomes[index] in ("missed", "ignored")
        _outline(draw, places[index], paint[index], _thickness(drawn, len(places)), dashed=dashed)
    if tags:
        said = [None] * len(places) if scores is None else scores.tolist()
        names = [classes[k] for k in labels.tolist()]
        _write(draw, drawn, places, list(zip(names, said, strict=True)), paint, outcomes)
    return drawn


def draw_detections(
    pixels: Pixels | Raster, found: Detections, classes: Sequence[str], colours: Sequence[RGB], **options: Any
) -> Image.Image:
    """`draw_objects` for what a model found in this picture."""

    def mask_at(index: int, size: Size) -> Bool[Tensor, "H W"]:
        return found.resized(size).mask(index)

    masks = None if found.masks is None else mask_at
    return draw_objects(pixels, found.boxes, found.labels, found.scores, masks, classes, colours, **options)


def outcome_key(outcomes: Sequence[Outcome], *, width: int = 360) -> Image.Image:
    """How many objects each outcome has, beside its colour."""
    counts = [list(outcomes).count(name) for name in OUTCOMES]
    return legend([*OUTCOMES], [*OUTCOMES.values()], counts=counts, width=width)


def _refuse(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    masks: Tensor | MaskAt | None,
    outcomes: Sequence[Outcome] | None,
    known: int,
) -> None:
    others = {"labels": labels, "scores": scores, "masks": masks, "outcomes": outcomes}
    for name, other in others.items():
        if other is not None and not callable(other) and len(other) != len(boxes):
            raise ShapeError(f"{len(boxes)} boxes with {len(other)} {name}; give one for each")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < known:
        raise ConfigError(f"labels from {int(labels.min())} to {int(labels.max())} for {known} classes and colours")
    if not boxes.isfinite().all():
        raise ConfigError("a box to draw is not finite; leave it out")


def _places(boxes: Tensor, size: Size, drawn: Image.Image) -> np.ndarray:
    """Boxes in the pixels of the drawing, float64, inside it and large enough to be seen."""
    places = boxes.detach().double().cpu().numpy() * ([drawn.width / size[1], drawn.height / size[0]] * 2)
    limits = np.array([drawn.width, drawn.height], float)
    middles = (places[:, :2] + places[:, 2:]) / 2
    halves = np.maximum((places[:, 2:] - places[:, :2]) / 2, np.minimum(LEAST, limits) / 2)
    return np.concatenate([middles - halves, middles + halves], axis=1).clip(0, [*limits, *limits])


def _thickness(drawn: Image.Image, count: int) -> int:
    """Of a box's line, in pixels."""
    usual = min(3, max(2, round(max(drawn.size) / 400)))
    return usual if count <= CROWD else 1


def _tint(drawn: Image.Image, masks: Tensor | MaskAt, paint: Sequence[RGB]) -> None:
    """Each mask in its colour with an opaque outline, one after the other, the first on top."""
    size = (drawn.height, drawn.width)
    outline = 1 if max(size) < 400 else 2
    for index in reversed(range(len(paint))):
        mask = masks(index, size).cpu().numpy() if callable(masks) else _mask_at(masks[index].cpu().numpy(), size)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            continue
        part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        strength = np.where(part, round(255 * TINT), 0).astype(np.uint8)
        strength[part & ~_eroded(part, outline)] = 255
        drawn.paste(paint[index], (int(columns[0]), int(rows[0])), Image.fromarray(strength))


def _mask_at(mask: np.ndarray, size: Size) -> np.ndarray:
    """A mask at the size of a drawing: enlarged by a whole factor, or reduced so that nothing of it is lost."""
    if size[0] >= mask.shape[0] and size[1] >= mask.shape[1]:
        return mask.repeat(size[0] // mask.shape[0], 0).repeat(size[1] // mask.shape[1], 1)
    rows, columns = (np.arange(cells) * side // cells for cells, side in zip(size, mask.shape, strict=True))
    return np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, axis=0), columns, axis=1)


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Without the pixels that lie at its edge, so many times."""
    inner = np.pad(mask, 1)
    for _ in range(times):
        core = inner.copy()
        core[1:] &= inner[:-1]
        core[:-1] &= inner[1:]
        core[:, 1:] &= inner[:, :-1]
        core[:, :-1] &= inner[:, 1:]
        inner = core
    return inner[1:-1, 1:-1]


def _outline(draw: ImageDraw.ImageDraw, place: np.ndarray, colour: RGB, thickness: int, *, dashed: bool) -> None:
    """A box in its colour along thin lines of black or white, so that it stands out from any picture."""
    left, top, right, bottom = (round(float(side)) for side in place)
    box = (left, top, max(right - 1, left), max(bottom - 1, top))
    shadow = (*ink_on(colour), 120)
    draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=shadow)
    if thickness > 1 and box[2] - box[0] > 2 * thickness + 4 and box[3] - box[1] > 2 * thickness + 4:
        draw.rectangle(
            tuple(side + step * thickness for side, step in zip(box, (1, 1, -1, -1), strict=True)), outline=shadow
        )
    if not dashed:
        draw.rectangle(box, outline=colour, width=thickness)
        return
    for part in _dashes(box, thickness):
        draw.rectangle(part, fill=colour)


def _dashes(box: tuple[int, int, int, int], thickness: int) -> Iterator[tuple[int, int, int, int]]:
    """Rectangles along the four sides of a box, inside it."""
    left, top, right, bottom = box
    length, inner = 4 + 2 * thickness, thickness - 1
    for start in range(left, right + 1, 2 * length):
        end = min(start + length - 1, right)
        yield start, top, end, min(top + inner, bottom)
        yield start, max(bottom - inner, top), end, bottom
    for start in range(top, bottom + 1, 2 * length):
        end = min(start + length - 1, bottom)
        yield left, start, min(left + inner, right), end
        yield max(right - inner, left), start, right, end


def _write(
    draw: ImageDraw.ImageDraw,
    drawn: Image.Image,
    places: np.ndarray,
    said: Sequence[tuple[str, float | None]],
    paint: Sequence[RGB],
    outcomes: Sequence[Outcome] | None,
) -> None:
    """Tags, of what went wrong first."""
    usual = min(16, max(10, round(max(drawn.size) / 52)))
    size = usual if len(places) <= CROWD else min(usual, 10)
    before = ["" if one == "hit" else one for one in outcomes] if outcomes else [""] * len(places)
    texts = [wordings(name, score, word, size) for (name, score), word in zip(said, before, strict=True)]
    order = sorted(range(len(places)), key=lambda index: not before[index])
    for index, tag in enumerate(place_tags(places, texts, order, (drawn.height, drawn.width), size)):
        if tag is not None:
            write_tag(draw, tag, paint[index], size)
