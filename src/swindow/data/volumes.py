"""Volumes as slices: cut along one axis, their intensities brought to 8 bits, kept in memory while there is room."""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from swindow.data.legends import Legend
from swindow.data.masks import MaskReader, SceneError
from swindow.data.volume_files import IMAGE_KEYS, MASK_KEYS, Spacing, read_array, read_header, read_spacing
from swindow.errors import DataError
from swindow.images import ImageLimits, name_of, read_image, windowed

MEMORY = 2**30
"""Bytes of decoded volumes that one process keeps."""
PERCENTILES = (0.5, 99.5)
MOST_COUNTED = 2_000_000  # voxels that percentiles are taken of, evenly spaced


class VolumeFiles(NamedTuple):
    """One volume: the files of its channels, and the file of its mask, which may be the same ``.npz``."""

    images: tuple[str, ...]
    mask: str


@dataclass(frozen=True)
class VolumeShape:
    """What the headers of one volume promise."""

    slices: int
    height: int
    width: int
    channels: int
    flat: bool
    """Whether it is a single slice without an axis of its own."""
    spacing: Spacing | None


def measure(files: VolumeFiles, axis: int, limits: ImageLimits) -> VolumeShape:
    """The slices of a volume and their size, by its headers.

    Raises:
        DataError: image and mask do not belong together, or have axes in another order.
    """
    shapes = [read_header(image, IMAGE_KEYS, limits).shape for image in files.images]
    mask = read_header(files.mask, MASK_KEYS, limits).shape
    if len(mask) not in (2, 3):
        raise SceneError(
            f"{name_of(files.mask)}: a label of {len(mask)} axes {_shape(mask)}; give class indices (slices, rows, "
            f"columns) without channels or one-hot planes",
            "mask-size",
        )
    if len(set(shapes)) > 1 or (len(shapes) > 1 and shapes[0] != mask):
        raise SceneError(
            f"{name_of(files.images[0])}: channels of shapes {', '.join(map(_shape, shapes))} under a label of "
            f"{_shape(mask)}; all must be alike",
            "mask-size",
        )
    image = shapes[0]
    if image[: len(mask)] != mask or len(image) > len(mask) + 1:
        raise _mismatch(files, image, mask)
    channels = image[-1] if len(image) > len(mask) else len(shapes)
    if len(mask) == 2:
        return VolumeShape(1, mask[0], mask[1], channels, True, None)
    height, width = mask[:axis] + mask[axis + 1 :]
    if height * width > limits.max_pixels:
        raise DataError(
            f"{name_of(files.mask)}: slices of {width} × {height} pixels, over the limit of {limits.max_pixels:,}"
        )
    spacing = read_spacing(files.images[0], limits)
    return VolumeShape(mask[axis], height, width, channels, False, None if spacing is None else _along(spacing, axis))


class VolumeSlices:
    """Slices of volumes; a volume is decoded once, and kept as long as there is room."""

    def __init__(
        self,
        volumes: Sequence[VolumeFiles],
        shapes: Sequence[VolumeShape],
        legend: Legend,
        *,
        axis: int,
        limits: ImageLimits,
        intensity: tuple[float, float] | None,
        memory: int = MEMORY,
    ) -> None:
        self.volumes, self.shapes = list(volumes), list(shapes)
        self.axis, self.limits, self.intensity, self.memory = axis, limits, intensity, memory
        self._starts = np.cumsum([0, *(shape.slices for shape in shapes)])
        self.masks_reader = MaskReader(legend, limits)
        self._kept: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}  # another process keeps its own

    def place(self, row: int) -> tuple[int, int]:
        """Volume and slice of a row."""
        volume = int(np.searchsorted(self._starts, row, side="right")) - 1
        return volume, row - int(self._starts[volume])

    def read(self, row: int, channels: int) -> UInt8[Tensor, "C h w"]:
        """The slice in 8 bits."""
        volume, number = self.place(row)
        pixels = self.decoded(volume)[0][number]
        have = pixels.shape[-1]
        if have == channels:
            return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        if {have, channels} != {1, 3}:  # a fourth channel is no transparency here
            name = name_of(self.volumes[volume].images[0])
            raise DataError(f"{name}: has {have} channels where {channels} are wanted; give all volumes {channels}")
        return read_image(pixels, channels=channels)

    def mask(self, row: int) -> Int64[Tensor, "h w"]:
        """Its classes."""
        volume, number = self.place(row)
        return torch.from_numpy(self.decoded(volume)[1][number].astype(np.int64))

    def mask_name(self, row: int) -> str:
        """The file of the volume's mask."""
        return self.volumes[self.place(row)[0]].mask

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the slice."""
        shape = self.shapes[self.place(row)[0]]
        return shape.height, shape.width

    def decoded(self, volume: int) -> tuple[np.ndarray, np.ndarray]:
        """All slices of one volume: uint8 ``slices h w C`` and int16 class indices ``slices h w``.

        Raises:
            DataError: it cannot be read, has values that are not finite, or values of no class.
        """
        kept = self._kept.pop(volume, None)
        if kept is None:
            files, flat = self.volumes[volume], self.shapes[volume].flat
            pixels = read_pixels(files, self.intensity, self.limits)
            mask = self.masks_reader.indices(read_labels(files.mask, self.limits), files.mask)
            if flat:
                kept = pixels[None], mask[None]
            else:
                kept = np.moveaxis(pixels, self.axis, 0), np.moveaxis(mask, self.axis, 0)
            if kept[0].shape[:3] != kept[1].shape:
                raise _mismatch(files, pixels.shape[:-1], mask.shape)
        self._kept[volume] = kept
        while len(self._kept) > 1 and sum(_bytes(pair) for pair in self._kept.values()) > self.memory:
            self._kept.popitem(last=False)
        return kept


def read_pixels(
    files: VolumeFiles, intensity: tuple[float, float] | None, limits: ImageLimits
) -> UInt8[np.ndarray, "*axes C"]:
    """A whole volume in 8 bits, channels last; each channel has a window of its own.

    Values of 8 bits stay as they are. Others are mapped linearly from `intensity`, or from the channel's percentiles
    0.5 and 99.5 (of evenly spaced voxels, where there are more than two million), to 0..255.

    Raises:
        DataError: values that are not finite.
    """
    arrays = [(image, read_array(image, IMAGE_KEYS, limits)) for image in files.images]
    if len(arrays) == 1 and arrays[0][1].ndim > _label_axes(files, limits):
        image, array = arrays[0]
        arrays = [(image, array[..., channel]) for channel in range(array.shape[-1])]
    return np.stack([eight_bits(array, image, intensity) for image, array in arrays], axis=-1)


def read_labels(path: str, limits: ImageLimits) -> np.ndarray:
    """The integers of a label volume, whatever type they are stored as.

    Raises:
        DataError: values between the integers, or that are not finite.
    """
    array = read_array(path, MASK_KEYS, limits)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind != "f":
        return array
    whole = np.isfinite(array) & (array == np.rint(array))
    if not whole.all():
        raise SceneError(
            f"{name_of(path)}: {int((~whole).sum()):,} label values are no whole numbers; labels are class indices, "
            f"resampled without interpolation",
            "mask-value",
        )
    return array.astype(np.int64)


def eight_bits(array: np.ndarray, path: str, intensity: tuple[float, float] | None) -> np.ndarray:
    """Voxels of one channel as uint8, in the way of `read_pixels`."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    if array.dtype.kind == "f":
        wrong = int((~np.isfinite(array)).sum())
        if wrong:
            raise SceneError(
                f"{name_of(path)}: {wrong:,} of {array.size:,} voxels are NaN or infinite; repair it "
                f"(numpy.nan_to_num), or remove it",
                "not-finite",
            )
    low, high = intensity or _percentiles(array)
    if low == high:  # a volume of one value, such as an empty one
        return np.zeros(array.shape, np.uint8)
    return windowed(array, low, high)


