"""Does pretraining without labels help? SimMIM on the grocery photos, then the same few minutes of labels for all.

    python benchmarks/simmim.py path/to/grocery-photos --seeds 3

For each seed a model is pretrained on the training photos (the validation photos are not looked at, labels neither).
Then, for each budget, two models of one shape learn from labels for the same number of steps, by the same recipe, on
the same batches: one starts from scratch, the other from the pretrained backbone. What pretraining costs is written
down beside. Photos are decoded once and kept at 1.25 times the input's side, so that the minutes are the model's.
"""

import argparse
import dataclasses
import statistics
import time

import torch
from record import write_record

from swindow.data import Images, open_data
from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.loading import train_loader
from swindow.devices import pick_precision
from swindow.evaluation import evaluate
from swindow.learner import Learner
from swindow.model import Model, build
from swindow.objectives import MaskedImages
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess
from swindow.settings import pixel_statistics

SIZE, STORED, BATCH = 96, 120, 64
SHAPE = {"patch": 4, "window": 6, "dim": 48, "num_heads": (2, 4, 8), "image_size": SIZE}
PAINT = {"mask_patch": 16, "mask_ratio": 0.6}
DEVICE = torch.device("cpu")
GENTLE = AugmentConfig(crop="resized", crop_scale=(0.67, 1.0), hflip=0.5)
VARIED = AugmentConfig(
    crop="resized", crop_scale=(0.35, 1.0), hflip=0.5, jitter=(0.3, 0.3, 0.3, 0.0), cutmix=1.0, mix_prob=0.5
)
MUON = OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.998)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-steps", type=int, default=700)
    parser.add_argument("--steps", type=int, nargs="+", default=[120, 300], help="budgets with labels")
    parser.add_argument("--layer-decay", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=1.0, help="the pretrained arm's rates as a share of the other's")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trial", action="store_true", help="write no record")
    asked = parser.parse_args()
    source = open_data(asked.data)
    train, val = (in_memory(source.split(name)) for name in ("train", "val"))
    spared = dataclasses.replace(
        MUON, layer_decay=asked.layer_decay, lr=MUON.lr * asked.share, muon_lr=MUON.muon_lr * asked.share
    )
    runs = []
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        painter, paint_seconds = pretrained(train, seed, asked.pretrain_steps)
        painting = evaluate(painter, val, split="val", batch=BATCH, device="cpu")
        found = {"seed": seed, "explained": painting.explained, "pretrain_seconds": round(paint_seconds)}
        print(painting.table(most=0), f"{paint_seconds:.0f} s", flush=True)
        for steps in asked.steps:
            for arm, body, optim in (("scratch", None, MUON), ("pretrained", painter.backbone, spared)):
                accuracy, seconds = taught(train, val, seed, steps, optim, body)
                found[f"{arm}, {steps} steps"] = {"accuracy": accuracy, "seconds": round(seconds)}
                print(f"seed {seed}  {arm}, {steps} steps: {accuracy:.2%} in {seconds:.0f} s", flush=True)
        runs.append(found)
    figures = {f"{steps} steps": summary(runs, steps) for steps in asked.steps}
    print(figures)
    if not asked.trial:
        shape = {**SHAPE, **PAINT, "size": SIZE, "batch": BATCH, "stored": STORED}
        settings = {**vars(asked), "data": source.describe(), "model": "swin_micro", **shape}
        print(write_record("simmim", {"settings": settings, "accuracy": figures, "runs": runs}))


def summary(runs: list[dict], steps: int) -> dict:
    """Mean and deviation over the seeds of both arms of a budget, and of the difference seed by seed."""
    arms = ("scratch", "pretrained")
    columns = {arm: [run[f"{arm}, {steps} steps"]["accuracy"] for run in runs] for arm in arms}
    pairs = zip(columns["scratch"], columns["pretrained"], strict=True)
    columns["difference"] = [after - before for before, after in pairs]
    return {
        name: {
            "mean": statistics.mean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": values,
        }
        for name, values in columns.items()
    }


def in_memory(images: Images) -> Images:
    """The photos at one size, decoded once."""
    fit = Preprocess(size=(STORED, STORED), mean=(0.0,) * 3, std=(1.0,) * 3, crop_ratio=1.0)
    pixels = torch.stack([fit.resize(images.read(row)) for row in range(len(images))])
    return dataclasses.replace(images, pixels=pixels)


def pretrained(train: Images, seed: int, steps: int) -> tuple[Model, float]:
    """A model that has learned to paint, and the seconds that it took."""
    torch.manual_seed(seed)
    model = build("simmim_swin_micro", drop_path=0.0, **SHAPE, **PAINT)
    return learned(model, train, seed, steps, MUON, GENTLE, MaskedImages(model))


def taught(
    train: Images, val: Images, seed: int, steps: int, optim: OptimConfig, body: torch.nn.Module | None
) -> tuple[float, float]:
    """Accuracy on the validation photos after so many steps with labels, and the seconds that they took."""
    torch.manual_seed(1000 + seed)
    model = build("swin_micro", num_classes=len(train.classes), drop_path=0.1, label_smoothing=0.1, **SHAPE)
    model.classes = train.classes
    if body is not None:
        model.backbone.load_state_dict(body.state_dict())
    usable, seconds = learned(model, train, 1000 + seed, steps, optim, VARIED, None)
    return evaluate(usable, val, split="val", batch=BATCH, device="cpu").accuracy, seconds


def learned(
    model: Model,
    train: Images,
    seed: int,
    steps: int,
    optim: OptimConfig,
    augment: AugmentConfig,
    objective: MaskedImages | None,
) -> tuple[Model, float]:
    mean, std = pixel_statistics(3)
    model.preprocess = Preprocess(size=(SIZE, SIZE), mean=mean, std=std, crop_ratio=1.0)
    loader = train_loader(train, build_augment(augment, model.preprocess), batch=BATCH, seed=seed, workers=0)
    precision = pick_precision("auto", DEVICE)
    learner = Learner(
        model, optim, augment, total=steps, seed=seed, device=DEVICE, precision=precision, objective=objective
    )
    began, batches = time.monotonic(), forever(loader, learner)
    while learner.position.step < steps:
        learner.step([next(batches)])
    return learner.usable, time.monotonic() - began


def forever(loader, learner):
    """Batches epoch after epoch; what is hidden of an image goes by the epoch."""
    while True:
        loader.batch_sampler.start(learner.position.epoch, 0)
        yield from loader
        learner.position.epoch += 1


if __name__ == "__main__":
    main()
