"""A pytest plugin: a line of JSON for each test as it ends, so that a run that is cut off leaves what it knew.

``-p gpu_reports``, with the file's name in the environment's SWINDOW_REPORTS. Workers' tests pass through it too.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest


def pytest_runtest_logreport(report: Any) -> None:
    """Whatever failed or was skipped, in whichever phase, and calls that passed."""
    if report.when == "call" or report.outcome != "passed":
        _write(report, seconds=report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Files that could not be read."""
    if report.failed:
        _write(report)


def _write(report: Any, **more: Any) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):  # the controller hears of it, too
        return
    text = "" if report.passed else str(report.longrepr).replace(f"{Path.cwd()}/", "")[-2000:]
    line = {"test": report.nodeid, "outcome": report.outcome, "text": text} | more
    with Path(os.environ["SWINDOW_REPORTS"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
