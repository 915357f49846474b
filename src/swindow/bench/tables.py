"""Comparisons as tables on the screen, as JSON, and as a chart of cost over pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swindow.bench.measuring import Comparison, Row
from swindow.bench.record import record, today
from swindow.checkpoints.files import write_atomic
from swindow.errors import require

if TYPE_CHECKING:
    from rich.table import Table

    from swindow.bench.claims import Claim

STYLES = {"pass": "green", "falls short": "bold red", "incomplete": "yellow", "not measured": "dim"}
COLUMNS = ("parameters", "ms a batch", "middle half", "images/s", "÷ fastest", "÷ floor", "peak MiB")


def table(comparison: Comparison) -> "Table":
    """A row for everybody: median and quartiles of the rounds, ratios as medians over rounds."""
    from rich.table import Table

    drawn = Table("", *COLUMNS, title=comparison.work.title, title_justify="left", title_style="bold", box=None)
    for column in drawn.columns[1:]:
        column.justify = "right"
    for row in comparison.rows:
        if row.seconds:
            drawn.add_row(row.name, *_cells(row, comparison), style="dim" if row.floor else None)
        else:
            drawn.add_row(f"{row.name}: {row.note}", style="dim")
    return drawn


def roofline_line(comparison: Comparison) -> str:
    """The roofline in words; empty where none was measured."""
    if comparison.roofline is None or comparison.rates is None:
        return ""
    arithmetic, traffic, bound = (seconds * 1e3 for seconds in comparison.roofline)
    return (
        f"roofline of the products: {bound:.3f} ms a batch (arithmetic {arithmetic:.3f} at "
        f"{comparison.rates.flops_per_second / 1e12:.0f} TFLOP/s, traffic {traffic:.3f} at "
        f"{comparison.rates.bytes_per_second / 1e9:.0f} GB/s, both measured here)"
    )


def sweeps(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Those of the same model and mode together."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.work.model, comparison.work.mode), []).append(comparison)
    return list(groups.values())


def sweep_table(comparisons: Sequence[Comparison]) -> "Table":
    """Nanoseconds a pixel of everybody at every size, and by how much more the last size costs than the first."""
    from rich.table import Table

    drawn = Table("ns a pixel", title=_title(comparisons), title_justify="left", title_style="bold", box=None)
    for comparison in comparisons:
        height, width = comparison.work.size
        drawn.add_column(f"{height}x{width}\nbatch {comparison.work.batch}", justify="right")
    drawn.add_column("last ÷ first", justify="right")
    grown = growth(comparisons)
    for name, costs in per_pixel(comparisons).items():
        cells = ["" if cost is None else f"{cost:.2f}" for cost in costs]
        drawn.add_row(name, *cells, f"{grown[name]:.2f}" if name in grown else "")
    return drawn


def growth(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Time a pixel at the last size by that at the first, the median over rounds, of everybody who ran at both."""
    first, last = comparisons[0], comparisons[-1]
    ran = {row.name: row for row in first.rows if row.seconds}
    pixels = first.work.pixels / last.work.pixels
    pairs = [(row, ran[row.name]) for row in last.rows if row.seconds and row.name in ran]
    return {row.name: last.ratio(row, base) * pixels for row, base in pairs}


def per_pixel(comparisons: Sequence[Comparison]) -> dict[str, list[float | None]]:
    """Median nanoseconds a pixel by contender, one for each comparison; None where it did not run."""
    names = dict.fromkeys(row.name for comparison in comparisons for row in comparison.rows)
    return {name: [_per_pixel(name, comparison) for comparison in comparisons] for name in names}


def sweep_chart(comparisons: Sequence[Comparison]) -> bytes:
    """The same as a PNG: what is linear in pixels lies flat."""
    import io

    require("matplotlib", extra="train")
    from matplotlib.figure import Figure

    groups = sweeps(comparisons)
    drawn = Figure(figsize=(6.4, 4.0 * len(groups)), dpi=150, layout="constrained")
    for axes, group in zip(drawn.subplots(len(groups), squeeze=False).flat, groups, strict=True):
        _draw(axes, group)
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return file.getvalue()


