"""Where and with what a figure was measured, and the dated file it is written to."""

import datetime
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from swindow.run_folder import environment

RESULTS = Path(__file__).parent / "results"


def write_record(name: str, figures: dict[str, Any]) -> Path:
    """Write figures with date, commit, machine and versions to results/NAME-DATE.json."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    path = RESULTS / f"{name}-{today}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"date": today, "commit": commit(), "environment": environment() | {"peers": peers()}, **figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def commit() -> str:
    """The commit that is checked out, marked when files differ from it."""
    say = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()  # noqa: E731
    return say("rev-parse", "--short", "HEAD") + ("+changes" if say("status", "--porcelain", "src") else "")


def peers() -> dict[str, str]:
    """Versions of the libraries that we compare with."""
    return {name: metadata.version(name) for name in ("timm", "torchvision")}
