"""How well objects are found: COCO's average precision and recall, of boxes and of masks (faster_coco_eval inside).

The numbers are those of pycocotools on the same objects and detections, to the rounding of fp64 (the tests compare
them to 1e-12). What it has no figure for, such as the AP of a class without objects, is None and stays out of means.

The area of a detected mask is the number of its pixels. (pycocotools takes that of the box where a results file has
both boxes and masks; this touches AP of masks by size alone, and other libraries avoid it too.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from swindow.errors import ConfigError, ShapeError, require
from swindow.metrics.runs import EXTRA, Rle, detection_in_runs, mask_in_runs
from swindow.objects import Detections, Objects, Size

MOST_DETECTIONS = (1, 10, 100)
"""Detections of a class in an image that count, the surest first; AP takes the last."""
SIZES = ("small", "medium", "large")
"""Areas up to 32², up to 96², and beyond, in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AveragePrecision:
    """COCO's figures for a whole set, over IoU thresholds 0.50, 0.55 … 0.95 unless a name says another."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    """Average recall with one detection of a class in an image."""
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: tuple[float | None, ...]
    """AP of each class."""
    per_class50: tuple[float | None, ...]
    """AP of each class at IoU 0.5."""
    precision: Float[np.ndarray, "T 101 K"]
    """At ten IoU thresholds and at recalls 0, 0.01 … 1: the greatest precision at such a recall or a higher one, 0
    where that recall is not reached, -1 of a class without objects."""
    scores: Float[np.ndarray, "T 101 K"]
    """The score of the detection with which such a recall is reached."""

    def figures(self, prefix: str) -> dict[str, float]:
        """The twelve figures under names such as ``box_ap50``; those that are None are left out."""
        names = [field.name for field in dataclasses.fields(self)][:12]
        return {f"{prefix}_{name}": value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """Boxes (x, y, width, height), areas, labels and runs of one image's objects or detections."""

    boxes: np.ndarray
    areas: np.ndarray
    labels: np.ndarray
    extra: np.ndarray
    """Of objects whether they are crowds, of detections their scores."""
    masks: list[Rle] | None


