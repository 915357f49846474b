"""The Triton backend from outside: when it is chosen, when it refuses, and its kernels in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from swindow.errors import BackendUnavailable
from swindow.ops import attention, triton
from swindow.ops.attention import choose, window_attention

HERE = Path(__file__).parent
pytest.importorskip("triton", reason="Triton is not installed")


def child(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # A thread and no tracing of its own: the parent may be one of several workers.
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=settings, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernels_are_right_in_the_interpreter(which: str, tmp_path: Path) -> None:
    result = child(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", f"{which} and not gpu"),
        HERE / "test_triton_kernels.py",
        TRITON_INTERPRET="1",
        TRITON_CACHE_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_compile_for_gpus(capability: str, tmp_path: Path) -> None:
    result = child(HERE.parent / "kernels_for_gpus.py", capability, TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr[-5000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == {"_forward", "_window", "_queries", "_keys", "_pairs"}
    for kernel in kernels:
        assert kernel["atomics"] == 0, kernel
        assert kernel["stack"] <= 256, kernel  # bytes spilt a thread: a handful of registers, or none
        assert kernel["blocks"] >= 1, kernel
        assert kernel["tensor_cores"] > 0 or kernel["warps"] == 8, kernel  # fp32 has none that are exact


OPTIONS: dict[str, Any] = {"window": (4, 4), "shift": (0, 0), "scale": 1.0, "backend": "triton"}


@pytest.mark.parametrize(
    ("qkv", "window", "message"),
    [
        (torch.zeros(1, 4, 4, 3, 2, 8), (4, 4), "cannot run float32 on cpu, .* it needs an NVIDIA GPU"),
        (torch.zeros(1, 4, 4, 3, 2, 8).double(), (4, 4), "cannot run float64 .* it takes float32, float16 and"),
        (torch.zeros(1, 4, 4, 3, 2, 80), (4, 4), "4x4 windows, 80 channels a head: it takes at most 64 channels"),
        (torch.zeros(1, 25, 24, 3, 2, 8), (25, 24), "25x24 windows, .* at most 576 tokens; use backend 'auto'"),
    ],
)
def test_what_it_cannot_run_is_refused(qkv: torch.Tensor, window: tuple[int, int], message: str) -> None:
    with pytest.raises(BackendUnavailable, match=message):
        window_attention(qkv, None, **OPTIONS | {"window": window})


def test_a_machine_without_triton_or_with_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert triton._machine_refusal("cuda", 0) == "it needs compute capability 8.0, this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert triton._machine_refusal("cuda", 0) is None
    monkeypatch.setattr(torch.version, "cuda", None)  # as on AMD's
    assert triton._machine_refusal("cuda", 0) == "it needs an NVIDIA GPU"
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    assert triton._machine_refusal("cuda", 0) == "triton is not installed"


@pytest.mark.parametrize(
    ("dtype", "biased", "window", "capability", "expected"),
    [
        (torch.bfloat16, True, (7, 7), (9, 0), "triton"),
        (torch.float16, False, (7, 7), (8, 0), "triton"),
        (torch.bfloat16, True, (14, 14), (8, 0), "triton"),
        (torch.bfloat16, False, (14, 14), (9, 0), "sdpa"),  # a ViT
        (torch.bfloat16, True, (7, 7), (7, 5), "sdpa"),
        (torch.float32, True, (7, 7), (9, 0), "sdpa"),
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_auto_picks_it_on_a_gpu_where_it_pays(
    dtype: torch.dtype,
    biased: bool,
    window: tuple[int, int],
    capability: tuple[int, int],
    expected: str,
    gradients: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    with FakeTensorMode():
        qkv = torch.empty(2, 14, 14, 3, 3, 32, device="cuda", dtype=dtype)
        seen = window[0] * window[1]
        bias = torch.empty(3, seen, seen, device="cuda") if biased else None
        for proven in (True, False):
            monkeypatch.setattr(attention, "TRITON_IS_PROVEN", proven)
            assert choose(qkv, bias, window, gradients=gradients) == (expected if proven else "sdpa")


def test_nobody_pays_for_it_unasked() -> None:
    code = (
        "import sys, torch; from swindow.ops.attention import window_attention\n"
        "window_attention(torch.zeros(1, 4, 4, 3, 1, 8), None, window=(4, 4), shift=(0, 0), scale=1.0)\n"
        "sys.exit(any(name in sys.modules for name in ('triton', 'swindow.ops.triton')))"
    )
    assert child("-c", code).returncode == 0
