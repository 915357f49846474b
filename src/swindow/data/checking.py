"""Everything that is wrong with a data source, all of it at once: every image is decoded, every label looked at.

What can be wrong with masks and volumes is in `swindow.data.scene_checking`; with objects, their readers say it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from swindow.data.annotations import AnnotationError, ObjectConfig
from swindow.data.datasets import Task, take_inventory
from swindow.data.detection import find_objects, pool_objects, read_objects
from swindow.data.duplicates import Item, across, same_content
from swindow.data.inventory import Inventory, Problem
from swindow.data.layouts import Pair, SceneInventory
from swindow.data.masks import MaskConfig, SceneError
from swindow.data.object_checking import shown_by, unfilled
from swindow.data.object_layouts import ObjectPlaces
from swindow.data.processes import context, start_quietly
from swindow.data.scene_checking import Examiner, Finding, axis_problems, case_problems, common_problems
from swindow.data.segmentation import choose_legend, find_scenes
from swindow.data.shards.finding import holds_shards, read_shards
from swindow.errors import DataError
from swindow.images import LIMITS, ImageLimits, ImageTooLarge, name_of, read_image

AT_ONCE = 64  # images in shards that are read together
ABSURD_ASPECT = 20  # long side over short side; a panorama has 10


@runtime_checkable
class Watcher(Protocol):
    """Who wants to know how far it is."""

    def begin(self, title: str, total: int, done: int = 0) -> None: ...

    def advance(self, items: int = 1) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check` found."""

    source: str
    problems: tuple[Problem, ...]
    images: dict[str, int]
    """Images of each split, readable or not."""
    classes: dict[str, int]
    """Images of each class, over all splits; those that show any of it, where they have masks or objects."""
    notes: str = ""
    """What is no fault, and yet to be known: images without an object."""

    @property
    def counts(self) -> dict[str, int]:
        """Problems of each kind."""
        return dict(sorted(Counter(problem.kind for problem in self.problems).items()))

    def text(self) -> str:
        """The report as lines: one a problem, then the sums."""
        images = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        count = len(self.classes)
        head = f"{self.source}: {count} class{'es' if count != 1 else ''}, images: {images or 'none'}"
        head += f"; {self.notes}" if self.notes else ""
        if not self.problems:
            return f"{head}\nno problems"
        sums = ", ".join(f"{kind} {count:,}" for kind, count in self.counts.items())
        lines = [f"{problem.kind}: {problem.message}" for problem in self.problems]
        return "\n".join([*lines, head, f"{len(self.problems):,} problems: {sums}"])


def check(
    source: str | Path,
    *,
    limits: ImageLimits = LIMITS,
    root: Path | None = None,
    workers: int = 0,
    progress: Watcher | None = None,
    task: Task = "auto",
    masks: MaskConfig = MaskConfig(),
    objects: ObjectConfig = ObjectConfig(),
) -> CheckReport:
    """Decode every image and list every problem: kind, place, and one line with the reason and what to do.

    Kinds: ``unreadable``, ``too-large`` (a decompression bomb, or a picture over `limits`), ``absurd-aspect``,
    ``not-an-image``, ``stray-image``, ``empty-class``, ``one-image-class``, ``class-only-in-val`` (or ``-test``),
    ``label-out-of-range``, ``bad-row``, ``duplicate-across-splits``, ``duplicate-other-label``.

    With masks also: ``missing-mask``, ``missing-image``, ``two-masks``, ``no-masks``, ``mask-size``, ``mask-value``,
    ``rgb-mask``, ``bad-mask``, ``palette``, ``all-ignore``, ``empty-mask``, ``unused-class``, ``no-classes``,
    ``no-case``, ``case-across-splits``; with volumes ``axis-order``, ``not-finite`` and ``other-spacing``.

    With objects also: ``bad-json``, ``bad-xml``, ``forbidden-xml``, ``bad-text``, ``bad-image``, ``bad-annotation``,
    ``bad-mask``, ``missing-mask``, ``empty-mask``, ``empty-box``, ``outside-box``, ``unknown-image``,
    ``unknown-category``, ``duplicate-image-id``, ``duplicate-annotation-id``, ``duplicate-category``,
    ``missing-size``, ``other-size``, ``turned-size``. `objects` says which of them training would refuse.

    With shards also: ``damaged-shard``, one that is not what its index says.

    Raises:
        DataError: the source cannot be read at all.
    """
    if holds_shards(source):
        if task in ("segment", "detect"):
            raise DataError(f"{name_of(source)}: shards hold images with a label each; this is to {task}")
        return _check_shards(source, limits, progress)
    places = find_objects(source, task=task)
    if places is not None:
        return _check_objects(source, places, objects, limits, workers, progress)
    scenes = find_scenes(source, task=task)
    if scenes is not None:
        return _check_scenes(source, scenes, masks, limits, workers, progress)
    found = take_inventory(source, limits=limits, root=root)
    items = _items(found)
    broken = list(_decode(items, limits, workers, progress))
    unreadable = {problem.path for problem in broken if problem.kind != "absurd-aspect"}
    groups = same_content([item for item in items if item.name not in unreadable])
    problems = [*found.problems, *found.label_problems(), *broken, *_leaks(groups), *_contradictions(groups)]
    return CheckReport(
        source=name_of(source),
        problems=tuple(problems),
        images={split: len(rows.names) for split, rows in found.splits.items()},
        classes=dict(Counter(item.label for item in items)),
    )


