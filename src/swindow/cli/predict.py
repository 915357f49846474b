"""``swindow predict``."""

import dataclasses
from pathlib import Path
from typing import Annotated

from swindow.cli.arguments import Positional
from swindow.cli.runs import parse_as_in_run
from swindow.errors import ConfigError
from swindow.images import ImageLimits
from swindow.predict import Predictor, predict_files
from swindow.progress import watcher
from swindow.sliding import Views


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify new images, segment them or find objects: a line each on screen, predictions.jsonl, .csv and sheet.png.

    They lie in --out, and so do a segmenter's masks (PNGs of class indices) and overlays, in folders of these names. A
    detector leaves overlays, and detections.json in the form of COCO's results.
    """

    run: Annotated[str, Positional]
    """A run folder or a checkpoint."""
    images: Annotated[tuple[str, ...], Positional]
    """Files, folders or glob patterns; for a segmenter also volumes (.npz, .npy, .nii, .nii.gz)."""
    out: Path = Path("predictions")
    """Folder for the results."""
    top: int | None = None
    """Classes of a classifier to name for each image; 5 by default."""
    threshold: float | None = None
    """Score in 0..1 from which a detector's objects are drawn, listed and counted; 0.5 by default. detections.json has
    all of them."""
    batch: int | None = None
    """Images per forward pass; by default 32, of a segmenter what views.batch says, of a detector as many as fit."""
    sheet: bool = True
    """Make a contact sheet."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""
    axis: int | None = None
    """Along which volumes are cut into slices: 0, 1 or 2; by default as in training."""
    views: Views = Views()
    """How a segmenter looks at a picture; by default as in training."""


def predict_command(words: list[str]) -> int:
    """Classes of new images or of their pixels, or the objects in them."""
    asked = parse_as_in_run(Predict, words, prog="swindow predict", kinds={"views": Views})
    predictor = Predictor(
        asked.run,
        device=asked.device,
        batch=asked.batch,
        limits=ImageLimits(max_pixels=asked.max_pixels),
        views=asked.views,
        axis=asked.axis,
    )
    if predictor.segmenter is not None and asked.top is not None:
        raise ConfigError("--top is for classifiers; of a segmenter, every class has its share of the picture")
    if predictor.finds and asked.top is not None:
        raise ConfigError("--top is for classifiers; of a detector, --threshold says which objects are listed")
    top = 5 if asked.top is None else asked.top
    summary = predict_files(
        predictor,
        list(asked.images),
        asked.out,
        top=top,
        threshold=asked.threshold,
        sheet=asked.sheet,
        progress=watcher(),
    )
    print(summary.text())
    return 1 if summary.failures else 0
