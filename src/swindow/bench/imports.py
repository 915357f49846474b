"""How long an import takes, in fresh interpreters that alternate."""

import subprocess
import sys
from collections.abc import Sequence

from swindow.errors import ConfigError

_SCRIPT = "import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"


def import_seconds(modules: Sequence[str], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of importing each module in each round, without the interpreter's own start and end.

    The first `warmup` rounds are not counted: they read files from the disk and write bytecode.

    Raises:
        ConfigError: a module cannot be imported.
    """
    samples: dict[str, list[float]] = {module: [] for module in modules}
    for number in range(warmup + rounds):
        for module in modules:
            seconds = _once(module)
            if number >= warmup:
                samples[module].append(seconds)
    return samples


def _once(module: str) -> float:
    words = [sys.executable, "-c", _SCRIPT.format(module=module)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter and script
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"import {module} failed in a process of its own: {said[-1]}")
    return float(done.stdout)
