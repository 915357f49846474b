"""Does a teacher help? A small student on 10,000 images of Fashion-MNIST, alone and taught, at equal budgets.

    python benchmarks/distillation.py ../shared/data/fashion-mnist --work runs/distillation

The teacher, a swin_nano, learns from all of the folder's training images but its own validation split. The student is a
narrow swin_nano that gets a subset: the 10,000 images that come first when the 60,000 are put in the order of
``swindow.data.seeds.epoch_order(60_000, SUBSET_SEED, 0)``, of which training holds out a tenth for validation. Student,
recipe, steps and seeds are the same for every row; the rows differ in what is learned from. All are judged once, on the
folder's own test images, by the weights that were best on validation.

The teacher's answers are kept in WORK/answers and read by every row that learns from them. What lies in WORK already,
of a teacher or of students, is not computed again.
"""

import argparse
import dataclasses
import gzip
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import torch
from record import write_record

from swindow.data.augment import AugmentConfig
from swindow.data.seeds import epoch_order
from swindow.objectives import DistillConfig
from swindow.optim import OptimConfig
from swindow.progress import Silent
from swindow.settings import TrainConfig
from swindow.training import train

SUBSET, SUBSET_SEED = 10_000, 7
HEADERS = {"images": 16, "labels": 8}
"""Bytes before the values of an IDX file of so many dimensions; the count is a big-endian integer at byte 4."""

TEACHER = TrainConfig(
    model="swin_nano",
    fields={"patch": 4},
    size=28,
    channels=1,
    crop_ratio=1.0,
    epochs=5,
    batch=128,
    drop_path=0.0,
    label_smoothing=0.0,
    seed=100,
    optim=OptimConfig(name="muon", lr=2e-3, muon_lr=0.02, betas=(0.9, 0.95), ema=0.998),
    augment=AugmentConfig(crop="shift", shift=1, hflip=0.5),
    device="cpu",
    precision="fp32",
    workers=0,
    tensorboard=False,
    report=False,
)
"""The recipe small-images, for fewer epochs."""
STUDENT = dataclasses.replace(
    TEACHER, fields={"patch": 4, "dim": 32, "depths": (1, 1), "num_heads": (2, 4)}, epochs=10, eval_every=2
)
ROWS: dict[str, dict] = {
    "alone": {},
    "soft": {"distill": "soft", "distillation": DistillConfig(temperature=3.0, alpha=0.9)},
    "hard": {"distill": "hard", "distillation": DistillConfig(alpha=0.5)},
}


def subset(data: Path, folder: Path) -> Path:
    """An IDX folder with the subset as its training images and the test images as they are."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, header in HEADERS.items():
        (file,) = data.glob(f"train-{name}*.gz")
        content = gzip.decompress(file.read_bytes())
        count = int.from_bytes(content[4:8], "big")
        values = np.frombuffer(content[header:], np.uint8).reshape(count, -1)
        chosen = values[np.sort(epoch_order(count, SUBSET_SEED, 0)[:SUBSET])]
        head = content[:4] + SUBSET.to_bytes(4, "big") + content[8:header]
        (folder / file.name).write_bytes(gzip.compress(head + chosen.tobytes()))
    for file in data.glob("t10k-*.gz") or ():
        shutil.copyfile(file, folder / file.name)
    for file in data.glob("test-*.gz"):
        shutil.copyfile(file, folder / file.name)
    (folder / "done").touch()
    return folder


def trained(config: TrainConfig, data: Path, out: Path) -> dict:
    """The result of a run, which is not done twice."""
    if not (out / "result.json").exists():
        train(dataclasses.replace(config, data=str(data), out=str(out)), resume=out.exists(), progress=Silent())
    return json.loads((out / "result.json").read_text())


def row(results: list[dict], alone: list[dict]) -> dict:
    """Accuracies on the test images, and how much more right than alone with the same seed, in points."""
    scores = [100 * result["score"] for result in results]
    more = [100 * (one["score"] - other["score"]) for one, other in zip(results, alone, strict=True)]
    return {
        "accuracy": [round(score, 2) for score in scores],
        "mean": round(statistics.mean(scores), 2),
        "deviation": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
        "more_than_alone": [round(one, 2) for one in more],
        "mean_more": round(statistics.mean(more), 2),
        "deviation_more": round(statistics.stdev(more), 2) if len(more) > 1 else None,
        "seconds": [result["seconds"] for result in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    few = subset(options.data, options.work / "subset")
    teacher = options.work / "teacher"
    taught_by = trained(TEACHER, options.data, teacher)
    print(f"teacher {taught_by['score']:.2%} after {taught_by['seconds']:.0f} s", flush=True)
    results: dict[str, list[dict]] = {name: [] for name in options.rows}
    for seed in range(options.seeds):
        for name in options.rows:
            changes = dict(ROWS[name])
            if changes:
                kept = dataclasses.replace(changes["distillation"], cache=str(options.work / "answers"))
                changes |= {"teacher": str(teacher), "distillation": kept}
            config = dataclasses.replace(STUDENT, seed=seed, **changes)
            results[name].append(trained(config, few, options.work / f"{name}-{seed}"))
            print(f"seed {seed} {name}: {results[name][-1]['score']:.2%}", flush=True)
    rows = {name: row(found, results["alone"]) for name, found in results.items()}
    first = next(iter(results.values()))[0]
    figures = {
        "what": "test accuracy in percent of a student on 10,000 Fashion-MNIST images, alone and taught",
        "threads": torch.get_num_threads(),
        "subset": {"images": SUBSET, "seed": SUBSET_SEED, "order": "swindow.data.seeds.epoch_order(60_000, seed, 0)"},
        "teacher": {key: taught_by[key] for key in ("score", "parameters", "steps", "seconds")}
        | {"fields": TEACHER.fields, "epochs": TEACHER.epochs, "seed": TEACHER.seed},
        "student": {"parameters": first["parameters"], "steps": first["steps"]}
        | {"fields": STUDENT.fields, "epochs": STUDENT.epochs, "seeds": options.seeds},
        "settings": {name: dataclasses.asdict(one["distillation"]) for name, one in ROWS.items() if one},
        "rows": rows,
    }
    for name, found in rows.items():
        print(f"{name}: {found['mean']} ± {found['deviation']}, more than alone {found['more_than_alone']}")
    print(write_record("distillation", figures))


if __name__ == "__main__":
    main()
