"""Data sets known by name: scikit-learn's digits, which are always there, and torchvision's, which it fetches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swindow.data.inventory import POOL, Inventory, Rows
from swindow.errors import DataError, require

_BY_FLAG: Mapping[str, Any] = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST: Mapping[str, Any] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Mapping[str, Any] = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_UNDIVIDED: Mapping[str, Any] = {POOL: {}}

TORCHVISION: Mapping[str, Mapping[str, Any]] = {
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "DTD": _THREE,
    "EuroSAT": _UNDIVIDED,
    "FGVCAircraft": _THREE,
    "FashionMNIST": _BY_FLAG,
    "Flowers102": _THREE,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "RenderedSST2": _THREE,
    "STL10": _TRAIN_TEST,
    "SUN397": _UNDIVIDED,
    "SVHN": _TRAIN_TEST,
    "USPS": _BY_FLAG,
}
"""Name: split: what to call the constructor with."""


def torchvision_name(source: str) -> str | None:
    """The data set that ``torchvision:cifar10`` or plain ``cifar10`` means, if any."""
    wanted = source.removeprefix("torchvision:").casefold()
    return next((name for name in TORCHVISION if name.casefold() == wanted), None)


def read_digits() -> Inventory:
    """1,797 scans of handwritten digits, 8 × 8 grey, their 17 grey levels spread over 0..255."""
    digits = require("sklearn.datasets", extra="train").load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    names = [f"digits[{index}]" for index in range(len(pixels))]
    labels = [str(label) for label in digits.target]
    return Inventory(kind="digits", splits={POOL: Rows(names, labels, pixels)})


def read_torchvision(name: str, root: Path) -> Inventory:
    """A data set of torchvision's below `root`, fetched if it is not there.

    Raises:
        DataError: it is not there and cannot be fetched, or is damaged.
    """
    datasets = require("torchvision.datasets", extra="train")
    found = Inventory(kind="torchvision", root=str(root))
    for split, choice in TORCHVISION[name].items():
        try:
            dataset = getattr(datasets, name)(str(root), download=True, **choice)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"torchvision:{name}: is not in {root} and cannot be fetched ({reason}); "
                f"connect to the network, or put its files there"
            ) from error
        found.splits[split], classes = _rows(dataset, f"{name}/{split}")
        found.classes = found.classes or classes
    return found


def _rows(dataset: Any, prefix: str) -> tuple[Rows, tuple[str, ...] | None]:
    """Names, labels and pixels; torchvision has no common way to ask for them without decoding every image."""
    classes = tuple(str(name) for name in getattr(dataset, "classes", ())) or None
    pairs = _first(dataset, "samples", "_samples")
    numbers = [label for _, label in pairs] if pairs else _first(dataset, "targets", "labels", "_labels")
    labels = [classes[int(number)] if classes else str(int(number)) for number in numbers]
    if hasattr(dataset, "data"):
        return Rows([f"{prefix}[{index}]" for index in range(len(labels))], labels, _planes(dataset.data)), classes
    files = [file for file, _ in pairs] if pairs else _first(dataset, "_image_files", "_images")
    return Rows([str(file) for file in files], labels), classes


def _first(dataset: Any, *names: str) -> Any:
    return next((getattr(dataset, name) for name in names if hasattr(dataset, name)), ())


def _planes(data: np.ndarray | Tensor) -> Tensor:
    """Any layout as ``N C h w``."""
    pixels = torch.as_tensor(data)
    if pixels.ndim == 3:
        return pixels[:, None]
    return pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2).contiguous()
