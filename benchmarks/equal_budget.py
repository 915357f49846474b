"""Our few-photos recipe against timm's swin_tiny: the same loop, the same optimiser, the same minutes.

    python benchmarks/equal_budget.py path/to/grocery-photos --minutes 5 --seeds 3

Both sides run through `swindow.learner.Learner` with the same loader, augmentation, optimiser settings and precision.
Each gets a schedule as long as fits the budget by its own measured step time. The peer runs twice: as published, at 224
pixels with AdamW (in batches of 16, so that it takes steps enough), and with our image size, batch and optimiser. The
better of the two is what counts.
"""

import argparse
import dataclasses
import statistics
import time

import timm
import torch
from record import write_record
from torch import nn

import swindow
from swindow.data import DataSource, open_data
from swindow.data.augment import build_augment
from swindow.data.loading import train_loader
from swindow.devices import pick_precision
from swindow.evaluation import evaluate
from swindow.heads.classify import Classifier, ClassifierConfig, ClassifierOutputs
from swindow.learner import Learner
from swindow.model import Model
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess
from swindow.settings import TrainConfig, pixel_statistics

WARM, TIMED = 2, 5


class Head(nn.Module):
    """timm's classifier with our loss."""

    loss = Classifier.loss
    decode = Classifier.decode

    def __init__(self, head: nn.Module, config: ClassifierConfig) -> None:
        super().__init__()
        self.head, self.config = head, config

    def forward(self, x: torch.Tensor) -> ClassifierOutputs:
        return ClassifierOutputs(logits=self.head(x))


class Peer(Model):
    """timm's swin_tiny, as far as the learner and the evaluation look at a model."""

    def __init__(self, classes: tuple[str, ...], size: int, config: TrainConfig) -> None:
        nn.Module.__init__(self)  # its parts are timm's
        peer = timm.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=len(classes),
            img_size=size,
            in_chans=config.channels,
            drop_path_rate=config.drop_path,
        )
        stages = peer.layers
        del peer.layers
        peer.stages = stages  # the name that parameter groups go by, and the only one it is registered under
        object.__setattr__(peer, "layers", stages)  # the name that timm's forward goes by
        self.backbone = peer
        self.backbone.blocks = lambda: [block for stage in stages for block in stage.blocks]
        self.head = Head(peer.head, ClassifierConfig(num_classes=len(classes), label_smoothing=config.label_smoothing))
        self.config = dataclasses.make_dataclass("Config", ["in_channels", "name"])(config.channels, "timm swin_tiny")
        mean, std = pixel_statistics(config.channels)
        self.preprocess = Preprocess(size=(size, size), mean=mean, std=std, crop_ratio=config.crop_ratio)
        self.classes = classes

    def outputs(self, images: torch.Tensor) -> ClassifierOutputs:
        return self.head(self.backbone.forward_features(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs(images).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    config = swindow.configure(asked.data)
    adamw = OptimConfig(lr=5e-4, weight_decay=0.05, warmup=0.1, clip=5.0, ema=config.optim.ema)
    native = dataclasses.replace(config, batch=16, optim=adamw)
    contenders = {
        "swindow": lambda classes: (ours(config, classes), config),
        "timm swin_tiny, 224 px, AdamW": lambda classes: (Peer(classes, 224, native), native),
        f"timm swin_tiny, {config.size} px, our optimiser": lambda classes: (
            Peer(classes, config.size, config),
            config,
        ),
    }
    source = open_data(asked.data)
    scores: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(asked.seeds):  # interleaved, so that a slow hour of the machine hits all alike
        for name, make in contenders.items():
            torch.manual_seed(seed)
            model, settings = make(source.classes)
            scores[name].append(contest(model, settings, source, seed, asked.minutes))
            print(f"seed {seed}  {name}: {scores[name][-1]:.2%}", flush=True)
    figures = {name: {"mean": statistics.mean(values), "seeds": values} for name, values in scores.items()}
    print(write_record("equal-budget", {"minutes": asked.minutes, "accuracy": figures}))


def ours(config: TrainConfig, classes: tuple[str, ...]) -> nn.Module:
    fields = {"drop_path": config.drop_path, "label_smoothing": config.label_smoothing, **config.fields}
    model = swindow.build(config.model, num_classes=len(classes), in_channels=config.channels, **fields)
    mean, std = pixel_statistics(config.channels)
    model.preprocess = Preprocess(size=(config.size, config.size), mean=mean, std=std, crop_ratio=config.crop_ratio)
    model.classes = classes
    return model


def contest(model: Model, config: TrainConfig, source: DataSource, seed: int, minutes: float) -> float:
    """Accuracy on the validation photos after `minutes` of training, the schedule fitted to the measured step time."""
    began = time.monotonic()
    device = torch.device("cpu")
    augment = build_augment(config.augment, model.preprocess)
    loader = train_loader(source.split("train"), augment, batch=config.batch, seed=seed, workers=config.workers)

    def learner(total: int) -> Learner:
        precision = pick_precision(config.precision, device)
        return Learner(model, config.optim, config.augment, total=total, seed=seed, device=device, precision=precision)

    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rehearsal, batches = learner(1000), forever(loader)
    for number in range(WARM + TIMED):
        if number == WARM:
            start = time.monotonic()
        rehearsal.step([next(batches)])
    step_seconds = (time.monotonic() - start) / TIMED
    model.load_state_dict(weights)
    left = 60 * minutes - (time.monotonic() - began)
    real = learner(max(int(left / step_seconds * 0.97), 1))
    while real.position.step < real.total and time.monotonic() - began < 60 * minutes:
        real.step([next(batches)])
    print(f"  {real.position.step} of {real.total} steps of {step_seconds:.2f} s", flush=True)
    return evaluate(real.usable, source.split("val"), batch=config.batch, device="cpu").accuracy


def forever(loader):
    epoch = 0
    while True:
        loader.batch_sampler.start(epoch, 0)
        yield from loader
        epoch += 1


if __name__ == "__main__":
    main()
