"""Images with labels: found, checked, divided, loaded and augmented."""

from swindow.data.checking import CheckReport, check
from swindow.data.datasets import DataSource, Images, align_classes, open_data, split_changes, split_record
from swindow.data.duplicates import Duplicate, duplicates_across
from swindow.data.inventory import Problem

__all__ = [
    "CheckReport",
    "DataSource",
    "Duplicate",
    "Images",
    "Problem",
    "align_classes",
    "check",
    "duplicates_across",
    "open_data",
    "split_changes",
    "split_record",
]
