"""Files, folders and patterns to predictions in a folder."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from swindow.checkpoints.files import write_atomic
from swindow.data.finding import find_images, same_place
from swindow.data.volume_files import VOLUME_SUFFIXES
from swindow.errors import ConfigError
from swindow.images import IMAGE_SUFFIXES
from swindow.predict import classified, detected, segmented
from swindow.predict.answers import Failure, Found, PredictSummary, Segmentation
from swindow.predict.drafts import LINES, OVERLAYS, SHEET, TABLE, writing
from swindow.predict.pixels import Labelled
from swindow.predict.predictor import Predictor
from swindow.predict.volumes import by_channels
from swindow.progress import Progress, Silent


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    top: int = 5,
    threshold: float | None = None,
    sheet: bool = True,
    progress: Progress | None = None,
) -> PredictSummary:
    """Predict files, folders and patterns; leave ``predictions.jsonl``, ``predictions.csv`` and ``sheet.png`` in `out`.

    Every image has one row, in order, with its `top` classes or with its error. A file appears only when it is
    complete; it replaces that of an earlier call.

    A segmenter's rows have sizes and the share of each class, and for every image it leaves ``masks/STEM.png`` (class
    indices, with the classes' colours as palette up to 256 classes, else of 16 bits) and ``overlays/STEM.png`` (or
    ``.jpg``), and ``classes.toml`` for all. It takes volumes too (``.npz``, ``.npy``, NIfTI), whose masks have the form
    of the source. Where stems are alike, the second is ``STEM-2``. Files there that no earlier call wrote are not
    replaced.

    A detector's rows have the objects whose score is at least `threshold` (0.5), and ``overlays/STEM.jpg`` shows them.
    ``detections.json`` has all that were found, as COCO's results files are written, and ``images.json`` the images and
    categories that its numbers stand for.

    Raises:
        DataError: nothing to predict.
        ConfigError: `out` cannot be written or holds files of somebody else, `top` is below 1, or `threshold` is not in
            0..1 or given for a model that finds no objects.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; ask for at least 1 class")
    if threshold is not None and not predictor.finds:
        raise ConfigError(f"{predictor.asked.model.config.name} finds no objects: it takes no threshold")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; scores lie in 0..1")
    out, progress = Path(out), progress or Silent()
    if predictor.finds:
        return _detect(predictor, inputs, out, detected.THRESHOLD if threshold is None else threshold, sheet, progress)
    return (_classify if predictor.segmenter is None else _segment)(predictor, inputs, out, top, sheet, progress)


def _classify(
    predictor: Predictor, inputs: Sequence[str | Path], out: Path, top: int, sheet: bool, progress: Progress
) -> PredictSummary:
    files = [path for path in find_images(inputs) if same_place(path) != same_place(out / SHEET)]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        answers = _counted(predictor.stream(files), len(files), progress)
        tally = classified.write_rows(answers, out, min(top, len(predictor.asked.classes)))
        written = [out / LINES, out / TABLE]
        if sheet:
            write_atomic(out / SHEET, classified.contact_sheet(files, tally.first, predictor.limits))
            written.append(out / SHEET)
    return _summary(len(files), tally, written)


def _segment(
    predictor: Predictor, inputs: Sequence[str | Path], out: Path, _: int, sheet: bool, progress: Progress
) -> PredictSummary:
    classes = predictor.asked.classes
    with writing(out):
        ours = (segmented.MASKS, OVERLAYS) if segmented.are_ours(out) else ()
        files = _not_ours(find_images(inputs, (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)), out, ours)
        targets = segmented.targets(by_channels(files, predictor.asked.preprocess.channels), out)
        answers = _counted(_answers(predictor, targets), len(targets), progress)
        tally = segmented.write_all(answers, out, classes, predictor.colours)
        written = [out / name for name in (LINES, TABLE, segmented.MASKS, OVERLAYS, segmented.LEGEND)]
        if sheet:
            content = segmented.contact_sheet(tally, len(targets), classes, predictor.colours)
            write_atomic(out / SHEET, content)
            written.append(out / SHEET)
    return _summary(len(targets), tally, written)


def _detect(
    predictor: Predictor, inputs: Sequence[str | Path], out: Path, threshold: float, sheet: bool, progress: Progress
) -> PredictSummary:
    classes = predictor.asked.classes
    with writing(out):
        ours = (OVERLAYS,) if detected.are_ours(out) else ()
        targets = detected.targets(_not_ours(find_images(inputs), out, ours), out)
        answers = _counted(_found(predictor, targets), len(targets), progress)
        tally = detected.write_all(answers, out, classes, threshold)
        written = [out / name for name in (LINES, TABLE, detected.RESULTS, detected.IMAGES, OVERLAYS)]
        if sheet:
            write_atomic(out / SHEET, detected.contact_sheet(tally, len(targets), classes, predictor.colours))
            written.append(out / SHEET)
    return _summary(len(targets), tally, written)


def _summary(count: int, tally: Any, written: Sequence[Path]) -> PredictSummary:
    return PredictSummary(
        count=count,
        failures=tuple(tally.failures),
        classes=dict(tally.classes.most_common()),
        files=tuple(written),
        first=tuple(tally.first),
    )


def _found(
    predictor: Predictor, targets: Sequence[detected.Target]
) -> Iterator[tuple[detected.Target, Tensor | None, Found | Failure]]:
    for target, seen in zip(targets, predictor.seen(target.source for target in targets), strict=True):
        yield target, seen.pixels, predictor.found(seen)


def _answers(
    predictor: Predictor, targets: Sequence[segmented.Target]
) -> Iterator[tuple[segmented.Target, Labelled, Segmentation | Failure]]:
    found = predictor.labelled(target.sources for target in targets)
    for target, labelled in zip(targets, found, strict=True):
        yield target, labelled, predictor.segmentation(labelled)


def _not_ours(paths: Sequence[Path], out: Path, ours: Sequence[str]) -> list[Path]:
    """Without what an earlier call left in `out`."""
    folders = [same_place(out / name) for name in ours]
    sheet = same_place(out / SHEET)
    return [path for path in paths if same_place(path) != sheet and same_place(path.parent) not in folders]


def _counted(answers: Iterable[Any], total: int, progress: Progress) -> Iterator[Any]:
    progress.begin("predict", total)
    try:
        for answer in answers:
            yield answer
            progress.advance()
    finally:
        progress.end()
