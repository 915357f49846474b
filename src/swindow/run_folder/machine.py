"""Versions and machine, for whoever wants to repeat a run."""

import os
import platform
from typing import Any

from swindow._version import __version__


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants to repeat the run."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "swindow": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Of what a saved state was written with."""
    import torch

    return {"swindow": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return str(capabilities.get("cpu_name") or platform.processor() or platform.machine())
