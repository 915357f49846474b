"""A model for inference on a CPU: its branches as single kernels of our own, or its layers through oneDNN, packed."""

import collections
from collections.abc import Callable, Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from swindow.backbones import resnet, swin, swin_mlp, swin_moe, swin_v2, vit
from swindow.backbones.windowed import WindowedBackbone
from swindow.heads import upernet
from swindow.layers import Linear, Mlp, PatchEmbed, PatchMerge
from swindow.model import Model
from swindow.objects import Detections, Frames, whole_frames
from swindow.ops import cpu
from swindow.ops.cpu import native
from swindow.ops.cpu.branches import DTYPES, PLAIN, AttentionBranch, LinearLayer, MlpBranch
from swindow.ops.windows import Size
from swindow.optimizing.freezing import frozen
from swindow.shapes import Images, Tokens

Weights = tuple[Tensor, Tensor | None]


def optimize_for_cpu(model: Model, *, size: Size, dtype: torch.dtype, batch: int) -> tuple[nn.Module, list[str]]:
    """What computes `model`'s logits fastest on this CPU, and what was done, in sentences. The model stays as it is.

    Args:
        size: height and width of the images in pixels, and
        batch: how many at a time: what oneDNN packs weights for. Our own kernels take any alike.
    """
    if model.task == "detect":
        return _detector(model, size=size, dtype=dtype, batch=batch)
    answers = next(model.parameters()).dtype
    copy, did = _prepared(model, size=size, dtype=dtype, batch=batch)
    if dtype != answers:
        did.append(f"weights and tokens in {_name(dtype)}")
    return Cast(copy.to(dtype), dtype, answers), did


def _detector(model: Model, *, size: Size, dtype: torch.dtype, batch: int) -> tuple[nn.Module, list[str]]:
    """The same of a detector, whose head stays as it is: half-precision boxes would lie pixels aside."""
    answers = next(model.parameters()).dtype
    copy, did = _prepared(model, size=size, dtype=dtype, batch=batch)
    if dtype != answers:
        did.append(f"the backbone's weights and tokens in {_name(dtype)}, the head's in {_name(answers)}")
    return Detector(copy.backbone.to(dtype), copy.head, dtype, answers), did


