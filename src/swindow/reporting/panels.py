"""Sections of pictures with their classes over them: truth beside prediction, one image over time, a training batch."""

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image
from torch import Tensor

from swindow.data.legends import RGB
from swindow.data.scenes import Scenes
from swindow.evaluation import SegmentationEvaluation
from swindow.overlays import Labels, overlay, reduced
from swindow.reporting.page import SMALL, compressed, framed, section, short_name, swatch, text
from swindow.reporting.progress import Answer, Course, evenly
from swindow.shapes import IGNORE, Pixels

MOST_EXTREMES, MOST_BATCH, MOST_STEPS, MOST_KEYS = 3, 12, 6, 40
SIDE = 240
"""Longest side of a picture, in pixels."""
MOST_BYTES, MOST_SMALL_BYTES = 18_000, 9_000
"""Of a picture, and of one of a step: 48 of the first and 64 of the second are below 2 MB in the page."""
ALARM: RGB = (224, 60, 40)
FADED = 0.45


def extremes_section(evaluation: SegmentationEvaluation, scenes: Scenes, answer: Answer) -> str:
    """The best, the median and the worst images: as they are, with their truth, with the answer, and what is wrong."""
    seen = Counter[int]()
    groups = []
    for name, rows in evaluation.best_median_worst(MOST_EXTREMES).items():
        drawn = [_comparison(evaluation, scenes, row, answer, seen) for row in rows]
        groups.append(f"<h3>{name.capitalize()}</h3>{''.join(drawn)}" if drawn else "")
    of = "" if evaluation.background is None else f", {text(evaluation.classes[evaluation.background])} left out"
    note = f"By the mean IoU of the image{of}."
    note += " Pixels without a label are hatched, and count nowhere." if IGNORE in seen else ""
    key = colour_key(evaluation.classes, evaluation.colours, seen, evaluation.background)
    return section("Best, median and worst", note, key + "".join(groups))


def course_section(courses: Sequence[Course], key: str, *, remark: str = "", truth: str = "truth") -> str:
    """The same images at successive steps under the `key` to their colours; nothing where a run kept none.

    `truth` is what the second picture of each is called.
    """
    courses = [course for course in courses if course.answers]
    if not courses:
        return ""
    rows = []
    for course in courses:
        shown = {"image": course.image, truth: course.truth}
        shown |= {f"step {step:,}": course.answers[step] for step in evenly(list(course.answers), MOST_STEPS)}
        figures = [framed(_smaller(file), f"{course.name}: {name}", name, cls="photo") for name, file in shown.items()]
        rows.append(f'<h4>{text(short_name(course.name))}</h4><div class="pictures steps">{"".join(figures)}</div>')
    note = f"What the model made of the same validation images as it learned.{remark}"
    return section("The same images over time", note, key + "".join(rows))


def key_to_pixels(evaluation: SegmentationEvaluation) -> str:
    """The colours of the classes that are anywhere in truth or answers."""
    pixels = evaluation.confusion.sum(axis=0) + evaluation.confusion.sum(axis=1)
    seen = Counter(dict(enumerate(pixels.tolist())))
    return colour_key(evaluation.classes, evaluation.colours, seen, evaluation.background)


def batch_section(
    batch: UInt8[Tensor, "B C h w"] | None,
    labels: Int64[Tensor, "B h w"] | None,
    classes: Sequence[str],
    colours: Sequence[RGB],
    background: int | None,
) -> str:
    """Training images with their masks after augmentation; nothing where there is no batch."""
    if batch is None or labels is None:
        return ""
    figures, seen = [], Counter[int]()
    for pixels, mask in zip(batch[:MOST_BATCH], labels[:MOST_BATCH], strict=True):
        there = _counted(_array(mask))
        seen += there
        words = ", ".join(classes[k] for k in sorted(there.keys() - {IGNORE, background}))
        drawn = overlay(pixels, mask, colours, side=SIDE, background=background)
        figures.append(_shown(drawn, pixels, f"training image with {words or 'no object'}", ""))
    note = f"{len(figures)} of {len(batch)} images of a training batch with their masks, cropped and changed together."
    pictures = f'<div class="pictures crops">{"".join(figures)}</div>'
    return section("What the model saw", note, colour_key(classes, colours, seen, background) + pictures)