def _check_shards(source: str | Path, limits: ImageLimits, progress: Watcher | None) -> CheckReport:
    """The same for shards: each is compared with its index, then every image is read in the order it lies there."""
    found = read_shards(source)
    problems = [problem for problem in found.problems if problem.kind != "no-index"] + found.label_problems()
    items: list[Item] = []
    for split, rows in found.splits.items():
        encoded = rows.encoded
        if encoded is None:
            raise TypeError("shards without a reader")
        problems += [Problem("damaged-shard", name, message) for name, message in encoded.damaged()]
        groups = [range(start, min(start + AT_ONCE, len(rows.labels))) for start in range(0, len(rows.labels), AT_ONCE)]
        for group, read in zip(groups, _each(encoded.read, groups, 0, progress), strict=True):
            for row, data in zip(group, read, strict=True):
                name = rows.names[row]
                problem = _examine(name, limits, data)
                if problem is not None:
                    problems.append(problem)
                if problem is None or problem.kind == "absurd-aspect":
                    digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
                    items.append(Item(split, name, rows.labels[row], digest=digest, in_shard=True))
    equal = same_content(items)
    return CheckReport(
        source=name_of(source),
        problems=(*problems, *_leaks(equal), *_contradictions(equal)),
        images={split: len(rows.names) for split, rows in found.splits.items()},
        classes=dict(Counter(label for rows in found.splits.values() for label in rows.labels)),
    )


def _items(found: Inventory) -> list[Item]:
    return [
        Item(split, name, label, None if rows.pixels is None else rows.pixels[place])
        for split, rows in found.splits.items()
        for place, (name, label) in enumerate(zip(rows.names, rows.labels, strict=True))
    ]


def _decode(items: Sequence[Item], limits: ImageLimits, workers: int, progress: Watcher | None) -> Iterator[Problem]:
    """Problems of the files among `items`, each read once; images in memory were read when they were found."""
    names = list(dict.fromkeys(item.name for item in items if item.pixels is None))
    for problem in _each(partial(_examine, limits=limits), names, workers, progress):
        if problem is not None:
            yield problem


def _each(
    examine: Callable[[Any], Any], things: Sequence[Any], workers: int, progress: Watcher | None
) -> Iterator[Any]:
    """What `examine` says of each thing, in order; with `workers`, by so many processes."""
    if progress is not None:
        progress.begin("check", len(things))
    try:
        with ProcessPoolExecutor(workers, context(), start_quietly) if workers else nullcontext() as pool:
            for result in pool.map(examine, things, chunksize=16) if pool is not None else map(examine, things):
                if progress is not None:
                    progress.advance()
                yield result
    finally:
        if progress is not None:
            progress.end()


