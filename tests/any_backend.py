"""The attention backends that run anywhere, in fp64 too: a new one is tested by existing."""

from typing import get_args

from swindow.ops.attention import Backend

BACKENDS: tuple[Backend, ...] = tuple(name for name in get_args(Backend) if name not in ("triton", "cpu"))
"""Those that compute in whatever they are given; `cpu` (fp32 and bf16) and
`triton` have their own tests (tests/ops/test_cpu.py, test_triton_kernels.py)."""
