"""Where the time of a pass goes: `python benchmarks/where_time_goes.py [--model swin_tiny] [--dtype bf16] …`.

torch's profiler, on a CPU: the time that each operator spends itself, without those that it calls, added up by kind of
work, for a peer, for our model as it is, and for what `swindow.optimize` makes of it. Profiling costs time, so what is
profiled gives shares alone; milliseconds are those shares of medians of interleaved runs without a profiler. Prints a
table (Markdown with --markdown), draws it (--picture FILE.png), and writes
benchmarks/results/where-time-goes-MODEL-DTYPE-MODE-DATE.json unless --quick.

A native branch of ours does several kinds of work in one call and is shown as one kind of its own. Between operators
lies Python, and torch's way from one operator to the next.
"""

import argparse
import collections
import dataclasses
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from record import write_record
from torch.profiler import ProfilerActivity, profile

from swindow.bench.contenders import contender, entry, network, verify
from swindow.bench.measuring import line, made_for
from swindow.bench.timing import Run, interleave, spread
from swindow.bench.work import Work
from swindow.errors import SwindowError
from swindow.model import model_config

# The first pattern that an operator's name matches says its kind. Additions are told apart by their shapes.
PATTERNS = (
    (r"swindow::.*attention_branch", "attention branch, one call"),
    (r"swindow::.*mlp_branch", "MLP branch, one call"),
    (r"swindow::.*(linear|merge|embed)", "linear layers"),
    (r"swindow::.*norm", "norms"),
    (r"swindow::.*gelu", "GELU"),
    (r"swindow::", "attention"),
    (r"layer_?norm", "norms"),
    (r"gelu", "GELU"),
    (
        r"addmm|aten::mm$|aten::linear|_linear_pointwise|linear_backward|convolution|conv2d|mkldnn.*linear",
        "linear layers",
    ),
    (r"bmm|matmul|softmax|attention|norm|masked_fill|where|sigmoid|clamp|aten::(mul|div|exp)(_|$)", "attention"),
    (r"copy|roll|cat|clone|contiguous|index|gather|constant_pad|fill|zero|pixel_unshuffle|reorder|to_dense", "copies"),
    (r"adam|optimizer|foreach", "optimizer"),
    (r"cpp_fused|graph_\d+|compiledfx", "compiled kernels"),
)
KINDS = (
    *("linear layers", "attention branch, one call", "MLP branch, one call", "compiled kernels", "attention", "norms"),
    *("GELU", "residuals", "copies", "optimizer", "rest", "between operators"),
)
COLOURS = (
    *("#2f6db5", "#1d4e89", "#4f9bd9", "#7a6bb8", "#e08e2b", "#4aa564"),
    *("#b5485d", "#e3b23c", "#c9573b", "#8d6e63", "#9aa5b1", "#d5dbe1"),
)
INK, FAINT = "#1a1f26", "#5b6470"
PASSES = 3

Shapes = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where one contender's time goes."""

    name: str
    ms: float = 0.0
    """Median for an image, without a profiler."""
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of each kind; they add up to 1."""
    note: str = ""
    """Why there is none."""

    def of(self, kind: str) -> float:
        """Milliseconds of a kind of work, for an image."""
        return self.ms * self.shares.get(kind, 0.0)


def kind(name: str, shapes: Shapes = ()) -> str:
    """What kind of work an operator is."""
    if re.match(r"aten::(add|sub)_?$", name):  # of two equal maps: a residual; one broadcast: a bias or a mask
        operands = [list(shape) for shape in shapes[:2] if len(shape)]
        if len(operands) < 2:
            return "rest"
        return "residuals" if operands[0] == operands[1] and len(operands[0]) in (3, 4) else "attention"
    return next((found for pattern, found in PATTERNS if re.search(pattern, name, re.IGNORECASE)), "rest")


def shares(events: Iterable[tuple[str, Shapes, float]], whole: float) -> dict[str, float]:
    """Of each kind in a time; what no operator took is between them. Times are in one unit, each an operator's own."""
    spent: dict[str, float] = collections.defaultdict(float)
    for name, shapes, own in events:
        spent[kind(name, shapes)] += own
    spent["between operators"] = max(whole - sum(spent.values()), 0.0)
    total = sum(spent.values())
    return {found: spent[found] / total for found in KINDS if spent[found]}


def profiled(run: Run) -> dict[str, float]:
    """Shares of the kinds of work in a few passes."""
    run()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for _ in range(PASSES):
            with torch.profiler.record_function("one pass"):
                run()
    events = list(recorded.events() or ())
    whole = sum(event.cpu_time_total for event in events if event.name == "one pass")
    own = [(e.name, e.input_shapes or (), e.self_cpu_time_total) for e in events if e.name != "one pass"]
    return shares(own, whole)


def everybody(model: str, mode: str, against: Sequence[str]) -> list[str]:
    """Peers, our model, and in inference what `swindow.optimize` makes of it.

    Raises:
        SwindowError: a peer or a way to run that there is not.
    """
    ours = (model, f"{model}:optimize") if mode == "infer" else (model,)
    (contenders,) = line(ours, against).values()
    return [one.name for one in sorted(contenders, key=lambda one: one.ours)]


