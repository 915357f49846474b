"""Masks: from the numbers or colours of a file to class indices and `IGNORE`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from swindow.data.legends import RGB, UNKNOWN, Legend
from swindow.errors import ConfigError, DataError
from swindow.images import LIMITS, ImageLimits, Stored, name_of, read_stored


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How masks and volumes are read."""

    ignore_index: int | None = 255
    """Value of pixels that count neither in training nor in judging; none for masks in which every value is a class."""
    reduce_zero_label: bool | None = None
    """Whether value 0 is ignored and value k is class k - 1; by default as the layout has it (ADE20K's alone)."""
    case: str = ""
    """A regular expression found in a file's stem; its first group, or all of it, is the case (the patient). Files of
    one case are never divided between training and validation."""
    intensity: tuple[float, float] | None = None
    """The values of 16-bit and float sources that become 0 and 255; by default a file's full range, and a volume's
    percentiles 0.5 and 99.5."""
    axis: int = 0
    """Along which volumes are cut into slices; NIfTI files are read as z, y, x."""

    def __post_init__(self) -> None:
        if self.ignore_index is not None and not 0 <= self.ignore_index <= 65535:
            raise ConfigError(f"masks ignore_index is {self.ignore_index}; a mask's values lie in 0..65535")
        if self.axis not in (0, 1, 2):
            raise ConfigError(f"masks axis is {self.axis}; a volume has axes 0, 1 and 2")
        low, high = self.intensity or (0.0, 1.0)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"masks intensity {self.intensity} is not a lower and a higher value")
        try:
            re.compile(self.case)
        except re.error as error:
            raise ConfigError(f"masks case {self.case!r} is no regular expression ({error})") from error


class SceneError(DataError):
    """What is wrong with a mask, or with a volume and its mask: the message, and the kind that `check` calls it."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class MaskReader:
    """A legend made to act: mask files and arrays of any spelling become class indices."""

    def __init__(self, legend: Legend, limits: ImageLimits = LIMITS) -> None:
        self.legend, self.limits = legend, limits

    def read(self, path: str | Path) -> Int64[Tensor, "h w"]:
        """The class indices of one file, `IGNORE` where nothing counts.

        Raises:
            DataError: it cannot be read, or holds values or colours that no class is for; the message names them.
        """
        return torch.from_numpy(self.encode(stored_values(read_stored(path, limits=self.limits), path), path))

    def encode(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        """Values ``h w`` (or more dimensions of integers), or colours ``h w 3`` of uint8, as int64 class indices."""
        if values.ndim == 3 and values.dtype == np.uint8 and values.shape[-1] == 3:
            return self._painted(values, path)
        return self.indices(values, path).astype(np.int64)

    def indices(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        """Integers of any shape as int16 class indices.

        Raises:
            DataError: a value that no class is for.
        """
        codes = self._codes
        known = codes[np.clip(values, 0, len(codes) - 1)]
        outside = (values < 0) | (values >= len(codes))
        wrong = outside | (known == UNKNOWN)
        if wrong.any():
            raise SceneError(self._unknown(values_in(values[wrong]), int(wrong.sum()), wrong.size, path), "mask-value")
        return known

    @cached_property
    def _codes(self) -> np.ndarray:
        return self.legend.codes()

    def _unknown(self, values: Sequence[int], count: int, size: int, path: str | Path) -> str:
        legend = self.legend
        ids = f"0 to {len(legend) - 1}" if legend.ids == tuple(range(len(legend))) else _listed(legend.ids)
        ignored = f", ignored are {_listed(legend.ignored)}" if legend.ignored else ""
        return (
            f"{name_of(path)}: value{'s' if len(values) > 1 else ''} {_listed(values)} ({count:,} of {size:,} pixels) "
            f"stand{'s' if len(values) == 1 else ''} for no class: the {len(legend)} classes of {legend.source} are "
            f"{ids}{ignored}; repair the mask, add the class to classes.txt, or set masks.ignore_index"
        )

    def _painted(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        """An RGB mask by its colours: exact ones, since a blend of two classes is neither."""
        codes = self.legend.colour_codes()
        if not codes:
            raise SceneError(
                f"{name_of(path)}: is an RGB picture where class indices are due, and {self.legend.source} gives no "
                f"colours; save it as an index PNG, or give classes.txt lines of: index name red green blue",
                "rgb-mask",
            )
        packed = _packed(values)
        keys = _packed(np.array(list(codes)))
        order = np.argsort(keys)
        places = np.minimum(np.searchsorted(keys, packed, sorter=order), len(keys) - 1)
        wrong = keys[order][places] != packed
        if wrong.any():
            colours, counts = np.unique(packed[wrong], return_counts=True)
            shown = ", ".join(str(_unpacked(int(colour))) for colour in colours[np.argsort(-counts)][:3])
            raise SceneError(
                f"{name_of(path)}: {int(wrong.sum()):,} of {wrong.size:,} pixels have colours of no class "
                f"({len(colours):,} colours, such as {shown}); add them to {self.legend.source}, and save masks "
                f"without smoothing or JPEG",
                "mask-value",
            )
        return np.array(list(codes.values()), np.int64)[order][places]


def stored_values(stored: Stored, path: str | Path) -> np.ndarray:
    """The indices ``h w`` or colours ``h w 3`` that a mask file holds.

    Raises:
        DataError: a form that no mask has: blurred by JPEG, half transparent, of floats.
    """
    values, mode = stored.values, stored.mode
    if stored.format == "JPEG":
        raise SceneError(
            f"{name_of(path)}: is a JPEG, which changes values at every edge; save masks as PNG", "bad-mask"
        )
    if mode in ("RGBA", "LA"):
        if values[..., -1].min() < 255:
            message = f"{name_of(path)}: a mask with transparent pixels has no clear values; save it without alpha"
            raise SceneError(message, "bad-mask")
        values = values[..., :-1] if mode == "RGBA" else values[..., 0]
    elif mode == "1":
        values = values.astype(np.uint8)
    elif mode not in ("L", "P", "RGB", "I") and not mode.startswith("I;16"):
        raise SceneError(
            f"{name_of(path)}: pixels of mode {mode} are no mask; save an index PNG of 8 or 16 bits, or RGB colours",
            "bad-mask",
        )
    return values


def values_in(values: np.ndarray) -> list[int]:
    """The different integers of an array, in order."""
    if values.size and values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(values.ravel())).tolist()
    return [int(value) for value in np.unique(values)]


def is_painted(values: np.ndarray) -> bool:
    """Whether a mask file's values are colours."""
    return values.ndim == 3


def case_of(stem: str, config: MaskConfig, path: str | Path, otherwise: str) -> str:
    """The case that a file belongs to.

    Raises:
        DataError: the pattern is not in its name.
    """
    if not config.case:
        return otherwise
    found = re.search(config.case, stem)
    group = None if found is None else (found.group(1) if found.re.groups else found.group())
    if not group:
        raise SceneError(
            f"{name_of(path)}: no case by the pattern {config.case!r} in {stem!r}; change masks.case, or rename it",
            "no-case",
        )
    return group


def _packed(colours: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return (red << 16) | (green << 8) | blue


def _unpacked(colour: int) -> RGB:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _listed(values: Sequence[int], most: int = 5) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return shown + (f" and {len(values) - most:,} more" if len(values) > most else "")
