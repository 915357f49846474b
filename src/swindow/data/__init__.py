"""Images with labels, masks or objects: found, checked, divided, loaded and augmented."""

from swindow.data.annotated import Annotated, annotated_in_memory
from swindow.data.annotations import ObjectConfig
from swindow.data.checking import CheckReport, check
from swindow.data.datasets import align_classes, open_data
from swindow.data.duplicates import Duplicate, duplicates_across
from swindow.data.inventory import Problem
from swindow.data.labelled import Images
from swindow.data.masks import MaskConfig
from swindow.data.scene_checking import sample_check
from swindow.data.scenes import Scenes
from swindow.data.sources import DataSource, split_changes, split_record

__all__ = [
    "Annotated",
    "CheckReport",
    "DataSource",
    "Duplicate",
    "Images",
    "MaskConfig",
    "ObjectConfig",
    "Problem",
    "Scenes",
    "align_classes",
    "annotated_in_memory",
    "check",
    "duplicates_across",
    "open_data",
    "sample_check",
    "split_changes",
    "split_record",
]
