"""How good answers are: of images (`classification`), of pixels (`segmentation`), of outlines (`surfaces`)."""

from swindow.metrics.classification import (
    BINS,
    Bin,
    ClassificationMetrics,
    ClassScore,
    accuracy_interval,
    class_scores,
    reliability,
)
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
    "Bin",
    "ClassScore",
    "ClassificationMetrics",
    "PixelScore",
    "accuracy_interval",
    "class_scores",
    "confusion_of_pixels",
    "dice_scores",
    "hausdorff95",
    "mean_of_known",
    "percentile95",
    "pixel_accuracy",
    "pixel_scores",
    "reliability",
    "surface_distances",
]
