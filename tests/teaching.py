"""Tiny students and teachers of three or five classes, at hand."""

from typing import Any

import numpy as np
import torch

from conftest import tiny
from swindow.data.augment import AugmentConfig
from swindow.data.labelled import Images
from swindow.data.loading import Batch
from swindow.distributed import Plan, joined, whole
from swindow.learner import Learner
from swindow.model import Model
from swindow.objectives import DistillConfig, Moment, Stream, distilled
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess

CLASSES = ("ant", "bee", "cat", "dog", "eel")
HALF = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)


def known(model: Model, *, classes: tuple[str, ...] | None = CLASSES, **preprocess: Any) -> Model:
    """`model` with names and pixels, and with weights none of which is zero."""
    channels = model.config.in_channels
    how = {"size": (16, 16), "mean": (0.5,) * channels, "std": (0.5,) * channels} | preprocess
    model.preprocess, model.classes = Preprocess(**how), classes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def pupil(**fields: Any) -> Model:
    """A student."""
    return known(tiny(**fields))


def moment(count: int, *, epoch: int = 0, train: bool = True) -> Moment:
    """When a batch of images 0, 1, ... is learned from."""
    return Moment(0, epoch, 0, np.arange(count), train)


def taught(strategy: str = "auto", *, kind: str, cache: str = "", steps: int = 4) -> dict[str, torch.Tensor]:
    """What a student and what learns beside it come to, each process having its share of every batch, in fp64."""
    with joined() as ranks:
        torch.manual_seed(0)
        student, teacher = pupil().double(), known(tiny(dim=16))
        torch.manual_seed(1)
        images = _numbered(4 * steps)
        stream = Stream(images=images, augment=AugmentConfig(), preprocess=HALF, seed=0, batch=4)
        learner = Learner(
            student,
            OptimConfig(lr=1e-2, warmup=0.0),
            AugmentConfig(),
            total=steps,
            seed=0,
            device=torch.device("cpu"),
            precision="fp32",
            objective=distilled(student, teacher, kind, DistillConfig(cache=cache), stream=stream),
            ranks=ranks,
            plan=Plan(strategy=strategy),
        )
        share = 4 // ranks.world
        for step in range(steps):
            rows = np.arange(4 * step + share * ranks.rank, 4 * step + share * (ranks.rank + 1))
            labels = torch.from_numpy(images.labels[rows])
            learner.step([Batch(images.batch(rows), labels, torch.from_numpy(rows), [])])
        tensors = learner.tensors().items()
        return {name: whole(tensor).clone() for name, tensor in tensors if not name.startswith("optimizer")}


def _numbered(count: int) -> Images:
    """Random pictures in memory."""
    generator = torch.Generator().manual_seed(0)
    return Images(
        names=[str(number) for number in range(count)],
        labels=torch.randint(0, 5, (count,), generator=generator).numpy(),
        classes=CLASSES,
        channels=3,
        pixels=torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8),
    )
