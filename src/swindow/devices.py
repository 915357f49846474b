"""Where a computation runs and in which precision: one pure choice each, no global switch."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from swindow.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROCESS = Path("/proc/self/status")
"""What Linux tells a process about itself."""


def pick_device(name: str = "auto", local: int = 0) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU; any other name must exist on this machine.

    Of several GPUs, the process that is number `local` on this machine has the one of that number.

    Raises:
        ConfigError: the device does not exist here.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available.get(name.split(":")[0], False):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(f"device {name!r} is not available on this machine; there are: auto, {here}")
    return torch.device("cuda", local) if name == "cuda" and local else torch.device(name)


def pick_precision(name: str, device: torch.device) -> Precision:
    """``auto`` is bf16 where the device multiplies it natively, else fp32.

    On a CPU that means AVX-512 BF16 or AMX: elsewhere bf16 is emulated and slower than fp32.

    Raises:
        ConfigError: no such precision, or fp16 asked for on a CPU.
    """
    if name == "auto":
        return "bf16" if _has_bf16(device) else "fp32"
    if name not in DTYPES:
        raise ConfigError(f"precision {name!r} is not one of auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision 'fp16' needs a GPU: on a CPU it is slow and overflows; use bf16 or fp32")
    return name  # type: ignore[return-value]  # narrowed by the membership test above


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Matrix products in `precision`, everything that needs range in fp32."""
    with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
        yield


def peak_memory(device: torch.device) -> int:
    """Most memory so far, in bytes: of tensors on CUDA, what the driver holds on MPS, else this process's resident set.

    0 where the system keeps no such figure.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if PROCESS.exists():  # Linux, whose `ru_maxrss` begins at what the parent process held
        line = next(line for line in PROCESS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import sys

    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew where it can: on CUDA. A process's resident set cannot be begun anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("amx_tile"))
    return False
