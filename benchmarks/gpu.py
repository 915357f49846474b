"""Everything that needs a GPU, in one command under nine minutes: `python benchmarks/gpu.py [--out FILE]`.

Sections, each in a process of its own with a time of its own, so that one that fails, hangs or breaks the driver's
context is recorded and the others still run:

* tests: the GPU's correctness tests, while models are compiled for the sections below (`ahead`);
* attention: the kernels alone against SDPA at each stage's shape, and other launch settings than the chosen ones;
* throughput, latency, training: Swin-T in bf16 beside peers, as `swindow bench` does;
* memory: of a training step, each contender in a fresh process;
* tuned: whatever autotunes its matrix products, ours and timm's; grid: the long tests. Both only if time is left.

Prints the goals with what was measured, and writes benchmarks/results/gpu-DATE.json with every line that a section put
out, machine and versions. ``--quick --device cpu`` tries all of it on tiny models, for the sake of this script.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_goals import goals, summary
from gpu_kernels import attention
from record import RESULTS

from swindow.bench.answers import check
from swindow.bench.contenders import contender, entry, network
from swindow.bench.measuring import Protocol, compare, made_for
from swindow.bench.memory import peak
from swindow.bench.record import record, today
from swindow.bench.work import Network, Work
from swindow.devices import DTYPES
from swindow.model import build, model_config, use_backend
from swindow.ops.attention import Backend
from swindow.optimizing.gpu import optimize_for_gpu

HERE = Path(__file__).resolve()


class Write(NamedTuple):
    """Puts a line of JSON at the end of a file, at once: what a section leaves if it is cut off."""

    path: Path

    def __call__(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).replace(str(HERE), HERE.name)  # whatever folder this is
        with self.path.open("a") as file:
            file.write(text + "\n")


class Asked(NamedTuple):
    """What a section goes by."""

    device: str
    quick: bool

    @property
    def model(self) -> str:
        """Whom peers are compared with."""
        return "swin_nano" if self.quick else "swin_tiny"

    def work(self, mode: str, batch: int) -> Work:
        """A batch of the model's images; in bf16, but for the dry run."""
        size, dtype = ((32, 32), "fp32") if self.quick else ((224, 224), "bf16")
        batch = min(batch, 2) if self.quick else batch
        fields = {"model": self.model, "mode": mode, "size": size, "batch": batch, "dtype": dtype, "classes": 1000}
        return Work(**fields, device=self.device)

    def named(self, names: str) -> list[str]:
        """Contenders by name, in this file's shorthand; the dry run leaves out what takes a compiler or a GPU."""
        words = {"ours": self.model, "TRITON": "FILE:by_sdpa" if self.quick else "FILE:by_triton", "FILE": str(HERE)}
        found = names.split()
        for word, meant in words.items():
            found = [name.replace(word, meant) for name in found]
        found = list(dict.fromkeys(found))
        return [name for name in found if not (self.quick and ("compile" in name or name.endswith("optimized")))]


THROUGHPUT, LATENCY, TRAINING = ("infer", 256), ("infer", 1), ("train", 128)
EAGER = "TRITON ours FILE:by_sdpa timm timm:amp torchvision"
COMPILED = "TRITON:compile FILE:optimized timm:compile timm:amp:compile torchvision:compile"
TRAINED = "TRITON TRITON:compile TRITON:checkpoint:compile timm timm:compile torchvision:compile"
WEIGHED = "TRITON:compile timm:compile torchvision:compile TRITON TRITON:checkpoint timm"
AHEAD = (
    *((name, *THROUGHPUT) for name in COMPILED.split()),
    *((name, *TRAINING) for name in TRAINED.split() if "compile" in name),
    *((name, *LATENCY) for name in ("TRITON:compile", "FILE:optimized", "timm:compile", "torchvision:compile")),
)


def by_triton(work: Work) -> Network:
    """Our model with our kernels, which `auto` does not choose before this script has proved them."""
    return _by("triton", work)


def by_sdpa(work: Work) -> Network:
    """Our model with torch's attention."""
    return _by("sdpa", work)


def optimized(work: Work) -> Network:
    """Our model as `swindow.optimize` makes it, with our kernels."""
    return _optimized(work, tuned=False)


def tuned(work: Work) -> Network:
    """The same, its matrix products tuned."""
    return _optimized(work, tuned=True)


def _by(backend: Backend, work: Work) -> Network:
    model = build(work.model, num_classes=work.classes)
    use_backend(model, backend)
    return model


def _optimized(work: Work, *, tuned: bool) -> Network:
    model = build(work.model, num_classes=work.classes).to(work.device).eval()
    setting = {"size": work.size, "dtype": DTYPES[work.dtype], "batch": work.batch, "device": torch.device(work.device)}
    found = optimize_for_gpu(model, **setting, attention="triton", tuned=tuned)[0]
    check(found, model, work)
    return lambda images: found(images)  # no module: a captured graph is not to be cast again