def _prepared(model: Model, *, size: Size, dtype: torch.dtype, batch: int) -> tuple[Model, list[str]]:
    """A frozen copy with our kernels, or packed layers where they cannot run, in its own dtype but for those."""
    copy = frozen(model)  # before the cast: constants are computed in the wider dtype
    did = ["frozen: position biases, scales and their like are computed once and kept"]
    did += _with_folded_norms(copy)
    why = native.refusal() if dtype in DTYPES else f"they compute in {' and '.join(map(_name, DTYPES))}"
    if why is None and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        why = "AMX, which they do not know, multiplies several times as fast"
    if why is None:
        did += _with_kernels(copy, dtype)
    if why is not None:
        packed = copy.backbone if model.task == "detect" else copy
        packed.to(dtype)
        did.append(f"our kernels are not used: {why}")
        did += _with_packed_layers(packed, dtype, batch * size[0] * size[1] // model.config.backbone.strides[0] ** 2)
    return copy, did


class Cast(nn.Module):
    """A network that computes in `dtype` and answers in `answers`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, answers: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype, self.answers = network, dtype, answers

    def forward(self, images: Images) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.network(images.to(self.dtype).contiguous()).to(self.answers)


class Detector(nn.Module):
    """A backbone that computes in `dtype` below a head that computes and answers in `answers`."""

    def __init__(self, backbone: nn.Module, head: nn.Module, dtype: torch.dtype, answers: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.head, self.dtype, self.answers = backbone, head, dtype, answers

    def forward(self, images: Images, frames: Frames | None = None) -> tuple[Detections, ...]:
        with torch.autocast("cpu", enabled=False):
            maps = self.backbone(images.to(self.dtype).contiguous())
            outputs = self.head(tuple(x.to(self.answers) for x in maps), frames or whole_frames(images))
            return self.head.decode(outputs)  # type: ignore[operator]  # a head's


class Embed(nn.Module):
    """`PatchEmbed` as one kernel: patches gathered, multiplied and normed."""

    def __init__(self, embed: PatchEmbed, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = embed.proj.weight.flatten(1), embed.proj.bias
        patch = (embed.patch, embed.patch)
        self.layer = LinearLayer(dtype, weight, bias, source="patches", patch=patch, after=embed.norm)

    def forward(self, images: Images) -> Float[Tensor, "B H W D"]:
        return self.layer(images)


class Merge(nn.Module):
    """`PatchMerge` as one kernel: cells gathered, normed and multiplied, or in V2's order."""

    def __init__(self, merge: PatchMerge, dtype: torch.dtype) -> None:
        super().__init__()
        norms = {"after" if merge.norm_last else "before": merge.norm}
        self.layer = LinearLayer(dtype, merge.reduction.weight, None, source="cells", **norms)  # type: ignore[arg-type]

    def forward(self, x: Tokens) -> Float[Tensor, "B H2 W2 D"]:
        return self.layer(x)


class WindowBlock(nn.Module):
    """A block of attention in windows, and of an MLP, as two kernels that overwrite the map they are given.

    A stage's input is the stage's own: nothing else reads it, but where a decoder does. Experts in the place of an MLP
    stay as they are.
    """

    keeps_input = False
    """Leave the map that it is given as it is."""

    def __init__(self, block: "swin.Block | swin_v2.Block | swin_moe.Block", dtype: torch.dtype) -> None:
        super().__init__()
        first, attn = block.norm_first, block.attn
        setting = attn.setting(1, 1)
        scale = setting["scale"]
        self.windowing = attn.windowing
        self.attention = AttentionBranch(
            dtype,
            num_heads=attn.num_heads,
            window=attn.window,
            qkv=weights_of(attn.qkv),
            proj=weights_of(attn.proj),
            position_bias=setting["bias"],
            scale=scale if isinstance(scale, Tensor) else torch.full((attn.num_heads,), scale, **PLAIN),
            cosine=setting["cosine"],
            before=block.norm1 if first else None,
            after=None if first else block.norm1,
        )
        plain = isinstance(block.mlp, Mlp)
        self.mlp = _mlp(block.mlp, block.norm2, dtype, norm_first=first) if plain else None
        self.rest = None if plain else nn.ModuleList([block.norm2, block.mlp])
        self.norm3 = getattr(block, "norm3", None)

    def forward(self, x: Tokens, losses: list[Tensor] | None = None) -> Tokens:
        shift = self.windowing.shift_at(x.shape[1], x.shape[2])
        x = self.attention(x.contiguous(), shift, in_place=not self.keeps_input)
        if self.mlp is not None:
            x = self.mlp(x, in_place=True)
        elif self.rest is not None:
            norm2, experts = self.rest
            x = x + experts(norm2(x), losses)
        return x if self.norm3 is None else self.norm3(x)


class SequenceBlock(nn.Module):
    """A block of attention between all tokens, and of an MLP, as four kernels; the first of a stage keeps its input."""

    def __init__(self, block: vit.Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = block.attn.num_heads
        self.scale = (block.attn.proj.in_features // self.num_heads) ** -0.5
        self.qkv = LinearLayer(dtype, *weights_of(block.attn.qkv), before=block.norm1)
        self.proj = LinearLayer(dtype, *weights_of(block.attn.proj))
        self.mlp = _mlp(block.mlp, block.norm2, dtype, norm_first=True)

    def forward(self, x: Tokens) -> Tokens:
        x = x.contiguous()
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        attended = cpu.window_attention(qkv, None, window=(x.shape[1], x.shape[2]), shift=(0, 0), scale=self.scale)
        return self.mlp(self.proj(attended.flatten(3), x), in_place=True)


class SpatialBlock(nn.Module):
    """A block whose tokens are mixed by products in windows (`swin_mlp`), its other MLP as one kernel."""

    def __init__(self, block: swin_mlp.Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.spatial_mlp = block.norm1, block.spatial_mlp
        self.mlp = _mlp(block.mlp, block.norm2, dtype, norm_first=True)

    def forward(self, x: Tokens) -> Tokens:
        return self.mlp((x + self.spatial_mlp(self.norm1(x))).contiguous(), in_place=True)


class PackedLinear(nn.Module):
    """A linear layer through oneDNN, its weights laid out beforehand, GELU folded in or not."""

    def __init__(self, layer: nn.Linear, rows: int, *, gelu: bool = False) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        self.bias, self.gelu = layer.bias, "gelu" if gelu else "none"
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.gelu, [], "none")


class PackedMlp(nn.Module):
    """An `Mlp` of packed layers."""

    def __init__(self, mlp: Mlp, rows: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = PackedLinear(mlp.fc1, rows, gelu=True), PackedLinear(mlp.fc2, rows)

    def forward(self, x: Float[Tensor, "... C"], norm: nn.Module | None = None) -> Float[Tensor, "... C"]:
        return self.fc2(self.fc1(x if norm is None else norm(x)))


def weights_of(layer: nn.Module) -> Weights:
    """A linear layer's weight and bias."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{type(layer).__name__} is no linear layer")
    return layer.weight, layer.bias


def _mlp(mlp: nn.Module, norm: nn.LayerNorm, dtype: torch.dtype, *, norm_first: bool) -> MlpBranch:
    fc1, fc2 = (weights_of(layer) for layer in (mlp.fc1, mlp.fc2))  # type: ignore[arg-type]  # the caller saw an Mlp
    return MlpBranch(dtype, fc1=fc1, fc2=fc2, before=norm if norm_first else None, after=None if norm_first else norm)


def _with_folded_norms(model: Model) -> list[str]:
    """Let convolutions do what the batch norms after them do, in place."""
    number = 0
    for module in model.modules():
        if not isinstance(module, resnet.ConvNorm | upernet.ConvNorm):
            continue
        if isinstance(module.norm, nn.BatchNorm2d | resnet.FrozenNorm):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, _as_learned(module.norm)), nn.Identity()
            number += 1
    return [f"{number} batch norms folded into the convolutions before them"] if number else []


def _as_learned(norm: nn.BatchNorm2d | resnet.FrozenNorm) -> nn.BatchNorm2d:
    """A batch norm; one that never changes as torch has it."""
    if isinstance(norm, nn.BatchNorm2d):
        return norm
    buffers = dict(norm.named_buffers())
    like = nn.BatchNorm2d(len(buffers["weight"]), norm.eps).to(buffers["weight"])
    like.load_state_dict(buffers, strict=False)  # without the count of batches
    return like.eval()


def _with_kernels(model: Model, dtype: torch.dtype) -> list[str]:
    """Exchange what our kernels do for them, in place."""
    makers: dict[type, Callable[..., nn.Module]] = {
        swin.Block: WindowBlock,
        swin_v2.Block: WindowBlock,
        swin_moe.Block: WindowBlock,
        swin_mlp.Block: SpatialBlock,
        vit.Block: SequenceBlock,
        PatchMerge: Merge,
        PatchEmbed: Embed,
    }
    said = {
        WindowBlock: "{} blocks of window attention and MLP as two kernels each, from norm to residual",
        SpatialBlock: "{} MLPs of blocks as one kernel each, from norm to residual",
        SequenceBlock: "{} encoder blocks as four kernels each",
        Merge: "{} patch mergings as one kernel each",
        Embed: "{} patch embedding as one kernel",
    }
    made: collections.Counter[type] = collections.Counter()
    named: collections.Counter[str] = collections.Counter()
    for parent, name, child in list(_children(model)):
        if type(child) in makers:
            backend = getattr(getattr(child, "attn", None), "backend", "auto")
            if backend not in ("auto", "cpu"):  # asked for by name: it is honoured
                named[backend] += 1
                continue
            done = makers[type(child)](child, dtype)
            parent._modules[name] = done
            made[type(done)] += 1
    if isinstance(model.backbone, WindowedBackbone) and model.backbone.entries:
        for stage in model.backbone.each_stage():
            if isinstance(stage.blocks[0], WindowBlock):
                stage.blocks[0].keeps_input = True
    kept = [
        f"{number} blocks as they were: their attention is to be the {backend} backend's"
        for backend, number in named.items()
    ]
    return [said[kind].format(number) for kind, number in made.items()] + kept


def _with_packed_layers(model: nn.Module, dtype: torch.dtype, tokens: int) -> list[str]:
    """Exchange linear layers for packed ones, in place, where oneDNN takes this dtype."""
    if not torch.backends.mkldnn.is_available() or dtype not in DTYPES:
        return ["nothing is packed: oneDNN has no layers for this"]
    number = 0
    rows = max(1, tokens)
    for parent, name, child in list(_children(model)):
        if isinstance(child, Mlp):
            parent._modules[name] = PackedMlp(child, rows)
            number += 2
        elif type(child) in (Linear, nn.Linear) and not isinstance(parent, Mlp | PackedMlp):
            parent._modules[name] = PackedLinear(cast(nn.Linear, child), rows)
            number += 1
    return [f"{number} linear layers through oneDNN, weights packed, GELU folded in"]


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module of a model with its parent and its name there, parents first."""
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
