"""Swin-MLP: Swin with a spatial MLP in place of attention (Liu et al. 2021, arXiv 2103.14030, section 4.4, table 6)."""

import dataclasses
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.backbones.geometry import Sides, Windowing
from swindow.backbones.windowed import Stage, WindowedConfig
from swindow.layers import DropPath, Mlp, PatchMerge, init_weights
from swindow.ops.windows import Size, crop, merge, pad_to_windows, partition
from swindow.shapes import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinMlpConfig(WindowedConfig):
    """The shape of a Swin-MLP; `num_heads` are groups of channels, each with spatial weights of its own."""

    kind: ClassVar[str] = "swin_mlp"

    window: Sides = 8
    image_size: int | tuple[int, int] = 256

    def stage(self, number: int, rates: list[float]) -> Stage:
        """Blocks with windows unshifted and shifted in turn, and a merge unless it is the last stage."""
        cuts = zip(self.windowings(number), rates, strict=True)
        blocks = [Block(self, number, cut, drop_path=rate) for cut, rate in cuts]
        last = number == len(self.depths) - 1
        return Stage(blocks, None if last else PatchMerge(self.channels[number]))

    def initialise(self, module: nn.Module) -> None:
        """As `init_weights`, and spatial weights like linear ones."""
        init_weights(module)
        if isinstance(module, SpatialMlp):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # there is one


class SpatialMlp(nn.Conv1d):
    """Token t of a window becomes ``bias[n, t] + Σ_s weight[n, t, s] · token s``, in each head n of the channels.

    In effect a pointwise convolution in N groups, over the N·T places of a window as its channels; the weights keep
    that layout, ``N·T T 1`` and ``N·T``, as published. Where windows are shifted, they are cut at shift, shift +
    window … like those of attention, but there is no roll and no mask: what a window reaches beyond the map is zero.
    The same holds to the right and below where the windows do not divide the map.
    """

    def __init__(self, num_heads: int, windowing: Windowing) -> None:
        places = num_heads * windowing.window[0] * windowing.window[1]
        super().__init__(places, places, 1, groups=num_heads)
        self.num_heads, self.windowing = num_heads, windowing

    @property
    def window(self) -> Size:
        """Height and width of the windows, in tokens."""
        return self.windowing.window

    def forward(self, x: Tokens) -> Tokens:
        height, width = x.shape[1], x.shape[2]
        shift = self.windowing.shift_at(height, width)
        above, left = (side - by if by else 0 for side, by in zip(self.window, shift, strict=True))
        padded = pad_to_windows(F.pad(x, (0, 0, left, 0, above, 0)) if above or left else x, self.window)
        windows = partition(padded, self.window)
        heads = windows.flatten(0, 1).unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)  # BG N h w D
        mixed = self.mix(heads).permute(0, 2, 3, 1, 4).flatten(3)
        whole = merge(mixed.unflatten(0, windows.shape[:2]), (padded.shape[1], padded.shape[2]))
        return crop(whole, (height, width), (above, left))

    def mix(self, heads: Float[Tensor, "_ N h w D"]) -> Float[Tensor, "_ N h w D"]:
        """Every place of a window from all of them; while compiling as a product, of which nobody asks how large."""
        if not torch.compiler.is_compiling():
            return super().forward(heads.flatten(1, 3)).unflatten(1, heads.shape[1:4])
        places = self.window[0] * self.window[1]
        weight = self.weight.view(self.num_heads, places, places)
        bias = cast(Tensor, self.bias).view(self.num_heads, places, 1)
        return (weight @ heads.flatten(2, 3) + bias).unflatten(2, self.window)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, {self.windowing}"


class Block(nn.Module):
    """Pre-norm block: spatial MLP in windows, then channel MLP, each on a residual."""

    def __init__(self, config: SwinMlpConfig, stage: int, windowing: Windowing, *, drop_path: float) -> None:
        super().__init__()
        dim = config.channels[stage]
        self.norm1 = nn.LayerNorm(dim)
        self.spatial_mlp = SpatialMlp(config.num_heads[stage], windowing)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim), config.dropout)

    def forward(self, x: Tokens) -> Tokens:
        x = x + self.drop_path(self.spatial_mlp(self.norm1(x)))
        return x + self.drop_path(self.mlp(x, self.norm2))


def _tiny(channels: int) -> SwinMlpConfig:
    """Swin's tiny with so many channels a head."""
    heads = tuple(96 * 2**stage // channels for stage in range(4))
    return SwinMlpConfig(dim=96, depths=(2, 2, 6, 2), num_heads=heads, drop_path=0.2)


VARIANTS = {
    "swin_mlp_tiny_c24": _tiny(24),
    "swin_mlp_tiny_c12": _tiny(12),
    "swin_mlp_tiny_c6": _tiny(6),
    "swin_mlp_base": SwinMlpConfig(
        dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=7, image_size=224, drop_path=0.5
    ),
}
