"""``swindow bench``."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console

from swindow.bench import Bench, Protocol, bench
from swindow.bench.tables import claims_table, roofline_line, sweep_table, sweeps, table, write, write_dated
from swindow.cli.arguments import Positional, height_and_width, parse
from swindow.errors import ConfigError
from swindow.progress import Lines, watcher


@dataclasses.dataclass(frozen=True)
class BenchArguments:
    """Time and peak memory of inference and of training steps, beside other libraries and the bare products.

    Runs alternate between the contenders. After a name, colons say how it runs: amp, checkpoint (activations),
    optimize, compile, reduce-overhead, max-autotune. docs/performance.md says how to read the tables.
    """

    models: Annotated[tuple[str, ...], Positional] = ()
    """Models by name, run folders or published names: swin_tiny, swin_tiny:compile."""
    suite: Literal["none", "cpu"] = "none"
    """cpu: every claim of this project about a CPU, with a verdict, instead of models of your choice."""
    minutes: float = 15.0
    """What a suite should take; it leaves out compiled peers rather than take longer."""
    against: str = ""
    """Peers, with commas between: timm, timm:compile, torchvision, transformers, onnxruntime, openvino,
    FILE.py:callable."""
    size: tuple[int, ...] = ()
    """Height and width, or one number for a square; by default what the model is made for."""
    batch: int | None = None
    """Images at a time: 8 by default; in a sweep of the largest images, and 1."""
    dtype: str = "fp32"
    """fp32, bf16, fp16 or auto."""
    mode: Literal["infer", "train", "both"] = "both"
    """Inference, training steps, or both."""
    sweep: Literal["none", "size"] = "none"
    """size: also at 2, 4 and 8 times the size, with as many pixels in all."""
    rounds: int | None = None
    """Rounds that count: 15 by default, 7 in a suite."""
    threads: int = 0
    """Threads of torch; 0 for its own choice."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    memory: bool = True
    """Measure peak memory, each contender in a process of its own."""
    out: Path | None = None
    """A .json file, a folder for bench.json and a sweep's chart, or a .png file for the chart; for a suite a .json
    file or a folder for suite-cpu-DATE.json. Nothing is written without it."""


def bench_command(words: list[str]) -> int:
    """Time and memory of models, ours and others."""
    asked = parse(BenchArguments, words, prog="swindow bench")
    return _run_bench(asked) if asked.suite == "none" else _run_suite(asked, BenchArguments())


def _run_bench(asked: Any) -> int:
    plan = Bench(
        models=asked.models,
        against=tuple(filter(None, asked.against.split(","))),
        size=height_and_width(asked.size),
        batch=asked.batch,
        dtype=asked.dtype,
        mode=asked.mode,
        sweep=asked.sweep == "size",
        threads=asked.threads,
        device=asked.device,
        protocol=Protocol(memory=asked.memory, **({} if asked.rounds is None else {"rounds": asked.rounds})),
    )
    comparisons = bench(plan, say=Lines().say)
    console = _wide_console()
    for comparison in comparisons:
        console.print(table(comparison))
        console.print(roofline_line(comparison))
    for together in sweeps(comparisons) if plan.sweep else ():
        console.print(sweep_table(together))
    if asked.out is not None:
        setting = dataclasses.asdict(plan)
        for path in write(comparisons, asked.out, sweep=plan.sweep, setting=setting):
            print(path)
    return 0


def _run_suite(asked: Any, usual: Any) -> int:
    from swindow.bench.suite import Suite, suite

    taken = ("suite", "minutes", "batch", "rounds", "threads", "out")
    others = [field.name for field in dataclasses.fields(asked) if field.name not in taken]
    refused = [name for name in others if getattr(asked, name) != getattr(usual, name)]
    if refused:
        raise ConfigError(f"a suite says by itself what it measures; it takes no {', '.join(refused)}")
    given = {name: getattr(asked, name) for name in ("batch", "rounds") if getattr(asked, name) is not None}
    plan = Suite(minutes=asked.minutes, threads=asked.threads, **given)
    results = suite(plan, progress=watcher())
    console = _wide_console()
    for comparison in results.comparisons:
        console.print(table(comparison))
        console.print()
    console.print(claims_table(results.claims))
    minutes, seconds = divmod(round(results.seconds), 60)
    print(f"{minutes} min {seconds} s")
    if asked.out is not None:
        print(write_dated({"setting": dataclasses.asdict(plan)} | results.record(), asked.out, "suite-cpu"))
    return 1 if any(claim.verdict == "falls short" for claim in results.claims) else 0


def _wide_console() -> Any:
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
