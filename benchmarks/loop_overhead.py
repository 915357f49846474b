"""What our training loop costs beyond the work itself: `python benchmarks/loop_overhead.py`.

`swindow.train` with metrics and event files on and no average of weights, against a bare loop of the same model,
loader, precision and optimiser: forward, loss, backward, clip, step. The two alternate; a ratio is the median over
neighbouring runs, of wall time and, steadier on a shared machine, of processor time.
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from record import write_record

import swindow
from swindow.data import open_data
from swindow.data.augment import build_augment
from swindow.data.loading import train_loader
from swindow.devices import autocast, pick_precision
from swindow.learner import Learner
from swindow.progress import Lines
from swindow.settings import TrainConfig
from swindow.training import train

STEPS, ROUNDS = 60, 7


class Clock(Lines):
    """Plain lines, as in a log, and the time between the first step and the last."""

    def begin(self, title: str, total: int, done: int = 0) -> None:
        super().begin(title, total, done)
        self.began_at, self.processor_at = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.seconds = time.perf_counter() - self.began_at
        self.processor = time.process_time() - self.processor_at

    def say(self, line: str) -> None:
        return


def main() -> None:
    config = dataclasses.replace(
        swindow.configure("digits"),
        fields={"patch": 1},
        epochs=10,
        max_steps=STEPS,
        eval_every=10,
        save_minutes=1e9,
        report=False,
    )
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema=0.0, clip=1.0))
    pairs = [(with_train(config), without(config)) for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    figures = {}
    for place, name in enumerate(("wall", "processor")):
        ratios = [ours[place] / bare[place] for ours, bare in pairs]
        figures[f"{name}_ratio"] = statistics.median(ratios)
        figures[f"{name}_step_ms"] = 1e3 * statistics.median(ours[place] for ours, _ in pairs) / STEPS
        figures[f"{name}_bare_step_ms"] = 1e3 * statistics.median(bare[place] for _, bare in pairs) / STEPS
        figures[f"{name}_ratios"] = ratios
    print(figures)
    print(write_record("loop-overhead", {"steps": STEPS, "rounds": ROUNDS, **figures}))


def with_train(config: TrainConfig) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        train(dataclasses.replace(config, out=str(Path(folder) / "run")), progress=clock)
        return clock.seconds, clock.processor


def without(config: TrainConfig) -> tuple[float, float]:
    device = torch.device("cpu")
    precision = pick_precision(config.precision, device)
    source = open_data(config.data, channels=config.channels, seed=config.seed)
    torch.manual_seed(config.seed)
    model = swindow.build(config.model, num_classes=10, in_channels=1, drop_path=config.drop_path, **config.fields)
    model.preprocess = swindow.preprocess.Preprocess(
        size=(config.size, config.size), mean=(0.449,), std=(0.226,), crop_ratio=config.crop_ratio
    )
    loader = train_loader(
        source.split("train"), build_augment(config.augment, model.preprocess), batch=config.batch, seed=0, workers=0
    )
    total = len(loader) * config.epochs
    learner = Learner(
        model, config.optim, config.augment, total=total, seed=0, device=device, precision=precision
    )  # for its optimisers and its schedule only
    optimizer, off = learner.optimizer, learner.scaler
    model.train()
    began, processor, done = time.perf_counter(), time.process_time(), 0
    for epoch in range(config.epochs):
        loader.batch_sampler.start(epoch, 0)
        for batch in loader:
            optimizer.set_rate(learner.rate)
            with autocast(device, precision):
                losses = model.head.loss(model.outputs(model.preprocess.normalize(batch.images)), batch.labels)
            losses["cross_entropy"].backward()
            optimizer.collect(off)
            optimizer.step(off)
            done += 1
            if done == STEPS:
                return time.perf_counter() - began, time.process_time() - processor
    raise AssertionError(f"fewer than {STEPS} steps in {config.epochs} epochs")


if __name__ == "__main__":
    main()
