"""Millions of images: predicted in parts that are whole or not there, by one process or by Ray, and resumed.

* `running`: a job from its inputs to its summary; its docstring says what lies where
* `listing`, `plan`: which files there are, and how they make parts
* `places`, `reading`, `tables`: bytes of images from disks, object storage, tars and Parquet
* `work`, `rows`: one part predicted, written and committed
* `engines`: this process, or workers of Ray
"""

from swindow.predict.bulk.listing import is_shard
from swindow.predict.bulk.running import Engine, PartsSummary, predict_parts

__all__ = ["Engine", "PartsSummary", "is_shard", "predict_parts"]