class DetectionMetrics:
    """Average precision, gathered image by image; of a mask only its runs are kept.

    Raises:
        MissingExtra: faster_coco_eval is not installed.
        ConfigError: no class.
    """

    def __init__(self, num_classes: int, *, masks: bool = False) -> None:
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}; a detector has at least 1")
        require("faster_coco_eval", extra=EXTRA)
        self.num_classes, self.masks = num_classes, masks
        self.sizes: dict[int, Size] = {}
        """Of each image, by its id."""
        self.objects: list[_Seen] = []
        self.detections: list[_Seen] = []

    def update(self, objects: Objects, detections: Detections, *, image_id: int | None = None) -> None:
        """Add one image: what is in it and what was found, both in its own pixels.

        `image_id` orders detections of one score in different images; without it, that is the order of adding.

        Raises:
            ConfigError: an `image_id` that was there before, or a label that is no class.
            ShapeError: masks are judged and there are none.
        """
        image_id = len(self.sizes) if image_id is None else image_id
        if image_id in self.sizes:
            raise ConfigError(f"image_id {image_id} was added before; give each image another")
        for name, labels in (("objects", objects.labels), ("detections", detections.labels)):
            if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.num_classes):
                raise ConfigError(
                    f"the {name} have labels {int(labels.min())} to {int(labels.max())}; there are {self.num_classes} "
                    "classes, from 0"
                )
        self.objects.append(self._of_objects(objects, detections.size))
        self.detections.append(self._of_detections(detections))
        self.sizes[image_id] = detections.size

    def extend(self, other: "DetectionMetrics") -> None:
        """Add the images of another, which have other ids.

        Raises:
            ConfigError: an image that was added before.
        """
        if both := self.sizes.keys() & other.sizes.keys():
            raise ConfigError(f"image_id {min(both)} was added before; give each image another")
        self.objects += other.objects
        self.detections += other.detections
        self.sizes |= other.sizes

    def compute(self) -> tuple[AveragePrecision, AveragePrecision | None]:
        """The figures of boxes, and those of masks where they are judged.

        Raises:
            ConfigError: nothing was added yet.
        """
        if not self.sizes:
            raise ConfigError("no images were added; metrics need at least one")
        return self._evaluated("bbox"), self._evaluated("segm") if self.masks else None

    def results(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """All detections as rows of a COCO results file, which has `category_ids` for the classes in their order."""
        rows: list[dict[str, Any]] = []
        for image_id, found in zip(self.sizes, self.detections, strict=True):
            parts = (found.boxes.tolist(), found.labels.tolist(), found.extra.tolist())
            for place, (box, label, score) in enumerate(zip(*parts, strict=True)):
                row = {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
                if found.masks is not None:
                    runs = found.masks[place]
                    row["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
                rows.append(row)
        return rows

    def _of_objects(self, objects: Objects, size: Size) -> _Seen:
        masks = None
        if self.masks:
            if objects.masks is None:
                raise ShapeError("these objects have boxes alone, and masks are to be judged")
            if len(objects) and tuple(objects.masks.shape[1:]) != size:
                raise ShapeError(f"masks of {tuple(objects.masks.shape[1:])} pixels, detections in {size}")
            masks = [mask_in_runs(mask) for mask in objects.masks]
        areas, crowd = objects.areas.double().cpu().numpy(), objects.crowd.cpu().numpy()
        return _Seen(boxes_as_coco(objects.boxes), areas, objects.labels.cpu().numpy(), crowd, masks)

    def _of_detections(self, found: Detections) -> _Seen:
        masks = [detection_in_runs(found, index) for index in range(len(found))] if self.masks else None
        boxes = boxes_as_coco(found.boxes)
        scores = found.scores.double().cpu().numpy()
        return _Seen(boxes, boxes[:, 2] * boxes[:, 3], found.labels.cpu().numpy(), scores, masks)

    def _evaluated(self, kind: str) -> AveragePrecision:
        library = require("faster_coco_eval", extra=EXTRA)
        truth, found = (
            self._in_coco_form(part, extra, kind)
            for part, extra in ((self.objects, "iscrowd"), (self.detections, "score"))
        )
        evaluator = library.COCOeval_faster(truth, found, kind, print_function=_silent)
        evaluator.evaluate()
        evaluator.accumulate()
        return _figures(evaluator.eval["precision"], evaluator.eval["recall"], evaluator.eval["scores"])

    def _in_coco_form(self, images: Sequence[_Seen], extra: str, kind: str) -> Any:
        """What the evaluator takes: a COCO file, but in memory."""
        library = require("faster_coco_eval", extra=EXTRA)
        content = library.COCO()
        content.dataset = {
            "images": [
                {"id": number, "height": height, "width": width} for number, (height, width) in self.sizes.items()
            ],
            "categories": [{"id": k, "name": str(k)} for k in range(self.num_classes)],
            "annotations": [],
        }
        rows = content.dataset["annotations"]
        for image_id, image in zip(self.sizes, images, strict=True):
            areas = image.areas
            if kind == "segm" and extra == "score":
                areas = library.mask.area(image.masks) if image.masks else areas
            parts = (image.boxes.tolist(), areas.tolist(), image.labels.tolist(), image.extra.tolist())
            for place, (box, area, label, value) in enumerate(zip(*parts, strict=True)):
                row = {"id": len(rows) + 1, "image_id": image_id, "category_id": label, "bbox": box, "area": area}
                row[extra] = int(value) if extra == "iscrowd" else value
                if kind == "segm" and image.masks is not None:
                    row["segmentation"] = image.masks[place]
                rows.append(row)
        content.createIndex()
        return content


def boxes_as_coco(boxes: Float[Tensor, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Left, top, width and height in fp64, as COCO's files have them."""
    corners = boxes.detach().double().cpu().numpy()
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _figures(precision: np.ndarray, recall: np.ndarray, scores: np.ndarray) -> AveragePrecision:
    """From precisions ``T 101 K A M`` and recalls ``T K A M`` over thresholds, classes, areas and most detections."""
    every, most = 0, len(MOST_DETECTIONS) - 1
    whole = precision[..., every, most]
    return AveragePrecision(
        ap=_mean(whole),
        ap50=_mean(whole[0]),
        ap75=_mean(whole[5]),
        **{f"ap_{name}": _mean(precision[..., 1 + place, most]) for place, name in enumerate(SIZES)},
        **{f"ar{count}": _mean(recall[..., every, place]) for place, count in enumerate(MOST_DETECTIONS)},
        **{f"ar_{name}": _mean(recall[..., 1 + place, most]) for place, name in enumerate(SIZES)},
        per_class=tuple(_mean(whole[..., k]) for k in range(whole.shape[2])),
        per_class50=tuple(_mean(whole[0, :, k]) for k in range(whole.shape[2])),
        precision=whole.copy(),
        scores=scores[..., every, most].copy(),
    )


def _mean(values: np.ndarray) -> float | None:
    """Of those that there are: the evaluator writes -1 for the others."""
    known = values[values > -1]
    return float(np.mean(known)) if known.size else None


def _silent(*words: object) -> None:
    """The evaluator reports its steps; nobody here reads them."""