def measure(work: Work, names: Sequence[str], rounds: int) -> list[Profile]:
    """Everybody's profile; whoever cannot run says why."""
    config = made_for(model_config(work.model), work.size)
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    for name in names:
        someone = contender(name)
        try:
            found = network(someone, config, work)
            runs[name] = entry(someone, found, work)
            verify(someone, found, config, work)
        except SwindowError as error:
            runs.pop(name, None)
            notes[name] = str(error)
    samples = interleave(runs, rounds=rounds)
    return [
        Profile(name, spread(samples[name]).median * 1e3 / work.batch, profiled(runs[name]))
        if name in runs
        else Profile(name, note=notes[name])
        for name in names
    ]


def table(profiles: Sequence[Profile], *, markdown: bool = False) -> str:
    """Milliseconds for an image: a row for each kind of work that anybody does, a column for each contender."""
    ran = [one for one in profiles if not one.note]
    kinds = [found for found in KINDS if any(one.of(found) >= 0.005 for one in ran)]
    rows = [["ms an image", *(one.name for one in ran)]]
    for found in kinds:
        rows.append([found, *(f"{one.of(found):.2f}" if one.of(found) else "" for one in ran)])
    rows.append(["all", *(f"{one.ms:.2f}" for one in ran)])
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, f"|---|{'---:|' * len(ran)}")
    else:
        lines = [f"{row[0]:28}" + "".join(f"{cell:>22}" for cell in row[1:]) for row in rows]
    notes = [f"{one.name}: {one.note}" for one in profiles if one.note]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def picture(profiles: Sequence[Profile], title: str) -> bytes:
    """A bar for everybody, as long as an image takes, made of the kinds of work: a PNG."""
    from matplotlib.figure import Figure

    ran = [one for one in profiles if not one.note]
    kinds = [(found, colour) for found, colour in zip(KINDS, COLOURS, strict=True) if any(one.of(found) for one in ran)]
    drawn = Figure(figsize=(9.0, 1.9 + 0.62 * len(ran)), dpi=130, layout="constrained", facecolor="white")
    axes = drawn.add_subplot()
    longest = max(one.ms for one in ran)
    for row, one in enumerate(ran):
        left = 0.0
        for found, colour in kinds:
            width = one.of(found)
            axes.barh(row, width, left=left, height=0.66, color=colour, label=found if row == 0 else None)
            if width > 0.045 * longest:
                ink = "white" if found not in ("between operators", "residuals") else INK
                axes.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center", color=ink, fontsize=8.5)
            left += width
        axes.text(left + 0.01 * longest, row, f"{one.ms:.1f}", va="center", color=INK, fontsize=10, weight="bold")
    axes.set_yticks(range(len(ran)), [one.name for one in ran], color=INK)
    axes.set_xlim(0, longest * 1.08)
    axes.invert_yaxis()
    axes.set_xlabel("ms an image", color=FAINT)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.tick_params(length=0, colors=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return file.getvalue()


def main() -> None:
    """Measure, print, draw, write."""
    asked = argparse.ArgumentParser(description="where the time of a pass goes")
    asked.add_argument("--model", default="swin_tiny")
    asked.add_argument("--against", default="timm", help="peers, with commas between")
    asked.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    asked.add_argument("--mode", default="infer", choices=("infer", "train"))
    asked.add_argument("--size", type=int, default=224)
    asked.add_argument("--batch", type=int, default=8)
    asked.add_argument("--rounds", type=int, default=9)
    asked.add_argument("--threads", type=int, default=0)
    asked.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    asked.add_argument("--picture", type=Path, help="also draw it to this PNG file")
    asked.add_argument("--quick", action="store_true", help="one round, nothing written to results/")
    words = asked.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's remarks on its own start, stop and missing GPU
    fields = {"model": words.model, "mode": words.mode, "batch": words.batch, "dtype": words.dtype}
    try:
        work = Work(**fields, size=(words.size, words.size))
        names = everybody(words.model, words.mode, list(filter(None, words.against.split(","))))
        profiles = measure(work, names, 1 if words.quick else words.rounds)
    except SwindowError as error:
        asked.exit(2, f"{error}\n")
    title = f"{work.title}, {torch.get_num_threads()} threads"
    sys.stdout.write(f"{title}\n\n{table(profiles, markdown=words.markdown)}")
    if words.picture is not None:
        words.picture.write_bytes(picture(profiles, title))
        sys.stdout.write(f"{words.picture}\n")
    if not words.quick:
        name = f"where-time-goes-{words.model}-{words.dtype}-{words.mode}"
        sys.stdout.write(f"{write_record(name, content(work, profiles, words.rounds))}\n")


def content(work: Work, profiles: Sequence[Profile], rounds: int) -> dict[str, Any]:
    """Plain values for JSON."""
    setting = {"rounds": rounds, "passes": PASSES, "threads": torch.get_num_threads()}
    kinds = [{found: one.of(found) for found in one.shares} for one in profiles]
    rows = [dataclasses.asdict(one) | {"ms_by_kind": each} for one, each in zip(profiles, kinds, strict=True)]
    return {"setting": setting, "work": dataclasses.asdict(work), "profiles": rows}


if __name__ == "__main__":
    main()
