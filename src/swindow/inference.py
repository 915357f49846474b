"""A model as it is used, not trained: from a path or at hand, in eval mode, without gradients, on a chosen device."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from swindow.checkpoints import load
from swindow.devices import Precision, autocast, pick_device, pick_precision
from swindow.errors import ConfigError
from swindow.model import Model
from swindow.preprocess import Preprocess


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReadyModel:
    """A model with all that it takes to ask it: pixels, class names, place and precision."""

    model: Model
    preprocess: Preprocess
    classes: tuple[str, ...]
    device: torch.device
    precision: Precision

    def logits(self, pixels: UInt8[Tensor, "B C h w"]) -> Float[Tensor, "B K *sizes"]:
        """What the model says about images as it takes them, or about each of their pixels, in fp32 on the CPU."""
        return self.maps(pixels).float().cpu()

    def maps(self, pixels: UInt8[Tensor, "B C h w"]) -> Float[Tensor, "B K *sizes"]:
        """The same as it comes: on the model's device, in its precision."""
        with evaluating(self.model), torch.inference_mode(), autocast(self.device, self.precision):
            return self.model(self.preprocess.normalize(pixels.to(self.device, non_blocking=True)))


def ready(model: Model | str | Path, *, device: str = "auto", precision: str = "auto") -> ReadyModel:
    """Make a model, or the one at a path, ready to be asked.

    With ``auto``, a model at hand stays on its device and one from a path goes to the best there is; a model that is
    sent to another device stays there. Its training mode is left as it was.

    Raises:
        CheckpointError: there is no usable checkpoint at the path.
        ConfigError: the model has no preprocessing yet, or there is no such device or precision.
    """
    if not isinstance(model, Model):
        model = load(model)
        place = pick_device(device)
    else:
        place = next(model.parameters()).device if device == "auto" else pick_device(device)
    if model.preprocess is None:
        raise ConfigError(
            f"this {model.config.name} has no preprocessing: it was built, not trained or loaded; "
            "set model.preprocess and model.classes, or load a trained one with swindow.load(path)"
        )
    names = model.classes or tuple(str(index) for index in range(model.head.config.num_classes))
    return ReadyModel(
        model=model.to(place),
        preprocess=model.preprocess,
        classes=names,
        device=place,
        precision=pick_precision(precision, place),
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; each module then gets its own mode back, since they need not all be in the same."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
