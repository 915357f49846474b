"""How fast and how large our models are, beside others and beside the matrix products that they are made of.

docs/performance.md says what the figures mean and how to read them.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from swindow.bench.contenders import Contender
from swindow.bench.measuring import Comparison, Protocol, Say, compare, line, sweep
from swindow.bench.work import Mode, Work
from swindow.devices import Precision, pick_device, pick_precision
from swindow.errors import ConfigError
from swindow.model import ModelConfig, model_config, models

__all__ = ["Bench", "Comparison", "Contender", "Protocol", "Work", "bench"]

USUAL = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure."""

    models: tuple[str, ...]
    """Our models by name, run folder or published name, each perhaps with ways to run: ``swin_tiny:checkpoint``."""
    against: tuple[str, ...] = ()
    """timm, torchvision, transformers, FILE.py:callable; each perhaps with ways to run: ``timm:compile``."""
    size: tuple[int, int] | None = None
    """Height and width of the images in pixels; None is what the model is made for."""
    batch: int | None = None
    """Images at a time; None is 8, or 1 for the largest images of a sweep."""
    dtype: str = "fp32"
    """fp32, bf16, fp16, or auto for the device's own."""
    mode: Literal["infer", "train", "both"] = "both"
    """Inference, training steps, or the two."""
    sweep: bool = False
    """Also at sizes two, four and eight times as large, with the same number of pixels in all."""
    threads: int = 0
    """Of torch; 0 leaves them as they are."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    """How often, and what besides time."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no model to measure; `swindow models` lists them")
        if self.threads < 0:
            raise ConfigError(f"threads is {self.threads}; 0 leaves torch its own number")


def bench(asked: Bench, *, say: Say | None = None) -> list[Comparison]:
    """Measure our models, each beside every peer: a comparison for each model and mode, and in a sweep for each size.

    Raises:
        SwindowError: a name that is none of ours, or one of our models cannot do this.
    """
    if asked.threads:
        torch.set_num_threads(asked.threads)
    lines = {model: (_config(model), contenders) for model, contenders in line(asked.models, asked.against).items()}
    modes: tuple[Mode, ...] = ("infer", "train") if asked.mode == "both" else (asked.mode,)
    done = []
    for model, (config, contenders) in lines.items():
        for mode in modes:
            work = _work(asked, model, config, mode)
            works = sweep(work) if asked.sweep else [work]
            done += compare(contenders, config, works, asked.protocol, say=say)
    return done


def _config(name: str) -> ModelConfig:
    """Of a model by name, or of the one in a file, whose weights make no difference to time."""
    if name in models() or not (Path(name).exists() or "." in name or "/" in name):
        return model_config(name)
    from swindow.checkpoints import load

    return load(name).config


def _work(asked: Bench, model: str, config: ModelConfig, mode: Mode) -> Work:
    device = pick_device(asked.device)
    precision: Precision = pick_precision(asked.dtype, device)
    made_for: int | tuple[int, int] = getattr(config.backbone, "image_size", USUAL)
    return Work(
        model=model,
        mode=mode,
        size=asked.size or (made_for if isinstance(made_for, tuple) else (made_for, made_for)),
        batch=(1 if asked.sweep else 8) if asked.batch is None else asked.batch,
        dtype=precision,
        channels=config.in_channels,
        classes=config.head.num_classes,
        device=str(device),
    )
