"""From a layout to `Scenes`: which classes there are, how large pictures are, which case each belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from swindow.data.inventory import POOL
from swindow.data.known_layouts import LAYOUTS, find_layout
from swindow.data.layouts import EXAMPLE, Pair, SceneInventory
from swindow.data.legends import Legend, find_legend, legend_of_model, legend_of_values
from swindow.data.masks import MaskConfig, SceneError, case_of, is_painted, stored_values, values_in
from swindow.data.scenes import FilePairs, Scenes
from swindow.data.volume_files import volume_stem
from swindow.data.volumes import VolumeFiles, VolumeSlices, measure, read_labels
from swindow.errors import DataError
from swindow.images import ImageLimits, name_of, probe_image, read_stored

MOST_SCANNED = {True: 50, False: 500}  # volumes, mask files: looked into where no table says which classes there are
PROBES = 64
MEDICAL = frozenset({"volumes"})


@dataclass(frozen=True)
class Pool:
    """Everything at a source as one `Scenes`, and which of it is in which split."""

    scenes: Scenes
    splits: dict[str, np.ndarray]
    """Places in `scenes`, by split."""
    size: tuple[int, int]
    """Height and width of a typical picture (their medians)."""
    channels: int
    """Most channels of a picture, by the headers of some."""
    note: str
    """What was taken for granted, to be said aloud."""


def find_scenes(source: str | Path, *, task: str = "auto") -> SceneInventory | None:
    """What pictures with masks there are at `source`, problems included; None where it is no such source.

    ``ade20k:PATH``, ``cityscapes:PATH``, ``voc:PATH``, ``volumes:PATH`` and ``masks:PATH`` say which layout it is.

    Raises:
        DataError: `source` says that it is one, or `task` does, and it is none.
    """
    prefix, colon, rest = str(source).partition(":")
    read = LAYOUTS.get(prefix.lower()) if colon else None
    root = Path(rest if read else source)
    if task == "classify":
        return None
    if not root.is_dir():
        if read is None and task != "segment":
            return None
        raise DataError(f"{name_of(root)}: no such folder; give one of images and masks: {EXAMPLE}")
    found = read(root) if read else find_layout(root)
    if found is None and (read or task == "segment"):
        layout = prefix.lower() if read else "any known layout of images and masks"
        raise DataError(f"{name_of(root)}: is not laid out as {layout}; lay it out as {EXAMPLE}")
    return found


def volume_files(pair: Pair) -> VolumeFiles:
    """The files of one volume."""
    return VolumeFiles((pair.image, *pair.more), pair.mask)


def pool_scenes(
    found: SceneInventory,
    config: MaskConfig,
    channels: int | None,
    limits: ImageLimits,
    classes: Sequence[str] | None = None,
) -> Pool:
    """All pictures of an inventory, ready to be read; `classes` are those of a model that is to be judged on them.

    Raises:
        DataError: volumes, masks or tables that cannot be understood; the message names the file.
    """
    legend, note = choose_legend(found, config, limits, classes=classes)
    pairs = [(split, pair) for split, pairs in found.splits.items() for pair in pairs]
    if not pairs:
        raise DataError(f"{name_of(found.root)}: there is no image with a mask; add some")
    make = _volumes if found.volumes else _pictures
    return make(found, pairs, legend, config, channels, limits, note)


def choose_legend(
    found: SceneInventory,
    config: MaskConfig,
    limits: ImageLimits,
    *,
    lenient: bool = False,
    classes: Sequence[str] | None = None,
) -> tuple[Legend, str]:
    """The classes, by the source's table, else its layout, else the values in its masks; and what was assumed.

    Values are those of a model's `classes`, where these are given and could be meant.

    ``lenient`` passes over masks that cannot be read: whoever asks reads them all again and says what is wrong.

    Raises:
        DataError: no table, and masks that do not say which classes there are.
    """
    reduce = found.reduce_zero_label if config.reduce_zero_label is None else config.reduce_zero_label
    legend, note = find_legend(Path(found.root), config.ignore_index) or found.legend, ""
    if legend is None:
        values = _values(found, limits, lenient)
        legend = legend_of_model(values, classes, config.ignore_index) if classes else None
        if legend is None:
            legend = legend_of_values(values, config.ignore_index, volumes=found.volumes, where=name_of(found.root))
        note = f"no table of classes: {len(legend)} by the masks' values"
        if legend.ids == (0, 255):
            note = "masks of only 0 and 255: 255 is the object, nothing is ignored"
    elif found.volumes and legend.background is None and 0 in legend.ids:
        legend = replace(legend, background=legend.ids.index(0))
    if reduce:
        legend = legend.without_zero()
        note = "; ".join(filter(None, (note, "value 0 is ignored")))
    return legend, note


def case_of_pair(found: SceneInventory, split: str, pair: Pair, config: MaskConfig) -> str:
    """The case of a picture or volume; by default itself. Pictures of one name in two splits are two, volumes one.

    Raises:
        SceneError: the pattern is not in its name.
    """
    if found.volumes:
        return case_of(volume_stem(pair.image), config, pair.image, pair.key)
    return case_of(Path(pair.image).stem, config, pair.image, f"{split}/{pair.key}" if split != POOL else pair.key)


def _values(found: SceneInventory, limits: ImageLimits, lenient: bool) -> set[int]:
    """The values in the masks: of all of them, or of some spread evenly over very many."""
    masks = [pair.mask for pairs in found.splits.values() for pair in pairs]
    values: set[int] = set()
    for place in (
        np.unique(np.linspace(0, len(masks) - 1, MOST_SCANNED[found.volumes]).round().astype(int)) if masks else ()
    ):
        try:
            values.update(_values_of(masks[place], found.volumes, limits))
        except DataError:
            if not lenient:
                raise
    if min(values, default=0) < 0:
        raise DataError(f"{name_of(found.root)}: the masks hold negative values ({min(values)}); save them from 0 on")
    return values


def _values_of(path: str, volumes: bool, limits: ImageLimits) -> list[int]:
    if volumes:
        return values_in(read_labels(path, limits))
    values = stored_values(read_stored(path, limits=limits), path)
    if is_painted(values):
        raise SceneError(
            f"{name_of(path)}: is an RGB picture, and no table says which colours are which classes; save masks as "
            f"index PNG, or add a classes.txt with lines of: index name red green blue",
            "rgb-mask",
        )
    return values_in(values)


def _pictures(
    found: SceneInventory,
    pairs: Sequence[tuple[str, Pair]],
    legend: Legend,
    config: MaskConfig,
    channels: int | None,
    limits: ImageLimits,
    note: str,
) -> Pool:
    images = [pair.image for _, pair in pairs]
    guessed, size = _typical(images, limits)
    reader = FilePairs(images, [pair.mask for _, pair in pairs], legend, limits, config.intensity)
    cases = [case_of_pair(found, split, pair, config) for split, pair in pairs]
    scenes = _scenes(images, cases, legend, channels or guessed, limits, reader)
    return Pool(scenes, _places([split for split, _ in pairs]), size, guessed, note)


def _volumes(
    found: SceneInventory,
    pairs: Sequence[tuple[str, Pair]],
    legend: Legend,
    config: MaskConfig,
    channels: int | None,
    limits: ImageLimits,
    note: str,
) -> Pool:
    files = [volume_files(pair) for _, pair in pairs]
    shapes = [measure(volume, config.axis, limits) for volume in files]
    cases = [case_of_pair(found, split, pair, config) for split, pair in pairs]
    names, each, splits = [], [], []
    for (split, pair), shape, case in zip(pairs, shapes, cases, strict=True):
        names += [pair.image] if shape.flat else [f"{pair.image}[{number}]" for number in range(shape.slices)]
        each += [case] * shape.slices
        splits += [split] * shape.slices
    most = max(shape.channels for shape in shapes)
    intensity = config.intensity
    reader = VolumeSlices(files, shapes, legend, axis=config.axis, limits=limits, intensity=intensity)
    scenes = _scenes(names, each, legend, channels or most, limits, reader)
    spacings = {case: shape.spacing for case, shape in zip(cases, shapes, strict=True) if shape.spacing}
    scenes = replace(scenes, spacings=spacings)
    size = int(np.median([shape.height for shape in shapes])), int(np.median([shape.width for shape in shapes]))
    return Pool(scenes, _places(splits), size, most, note)


def _scenes(
    names: list[str],
    cases: Sequence[str],
    legend: Legend,
    channels: int,
    limits: ImageLimits,
    reader: FilePairs | VolumeSlices,
) -> Scenes:
    return Scenes(
        names=names,
        classes=legend.names,
        channels=channels,
        colours=legend.colours,
        cases=tuple(cases),
        background=legend.background,
        limits=limits,
        reader=reader,
        rows=np.arange(len(names)),
    )


def _places(splits: Sequence[str]) -> dict[str, np.ndarray]:
    names = np.asarray(splits)
    return {split: np.flatnonzero(names == split) for split in dict.fromkeys(splits)}


def _typical(images: Sequence[str], limits: ImageLimits) -> tuple[int, tuple[int, int]]:
    """Channels and median size, by the headers of some images spread evenly over all."""
    headers, problem = [], None
    for place in np.unique(np.linspace(0, len(images) - 1, PROBES).round().astype(int)):
        try:
            headers.append(probe_image(images[place], limits=limits))
        except DataError as error:
            problem = problem or error
    if not headers and problem is not None:
        raise problem
    height, width = (int(np.median([getattr(header, side) for header in headers])) for side in ("height", "width"))
    return max(header.channels for header in headers), (height, width)