def _comparison(
    evaluation: SegmentationEvaluation, scenes: Scenes, row: int, answer: Answer, seen: Counter[int]
) -> str:
    """One image's four pictures under its name; the classes in them are added to `seen`."""
    (pixels, truth), said, score = scenes.pair(row), _array(answer(row)), evaluation.per_image[row]
    masks = {"truth": _array(truth), "prediction": said}
    pictures = {"image": reduced(pixels, SIDE)}
    for name, mask in masks.items():
        seen.update(_counted(mask))
        pictures[name] = overlay(pixels, mask, evaluation.colours, side=SIDE, background=evaluation.background)
    pictures["wrong pixels"] = wrong_pixels(pixels, masks["truth"], said, side=SIDE)
    figures = [_shown(drawn, pixels, f"{name} of {score.name}", name) for name, drawn in pictures.items()]
    note = f"IoU {_percent(score.score)}, {_percent(score.pixel_accuracy)} of its pixels right"
    heading = f"<h4>{text(short_name(score.name))} <small>{note}</small></h4>"
    return f'{heading}<div class="pictures four">{"".join(figures)}</div>'


def wrong_pixels(
    pixels: Pixels, truth: Integer[np.ndarray, "h w"], answer: Integer[np.ndarray, "h w"], *, side: int
) -> Image.Image:
    """The picture in faded grey, red where the answer is another than the truth: in a reduced one by their share.

    `side` is the longest side in pixels that the result may have.
    """
    grey = reduced(pixels, side).convert("L").convert("RGB")
    faded = Image.blend(Image.new("RGB", grey.size, (128, 128, 128)), grey, FADED)
    wrong = Image.fromarray(((truth != answer) & (truth != IGNORE)).astype(np.uint8) * 255)
    return Image.composite(Image.new("RGB", grey.size, ALARM), faded, wrong.resize(grey.size, Image.Resampling.BOX))


def colour_key(
    classes: Sequence[str], colours: Sequence[RGB], seen: Counter[int], background: int | None = None
) -> str:
    """What the colours mean, of the classes that are `seen` so many times; the background is left as it is."""
    there = {label: count for label, count in seen.items() if count and label not in (IGNORE, background)}
    named = sorted(sorted(there, key=lambda label: -there[label])[:MOST_KEYS])
    entries = [f"<li>{swatch(colours[label])}{text(classes[label])}</li>" for label in named]
    entries += [f"<li>and {len(there) - MOST_KEYS} more</li>"] if len(there) > MOST_KEYS else []
    entries += [f"<li>{swatch(None)}not labelled</li>"] if seen[IGNORE] else []
    return f'<ul class="key">{"".join(entries)}</ul>'


def _counted(mask: np.ndarray) -> Counter[int]:
    """How many pixels there are of each label."""
    labels, pixels = np.unique(mask, return_counts=True)
    return Counter(dict(zip(labels.tolist(), pixels.tolist(), strict=True)))


def _shown(drawn: Image.Image, source: Tensor, alt: str, caption: str) -> str:
    cls = "pixels" if max(source.shape[1:]) <= SMALL else "photo"
    return framed(compressed(drawn, MOST_BYTES), alt, caption, cls=cls)


def _smaller(file: bytes) -> bytes:
    if len(file) <= MOST_SMALL_BYTES:
        return file
    with Image.open(io.BytesIO(file)) as picture:
        return compressed(picture, MOST_SMALL_BYTES)


def _array(mask: Labels) -> np.ndarray:
    return mask.cpu().numpy() if isinstance(mask, Tensor) else mask


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
