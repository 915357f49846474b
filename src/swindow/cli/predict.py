"""``swindow predict``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from swindow.cli.arguments import Positional
from swindow.cli.runs import parse_as_in_run
from swindow.errors import ConfigError
from swindow.progress import watcher
from swindow.views import Views

if TYPE_CHECKING:
    from swindow.predict import Predictor


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify new images, segment them or find objects: a line each on screen, predictions.jsonl, .csv and sheet.png.

    They lie in --out, and so do a segmenter's masks (PNGs of class indices) and overlays, in folders of these names. A
    detector leaves overlays, and detections.json in the form of COCO's results.

    URLs (s3://bucket/images/), tar and Parquet shards, --engine ray and --parts are for any number of images: --out,
    which may be a URL, then gets a file of rows for each --part-images of them; started again, it does what is missing.
    """

    run: Annotated[str, Positional]
    """A run folder or a checkpoint."""
    images: Annotated[tuple[str, ...], Positional]
    """Files, folders, glob patterns or URLs; tar and Parquet shards; for a segmenter also volumes (.npz, .npy, .nii,
    .nii.gz)."""
    out: str = "predictions"
    """Folder for the results, or with parts a URL."""
    top: int | None = None
    """Classes of a classifier to name for each image; 5 by default."""
    threshold: float | None = None
    """Score in 0..1 from which a detector's objects are drawn, listed and counted; 0.5 by default. detections.json has
    all of them, parts have those alone."""
    batch: int | None = None
    """Images per forward pass; by default 32, of a segmenter what views.batch says, of a detector as many as fit."""
    sheet: bool = True
    """Make a contact sheet; there is none of parts."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""
    axis: int | None = None
    """Along which volumes are cut into slices: 0, 1 or 2; by default as in training."""
    engine: Literal["local", "ray"] = "local"
    """This process, or workers of Ray: those of the cluster at RAY_ADDRESS, else of this machine."""
    parts: bool = False
    """Write parts also for images of this machine."""
    part_images: int = 2000
    """Images of a part; a tar is a part by itself."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """Of the parts."""
    masks: bool = False
    """With parts, write a segmenter's masks too: a tar of PNGs beside each."""
    workers: int | None = None
    """Of Ray; by default one for each GPU, or for each four cores."""
    fetch: int = 32
    """Objects that each worker has on their way at once."""
    views: Views = Views()
    """How a segmenter looks at a picture; by default as in training."""


def predict_command(words: list[str]) -> int:
    """Classes of new images or of their pixels, or the objects in them."""
    asked = parse_as_in_run(Predict, words, prog="swindow predict", kinds={"views": Views})
    from swindow.data.shards.stores import is_url  # with torch behind it, which --help does not wait for
    from swindow.images import ImageLimits
    from swindow.predict import Predictor
    from swindow.predict.bulk import is_shard

    urls = [is_url(place) for place in (asked.out, *asked.images)]
    parts = asked.parts or asked.engine == "ray" or any(urls) or any(map(is_shard, asked.images))
    _refuse_without_parts(asked, parts)
    predictor = Predictor(
        asked.run,
        device="cpu" if asked.engine == "ray" else asked.device,
        batch=asked.batch,
        limits=ImageLimits(max_pixels=asked.max_pixels),
        views=asked.views,
        axis=asked.axis,
    )
    if predictor.segmenter is not None and asked.top is not None:
        raise ConfigError("--top is for classifiers; of a segmenter, every class has its share of the picture")
    if predictor.finds and asked.top is not None:
        raise ConfigError("--top is for classifiers; of a detector, --threshold says which objects are listed")
    return _parts(predictor, asked) if parts else _files(predictor, asked)


def _refuse_without_parts(asked: Predict, parts: bool) -> None:
    """Flags that mean nothing without parts, or with them."""
    usual = {field.name: field.default for field in dataclasses.fields(Predict)}
    changed = [name for name in ("part_images", "format", "masks", "fetch") if getattr(asked, name) != usual[name]]
    if changed and not parts:
        raise ConfigError(f"--{changed[0].replace('_', '-')} is for predictions in parts; give --parts too")
    if asked.workers is not None and asked.engine != "ray":
        raise ConfigError("--workers is for --engine ray; the local engine is one process")
    if parts and asked.axis is not None:
        raise ConfigError("--axis is for volumes, which are predicted one by one; leave out --parts and --engine ray")


def _files(predictor: "Predictor", asked: Predict) -> int:
    from swindow.predict import predict_files

    summary = predict_files(
        predictor,
        list(asked.images),
        Path(asked.out),
        top=5 if asked.top is None else asked.top,
        threshold=asked.threshold,
        sheet=asked.sheet,
        progress=watcher(),
    )
    print(summary.text())
    return 1 if summary.failures else 0


def _parts(predictor: "Predictor", asked: Predict) -> int:
    from swindow.predict.bulk import predict_parts

    summary = predict_parts(
        predictor,
        list(asked.images),
        asked.out,
        engine=asked.engine,
        part_images=asked.part_images,
        top=5 if asked.top is None else asked.top,
        threshold=asked.threshold,
        masks=asked.masks,
        format=asked.format,
        workers=asked.workers,
        fetch=asked.fetch,
        device=asked.device,
        progress=watcher(),
    )
    print(summary.text())
    return 1 if summary.failures or summary.missing else 0
