"""What training minimises. An objective turns a model and a batch into named losses; their sum is the loss.

* `base`: what every objective is, and the plain one
* `distillation`: learning from a teacher; `teacher`: its answers, `features`: its maps, `answers`: those kept on disk,
  `streams`: what they go by
* `masked`: painting what is hidden (SimMIM)
"""

from swindow.objectives.base import Judged, Moment, Objective, Supervised
from swindow.objectives.distillation import DistillConfig, Distilled, distilled
from swindow.objectives.masked import MaskedImages
from swindow.objectives.streams import Stream
from swindow.objectives.teacher import Teacher

__all__ = [
    "DistillConfig",
    "Distilled",
    "Judged",
    "MaskedImages",
    "Moment",
    "Objective",
    "Stream",
    "Supervised",
    "Teacher",
    "distilled",
]
