"""Shards written from any data to classify: the same bytes for the same images, seed and settings."""

import dataclasses
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swindow.data.labelled import Images
from swindow.data.seeds import epoch_order
from swindow.data.shards.index import INDEX, UNFINISHED, Index, ShardFile, SplitIndex, index_bytes
from swindow.data.shards.parquets import open_writer, write_group
from swindow.data.shards.stores import Store, store_at
from swindow.data.shards.tars import TarShard, weight
from swindow.data.sources import DataSource
from swindow.errors import ConfigError, DataError
from swindow.images import name_of, probe_image
from swindow.preprocess import Preprocess
from swindow.progress import Progress, counting

GROUP = 64  # images of a row group: what is read for one of them
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"}
READ_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How shards are written."""

    format: Literal["tar", "parquet"] = "tar"
    """tar as WebDataset reads it, or Parquet as Hugging Face has images."""
    shard_mb: float = 256.0
    """Megabytes (10⁶ bytes) of a shard, about."""
    seed: int = 0
    """Of the order in which images lie in their shards."""
    size: int = 0
    """Longest that the short side of an image may be, in pixels; larger ones are made smaller and encoded anew as JPEG.
    0 keeps every file's bytes as they are."""
    quality: int = 90
    """Of JPEGs that are encoded anew, 1..100."""
    max_bad: int = 0
    """Images that cannot be read to leave out before giving up; 0 stops at the first."""

    def __post_init__(self) -> None:
        if self.format not in ("tar", "parquet"):
            raise ConfigError(f"format {self.format!r} is not one of tar, parquet")
        if self.shard_mb <= 0:
            raise ConfigError(f"shard_mb is {self.shard_mb}; it must be above 0")
        if self.size < 0 or self.max_bad < 0:
            raise ConfigError(f"size {self.size} and max_bad {self.max_bad} must not be negative")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}; it lies in 1..100")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was written."""

    out: str
    samples: dict[str, int]
    """By split."""
    shards: dict[str, int]
    bytes: int
    bad: tuple[str, ...]
    """One line for each image that was left out."""

    def text(self) -> str:
        """The report as lines."""
        parts = [f"{split} {count:,} images in {self.shards[split]:,} shards" for split, count in self.samples.items()]
        lines = [f"left out: {line}" for line in self.bad]
        return "\n".join([*lines, f"{self.out}: {', '.join(parts)}, {self.bytes / 1e6:,.1f} MB"])


@dataclasses.dataclass
class _Sample:
    key: str
    suffix: str
    data: bytes
    label: int


def pack(source: DataSource, out: str | Path, config: PackConfig, *, progress: Progress) -> PackReport:
    """Write every split of `source` as shards at `out`, a folder or a URL that fsspec knows, and an index beside them.

    The index comes last. Until then a file named ``unfinished.json`` is there, and nobody takes the shards for whole;
    the same call writes them anew, over what there was.

    Raises:
        ConfigError: the data is to segment or detect, or there is something else at `out`.
        DataError: an image that cannot be read, more of them than allowed, or a place that cannot be written to.
    """
    if source.task != "classify":
        raise ConfigError(f"{source.source} is data to {source.task}; shards hold images with one label each")
    store = store_at(out)
    plan = json.dumps({"source": source.source, **dataclasses.asdict(config)}, sort_keys=True).encode()
    _refuse_other(store, plan)
    with tempfile.TemporaryDirectory(prefix="swindow-pack-") as folder:
        work = _Work(source, store, config, Path(folder), progress)
        work.put(UNFINISHED, plan)
        splits = {split: work.split(split, images) for split, images in source.splits().items()}
        size = source.image_size if not config.size else _scaled(source.image_size, config.size)
        index = Index(format=config.format, classes=source.classes, channels=source.channels, size=size, splits=splits)
        for name, data in index_bytes(index).items():
            work.put(name, data)
        store.remove(UNFINISHED)
    shards = {split: part.shards for split, part in splits.items()}
    return PackReport(
        out=store.place(""),
        samples={split: sum(shard.samples for shard in each) for split, each in shards.items()},
        shards={split: len(each) for split, each in shards.items()},
        bytes=sum(shard.bytes for each in shards.values() for shard in each),
        bad=tuple(work.bad),
    )


def _refuse_other(store: Store, plan: bytes) -> None:
    """Stop before something is written over."""
    there = store.sizes()
    if UNFINISHED in there and INDEX not in there:
        if store.read(UNFINISHED) != plan:
            raise ConfigError(
                f"{store.place('')}: another pack was interrupted here; give that one again, or empty the place"
            )
        return
    if there:
        raise ConfigError(f"{store.place('')}: is not empty (it has {next(iter(there))}); name another place")


