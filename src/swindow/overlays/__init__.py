"""Answers drawn over their picture: classes of pixels as areas, objects as boxes and masks with their names."""

from swindow.overlays.keys import GREY, legend, with_legend
from swindow.overlays.objects import OUTCOMES, Outcome, draw_detections, draw_objects, outcome_key
from swindow.overlays.pixels import (
    LIGHT_TINT,
    SIDE,
    TINT,
    Compared,
    Labels,
    background_of,
    colours_of,
    comparison,
    comparison_sheet,
    overlay,
    reduced,
    thinned,
)

__all__ = [
    "GREY",
    "LIGHT_TINT",
    "OUTCOMES",
    "SIDE",
    "TINT",
    "Compared",
    "Labels",
    "Outcome",
    "background_of",
    "colours_of",
    "comparison",
    "comparison_sheet",
    "draw_detections",
    "draw_objects",
    "legend",
    "outcome_key",
    "overlay",
    "reduced",
    "thinned",
    "with_legend",
]
