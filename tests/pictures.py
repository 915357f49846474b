"""Small generated data sets that a tiny model can learn: each class is a hue with noise."""

from pathlib import Path

import numpy as np
from PIL import Image

HUES = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def picture(hue: tuple[int, int, int], seed: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    """A noisy picture of one hue, `size` as height and width."""
    noise = np.random.default_rng(seed).integers(-40, 40, (*size, 3))
    return Image.fromarray(np.clip(np.array(hue) + noise, 0, 255).astype(np.uint8))


def class_folders(path: Path, *, per_class: int = 12, classes: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    """A folder of class folders under `path`."""
    for number, name in enumerate(classes):
        (path / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            picture(HUES[name], 1000 * number + index).save(path / name / f"{index:03}.png")
    return path
