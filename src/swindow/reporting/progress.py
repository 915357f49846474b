"""The same few validation images as a model learned: small pictures in the run's folder, at most 8 images × 12 steps.

progress/names.json        what the images are called, in order
progress/image/<n>.png     image n as it is
progress/truth/<n>.png     with its true classes or objects over it; of a painter, with its hidden parts covered
progress/<step>/<n>.png    with the classes or objects that the model saw, or what it painted, after so many steps
"""

import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from swindow.checkpoints.files import write_atomic
from swindow.data import Annotated, Images, Scenes
from swindow.data.legends import RGB
from swindow.errors import DataError
from swindow.evaluation import Painted
from swindow.objects import Detections
from swindow.overlays import Labels, draw_detections, draw_objects, overlay, reduced
from swindow.shapes import Pixels
from swindow.sheets import thumbnail

FOLDER, NAMES, IMAGE, TRUTH = "progress", "names.json", "image", "truth"
MOST_IMAGES, MOST_STEPS = 8, 12
SIDE = 160
"""Longest side of a picture, in pixels."""

COVER = 214
"""Grey value of what is hidden from a model."""

SURE = 0.3
"""Score from which on detections are drawn."""

Answer = Callable[[int], Any]
"""What a model sees in one image of a split, by its row and in the image's own pixels: `Labels` of pixels, or
`Detections`; of one that is pretrained `Painted`, at the model's size."""


class Moment(NamedTuple):
    """One image at one step."""

    name: str
    image: Image.Image
    truth: Image.Image
    answer: Image.Image


class Course(NamedTuple):
    """One image over the steps of a run, as PNG files."""

    name: str
    image: bytes
    truth: bytes
    answers: Mapping[int, bytes]
    """By step, in rising order."""


def fixed_rows(images: Scenes | Annotated | Images, most: int = MOST_IMAGES) -> list[int]:
    """Rows to watch: as many parts of the split as there are images to show, and of each what shows the most classes.

    Three images of a part are looked at, so that the choice does not fall on the empty end of a volume. Of images
    without masks or objects, the middle one of each part.
    """
    bounds = np.linspace(0, len(images), min(most, len(images)) + 1)
    rows = []
    for low, high in itertools.pairwise(bounds):
        tried = dict.fromkeys(int(low + share * (high - low)) for share in (0.5, 0.25, 0.75))
        rows.append(max(tried, key=lambda row: len(_classes(images, row))))
    return rows


def draw_progress(
    run: str | Path,
    step: int,
    images: Scenes | Annotated | Images,
    rows: Sequence[int],
    answer: Answer,
    colours: Sequence[RGB],
) -> None:
    """Ask about each of `rows` (see `fixed_rows`) and keep the answers as pictures; `images` have the model's classes.

    Of detections those with a score of at least `SURE` are drawn.

    Raises:
        DataError: as `write_progress`.
    """
    draw: Any = _scene if isinstance(images, Scenes) else _found if isinstance(images, Annotated) else _painted
    write_progress(run, step, [draw(images, row, answer(row), colours) for row in rows])


def _classes(images: Scenes | Annotated | Images, row: int) -> np.ndarray:
    if isinstance(images, Images):
        return np.zeros(1, np.int64)
    return np.unique(images.mask(row).numpy() if isinstance(images, Scenes) else images.labels(row))


def _scene(scenes: Scenes, row: int, answer: Labels, colours: Sequence[RGB]) -> Moment:
    pixels, truth = scenes.pair(row)
    over = [overlay(pixels, mask, colours, side=SIDE, background=scenes.background) for mask in (truth, answer)]
    return Moment(scenes.names[row], reduced(pixels, SIDE), *over)


def _found(images: Annotated, row: int, answer: Detections, colours: Sequence[RGB]) -> Moment:
    pixels, truth = images.pair(row)
    how: dict[str, Any] = {"classes": images.classes, "colours": colours, "side": SIDE, "tags": False}
    there = draw_objects(pixels, truth.boxes, truth.labels, None, truth.masks, **how)
    said = draw_detections(pixels, answer[answer.scores >= SURE], **how)
    return Moment(images.names[row], reduced(pixels, SIDE), there, said)


