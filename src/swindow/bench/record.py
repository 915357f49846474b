"""Where, when and with what a figure was measured."""

import datetime
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from swindow.run_folder import environment

PEERS = ("timm", "torchvision", "transformers", "onnxruntime", "openvino", "triton")
_HERE = Path(__file__).parent


def record() -> dict[str, Any]:
    """Date, commit, machine and versions, as plain values."""
    return {"date": today(), "commit": commit(), "environment": environment() | {"peers": peers()}}


def today() -> str:
    """The date in UTC, year first."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def commit() -> str:
    """The commit that this package lies in, marked when its files differ from it; empty for an installed package."""
    if not _git("ls-files", "../__init__.py"):  # no checkout, or somebody else's that has us in its environment
        return ""
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "..") else "")


def peers() -> dict[str, str]:
    """Versions of the libraries that one compares with, of those that are installed."""
    installed = {}
    for name in PEERS:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _git(*words: str) -> str:
    program = shutil.which("git")
    if program is None:
        return ""
    done = subprocess.run([program, *words], cwd=_HERE, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return done.stdout.strip() if done.returncode == 0 else ""
