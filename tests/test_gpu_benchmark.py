"""The GPU benchmark without a GPU: its sections on tiny models, what it makes of them, and how it bears failure."""

import contextlib
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


@pytest.fixture
def gpu_goals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu_goals")


def run(tmp_path: Path, *words: str) -> tuple[dict[str, Any], str]:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(FOLDER / "gpu.py"), "--quick", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(FOLDER.parent) not in out.read_text()
    return json.loads(out.read_text()), done.stdout


@pytest.mark.slow
def test_a_dry_run_leaves_figures(tmp_path: Path) -> None:
    found, said = run(tmp_path, "--device", "cpu", "--sections", "tests,attention,latency,grid")
    sections = found["sections"]
    assert {name: one["status"] for name, one in sections.items()} == dict.fromkeys(sections, "done"), said
    assert {line["outcome"] for line in sections["tests"]["lines"] if "test" in line} <= {"passed", "skipped"}
    assert sections["tests"]["lines"][-1] == {"exit": 0}
    assert sections["grid"]["lines"] == [{"exit": 5}]  # no long tests in the one file of a dry run
    kernels = {(line["shape"], line["backend"]): line for line in sections["attention"]["lines"] if "backend" in line}
    assert kernels["tiny", "sdpa"]["backward_us"] > 0
    assert "needs an NVIDIA GPU" in kernels["tiny", "triton"]["note"]
    compared = sections["latency"]["lines"][-1]["comparison"]["rows"]
    assert {row["name"]: row["note"] for row in compared}["timm"] == "timm has no counterpart of swin_nano"
    assert [goal["verdict"] for goal in found["goals"]] == [*["not measured"] * 3, "falls short", *["not measured"] * 2]
    assert "milliseconds of one image" in said


@pytest.mark.slow
def test_a_section_that_fails_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    found, said = run(tmp_path, "--device", "nowhere", "--sections", "attention,memory")
    assert found["sections"]["attention"]["status"] == "failed with exit code 1"
    assert "nowhere" in found["sections"]["attention"]["said"]
    assert found["sections"]["memory"]["status"] == "done"
    assert found["sections"]["memory"]["lines"] == [{"name": "gpu.py:by_sdpa", "bytes": None}]  # no figure there
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}
    assert "attention: failed with exit code 1" in said


@pytest.mark.parametrize(
    ("code", "quick", "accepted"),
    [(0, False, True), (1, False, True), (2, True, False), (5, True, True), (5, False, False)],
)
def test_only_a_dry_run_may_find_no_tests(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, quick: bool, accepted: bool
) -> None:
    monkeypatch.setattr(gpu.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, code))
    write = gpu.Write(tmp_path / "lines")
    with contextlib.nullcontext() if accepted else pytest.raises(RuntimeError, match=f"exit code {code}"):
        gpu.grid(gpu.Asked("cpu", quick), write)
    assert json.loads(write.path.read_text()) == {"exit": code}


def test_without_a_gpu_it_says_so_and_starts_nothing(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "run", None)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "gpu.py: torch sees no CUDA device; --quick --device cpu tries this script without one\n"
    )
    assert not out.exists()


