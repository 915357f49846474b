"""Label-free pretraining: paint the parts of an image that are hidden (SimMIM; Xie et al. 2022, arXiv 2111.09886).

The decoder is one linear layer on the last map (section 3.3); a token of the pretraining model, not of its backbone,
stands where patches are hidden, so that the backbone that is kept is an ordinary one.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.backbones.hiding import Hidden
from swindow.errors import ConfigError, ShapeError
from swindow.heads.losses import at_least_fp32
from swindow.shapes import Images, Pyramid


class SimMimOutputs(NamedTuple):
    """What the head computes: every pixel of the image, normalised as the images were; padding included."""

    painting: Float[Tensor, "B C h2 w2"]


class Covered(NamedTuple):
    """What is to be painted: whole images, normalised, and which of their cells are hidden."""

    images: Images
    cells: Bool[Tensor, "B R S"]
    """True where a cell of `mask_patch` pixels a side is hidden."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimMimConfig:
    """How much of an image is hidden, and what is painted in its place."""

    kind: ClassVar[str] = "simmim"
    task: ClassVar[str] = "pretrain"
    num_classes: ClassVar[int] = 0

    in_channels: int = 3
    """Image channels that are painted: the model's own."""
    mask_patch: int = 32
    """Side of the cells that are hidden, in pixels: a multiple of the model's patch (section 4.1)."""
    mask_ratio: float = 0.6
    """Share of the cells that is hidden, in (0, 1); rounded up to whole cells."""
    norm_target: int = 0
    """Paint pixels less the mean of a square around each, by its deviation; its side in pixels, odd, 47 as in the code
    that pretrained Swin V2. 0 paints the pixels themselves."""

    def __post_init__(self) -> None:
        if min(self.in_channels, self.mask_patch) < 1:
            raise ConfigError(f"in_channels {self.in_channels} and mask_patch {self.mask_patch} must be at least 1")
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"mask_ratio is {self.mask_ratio}; a share that leaves something to see lies in (0, 1)")
        if self.norm_target and (self.norm_target < 3 or self.norm_target % 2 == 0):
            raise ConfigError(
                f"norm_target is {self.norm_target}; give an odd side of at least 3 pixels, or 0 for none"
            )

    def stages(self, count: int) -> tuple[int, ...]:
        """The stages of a backbone of so many that the head reads: the last."""
        return (count - 1,)

    def build(self, channels: tuple[int, ...], strides: tuple[int, ...] = (), backbone: Any = None) -> "SimMim":
        """The head that this describes, for a pyramid with these channels and strides.

        Raises:
            ConfigError: cells that are not made of whole patches.
        """
        if self.mask_patch % backbone.patch:
            raise ConfigError(
                f"mask_patch {self.mask_patch} is no multiple of the model's patch {backbone.patch}; give one"
            )
        return SimMim(self, channels[-1], strides[-1], patch=backbone.patch, dim=backbone.dim)


