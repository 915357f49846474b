"""From 8-bit pixels to model input, the same way every time, and back from model pixels to source pixels."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from swindow.errors import ConfigError, DataError
from swindow.images import LIMITS, ImageLimits

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Region(NamedTuple):
    """The rectangle of the source that fills the model's input, in source pixels; ``fit="pad"`` reaches outside it.

    Model pixel ``(y, x)`` of an ``H × W`` input shows source point ``top + (y + ½) · height / H - ½``, and so for x.
    """

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture of any size becomes model input of one size.

    A rectangle is cut out first and only that is resampled, so no aspect ratio can make a large image: a picture of
    1 × 100,000 pixels gives one pixel to ``fit="crop"``, where resizing the short side first would make 6.5 Gpixel.
    """

    size: tuple[int, int]
    """Height and width of the model input, in pixels; of the windows it was trained on where pictures keep their own
    size (``native``, ``short``); how long the short side becomes and the long one may be (``within``)."""
    mean: tuple[float, ...]
    """Per channel, of values in 0..1; its length is the number of channels."""
    std: tuple[float, ...]
    """Per channel, of values in 0..1."""
    fit: Literal["crop", "squash", "pad", "native", "short", "within"] = "crop"
    """The largest centred rectangle of the input's aspect; or the whole picture, stretched; or whole, with a border. To
    name every pixel also the picture at its own size (times `zoom`), or with its short side as long as that of `size`;
    to find objects also ``within``: the same, but smaller where the long side would be longer than that of `size`."""
    crop_ratio: float = 0.875
    """Side of that rectangle as a part of the largest possible (``fit="crop"`` only; 1 keeps all)."""
    zoom: float = 1.0
    """Pixels of the input for each of the picture's, along a side (``fit="native"`` only)."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Always with antialiasing."""
    intensity: tuple[float, float] | None = None
    """The values of 16-bit and float sources that become 0 and 255, others clipped: a window in the source's units,
    such as Hounsfield's. None is the full range of a file's type, and a volume's percentiles 0.5 and 99.5."""

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ConfigError(f"preprocess size {self.size} is not a height and a width of at least 1")
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ConfigError(f"preprocess mean {self.mean} and std {self.std} need one value a channel, std above 0")
        if self.fit not in ("crop", "squash", "pad", "native", "short", "within"):
            raise ConfigError(f"preprocess fit {self.fit!r} is not one of crop, squash, pad, native, short, within")
        if not 0 < self.zoom <= 64:
            raise ConfigError(f"preprocess zoom {self.zoom} is not in (0, 64]")
        if self.intensity is not None and not self.intensity[0] < self.intensity[1]:
            raise ConfigError(f"preprocess intensity {self.intensity} is not a lower and a higher value")
        if not 0 < self.crop_ratio <= 1:
            raise ConfigError(f"preprocess crop_ratio {self.crop_ratio} is not in (0, 1]")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"preprocess interpolation {self.interpolation!r} is not one of bilinear, bicubic")

    @property
    def channels(self) -> int:
        """Channels of the model input."""
        return len(self.mean)

    def region(self, height: int, width: int) -> Region:
        """Which part of a `height` × `width` picture the model sees; whole pixels except for ``fit="pad"``."""
        if self.fit in ("squash", "native", "short", "within"):
            return Region(0, 0, height, width)
        if self.fit == "pad":
            top, left, inner_height, inner_width = self._padded(height, width)
            down, right = height / inner_height, width / inner_width
            return Region(-top * down, -left * right, self.size[0] * down, self.size[1] * right)
        scale = self.crop_ratio * min(height / self.size[0], width / self.size[1])
        inner_height, inner_width = (max(1, round(side * scale)) for side in self.size)
        return Region((height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the model input that a `height` × `width` picture becomes."""
        if self.fit not in ("native", "short", "within"):
            return self.size
        scale = self.scale(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def scale(self, height: int, width: int) -> float:
        """Pixels of the input for each of a `height` × `width` picture's, along a side.

        Raises:
            ConfigError: ``fit="squash"``, which has one for each side.
        """
        if self.fit == "native":
            return self.zoom
        short = min(self.size) / min(height, width)
        if self.fit == "short":
            return short
        if self.fit == "within":
            return min(short, max(self.size) / max(height, width))
        down, across = self.size[0] / height, self.size[1] / width
        if self.fit == "pad":
            return min(down, across)
        if self.fit == "crop":
            return max(down, across) / self.crop_ratio
        raise ConfigError("fit 'squash' has no one scale; for one choose native, short, within, pad or crop")

    def resize(self, image: UInt8[Tensor, "*B C h w"], *, limits: ImageLimits = LIMITS) -> UInt8[Tensor, "*B C H W"]:
        """Pixels at the size of `input_size`, still 8-bit; a batch of one size is done at once.

        Raises:
            DataError: a very long, thin picture that ``squash`` would blow up beyond ``limits.max_resized_pixels``.
        """
        height, width = image.shape[-2:]
        if self.fit == "pad":
            top, left, inner_height, inner_width = self._padded(height, width)
            inner = self._resample(image, (inner_height, inner_width), limits)
            canvas = inner.new_tensor([round(255 * mean) for mean in self.mean])[:, None, None]
            canvas = canvas.expand(*image.shape[:-2], *self.size).contiguous()
            canvas[..., top : top + inner_height, left : left + inner_width] = inner
            return canvas
        top, left, inner_height, inner_width = (int(side) for side in self.region(height, width))
        size = self.input_size(height, width)
        return self._resample(image[..., top : top + inner_height, left : left + inner_width], size, limits)

    def restore(self, maps: Float[Tensor, "B K H W"], size: tuple[int, int]) -> Float[Tensor, "B K h w"]:
        """Maps at the model's input size back on the pixels of a picture of this height and width, bilinearly.

        Raises:
            ConfigError: ``fit="crop"``, which does not see all of the picture.
        """
        if self.fit == "crop":
            raise ConfigError(
                "fit 'crop' leaves parts of the picture out; for maps choose native, short, within, squash or pad"
            )
        if self.fit == "pad":
            top, left, height, width = self._padded(*size)
            maps = maps[..., top : top + height, left : left + width]
        if maps.shape[-2:] == size:
            return maps
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def normalize(self, batch: UInt8[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """``(pixel / 255 - mean) / std`` in float32, on the batch's own device."""
        mean = torch.tensor(self.mean, device=batch.device)[:, None, None] * 255
        std = torch.tensor(self.std, device=batch.device)[:, None, None] * 255
        return batch.to(torch.float32).sub_(mean).div_(std)

    def __call__(self, image: UInt8[Tensor, "*B C h w"]) -> Float[Tensor, "*B C H W"]:
        """`resize`, then `normalize`."""
        return self.normalize(self.resize(image))

    def _padded(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Where the whole picture lies inside the model input: top, left, height, width."""
        scale = self.scale(height, width)
        inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
        return (self.size[0] - inner_height) // 2, (self.size[1] - inner_width) // 2, inner_height, inner_width

    def _resample(
        self, image: UInt8[Tensor, "*B C h w"], size: tuple[int, int], limits: ImageLimits
    ) -> UInt8[Tensor, "*B C H W"]:
        height, width = image.shape[-2:]
        if (height, width) == size:
            return image
        if height * size[1] > limits.max_resized_pixels:  # rows are resampled first: the largest image on the way
            raise DataError(
                f"resizing {height} × {width} pixels to {size[0]} × {size[1]} takes {height * size[1]:,} pixels on the "
                f"way, over the limit of {limits.max_resized_pixels:,}; crop the picture, or use fit = 'crop'"
            )
        flat = image.flatten(0, -4) if image.ndim > 3 else image[None]
        if image.device.type != "cpu" or size[1] == 1:  # 8-bit resampling is the CPU's, and wrong there for one column
            flat = flat.float()
        out = F.interpolate(flat, size=size, mode=self.interpolation, antialias=True, align_corners=False)
        if out.is_floating_point():
            out = out.round_().clamp_(0, 255).to(torch.uint8)
        return out.reshape(*image.shape[:-2], *size)
