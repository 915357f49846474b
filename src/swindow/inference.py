"""A model as it is used, not trained: from a path or at hand, in eval mode, without gradients, on a chosen device."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from swindow.checkpoints import load
from swindow.devices import Precision, autocast, pick_device, pick_precision
from swindow.errors import ConfigError, ShapeError, TrainingDiverged
from swindow.images import LIMITS, ImageLimits
from swindow.model import Model
from swindow.objects import Detections, Frames, Size
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

    def detect(
        self,
        pixels: UInt8[Tensor, "C h w"] | UInt8[Tensor, "B C h w"] | Sequence[UInt8[Tensor, "C _ _"]],
        *,
        limits: ImageLimits = LIMITS,
    ) -> list[Detections]:
        """What a detector finds in one picture or in several of any sizes, in each one's own pixels, on the CPU.

        All are asked at once, so their number is the caller's to choose; see `canvas`.

        Raises:
            ConfigError: this is no detector, or its preprocessing leaves parts of a picture out or adds a border.
            DataError: a picture that would be blown up beyond ``limits.max_resized_pixels``.
            TrainingDiverged: logits, boxes or scores that are not finite.
        """
        self._refuse_for_detection()
        pictures = [pixels] if isinstance(pixels, Tensor) and pixels.ndim == 3 else list(pixels)
        if not pictures:
            return []
        sources = [(picture.shape[1], picture.shape[2]) for picture in pictures]
        images, frames = self._on_canvas([self.preprocess.resize(picture, limits=limits) for picture in pictures])
        finite: list[Tensor] = []
        with (
            evaluating(self.model),
            torch.inference_mode(),
            autocast(self.device, self.precision),
            _watched(self.model.head, finite),
        ):
            answers = self.model(images, frames)
        found = [answer.cpu().resized(size) for answer, size in zip(answers, sources, strict=True)]
        finite += [values.isfinite().all() for one in found for values in (one.boxes, one.scores)]
        if not all(finite):
            raise TrainingDiverged("the model's answer is not finite; try precision fp32, or an earlier checkpoint")
        return found

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Height and width that pictures of these heights and widths take up together when a detector is asked."""
        return self._around([self.preprocess.input_size(*size) for size in sizes])

    def _on_canvas(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Frames]:
        """Pictures of any sizes as one normalised batch, each at the top left, zeros beside and below it."""
        sizes = tuple((picture.shape[1], picture.shape[2]) for picture in pictures)
        canvas = self._around(sizes)
        images = torch.zeros(len(pictures), self.preprocess.channels, *canvas, device=self.device)
        for image, picture, (tall, wide) in zip(images, pictures, sizes, strict=True):
            if len(picture) != self.preprocess.channels:
                raise ShapeError(f"a picture of {len(picture)} channels; this model takes {self.preprocess.channels}")
            image[:, :tall, :wide] = self.preprocess.normalize(picture.to(self.device, non_blocking=True))
        return images, Frames(canvas, sizes)

    def _around(self, sizes: Sequence[Size]) -> Size:
        """The least canvas for inputs of these sizes whose sides are multiples of what the head asks for."""
        head: Any = self.model.config.head
        height, width = (-(-max(sides) // head.divisor) * head.divisor for sides in zip(*sizes, strict=True))
        return height, width

    def _refuse_for_detection(self) -> None:
        if self.model.task != "detect":
            raise ConfigError(f"{self.model.config.name} is to {self.model.task}, not to detect; give a detector")
        if self.preprocess.fit in ("crop", "pad"):
            raise ConfigError(
                f"preprocess fit {self.preprocess.fit!r} is not for detectors, which see whole pictures and nothing "
                "else; choose within, native, short or squash"
            )


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


@contextlib.contextmanager
def _watched(head: nn.Module, finite: list[Tensor]) -> Iterator[None]:
    """While it is asked, note whether its outputs are finite: what is not is no detection, and would go unseen."""

    def note(_: nn.Module, __: Any, outputs: Any) -> None:
        finite.extend(values.isfinite().all() for values in outputs if isinstance(values, Tensor))

    hook = head.register_forward_hook(note)
    try:
        yield
    finally:
        hook.remove()
