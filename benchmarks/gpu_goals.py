"""What the GPU rows of the plan ask for, and what `gpu.py` found: pass, falls short, or not measured."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

Section = Mapping[str, Any]
NOTHING: dict[str, Any] = {"comparison": {"rows": []}, "ratios": {}}


class Goal(NamedTuple):
    """A row of the table: what it must reach, what was found, if it was, and between whom."""

    what: str
    bound: str
    found: float | None
    reached: bool
    who: str

    @property
    def verdict(self) -> str:
        """In words."""
        return "not measured" if self.found is None else "pass" if self.reached else "falls short"


def goals(found: Mapping[str, Section]) -> list[Goal]:
    """The rows, from the sections that ended or left lines behind.

    Ours is our fastest, theirs the fastest compiled peer; a ratio is by how much theirs takes longer.
    """
    wide, single, step = (_last(found, name) for name in ("throughput", "latency", "training"))
    ours, theirs = _fastest(wide, ours=True), _fastest(wide, ours=False, compiled=True)
    alone = _fastest(single, ours=True)
    trained, against = _fastest(step, ours=True), _fastest(step, ours=False, compiled=True)
    weighed = {line["name"]: line["bytes"] for line in _lines(found, "memory") if line.get("bytes")}
    lean = {name: value for name, value in weighed.items() if _ours(name) and "checkpoint" not in name}
    leanest = min(lean, key=lambda name: lean[name], default=None)
    share = lean[leanest] / weighed[against] if leanest and against in weighed else None
    return [
        _at_least("throughput at batch 256 ÷ timm's eager AMP", 3.0, _times(wide, ours, "timm:amp"), ours, "timm:amp"),
        _at_least(
            "throughput at batch 256 ÷ the fastest compiled peer's", 1.6, _times(wide, ours, theirs), ours, theirs
        ),
        _at_least("images a second at batch 256", 20_000.0, _of(wide, ours, "images_per_second"), ours),
        _at_most("milliseconds of one image", 0.60, _of(single, alone, "median_ms"), alone),
        _at_least("training step, by how much faster", 1.4, _times(step, trained, against), trained, against),
        _at_most("peak memory of a training step ÷ the same peer's", 0.8, share, leanest, against),
    ]


def summary(found: Mapping[str, Section]) -> str:
    """The goals, failing tests by name, the kernels, everybody's times, and sections that did not end well."""
    said = [
        f"{goal.what:56}{goal.bound:>9}{_number(goal.found):>9}  {goal.verdict:13}{goal.who}" for goal in goals(found)
    ]
    said += _outcomes(found)
    said += [f"kernel: {json.dumps(line)}" for line in _lines(found, "attention") if "tried" not in line]
    for name in ("throughput", "latency", "training", "tuned"):
        for row in _last(found, name)["comparison"]["rows"]:
            time = f"{row['median_ms']:10.3f} ms" if "median_ms" in row else f"  {row['note'][:100]}"
            said.append(f"{name:12}{row['name']:40}{time}")
    said += [
        f"memory      {line['name']:40}{line.get('bytes') or line.get('note')}" for line in _lines(found, "memory")
    ]
    said += [f"{name}: {one['status']}\n{one['said'][-600:]}" for name, one in found.items() if one["said"]]
    return "\n".join(said)


def _outcomes(found: Mapping[str, Section]) -> list[str]:
    ended = [line for name in ("tests", "grid") for line in _lines(found, name) if "test" in line]
    counts = {kind: sum(line["outcome"] == kind for line in ended) for kind in ("passed", "failed", "skipped")}
    said = ["tests: " + ", ".join(f"{number} {kind}" for kind, number in counts.items())]
    for line in ended:
        if line["outcome"] == "failed":
            text = line["text"].splitlines()
            reason = [one for one in text if one.startswith("E ")] or text[-1:]
            said += [f"  {line['test']}", *(f"    {one}" for one in reason[:3])]
    return said


def _at_least(what: str, bound: float, found: float | None, *who: str | None) -> Goal:
    return Goal(what, f"≥ {bound:,g}", found, found is not None and found >= bound, _pair(who))


def _at_most(what: str, bound: float, found: float | None, *who: str | None) -> Goal:
    return Goal(what, f"≤ {bound:,g}", found, found is not None and found <= bound, _pair(who))


def _pair(who: tuple[str | None, ...]) -> str:
    return " against ".join(name or "nobody" for name in who)


def _lines(found: Mapping[str, Section], name: str) -> list[dict[str, Any]]:
    return found[name]["lines"] if name in found else []


def _last(found: Mapping[str, Section], name: str) -> dict[str, Any]:
    """The last comparison that was finished, which is the one of most contenders."""
    return next((line for line in reversed(_lines(found, name)) if "comparison" in line), NOTHING)


def _ours(name: str) -> bool:
    return name.startswith("swin") or ".py:" in name


def _fastest(line: dict[str, Any], *, ours: bool, compiled: bool = False) -> str | None:
    rows = [row for row in line["comparison"]["rows"] if "median_ms" in row and not row["floor"]]
    rows = [row for row in rows if _ours(row["name"]) == ours and (not compiled or "compile" in row["name"])]
    return min(rows, key=lambda row: row["median_ms"])["name"] if rows else None


def _times(line: dict[str, Any], ours: str | None, theirs: str | None) -> float | None:
    return line["ratios"].get(theirs, {}).get(ours)


def _of(line: dict[str, Any], name: str | None, what: str) -> float | None:
    return next((row.get(what) for row in line["comparison"]["rows"] if row["name"] == name), None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
