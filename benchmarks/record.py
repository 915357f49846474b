"""Where and with what a figure was measured, and the dated file it is written to."""

import json
from pathlib import Path
from typing import Any

from swindow.bench.record import record, today

RESULTS = Path(__file__).parent / "results"


def write_record(name: str, figures: dict[str, Any]) -> Path:
    """Write figures with date, commit, machine and versions to results/NAME-DATE.json."""
    path = RESULTS / f"{name}-{today()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record() | figures, indent=1) + "\n")
    return path
