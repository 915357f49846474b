"""How much memory there is, and what to say where it ends."""

import os
from pathlib import Path

import torch

SYSTEM = Path("/proc/meminfo")
OWN = Path("/proc/self/status")
GROUPS = Path("/sys/fs/cgroup")
MESSAGES = ("can't allocate memory", "std::bad_alloc", "out of memory", "Cannot allocate memory", "not enough memory")
"""What torch's other errors say when it gets no memory."""
ADVICE = "--checkpointing computes activations again instead of keeping them, a smaller --size makes fewer"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on `device`; None where nobody says.

    On a CPU that is the least of what the system, the control group (a container's limit) and the process's own limit
    leave.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [_left_in_system(), _left_in_group(), _left_of_address_space()]
    return min((left for left in found if left is not None), default=None)


def resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 where nobody says."""
    return _kib(OWN, "VmRSS") if OWN.exists() else 0


def how_to_fit(device: torch.device, *, batch: int | str, accumulate: int, size: int, world: int, out: str) -> str:
    """One line for whoever ran out of memory in training: what was asked for, what to change, what is kept."""
    asked = f"out of memory on {device} with batch {batch} at {size} px"
    hints = []
    if isinstance(batch, int) and batch >= 2 * world:
        hints.append(f"--batch {batch // 2} --optim.accumulate {accumulate * 2} makes the same steps of smaller parts")
    hints.append(ADVICE)
    if world > 1:
        hints.append("--parallel.strategy fsdp shares the weights out")
    return f"{asked}; {'; '.join(hints)}. The last save in {out} is as it was: --resume --checkpointing goes on from it"


def _left_in_system() -> int | None:
    if not SYSTEM.exists():
        return None
    return _kib(SYSTEM, "MemAvailable")


def _left_in_group() -> int | None:
    """What the control group leaves: version 2's files, or version 1's; pages of files can be given up."""
    for most, now, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        if not (GROUPS / most).exists():
            continue
        limit = (GROUPS / most).read_text().strip()
        if limit == "max":
            return None
        lines = (GROUPS / now).with_name("memory.stat").read_text().splitlines()
        spare = sum(int(line.split()[1]) for line in lines if line.split()[0] == files)
        return max(int(limit) - int((GROUPS / now).read_text()) + spare, 0)
    return None


def _left_of_address_space() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or not OWN.exists():
        return None
    return max(limit - _kib(OWN, "VmSize"), 0)


def _kib(path: Path, name: str) -> int:
    """An entry of a file of lines ``Name:  123 kB``, in bytes."""
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def sharers() -> int:
    """Processes of this group on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
