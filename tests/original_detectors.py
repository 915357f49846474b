"""Detectors whose classes are no dependency: mmdetection's, its fork by Microsoft, and facebook's DETR.

Names and shapes of the first two from what their configs say, and their layers' equations on a state dict in fp64; the
DETR as a module of torch's own layers, whose names are facebook's because its parts are nested as facebook's are. None
of our modules but in what `original_swin` has of who sees whom.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from original_swin import Original

Shapes = dict[str, tuple[int, ...]]
STATISTICS = ("weight", "bias", "running_mean", "running_var")

# -- mmdetection and its fork: names and shapes ------------------------------------------------------------------------


def shapes_of_swin(
    *, fork: bool, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, out: tuple[int, ...]
) -> Shapes:
    """Of the backbone, whose outputs of the stages `out` have norms."""
    root, stem = ("layers", "proj") if fork else ("stages", "projection")
    found: Shapes = {
        f"patch_embed.{stem}.weight": (dim, 3, 4, 4),
        f"patch_embed.{stem}.bias": (dim,),
        **_pair("patch_embed.norm", dim),
    }
    for stage, depth in enumerate(depths):
        wide = dim * 2**stage
        for index in range(depth):
            path = f"{root}.{stage}.blocks.{index}"
            attention = f"{path}.attn" if fork else f"{path}.attn.w_msa"
            first, second = (f"{path}.mlp.fc{n}" for n in (1, 2))
            if not fork:
                first, second = f"{path}.ffn.layers.0.0", f"{path}.ffn.layers.1"
            found |= _pair(f"{path}.norm1", wide) | _pair(f"{path}.norm2", wide)
            found |= _linear(f"{attention}.qkv", wide, 3 * wide) | _linear(f"{attention}.proj", wide, wide)
            found |= _linear(first, wide, 4 * wide) | _linear(second, 4 * wide, wide)
            found[f"{attention}.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[stage])
            found[f"{attention}.relative_position_index"] = (window**2, window**2)
        if stage < len(depths) - 1:
            found[f"{root}.{stage}.downsample.reduction.weight"] = (2 * wide, 4 * wide)
            found |= _pair(f"{root}.{stage}.downsample.norm", 4 * wide)
        if stage in out:
            found |= _pair(f"norm{stage}", wide)
    return {f"backbone.{name}": shape for name, shape in found.items()}


def shapes_of_rcnn(
    channels: tuple[int, ...], classes: int, *, cascade: bool, width: int = 256, hidden: int = 1024, convs: int = 0
) -> Shapes:
    """Of FPN, RPN, box heads (two linear layers, or so many convolutions and one linear) and mask heads."""
    found = _pyramid(channels, width)
    found |= _conv("rpn_head.rpn_conv", width, width, 3)
    found |= _conv("rpn_head.rpn_cls", width, 3, 1) | _conv("rpn_head.rpn_reg", width, 12, 1)
    for number in ("0.", "1.", "2.") if cascade else ("",):
        box, mask = f"roi_head.bbox_head.{number}", f"roi_head.mask_head.{number}"
        for index in range(convs):
            found[f"{box}shared_convs.{index}.conv.weight"] = (width, width, 3, 3)
            found |= {f"{box}shared_convs.{index}.bn.{part}": (width,) for part in STATISTICS}
            found[f"{box}shared_convs.{index}.bn.num_batches_tracked"] = ()
        found |= _linear(f"{box}shared_fcs.0", 49 * width, hidden)
        if not convs:
            found |= _linear(f"{box}shared_fcs.1", hidden, hidden)
        agnostic = cascade and not convs
        found |= _linear(f"{box}fc_cls", hidden, classes + 1)
        found |= _linear(f"{box}fc_reg", hidden, 4 if agnostic else 4 * classes)
        for index in range(4):
            found |= _conv(f"{mask}convs.{index}.conv", width, width, 3)
        found |= _conv(f"{mask}upsample", width, width, 2) | _conv(f"{mask}conv_logits", width, classes, 1)
    return found


def shapes_of_retinanet(channels: tuple[int, ...], classes: int, *, width: int = 256) -> Shapes:
    """Of an FPN of three maps and two more levels, and two towers of four convolutions; nine anchors a cell."""
    found = _pyramid(channels, width)
    found |= _conv("neck.fpn_convs.3.conv", channels[-1], width, 3) | _conv("neck.fpn_convs.4.conv", width, width, 3)
    for index in range(4):
        found |= _conv(f"bbox_head.cls_convs.{index}.conv", width, width, 3)
        found |= _conv(f"bbox_head.reg_convs.{index}.conv", width, width, 3)
    return found | _conv("bbox_head.retina_cls", width, 9 * classes, 3) | _conv("bbox_head.retina_reg", width, 36, 3)


def _pyramid(channels: tuple[int, ...], width: int) -> Shapes:
    found: Shapes = {}
    for index, wide in enumerate(channels):
        found |= _conv(f"neck.lateral_convs.{index}.conv", wide, width, 1)
        found |= _conv(f"neck.fpn_convs.{index}.conv", width, width, 3)
    return found


def _pair(path: str, channels: int) -> Shapes:
    return {f"{path}.weight": (channels,), f"{path}.bias": (channels,)}


def _linear(path: str, inputs: int, outputs: int) -> Shapes:
    return {f"{path}.weight": (outputs, inputs), f"{path}.bias": (outputs,)}


def _conv(path: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{path}.weight": (outputs, inputs, kernel, kernel), f"{path}.bias": (outputs,)}


# -- mmdetection and its fork: equations -------------------------------------------------------------------------------


class OpenDetector:
    """The layers of a state dict; `options` as of `Original`, whose names lie behind ``backbone.``."""

    def __init__(self, state: dict[str, Tensor], **options: Any) -> None:
        self.state = {name: x.double() for name, x in state.items()}
        inner = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
        self.encoder = Original(inner, **options)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Of the pyramid, finest first."""
        maps = [x.double() for x in self.encoder.maps(images)]
        normed = [
            self.encoder.norm(x, f"norm{stage}").permute(0, 3, 1, 2)
            for stage, x in enumerate(maps)
            if f"backbone.norm{stage}.weight" in self.state
        ]
        sides = [self.conv(x, f"neck.lateral_convs.{index}.conv") for index, x in enumerate(normed)]
        for index in range(len(sides) - 1, 0, -1):
            rows, columns = (
                torch.arange(n) * m // n
                for n, m in zip(sides[index - 1].shape[2:], sides[index].shape[2:], strict=True)
            )
            sides[index - 1] = sides[index - 1] + sides[index][:, :, rows][:, :, :, columns]
        levels = [self.conv(x, f"neck.fpn_convs.{index}.conv") for index, x in enumerate(sides)]
        if len(levels) < 4:  # RetinaNet's, of which the first more sees the backbone's map
            levels.append(self.conv(normed[-1], "neck.fpn_convs.3.conv", stride=2))
            return [*levels, self.conv(levels[-1], "neck.fpn_convs.4.conv", stride=2)]
        return [*levels, levels[-1][:, :, ::2, ::2]]

    def conv(self, x: Tensor, path: str, stride: int = 1) -> Tensor:
        kernel, bias = self.state[f"{path}.weight"], self.state.get(f"{path}.bias")
        return F.conv2d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)

    def linear(self, x: Tensor, path: str) -> Tensor:
        return x @ self.state[f"{path}.weight"].T + self.state[f"{path}.bias"]

    def proposals(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """A logit and four deltas for every anchor, map by map, row by row."""
        logits, deltas = [], []
        for x in self.levels(images):
            x = self.conv(x, "rpn_head.rpn_conv").clamp(min=0)
            logits.append(self.conv(x, "rpn_head.rpn_cls").permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.conv(x, "rpn_head.rpn_reg").permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return torch.cat(logits, 1), torch.cat(deltas, 1)

    def anchors(self, images: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """RetinaNet's: logits of classes and four deltas for every anchor."""
        found: list[list[Tensor]] = [[], []]
        for x in self.levels(images):
            for part, name, last, answers in ((0, "cls", "cls", classes), (1, "reg", "reg", 4)):
                y = x
                for index in range(4):
                    y = self.conv(y, f"bbox_head.{name}_convs.{index}.conv").clamp(min=0)
                y = self.conv(y, f"bbox_head.retina_{last}")
                found[part].append(y.permute(0, 2, 3, 1).reshape(len(x), -1, answers))
        return torch.cat(found[0], 1), torch.cat(found[1], 1)

    def judged(self, cells: Tensor, number: str = "") -> tuple[Tensor, Tensor]:
        """Of regions of 7 x 7 cells: logits of classes, background last, and deltas."""
        path, x = f"roi_head.bbox_head.{number}", cells
        for index in range(4):
            if f"{path}shared_convs.{index}.conv.weight" in self.state:
                x = self.conv(x, f"{path}shared_convs.{index}.conv")
                gain, shift, mean, variance = (
                    self.state[f"{path}shared_convs.{index}.bn.{part}"][:, None, None] for part in STATISTICS
                )
                x = ((x - mean) / (variance + 1e-5).sqrt() * gain + shift).clamp(min=0)
        x = x.flatten(1)
        for index in range(2):
            if f"{path}shared_fcs.{index}.weight" in self.state:
                x = self.linear(x, f"{path}shared_fcs.{index}").clamp(min=0)
        return self.linear(x, f"{path}fc_cls"), self.linear(x, f"{path}fc_reg")

    def masks(self, cells: Tensor, number: str = "") -> Tensor:
        """Of regions of 14 x 14 cells: a logit for each class in 28 x 28."""
        path, x = f"roi_head.mask_head.{number}", cells
        for index in range(4):
            x = self.conv(x, f"{path}convs.{index}.conv").clamp(min=0)
        kernel, bias = self.state[f"{path}upsample.weight"], self.state[f"{path}upsample.bias"]
        cells = torch.einsum("rchw,cdij->rdhiwj", x, kernel)
        x = (cells.flatten(4, 5).flatten(2, 3) + bias[:, None, None]).clamp(min=0)
        return self.conv(x, f"{path}conv_logits")


# -- facebook's DETR ---------------------------------------------------------------------------------------------------


class FrozenNorm(nn.Module):
    """Statistics, scale and shift as buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for part in STATISTICS:
            self.register_buffer(part, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        gain, shift, mean, variance = (getattr(self, part)[:, None, None] for part in STATISTICS)
        return (x - mean) / (variance + 1e-5).sqrt() * gain + shift


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + places, x + places, x)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class _Decoder(_Encoder):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__(width, heads, hidden)
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm3 = nn.LayerNorm(width)

    def look(self, x: Tensor, queries: Tensor, memory: Tensor, places: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x + queries, x + queries, x)[0])
        x = self.norm2(x + self.multihead_attn(x + queries, memory + places, memory)[0])
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class _Layers(nn.Module):
    def __init__(self, layers: list[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm is not None:
            self.norm = norm


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, encoder: int, decoder: int) -> None:
        super().__init__()
        self.encoder = _Layers([_Encoder(width, heads, hidden) for _ in range(encoder)])
        self.decoder = _Layers([_Decoder(width, heads, hidden) for _ in range(decoder)], nn.LayerNorm(width))


class _Body(nn.Module):
    """torchvision's ResNet without its classifier."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {name: part for name, part in resnet.named_children() if name not in ("avgpool", "fc")}
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.body.values():
            x = part(x)
        return x


class FacebookDetr(nn.Module):
    """Without padding and masks."""

    def __init__(
        self, classes: int, *, width: int, heads: int, hidden: int, layers: tuple[int, int], queries: int
    ) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock, ResNet

        self.backbone = nn.Sequential(_Body(ResNet(BasicBlock, [1, 2, 1, 1], norm_layer=FrozenNorm)))
        self.transformer = _Transformer(width, heads, hidden, *layers)
        self.class_embed = nn.Linear(width, classes + 1)
        self.bbox_embed = _Layers([nn.Linear(width, out) for out in (width, width, 4)])
        self.query_embed = nn.Embedding(queries, width)
        self.input_proj = nn.Conv2d(512, width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of the last layer."""
        x = self.input_proj(self.backbone(images))
        places = self.places(x).flatten(2).transpose(1, 2)
        memory = x.flatten(2).transpose(1, 2)
        for layer in self.transformer.encoder.layers:
            memory = layer(memory, places)
        queries = self.query_embed.weight.expand(len(images), -1, -1)
        known = torch.zeros_like(queries)
        decoder: Any = self.transformer.decoder
        for layer in decoder.layers:
            known = layer.look(known, queries, memory, places)
        known = decoder.norm(known)
        box = known
        for index, layer in enumerate(self.bbox_embed.layers):
            box = layer(box if index == 0 else F.relu(box))
        return self.class_embed(known), box.sigmoid()

    @staticmethod
    def places(x: Tensor) -> Tensor:
        """Sines and cosines of rows, then of columns, of a turn over the whole map."""
        half = x.shape[1] // 2
        waves = 10_000 ** (2 * (torch.arange(half) // 2).to(x.dtype) / half)

        def waved(count: int) -> Tensor:
            angles = (torch.arange(1, count + 1, dtype=x.dtype) / (count + 1e-6) * 2 * torch.pi)[:, None] / waves
            return torch.where(torch.arange(half) % 2 == 0, angles.sin(), angles.cos())

        rows, columns = (waved(count) for count in x.shape[2:])
        both = (rows[:, None].expand(-1, len(columns), -1), columns[None].expand(len(rows), -1, -1))
        return torch.cat(both, dim=-1).permute(2, 0, 1)[None].expand(len(x), -1, -1, -1)


def names_of_facebook_masks() -> Iterator[str]:
    """What ``models/segmentation.py`` has beside the DETR itself, which lies at ``detr.``."""
    yield from (f"bbox_attention.{part}_linear.{kind}" for part in "qk" for kind in ("weight", "bias"))
    layers = [f"{part}{number}" for part in ("lay", "gn") for number in range(1, 6)]
    layers += [*(f"adapter{number}" for number in (1, 2, 3)), "out_lay"]
    yield from (f"mask_head.{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
