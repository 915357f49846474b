"""What this project says of its speed on a CPU, measured claim by claim: ``swindow bench --suite cpu``.

Every section is an interleaved comparison like any other; a claim is one ratio out of it and the limit that it must
keep.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from swindow.bench.claims import Claim, grown, missing, on_gpus, quickest, weighed
from swindow.bench.contenders import contender
from swindow.bench.imports import import_seconds
from swindow.bench.measuring import Comparison, Protocol, compare, sweep
from swindow.bench.memory import peak
from swindow.bench.timing import ratio
from swindow.bench.work import Mode, Work
from swindow.devices import Precision, pick_precision
from swindow.errors import ConfigError
from swindow.model import ModelConfig, model_config
from swindow.progress import Progress, Silent, counting

USUAL = 224
NEXT = (
    1.8  # what a model's sections take by those before it; V2-T at 256² by Swin-T at 224²: pixels 1.3, time a pixel 1.3
)
FLOOR = "floor: linear layers, prepacked"
LEFT_OUT = "left out: {need:.0f} s more would not fit into the {minutes:g} minutes; --minutes gives more"

Family = Literal["swin", "swin_v2"]
Limits = dict[Family, float]


def _limit(swin: float, swin_v2: float | None = None) -> Limits:
    return {"swin": swin, "swin_v2": swin if swin_v2 is None else swin_v2}


EAGER = _limit(0.92)
OPTIMIZED: dict[Precision, Limits] = {"fp32": _limit(0.74, 0.68), "bf16": _limit(0.76, 0.70)}
OF_ANY_KIND: dict[Precision, Limits] = {"fp32": _limit(1.00), "bf16": _limit(0.95)}
OVER_FLOOR: dict[Precision, Limits] = {"fp32": _limit(1.15), "bf16": _limit(1.25)}
TRAINING, MEMORY, CHECKPOINTED = _limit(0.85), _limit(0.75), _limit(0.35)
GROWTH, IMPORT = 1.15, 1.10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """What to measure, and within which time."""

    models: tuple[str, ...] = ("swin_tiny", "swin_v2_tiny_w8")
    """Of ours, each at the size that it is made for; the first one's time per pixel is measured too."""
    eager: tuple[str, ...] = ("timm", "torchvision", "transformers")
    """Peers in plain eager PyTorch."""
    engines: tuple[str, ...] = ("onnxruntime", "openvino")
    """Peers' graphs in inference engines."""
    compiled: tuple[str, ...] = ("timm:compile",)
    """Compiled peers; after the first model only as far as there is time to compile them."""
    batch: int = 8
    """Images at a time."""
    rounds: int = 7
    """Rounds that count in a comparison."""
    minutes: float = 15.0
    """What all of it should take; only compiled peers are left out for it."""
    threads: int = 0
    """Of torch and the engines; 0 leaves torch its own number."""

    def __post_init__(self) -> None:
        if not self.models or not self.eager:
            raise ConfigError("a suite needs at least one model of ours and one eager peer")
        if min(self.threads, self.batch - 1, self.rounds - 1) < 0:
            given = f"threads {self.threads}, batch {self.batch}, rounds {self.rounds}"
            raise ConfigError(f"{given}: batch and rounds must be at least 1, threads at least 0 (torch's own number)")
        for name in self.models:
            if model_config(name).backbone.kind not in EAGER:
                raise ConfigError(f"no limits are set for {name}: it is neither a Swin nor a Swin V2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What came out."""

    claims: tuple[Claim, ...]
    comparisons: tuple[Comparison, ...]
    peaks: dict[str, dict[str, int | str]]
    """By model, then contender: bytes of a training step's peak memory, or why there is none."""
    imports: dict[str, list[float]]
    """Seconds by module."""
    seconds: float
    """Of all of it."""

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "seconds": self.seconds,
            "claims": [dataclasses.asdict(claim) | {"verdict": claim.verdict} for claim in self.claims],
            "training_peaks": self.peaks,
            "import_seconds": self.imports,
            "comparisons": [comparison.record() for comparison in self.comparisons],
        }