def claims_table(claims: Sequence["Claim"]) -> "Table":
    """A row for each claim: the limit, the figure, whether it was kept, and against whom."""
    from rich.table import Table

    drawn = Table("what", "model", "must", "is", "verdict", "of", title="Claims", title_justify="left", box=None)
    for column in drawn.columns[2:4]:
        column.justify = "right"
    for column in drawn.columns[1:5]:
        column.no_wrap = True
    for claim in claims:
        measured = "" if claim.measured is None else f"{claim.measured:.2f}"
        cells = (claim.what, claim.model, claim.must, measured, claim.verdict, claim.remark)
        drawn.add_row(*cells, style=STYLES[claim.verdict])
    return drawn


def write_dated(content: dict[str, Any], out: Path, name: str) -> Path:
    """With machine, versions and commit as JSON to `out`, or in the folder `out` to NAME-DATE.json."""
    if out.suffix == ".json":
        path = out
    else:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}-{today()}.json"
    write_atomic(path, json.dumps(record() | content, indent=1) + "\n")
    return path


def write(comparisons: Sequence[Comparison], out: Path, *, sweep: bool, setting: dict[str, Any]) -> list[Path]:
    """What was measured, with machine, versions and commit; a sweep's chart beside it unless a .json file was named.

    `out` is a .json file, a .png file, beside which the JSON goes, or a folder.
    """
    file, picture = out.with_suffix(".json"), out.with_suffix(".png")
    if out.suffix not in (".json", ".png"):
        out.mkdir(parents=True, exist_ok=True)
        file, picture = out / "bench.json", out / "sweep.png"
    content = record() | {"setting": setting, "comparisons": [comparison.record() for comparison in comparisons]}
    if sweep:
        groups = [(group[0].work, growth(group)) for group in sweeps(comparisons)]
        content["growth"] = [{"model": work.model, "mode": work.mode, "last_to_first": grown} for work, grown in groups]
    write_atomic(file, json.dumps(content, indent=1) + "\n")
    if not sweep or out.suffix == ".json":
        return [file]
    write_atomic(picture, sweep_chart(comparisons))
    return [file, picture]


def _cells(row: Row, comparison: Comparison) -> tuple[str, ...]:
    low, median, high = (seconds * 1e3 for seconds in row.spread)
    fastest, floors = comparison.fastest, [other for other in comparison.rows if other.floor]
    return (
        "" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
        f"{median:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{comparison.work.batch / row.spread.median:.1f}",
        "" if fastest is None else f"{comparison.ratio(row, fastest):.2f}",
        "" if row.floor or not floors else f"{comparison.ratio(row, floors[-1]):.2f}",
        "" if row.peak is None else f"{row.peak / 2**20:.0f}",
    )


def _title(comparisons: Sequence[Comparison]) -> str:
    work = comparisons[0].work
    return f"{work.model}, {work.mode}, {work.dtype}: cost over pixels"


def _draw(axes: Any, comparisons: Sequence[Comparison]) -> None:
    pixels = [comparison.work.size[0] * comparison.work.size[1] for comparison in comparisons]
    for name, costs in per_pixel(comparisons).items():
        points = [(x, y) for x, y in zip(pixels, costs, strict=True) if y is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name, ls="--" if name.startswith("floor") else "-")
    axes.set_xscale("log", base=2)
    axes.set_xticks(pixels, ["×".join(map(str, comparison.work.size)) for comparison in comparisons])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pixels of an image")
    axes.set_ylabel("ns a pixel")
    axes.set_title(_title(comparisons))
    axes.legend()


def _per_pixel(name: str, comparison: Comparison) -> float | None:
    row = next((row for row in comparison.rows if row.name == name and row.seconds), None)
    return None if row is None else row.spread.median / comparison.work.pixels * 1e9
