"""Where there is a compiler there are kernels: tests/ops/test_cpu.py skips what it tests if they do not build."""

import platform
import shutil

import pytest

from swindow.ops.cpu import native


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("g++") is None,
    reason="kernels: they are for x86-64 Linux with g++",
)
def test_the_kernels_build() -> None:
    assert native.refusal() is None
