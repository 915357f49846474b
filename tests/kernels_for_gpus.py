"""Compile the Triton kernels for a GPU that is not here, and print what each needs: one JSON object a line.

``python tests/kernels_for_gpus.py 90`` is for compute capability 9.0. A process of its own, because what it puts in
the place of the GPU's driver would be in a real one's way. ``blocks`` is how many programs one multiprocessor holds,
by registers, threads and shared memory.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from swindow.ops.triton import _outputs, backward, forward
from swindow.ops.triton.tiles import Task

CAPABILITY = int(sys.argv[1])
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED = {80: 164, 86: 100, 89: 100, 90: 228}  # KiB a multiprocessor has
compiled = JITFunction.run


class Driver:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def only_compile(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """In the place of a launch: compile, and print."""
    result = compiled(kernel, *args, grid=grid, warmup=True, **kwargs)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups())  # type: ignore[union-attr]
    warps, shared, ptx = kwargs["num_warps"], result.metadata.shared, result.asm["ptx"]
    by_registers = 65536 // (registers * 32 * warps)
    by_shared = SHARED[CAPABILITY] * 1024 // (shared + 1024)
    facts = {
        "kernel": kernel.__name__,
        "grid": grid,
        "warps": warps,
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "blocks": min(by_registers, by_shared, 64 // warps, 32),
        "atomics": len(re.findall(r"\b(atom|red)\.", ptx)),
        "fetched_ahead": ptx.count("cp.async.c"),
        "tensor_cores": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
    }
    sys.stdout.write(json.dumps(facts) + "\n")


def compile_for(side: int, dtype: torch.dtype, *, cosine: bool = False, depth: int = 32, batch: int = 64) -> None:
    """Both passes of Swin-T's first stage, with windows of `side` tokens, shifted; many a program, of a large batch."""
    qkv = torch.empty(batch, 8 * side, 8 * side, 3, 3, depth, dtype=dtype)
    bias, scale = torch.empty(3, side**2, side**2, dtype=dtype), torch.empty(3) if cosine else None
    task = Task(qkv, bias, scale, 1.0, (side, side), (side // 2, side // 2), cosine)
    out, lse = _outputs(qkv, task.window)
    forward.launch(task, out, lse)
    kept = out if lse.numel() else None
    backward.launch(task, torch.empty_like(out), kept, lse, torch.empty_like(qkv), biased=True)


triton.runtime.driver.set_active(Driver())
JITFunction.run = only_compile
for side in (4, 7, 12):
    compile_for(side, torch.bfloat16)
compile_for(7, torch.float32)
compile_for(8, torch.float16, cosine=True)
compile_for(16, torch.bfloat16, cosine=True)
compile_for(7, torch.bfloat16, batch=1)
