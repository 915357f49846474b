"""A comparison: everybody's time in interleaved rounds, everybody's memory, and the floor under both."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from swindow.bench.contenders import THEIRS, Contender, contender, entry, network, parameters, verify
from swindow.bench.memory import peak
from swindow.bench.products import Product, products, replay
from swindow.bench.roofline import Rates, Roofline, roofline_of
from swindow.bench.timing import Run, Spread, interleave, ratio, spread
from swindow.bench.work import Work
from swindow.errors import ConfigError, UnknownName
from swindow.model import ModelConfig

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's figures, or why it has none."""

    name: str
    """As the contender was written; floors are named after what they replay."""
    floor: bool = False
    """Bare products, which no model is."""
    seconds: tuple[float, ...] = ()
    """Of each round."""
    parameters: int | None = None
    """Learned values, where they can be seen."""
    peak: int | None = None
    """Most memory, in bytes above the imports."""
    ready: float | None = None
    """Seconds from nothing to the end of its first run: building, exporting, compiling."""
    note: str = ""
    """Why figures are missing."""

    @property
    def spread(self) -> Spread:
        """Median and quartiles, in seconds."""
        return spread(self.seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everybody at the same work."""

    work: Work
    rows: tuple[Row, ...]
    """Contenders in the order asked for, then floors."""
    roofline: Roofline | None = None
    """In seconds for a batch, on a GPU."""
    rates: Rates | None = None
    """What the roofline was made from."""

    @property
    def fastest(self) -> Row | None:
        """The contender of the least median, floors apart."""
        ran = [row for row in self.rows if row.seconds and not row.floor]
        return min(ran, key=lambda row: row.spread.median, default=None)

    def ratio(self, row: Row, base: Row) -> float:
        """Time of `row` by that of `base`: the median over rounds."""
        return ratio(row.seconds, base.seconds)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON, milliseconds and bytes."""
        return {
            "work": dataclasses.asdict(self.work),
            "rows": [self._record(row) for row in self.rows],
            "roofline_ms": None if self.roofline is None else {k: v * 1e3 for k, v in self.roofline._asdict().items()},
            "rates": None if self.rates is None else self.rates._asdict(),
        }

    def _record(self, row: Row) -> dict[str, Any]:
        about = {"name": row.name, "floor": row.floor, "parameters": row.parameters, "peak_bytes": row.peak}
        about |= {"ready_seconds": row.ready}
        if not row.seconds or self.fastest is None:
            return about | {"note": row.note}
        low, median, high = (seconds * 1e3 for seconds in row.spread)
        ratios = {base.name: self.ratio(row, base) for base in self.rows if base.floor and base is not row}
        return about | {
            "note": row.note,
            "median_ms": median,
            "quartiles_ms": [low, high],
            "images_per_second": self.work.batch / row.spread.median,
            "to_fastest": self.ratio(row, self.fastest),
            "to_floor": ratios,
            "samples_ms": [seconds * 1e3 for seconds in row.seconds],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How often, and what besides time."""

    rounds: int = 15
    """Rounds that count; each runs every contender once."""
    warmup: int = 2
    """Rounds before them that do not."""
    floor: bool = True
    """Run the bare products among the contenders."""
    memory: bool = True
    """Measure peak memory, each contender in a process of its own."""
    forgiving: bool = False
    """One of ours that fails is a row that says so, as a peer is, and no error."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup < 1:
            raise ConfigError(f"rounds {self.rounds}, warmup {self.warmup}: both must be at least 1")


def compare(
    contenders: Sequence[Contender],
    config: ModelConfig,
    works: Sequence[Work],
    protocol: Protocol,
    *,
    say: Say | None = None,
) -> list[Comparison]:
    """Everybody at every work, all of them in the same interleaved rounds.

    A peer that is not here, has no such model or fails is a row that says so; so is, in training, whoever only infers.

    Raises:
        SwindowError: one of our own models cannot do this work, and the protocol does not forgive it.
    """
    say = say or _nothing
    entries = []
    for work in works:
        say(work.title)
        entries.append(_enter_all(contenders, made_for(config, work.size), work, protocol, say))
    say(f"{protocol.warmup} rounds to warm up, {protocol.rounds} that count")
    runs = {(number, name): run for number, one in enumerate(entries) for name, run in one.runs.items()}
    samples = interleave(runs, rounds=protocol.rounds, warmup=protocol.warmup)
    runs.clear()
    for one in entries:
        one.runs.clear()  # and with them the models, before other processes need the memory
    return [_finished(one, number, samples, contenders, protocol) for number, one in enumerate(entries)]


def sweep(work: Work, doublings: int = 3) -> list[Work]:
    """The same work at sizes that double from `work.size` on, with as many pixels in all; its batch is the last one's.

    Raises:
        ConfigError: fewer than one doubling.
    """
    if doublings < 1:
        raise ConfigError(f"a sweep of {doublings} doublings has one size; there must be at least 1")
    height, width = work.size
    return [
        dataclasses.replace(work, size=(height * 2**step, width * 2**step), batch=work.batch * 4 ** (doublings - step))
        for step in range(doublings + 1)
    ]


def made_for(config: ModelConfig, size: tuple[int, int]) -> ModelConfig:
    """The configuration of a model that is made for images of this size, as peers are made for it too."""
    backbone: Any = config.backbone
    if not hasattr(backbone, "image_size"):
        return config
    return dataclasses.replace(config, backbone=dataclasses.replace(backbone, image_size=size))


def line(models: Sequence[str], against: Sequence[str]) -> dict[str, list[Contender]]:
    """Contenders for each of our models: the model in the ways asked for, then the peers."""
    found: dict[str, list[Contender]] = {}
    for text in models:
        someone = contender(text)
        if not someone.ours:
            raise ConfigError(f"{text} is not a model of ours; others are named by --against")
        found.setdefault(someone.source, []).append(someone)
    peers = [contender(text) for text in against]
    for peer in peers:
        if peer.ours:
            raise UnknownName("peer", peer.source, [*THEIRS, "FILE.py:callable"])
    return {model: list(dict.fromkeys([*ours, *peers])) for model, ours in found.items()}


class _Entries(NamedTuple):
    """Who starts at one work."""

    work: Work
    config: ModelConfig
    runs: dict[str, Run]
    rows: list[Row]
    products: tuple[Product, ...]


def _enter_all(
    contenders: Sequence[Contender], config: ModelConfig, work: Work, protocol: Protocol, say: Say
) -> _Entries:
    runs, rows = {}, []
    for someone in contenders:
        run, row = _enter(someone, config, work, forgiving=protocol.forgiving)
        say(f"  {row.name}: {row.note}" if run is None else f"  {row.name}: ready after {row.ready:.1f} s")
        rows.append(row)
        if run is not None:
            runs[someone.name] = run
    found = products(config, work) if protocol.floor and runs else ()
    for only_linear in (True, False) if found else ():
        run, name = replay(found, work, only_linear=only_linear)
        rows.append(Row(name=f"floor: {name}", floor=True))
        runs[rows[-1].name] = run
    return _Entries(work, config, runs, rows, found)


def _enter(someone: Contender, config: ModelConfig, work: Work, *, forgiving: bool) -> tuple[Run | None, Row]:
    """Build a contender and run it once."""
    if work.mode == "train" and not someone.trains:  # asked for inference and training at once, it takes part in one
        return None, Row(name=someone.name, note="for inference only; --mode infer leaves training out")
    began = time.perf_counter()
    try:
        found = network(someone, config, work)
        run = entry(someone, found, work)
        run()
        ready = time.perf_counter() - began
        verify(someone, found, config, work)
    except Exception as error:
        if someone.ours and not forgiving:
            raise
        return None, Row(name=someone.name, note=_one_line(error))
    return run, Row(name=someone.name, parameters=parameters(found), ready=ready)


def _finished(
    one: _Entries,
    number: int,
    samples: Mapping[tuple[int, str], list[float]],
    contenders: Sequence[Contender],
    protocol: Protocol,
) -> Comparison:
    """Rows with their times, and with what is measured apart from time."""
    rows = [dataclasses.replace(row, seconds=tuple(samples.get((number, row.name), ()))) for row in one.rows]
    if protocol.memory:
        by_name = {someone.name: someone for someone in contenders}
        rows = [_weighed(row, by_name.get(row.name), one, protocol) for row in rows]
    on_gpu = one.products and one.work.device.startswith("cuda")
    limit, rates = roofline_of(one.products, one.work) if on_gpu else (None, None)
    return Comparison(work=one.work, rows=tuple(rows), roofline=limit, rates=rates)


def _weighed(row: Row, someone: Contender | None, one: _Entries, protocol: Protocol) -> Row:
    if someone is None or not row.seconds:
        return row
    try:
        return dataclasses.replace(row, peak=peak(someone, one.config, one.work))
    except ConfigError as error:
        if someone.ours and not protocol.forgiving:
            raise
        return dataclasses.replace(row, note=_one_line(error))


def _nothing(line: str) -> None:
    return


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 160 else f"{said[:157]}…"
