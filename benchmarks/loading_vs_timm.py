"""Training batches of 224 × 224 from JPEG files, ours beside timm's: `python benchmarks/loading_vs_timm.py [FOLDER]`.

Photos of FOLDER (a folder of class folders) are written anew as JPEGs whose short side is each of `SIDES`, in a
temporary folder. Both loaders read the same files with one core and no further process, crop (RandomResizedCrop,
bicubic), flip, and give batches of uint8, which both normalise on the device afterwards (timm in its prefetcher, here
left out for both). Rounds alternate; a ratio is the median over neighbouring rounds of processor time. The second row
of each size adds RandAugment ``rand-m9-inc1`` (without the usual noise of magnitudes: with Pillow 13, timm's posterize
fails on those above 9).
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from clocks import measure
from PIL import Image
from record import write_record
from timm.data import create_dataset, create_loader

from swindow.data import open_data
from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.loading import train_loader
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "grocery-photos" / "train"
SIDES, COUNT, BATCH, ROUNDS = (256, 375, 500), 512, 64, 9


def main() -> None:
    torch.set_num_threads(1)
    photos = Path(sys.argv[1]) if len(sys.argv) > 1 else PHOTOS
    figures: dict[str, Any] = {"images": COUNT, "batch": BATCH, "rounds": ROUNDS, "photos": photos.name}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            write_photos(photos, Path(folder) / "train", side)
            for randaugment in (False, True):
                runs = {"ours": ours(folder, randaugment), "timm": theirs(folder, randaugment)}
                found = measure(runs, ROUNDS, against="ours")
                name = f"{side} px{', RandAugment' if randaugment else ''}"
                figures[name] = found
                each = {
                    who: 1e3 * sorted(facts["processor_seconds"])[ROUNDS // 2] / COUNT for who, facts in found.items()
                }
                print(
                    f"{name}: ours {each['ours']:.2f} ms, timm {each['timm']:.2f} ms an image; "
                    f"{found['timm']['processor_ratio']:.2f} × timm's (wall {found['timm']['ratio']:.2f} ×)",
                    flush=True,
                )
    print(write_record("loading-vs-timm", figures))


def write_photos(photos: Path, folder: Path, side: int) -> None:
    """`COUNT` JPEGs of quality 90 with that short side, spread over the classes there are."""
    files = sorted(photos.glob("*/*.jpg"))
    for number in range(COUNT):
        path = files[number * len(files) // COUNT]
        image = Image.open(path).convert("RGB")
        scale = side / min(image.size)
        target = folder / path.parent.name / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
            target, quality=90
        )


def ours(folder: str, randaugment: bool) -> Any:
    preprocess = Preprocess(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    form: dict[str, Any] = {"randaugment_ops": 2, "randaugment_form": "timm"}
    config = AugmentConfig(crop="resized", hflip=0.5, **(form if randaugment else {}))
    source = open_data(folder, val_fraction=0.0)
    loader = train_loader(source.split("train"), build_augment(config, preprocess), batch=BATCH, seed=0, workers=0)
    epoch = iter(range(10**6))

    def run() -> None:
        loader.batch_sampler.start(next(epoch))
        count = sum(len(batch.images) for batch in loader)
        assert count == COUNT

    return run


def theirs(folder: str, randaugment: bool) -> Any:
    dataset = create_dataset("", root=f"{folder}/train", is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, 224, 224),
        batch_size=BATCH,
        is_training=True,
        interpolation="bicubic",
        color_jitter=0.0,
        auto_augment="rand-m9-inc1" if randaugment else None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )

    def run() -> None:
        assert sum(len(images) for images, _ in loader.loader) == COUNT

    return run


if __name__ == "__main__":
    main()