def suite(plan: Suite, *, progress: Progress | None = None) -> Results:
    """Measure every claim. Whoever cannot take part is a row that says so; a claim says whom it was held against."""
    if plan.threads:
        torch.set_num_threads(plan.threads)
    course = _Course(plan, progress or Silent())
    sections = [functools.partial(_about, course, name) for name in plan.models]
    steps: list[Callable[[], None]] = [course.imports, *sections[:1], course.pixels, *sections[1:]]
    with counting(course.progress, "suite", len(steps)):
        for step in steps:
            step()
            course.progress.advance()
    return Results(
        claims=(*course.claims, *on_gpus()),
        comparisons=tuple(course.comparisons),
        peaks=course.peaks,
        imports=course.imported,
        seconds=time.monotonic() - course.began,
    )


def work_of(plan: Suite, name: str, *, mode: Mode = "infer", dtype: Precision = "fp32") -> tuple[ModelConfig, Work]:
    """The model and the work that its claims are about."""
    config = model_config(name)
    made_for: Any = getattr(config.backbone, "image_size", USUAL)
    size = made_for if isinstance(made_for, tuple) else (made_for, made_for)
    channels, classes = config.in_channels, config.head.num_classes
    return config, Work(
        model=name, mode=mode, size=size, batch=plan.batch, dtype=dtype, channels=channels, classes=classes
    )


