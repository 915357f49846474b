"""A job over many images from its inputs to its summary: planned, resumed, done, told."""

import collections
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from swindow.checkpoints import WEIGHTS, save
from swindow.data.shards.stores import Store, is_url, store_at
from swindow.errors import ConfigError, DataError
from swindow.predict.bulk import engines
from swindow.predict.bulk.listing import listed
from swindow.predict.bulk.plan import INPUTS, PLAN, Plan, divided, plan_text, refuse_another, write_inputs
from swindow.predict.bulk.rows import Format, Kept
from swindow.predict.bulk.work import PARTS, Done, Job, put
from swindow.predict.detected import THRESHOLD
from swindow.predict.predictor import Predictor
from swindow.progress import Progress, Silent, counting
from swindow.sheets import clean

Engine = Literal["local", "ray"]
MANIFEST = "manifest.json"
PART_IMAGES = 2000
ROUNDS = 2
"""How often a part is tried whose storage did not answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsSummary:
    """What a job over many images came to."""

    images: int
    """Rows that are there, of this start and those before."""
    failures: int
    """Of them, images without a prediction."""
    examples: tuple[str, ...]
    """The first errors."""
    classes: dict[str, int]
    """How often each class was the most probable, covers something, or was found; the most frequent first."""
    parts: int
    """In all."""
    missing: tuple[tuple[str, str], ...]
    """Parts that were not done, and why; the same call does them."""
    now: int
    """Images that this start predicted."""
    seconds: float
    """That it took, planning included."""
    out: str

    def text(self) -> str:
        """A few lines for people."""
        tally = [f"{count:,} {clean(name)}" for name, count in [*self.classes.items()][:10]]
        tally += [f"{len(self.classes) - 10} more classes"] if len(self.classes) > 10 else []
        tally += [f"{self.failures:,} without a prediction"] if self.failures else []
        lines = [f"{self.images:,} images in {self.parts - len(self.missing):,} parts: {', '.join(tally) or 'nothing'}"]
        lines += [f"  {error}" for error in self.examples]
        lines += [f"{name}: not done: {why}" for name, why in self.missing[:10]]
        if self.missing:
            lines.append(f"{len(self.missing):,} of {self.parts:,} parts are missing; the same command does them")
        rate = f", {self.now / self.seconds:,.1f} images/s" if self.now and self.seconds else ""
        lines.append(f"{self.now:,} of them now, in {self.seconds:,.1f} s{rate}")
        return "\n".join([*lines, f"{self.out}/{PARTS}"])


def predict_parts(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    engine: Engine = "local",
    part_images: int = PART_IMAGES,
    top: int = 5,
    threshold: float | None = None,
    masks: bool = False,
    format: Format = "parquet",
    workers: int | None = None,
    fetch: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> PartsSummary:
    """Predict any number of images, in parts that are there whole or not at all; called again, do what is missing.

    Inputs are files, folders and patterns of this machine, or URLs that fsspec knows (``s3://bucket/images/``): images,
    tar files and Parquet files of image bytes. `out` is a folder or a URL. In it lie

    * ``plan.json``: the hash of the inputs' listing, of the model and of all settings that change an answer. A call
      with others is refused, so one folder never holds answers of two kinds.
    * ``inputs.parquet``: the listing, a row group for each part. It is a function of the inputs and `part_images`
      alone, so every start divides them in the same way.
    * ``parts/part-00000.parquet`` (or ``.jsonl``) and so on: a row for every image, in order; ``error`` says why one
      has no answer.
    * ``done/part-00000.json`` is written last: only with it, and of the size that it tells, is a part done.
    * ``masks/part-00000.tar``, if `masks` are asked of a segmenter: a PNG of class indices for each row, whose ``mask``
      is its name. One object for a part: a million small ones would take a store longer than a model takes.
    * ``manifest.json``, when all is done: the counts, and every part with its size and hash.

    Memory is that of one part's rows and a few images, however many there are; the listing is held a folder at a time.
    The engine ``ray`` spreads the parts over workers (see `engines.on_ray`); both leave the same rows.

    Args:
        part_images: images of a part, at most; a tar is a part by itself, however many it has.
        top: classes of a classifier to write.
        threshold: score from which a detector's objects are written; 0.5 by default, 0 for all there are.
        workers: of Ray; by default one for each GPU, or for each four cores.
        fetch: objects that are on their way at once, in each worker.
        device: of Ray's workers; the predictor's own device counts where there are none.

    Raises:
        DataError: nothing to predict, or inputs or `out` that cannot be reached.
        ConfigError: `out` holds another job, or settings that cannot be.
        MissingExtra: pyarrow, fsspec, s3fs or ray is not installed and needed.
    """
    began, progress = time.monotonic(), progress or Silent()
    kept = _checked(predictor, part_images, top, threshold, masks, fetch)
    place = _absolute(out)
    store = store_at(place)
    settings = {"part_images": part_images, "format": format, "masks": masks} | kept._asdict() | _how(predictor)
    progress.say("listing the inputs")
    plan = _planned(store, predictor, inputs, part_images, settings)
    job = Job(out=place, plan=plan, kept=kept, format=format, masks=masks, fetch=fetch)
    done = _done_before(store, job, progress)
    before = sum(one.rows for one in done.values())
    left = [part for part in range(plan.parts) if part not in done]
    failed: dict[int, str] = {}
    total, unit = (plan.images, "images") if plan.images is not None else (plan.parts, "parts")
    with counting(progress, f"predict {unit}", total, before if unit == "images" else len(done)):
        for _ in range(ROUNDS):
            if not left:
                break
            failed = {part: why for part, why in failed.items() if part not in left}
            if engine == "ray":
                outcomes = engines.on_ray(predictor, job, left, workers=workers, device=device)
            else:
                outcomes = engines.here(predictor, job, left, progress.advance if unit == "images" else _nothing)
            for part, outcome in outcomes:
                if isinstance(outcome, Done):
                    done[part] = outcome
                    progress.advance(outcome.rows if unit == "images" and engine == "ray" else int(unit == "parts"))
                else:
                    failed[part] = outcome
            left = sorted(part for part, why in failed.items() if why != engines.GIVEN_UP)
    summary = _summary(job, done, failed, before, time.monotonic() - began)
    if not failed:
        _write(store, MANIFEST, _manifest(job, done, summary))
    return summary


def _nothing() -> None:
    return


def _checked(
    predictor: Predictor, part_images: int, top: int, threshold: float | None, masks: bool, fetch: int
) -> Kept:
    for name, value in (("part_images", part_images), ("top", top), ("fetch", fetch)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    name = predictor.asked.model.config.name
    if threshold is not None and not predictor.finds:
        raise ConfigError(f"{name} finds no objects: it takes no threshold")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; scores lie in 0..1")
    if masks and predictor.segmenter is None:
        raise ConfigError(f"{name} is no segmenter: it has no masks of classes (a detector's are in its rows)")
    task = "segment" if predictor.segmenter is not None else "detect" if predictor.finds else "classify"
    most = min(top, len(predictor.asked.classes)) if task == "classify" else 0
    score = 0.0 if task != "detect" else THRESHOLD if threshold is None else float(threshold)
    return Kept(top=most, threshold=score, task=task)


def _how(predictor: Predictor) -> dict[str, object]:
    """What else of a predictor changes its answers."""
    views = {} if predictor.segmenter is None else dataclasses.asdict(predictor.segmenter.views)
    views = {name: value for name, value in views.items() if name not in ("batch", "memory")}
    facts = {"precision": predictor.asked.precision, "max_pixels": predictor.limits.max_pixels, "views": views}
    return json.loads(json.dumps(facts))  # tuples as lists, as a plan that was read has them


def _planned(
    store: Store, predictor: Predictor, inputs: Sequence[str | Path], part_images: int, settings: dict[str, object]
) -> Plan:
    """The plan of these inputs, which is that in the folder if there is one."""
    with tempfile.TemporaryDirectory(prefix="swindow-plan-") as folder:
        table = Path(folder, INPUTS)
        parts, images, digest = write_inputs(divided(listed(inputs, store.root), part_images), table)
        plan = Plan(parts=parts, images=images, inputs=digest, model=_model(predictor, folder), settings=settings)
        found = _read(store, PLAN)
        if found is not None:
            refuse_another(plan, found, store.place(PLAN))
            return plan
        if any(name.startswith(f"{PARTS}/") for name in _sizes(store)):
            raise ConfigError(f"{store.place(PARTS)}: is there, and no {PLAN} beside it; give another --out")
        put(store, table, INPUTS)
        _write(store, PLAN, plan_text(plan))
    return plan


def _model(predictor: Predictor, folder: str) -> dict[str, object]:
    model = predictor.asked.model
    content = save(model, Path(folder, WEIGHTS)).read_bytes()
    return {
        "name": model.config.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "classes": list(predictor.asked.classes),
    }


def _done_before(store: Store, job: Job, progress: Progress) -> dict[int, Done]:
    """The parts that are whole. One whose file is not of the size that its marker tells is done again."""
    sizes = _sizes(store)
    marked = [part for part in range(job.plan.parts) if job.marker(part) in sizes]
    done = {}
    with ThreadPoolExecutor(16) as pool:
        contents = pool.map(lambda part: _read(store, job.marker(part)), marked)
        for part, content in zip(marked, contents, strict=True):
            file = job.rows(part)
            try:
                found = Done.read(content or b"")
            except (ValueError, KeyError, TypeError):
                progress.say(f"{store.place(file)}: its marker cannot be read; it is done again")
                continue
            if sizes.get(file) != found.size:
                progress.say(f"{store.place(file)}: is not of the size that its marker tells; it is done again")
                continue
            done[part] = found
    if marked:
        progress.say(f"{len(done):,} of {job.plan.parts:,} parts are there")
    return done


def _summary(job: Job, done: dict[int, Done], failed: dict[int, str], before: int, seconds: float) -> PartsSummary:
    classes: collections.Counter[str] = collections.Counter()
    for one in done.values():
        classes.update(one.classes)
    images = sum(one.rows for one in done.values())
    examples = (error for part in sorted(done) for error in done[part].examples)
    return PartsSummary(
        images=images,
        failures=sum(one.failures for one in done.values()),
        examples=tuple(error for error, _ in zip(examples, range(5), strict=False)),
        classes=dict(sorted(classes.items(), key=lambda pair: (-pair[1], pair[0]))),
        parts=job.plan.parts,
        missing=tuple((job.rows(part), failed[part]) for part in sorted(failed)),
        now=images - before,
        seconds=seconds,
        out=job.out,
    )


def _manifest(job: Job, done: dict[int, Done], summary: PartsSummary) -> str:
    parts = [
        {
            "name": job.rows(part),
            "rows": done[part].rows,
            "failures": done[part].failures,
            "bytes": done[part].size,
            "sha256": done[part].sha256,
        }
        for part in sorted(done)
    ]
    facts = {"images": summary.images, "failures": summary.failures, "classes": summary.classes, "parts": parts}
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def _absolute(out: str | Path) -> str:
    """Where workers find it, whatever folder they run in."""
    text = str(out)
    return text.rstrip("/") if is_url(text) else str(Path(text).absolute())


def _sizes(store: Store) -> dict[str, int]:
    try:
        return store.sizes()
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise


def _read(store: Store, name: str) -> bytes | None:
    try:
        return store.read(name)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _write(store: Store, name: str, text: str) -> None:
    with tempfile.TemporaryDirectory(prefix="swindow-plan-") as folder:
        draft = Path(folder, "draft")
        draft.write_text(text, encoding="utf-8")
        put(store, draft, name)
