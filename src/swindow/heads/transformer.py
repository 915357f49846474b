"""The transformer of DETR (Carion et al. 2020, appendix A.3): after Vaswani et al. 2017, with positions at every layer.

Positions are added to queries and keys of each attention, never to values, and norms come after each sum. Cells of the
memory where `padding` is true are no keys of anybody.
"""

import math
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

Padding = Bool[Tensor, "B S"] | None
"""True where a cell of the memory lies in no picture; None where none does."""


class Attention(nn.Module):
    """Softmax attention of several heads, its queries, keys and values each from a layer of their own."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        for layer in (self.q, self.k, self.v):  # as the three are started where they are one layer of three outputs
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self,
        queries: Float[Tensor, "B Q C"],
        keys: Float[Tensor, "B S C"],
        values: Float[Tensor, "B S C"],
        padding: Padding = None,
    ) -> Float[Tensor, "B Q C"]:
        found = F.scaled_dot_product_attention(
            self._split(self.q(queries)),
            self._split(self.k(keys)),
            self._split(self.v(values)),
            attn_mask=None if padding is None else ~padding[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.proj(found.transpose(1, 2).flatten(2))

    def weights(
        self, queries: Float[Tensor, "B Q C"], keys: Float[Tensor, "B S C"], padding: Padding = None
    ) -> Float[Tensor, "B N Q S"]:
        """How much of each cell every head lets each query see; a query's weights add up to 1."""
        return attention_scores(self._split(self.q(queries)), self._split(self.k(keys)), padding).softmax(-1)

    def _split(self, x: Tensor) -> Float[Tensor, "B N S D"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attention_scores(
    queries: Float[Tensor, "B N Q D"], keys: Float[Tensor, "B N S D"], padding: Padding = None
) -> Float[Tensor, "B N Q S"]:
    """Scaled products, before a softmax."""
    scores = queries / math.sqrt(queries.shape[-1]) @ keys.transpose(-2, -1)
    return scores if padding is None else scores.masked_fill(padding[:, None, None], -math.inf)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.xavier_uniform_(self.fc2.weight)

    def forward(self, x: Float[Tensor, "B S C"]) -> Float[Tensor, "B S C"]:
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class EncoderLayer(nn.Module):
    """Cells of the memory look at one another."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B S C"], positions: Float[Tensor, "B S C"], padding: Padding = None
    ) -> Float[Tensor, "B S C"]:
        placed = x + positions
        x = self.norm1(x + self.dropout(self.attention(placed, placed, x, padding)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class DecoderLayer(nn.Module):
    """Queries look at one another, then at the memory."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden, dropout)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B Q C"],
        queries: Float[Tensor, "Q C"],
        memory: Float[Tensor, "B S C"],
        placed: Float[Tensor, "B S C"],
        padding: Padding = None,
    ) -> Float[Tensor, "B Q C"]:
        """What each query knows after this layer; `placed` is the memory with its positions."""
        x = self._among_queries(x, queries)
        x = self.norm2(x + self.dropout(self.cross(x + queries, placed, memory, padding)))
        return self.norm3(x + self.dropout(self.mlp(x)))

    def weights(
        self,
        x: Float[Tensor, "B Q C"],
        queries: Float[Tensor, "Q C"],
        placed: Float[Tensor, "B S C"],
        padding: Padding = None,
    ) -> Float[Tensor, "B N Q S"]:
        """How much of each cell of the memory each query sees here."""
        return self.cross.weights(self._among_queries(x, queries) + queries, placed, padding)

    def _among_queries(self, x: Tensor, queries: Tensor) -> Float[Tensor, "B Q C"]:
        placed = x + queries
        return self.norm1(x + self.dropout(self.attention(placed, placed, x)))


class Transformer(nn.Module):
    """An encoder of the memory and a decoder of the queries; `norm` comes after each decoder layer that is read."""

    def __init__(
        self, *, width: int, heads: int, hidden: int, encoder_layers: int, decoder_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(width)

    def encode(
        self, x: Float[Tensor, "B S C"], positions: Float[Tensor, "B S C"], padding: Padding = None
    ) -> Float[Tensor, "B S C"]:
        """The memory: what each cell knows after all encoder layers."""
        for layer in self.encoder:
            x = layer(x, positions, padding)
        return x

    def decode(
        self,
        queries: Float[Tensor, "Q C"],
        memory: Float[Tensor, "B S C"],
        positions: Float[Tensor, "B S C"],
        padding: Padding = None,
    ) -> Float[Tensor, "L B Q C"]:
        """What each query knows after each decoder layer, normed; the queries themselves are their positions."""
        x, placed, known = _nothing(queries, memory), memory + positions, []
        for layer in self.decoder:
            x = layer(x, queries, memory, placed, padding)
            known.append(self.norm(x))
        return torch.stack(known)

    def attention(
        self,
        queries: Float[Tensor, "Q C"],
        memory: Float[Tensor, "B S C"],
        positions: Float[Tensor, "B S C"],
        padding: Padding = None,
    ) -> Float[Tensor, "L B N Q S"]:
        """How much of each cell of the memory each query sees in each decoder layer and head."""
        x, placed, seen = _nothing(queries, memory), memory + positions, []
        for layer in self.decoder:
            decoder = cast(DecoderLayer, layer)
            seen.append(decoder.weights(x, queries, placed, padding))
            x = decoder(x, queries, memory, placed, padding)
        return torch.stack(seen)


def _nothing(queries: Tensor, memory: Tensor) -> Float[Tensor, "B Q C"]:
    """What queries know before they look."""
    return memory.new_zeros(len(memory), *queries.shape)


def sine_positions(
    padding: Bool[Tensor, "B H W"], channels: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B H W C"]:
    """Sines and cosines of each cell's row, then of its column, as shares of the picture's own height and width.

    Cells are counted from 1 within the picture, so that its last row is a full turn at the highest frequency; the
    lowest is a 10,000th of it (Carion et al. 2020, appendix A.4).
    """
    inside = (~padding).to(dtype)
    half = channels // 2
    places = torch.arange(half, device=padding.device)
    waves = 10_000 ** (2 * (places // 2).to(dtype) / half)
    return torch.cat([_waved(inside, axis, waves) for axis in (1, 2)], dim=-1)


def _waved(inside: Tensor, axis: int, waves: Tensor) -> Float[Tensor, "B H W D"]:
    counted = inside.cumsum(axis)
    last = counted.narrow(axis, counted.shape[axis] - 1, 1)
    angles = (counted / (last + 1e-6) * (2 * math.pi))[..., None] / waves
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)
