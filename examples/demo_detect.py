"""Detection on pictures that this script paints: train on 120 cluttered desks, judge, predict, explain.

What it leaves in the data folder is what a person brings: images/ and, for each split, a COCO JSON with polygons.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from demo import free
from PIL import Image, ImageDraw, ImageFilter

import swindow

CLASSES = ("coin", "leaf", "star", "nut")
COLOURS = {"coin": (203, 160, 72), "leaf": (86, 138, 62), "star": (206, 78, 66), "nut": (126, 134, 148)}
SIDE = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-detect"), help="run folder; numbered if taken")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the desks")
    asked = parser.parse_args()
    out = free(asked.out)
    desks = paint_desks(out / "desks")

    config = swindow.configure(str(desks), size=320, out=str(out / "run"), epochs=asked.epochs, eval_every=4)
    result = swindow.train(config)

    photos = sorted((desks / "test").iterdir())
    answer = swindow.Predictor(out / "run")(photos[0])
    pictures = swindow.explain(out / "run", photos[0], object=0).save(out / "explanation")

    print()
    print(f"{result.evaluation.table()}")
    print(f"report         {result.report}")
    print(f"prediction     {photos[0].name}: " + ", ".join(f"{name} {score:.0%}" for name, score in answer.top(5)))
    print(f"explanation    {pictures[0]}")


def paint_desks(folder: Path) -> Path:
    """Desks with the outline of everything on them, the same every time."""
    number = 0
    for split, count in {"train": 120, "val": 16, "test": 16}.items():
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for _ in range(count):
            picture, things = paint_desk(np.random.default_rng(number))
            name = f"desk{number:03}.png"
            picture.save(folder / split / name)
            images.append({"id": number, "file_name": f"{split}/{name}", "width": SIDE, "height": SIDE})
            for kind, outline in things:
                annotations.append(_annotation(len(annotations) + 1, number, kind, outline))
            number += 1
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def paint_desk(random: np.random.Generator) -> tuple[Image.Image, list[tuple[int, np.ndarray]]]:
    """One desk, and class and outline of each thing on it: none lies on another, all within the picture."""
    wood = np.asarray((150, 118, 88)) + random.normal(0, 18, 3)
    waves = np.sin(np.linspace(0, random.uniform(8, 30), SIDE) + random.uniform(0, 6))[:, None, None]
    ground = wood + 9 * waves + random.normal(0, 5, (SIDE, SIDE, 1))
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw, things, places = ImageDraw.Draw(picture), [], []
    for _ in range(random.integers(0, 22)):
        radius = random.uniform(7, 20)
        x, y = random.uniform(radius + 1, SIDE - radius - 1, 2)
        if any(np.hypot(x - a, y - b) < radius + r + 1 for a, b, r in places):
            continue
        places.append((x, y, radius))
        kind = int(random.integers(len(CLASSES)))
        outline = np.asarray((x, y)) + radius * _outline(CLASSES[kind], random.uniform(0, 2 * np.pi))
        _paint(draw, CLASSES[kind], outline, (x, y), radius, random)
        things.append((kind, outline))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    lit = soft * random.uniform(0.65, 1.25) + random.normal(0, 6, soft.shape)
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8)), things


def _outline(kind: str, angle: float) -> np.ndarray:
    """Points around the middle at a distance of at most 1."""
    turns = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    if kind == "coin":
        points = np.stack([np.cos(turns), np.sin(turns)], 1)
    elif kind == "leaf":
        points = np.stack([np.cos(turns), 0.45 * np.sin(turns) * np.abs(np.sin(turns)) ** 0.5], 1)
    else:
        corners = 10 if kind == "star" else 6
        turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        far = np.where(np.arange(corners) % 2, 0.45, 1.0) if kind == "star" else np.ones(corners)
        points = far[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
    turn = np.asarray([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return points @ turn.T


def _paint(
    draw: ImageDraw.ImageDraw,
    kind: str,
    outline: np.ndarray,
    middle: tuple[float, float],
    radius: float,
    random: np.random.Generator,
) -> None:
    colour = (np.asarray(COLOURS[kind]) + random.normal(0, 16, 3)).clip(0, 255).astype(int)
    draw.polygon([tuple(p) for p in (outline + 1.5)], fill=(60, 46, 34))  # its shadow
    draw.polygon([tuple(p) for p in outline], fill=tuple(colour.tolist()), outline=tuple((colour * 0.7).astype(int)))
    if kind == "nut":
        x, y = middle
        draw.ellipse((x - radius / 2.4, y - radius / 2.4, x + radius / 2.4, y + radius / 2.4), fill=(60, 46, 34))


def _annotation(number: int, image: int, kind: int, outline: np.ndarray) -> dict:
    (left, top), (right, bottom) = outline.min(0), outline.max(0)
    x, y = outline.T
    area = abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
    return {
        "id": number,
        "image_id": image,
        "category_id": kind + 1,
        "iscrowd": 0,
        "area": area,
        "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
        "segmentation": [outline.round(2).ravel().tolist()],
    }


if __name__ == "__main__":
    main()