def _percentiles(array: np.ndarray) -> tuple[float, float]:
    flat = array.ravel()
    low, high = np.percentile(flat[:: max(1, flat.size // MOST_COUNTED)], PERCENTILES)
    return (float(low), float(high)) if low < high else (float(flat.min()), float(flat.max()))


def _label_axes(files: VolumeFiles, limits: ImageLimits) -> int:
    return len(read_header(files.mask, MASK_KEYS, limits).shape)


def _mismatch(files: VolumeFiles, image: tuple[int, ...], mask: tuple[int, ...]) -> SceneError:
    """What is wrong with two shapes, and the order of axes that would put it right where there is one."""
    name, label = name_of(files.images[0]), "the label" if files.mask in files.images else name_of(files.mask)
    for axes in itertools.permutations(range(len(mask))):
        if tuple(mask[axis] for axis in axes) == image[: len(mask)]:
            return SceneError(
                f"{name}: the axes of {label} {_shape(mask)} are in another order than the image's {_shape(image)}; "
                f"save label.transpose{axes}",
                "axis-order",
            )
    if len(image) == len(mask) + 1 and image[1:] == mask:
        order = (*range(1, len(image)), 0)
        return SceneError(
            f"{name}: the image {_shape(image)} has its channels first, over a label of {_shape(mask)}; save "
            f"image.transpose{order}",
            "axis-order",
        )
    return SceneError(
        f"{name}: the image is {_shape(image)}, {label} {_shape(mask)}; slices, rows and columns must be the same",
        "mask-size",
    )


def suspect_axis(shapes: Sequence[tuple[int, ...]], axis: int) -> int | None:
    """Another axis than `axis` along which all volumes would give square slices, where `axis` gives none to any."""

    def square(shape: tuple[int, ...], along: int) -> bool:
        rows, columns = (size for place, size in enumerate(shape[:3]) if place != along)
        return rows == columns

    deep = [shape for shape in shapes if len(shape) > 2]
    if not deep or any(square(shape, axis) for shape in deep):
        return None
    return next((k for k in range(3) if k != axis and all(square(shape, k) for shape in deep)), None)


def suspect_order(shapes: Mapping[str, tuple[int, ...]], axis: int) -> tuple[str, str] | None:
    """A volume whose axes look exchanged, and one that it is unlike: the same sides, but far more or fewer slices.

    Of volumes with the same three sides in any order, most agree on how many slices that makes along `axis`.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) > 2:
            alike.setdefault(tuple(sorted(shape[:3])), []).append(name)
    for names in alike.values():
        usual, most = Counter(shapes[name][axis] for name in names).most_common(1)[0]
        odd = next((name for name in names if not 2 / 3 < shapes[name][axis] / max(usual, 1) < 3 / 2), None)
        if odd is not None and 2 * most > len(names):
            return odd, next(name for name in names if shapes[name][axis] == usual)
    return None


def _along(spacing: Spacing, axis: int) -> Spacing:
    """Between slices, rows and columns, when the slices are cut along that axis."""
    others = [step for place, step in enumerate(spacing) if place != axis]
    return spacing[axis], others[0], others[1]


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _bytes(pair: tuple[np.ndarray, np.ndarray]) -> int:
    return pair[0].nbytes + pair[1].nbytes
