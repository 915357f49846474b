"""A model to learn from: read when it is first asked, and asked in its own terms about what the student sees."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from swindow.checkpoints import load, open_weights
from swindow.config import dumps
from swindow.data.sources import few
from swindow.errors import ConfigError
from swindow.model import Model, ModelConfig
from swindow.objects import Frames
from swindow.preprocess import Preprocess
from swindow.shapes import Images, Pyramid

FIXED = ("crop", "squash", "pad")
"""Fits that make every picture as large as the model's input."""
GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R 601), as images are read."""


class Teacher:
    """What is known of a model before it is read, and its answers.

    It is no `nn.Module`: nobody trains, moves, saves, averages or cuts it up along with the student.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        preprocess: Preprocess | None,
        classes: tuple[str, ...] | None,
        read: Callable[[], Model],
        digest: Callable[[], str],
    ) -> None:
        """`read` gives the model when it is needed, `digest` a text that changes with its weights.

        Raises:
            ConfigError: it does not say how pixels become its input.
        """
        if preprocess is None:
            raise ConfigError(f"teacher {name} has no preprocessing: give one that was trained or loaded")
        self.name, self.config, self.classes = name, config, classes
        self.preprocess, self.digest = preprocess, digest
        self._read = read
        self._model: Model | None = None

    @classmethod
    def at(cls, path: str | Path) -> "Teacher":
        """The one in a run folder or checkpoint, or of a published name.

        Raises:
            CheckpointError: there is none; the message says what is wrong.
        """
        opened = open_weights(path)
        card, state = opened.card, opened.weights.state
        digest = _digest(dumps(card.model), state)
        return cls(str(path), card.model, card.preprocess, card.classes, lambda: load(path), lambda: digest)

    @classmethod
    def of(cls, model: Model) -> "Teacher":
        """A model at hand, put in eval mode when it is asked."""
        return cls(
            model.config.name,
            model.config,
            model.preprocess,
            model.classes,
            lambda: model,
            lambda: _digest(dumps(model.config), model.state_dict()),
        )

    @property
    def task(self) -> str:
        """What it is for."""
        return self.config.head.task

    def order_of(self, classes: Sequence[str]) -> list[int]:
        """The place among its answers of each of these classes, by name.

        Raises:
            ConfigError: it does not know some of them, or not by name.
        """
        own = self.classes
        if own is None or self.config.head.num_classes == 0:
            raise ConfigError(
                f"teacher {self.name} does not name its classes; give one that does, or --distill features"
            )
        missing = [name for name in classes if name not in own]
        if missing:
            raise ConfigError(
                f"teacher {self.name} knows {len(own)} classes and not {few(missing)} of the data's {len(classes)}; "
                "give one trained on all of them, or --distill features, which needs none"
            )
        places = {name: place for place, name in enumerate(own)}
        return [places[name] for name in classes]

    def check_channels(self, pixels: Preprocess) -> None:
        """Whether images as `pixels` prepares them can be turned into its own.

        Raises:
            ConfigError: the one has channels that the other has not.
        """
        theirs, own = pixels.channels, self.preprocess.channels
        if theirs != own and {theirs, own} != {1, 3}:
            raise ConfigError(
                f"teacher {self.name} sees {own} channels and the student {theirs}; grey and colour can be turned into "
                "one another, others not: give a teacher of as many channels"
            )

    def size_for(self, size: tuple[int, int], pixels: Preprocess) -> tuple[int, int]:
        """Height and width at which it sees images of `size`: its own where both always see images of one size."""
        fixed = pixels.fit in FIXED and self.preprocess.fit in FIXED
        return self.preprocess.size if fixed else size

    def sees(self, images: Images, pixels: Preprocess, frames: Frames | None = None) -> Float[Tensor, "B D H W"]:
        """Images that `pixels` has normalised as it takes them: its own mean and deviation, channels and size."""
        size = (images.shape[2], images.shape[3])
        own = self.preprocess
        wanted = self.size_for(size, pixels)
        if (own.mean, own.std, wanted) == (pixels.mean, pixels.std, size):
            return images
        x = images * _per_channel(pixels.std, images) + _per_channel(pixels.mean, images)
        if own.channels > pixels.channels:
            x = x.expand(-1, own.channels, -1, -1)
        elif own.channels < pixels.channels:
            x = (x * _per_channel(GREY, x)).sum(1, keepdim=True)
        if wanted != size:
            x = F.interpolate(x, size=wanted, mode=own.interpolation, antialias=True, align_corners=False)
            x = x.clamp(0, 1)  # bicubic weights reach beyond
        x = (x - _per_channel(own.mean, x)) / _per_channel(own.std, x)
        return x if frames is None or wanted != size else frames.cleared(x)

    @torch.no_grad()
    def logits(self, images: Images, pixels: Preprocess) -> Float[Tensor, "B K *sizes"]:
        """What it says about images that `pixels` has normalised, for all of its classes; in autocast's precision."""
        return self.model(images.device)(self._as_its_own(self.sees(images, pixels)))

    @torch.no_grad()
    def maps(self, images: Images, pixels: Preprocess, frames: Frames | None = None) -> Pyramid:
        """The map of every stage of its backbone, ``B H W C``, before any output norm."""
        backbone = self.model(images.device).backbone
        return tuple(backbone.stage_maps(self._as_its_own(self.sees(images, pixels, frames))))

    def model(self, device: torch.device) -> Model:
        """The model itself, on a device, in eval mode; read now if nobody has asked for it yet."""
        if self._model is None:
            with torch.random.fork_rng(devices=[]):  # building draws what weights then replace: not the student's draws
                self._model = self._read()
        return self._model.to(device).eval()

    def _as_its_own(self, images: Images) -> Images:
        """In the precision of its weights, where a program has made the student's another."""
        return images.to(next(self.model(images.device).parameters()).dtype)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


def _digest(config: str, state: dict[str, Tensor]) -> str:
    """SHA-256 of a model's shape and weights."""
    found = hashlib.sha256(config.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