def correctness(asked: Asked, write: Write, *, which: str = "gpu and not slow") -> None:
    """pytest in a process of its own, a line for each test as it ends."""
    folder = HERE.parent.parent / "tests"
    where = [folder / "optimizing/test_gpu.py"] if asked.quick else [folder / "ops", folder / "optimizing"]
    workers = ["-n", "6"] if importlib.util.find_spec("xdist") and not asked.quick else []
    settings = os.environ | {"SWINDOW_REPORTS": str(write.path)}
    words = ["-q", "-p", "no:cacheprovider", "-p", "gpu_reports", "-m", which, *workers, *map(str, where)]
    code = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder.parent, env=settings, check=False
    ).returncode
    write({"exit": code})
    expected = (0, 1, 5) if asked.quick else (0, 1)  # all passed, some failed, none of these in a dry run's one file
    if code not in expected:
        raise RuntimeError(f"pytest ended with exit code {code}")


def grid(asked: Asked, write: Write) -> None:
    """The long tests."""
    correctness(asked, write, which="gpu and slow")


def compared(
    asked: Asked, write: Write, groups: list[str], work: tuple[str, int], *, rounds: int, floor: bool = False
) -> None:
    """Everybody in the first group, then with those of the next as well: what comes late may not come at all."""
    for number in range(1, len(groups) + 1):
        everybody = [contender(name) for name in asked.named(" ".join(groups[:number]))]
        protocol = Protocol(
            rounds=3 if asked.quick else rounds,
            warmup=1 if asked.quick else 5,
            floor=floor,
            memory=False,
            forgiving=True,
        )
        setting = (model_config(asked.model), [asked.work(*work)], protocol)
        for comparison in compare(everybody, *setting):
            write({"comparison": comparison.record(), "ratios": ratios(comparison)})


def ratios(comparison: Any) -> dict[str, dict[str, float]]:
    """Of everybody to everybody, the medians over rounds."""
    ran = [row for row in comparison.rows if row.seconds]
    return {row.name: {base.name: comparison.ratio(row, base) for base in ran} for row in ran}


def throughput(asked: Asked, write: Write) -> None:
    """Inference of large batches, beside the floor and the roofline."""
    compared(asked, write, [EAGER, COMPILED], THROUGHPUT, rounds=20, floor=True)


def latency(asked: Asked, write: Write) -> None:
    """Inference of one image."""
    compared(asked, write, ["TRITON timm timm:amp", "TRITON:compile FILE:optimized timm:compile"], LATENCY, rounds=100)


def training(asked: Asked, write: Write) -> None:
    """Steps of training."""
    compared(asked, write, ["TRITON ours timm", TRAINED], TRAINING, rounds=10)


def autotuned(asked: Asked, write: Write) -> None:
    """Those that need minutes to choose their matrix products."""
    groups = ["FILE:optimized FILE:tuned timm:amp:compile", "timm:max-autotune"]
    compared(asked, write, groups, THROUGHPUT, rounds=20)


def memory(asked: Asked, write: Write) -> None:
    """Most bytes of a training step."""
    work = asked.work(*TRAINING)
    config = made_for(model_config(asked.model), work.size)
    for name in asked.named(WEIGHED)[: 1 if asked.quick else None]:
        line: dict[str, Any] = {"name": name}
        try:
            line["bytes"] = peak(contender(name), config, work)
        except Exception as error:  # noqa: BLE001 - a peer that fails is a line that says so
            line["note"] = str(error)
        write(line)


def ahead(asked: Asked, write: Write, *, which: tuple[str, str, str]) -> None:
    """Run one contender once, so that its kernels lie in the compiler's cache."""
    name, mode, batch = which
    work, someone = asked.work(mode, int(batch)), contender(asked.named(name)[0])
    began = time.perf_counter()
    entry(someone, network(someone, made_for(model_config(asked.model), work.size), work), work)()
    write({"name": name, "mode": mode, "batch": work.batch, "seconds": time.perf_counter() - began})


SECTIONS: dict[str, tuple[Callable[[Asked, Write], None], int]] = {
    "tests": (correctness, 150),
    "attention": (lambda asked, write: attention(asked.device, quick=asked.quick, write=write), 80),
    "throughput": (throughput, 110),
    "latency": (latency, 60),
    "training": (training, 100),
    "memory": (memory, 100),
    "tuned": (autotuned, 240),
    "grid": (grid, 200),
}
"""Each with the seconds it may take."""