class _Work:
    """One pack: what is read, where it goes, and what was left out so far."""

    def __init__(self, source: DataSource, store: Store, config: PackConfig, folder: Path, progress: Progress) -> None:
        self.source, self.store, self.config, self.folder, self.progress = source, store, config, folder, progress
        self.bad: list[str] = []

    def put(self, name: str, data: bytes) -> None:
        """Write a small file."""
        path = self.folder / "small"
        path.write_bytes(data)
        self.store.put(path, name)

    def split(self, name: str, images: Any) -> SplitIndex:
        """Write one split's shards."""
        shards: list[ShardFile] = []
        columns: dict[str, list[Any]] = {key: [] for key in ("offset", "size", "label", "digest", "key")}
        with counting(self.progress, f"pack {name}", len(images)):
            for samples in _shards(self._samples(images), self.config.shard_mb * 1e6):
                shard = f"{name}-{len(shards):06d}.{self.config.format}"
                write = _write_tar if self.config.format == "tar" else _write_parquet
                path = self.folder / "shard"
                offsets, groups = write(path, samples, self.source.classes)
                self.store.put(path, shard)
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                shards.append(
                    ShardFile(
                        name=shard, bytes=path.stat().st_size, sha256=digest, samples=len(samples), groups=tuple(groups)
                    )
                )
                for sample, offset in zip(samples, offsets, strict=True):
                    values = (offset, len(sample.data), sample.label, _digest(sample.data), _member(sample))
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
        if not shards:
            raise DataError(f"{self.source.source}: not one image of {name} can be read")
        kept = columns if self.config.format == "tar" else {key: columns[key] for key in ("label", "digest", "key")}
        return SplitIndex(shards=tuple(shards), columns=kept)

    def _samples(self, images: Images) -> Iterator[_Sample]:
        """Images in random order, each decoded once to be sure that it can be."""
        order = epoch_order(len(images), self.config.seed, 0).tolist()
        for start in range(0, len(order), READ_AT_ONCE):
            indices = order[start : start + READ_AT_ONCE]
            sources = [None] * len(indices) if images.pixels is not None else images.sources(indices)
            for number, (index, found) in enumerate(zip(indices, sources, strict=True), start=start):
                try:
                    data = self._encoded(images, index, found)
                except DataError as error:
                    self._leave_out(error)
                else:
                    suffix = SUFFIXES[probe_image(data, limits=images.limits).format]
                    yield _Sample(f"{number:08d}{_stem(images.names[index])}", suffix, data, int(images.labels[index]))
                self.progress.advance()

    def _encoded(self, images: Images, index: int, found: Any) -> bytes:
        """The bytes of one image as they will be in the shard."""
        if images.pixels is not None:
            pixels = images.read(index)
            return _png(pixels) if not self.config.size else self._smaller(pixels)
        pixels = images.decoded(found, index)
        if self.config.size and min(pixels.shape[-2:]) > self.config.size:
            return self._smaller(pixels)
        try:
            return found if isinstance(found, bytes) else Path(found).read_bytes()
        except OSError as error:
            raise DataError(f"{name_of(found)}: cannot be read ({error.strerror}); repair or remove it") from error

    def _smaller(self, pixels: Tensor) -> bytes:
        channels = pixels.shape[0]
        side = min(self.config.size, *pixels.shape[-2:])
        smaller = Preprocess(size=(side, side), mean=(0.5,) * channels, std=(1.0,) * channels, fit="short")
        stream = io.BytesIO()
        _picture(smaller.resize(pixels)).save(stream, "JPEG", quality=self.config.quality)
        return stream.getvalue()

    def _leave_out(self, error: DataError) -> None:
        self.bad.append(str(error))
        if len(self.bad) > self.config.max_bad:
            allowed = f" (left out {len(self.bad):,} images, {self.config.max_bad:,} allowed: --max-bad)"
            raise DataError(str(error) + (allowed if self.config.max_bad else "")) from error


def _shards(samples: Iterator[_Sample], most: float) -> Iterator[list[_Sample]]:
    """Samples of one shard after another, each about `most` bytes."""
    held: list[_Sample] = []
    size = 0
    for sample in samples:
        more = weight(len(sample.data), str(sample.label))
        if held and size + more > most:
            yield held
            held, size = [], 0
        held.append(sample)
        size += more
    if held:
        yield held


def _write_tar(path: Path, samples: Sequence[_Sample], classes: Sequence[str]) -> tuple[list[int], list[int]]:
    offsets = []
    with path.open("wb") as stream:
        shard = TarShard(stream.write)
        for sample in samples:
            offsets.append(shard.member(_member(sample), sample.data))
            shard.member(f"{sample.key}.cls", str(sample.label).encode())
        shard.close()
    return offsets, []


def _write_parquet(path: Path, samples: Sequence[_Sample], classes: Sequence[str]) -> tuple[list[int], list[int]]:
    groups = [list(samples[start : start + GROUP]) for start in range(0, len(samples), GROUP)]
    with open_writer(str(path), classes) as writer:
        for group in groups:
            write_group(writer, [(_member(sample), sample.data, sample.label) for sample in group])
    return [0] * len(samples), [len(group) for group in groups]


def _member(sample: _Sample) -> str:
    return f"{sample.key}.{sample.suffix}"


def _stem(name: str) -> str:
    """The part of a file's name that goes into its key: letters, digits and dashes, without a dot."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", PurePosixPath(name.replace("\\", "/")).stem).strip("_")[:60]
    return f"_{plain}" if plain else ""


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _png(pixels: Tensor) -> bytes:
    stream = io.BytesIO()
    _picture(pixels).save(stream, "PNG")
    return stream.getvalue()


def _picture(pixels: Tensor) -> Image.Image:
    if pixels.shape[0] not in (1, 3):
        raise DataError(f"images of {pixels.shape[0]} channels have no file format here; shards hold grey and RGB")
    values = pixels.permute(1, 2, 0).contiguous().to(torch.uint8).numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else np.ascontiguousarray(values))


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Height and width of a typical image, its short side at most `short`."""
    scale = min(short / min(size), 1.0)
    return round(size[0] * scale), round(size[1] * scale)
