"""Small sets of annotated pictures in COCO's, Pascal VOC's and YOLO's form, made on the spot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hostile

HEIGHT, WIDTH = 48, 64


def pictures(folder: Path, names: Sequence[str], *, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> None:
    """A different small picture under each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = hostile.picture(seed + 7 * number + sum(map(ord, str(folder))), height=height, width=width)
        path.write_bytes(hostile.encode(shown, "PNG" if path.suffix == ".png" else "JPEG"))


def box(number: int, image: int, xywh: Any = (10, 8, 20, 16), category: int = 1, **more: Any) -> dict[str, Any]:
    """One annotation of COCO's."""
    known = {"id": number, "image_id": image, "category_id": category, "bbox": xywh, "iscrowd": 0}
    if isinstance(xywh, Sequence) and len(xywh) == 4 and all(isinstance(side, (int, float)) for side in xywh):
        known["area"] = xywh[2] * xywh[3]
    return known | more


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A box as COCO's polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def coco(
    file: Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    images: int = 3,
    folder: Path | None = None,
    classes: Mapping[int, str] | None = None,
    **replaced: Any,
) -> Path:
    """A JSON of so many pictures, called 1.png and so on with those numbers, which are drawn into `folder`."""
    names = [f"{number}.png" for number in range(1, images + 1)]
    pictures(folder or file.parent, names)
    about: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(1, images + 1)],
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in (classes or {1: "cat", 2: "dog"}).items()],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about | replaced))
    return file


def voc_object(name: str = "cat", corners: Sequence[Any] = (11, 9, 30, 24), *, difficult: int | None = None) -> str:
    """One object of Pascal VOC's: xmin ymin xmax ymax."""
    sides = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{hard}<bndbox>{sides}</bndbox></object>"


def voc_xml(*objects: str, size: tuple[int, int] | None = (HEIGHT, WIDTH)) -> str:
    """A file of Pascal VOC's."""
    said = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>anything.jpg</filename>{said}{''.join(objects)}</annotation>"


def voc(root: Path, files: Mapping[str, str], lists: Mapping[str, Sequence[str]] | None = None) -> Path:
    """``Annotations`` (text by stem), ``JPEGImages`` and ``ImageSets/Main``."""
    pictures(root / "JPEGImages", [f"{stem}.jpg" for stem in files])
    (root / "Annotations").mkdir(parents=True)
    for stem, text in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for split, stems in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def yolo(root: Path, files: Mapping[str, str], classes: Sequence[str] = ("cat", "dog")) -> Path:
    """``images`` and ``labels`` (text by path without suffix, such as train/1) with classes.txt."""
    pictures(root / "images", [f"{name}.png" for name in files])
    for name, text in files.items():
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


def packed(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's packed run-length code, by pycocotools."""
    code = pytest.importorskip("pycocotools.mask").encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's plain run-length code."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def blob(seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    draw = np.random.default_rng(seed)
    return (y - draw.integers(15, 30)) ** 2 + (x - draw.integers(20, 40)) ** 2 < draw.integers(20, 150)
