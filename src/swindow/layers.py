"""The bricks that backbones are built from."""

from jaxtyping import Float
from torch import Tensor, nn

from swindow.ops.linear import Before, keeps_for_backward, linear
from swindow.ops.pieces import by_pieces
from swindow.ops.windows import pad_to_windows

_CHEAP = 256
"""Channels up to which an MLP's hidden ones are rather computed again than kept: each costs as many products."""
_PIECE = 2**21
"""Hidden values of one piece: 8 MiB of fp32, which stay in the cache and in memory that is used again at once."""


class Linear(nn.Linear):
    """`nn.Linear` for token maps, through `swindow.ops.linear`."""

    def forward(
        self, input: Float[Tensor, "..."], before: Before | None = None, learned: tuple[Tensor, ...] = ()
    ) -> Float[Tensor, "... O"]:
        return linear(input, self.weight, self.bias, before=before, learned=learned)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... C"], norm: nn.Module | None = None) -> Float[Tensor, "... C"]:
        """The MLP of `x`, or of its `norm`; training keeps neither the norm's result nor GELU's, but their sources.

        Where hidden channels are many and cheap, as on large maps, training on a CPU keeps `x` alone.
        """
        if self.training and self.dropout.p > 0:
            return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x, norm, learned_by(norm))))))

        def run(x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x, norm, learned_by(norm)), self.act)

        images = self._images_at_a_time(x)
        return run(x) if images is None else by_pieces(run, x, learned_by(self) + learned_by(norm), images)

    def _images_at_a_time(self, x: Tensor) -> int | None:
        """How many, if they are to be taken in pieces: those whose hidden channels fit into `_PIECE`."""
        few = self.fc1.in_features <= _CHEAP and x.ndim == 4 and x.device.type == "cpu"
        if not few or not keeps_for_backward((x, self.fc1.weight)):
            return None
        return max(1, _PIECE * x.shape[0] // max(1, x.numel() // x.shape[-1] * self.fc1.out_features))


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
        images = pad_to_windows(images, (self.patch, self.patch), first=2)
        # The norm's input is as large as what it gives, and quickly made again.
        keeps = images.device.type == "cpu" and keeps_for_backward((images, self.proj.weight))
        few = max(1, _PIECE * images.shape[0] // max(1, images.numel())) if keeps else images.shape[0]
        return by_pieces(self._embed, images, learned_by(self), few)

    def _embed(self, images: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W D"]:
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
        if self.norm_last:
            return self.norm(self.reduction(x, self._cells))
        return self.reduction(x, lambda x: self.norm(self._cells(x)), learned_by(self.norm))

    @staticmethod
    def _cells(x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H2 W2 D"]:
        """Cells of 2x2 tokens, each joined."""
        x = pad_to_windows(x, (2, 2))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # B H2 2 W2 2 C
        # Column-major over the cell, (0,0) (1,0) (0,1) (1,1): the order in which the published weights were trained.
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


def learned_by(module: nn.Module | None) -> tuple[Tensor, ...]:
    """A module's parameters; none of none."""
    return () if module is None else tuple(module.parameters())


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
