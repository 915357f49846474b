"""Volumes to predict: read without a label, cut into slices, and their labels written back as they came."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from swindow.data.volume_files import (
    IMAGE_KEYS,
    Spacing,
    read_array,
    read_header,
    read_spacing,
    volume_stem,
    volume_suffix,
)
from swindow.data.volumes import eight_bits
from swindow.errors import ConfigError, DataError, require
from swindow.images import ImageLimits, name_of, read_image
from swindow.rasters import InMemory, Raster, open_raster

_CHANNEL = re.compile(r"^(.*)_(\d{4})$")


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """The slices of a volume, along the axis that the model was trained on."""

    name: str
    slices: np.ndarray
    """uint8 ``slices h w C``."""
    channels: int
    axis: int
    """Along which it was cut."""
    spacing: Spacing | None
    """Millimetres along the axes of the file."""

    def __len__(self) -> int:
        return len(self.slices)

    def read(self, index: int) -> UInt8[Tensor, "C h w"]:
        """One slice.

        Raises:
            DataError: other channels than the model takes.
        """
        try:
            return read_image(self.slices[index], channels=self.channels)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error


class Reading(NamedTuple):
    """How files are read for a model."""

    channels: int
    limits: ImageLimits
    intensity: tuple[float, float] | None
    axis: int


def open_picture(path: str | Path, how: Reading) -> Raster | Volume:
    """A picture to be read by windows, or a volume.

    An array of two axes is a picture, and so is one of three whose last has the model's channels; others are volumes.
    Values of more than 8 bits are mapped as in training: from the model's `intensity`, else from a file's full range,
    or the percentiles 0.5 and 99.5 of an array.

    Raises:
        DataError: it cannot be used; the message names it.
    """
    suffix = volume_suffix(path)
    if not suffix:
        return open_raster(path, channels=how.channels, limits=how.limits, intensity=how.intensity)
    header = read_header(path, IMAGE_KEYS, how.limits)
    shape = header.shape
    if not 2 <= len(shape) <= 4:
        raise DataError(
            f"{name_of(path)}: an array of {len(shape)} axes is neither a picture nor a volume; give 2 to 4"
        )
    if suffix.startswith(".nii") or len(shape) == 4 or (len(shape) == 3 and shape[-1] != how.channels):
        return read_volume((path,), how)
    if suffix == ".npy" and header.dtype == np.uint8:
        return open_raster(path, channels=how.channels, limits=how.limits)  # mapped: only windows are read
    pixels = _channels_of(path, how, picture=True)
    if pixels.shape[0] * pixels.shape[1] > how.limits.max_pixels:
        raise DataError(f"{name_of(path)}: more than {how.limits.max_pixels:,} pixels (the limit); raise --max-pixels")
    try:
        return InMemory(read_image(pixels, channels=how.channels))
    except DataError as error:
        raise DataError(f"{name_of(path)}: {error}") from error


def read_volume(paths: Sequence[str | Path], how: Reading) -> Volume:
    """A volume whose channels are in one file, or in a file each.

    Raises:
        DataError: it cannot be read, or its channels have different shapes.
    """
    name = name_of(paths[0])
    parts = [_channels_of(path, how, picture=False) for path in paths]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise DataError(f"{name}: channels of shapes {', '.join(map(str, sorted(shapes)))}; all must be alike")
    voxels = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    slices = np.moveaxis(voxels, how.axis, 0)
    if slices.shape[1] * slices.shape[2] > how.limits.max_pixels:
        raise DataError(f"{name}: slices of {slices.shape[2]} × {slices.shape[1]} pixels, over the limit")
    return Volume(name, slices, how.channels, how.axis, read_spacing(paths[0], how.limits))


def by_channels(paths: Sequence[Path], channels: int) -> list[tuple[Path, ...]]:
    """Files that are one picture or volume each: those of ``x_0000.nii.gz``, ``x_0001.nii.gz``, … are its channels.

    Only volume files are put together so, and only where every channel has one.
    """
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    for path in paths:
        found = _CHANNEL.match(volume_stem(path)) if channels > 1 and volume_suffix(path) else None
        if found:
            groups.setdefault((path.parent, found[1]), {})[int(found[2])] = path
    whole = {
        files[0]: tuple(files[number] for number in range(channels))
        for files in groups.values()
        if sorted(files) == list(range(channels))
    }
    taken = {path for files in whole.values() for path in files[1:]}
    return [whole.get(path, (path,)) for path in paths if path not in taken]


def write_labels(path: Path, labels: np.ndarray, source: Path, spacing: Spacing | None) -> None:
    """The labels of a volume in its source's form: ``.npz`` (``label``, ``spacing``), ``.npy``, or NIfTI in its place.

    Raises:
        MissingExtra: NIfTI, and nibabel is not installed.
    """
    suffix = volume_suffix(path)
    draft = path.with_name(f".unfinished.{path.name}")
    try:
        if suffix == ".npz":
            with draft.open("wb") as file:
                arrays = {"label": labels} | ({} if spacing is None else {"spacing": np.array(spacing)})
                np.savez_compressed(file, allow_pickle=False, **arrays)
        elif suffix == ".npy":
            with draft.open("wb") as file:
                np.save(file, labels, allow_pickle=False)
        else:
            _write_nifti(draft, labels, source)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _write_nifti(path: Path, labels: np.ndarray, source: Path) -> None:
    """On the grid of the source: the same affine, units and codes, so that viewers lay one over the other."""
    nibabel = require("nibabel", extra="medical")
    image = nibabel.load(source)
    array = labels.transpose(2, 1, 0) if len(image.shape) > 2 else labels[0].T
    header = nibabel.Nifti1Header.from_header(image.header, check=False)
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = b"classes by swindow"
    nibabel.save(nibabel.Nifti1Image(array, image.affine, header), path)


def _channels_of(path: str | Path, how: Reading, *, picture: bool) -> np.ndarray:
    """uint8 ``z y x C`` of a volume's file, or ``h w C`` of a picture's; each channel has a window of its own."""
    array = read_array(path, IMAGE_KEYS, how.limits)
    axes = 2 if picture else 3
    if array.ndim < axes:
        array = array[None]  # a NIfTI file of a single slice
    if array.ndim == axes:
        return eight_bits(array, str(path), how.intensity)[..., None]
    return np.stack([eight_bits(array[..., c], str(path), how.intensity) for c in range(array.shape[-1])], axis=-1)


def checked_axis(axis: int) -> int:
    """The axis, if a volume has it."""
    if axis not in (0, 1, 2):
        raise ConfigError(f"axis is {axis}; a volume has axes 0, 1 and 2")
    return axis
