"""UPerNet and Swin-Unet as their papers define them, on state dicts as mmsegmentation, its fork and Swin-Unet do.

Written from the published names and equations in fp64, around the encoder of `original_swin`: none of our modules. It
is an oracle for classes that are no dependency.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from original_swin import Original


class UperNet:
    """Logits of a state dict at the image's size; `options` as of `Original`, whose names lie behind ``backbone.``."""

    def __init__(self, state: dict[str, Tensor], **options: Any) -> None:
        self.state = {name: x.double() for name, x in state.items()}
        inner = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
        self.encoder = Original(inner, **options)

    def unit(self, x: Tensor, path: str) -> Tensor:
        kernel = self.state[f"{path}.conv.weight"]
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        mean, variance, gain, shift = (
            self.state[f"{path}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * gain + shift).clamp(min=0)

    def classify(self, x: Tensor, path: str) -> Tensor:
        return F.conv2d(x, self.state[f"{path}.conv_seg.weight"], self.state[f"{path}.conv_seg.bias"])

    def maps(self, images: Tensor) -> list[Tensor]:
        """Every stage's map behind a norm of its own, ``B C H W``."""
        return [
            self.encoder.norm(x, f"norm{stage}").permute(0, 3, 1, 2)
            for stage, x in enumerate(self.encoder.maps(images))
        ]

    def logits(self, images: Tensor) -> Tensor:
        maps = self.maps(images)
        pooled = [maps[-1]]
        for index, side in enumerate((1, 2, 3, 6)):
            cells = self.unit(F.adaptive_avg_pool2d(maps[-1], side), f"decode_head.psp_modules.{index}.1")
            pooled.append(enlarged(cells, maps[-1]))
        levels = [self.unit(torch.cat(pooled, 1), "decode_head.bottleneck")]
        for stage in range(len(maps) - 2, -1, -1):
            side = self.unit(maps[stage], f"decode_head.lateral_convs.{stage}")
            levels.insert(0, side + enlarged(levels[0], side))
        smooth = [self.unit(x, f"decode_head.fpn_convs.{i}") for i, x in enumerate(levels[:-1])] + levels[-1:]
        fused = self.unit(torch.cat([enlarged(x, smooth[0]) for x in smooth], 1), "decode_head.fpn_bottleneck")
        return enlarged(self.classify(fused, "decode_head"), images)

    def auxiliary(self, images: Tensor) -> Tensor:
        """The second classifier's, on the grid of the map before the last."""
        return self.classify(self.unit(self.maps(images)[-2], "auxiliary_head.convs.0"), "auxiliary_head")


class SwinUnet:
    """Logits of a state dict whose names lie behind ``swin_unet.``; windows as built, by the encoder's stage."""

    def __init__(self, state: dict[str, Tensor], **options: Any) -> None:
        inner = {name.removeprefix("swin_unet."): x for name, x in state.items()}
        self.state = {name: x.double() for name, x in inner.items()}
        self.encoder = Original(inner, **options)
        last = len(options["depths"]) - 1

        def mirrored(name: str) -> str:
            """A block of the decoder has the encoder's name on the same size, counted from the other end."""
            stage = int(name.split(".")[1])
            return name.replace(f"layers.{stage}.", f"layers_up.{last - stage}.", 1)

        self.decoder = Original(inner, **options | {"names": mirrored})

    def logits(self, images: Tensor) -> Tensor:
        maps = self.encoder.maps(images)
        entries = [self.embedded(images), *(self.merged(x, stage) for stage, x in enumerate(maps[:-1]))]
        x = self.encoder.norm(maps[-1], "norm")
        for layer in range(4):
            if layer:
                joined = torch.cat([x, entries[3 - layer]], -1)
                x = self.encoder.linear(joined, f"concat_back_dim.{layer}")
                for index in range(self.encoder.depths[3 - layer]):
                    x = self.decoder.block(x, 3 - layer, index)
            if layer < 3:
                x = self.expanded(x, f"layers_up.{layer}" + (".upsample" if layer else ""), 2)
        x = self.expanded(self.encoder.norm(x, "norm_up"), "up", 4)
        return torch.einsum("bhwc,kc->bkhw", x, self.state["output.weight"][:, :, 0, 0])

    def embedded(self, images: Tensor) -> Tensor:
        """What enters the first stage."""
        kernel = self.state["patch_embed.proj.weight"]
        x = F.conv2d(images, kernel, self.state["patch_embed.proj.bias"], stride=kernel.shape[2])
        return self.encoder.norm(x.permute(0, 2, 3, 1), "patch_embed.norm")

    def merged(self, x: Tensor, stage: int) -> Tensor:
        """What enters the next stage."""
        return self.encoder.merge(x, f"layers.{stage}.downsample")

    def expanded(self, x: Tensor, path: str, factor: int) -> Tensor:
        """Each token as `factor` x `factor` of them: row r, column c has lot r · factor + c of its channels."""
        wide = F.linear(x, self.state[f"{path}.expand.weight"])
        lots = wide.chunk(factor**2, dim=-1)
        out = x.new_zeros(x.shape[0], factor * x.shape[1], factor * x.shape[2], lots[0].shape[-1])
        for number, lot in enumerate(lots):
            row, column = divmod(number, factor)
            out[:, row::factor, column::factor] = lot
        return self.encoder.norm(out, f"{path}.norm")


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """A map at another's height and width, bilinearly, by weights written out."""
    for axis, size in ((2, like.shape[2]), (3, like.shape[3])):
        place = ((torch.arange(size, dtype=x.dtype) + 0.5) * x.shape[axis] / size - 0.5).clamp(min=0)
        low = place.floor().long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        share = (place - low).view(-1, *(1,) * (3 - axis))
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


# -- the names that their classes give, by their sources ---------------------------------------------------------------

PAIR = ("weight", "bias")
STATISTICS = (*PAIR, "running_mean", "running_var", "num_batches_tracked")


def names_of_swin_unet(*, masked: tuple[bool, ...]) -> set[str]:
    """Of the model with depths 2, 2, 2, 2: `masked` says of each stage whether its map is larger than a window."""
    blocks = [("layers", stage, stage) for stage in range(4)] + [("layers_up", 3 - stage, stage) for stage in range(3)]
    names = {f"{path}.{part}" for path in ("patch_embed.proj", "patch_embed.norm", "norm", "norm_up") for part in PAIR}
    for root, layer, stage in blocks:
        for index in range(2):
            path = f"{root}.{layer}.blocks.{index}"
            names |= {f"{path}.{part}" for part in _of_block()}
            names |= {f"{path}.attn_mask"} if index and masked[stage] else set()
    for stage in range(3):
        names |= {f"layers.{stage}.downsample.{part}" for part in ("reduction.weight", "norm.weight", "norm.bias")}
        names |= {f"concat_back_dim.{stage + 1}.{part}" for part in PAIR}
    for path in ("layers_up.0", "layers_up.1.upsample", "layers_up.2.upsample", "up"):
        names |= {f"{path}.{part}" for part in ("expand.weight", "norm.weight", "norm.bias")}
    return {f"swin_unet.{name}" for name in names | {"output.weight"}}


def names_of_upernet(*, fork: bool, depths: tuple[int, ...]) -> set[str]:
    """Of mmsegmentation's, or of its fork by Microsoft."""
    return {*_of_dense_swin(fork, depths)} | {*_of_upernet_heads(len(depths))}


def _of_dense_swin(fork: bool, depths: tuple[int, ...]) -> Iterator[str]:
    root, stem = ("layers", "proj") if fork else ("stages", "projection")
    yield from (f"backbone.patch_embed.{part}.{kind}" for part in (stem, "norm") for kind in PAIR)
    for stage, depth in enumerate(depths):
        yield from (f"backbone.norm{stage}.{kind}" for kind in PAIR)
        for index in range(depth):
            for part in _of_block():
                if not fork:
                    part = part.replace("attn.", "attn.w_msa.")
                    part = part.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
                yield f"backbone.{root}.{stage}.blocks.{index}.{part}"
        if stage < len(depths) - 1:
            merge = f"backbone.{root}.{stage}.downsample"
            yield from (f"{merge}.{part}" for part in ("reduction.weight", "norm.weight", "norm.bias"))


def _of_upernet_heads(stages: int) -> Iterator[str]:
    units = [f"psp_modules.{index}.1" for index in range(4)] + ["bottleneck", "fpn_bottleneck"]
    units += [f"{part}.{index}" for part in ("lateral_convs", "fpn_convs") for index in range(stages - 1)]
    for path in (*(f"decode_head.{unit}" for unit in units), "auxiliary_head.convs.0"):
        yield f"{path}.conv.weight"
        yield from (f"{path}.bn.{part}" for part in STATISTICS)
    yield from (f"{head}.conv_seg.{part}" for head in ("decode_head", "auxiliary_head") for part in PAIR)


def _of_block() -> list[str]:
    paths = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    learned = [f"{path}.{part}" for path in paths for part in PAIR]
    return [*learned, "attn.relative_position_bias_table", "attn.relative_position_index"]