def test_a_device_that_does_not_answer_is_a_fact(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def hanging(words: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(gpu.torch.cuda, "get_device_properties", broken)
    monkeypatch.setattr(gpu.subprocess, "run", hanging)
    assert gpu.device_facts("cuda") == {
        "name": "cuda",
        "smi": "nvidia-smi did not answer",
        "error": "an illegal memory access was encountered",
    }


def test_a_section_out_of_time_leaves_what_it_wrote(gpu: ModuleType, tmp_path: Path) -> None:
    child = gpu.Child("latency", tmp_path, gpu.Asked("cpu", quick=True))
    child.lines.write_text('{"one": 1}\n{"half": ')
    ended = child.ended(0.0)
    assert ended["status"] == "out of time"
    assert ended["lines"] == [{"one": 1}]
    assert child.process.poll() is not None


def test_no_section_starts_when_the_time_is_over(gpu: ModuleType) -> None:
    began = time.monotonic()
    found = gpu.run(["latency", "memory"], gpu.Asked("cpu", quick=False), 10.0)
    assert {one["status"] for one in found.values()} == {"no time left"}
    assert time.monotonic() - began < 5


def test_everybody_who_is_named_can_take_part(gpu: ModuleType) -> None:
    from swindow.bench.contenders import contender, imported

    asked = gpu.Asked("cuda", quick=False)
    names = {name for group in (gpu.EAGER, gpu.COMPILED, gpu.TRAINED, gpu.WEIGHED) for name in asked.named(group)}
    names |= {asked.named(name)[0] for name, *_ in gpu.AHEAD}
    found = {name: contender(name) for name in names}
    assert {"swin_tiny", "timm:amp", "torchvision:compile"} <= set(found)
    files = {one.source for one in found.values() if ".py:" in one.source}
    assert {source.rpartition(":")[2] for source in files} == {"by_triton", "by_sdpa", "optimized"}
    assert all(callable(imported(source)) for source in files)


def row(name: str, ms: float, batch: int = 256) -> dict[str, Any]:
    return {"name": name, "floor": False, "median_ms": ms, "images_per_second": batch / ms * 1e3}


def section(*rows: dict[str, Any]) -> dict[str, Any]:
    ratios = {one["name"]: {other["name"]: one["median_ms"] / other["median_ms"] for other in rows} for one in rows}
    return {"status": "done", "said": "", "lines": [{"comparison": {"rows": list(rows)}, "ratios": ratios}]}


def measured() -> dict[str, Any]:
    wide = [row("swin_tiny", 14.0), row("swin_tiny:optimize", 10.0), row("timm:amp", 32.0), row("timm:compile", 15.0)]
    floor = row("floor: all products", 1.0) | {"floor": True}
    return {
        "throughput": section(*wide, row("torchvision:compile", 17.0), floor),
        "latency": section(row("swin_tiny:optimize", 0.5), row("timm", 9.0)),
        "training": section(row("swin_tiny:compile", 50.0), row("timm", 60.0), row("timm:compile", 75.0)),
        "memory": {
            "said": "",
            "status": "out of time",
            "lines": [
                {"name": "swin_tiny:compile", "bytes": 70},
                {"name": "swin_tiny:checkpoint", "bytes": 10},
                {"name": "timm:compile", "bytes": 100},
                {"name": "timm", "note": "no"},
            ],
        },
    }


def test_goals_compare_our_fastest_with_the_peers_that_the_plan_names(gpu_goals: ModuleType) -> None:
    found = gpu_goals.goals(measured())
    assert [goal.found for goal in found] == pytest.approx([3.2, 1.5, 25_600.0, 0.5, 1.5, 0.7])
    verdicts = [goal.verdict for goal in found]
    assert verdicts == ["pass", "falls short", "pass", "pass", "pass", "pass"]
    assert found[1].who == "swin_tiny:optimize against timm:compile"


def test_goals_without_figures_are_not_measured(gpu_goals: ModuleType) -> None:
    assert {goal.verdict for goal in gpu_goals.goals({})} == {"not measured"}
    partly = {"throughput": section(row("swin_tiny", 14.0))}
    assert [goal.verdict for goal in gpu_goals.goals(partly)][:3] == ["not measured", "not measured", "falls short"]


def test_the_summary_names_failing_tests_with_what_they_said(gpu_goals: ModuleType) -> None:
    text = "def test():\n>   assert error <= budget\nE   AssertionError: error 1 is over the budget 0.5\n"
    lines = [
        {"test": "tests/a.py::one", "outcome": "failed", "text": text},
        {"test": "b", "outcome": "passed", "text": ""},
    ]
    said = gpu_goals.summary(measured() | {"tests": {"status": "done", "said": "", "lines": lines}})
    assert "tests: 1 passed, 1 failed, 0 skipped" in said
    assert "  tests/a.py::one\n    E   AssertionError: error 1 is over the budget 0.5" in said
