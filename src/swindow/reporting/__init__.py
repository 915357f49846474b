"""A training run or an evaluation as one page that needs nothing else: what was learned, how, and where it fails."""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from swindow.checkpoints.files import write_atomic
from swindow.data import Annotated, Images, Scenes
from swindow.errors import ConfigError, DataError
from swindow.evaluation import (
    AnyEvaluation,
    DetectionEvaluation,
    Evaluation,
    PaintingEvaluation,
    SegmentationEvaluation,
)
from swindow.objects import Targets
from swindow.reporting import classification, detection, painting, segmentation
from swindow.reporting.found import worst_sheet
from swindow.reporting.page import read_metrics, run_title
from swindow.reporting.progress import Answer, draw_progress, fixed_rows, forget_progress, read_progress, write_progress

__all__ = [
    "draw_progress",
    "fixed_rows",
    "forget_progress",
    "read_metrics",
    "read_progress",
    "worst_sheet",
    "write_evaluation",
    "write_progress",
    "write_report",
]


SHEET = "sheet.png"


def write_report(
    run: str | Path,
    *,
    evaluation: AnyEvaluation,
    images: Images | Scenes | Annotated,
    batch: UInt8[Tensor, "B C h w"] | None,
    labels: Int64[Tensor, " B"] | Float[Tensor, "B K"] | Int64[Tensor, "B h w"] | Targets | None,
    classes: Sequence[str],
    facts: Mapping[str, Any],
    answer: Answer | None = None,
) -> Path:
    """Write ``report.html`` into a run folder, from its files and what is handed in; return its path.

    `images` are those of `evaluation`, in its order. `batch` is a training batch after augmentation, in pixels, with
    its `labels`, masks or objects in `classes`. Of `facts` the page tells: data, model, recipe, parameters, seconds,
    steps, epochs, stopped_by, skipped_images, peak_memory_gib, device.

    The page of a segmenter or detector shows pictures with what it sees in them: `answer` gives that for a row of
    `images`, at its size and in the model's classes, as classes of pixels or as `Detections`; it is asked about few of
    them. Of a model that is pretrained it gives what it paints, as `Painted`. What `write_progress` kept is shown, too.

    Raises:
        DataError: `images` are not those that were evaluated.
        ConfigError: images and evaluation are of different tasks, or a segmenter's or detector's `answer` is missing.
    """
    run, seen = Path(run), cast(Any, labels)
    _refuse_others(evaluation, images)
    match evaluation, images:
        case Evaluation(), Images():
            page = classification.run_page(run, evaluation, images, batch, seen, classes, facts)
        case SegmentationEvaluation(), Scenes():
            page = segmentation.run_page(run, evaluation, images, batch, seen, classes, facts, _needed(answer))
        case DetectionEvaluation(), Annotated():
            page = detection.run_page(run, evaluation, images, batch, seen, classes, facts, _needed(answer))
        case PaintingEvaluation(), Images():
            page = painting.run_page(run, evaluation, images, batch, facts, _needed(answer))
        case _:
            raise _unlike(evaluation, images)
    write_atomic(run / "report.html", page)
    return run / "report.html"


def write_evaluation(
    folder: str | Path,
    evaluation: AnyEvaluation,
    images: Images | Scenes | Annotated,
    answer: Answer | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write what an evaluation found into a folder, which is made if need be; return the page's path.

    ``evaluation.html`` shows all of it, ``figures.json`` holds the summary, ``per_class.csv`` the scores of every class
    and, of a segmenter, ``per_image.csv`` and ``per_case.csv`` those of every image and case. Of a detector there are
    ``per_image.csv``, ``average_precision.csv``, ``precision_recall.csv`` with the points of its curves, and
    ``sheet.png`` with the images that have the most mistakes, and ``detections.json``, a COCO results file with the
    data's own numbers of images and categories. Of a model that is pretrained there are ``per_image.csv`` and a sheet
    of what it paints. Files of an earlier evaluation are replaced. `images`,
    `answer` and `facts` are as in `write_report`.

    Raises:
        DataError, ConfigError: as `write_report`, or the folder cannot be written.
    """
    folder, facts = Path(folder), facts or {}
    _refuse_others(evaluation, images)
    title = run_title(facts, folder)
    sheet = b""
    match evaluation, images:
        case Evaluation(), Images():
            page, tables = classification.evaluation_page(title, evaluation, images, facts), {}
        case SegmentationEvaluation(), Scenes():
            page = segmentation.evaluation_page(title, evaluation, images, facts, _needed(answer))
            tables = segmentation.tables(evaluation)
        case DetectionEvaluation(), Annotated():
            finder = functools.cache(_needed(answer))  # the page and the sheet show the same images
            page = detection.evaluation_page(title, evaluation, images, facts, finder)
            tables = detection.tables(evaluation)
            sheet = _png(worst_sheet(evaluation, detection.aligned(images, evaluation), finder))
        case PaintingEvaluation(), Images():
            painter = functools.cache(_needed(answer))
            page = painting.evaluation_page(title, evaluation, images, facts, painter)
            tables = painting.tables(evaluation)
            sheet = _png(painting.painting_sheet(evaluation, painter))
        case _:
            raise _unlike(evaluation, images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(evaluation, PaintingEvaluation):
            tables["per_class.csv"] = [dataclasses.asdict(row) for row in evaluation.per_class]
        for name, rows in tables.items():
            write_atomic(folder / name, _encoded(_csv(rows)))
        figures = json.dumps(evaluation.summary(), indent=1, ensure_ascii=False) + "\n"
        write_atomic(folder / "figures.json", _encoded(figures))
        if sheet:
            write_atomic(folder / SHEET, sheet)
        if isinstance(evaluation, DetectionEvaluation):
            write_atomic(folder / "detections.json", json.dumps(evaluation.results()))
        write_atomic(folder / "evaluation.html", page)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write here ({error.strerror}); give another folder") from error
    return folder / "evaluation.html"


def _refuse_others(evaluation: AnyEvaluation, images: Images | Scenes | Annotated) -> None:
    if len(images) != evaluation.count:
        raise DataError(f"{len(images)} images for an evaluation of {evaluation.count}; give the split that it judged")


def _unlike(evaluation: AnyEvaluation, images: Images | Scenes | Annotated) -> ConfigError:
    return ConfigError(
        f"{type(images).__name__} for a page of {type(evaluation).__name__}; give Images of a classifier's or a "
        "painter's, Scenes of a segmenter's and Annotated of a detector's"
    )


def _needed(answer: Answer | None) -> Answer:
    if answer is None:
        raise ConfigError(
            "the page of a segmenter, detector or painter shows its answers; give `answer`, which tells what is in a "
            "row's image"
        )
    return answer


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _encoded(content: str) -> bytes:
    """UTF-8, whatever files call their classes: half a surrogate pair is spelt out."""
    return content.encode("utf-8", "backslashreplace")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each row; what there is none of is left empty."""
    content = io.StringIO()
    writer = csv.DictWriter(content, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()
