"""What heads that name the class of every pixel share: their outputs, their losses, what counts as right."""

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from swindow.errors import ConfigError, ShapeError
from swindow.heads import losses
from swindow.shapes import IGNORE


class SegmenterOutputs(NamedTuple):
    """What a head computes: logits on a grid of its own, finer or coarser than the image's."""

    logits: Float[Tensor, "B K H W"]
    auxiliary: Float[Tensor, "B K H2 W2"] | None = None
    """Those of a second classifier on an earlier map, which helps to train and answers nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """The classes of a segmentation head and what its mistakes cost; a weight of 0 leaves a loss out."""

    task: ClassVar[str] = "segment"

    num_classes: int = 150
    """How many classes a pixel can be of."""
    label_smoothing: float = 0.0
    """Share of each pixel's target spread evenly over all classes, in the cross-entropy."""
    cross_entropy: float = 1.0
    """Weight of the cross-entropy."""
    dice: float = 0.0
    """Weight of the Dice loss; Swin-Unet has 0.6, and 0.4 for the cross-entropy."""
    lovasz: float = 0.0
    """Weight of the Lovász loss, which follows the IoU (Berman et al. 2018)."""
    focal: float = 0.0
    """Weight of the focal loss (Lin et al. 2017)."""
    focal_gamma: float = 2.0
    """How much less the focal loss counts what is already told apart."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in cross-entropy and focal loss; none is 1 for all."""

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"num_classes is {self.num_classes}; a map needs at least 1 class")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        weights = (self.cross_entropy, self.dice, self.lovasz, self.focal)
        if min(weights) < 0 or max(weights) == 0 or self.focal_gamma < 0:
            raise ConfigError(
                f"cross_entropy {self.cross_entropy}, dice {self.dice}, lovasz {self.lovasz} and focal {self.focal} "
                f"are weights of losses and focal_gamma {self.focal_gamma} an exponent: none below 0, one loss above it"
            )
        if self.class_weights and (len(self.class_weights) != self.num_classes or min(self.class_weights) < 0):
            raise ConfigError(
                f"class_weights has {len(self.class_weights)} values for {self.num_classes} classes; "
                "give one of at least 0 for each, or none"
            )

    def stages(self, count: int) -> tuple[int, ...]:
        """The stages of a backbone of so many that the head reads."""
        return tuple(range(count))


def losses_of(
    logits: Float[Tensor, "B K h w"], labels: Int64[Tensor, "_ _ _"], config: SegmenterConfig
) -> dict[str, Tensor]:
    """The configured losses by name, each with its weight; computed in fp32 or wider, inside autocast too.

    Raises:
        ShapeError: labels of another size, or a label that is none of the head's classes; on a GPU, where asking would
            have it wait, such a label is left to the checks of the data and to CUDA's own assertion.
    """
    if (len(logits), *logits.shape[2:]) != tuple(labels.shape):
        raise ShapeError(
            f"labels are {tuple(labels.shape)} and logits {tuple(logits.shape)}; images and pixels must be as many"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        _check(labels, logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        return _losses_of(wide(logits), labels, config)


def wide(logits: Float[Tensor, "B K h w"]) -> Float[Tensor, "B K h w"]:
    """Logits in fp32, or as they are where they have more digits: what losses are computed in."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _losses_of(logits: Tensor, labels: Tensor, config: SegmenterConfig) -> dict[str, Tensor]:
    weights = logits.new_tensor(config.class_weights) if config.class_weights else None
    smoothing, gamma = config.label_smoothing, config.focal_gamma
    found: dict[str, Tensor] = {}
    if config.cross_entropy:
        entropy = losses.cross_entropy(logits, labels, weights=weights, smoothing=smoothing)
        found["cross_entropy"] = config.cross_entropy * entropy
    if config.dice:
        found["dice"] = config.dice * losses.dice(logits, labels)
    if config.lovasz:
        found["lovasz"] = config.lovasz * losses.lovasz(logits, labels)
    if config.focal:
        found["focal"] = config.focal * losses.focal(logits, labels, gamma=gamma, weights=weights)
    return found


def _check(labels: Tensor, classes: int) -> None:
    if labels.numel() == 0:
        return
    lowest, highest = (int(value) for value in labels.aminmax())
    if lowest < IGNORE or highest >= classes:
        wrong = highest if highest >= classes else lowest
        raise ShapeError(
            f"a pixel is labelled {wrong}; {classes} classes are 0 to {classes - 1}, and {IGNORE} is no class: give "
            "the head as many classes as the masks have, or mark other values with ignore_index"
        )


def right_of(logits: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B h w"]) -> tuple[Tensor, Tensor]:
    """How many pixels are answered rightly, of how many that count, seen where the map's cells have their middle."""
    rows, columns = (
        ((torch.arange(cells, device=labels.device) + 0.5) * side / cells).long()
        for cells, side in zip(logits.shape[-2:], labels.shape[-2:], strict=True)
    )
    seen = labels[:, rows[:, None], columns]
    counted = seen != IGNORE
    return ((logits.detach().argmax(1) == seen) & counted).sum(), counted.sum()
