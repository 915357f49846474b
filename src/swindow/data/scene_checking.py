"""What is wrong with pictures and their masks, one by one: in all of them for `check`, in some before training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from swindow.data.annotated import Annotated
from swindow.data.inventory import Problem
from swindow.data.layouts import Pair, SceneInventory
from swindow.data.legends import RGB, Legend
from swindow.data.masks import MaskConfig, MaskReader, SceneError, is_painted, stored_values, values_in
from swindow.data.object_checking import unusable
from swindow.data.scenes import FilePairs, Scenes, file_of, other_size
from swindow.data.seeds import uniforms
from swindow.data.segmentation import case_of_pair, volume_files
from swindow.data.sources import DataSource
from swindow.data.volume_files import IMAGE_KEYS, MASK_KEYS, read_header
from swindow.data.volumes import (
    VolumeFiles,
    VolumeSlices,
    measure,
    read_labels,
    read_pixels,
    suspect_axis,
    suspect_order,
)
from swindow.errors import DataError
from swindow.images import ImageLimits, ImageTooLarge, Stored, name_of, read_image, read_stored
from swindow.shapes import IGNORE

VOLUMES_FOR = 8  # a volume takes as long to look at as so many pictures, at least


@dataclass(frozen=True)
class Finding:
    """What was seen in one picture (or volume) and its mask."""

    problems: tuple[Problem, ...] = ()
    classes: tuple[int, ...] = ()
    """Indices of the classes that its mask holds."""
    palette: dict[int, RGB] = field(default_factory=dict)
    """The colours that a palette PNG gives to the values it holds."""


@dataclass(frozen=True)
class Examiner:
    """Looks at one pair after the other; can be sent to another process."""

    legend: Legend | None
    volumes: bool
    axis: int
    limits: ImageLimits
    intensity: tuple[float, float] | None = None

    def __call__(self, pair: Pair) -> Finding:
        """Everything that is wrong with one picture or volume and its mask."""
        return self.volume(volume_files(pair)) if self.volumes else self.picture(pair.image, pair.mask)

    def picture(self, image: str, mask: str) -> Finding:
        """Both files decoded: readable, of one size, with values of known classes."""
        problems: list[Problem] = []
        size = stored = None
        try:
            height, width = read_image(image, limits=self.limits, intensity=self.intensity).shape[1:]
            size = height, width
        except DataError as error:
            problems.append(_problem(error, image))
        try:
            stored = read_stored(mask, limits=self.limits)
            values = stored_values(stored, mask)
            mask_size = values.shape[0], values.shape[1]
            if size is not None and mask_size != size:
                raise other_size(mask, image, mask_size, size)
        except DataError as error:
            return Finding((*problems, _problem(error, mask)))
        if self.legend is None:
            if is_painted(values):
                message = (
                    f"{name_of(mask)}: is an RGB picture where class indices are due; save it as an index PNG, or "
                )
                message += "add a classes.txt with lines of: index name red green blue"
                problems.append(Problem("rgb-mask", mask, message, fatal=True))
            return Finding(tuple(problems))
        problems += _palette_problems(stored, values, self.legend, mask)
        try:
            classes = values_in(MaskReader(self.legend, self.limits).encode(values, mask))
        except DataError as error:
            return Finding((*problems, _problem(error, mask)))
        palette = _palette_of(stored, values) if not self.legend.painted else {}
        return Finding((*problems, *self._content(classes, mask)), tuple(c for c in classes if c != IGNORE), palette)

    def volume(self, files: VolumeFiles) -> Finding:
        """Headers first, then every voxel."""
        try:
            measure(files, self.axis, self.limits)
        except DataError as error:
            return Finding((_problem(error, files.images[0]),))
        problems: list[Problem] = []
        try:
            read_pixels(files, self.intensity, self.limits)
        except DataError as error:
            problems.append(_problem(error, files.images[0]))
        try:
            labels = read_labels(files.mask, self.limits)
            if self.legend is None:
                return Finding(tuple(problems))
            classes = values_in(MaskReader(self.legend, self.limits).indices(labels, files.mask))
        except DataError as error:
            return Finding((*problems, _problem(error, files.mask)))
        problems += _other_spacing(files, self.limits)
        return Finding((*problems, *self._content(classes, files.mask)), tuple(c for c in classes if c != IGNORE))

    def _content(self, classes: Sequence[int], mask: str) -> Iterator[Problem]:
        """Masks that are well-formed and yet say nothing."""
        counted = [index for index in classes if index != IGNORE]
        if not counted:
            message = f"{name_of(mask)}: every pixel is ignored; label some, or remove image and mask"
            yield Problem("all-ignore", mask, message)
        elif self.legend is not None and counted == [self.legend.background]:
            message = f"{name_of(mask)}: is all background; fine if nothing is there, else label it"
            yield Problem("empty-mask", mask, message)


def common_problems(findings: Sequence[tuple[str, Pair, Finding]], legend: Legend) -> list[Problem]:
    """What only many masks together show: palettes that differ, classes that no training mask holds."""
    problems: list[Problem] = []
    first: dict[int, tuple[RGB, str]] = {}
    for _, pair, finding in findings:
        for value, colour in finding.palette.items():
            before, file = first.setdefault(value, (colour, pair.mask))
            if before != colour:
                message = (
                    f"{name_of(pair.mask)}: its palette paints value {value} {colour}, that of {name_of(file)} "
                    f"{before}; if the palettes were made apart, one value means two classes: save them with one"
                )
                problems.append(Problem("palette", pair.mask, message))
                break
    trained = [finding for split, _, finding in findings if split not in ("val", "test")]
    held = {index for finding in trained for index in finding.classes}
    if held:
        for index, name in enumerate(legend.names):
            if index not in held:
                problems.append(_unused(name))
    return problems


def axis_problems(files: Iterable[tuple[str, str]], axis: int, limits: ImageLimits) -> Iterator[Problem]:
    """Volumes that all have square slices along another axis than the one they are cut along, or that differ in it."""
    by_name: dict[str, tuple[int, ...]] = {}
    for image, mask in files:
        try:
            by_name[image] = read_header(mask, MASK_KEYS, limits).shape
        except DataError:  # said of the file itself
            continue
    names, shapes = list(by_name), list(by_name.values())
    exchanged = suspect_order(by_name, axis)
    if exchanged is not None:
        odd, usual = exchanged
        message = (
            f"{name_of(odd)}: is {_sides(by_name[odd])} where {name_of(usual)} is {_sides(by_name[usual])}, so axis "
            f"{axis} cuts it along another side; if its axes are exchanged, save it as the others are"
        )
        yield Problem("axis-order", odd, message)
    better = suspect_axis(shapes, axis)
    if better is not None:
        message = (
            f"{name_of(names[0])}: a volume of {_sides(shapes[0])} is cut along axis {axis}, but along axis {better} "
            f"the slices of all {len(shapes):,} volumes would be square; if those are the slices, "
            f"give masks.axis {better}"
        )
        yield Problem("axis-order", names[0], message)


def _sides(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def case_problems(found: SceneInventory, config: MaskConfig) -> Iterator[Problem]:
    """Files without a case, and cases in two splits: what a model is judged on, it has learned from."""
    members: dict[str, tuple[str, str]] = {}
    told: set[tuple[str, str]] = set()
    for split, pairs in found.splits.items():
        for pair in pairs:
            try:
                case = case_of_pair(found, split, pair, config)
            except SceneError as error:
                yield Problem(error.kind, pair.image, str(error), fatal=True)
                continue
            before, other = members.setdefault(case, (split, pair.image))
            if before != split and (case, split) not in told:
                told.add((case, split))
                yield _leak(pair.image, split, case, other, before)


def sample_check(source: DataSource, *, most: int = 32, seed: int = 0) -> list[Problem]:
    """Look at up to `most` pictures of every split (an eighth as many volumes), spread over it and chosen by `seed`.

    Returns:
        what is wrong with them and does not stop training; cases in two splits are found among all pictures.

    Raises:
        DataError: a mask, volume or annotated picture that cannot be trained on, or training masks of which nothing
            counts.
    """
    problems: list[Problem] = []
    for split, scenes in source.splits().items():
        if isinstance(scenes, Annotated):
            problems += unusable(scenes, _spread(np.arange(len(scenes)), most, seed))
        if not isinstance(scenes, Scenes):
            continue
        findings = list(_sampled(scenes, most, seed))
        problems += [problem for finding in findings for problem in finding.problems]
        problems += _of_all(scenes, findings, split)
        if split == "train" and findings and all(_is_ignored(finding) for finding in findings):
            raise DataError(
                f"{name_of(source.source)}: every pixel of {len(findings):,} training masks looked at is ignored; see "
                f"masks.ignore_index and the table of classes"
            )
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        more = f" (and {len(fatal) - 1:,} more: `swindow data check` lists all)" if len(fatal) > 1 else ""
        raise DataError(fatal[0].message + more)
    return [*problems, *_leaks_between(source)]


def _of_all(scenes: Scenes, findings: Sequence[Finding], split: str) -> Iterator[Problem]:
    """What the files say together: classes that no training picture shows, volumes cut along the wrong axis."""
    reader = scenes.reader
    if isinstance(reader, VolumeSlices):
        volumes = {reader.place(int(row))[0] for row in scenes.rows}
        files = [(reader.volumes[volume].images[0], reader.volumes[volume].mask) for volume in sorted(volumes)]
        yield from axis_problems(files, reader.axis, reader.limits)
    elif split == "train" and len(findings) == len(scenes):
        held = {index for finding in findings for index in finding.classes}
        for index, name in enumerate(scenes.classes):
            if index not in held:
                yield _unused(name)


def _unused(name: str) -> Problem:
    message = f"class {name!r} has no pixel in the training masks; add some, or take it out of the classes"
    return Problem("unused-class", name, message)


def _is_ignored(finding: Finding) -> bool:
    return any(problem.kind == "all-ignore" for problem in finding.problems)


def _sampled(scenes: Scenes, most: int, seed: int) -> Iterator[Finding]:
    reader = scenes.reader
    if isinstance(reader, FilePairs):
        look = Examiner(reader.masks_reader.legend, False, 0, reader.limits, reader.intensity)
        for row in _spread(scenes.rows, most, seed):
            yield look.picture(reader.images[row], reader.masks[row])
    elif isinstance(reader, VolumeSlices):
        look = Examiner(reader.masks_reader.legend, True, reader.axis, reader.limits, reader.intensity)
        volumes = np.unique([reader.place(int(row))[0] for row in scenes.rows])
        for volume in _spread(volumes, max(1, most // VOLUMES_FOR), seed):
            yield look.volume(reader.volumes[volume])


def _spread(rows: np.ndarray, most: int, seed: int) -> list[int]:
    """Up to `most` of them, one out of each of as many equal parts."""
    count = min(most, len(rows))
    edges = np.linspace(0, len(rows), count + 1)
    draws = uniforms(np.asarray([seed & (2**64 - 1)], np.uint64), count)[0] if count else np.zeros(0)
    places = np.floor(edges[:-1] + draws * np.diff(edges)).astype(np.int64)
    return [int(row) for row in rows[np.minimum(places, len(rows) - 1)]]


def _leaks_between(source: DataSource) -> Iterator[Problem]:
    members: dict[str, tuple[str, str]] = {}
    told: set[tuple[str, str]] = set()
    for split, scenes in source.splits().items():
        if isinstance(scenes, Scenes):
            for case, name in zip(scenes.cases, scenes.names, strict=True):
                before, other = members.setdefault(case, (split, name))
                if before != split and (case, split) not in told:
                    told.add((case, split))
                    yield _leak(file_of(name), split, case, file_of(other), before)


def _leak(image: str, split: str, case: str, other: str, other_split: str) -> Problem:
    message = (
        f"{name_of(image)}: case {case!r} of {split} is also in {other_split} ({name_of(other)}); keep each case in "
        f"one split, or {split} is judged on what was learned by heart"
    )
    return Problem("case-across-splits", image, message)


def _problem(error: DataError, path: str) -> Problem:
    """An error as a problem; a file that cannot be read at all is met only when it is read."""
    if isinstance(error, SceneError):
        return Problem(error.kind, path, str(error), fatal=True)
    return Problem("too-large" if isinstance(error, ImageTooLarge) else "unreadable", path, str(error))


def _palette_of(stored: Stored, values: np.ndarray) -> dict[int, RGB]:
    """The colour of each value that a palette PNG holds; nothing where the palette is a ramp of greys: it says none."""
    if stored.palette is None:
        return {}
    colours = {value: _rgb(stored.palette, value) for value in values_in(values)}
    if all(red == green == blue for red, green, blue in colours.values()):
        return {}
    return colours


def _rgb(palette: np.ndarray, value: int) -> RGB:
    """The colour of a value; those beyond a short palette are black."""
    red, green, blue = palette[value].tolist() if value < len(palette) else (0, 0, 0)
    return red, green, blue


def _palette_problems(stored: Stored, values: np.ndarray, legend: Legend, mask: str) -> Iterable[Problem]:
    """A palette that says something else than the table of classes: one of the two is wrong about this file."""
    if not legend.painted:
        return
    expected = dict(zip(legend.ids, legend.colours, strict=True))
    names = dict(zip(legend.colours, legend.names, strict=True))
    for value, colour in _palette_of(stored, values).items():
        if value in expected and colour != expected[value]:
            meant = names.get(colour)
            says = f"the colour of {meant!r}" if meant else "the colour of no class"
            right = legend.names[legend.ids.index(value)]
            message = (
                f"{name_of(mask)}: its palette paints value {value} {colour}, {says}; {legend.source} says {right!r} "
                f"{expected[value]}; renumber the mask, or save it with the right palette"
            )
            yield Problem("palette", mask, message, fatal=meant is not None)
            return


def _other_spacing(files: VolumeFiles, limits: ImageLimits) -> Iterator[Problem]:
    image = read_header(files.images[0], IMAGE_KEYS, limits).spacing
    label = read_header(files.mask, MASK_KEYS, limits).spacing
    if image and label and not np.allclose(image, label, rtol=0.01):
        shown = " and ".join(" × ".join(f"{step:g}" for step in steps) for steps in (image, label))
        message = (
            f"{name_of(files.mask)}: image and label have voxels of {shown} mm; make sure that they belong together"
        )
        yield Problem("other-spacing", files.mask, message)