class Child:
    """A section at work in a process of its own."""

    def __init__(self, section: str, folder: Path, asked: Asked, *which: str) -> None:
        self.began = time.monotonic()
        name = "-".join((section, *which)).replace(":", "+")
        self.lines, self.said = folder / f"{name}.lines", folder / f"{name}.said"
        # Whoever imports this file, as processes that measure memory do, finds what lies beside it.
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        words = ["--section", section, "--device", asked.device, "--lines", str(self.lines)]
        words += ["--quick"] if asked.quick else []
        words += ["--which", *which] if which else []
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE), *words],
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": path},
            )

    def ended(self, limit: float) -> dict[str, Any]:
        """What it put out, and how it ended, at most `limit` seconds from now."""
        try:
            code = self.process.wait(max(limit, 0.0))
            status = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # and its workers and compilers
            self.process.wait()
            status = "out of time"
        said = "" if status == "done" else self.said.read_text().replace(str(HERE.parent.parent), ".")[-3000:]
        return {
            "status": status,
            "seconds": round(time.monotonic() - self.began, 1),
            "said": said,
            "lines": list(_lines(self.lines)),
        }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # half of a line, cut off with its writer
            yield json.loads(line)


def run(names: list[str], asked: Asked, seconds: float) -> dict[str, dict[str, Any]]:
    """Every section, the tests beside those that only compile; none once the time is over."""
    until, found = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            limit = min(SECTIONS[name][1], until - time.monotonic())
            if limit < (0.0 if asked.quick else 15.0):
                found[name] = {"status": "no time left", "seconds": 0.0, "said": "", "lines": []}
                continue
            child = Child(name, Path(folder), asked)
            if name == "tests" and not asked.quick:
                found["ahead"] = _ahead(Path(folder), asked, limit)
            found[name] = child.ended(limit - (time.monotonic() - child.began))
            _say(f"{name}: {found[name]['status']}, {found[name]['seconds']} s")
    return found


def _ahead(folder: Path, asked: Asked, limit: float) -> dict[str, Any]:
    """Three at a time: they compile on the CPU, and the GPU's memory holds three."""
    until = time.monotonic() + limit

    def one(which: tuple[str, str, int]) -> dict[str, Any]:
        if until - time.monotonic() < 20:
            return {"status": "no time left", "said": "", "lines": []}
        return Child("ahead", folder, asked, *map(str, which)).ended(until - time.monotonic())

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(one, AHEAD))
    return {
        "status": f"{sum(one['status'] == 'done' for one in ended)} of {len(ended)} done",
        "seconds": round(limit - (until - time.monotonic()), 1),
        "said": "\n".join(one["said"][-500:] for one in ended if one["said"]),
        "lines": [line for one in ended for line in one["lines"]],
    }


def device_facts(device: str) -> dict[str, Any]:
    """The GPU, its driver, and its rates as torch sees them; nothing about a CPU."""
    if not device.startswith("cuda"):
        return {"name": device}
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
    try:
        smi = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except FileNotFoundError:
        smi = "no nvidia-smi"
    except subprocess.TimeoutExpired:
        smi = "nvidia-smi did not answer"
    try:
        about = torch.cuda.get_device_properties(device)
    except Exception as error:  # noqa: BLE001 - a broken context is a fact too, and the sections say theirs
        return {"name": device, "smi": smi, "error": str(error)}
    return {
        "name": about.name,
        "multiprocessors": about.multi_processor_count,
        "memory": about.total_memory,
        "smi": smi,
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def child(words: argparse.Namespace, asked: Asked) -> None:
    """One section, its lines to a file."""
    write = Write(Path(words.lines))
    if words.section == "ahead":
        ahead(asked, write, which=tuple(words.which))
    else:
        SECTIONS[words.section][0](asked, write)


def main() -> None:
    """Run the sections, print, write."""
    ask = argparse.ArgumentParser(description="Correctness and speed on a GPU, in one command")
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--quick", action="store_true", help="tiny models, a dry run of the script")
    ask.add_argument("--sections", default=",".join(SECTIONS), help="of " + ", ".join(SECTIONS))
    ask.add_argument("--minutes", type=float, default=8.5)
    ask.add_argument("--out", type=Path, default=None, help="a .json file")
    ask.add_argument("--section", help=argparse.SUPPRESS)
    ask.add_argument("--which", nargs=3, help=argparse.SUPPRESS)
    ask.add_argument("--lines", help=argparse.SUPPRESS)
    words = ask.parse_args()
    asked = Asked(words.device, words.quick)
    if words.section:
        child(words, asked)
        return
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        ask.exit(2, f"{HERE.name}: torch sees no CUDA device; --quick --device cpu tries this script without one\n")
    names = [name for name in words.sections.split(",") if name]
    for name in names:
        if name not in SECTIONS:
            ask.error(f"no section {name!r}; there are {', '.join(SECTIONS)}")
    # First, when the device still answers for certain, and nothing has been measured that could be lost.
    about = record() | {"device": device_facts(asked.device), "quick": asked.quick}
    found = run(names, asked, words.minutes * 60)
    table = [goal._asdict() | {"verdict": goal.verdict} for goal in goals(found)]
    content = about | {"goals": table, "sections": found}
    out = words.out or RESULTS / f"gpu-{today()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    _say(f"{summary(found)}\n{out}")


if __name__ == "__main__":
    main()
