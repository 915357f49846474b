"""Swin V1 and V2 as the papers define them, on state dicts as the original repository and OpenMMLab store them.

Written from the published names and equations, token by token in fp64: no roll, no mask, no partition, and none of our
code but the definition of who sees whom. It is an oracle for classes that are no dependency.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from who_sees_whom import place_in_window, tokens, visible

Names = Callable[[str], str]


def same(name: str) -> str:
    return name


def openmmlab(name: str) -> str:
    """Where OpenMMLab stores what the original calls `name`."""
    pairs = (
        ("patch_embed.proj.", "patch_embed.projection."),
        ("layers.", "stages."),
        (".attn.", ".attn.w_msa."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
    )
    for old, new in pairs:
        name = name.replace(old, new)
    return name


class Original:
    """Logits or stage maps of a state dict. `unfold` joins merged cells as `nn.Unfold` does; `shift_small` keeps the
    shift where a window covers the map."""

    def __init__(
        self,
        state: dict[str, Tensor],
        *,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        windows: tuple[int, ...],
        pretrained: tuple[int, ...] = (),
        names: Names = same,
        unfold: bool = False,
        shift_small: bool = False,
    ) -> None:
        self.state = {name: x.double() for name, x in state.items()}
        self.depths, self.heads, self.windows, self.names = depths, heads, windows, names
        self.pretrained = pretrained or windows
        self.unfold, self.shift_small = unfold, shift_small

    def get(self, name: str) -> Tensor:
        return self.state[self.names(name)]

    def has(self, name: str) -> bool:
        return self.names(name) in self.state

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.get(f"{name}.weight"), self.get(f"{name}.bias"), 1e-5)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias") if self.has(f"{name}.bias") else None)

    def maps(self, images: Tensor) -> list[Tensor]:
        """``B H W C`` after every stage."""
        kernel = self.get("patch_embed.proj.weight")
        patch = kernel.shape[2]
        images = F.pad(images.double(), (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
        x = F.conv2d(images, kernel, self.get("patch_embed.proj.bias"), stride=patch).permute(0, 2, 3, 1)
        x = self.norm(x, "patch_embed.norm")
        if self.has("absolute_pos_embed"):
            x = x + self.get("absolute_pos_embed").unflatten(1, x.shape[1:3])
        maps = []
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                x = self.block(x, stage, index)
            maps.append(x)
            if stage < len(self.depths) - 1:
                x = self.merge(x, f"layers.{stage}.downsample")
        return maps

    def logits(self, images: Tensor) -> Tensor:
        return self.linear(self.norm(self.maps(images)[-1], "norm").mean((1, 2)), "head")

    def block(self, x: Tensor, stage: int, index: int) -> Tensor:
        path = f"layers.{stage}.blocks.{index}"
        if self.has(f"{path}.attn.logit_scale"):
            x = x + self.norm(self.attention(x, stage, index), f"{path}.norm1")
            return x + self.norm(self.mlp(x, path), f"{path}.norm2")
        x = x + self.attention(self.norm(x, f"{path}.norm1"), stage, index)
        return x + self.mlp(self.norm(x, f"{path}.norm2"), path)

    def mlp(self, x: Tensor, path: str) -> Tensor:
        return self.linear(F.gelu(self.linear(x, f"{path}.mlp.fc1")), f"{path}.mlp.fc2")

    def attention(self, x: Tensor, stage: int, index: int) -> Tensor:
        path, side = f"layers.{stage}.blocks.{index}.attn", self.windows[stage]
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        grid = (x.shape[1], x.shape[2])
        shift = tuple(
            side // 2 if index % 2 and (self.shift_small or extent > side) else 0 for extent in (height, width)
        )
        query, key, value = (part.unflatten(-1, (self.heads[stage], -1)) for part in self.qkv(x.flatten(1, 2), path))
        if self.has(f"{path}.logit_scale"):
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
            scale = self.get(f"{path}.logit_scale").flatten().clamp(max=math.log(100)).exp()
        else:
            scale = torch.full((self.heads[stage],), query.shape[-1] ** -0.5, dtype=torch.float64)
        logits = torch.einsum("bqnd,bknd->bnqk", query, key) * scale[:, None, None] + self.bias(
            grid, stage, shift, path
        )
        seen = torch.zeros(len(tokens(grid)), len(tokens(grid)), dtype=torch.bool)
        for token, others in enumerate(visible(grid, (side, side), shift)):
            seen[token, others] = True
        weights = logits.masked_fill(~seen, -math.inf).softmax(-1)
        out = torch.einsum("bnqk,bknd->bqnd", weights, value).flatten(2).unflatten(1, grid)[:, :height, :width]
        return self.linear(out, f"{path}.proj")

    def qkv(self, x: Tensor, path: str) -> tuple[Tensor, ...]:
        bias = self.get(f"{path}.qkv.bias") if self.has(f"{path}.qkv.bias") else None
        if self.has(f"{path}.q_bias"):
            query, value = self.get(f"{path}.q_bias"), self.get(f"{path}.v_bias")
            bias = torch.cat([query, torch.zeros_like(query), value])
        return F.linear(x, self.get(f"{path}.qkv.weight"), bias).chunk(3, dim=-1)

    def bias(self, grid: tuple[int, int], stage: int, shift: tuple[int, ...], path: str) -> Tensor:
        """What is added for each pair of the map's tokens; pairs of different windows get a number that is not used."""
        side = self.windows[stage]
        place = np.array([divmod(p, side) for p in place_in_window(grid, (side, side), shift)])  # type: ignore[arg-type]
        offset = torch.tensor(place[:, None] - place[None])
        if self.has(f"{path}.relative_position_bias_table"):
            row = (offset[..., 0] + side - 1) * (2 * side - 1) + offset[..., 1] + side - 1
            return self.get(f"{path}.relative_position_bias_table")[row].permute(2, 0, 1)
        measured = offset.float() / max(self.pretrained[stage] - 1, 1) * 8  # in fp32, as the original stores them
        logarithmic = measured.sign() * torch.log2(measured.abs() + 1) / math.log2(8)
        hidden = F.relu(self.linear(logarithmic.double(), f"{path}.cpb_mlp.0"))
        return (16 * torch.sigmoid(self.linear(hidden, f"{path}.cpb_mlp.2"))).permute(2, 0, 1)

    def merge(self, x: Tensor, path: str) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        if self.unfold:
            grid = (x.shape[1] // 2, x.shape[2] // 2)
            x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2).unflatten(1, grid)
        else:
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        if self.get(f"{path}.norm.weight").shape[0] == x.shape[-1]:
            return self.linear(self.norm(x, f"{path}.norm"), f"{path}.reduction")
        return self.norm(self.linear(x, f"{path}.reduction"), f"{path}.norm")
