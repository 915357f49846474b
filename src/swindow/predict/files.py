"""Files, folders and patterns to predictions in a folder."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from swindow.checkpoints.files import write_atomic
from swindow.data.finding import find_images, same_place
from swindow.data.volume_files import VOLUME_SUFFIXES
from swindow.errors import ConfigError
from swindow.images import IMAGE_SUFFIXES
from swindow.predict import classified, segmented
from swindow.predict.answers import Failure, PredictSummary, Segmentation
from swindow.predict.drafts import LINES, SHEET, TABLE, writing
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

    Raises:
        DataError: nothing to predict.
        ConfigError: `out` cannot be written or holds masks of somebody else, or `top` is below 1.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; ask for at least 1 class")
    out, progress = Path(out), progress or Silent()
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
    return PredictSummary(
        count=len(files),
        failures=tuple(tally.failures),
        classes=dict(tally.classes.most_common()),
        files=tuple(written),
        first=tuple(tally.first),
    )


def _segment(
    predictor: Predictor, inputs: Sequence[str | Path], out: Path, _: int, sheet: bool, progress: Progress
) -> PredictSummary:
    classes = predictor.asked.classes
    with writing(out):
        files = _not_ours(find_images(inputs, (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)), out)
        targets = segmented.targets(by_channels(files, predictor.asked.preprocess.channels), out)
        answers = _counted(_answers(predictor, targets), len(targets), progress)
        tally = segmented.write_all(answers, out, classes, predictor.colours)
        written = [out / name for name in (LINES, TABLE, segmented.MASKS, segmented.OVERLAYS, segmented.LEGEND)]
        if sheet:
            content = segmented.contact_sheet(tally, len(targets), classes, predictor.colours)
            write_atomic(out / SHEET, content)
            written.append(out / SHEET)
    return PredictSummary(
        count=len(targets),
        failures=tuple(tally.failures),
        classes=dict(tally.classes.most_common()),
        files=tuple(written),
        first=tuple(tally.first),
    )


def _answers(
    predictor: Predictor, targets: Sequence[segmented.Target]
) -> Iterator[tuple[segmented.Target, Labelled, Segmentation | Failure]]:
    found = predictor.labelled(target.sources for target in targets)
    for target, labelled in zip(targets, found, strict=True):
        yield target, labelled, predictor.segmentation(labelled)


def _not_ours(paths: Sequence[Path], out: Path) -> list[Path]:
    """Without what an earlier call left in `out`."""
    folders = [same_place(out / name) for name in (segmented.MASKS, segmented.OVERLAYS)]
    if not segmented.are_ours(out):
        folders = []
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
