"""``swindow eval``."""

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from swindow.checkpoints.files import write_atomic
from swindow.cli.arguments import Positional
from swindow.cli.runs import parse_as_in_run
from swindow.data import Annotated as WithObjects
from swindow.data import Images, Scenes
from swindow.data.annotations import ObjectConfig
from swindow.data.masks import MaskConfig
from swindow.errors import ConfigError
from swindow.evaluation import SegmentationEvaluation, evaluate, open_split, paint
from swindow.images import ImageLimits
from swindow.inference import ReadyModel, ready
from swindow.overlays import Compared, comparison_sheet
from swindow.predict.predictor import settings_of
from swindow.progress import watcher
from swindow.rasters import InMemory
from swindow.reporting import write_evaluation
from swindow.sliding import Segmenter, Views

SHEET = "sheet.png"
_TABLES = {"views": Views, "masks": MaskConfig, "objects": ObjectConfig}
_DOES = {
    "classify": "names the class of an image, not of its pixels",
    "segment": "names the class of every pixel and finds no objects",
    "detect": "finds objects in whole pictures",
    "pretrain": "paints what is hidden of images",
}


@dataclasses.dataclass(frozen=True)
class Eval:
    """Judge a trained model on a split of a data set."""

    run: Annotated[str, Positional]
    """A run folder or a checkpoint."""
    data: Annotated[str, Positional] = ""
    """Any DATA that train takes; empty for the data that the run was trained on."""
    split: str = ""
    """train, val or test; empty for test where there is one, else val."""
    batch: int = 64
    """Images per forward pass of a classifier, and at most of a detector; of a segmenter see views.batch."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    out: Path | None = None
    """Also write the figures to this .json file; or to this folder, with a page, tables as CSV and pictures."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""
    views: Views = Views()
    """How a segmenter looks at a picture; by default as in training."""
    masks: MaskConfig = MaskConfig()
    """How the masks to compare with are read; by default as in training."""
    objects: ObjectConfig = ObjectConfig()
    """What is done with boxes to compare with that are not as they should be; by default as in training."""
    threshold: float | None = None
    """Score in 0..1 from which a detector's objects are counted as hits and false alarms; by default the one with the
    best F1. Average precision needs none."""


def eval_command(words: list[str]) -> int:
    """Judge a trained model on a split of a data set."""
    asked = parse_as_in_run(Eval, words, prog="swindow eval", kinds=_TABLES)
    progress = watcher()
    model = ready(asked.run, device=asked.device)
    _refuse_for_other_tasks(model, asked)
    split, images = open_split(
        model,
        asked.run,
        asked.data or None,
        split=asked.split or None,
        limits=ImageLimits(max_pixels=asked.max_pixels),
        masks=asked.masks,
        objects=asked.objects,
        progress=progress,
    )
    evaluation = evaluate(
        model.model,
        images,
        split=split,
        batch=asked.batch,
        workers=-1,
        views=asked.views,
        threshold=asked.threshold,
        progress=progress,
    )
    print(evaluation.table())
    if asked.out is not None and asked.out.suffix.lower() == ".json":
        write_atomic(asked.out, json.dumps(evaluation.summary(), indent=1))
    elif asked.out is not None:
        for path in _write_folder(asked, model, evaluation, images):
            print(path)
    return 0


def _refuse_for_other_tasks(model: ReadyModel, asked: Any) -> None:
    """What only another kind of model takes is not quietly left aside."""
    takes = {"segment": ("views", "masks"), "detect": ("objects", "threshold")}.get(model.model.task, ())
    usual = {name: kind() for name, kind in _TABLES.items()} | {"threshold": None}
    wrong = [f"--{name}" for name, value in usual.items() if name not in takes and getattr(asked, name) != value]
    if wrong:
        raise ConfigError(f"{model.model.config.name} {_DOES[model.model.task]}: it takes no {' and '.join(wrong)}")


def _write_folder(asked: Eval, model: ReadyModel, evaluation: Any, images: Images | Scenes | WithObjects) -> list[Path]:
    """The page, its tables and figures, and a sheet of pictures unless it is a classifier's. What was written."""
    folder = Path(asked.out or "")
    facts = {"model": model.model.config.name, "data": asked.data or settings_of(asked.run).get("data", "")}
    if model.model.task == "pretrain" and isinstance(images, Images):
        page = write_evaluation(folder, evaluation, images, lambda row: paint(model, images, row), facts)
        return [page, folder / SHEET]
    if isinstance(images, Images):
        return [write_evaluation(folder, evaluation, images, facts=facts)]
    if isinstance(images, WithObjects):
        page = write_evaluation(folder, evaluation, images, lambda row: model.detect(images.read(row))[0], facts)
        return [page, folder / SHEET, folder / "detections.json"]
    segmenter = Segmenter(model, asked.views)

    @functools.cache  # the page and the sheet show the same few
    def answer(row: int) -> np.ndarray:
        return segmenter.labels(InMemory(images.read(row)))

    page = write_evaluation(folder, evaluation, images, answer, facts)
    content = io.BytesIO()
    comparison_sheet(
        (
            Compared(
                images.read(row),
                images.mask(row),
                answer(row),
                f"{kind}: {_short(images, row)}",
                _note(evaluation, row),
            )
            for kind, rows in evaluation.best_median_worst().items()
            for row in rows
        ),
        evaluation.classes,
        evaluation.colours,
        background=evaluation.background,
        heading=f"{evaluation.split}: {evaluation.score_name} {evaluation.score:.1%}",
    ).save(content, "PNG")
    write_atomic(folder / SHEET, content.getvalue())
    return [page, folder / SHEET]


def _short(images: Scenes, row: int) -> str:
    return Path(str(images.names[row])).name


def _note(evaluation: SegmentationEvaluation, row: int) -> str:
    image = evaluation.per_image[row]
    shares = {"mean IoU": image.mean_iou, "pixel accuracy": image.pixel_accuracy}
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share is not None)
