"""A claim is a figure and the limit that it must keep; a verdict says whether it did."""

import dataclasses
from collections.abc import Mapping, Sequence

from swindow.bench.measuring import Comparison
from swindow.bench.tables import growth

GPU = "python benchmarks/gpu.py, on a machine that has one"
_ON_GPUS = (  # of one H200, Swin-T, bf16
    ("throughput at batch 256 ÷ timm, eager under autocast", "≥ 3.0"),
    ("throughput at batch 256 ÷ best compiled peer", "≥ 1.6"),
    ("images a second", "≥ 20,000"),
    ("latency at batch 1, ms", "≤ 0.60"),
    ("training steps a second ÷ best compiled peer", "≥ 1.4"),
    ("peak memory of a training step ÷ best compiled peer", "≤ 0.8"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What is claimed and what was found."""

    what: str
    model: str = ""
    """Of ours; empty for the library as a whole."""
    limit: float | None = None
    """The figure must not be above it; None where `wanted` says it otherwise."""
    wanted: str = ""
    """The limit in words."""
    measured: float | None = None
    """The figure; None if there is none, and `remark` says why."""
    incomplete: bool = False
    """Somebody whom it must be held against was not there: staying below the limit then proves nothing."""
    remark: str = ""
    """Against whom, who was missing, or why there is no figure."""

    @property
    def must(self) -> str:
        """The limit as it is written."""
        return self.wanted if self.limit is None else f"≤ {self.limit:.2f}"

    @property
    def verdict(self) -> str:
        """pass, falls short, incomplete (kept, but not against everybody) or not measured."""
        if self.measured is None or self.limit is None:
            return "not measured"
        if self.measured > self.limit:
            return "falls short"
        return "incomplete" if self.incomplete else "pass"


def quickest(
    found: Comparison, what: str, ours: str, bases: Sequence[str], limit: float, *, absent: Mapping[str, str]
) -> Claim:
    """Time of `ours` by that of the fastest of `bases`; `absent` says of those who are missing why they are."""
    rows = {row.name: row for row in found.rows}
    ran = [rows[name] for name in bases if name in rows and rows[name].seconds]
    without = {name: why for name, why in absent.items() if name in bases}
    claim = Claim(what=what, model=found.work.model, limit=limit)
    if not rows[ours].seconds:
        return dataclasses.replace(claim, remark=f"{ours}: {rows[ours].note}")
    if not ran:
        return dataclasses.replace(claim, remark=_without(without) or f"no {', '.join(bases)}")
    base = min(ran, key=lambda row: row.spread.median)
    mine, theirs = (row.spread.median * 1e3 / found.work.batch for row in (rows[ours], base))
    said = f"{mine:.1f} and {theirs:.1f} ms an image, {base.name}"
    return dataclasses.replace(
        claim,
        measured=found.ratio(rows[ours], base),
        incomplete=bool(without),
        remark="; ".join(filter(None, (said, _without(without)))),
    )


def missing(found: Comparison, expected: Sequence[str]) -> dict[str, str]:
    """Those who took part and have no time, and why; whoever was not asked is not among them."""
    return {row.name: row.note for row in found.rows if row.name in expected and not row.seconds}


def weighed(
    peaks: Mapping[str, int | str], what: str, model: str, ours: str, bases: Sequence[str], limit: float
) -> Claim:
    """Peak memory of `ours` by that of the leanest of `bases`; text in place of bytes says why there are none."""
    claim = Claim(what=what, model=model, limit=limit)
    mine = peaks[ours]
    theirs = {name: peaks[name] for name in bases}
    ran = {name: size for name, size in theirs.items() if isinstance(size, int)}
    without = {name: size for name, size in theirs.items() if isinstance(size, str)}
    if isinstance(mine, str) or not ran:
        return dataclasses.replace(claim, remark=mine if isinstance(mine, str) else _without(without))
    base = min(ran, key=lambda name: ran[name])
    said = f"{mine / 2**20:.0f} and {ran[base] / 2**20:.0f} MiB, {base}"
    return dataclasses.replace(
        claim,
        measured=mine / ran[base],
        incomplete=bool(without),
        remark="; ".join(filter(None, (said, _without(without)))),
    )


def grown(found: Sequence[Comparison], limit: float) -> Claim:
    """Time per pixel of the model at the last of these works by that at the first."""
    first, last = found[0].work, found[-1].work
    sizes = [f"{work.size[0]}² at batch {work.batch}" for work in (last, first)]
    claim = Claim(what=f"time per pixel, {' ÷ '.join(sizes)}", model=first.model, limit=limit)
    rates = growth(found)
    if first.model not in rates:
        notes = [row.note for comparison in found for row in comparison.rows if not row.seconds]
        return dataclasses.replace(claim, remark="; ".join(dict.fromkeys(notes)))
    return dataclasses.replace(claim, measured=rates[first.model])


def on_gpus() -> tuple[Claim, ...]:
    """What is claimed of GPUs, which this suite does not measure."""
    return tuple(Claim(what=f"GPU: {what}", model="swin_tiny", wanted=wanted, remark=GPU) for what, wanted in _ON_GPUS)


def _without(absent: Mapping[str, str]) -> str:
    return "; ".join(f"without {name}: {why}" for name, why in absent.items())
