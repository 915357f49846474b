"""What explains the colours of a picture: names beside them, below it."""

import math
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from swindow.data.legends import RGB
from swindow.sheets import FAINT, GAP, INK, PAPER, clean, font, shortened

GREY: RGB = (128, 128, 128)
"""Of what does not count."""
MOST_ENTRIES = 40


def percent(share: float) -> str:
    """A share in 0..1 in words."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{share:.1%}".replace("%", " %")


def legend(
    classes: Sequence[str],
    colours: Sequence[RGB],
    shares: Sequence[float] | None = None,
    *,
    counts: Sequence[int] | None = None,
    width: int = 360,
    ignored: float = 0.0,
) -> Image.Image:
    """Names beside their colours, in columns; with `shares` (0..1) or `counts` those above 0 only, the largest first.

    At most 40 are named. `ignored` is the share that does not count, which then has a line of its own.
    """
    words = None if counts is None else [f"{count:,}" for count in counts]
    if shares is not None:
        words = [percent(share) for share in shares]
    entries = list(_entries(classes, colours, counts if shares is None else shares, words, ignored))
    lengths = [font(12).getlength(name) + (font(12).getlength(said) + 8 if said else 0) for name, said, _ in entries]
    column = min(max(math.ceil(max(lengths, default=0)) + 20 + GAP, 90), width)
    columns = max(1, min(width // column, len(entries)))
    rows = math.ceil(len(entries) / columns)
    paper = Image.new("RGB", (width, max(rows * 19, 1)), PAPER)
    draw = ImageDraw.Draw(paper)
    for place, (name, said, colour) in enumerate(entries):
        left, top = place // rows * column, place % rows * 19
        _write_entry(draw, (left, top), (name, said), colour, column - GAP)
    return paper


def with_legend(picture: Image.Image, key: Image.Image, *, title: str = "") -> Image.Image:
    """A picture on paper, its title above and its legend below."""
    head = 24 if title else 0
    width, margin = max(picture.width, key.width), 12
    paper = Image.new("RGB", (width + 2 * margin, head + picture.height + key.height + 3 * margin), PAPER)
    if title:
        text = shortened(clean(title), width, font(13))
        ImageDraw.Draw(paper).text((margin, margin - 2), text, font=font(13), fill=INK)
    paper.paste(picture, (margin, margin + head))
    paper.paste(key, (margin, picture.height + head + 2 * margin))
    return paper


def _entries(
    classes: Sequence[str],
    colours: Sequence[RGB],
    amounts: Sequence[float] | Sequence[int] | None,
    said: Sequence[str] | None,
    ignored: float,
) -> Iterator[tuple[str, str, RGB | None]]:
    """Name, amount in words, and colour of each line; no colour is the hatching."""
    order: Sequence[int] = range(len(classes))
    if amounts is not None:
        order = sorted((place for place in order if amounts[place] > 0), key=lambda place: -amounts[place])
    for place in order[:MOST_ENTRIES]:
        yield clean(classes[place]), said[place] if said else "", colours[place]
    if len(order) > MOST_ENTRIES:
        yield f"and {len(order) - MOST_ENTRIES} more", "", (255, 255, 255)
    if ignored:
        yield "not labelled", percent(ignored) if said else "", None


def _write_entry(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], said: tuple[str, str], colour: RGB | None, room: int
) -> None:
    left, top = place
    box = (left, top + 2, left + 11, top + 13)
    draw.rectangle(box, fill=colour or GREY, outline=FAINT if colour and min(colour) > 200 else None)
    if colour is None:
        draw.line((left, top + 13, left + 11, top + 2), fill="#ffffff")
    taken = font(12).getlength(said[1]) + 8 if said[1] else 0
    name = shortened(said[0], round(room - 18 - taken), font(12))
    draw.text((left + 18, top), name, font=font(12), fill=INK)
    draw.text((left + 18 + font(12).getlength(name) + 8, top), said[1], font=font(12), fill=FAINT)
