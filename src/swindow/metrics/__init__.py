"""How good answers are: of images (`classification`), of pixels (`segmentation`), of outlines (`surfaces`), of objects
(`detection`, `matching`)."""

from swindow.metrics.classification import (
    BINS,
    Bin,
    ClassificationMetrics,
    ClassScore,
    accuracy_interval,
    class_scores,
    reliability,
)
from swindow.metrics.detection import AveragePrecision, DetectionMetrics, boxes_as_coco
from swindow.metrics.matching import Counts, ObjectMatches, matches
from swindow.metrics.runs import detection_in_runs, mask_in_runs
from swindow.metrics.segmentation import (
    PixelScore,
    confusion_of_pixels,
    dice_scores,
    mean_of_known,
    pixel_accuracy,
    pixel_scores,
)
from swindow.metrics.surfaces import hausdorff95, percentile95, surface_distances

__all__ = [
    "BINS",
    "AveragePrecision",
    "Bin",
    "ClassScore",
    "ClassificationMetrics",
    "Counts",
    "DetectionMetrics",
    "ObjectMatches",
    "PixelScore",
    "accuracy_interval",
    "boxes_as_coco",
    "class_scores",
    "confusion_of_pixels",
    "detection_in_runs",
    "dice_scores",
    "hausdorff95",
    "mask_in_runs",
    "matches",
    "mean_of_known",
    "percentile95",
    "pixel_accuracy",
    "pixel_scores",
    "reliability",
    "surface_distances",
]
