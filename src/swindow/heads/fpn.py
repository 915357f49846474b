"""The feature pyramid network (Lin et al. 2017, arXiv 1612.03144): maps of one width that say what the coarser ones do.

Maps of one stride, as plain transformers give, are made a pyramid first.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.heads.pyramid import SimplePyramid, as_map, is_flat, strides_of
from swindow.shapes import Pyramid

Extra = Literal["pool", "conv", "relu_conv"]
ExtraFrom = Literal["map", "level"]


class FPN(nn.Module):
    """NHWC maps to ``B C H W`` maps of `width` channels, finest first, with `extra_levels` coarser ones behind them.

    Args:
        extra: how those come about: every other cell of the last one (``pool``; what region proposals see), or
            convolutions of stride 2 (``conv``; RetinaNet), all but the first after a ReLU (``relu_conv``).
        extra_from: what the first convolution sees: the backbone's last ``map``, or the last ``level`` made of it.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        width: int,
        *,
        extra: Extra = "pool",
        extra_levels: int = 1,
        extra_from: ExtraFrom = "map",
    ) -> None:
        super().__init__()
        flat = is_flat(strides)
        self.pyramid = SimplePyramid(channels) if flat else None
        own = strides_of(strides[0], len(strides)) if flat else tuple(float(stride) for stride in strides)
        self.strides = (*own, *(own[-1] * 2**step for step in range(1, extra_levels + 1)))
        """Pixels per cell of each map."""
        self.extra, self.extra_levels, self.extra_from = extra, extra_levels, extra_from
        self.laterals = nn.ModuleList(nn.Conv2d(wide, width, 1) for wide in channels)
        self.smooths = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        first = channels[-1] if extra_from == "map" else width
        wides = [] if extra == "pool" else [first, *[width] * extra_levels][:extra_levels]
        self.extras = nn.ModuleList(nn.Conv2d(wide, width, 3, stride=2, padding=1) for wide in wides)
        for layer in (*self.laterals, *self.smooths, *self.extras):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Pyramid) -> tuple[Float[Tensor, "B C _ _"], ...]:
        maps = [as_map(x) for x in (pyramid if self.pyramid is None else self.pyramid(pyramid))]
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for finer in range(len(levels) - 2, -1, -1):
            above = F.interpolate(levels[finer + 1], size=levels[finer].shape[-2:], mode="nearest")
            levels[finer] = levels[finer] + above
        levels = [smooth(x) for smooth, x in zip(self.smooths, levels, strict=True)]
        return (*levels, *self._coarser(maps[-1], levels[-1]))

    def _coarser(self, last_map: Tensor, last_level: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        if self.extra == "pool":
            for _ in range(self.extra_levels):
                last_level = F.max_pool2d(last_level, 1, stride=2)
                found.append(last_level)
        for number, layer in enumerate(self.extras):
            before = found[-1] if number else last_map if self.extra_from == "map" else last_level
            found.append(layer(F.relu(before) if number and self.extra == "relu_conv" else before))
        return found
