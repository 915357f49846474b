"""The same work for everybody: one batch through a model, with gradients and a step of AdamW or without."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.bench.timing import Run
from swindow.devices import DTYPES, Precision, autocast
from swindow.errors import ConfigError

Mode = Literal["infer", "train"]
Network = nn.Module | Callable[..., Any]
LEARNING_RATE = 1e-5  # the same few images again and again: a step that moves weights and leaves them finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every contender is given to do; a peer of your own, FILE.py:callable, is called with it."""

    model: str
    """The name of the model that others are compared with."""
    mode: Mode = "infer"
    """infer is a forward pass without gradients; train is forward, cross-entropy, backward and a step of AdamW."""
    size: tuple[int, int] = (224, 224)
    """Height and width of the images in pixels."""
    batch: int = 8
    """Images at a time."""
    dtype: Precision = "fp32"
    """Of weights and images in inference; in training, and for ``:amp``, of what autocast computes in."""
    channels: int = 3
    """Image channels."""
    classes: int = 1000
    """Logits of an image."""
    device: str = "cpu"
    """Where it runs."""

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.size) < 1:
            given = f"batch {self.batch} of {self.size[0]}x{self.size[1]} pixels"
            raise ConfigError(f"{given}: batch, height and width must be at least 1")

    @property
    def pixels(self) -> int:
        """Of all images together."""
        return self.batch * self.size[0] * self.size[1]

    @property
    def title(self) -> str:
        """The work in words."""
        what = "inference" if self.mode == "infer" else "training step"
        height, width = self.size
        return f"{self.model}, {what}, {height}x{width}, batch {self.batch}, {self.dtype}, {self.device}"

    def images(self) -> Tensor:
        """Normal noise, ``B C h w`` fp32: zeros would let some kernels off lightly."""
        noise = torch.randn(self.batch, self.channels, *self.size, generator=torch.Generator().manual_seed(0))
        return noise.to(self.device)

    def labels(self) -> Tensor:
        """A class for each image."""
        labels = torch.randint(self.classes, (self.batch,), generator=torch.Generator().manual_seed(0))
        return labels.to(self.device)


def runner(network: Network, work: Work, *, amp: bool = False, images: torch.dtype | None = None) -> Run:
    """One call is one batch of `work`, finished when it returns, on a GPU too.

    Args:
        amp: compute under autocast; training in half precision always does, so that weights stay in fp32.
        images: their dtype, if not fp32.

    Raises:
        ConfigError: training something that has no parameters.
    """
    device = torch.device(work.device)
    batch = work.images().to(images or torch.float32)
    precision: Precision = work.dtype if amp or work.mode == "train" else "fp32"
    run = _inference(network, batch, precision) if work.mode == "infer" else _training(network, batch, work, precision)

    def finished() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return finished


def _inference(network: Network, images: Tensor, precision: Precision) -> Run:
    def run() -> None:
        with torch.no_grad(), autocast(images.device, precision):
            network(images)

    return run


def _training(network: Network, images: Tensor, work: Work, precision: Precision) -> Run:
    if not isinstance(network, nn.Module):
        raise ConfigError("a callable that is no nn.Module has no parameters to train; use --mode infer")
    network.train()
    labels = work.labels()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)

    def run() -> None:
        with autocast(images.device, precision):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def dtype_of(work: Work, *, amp: bool) -> torch.dtype:
    """What weights are kept in: fp32 wherever autocast or an optimiser is at work."""
    return torch.float32 if amp or work.mode == "train" else DTYPES[work.dtype]
