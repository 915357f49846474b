"""Where and how precisely: pure choices, refused when this machine cannot."""

import subprocess
import sys

import pytest
import torch

from swindow.devices import PROCESS, autocast, forget_peak_memory, peak_memory, pick_device, pick_precision
from swindow.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")],
)
def test_auto_takes_the_fastest_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto") == torch.device(expected)


def test_a_named_device_is_taken_as_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, mps=False)
    assert pick_device("cpu") == CPU
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "tpu", ""])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, cuda=False, mps=False)
    with pytest.raises(ConfigError, match=f"device '{name}' is not available on this machine; there are: auto, cpu"):
        pick_device(name)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_bf16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert pick_precision("auto", CUDA) == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native, "avx2": True})
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_named_precision_is_taken_as_named(name: str) -> None:
    assert pick_precision(name, CPU) == name


def test_precisions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="precision 'fp8' is not one of auto, fp32, bf16, fp16"):
        pick_precision("fp8", CPU)
    with pytest.raises(ConfigError, match="precision 'fp16' needs a GPU"):
        pick_precision("fp16", CPU)
    assert pick_precision("fp16", CUDA) == "fp16"


def test_autocast_multiplies_in_the_precision_and_only_inside() -> None:
    x = torch.randn(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
        assert torch.softmax(x, -1).dtype == torch.float32
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory(CPU)
    assert 2**24 < before < 2**42
    held = torch.ones(before // 4 + 2**26)  # more than the process ever had
    assert peak_memory(CPU) >= before + 2**26
    del held


@pytest.mark.skipif(not PROCESS.exists(), reason="only Linux hands a process's figure on to its children")
def test_peak_memory_is_not_that_of_the_parent() -> None:
    held = torch.ones(peak_memory(CPU) // 4 + 2**26)
    script = "import torch; from swindow.devices import peak_memory; print(peak_memory(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 2**24 < int(child.stdout) < peak_memory(CPU) - 2**26
    del held


@pytest.mark.gpu
def test_peak_memory_of_a_gpu_is_that_of_tensors_and_can_begin_anew() -> None:
    gpu = torch.device("cuda")
    held = torch.ones(2**26, device=gpu)
    assert peak_memory(gpu) >= 2**28
    del held
    forget_peak_memory(gpu)
    assert peak_memory(gpu) < 2**28
