"""What training minimises. An objective turns a model and a batch into named losses; their sum is the loss."""

from swindow.objectives.base import Judged, Moment, Objective, Supervised
from swindow.objectives.distillation import DistillConfig

__all__ = ["DistillConfig", "Judged", "Moment", "Objective", "Supervised"]