class SimMim(nn.Module):
    """The last map to pixels, and the token for hidden patches; the loss counts hidden pixels alone."""

    def __init__(self, config: SimMimConfig, channels: int, stride: int, *, patch: int, dim: int) -> None:
        super().__init__()
        self.config, self.stride, self.patch = config, stride, patch
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Conv2d(channels, stride**2 * config.in_channels, kernel_size=1)

    def hidden(self, cells: Bool[Tensor, "B R S"]) -> Hidden:
        """Hidden cells as the backbone takes them: patch by patch, with the token."""
        return Hidden(_enlarged(cells, self.config.mask_patch // self.patch), self.mask_token)

    def pixels(self, cells: Bool[Tensor, "B R S"]) -> Bool[Tensor, "B h w"]:
        """Hidden cells pixel by pixel."""
        return _enlarged(cells, self.config.mask_patch)

    def forward(self, pyramid: Pyramid) -> SimMimOutputs:
        return SimMimOutputs(F.pixel_shuffle(self.decoder(pyramid[-1].permute(0, 3, 1, 2)), self.stride))

    def loss(self, outputs: SimMimOutputs, targets: Covered) -> dict[str, Tensor]:
        """The mean absolute difference over hidden pixels and channels, in normalised values (section 3.4)."""
        painting, wanted, mask = self._compared(outputs, targets)
        total = ((wanted - painting).abs() * mask).sum()
        return {"l1": total / (mask.sum() + 1e-5) / self.config.in_channels}

    def errors(
        self, outputs: SimMimOutputs, targets: Covered
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, "B C"]]:
        """Of each image over its hidden pixels: the mean absolute error, that of a flat painting, the mean squared one.

        A flat painting has, in each channel, the mean of the pixels that are seen. The last is by channel.
        """
        painting, wanted, mask = self._compared(outputs, targets)
        shown = 1 - mask
        flat = (wanted * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True)
        hidden = mask.sum((1, 2, 3))
        far = [((wanted - one).abs() * mask).sum((1, 2, 3)) / hidden / wanted.shape[1] for one in (painting, flat)]
        return far[0], far[1], ((wanted - painting).square() * mask).sum((2, 3)) / hidden[:, None]

    def right(self, outputs: SimMimOutputs, targets: Covered) -> tuple[Tensor, Tensor]:
        """How much of a flat painting's error is gone, of how much there is (below 0 where the painting is worse)."""
        with torch.no_grad():
            error, flat, _ = self.errors(outputs, targets)
        values = targets.images[0].numel()  # as many a picture as there are, so that a sum is never a fraction
        return (flat - error).sum() * values, flat.sum() * values

    def decode(self, outputs: SimMimOutputs, size: tuple[int, int]) -> Images:
        """Every pixel of images of this height and width, hidden or not, normalised as what the model is given.

        With `norm_target` these are differences from a mean by a deviation; `as_images` has the pixels.
        """
        return outputs.painting[:, :, : size[0], : size[1]]

    def as_images(self, outputs: SimMimOutputs, images: Images) -> Images:
        """The painting in the values of `images`; with `norm_target`, means and deviations are those of `images`."""
        painting = at_least_fp32(self.decode(outputs, (images.shape[2], images.shape[3])))
        if not self.config.norm_target:
            return painting
        mean, deviation = local_statistics(at_least_fp32(images), self.config.norm_target)
        return painting * deviation + mean

    def _compared(self, outputs: SimMimOutputs, targets: Covered) -> tuple[Tensor, Tensor, Tensor]:
        """What is painted, what should be, and 1 where it counts, ``B 1 h w``; in fp32 at least."""
        images = at_least_fp32(targets.images)
        painting = at_least_fp32(self.decode(outputs, (images.shape[2], images.shape[3])))
        mask = self.pixels(targets.cells)[:, None].to(images.dtype)
        if mask.shape[2:] != images.shape[2:]:
            raise ShapeError(
                f"hidden cells cover {tuple(mask.shape[2:])} pixels and the images have {tuple(images.shape[2:])}; "
                f"give a row and a column of cells for every {self.config.mask_patch} pixels"
            )
        if self.config.norm_target:
            mean, deviation = local_statistics(images, self.config.norm_target)
            images = (images - mean) / deviation
        return painting, images, mask


def local_statistics(images: Images, side: int) -> tuple[Images, Images]:
    """Mean and deviation of the square around every pixel, as much of it as lies in the image.

    The variance is that of a sample, with a millionth added (SimMIM's ``norm_targets``).
    """

    def mean(x: Tensor, *, whole: bool = False) -> Tensor:
        return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=whole)

    count = mean(torch.ones_like(images[:1, :1]), whole=True) * side**2
    means = mean(images)
    variance = (mean(images.square()) - means.square()) * (count / (count - 1))
    return means, (variance.clamp(min=0) + 1e-6).sqrt()


def _enlarged(cells: Tensor, factor: int) -> Tensor:
    """Every cell as a square of so many by so many."""
    return cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