class _Course:
    """A suite on its way: what has been found, and how long it took."""

    def __init__(self, plan: Suite, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.began = time.monotonic()
        self.claims: list[Claim] = []
        self.comparisons: list[Comparison] = []
        self.peaks: dict[str, dict[str, int | str]] = {}
        self.imported: dict[str, list[float]] = {}
        self.first_took = 0.0  # seconds of all sections of the first model, compiling excluded
        self.compiling: dict[Precision, float] = {}  # seconds that its compiled peers took to be ready

    def compare(self, names: Sequence[str], config: ModelConfig, works: Sequence[Work], **how: Any) -> list[Comparison]:
        """A comparison of the suite, kept."""
        protocol = Protocol(**{"rounds": self.plan.rounds, "warmup": 1, "memory": False, "forgiving": True} | how)
        found = compare([contender(name) for name in names], config, works, protocol, say=self.progress.say)
        self.comparisons += found
        return found

    def imports(self) -> None:
        """Our import beside torch's; since ours puts torch off, the remark has that of the models too."""
        self.progress.say("import swindow, import torch, each in fresh interpreters")
        names = ("swindow", "torch", "swindow.model")
        self.imported = import_seconds(names, rounds=self.plan.rounds)
        ours, theirs, models = (self.imported[name] for name in names)
        said = f"{statistics.median(ours):.2f} and {statistics.median(theirs):.2f} s"
        said += f"; swindow.model, which imports torch: {ratio(models, theirs):.2f}"
        self.claims.append(
            Claim(what="import swindow ÷ import torch", limit=IMPORT, measured=ratio(ours, theirs), remark=said)
        )

    def pixels(self) -> None:
        """Time per pixel of the first model at the largest size by that at its own."""
        config, work = work_of(self.plan, self.plan.models[0])
        works = sweep(dataclasses.replace(work, batch=1))
        found = self.compare([work.model], config, [works[0], works[-1]], rounds=3, floor=False)
        self.claims.append(grown(found, GROWTH))

    def has_time(self, name: str, dtype: Precision) -> bool:
        """Whether compiled peers of this model leave time for all that is still to do."""
        if name == self.plan.models[0]:
            return True
        left = self.plan.minutes * 60 - (time.monotonic() - self.began)
        to_come = len(self.plan.models) - self.plan.models.index(name)
        return left > NEXT * (self.first_took * to_come + self.compiling.get(dtype, 0.0))


def _about(course: _Course, name: str) -> None:
    """All claims about one model."""
    began = time.monotonic()
    for dtype in ("fp32", "bf16"):
        _inference(course, name, dtype)
    _training(course, name)
    _memory(course, name)
    if name == course.plan.models[0]:
        course.first_took = max(time.monotonic() - began - sum(course.compiling.values()), 0.0)


def _inference(course: _Course, name: str, dtype: Precision) -> None:
    plan = course.plan
    config, work = work_of(plan, name, dtype=dtype)
    if dtype == "bf16" and pick_precision("auto", torch.device("cpu")) != "bf16":
        course.claims += _unmeasured(name, "this processor has no bf16 instructions")
        return
    others = (*plan.engines, *plan.compiled)
    taking_part = others if course.has_time(name, dtype) else plan.engines
    plain, optimized = name, f"{name}:optimize"
    (found,) = course.compare([plain, optimized, *plan.eager, *taking_part], config, [work])
    ready = {row.name: row.ready or 0.0 for row in found.rows}
    if name == plan.models[0]:
        course.compiling[dtype] = sum(ready[peer] for peer in plan.compiled)
    need = NEXT * course.compiling.get(dtype, 0.0)
    absent = {peer: LEFT_OUT.format(need=need, minutes=plan.minutes) for peer in others if peer not in taking_part}
    course.claims += _of_inference(plan, found, absent)


def _of_inference(plan: Suite, found: Comparison, absent: dict[str, str]) -> list[Claim]:
    """The claims of one comparison; `absent` are peers that were not asked, and why."""
    name, dtype, family = found.work.model, found.work.dtype, _family(found.work.model)
    optimized = f"{name}:optimize"
    everybody = (
        *plan.eager,
        *(peer for peer in plan.engines if dtype == "fp32" or peer != "onnxruntime"),
        *plan.compiled,
    )
    absent = missing(found, everybody) | absent
    claim = functools.partial(quickest, found, absent=absent)
    claims = []
    if dtype == "fp32":
        claims.append(claim(f"{dtype} inference, eager ÷ fastest eager peer", name, plan.eager, EAGER[family]))
    what = f"{dtype} inference, optimize ÷ "
    return [
        *claims,
        claim(f"{what}fastest eager peer", optimized, plan.eager, OPTIMIZED[dtype][family]),
        claim(f"{what}fastest peer of any kind", optimized, everybody, OF_ANY_KIND[dtype][family]),
        claim(f"{what}bare linear layers, prepacked", optimized, (FLOOR,), OVER_FLOOR[dtype][family]),
    ]


def _unmeasured(name: str, why: str) -> list[Claim]:
    family = _family(name)
    limits = {
        "fastest eager peer": OPTIMIZED["bf16"][family],
        "fastest peer of any kind": OF_ANY_KIND["bf16"][family],
        "bare linear layers, prepacked": OVER_FLOOR["bf16"][family],
    }
    return [
        Claim(what=f"bf16 inference, optimize ÷ {whom}", model=name, limit=limit, remark=why)
        for whom, limit in limits.items()
    ]


def _training(course: _Course, name: str) -> None:
    config, work = work_of(course.plan, name, mode="train")
    (found,) = course.compare([name, *course.plan.eager], config, [work], floor=False)
    what = "fp32 training step ÷ fastest eager peer"
    limit = TRAINING[_family(name)]
    course.claims.append(
        quickest(found, what, name, course.plan.eager, limit, absent=missing(found, course.plan.eager))
    )


def _memory(course: _Course, name: str) -> None:
    """Peaks of a training step, each in a process of its own."""
    config, work = work_of(course.plan, name, mode="train")
    course.progress.say(f"{work.title}: peak memory, a process for each")
    peaks: dict[str, int | str] = {}
    for text in (name, f"{name}:checkpoint", *course.plan.eager):
        try:
            peaks[text] = peak(contender(text), config, work) or "not measured"
        except ConfigError as error:
            peaks[text] = str(error)
        size = peaks[text]
        course.progress.say(f"  {text}: {size if isinstance(size, str) else f'{size / 2**20:.0f} MiB'}")
    course.peaks[name] = peaks
    family = _family(name)
    what = "peak memory of a training step{} ÷ leanest peer"
    course.claims += [
        weighed(peaks, what.format(""), name, name, course.plan.eager, MEMORY[family]),
        weighed(
            peaks, what.format(", checkpointed"), name, f"{name}:checkpoint", course.plan.eager, CHECKPOINTED[family]
        ),
    ]


def _family(name: str) -> Family:
    return "swin_v2" if model_config(name).backbone.kind == "swin_v2" else "swin"