def _painted(images: Images, row: int, answer: Painted, colours: Sequence[RGB]) -> Moment:
    pictures = [thumbnail(pixels, SIDE) for pixels in (answer.image, covered(answer), answer.completed)]
    return Moment(images.names[row], *pictures)


def covered(painted: Painted) -> Pixels:
    """What a model sees of an image: grey where it is hidden."""
    return torch.where(painted.hidden, torch.full_like(painted.image, COVER), painted.image)


def write_progress(run: str | Path, step: int, moments: Sequence[Moment]) -> None:
    """Keep the pictures of a step; of more than 12 steps the most evenly spaced stay, the first and last among them.

    Raises:
        DataError: none or more than 8 images, or others than at the steps before.
    """
    folder, names = Path(run) / FOLDER, [moment.name for moment in moments]
    if not 1 <= len(moments) <= MOST_IMAGES:
        raise DataError(f"{folder}: {len(moments)} images to watch; give 1 to {MOST_IMAGES}")
    known = _names(folder)
    if known and known != names:
        raise DataError(f"{folder} watches {', '.join(known)}, not {', '.join(names)}; remove it to watch others")
    if not known:
        _fill(folder / IMAGE, [moment.image for moment in moments])
        _fill(folder / TRUTH, [moment.truth for moment in moments])
        write_atomic(folder / NAMES, json.dumps(names))
    _fill(folder / f"{step:08d}", [moment.answer for moment in moments])
    kept = _steps(folder)
    for stale in kept.keys() - set(evenly(list(kept), MOST_STEPS)):
        shutil.rmtree(kept[stale])


def read_progress(run: str | Path) -> list[Course]:
    """What a run kept of its images, in their order; a step that a crash left in part is left out."""
    folder = Path(run) / FOLDER
    names, steps = _names(folder), _steps(folder)
    if not names:
        return []
    image, truth = (_files(folder / part, len(names)) for part in (IMAGE, TRUTH))
    answers = {step: files for step, path in steps.items() if (files := _files(path, len(names)))}
    if not image or not truth:
        return []
    return [
        Course(name, image[n], truth[n], {step: files[n] for step, files in answers.items()})
        for n, name in enumerate(names)
    ]


def forget_progress(run: str | Path, after: int) -> None:
    """Drop the pictures of later steps, which a resumed run will take again; with -1 everything, as a new run does."""
    folder = Path(run) / FOLDER
    for step, path in _steps(folder).items():
        if step > after:
            shutil.rmtree(path)
    if after < 0 and folder.exists():
        shutil.rmtree(folder)


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """Of rising `steps` at most `most`, the first and the last among them, as evenly spaced as leaving out one by one
    allows: each time the one whose neighbours are closest."""
    kept = list(steps)
    while len(kept) > max(most, 2):
        gaps = [after - before for before, after in zip(kept, kept[2:], strict=False)]
        del kept[gaps.index(min(gaps)) + 1]
    return kept


def _fill(folder: Path, pictures: Sequence[Image.Image]) -> None:
    """A folder of numbered pictures that is there whole or not at all."""
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
        write_atomic(draft / f"{number}.png", content.getvalue())
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)


def _names(folder: Path) -> list[str]:
    path = folder / NAMES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _steps(folder: Path) -> dict[int, Path]:
    """The folder of each step, in rising order."""
    found = {int(path.name): path for path in folder.glob("*") if path.name.isdecimal()}
    return dict(sorted(found.items()))


def _files(folder: Path, count: int) -> list[bytes]:
    """The pictures of a folder; none where one is missing or cut short."""
    paths = [folder / f"{number}.png" for number in range(count)]
    files = [path.read_bytes() if path.exists() else b"" for path in paths]
    return files if all(file.endswith(b"IEND\xaeB`\x82") for file in files) else []
