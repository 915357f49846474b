"""Swin-Unet as its paper describes it and its files name it (Cao et al. 2021, sections 3.1 to 3.5), in fp64.

Encoder and blocks are those of `original_swin`; the rest is written from the paper, cell by cell, and the names that
the published files use. It is an oracle for a program that is no library.
"""

import torch
from torch import Tensor

from original_swin import Original


class OriginalUNet:
    """Logits of a state dict with Swin-Unet's names, for images that patches of four and windows divide or not.

    `decoder_depths` are those of `layers_up.1` and on: the blocks of the coarsest joined size come first.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        *,
        depths: tuple[int, ...],
        decoder_depths: tuple[int, ...],
        heads: tuple[int, ...],
        windows: tuple[int, ...],
    ) -> None:
        self.encoder = Original(state, depths=depths, heads=heads, windows=windows)
        self.decoder = Original(state, depths=depths, heads=heads, windows=windows, names=self.in_decoder)
        self.top = len(depths) - 1
        self.decoder_depths = decoder_depths

    def in_decoder(self, name: str) -> str:
        """A decoder's blocks are an encoder's, under the number of steps that they lie above the bottom."""
        if not name.startswith("layers."):
            return name
        _, stage, rest = name.split(".", 2)
        return f"layers_up.{self.top - int(stage)}.{rest}"

    def logits(self, images: Tensor) -> Tensor:
        """``B K h w``."""
        x, entered = self.encode(images)
        x = self.expand(x, "layers_up.0", 2)
        for step, depth in enumerate(self.decoder_depths, start=1):
            skip = entered[-1 - step]
            x = x[:, : skip.shape[1], : skip.shape[2]]  # an odd row or column was added before merging
            x = self.encoder.linear(torch.cat([x, skip], dim=-1), f"concat_back_dim.{step}")
            for index in range(depth):
                x = self.decoder.block(x, len(entered) - 1 - step, index)
            if step < len(self.decoder_depths):
                x = self.expand(x, f"layers_up.{step}.upsample", 2)
        x = self.encoder.norm(x, "norm_up")
        kernel = self.encoder.get("patch_embed.proj.weight").shape[-1]
        x = self.expand(x, "up", kernel)
        x = torch.einsum("bhwc,kc->bkhw", x, self.encoder.get("output.weight")[:, :, 0, 0])
        return x[:, :, : images.shape[2], : images.shape[3]]

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The normed map at the bottom, and what entered each stage on the way there."""
        encoder, entered = self.encoder, []
        empty = Original(encoder.state, depths=(0,), heads=(), windows=())
        x = empty.maps(images)[0]
        for stage, depth in enumerate(encoder.depths):
            entered.append(x)
            for index in range(depth):
                x = encoder.block(x, stage, index)
            if stage < len(encoder.depths) - 1:
                x = encoder.merge(x, f"layers.{stage}.downsample")
        return encoder.norm(x, "norm"), entered

    def expand(self, x: Tensor, path: str, factor: int) -> Tensor:
        """A layer gives every token `factor` squared new ones, row by row; each is normed (section 3.4)."""
        wide = self.encoder.linear(x, f"{path}.expand")
        channels = wide.shape[-1] // factor**2
        out = x.new_zeros(x.shape[0], factor * x.shape[1], factor * x.shape[2], channels)
        for row in range(factor):
            for column in range(factor):
                begin = (row * factor + column) * channels
                out[:, row::factor, column::factor] = wide[..., begin : begin + channels]
        return self.encoder.norm(out, f"{path}.norm")