def _check_scenes(
    source: str | Path,
    found: SceneInventory,
    config: MaskConfig,
    limits: ImageLimits,
    workers: int,
    progress: Watcher | None,
) -> CheckReport:
    """The same for pictures with masks."""
    problems = list(found.problems)
    try:
        legend, _ = choose_legend(found, config, limits, lenient=True)
    except DataError as error:
        legend = None
        kind = error.kind if isinstance(error, SceneError) else "no-classes"
        problems.append(Problem(kind, found.root, str(error), fatal=True))
    pairs = [(split, pair) for split, rows in found.splits.items() for pair in rows]
    examine = Examiner(legend, found.volumes, config.axis, limits, config.intensity)
    seen = list(_each(examine, [pair for _, pair in pairs], workers, progress))
    findings: list[tuple[str, Pair, Finding]] = [(*pair, finding) for pair, finding in zip(pairs, seen, strict=True)]
    problems += [problem for finding in seen for problem in finding.problems]
    problems += case_problems(found, config)
    if found.volumes:
        problems += axis_problems([(pair.image, pair.mask) for _, pair in pairs], config.axis, limits)
    counts: dict[str, int] = {}
    if legend is not None:
        problems += common_problems(findings, legend)
        counts = {name: sum(place in finding.classes for finding in seen) for place, name in enumerate(legend.names)}
    unreadable = {problem.path for problem in problems if problem.kind in ("unreadable", "too-large")}
    items = [Item(split, pair.image, "") for split, pair in pairs if pair.image not in unreadable]
    return CheckReport(
        source=name_of(source),
        problems=(*problems, *_leaks(same_content(items, apart=True))),
        images={split: len(rows) for split, rows in found.splits.items()},
        classes=counts,
    )


def _check_objects(
    source: str | Path,
    places: ObjectPlaces,
    config: ObjectConfig,
    limits: ImageLimits,
    workers: int,
    progress: Watcher | None,
) -> CheckReport:
    """The same for pictures with objects."""
    try:
        found = read_objects(places, config, limits, most=None)
    except AnnotationError as error:
        problem = Problem(error.kind, places.root, str(error), fatal=True)
        return CheckReport(source=name_of(source), problems=(problem,), images={}, classes={})
    pictures = pool_objects(found, None, limits)
    names = list(dict.fromkeys(name for annotated in pictures.values() for name in annotated.names))
    broken = [one for one in _each(partial(_examine, limits=limits), names, workers, progress) if one is not None]
    unreadable = {problem.path for problem in broken if problem.kind != "absurd-aspect"}
    items = [Item(split, name, "") for split, each in pictures.items() for name in each.names if name not in unreadable]
    masks = [problem for annotated in pictures.values() for problem in unfilled(annotated)]
    return CheckReport(
        source=name_of(source),
        problems=(*found.problems, *broken, *masks, *_leaks(same_content(items, apart=True))),
        images={split: len(annotated) for split, annotated in pictures.items()},
        classes=shown_by(found.classes, pictures.values()),
        notes=found.note,
    )


def _examine(name: str, limits: ImageLimits, data: bytes | DataError | None = None) -> Problem | None:
    """What is wrong with a file, or with the bytes that have this name."""
    try:
        if isinstance(data, DataError):
            raise data
        height, width = read_image(name if data is None else data, limits=limits, name=name).shape[1:]
    except ImageTooLarge as error:
        return Problem("too-large", name, str(error))
    except DataError as error:
        return Problem("unreadable", name, str(error))
    if max(height, width) < ABSURD_ASPECT * min(height, width):
        return None
    message = f"{name_of(name)}: {width} × {height} pixels, of which a model sees a sliver; crop or remove it"
    return Problem("absurd-aspect", name, message)


def _leaks(groups: Iterable[Sequence[Item]]) -> Iterator[Problem]:
    for copy in across(groups):
        message = (
            f"{name_of(copy.name)}: the same picture as {name_of(copy.other_name)} of {copy.other_split}; "
            f"remove one, or {copy.split} is judged on what was learned by heart"
        )
        yield Problem("duplicate-across-splits", copy.name, message)


def _contradictions(groups: Iterable[Sequence[Item]]) -> Iterator[Problem]:
    """Copies within one split that say they are something else than its first copy does."""
    for group in groups:
        first: dict[str, Item] = {}
        for item in group:
            before = first.setdefault(item.split, item)
            if item.label != before.label:
                message = (
                    f"{name_of(item.name)}: the same picture as {name_of(before.name)}, there called {before.label!r}, "
                    f"here {item.label!r}; keep the right one"
                )
                yield Problem("duplicate-other-label", item.name, message)
