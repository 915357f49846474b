"""The bricks that backbones are built from."""

import functools
from collections.abc import Callable
from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.ops.linear import Before, keeps_for_backward, linear
from swindow.ops.pieces import by_pieces
from swindow.ops.windows import pad_to_windows

_CHEAP = 256
"""Channels up to which an MLP's hidden ones are rather computed again than kept: each costs as many products."""
_PIECE = 2**21
"""Hidden values of one piece: 8 MiB of fp32, which stay in the cache and in memory that is used again at once."""


class Linear(nn.Linear):
    """`nn.Linear` for token maps, through `swindow.ops.linear`."""

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return linear(input, self.weight, self.offset())

    def offset(self) -> Tensor | None:
        """What is added to every product: the bias, unless a subclass makes it of other parameters."""
        return self.bias

    def after(self, before: Before, x: Tensor, learned: tuple[Tensor, ...] = ()) -> Float[Tensor, "... O"]:
        """The layer on ``before(x, *learned)``, which training computes again rather than keep."""
        return linear(x, self.weight, self.offset(), before=before, learned=learned)


def on_norm(
    layer: nn.Module, norm: nn.Module | None, x: Tensor, then: Callable[[Tensor], Tensor] = lambda x: x
) -> Float[Tensor, "... O"]:
    """``layer(then(norm(x)))``; where both are what they seem, training does not keep the norm's result."""
    if not (isinstance(layer, Linear) and _bare(layer) and _is_plain_norm(norm)):
        return layer(then(x if norm is None else norm(x)))

    def before(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return then(F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps))

    return layer.after(before, x, (norm.weight, norm.bias))


def _is_plain_norm(norm: nn.Module | None) -> TypeGuard[nn.LayerNorm]:
    """Whether it is a layer norm with a weight and a bias that nobody watches."""
    whole = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    return whole and norm is not None and _bare(norm)


def _bare(module: nn.Module) -> bool:
    """Whether nobody watches a module: hooks are to see its own input and output, with gradients, once."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks)


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
        drops = self.training and self.dropout.p > 0
        plain = isinstance(self.act, nn.GELU) and isinstance(self.fc2, Linear) and not drops
        if not (plain and _bare(self.act) and _bare(self.fc2)):
            return self.dropout(self.fc2(self.dropout(self.act(on_norm(self.fc1, norm, x)))))
        if _is_plain_norm(norm) and isinstance(self.fc1, Linear) and _bare(self.fc1):
            few = self.fc1.in_features <= _CHEAP and x.ndim == 4 and x.device.type == "cpu"
            layers = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            whole = all(tensor is not None for tensor in layers)
            if few and whole and keeps_for_backward((x, norm.weight, *layers)):
                images = _PIECE * x.shape[0] // max(1, x.numel() // x.shape[-1] * self.fc1.out_features)
                run = functools.partial(_mlp, norm.normalized_shape, norm.eps)
                return by_pieces(run, x, (norm.weight, norm.bias, *layers), max(1, images))
        return self.fc2.after(F.gelu, on_norm(self.fc1, norm, x))


def _mlp(
    shape: tuple[int, ...], eps: float, x: Tensor, scale: Tensor, shift: Tensor, *layers: Tensor
) -> Float[Tensor, "... C"]:
    """An MLP with a norm before it, of tensors alone."""

    def before(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, shape, scale, shift, eps)

    first, offset, second, last = layers
    return linear(linear(x, first, offset, before=before, learned=(scale, shift)), second, last, before=F.gelu)


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
        offset = getattr(self.proj, "bias", None)
        if offset is None or not (isinstance(self.proj, nn.Conv2d) and _bare(self.proj) and _is_plain_norm(self.norm)):
            return self.norm(self.proj(images).permute(0, 2, 3, 1))
        learned = (self.proj.weight, offset, self.norm.weight, self.norm.bias)
        if images.device.type != "cpu" or not keeps_for_backward((images, *learned)):
            return self.norm(self.proj(images).permute(0, 2, 3, 1))
        few = max(1, _PIECE * images.shape[0] // max(1, images.numel()))
        return by_pieces(self._embed, images, learned, few)

    def _embed(self, images: Tensor, *learned: Tensor) -> Float[Tensor, "B H W D"]:
        weight, bias, scale, shift = learned
        maps = F.conv2d(images, weight, bias, stride=self.patch).permute(0, 2, 3, 1)
        return F.layer_norm(maps, self.norm.normalized_shape, scale, shift, self.norm.eps)


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
        whole = isinstance(self.reduction, Linear) and _bare(self.reduction)
        if self.norm_last:
            return self.norm(self.reduction.after(self._cells, x) if whole else self.reduction(self._cells(x)))
        if not (whole and _is_plain_norm(self.norm)):
            return self.reduction(self.norm(self._cells(x)))
        shape, eps = self.norm.normalized_shape, self.norm.eps

        def before(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.layer_norm(self._cells(x), shape, weight, bias, eps)

        return self.reduction.after(before, x, (self.norm.weight, self.norm.bias))

    @staticmethod
    def _cells(x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H2 W2 D"]:
        """Cells of 2x2 tokens, each joined."""
        x = pad_to_windows(x, (2, 2))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # B H2 2 W2 2 C
        # Column-major over the cell, (0,0) (1,0) (0,1) (1,1): the order in which the published weights were trained.
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


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
