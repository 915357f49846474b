"""Weights in and out: our own files, and everybody else's.

* `own`: our files; `files`: that they are there whole or not at all
* `containers`: any file's tensors, read without executing anything
* `formats`, `layouts`, `tables`, `names`, `rules`, `buffers`: whose names and shapes they are
* `describing`, `decoders`, `evidence`, `facts`: which model that makes
* `detectors` and `detector_…`: the same of heads that find objects
* `fitting`: weights of one size in a model of another; `loading`, `converting`: all of it together
"""

from swindow.checkpoints.converting import convert
from swindow.checkpoints.loading import AssumedWarning, load, load_weights, open_weights
from swindow.checkpoints.own import WEIGHTS, Card, find_weights, read_tensors, save
from swindow.checkpoints.reports import LoadReport

__all__ = [
    "WEIGHTS",
    "AssumedWarning",
    "Card",
    "LoadReport",
    "convert",
    "find_weights",
    "load",
    "load_weights",
    "open_weights",
    "read_tensors",
    "save",
]
