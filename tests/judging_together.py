"""What the processes of a `Company` are asked to do: judge tiny models on the same images, together or alone."""

from typing import Any

import numpy as np
import torch

from detections import random_set
from detectors import pictures_of, tiny_detr
from segmenters import local, picture, segmenter
from swindow.data import Images
from swindow.data.scenes import scenes_in_memory
from swindow.distributed import ALONE, joined
from swindow.errors import DataError
from swindow.evaluation import evaluate
from swindow.inference import ReadyModel
from swindow.model import build
from swindow.preprocess import Preprocess
from swindow.sliding import Views
from tiny_families import tiny_of

SIZES = [(20, 30), (20, 30), (33, 17), (20, 30), (33, 40), (33, 17), (20, 30)]


def judged(kind: str, *, together: bool = True, **how: Any) -> tuple[dict[str, Any], list[Any]]:
    """The figures of an evaluation, and what it says of every single image."""
    torch.manual_seed(0)
    if not together:
        return KINDS[kind](ALONE, **how)
    with joined() as ranks:
        return KINDS[kind](ranks, **how)


def refused(kind: str, **how: Any) -> str:
    """What is said of an image that cannot be read."""
    try:
        judged(kind, **how)
    except DataError as error:
        return str(error)
    return ""


def _classes(ranks: Any, *, count: int = 29) -> tuple[dict[str, Any], list[Any]]:
    model = tiny_of("swin")
    torch.nn.init.normal_(model.head.linear.weight, std=1.0)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    model.classes = tuple("abcde")
    found = evaluate(model, _images(count, model.classes), batch=4, ranks=ranks)
    return found.summary(), [found.probabilities.tolist(), found.labels.tolist(), found.names]


def _images(count: int, classes: tuple[str, ...]) -> Images:
    return Images(
        names=[f"image{number}" for number in range(count)],
        labels=torch.randint(5, (count,)).numpy(),
        classes=classes,
        channels=3,
        pixels=torch.randint(256, (count, 3, 20, 24), dtype=torch.uint8),
    )


def _painting(ranks: Any) -> tuple[dict[str, Any], list[Any]]:
    shape = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": 4, "patch": 2}
    model = build("simmim_swin_micro", **shape, mask_patch=4)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    found = evaluate(model, _images(11, tuple("abcde")), batch=4, ranks=ranks)
    return found.summary(), list(found.per_image)


def _pixels(ranks: Any, *, cases: str = "aabbbca", bad: int = -1) -> tuple[dict[str, Any], list[Any]]:
    model = segmenter(local(3), classes=3).model
    model.classes = ("nothing", "blood", "wall")
    random = np.random.default_rng(5)
    masks = [torch.from_numpy(random.integers(-1, 3, size).astype(np.int64)) for size in SIZES]
    pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    scenes = scenes_in_memory(pictures, masks, classes=model.classes, background=0, cases=list(cases))
    read = scenes.read

    def refuse(index: int) -> Any:
        if index == bad:
            raise DataError(f"picture {bad} cannot be read")
        return read(index)

    object.__setattr__(scenes, "read", refuse)
    found = evaluate(model, scenes, views=Views(mode="whole", batch=1), precision="fp32", ranks=ranks)
    return found.summary(), [found.confusion.tolist(), found.per_image, found.per_case, found.loss]


def _objects(ranks: Any, *, images: int = 12, bad: int = -1) -> tuple[dict[str, Any], list[Any]]:
    pairs = random_set(seed=3, masks=True, images=images)

    def detect(self: ReadyModel, pixels: Any, *, limits: Any = None) -> list[Any]:
        if any(int(one[0, 0, 0]) == bad for one in pixels):
            raise DataError(f"picture {bad} cannot be read")
        return [pairs[int(one[0, 0, 0])][1] for one in pixels]

    before, ReadyModel.detect = ReadyModel.detect, detect
    try:
        found = evaluate(tiny_detr(masks=True), pictures_of(pairs), batch=3, ranks=ranks)
    finally:
        ReadyModel.detect = before
    rows = sorted(found.results(), key=lambda row: (row["image_id"], row["score"], row["bbox"]))
    return found.summary(), [found.confusion.tolist(), found.per_image, found.threshold, rows]


KINDS = {"classes": _classes, "painting": _painting, "pixels": _pixels, "objects": _objects}
