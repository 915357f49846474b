"""Segmentation on pictures that this script paints: train on 96 small towns from above, judge, predict, explain.

What it leaves in the data folder is what a person brings: images/, masks/ with the same names, and classes.txt.
"""

import argparse
from pathlib import Path

import numpy as np
from demo import free
from PIL import Image, ImageDraw, ImageFilter

import swindow

CLASSES = {"meadow": (121, 168, 92), "water": (66, 126, 189), "road": (150, 146, 141), "house": (190, 84, 66)}
CLASSES |= {"tree": (52, 98, 58)}
SIDE = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-segment"), help="run folder; numbered if taken")
    parser.add_argument("--minutes", type=float, default=3.0, help="time to train")
    asked = parser.parse_args()
    out = free(asked.out)
    towns = paint_towns(out / "towns")

    config = swindow.configure(str(towns), out=str(out / "run"), max_minutes=asked.minutes)
    result = swindow.train(config)

    photos = sorted((towns / "test" / "images").iterdir())
    answer = swindow.Predictor(out / "run")(photos[0])
    pictures = swindow.explain(out / "run", photos[0], target="house").save(out / "explanation")
    coverage = sorted(answer.coverage().items(), key=lambda item: -item[1])

    print()
    print(f"{result.evaluation.table()}")
    print(f"report         {result.report}")
    print(f"prediction     {photos[0].name}: " + ", ".join(f"{name} {share:.0%}" for name, share in coverage))
    print(f"explanation    {pictures[0]}")


def paint_towns(folder: Path) -> Path:
    """Towns with their masks, the same every time: 96 to learn from, 12 to choose by, 12 to judge on."""
    number = 0
    for split, count in {"train": 96, "val": 12, "test": 12}.items():
        images, masks = folder / split / "images", folder / split / "masks"
        images.mkdir(parents=True), masks.mkdir(parents=True)
        for _ in range(count):
            image, mask = paint_town(np.random.default_rng(number))
            image.save(images / f"town{number:03}.png")
            mask.save(masks / f"town{number:03}.png")
            number += 1
    lines = [f"{index} {name} {red} {green} {blue}" for index, (name, (red, green, blue)) in enumerate(CLASSES.items())]
    (folder / "classes.txt").write_text("\n".join(lines) + "\n")
    return folder


def paint_town(random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """One town and its mask: a pond, roads, houses, trees anywhere; edges are soft, light and grain differ."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    draw = ImageDraw.Draw(mask)
    x, y, wide, high = random.integers((0, 0, 24, 24), (SIDE, SIDE, 70, 70))
    draw.ellipse((x - wide, y - high, x + wide, y + high), fill=1)
    for _ in range(random.integers(1, 4)):
        draw.line([tuple(p) for p in random.integers(-20, SIDE + 20, (3, 2)).tolist()], fill=2, width=11, joint="curve")
    for _ in range(random.integers(6, 14)):
        draw.polygon(_turned_box(random), fill=3)
    for _ in range(random.integers(8, 24)):
        x, y, r = (*random.integers(0, SIDE, 2), random.integers(4, 10))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=4)
    labels = np.asarray(mask)
    colours = np.asarray(list(CLASSES.values()), np.float32) + random.normal(0, 14, (len(CLASSES), 3))
    picture = Image.fromarray(colours[labels].clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    grain = random.normal(0, 16, (SIDE, SIDE, 1)) + random.normal(0, 6, (SIDE, SIDE, 3))
    lit = np.asarray(picture, np.float32) * random.uniform(0.6, 1.25) + grain
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8)), mask


def _turned_box(random: np.random.Generator) -> list[tuple[float, float]]:
    (x, y), (wide, high), angle = random.integers(10, SIDE - 10, 2), random.integers(7, 17, 2), random.uniform(0, np.pi)
    corners = np.asarray([(-wide, -high), (wide, -high), (wide, high), (-wide, high)]) / 1.4
    turn = np.asarray([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return [(float(a + x), float(b + y)) for a, b in corners @ turn.T]


if __name__ == "__main__":
    main()
