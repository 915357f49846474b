"""What is written about segmented images: index masks, overlays with a legend, rows, a sheet."""

import collections
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w
from PIL import Image

from swindow import sheets
from swindow.checkpoints.files import write_atomic
from swindow.data.legends import RGB
from swindow.data.volume_files import VOLUME_SUFFIXES, volume_stem, volume_suffix
from swindow.errors import ConfigError
from swindow.overlays import background_of, legend, overlay, thinned, with_legend
from swindow.predict.answers import Covered, Failure, Segmentation
from swindow.predict.drafts import LINES, OURS, OVERLAYS, SHEET_MOST, TABLE, draft, free_name
from swindow.predict.pixels import Labelled
from swindow.predict.volumes import Volume, write_labels
from swindow.rasters import InMemory, Raster
from swindow.sheets import clean

MASKS, LEGEND = "masks", "classes.toml"
SEEN_SIDE, OVERLAY_SIDE = 480, 1600
"""Longest side of an overlay in pixels: smaller pictures are enlarged, larger ones reduced. Masks stay as large."""
SLICE_SIDE, TILE_SIDE = 160, 220
MOST_SLICES = 20
_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


class Target(NamedTuple):
    """A picture or volume (its files, one a channel) and where its mask and overlay go."""

    sources: tuple[Path, ...]
    mask: Path
    overlay: Path


class Tally:
    """What is kept of the answers that go by."""

    def __init__(self) -> None:
        self.classes: collections.Counter[str] = collections.Counter()
        self.failures: list[Failure] = []
        self.first: list[Covered | Failure] = []
        self.tiles: list[sheets.Tile] = []

    def add(self, answer: Covered | Failure, tile: sheets.Tile | None) -> None:
        if isinstance(answer, Failure):
            self.failures.append(answer)
        else:
            self.classes.update(name for name, share in answer.coverage.items() if share)
        if len(self.first) < SHEET_MOST:
            self.first.append(answer)
            self.tiles += [] if tile is None else [tile]


def targets(groups: Sequence[tuple[Path, ...]], out: Path) -> list[Target]:
    """Names for all that will be written: the source's stem, with a number where that is taken.

    Raises:
        ConfigError: a mask would replace a file that was not written by a call like this.
    """
    taken: set[str] = set()
    found = []
    for sources in groups:
        first = sources[0]
        volume = volume_suffix(first)
        stem = free_name(volume_stem(first) if volume else first.stem, taken)
        picture = ".jpg" if first.suffix.lower() in _JPEG else ".png"
        found.append(Target(sources, out / MASKS / f"{stem}.png", out / OVERLAYS / f"{stem}{picture}"))
    names = [out / LEGEND] if found else []
    for target in found:
        start = target.mask.with_suffix("")
        names += [*(Path(f"{start}{suffix}") for suffix in (".png", *VOLUME_SUFFIXES)), target.overlay]
    clash = None if are_ours(out) else next((path for path in names if path.exists()), None)
    if clash is not None:
        raise ConfigError(f"{clash}: is there already, and no prediction of before; give another --out")
    return found


def are_ours(out: Path) -> bool:
    """Whether the masks in `out`, if there are any, are from an earlier call."""
    return (out / MASKS / OURS).exists()


def write_all(
    found: Iterable[tuple[Target, Labelled, Segmentation | Failure]],
    out: Path,
    classes: Sequence[str],
    colours: Sequence[RGB],
) -> Tally:
    """Mask and overlay of each answer as it comes, and its row in both files, which take their names at the end."""
    tally = Tally()
    for folder in (MASKS, OVERLAYS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / MASKS / OURS).write_text("Masks here were written by swindow predict, and are replaced by it.\n")
    write_atomic(out / LEGEND, legend_toml(classes, colours))
    with draft(out / LINES) as lines, draft(out / TABLE) as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["source", "error", "depth", "height", "width", "mask", "overlay", *_columns(classes)])
        for target, labelled, answer in found:
            done, tile = _kept(target, labelled, answer, wanted=len(tally.first) < SHEET_MOST)
            lines.write(json.dumps(_record(done, out), ensure_ascii=False) + "\n")
            writer.writerow(_row(done, out, len(classes)))
            tally.add(done, tile)
    return tally


