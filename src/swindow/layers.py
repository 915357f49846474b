"""The bricks that backbones are built from."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.ops.linear import linear
from swindow.ops.windows import count, pad_to_windows


class Linear(nn.Linear):
    """`nn.Linear` for token maps, through `swindow.ops.linear`."""

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return linear(input, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for a whole sample with probability `rate` in [0, 1).

    What survives is divided by the probability to survive (Huang et al. 2016, section 3).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        survivors = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * survivors.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens by a strided convolution and a norm (Swin, section 3.1).

    An image that is not a multiple of the patch is padded with zeros to the right and below.
    """

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W D"]:
        below, right = (count(side, self.patch) * self.patch - side for side in images.shape[2:])
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerge(nn.Module):
    """Halve the grid and double the channels: each 2x2 cell of tokens joined, normed, projected (section 3.1).

    With `norm_last`, as in V2, the norm comes after the projection.
    """

    def __init__(self, dim: int, *, norm_last: bool = False) -> None:
        super().__init__()
        self.norm_last = norm_last
        self.norm = nn.LayerNorm((2 if norm_last else 4) * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H2 W2 D"]:
        x = pad_to_windows(x, (2, 2))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # B H2 2 W2 2 C
        # Column-major over the cell, (0,0) (1,0) (0,1) (1,1): the order in which the published weights were trained.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.norm(self.reduction(x)) if self.norm_last else self.reduction(self.norm(x))


def init_weights(module: nn.Module) -> None:
    """For `nn.Module.apply`: linear weights from a normal of deviation 0.02 cut at ±2, biases zero, norms one."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def drop_path_rates(highest: float, depths: tuple[int, ...]) -> list[list[float]]:
    """A rate per block, growing linearly with depth from 0 to `highest`, grouped by stage."""
    last = max(sum(depths) - 1, 1)
    rates = [highest * index / last for index in range(sum(depths))]
    stages, start = [], 0
    for depth in depths:
        stages.append(rates[start : start + depth])
        start += depth
    return stages