def contact_sheet(tally: Tally, count: int, classes: Sequence[str], colours: Sequence[RGB]) -> bytes:
    """The first overlays as a PNG, with what covers most under each, and a legend."""
    rest = count - len(tally.tiles)
    footer = f"the first {len(tally.tiles)} of {count} images; {rest} more in {TABLE}" if rest else ""
    there = [place for place, name in enumerate(classes) if tally.classes[name]]

    def key(width: int) -> Image.Image:
        return legend([classes[i] for i in there], [colours[i] for i in there], width=width)

    content = io.BytesIO()
    sheets.sheet(tally.tiles, side=TILE_SIDE, footer=footer, key=key if there else None).save(content, "PNG")
    return content.getvalue()


def legend_toml(classes: Sequence[str], colours: Sequence[RGB]) -> str:
    """Which index is which class, as `swindow train` reads it beside folders of images and masks."""
    entries = [
        {"id": k, "name": name} | ({"colour": list(colours[k])} if len({*colours}) == len(colours) else {})
        for k, name in enumerate(classes)
    ]
    return tomli_w.dumps({"class": entries})


def index_png(mask: np.ndarray, colours: Sequence[RGB]) -> bytes:
    """Class indices as a PNG: with a palette of the classes' colours up to 256 classes, else grey of 16 bits."""
    content = io.BytesIO()
    if len(colours) > 256:
        Image.fromarray(mask.astype(np.uint16)).save(content, "PNG")
        return content.getvalue()
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(content, "PNG")
    return content.getvalue()


def _kept(
    target: Target, labelled: Labelled, answer: Segmentation | Failure, *, wanted: bool
) -> tuple[Covered | Failure, sheets.Tile | None]:
    """An answer in its files; and its picture for the sheet, if that is wanted."""
    name = target.sources[0].name
    if isinstance(answer, Failure) or labelled.content is None:
        assert isinstance(answer, Failure)  # noqa: S101 - what was not opened has no answer
        return answer, sheets.Tile(None, "cannot be used", name) if wanted else None
    if isinstance(labelled.content, Volume):
        done, picture = _write_volume(target, labelled.content, answer, wanted)
    else:
        done, picture = _write_picture(target, labelled.content, answer, wanted)
    return done, None if picture is None else sheets.Tile(picture, _most(done), name)


def _write_picture(
    target: Target, raster: Raster, answer: Segmentation, wanted: bool
) -> tuple[Covered, Image.Image | None]:
    write_atomic(target.mask, index_png(answer.mask, answer.colours))
    coverage = answer.coverage()
    small, labels = thinned(raster, answer.mask, OVERLAY_SIDE)
    side = max(small.height, small.width, SEEN_SIDE)
    _save(_explained(_drawn(small, labels, answer, side), answer, coverage, target.sources[0].name), target.overlay)
    size = (raster.height, raster.width)
    done = Covered(source=answer.source, size=size, coverage=coverage, mask=target.mask, overlay=target.overlay)
    return done, _drawn(small, labels, answer, TILE_SIDE) if wanted else None


def _write_volume(
    target: Target, volume: Volume, answer: Segmentation, wanted: bool
) -> tuple[Covered, Image.Image | None]:
    source = target.sources[0]
    mask = target.mask.with_name(target.mask.stem + volume_suffix(source))
    write_labels(mask, answer.mask, source, answer.spacing)
    coverage = answer.coverage()
    slices = np.moveaxis(answer.mask, answer.axis, 0)
    filled = _filled(slices, background_of(answer.classes))

    def drawn(index: int, side: int) -> Image.Image:
        return _drawn(InMemory(volume.read(index)), np.ascontiguousarray(slices[index]), answer, side)

    tiles = [sheets.Tile(drawn(index, SLICE_SIDE), f"slice {index}") for index in _shown(filled)]
    montage = sheets.sheet(tiles, side=SLICE_SIDE, heading=source.name, key=lambda width: _key(answer, coverage, width))
    _save(montage, target.overlay)
    done = Covered(
        source=answer.source,
        size=answer.mask.shape,
        coverage=coverage,
        mask=mask,
        overlay=target.overlay,
        millilitres=_millilitres(answer, coverage),
    )
    return done, drawn(int(filled.argmax()), TILE_SIDE) if wanted else None


def _drawn(raster: Raster, labels: np.ndarray, answer: Segmentation, side: int) -> Image.Image:
    return overlay(raster, labels, answer.colours, side=side, background=background_of(answer.classes))


def _millilitres(answer: Segmentation, coverage: dict[str, float]) -> dict[str, float] | None:
    if answer.spacing is None:
        return None
    whole, background = answer.mask.size * math.prod(answer.spacing) / 1000, background_of(answer.classes)
    return {name: share * whole for k, (name, share) in enumerate(coverage.items()) if k != background}


def _explained(drawn: Image.Image, answer: Segmentation, coverage: dict[str, float], title: str) -> Image.Image:
    return with_legend(drawn, _key(answer, coverage, max(drawn.width, 320)), title=title)


def _key(answer: Segmentation, coverage: dict[str, float], width: int) -> Image.Image:
    return legend(answer.classes, answer.colours, [*coverage.values()], width=width)


def _save(picture: Image.Image, path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, "JPEG" if path.suffix == ".jpg" else "PNG", quality=90)
    write_atomic(path, content.getvalue())


def _shown(filled: np.ndarray) -> Iterator[int]:
    """At most twenty slices, evenly spaced through those that hold an object (or through all, if none does)."""
    there = np.flatnonzero(filled)
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, len(filled) - 1)
    count = min(MOST_SLICES, last - first + 1)
    yield from (first + round(place * (last - first) / max(count - 1, 1)) for place in range(count))


def _filled(slices: np.ndarray, background: int | None) -> np.ndarray:
    """Voxels of each slice that are of an object; all, where no class is the background."""
    if background is None:
        return np.full(len(slices), slices[0].size)
    return np.array([np.count_nonzero(labels != background) for labels in slices])


def _most(done: Covered) -> str:
    """What covers most, the background left out where there is more to say."""
    background = background_of([*done.coverage])
    shares = [pair for k, pair in enumerate(done.coverage.items()) if k != background and pair[1] > 0]
    best = sorted(shares, key=lambda pair: -pair[1])[:2] or done.top(1)
    return ", ".join(f"{clean(name)} {share:.1%}" for name, share in best)


def _columns(classes: Sequence[str]) -> list[str]:
    return [f"share of {name}" for name in classes]


def _record(done: Covered | Failure, out: Path) -> dict[str, Any]:
    if isinstance(done, Failure):
        return {"source": done.source, "error": done.error}
    names = ("depth", "height", "width")[-len(done.size) :]
    record: dict[str, Any] = {
        "source": done.source,
        "size": dict(zip(names, done.size, strict=True)),
        "coverage": {name: round(share, 6) for name, share in done.coverage.items()},
        "files": {"mask": _within(done.mask, out), "overlay": _within(done.overlay, out)},
    }
    if done.millilitres is not None:
        record["millilitres"] = {name: round(volume, 4) for name, volume in done.millilitres.items()}
    return record


def _row(done: Covered | Failure, out: Path, classes: int) -> list[Any]:
    if isinstance(done, Failure):
        return [done.source, done.error, *[""] * (5 + classes)]
    size = ["", *done.size][-3:]
    shares = [f"{share:.6f}" for share in done.coverage.values()]
    return [done.source, "", *size, _within(done.mask, out), _within(done.overlay, out), *shares]


def _within(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()
