"""What a model costs at an image size: parameters, multiply-accumulates (MACs), activations; for every family.

A twin of the model runs once on the meta device, where tensors have shapes and no values, and the products are counted
as they come by. Two conventions of counting MACs are in use, and papers seldom say which:

* Microsoft's (`Counts.macs`; the Swin papers and their repository): matrix products, convolutions, and one MAC for each
  value that a norm reads; V2's networks that make position biases are left out. For ViT and DeiT, whose papers leave
  out the norms, it is the products alone.
* torchvision's (`Counts.product_macs`): all matrix products and convolutions, and nothing else.

Both count what the windows compute, padding included, so that sizes which windows do not divide cost more.

UPerNet is counted as its papers have it, convolving enlarged maps side by side; `swindow.heads.enlarging` gets the same
sums out of little more than half as many products. The auxiliary classifier, which answers nothing, counts with its
parameters alone. The Swin paper's figures are of one image of 512x2048 pixels, or 640x2560, by OpenMMLab's counter,
which has other opinions on norms, activations and interpolation; ours are within 0.6 % of them for Swin-T, S and B and
for ResNet-101. For Swin-L the paper has 3,230 G, which nothing that we count explains: we find 2,478 G.

A detector in two steps judges as many regions as it finds; counted are 1,000 for each box head and 100 for each mask
head, every stage of a cascade with its own, as in the Swin paper's figures of one image of 1280x800 pixels. Ours are
0.1 to 0.7 % below those: OpenMMLab's counter also adds biases, batch norms and activations. Neither counts RoIAlign and
NMS. DETR's published 86 G is the mean over 100 pictures of COCO whose short side is 800 and which are larger than
800x1066 in the mean; for that size we find 81.2 G, and 86.0 G for 800x1128.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from swindow.backbones import ViT
from swindow.backbones.windowed import WindowAttention, WindowedBackbone
from swindow.heads import Classifier, Head, UNet, UperNet
from swindow.heads.upernet import ConvNorm
from swindow.layers import PatchMerge
from swindow.model import Model, set_backend
from swindow.ops.windows import Size

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)


class Cost(NamedTuple):
    """The work of a part on one image."""

    products: int = 0
    """MACs of matrix products and convolutions."""
    tables: int = 0
    """MACs of products that make position biases, the same for any number of images."""
    norms: int = 0
    """MACs of norms in Microsoft's convention."""
    activations: int = 0
    """Values that matrix products and convolutions put out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A row of the stage table; a stage includes the merge that leads to the next one."""

    name: str
    grid: Size
    channels: int
    parameters: int
    cost: Cost
    blocks: int = 0
    heads: int = 0
    window: Size | None = None
    shift: Size | None = None
    """Of the shifted blocks on this grid: zero along an axis that one window covers."""

    @property
    def macs(self) -> int:
        """MACs in Microsoft's convention."""
        return self.cost.products + self.cost.norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model costs on one image of `size` (height, width) in pixels."""

    size: Size
    parts: tuple[Part, ...]
    """Patch embedding, every stage, what a decoder consists of, head: together the whole model."""

    @property
    def parameters(self) -> int:
        """Learned values."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        """MACs in Microsoft's convention: products, convolutions and norms."""
        return sum(part.macs for part in self.parts)

    @property
    def product_macs(self) -> int:
        """MACs in torchvision's convention: products and convolutions, of position biases too."""
        return sum(part.cost.products + part.cost.tables for part in self.parts)

    @property
    def activations(self) -> int:
        """Values that matrix products and convolutions put out: a measure of memory traffic."""
        return sum(part.cost.activations for part in self.parts)


def count(model: Model, size: int | Size) -> Counts:
    """What `model` costs on one image of this size in pixels; the model itself does not run."""
    size = (size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        twin = model.config.build().eval()
        images = torch.empty(1, model.config.in_channels, *size)
    set_backend(twin, "reference")
    for module in twin.modules():
        if isinstance(module, ConvNorm):
            module.as_published = True
    ledger = _Ledger()
    with _watching(twin, ledger), torch.no_grad(), ledger:
        _run(twin, images)
    parts = ledger.parts(_modules_of_parts(twin))
    if isinstance(twin.backbone, ViT):  # whose sequences are maps of one row: say where their patches lie
        parts = tuple(dataclasses.replace(part, grid=parts[0].grid) for part in parts)
    return Counts(size=size, parts=parts)


def _run(twin: Model, images: Tensor) -> None:
    """All that an answer costs: a detector's regions have no number without values, so it judges made-up ones."""
    if twin.task == "detect":
        head: Any = twin.head
        head.rehearse(twin.outputs(images))
    else:
        twin(images)


def stage_table(counts: Counts) -> str:
    """The parts of a model as aligned text, one a line, the sum at the foot."""
    head = ("part", "grid", "channels", "blocks", "heads", "window", "shift", "parameters", "MACs")
    rows = [head, *(_row(part) for part in counts.parts)]
    rows.append(("sum", *[""] * 6, f"{counts.parameters:,}", _millions(counts.macs)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


class _Ledger(TorchDispatchMode):
    """Writes what comes by to the account of the part that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.part, self.making_tables = "", False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            macs = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
            self.add(tables=macs) if self.making_tables else self.add(products=macs, activations=out.numel())
        return out

    def add(self, **amounts: int) -> None:
        """Put amounts to the current part's account."""
        cost = self.costs[self.part]
        self.costs[self.part] = cost._replace(**{key: getattr(cost, key) + value for key, value in amounts.items()})

    def enter(self, name: str, **facts: Any) -> None:
        """What comes next belongs to this part."""
        self.part = name
        self.costs.setdefault(name, Cost())
        self.facts.setdefault(name, {"grid": (1, 1), "channels": 0}).update(facts)

    def parts(self, names: Iterable[str]) -> tuple[Part, ...]:
        """The parts in this order."""
        return tuple(Part(name=name, cost=self.costs[name], **self.facts[name]) for name in names)


@contextlib.contextmanager
def _watching(twin: Model, ledger: _Ledger) -> Iterator[None]:
    """While it lasts, tell the ledger which part runs, what norms read, and when position biases are made."""
    with contextlib.ExitStack() as stack:
        counted: set[int] = set()
        for name, modules in _modules_of_parts(twin).items():
            parameters = _parameters(modules, counted)
            if name == "patches":  # with what the backbone itself holds: tokens and positions
                parameters += sum(parameter.numel() for parameter in twin.backbone.parameters(recurse=False))
            for module in modules:
                enter = functools.partial(_enter, ledger, name, parameters)
                leave = functools.partial(_leave, ledger, name)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        for module in twin.modules():
            if isinstance(module, _NORMS) and isinstance(twin.backbone, WindowedBackbone):
                stack.callback(module.register_forward_hook(functools.partial(_read_by_norm, ledger, twin)).remove)
            if isinstance(module, WindowAttention) and module.position_bias is not None:
                switch = functools.partial(_switch_tables, ledger)
                stack.callback(module.position_bias.register_forward_pre_hook(switch).remove)
                stack.callback(module.position_bias.register_forward_hook(switch).remove)
        yield


def _modules_of_parts(twin: Model) -> dict[str, list[nn.Module]]:
    """A part for the patches, each stage with the merge after it, a decoder's parts, the head with the output norms."""
    parts: dict[str, list[nn.Module]] = {}
    for name, child in twin.backbone.named_children():
        if name == "stages":
            for number, stage in enumerate(child.children(), start=1):
                parts[f"stage {number}"] = [stage, *filter(None, [getattr(stage, "merge", None)])]
        elif name not in ("norms", "dropout"):
            parts["patches" if name == "patch_embed" else name] = [child]
    inside = _parts_of_head(twin.head)
    listed = [module for modules in inside.values() for module in modules]
    rest = [child for child in twin.head.children() if not isinstance(child, nn.ModuleList) and child not in listed]
    return {**parts, **inside, "head": [*twin.backbone.norms.children(), twin.head, *rest]}


def _parts_of_head(head: Head) -> dict[str, list[nn.Module]]:
    """What a decoder consists of, besides what gives the answer."""
    if isinstance(head, UperNet):
        return {"pooling": [*head.pooled, head.bottleneck], "pyramid": [*head.laterals, *head.smooths]}
    if isinstance(head, UNet):
        steps = zip(head.expands, head.joins, head.stages, strict=True)
        return {f"decoder {number}": list(step) for number, step in enumerate(steps, start=1)}
    if head.config.task == "detect":
        parts = {name: _layers(child) for name, child in head.named_children()}
        return {{"fpn": "pyramid"}.get(name, name): layers for name, layers in parts.items() if layers}
    return {}


def _layers(module: nn.Module) -> list[nn.Module]:
    """What multiplies, in the order of its making."""
    return [layer for layer in module.modules() if isinstance(layer, _LAYERS)]


def _enter(ledger: _Ledger, name: str, parameters: int, module: nn.Module, inputs: Any) -> None:
    ledger.enter(name, parameters=parameters)


def _leave(ledger: _Ledger, name: str, module: nn.Module, inputs: Any, out: Any) -> None:
    """Note the map that a part puts out, and how a stage attends on it; what a merge puts out is the next stage's."""
    facts = ledger.facts[name]
    if isinstance(module, nn.Linear):  # of a detector that says something of what lies on no grid
        facts |= {"channels": out.shape[-1]} if facts["grid"] == (1, 1) else {}
    elif isinstance(module, (ConvNorm, *_LAYERS)):  # of several, the finest
        facts |= max(
            {"grid": tuple(out.shape[2:]), "channels": out.shape[1]}, facts, key=lambda x: math.prod(x["grid"])
        )
    elif isinstance(out, Tensor) and out.ndim == 4 and not isinstance(module, PatchMerge):
        facts |= {"grid": tuple(out.shape[1:3]), "channels": out.shape[3]}
    if isinstance(module, Classifier | UperNet | UNet):  # a logit for each class, of the image or of every cell
        facts |= {"grid": tuple(out.logits.shape[2:]) or facts["grid"], "channels": out.logits.shape[1]}
    blocks = getattr(module, "blocks", ())
    attention = [part for block in blocks for part in block.modules() if hasattr(part, "num_heads")]
    if attention:
        facts |= {"blocks": len(blocks), "heads": attention[0].num_heads}
    cuts = [part.windowing for part in attention if hasattr(part, "windowing")]
    if cuts:
        facts |= {"window": cuts[0].window, "shift": max(cut.shift_at(*facts["grid"]) for cut in cuts)}


def _read_by_norm(ledger: _Ledger, twin: Model, module: nn.Module, inputs: Any, out: Any) -> None:
    if module not in twin.backbone.norms.children() or not isinstance(twin.head, Classifier):
        ledger.add(norms=inputs[0].numel())
        return
    # Microsoft divides the patches by 2**stages for the final norm, not by 4**(stages - 1); kept, so that ours agrees.
    patches = math.prod(ledger.facts["patches"]["grid"])
    ledger.add(norms=inputs[0].shape[-1] * patches // 2 ** len(twin.backbone.stages))


def _switch_tables(ledger: _Ledger, *_: Any) -> None:
    ledger.making_tables = not ledger.making_tables


def _parameters(modules: Iterable[nn.Module], counted: set[int]) -> int:
    """Of all of them together, each once, without those that are counted already: a merge is also part of its stage."""
    unique = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    new = sum(number for key, number in unique.items() if key not in counted)
    counted.update(unique)
    return new


def _row(part: Part) -> tuple[str, ...]:
    return (
        part.name,
        _by(part.grid),
        str(part.channels),
        str(part.blocks or ""),
        str(part.heads or ""),
        _by(part.window),
        _by(part.shift),
        f"{part.parameters:,}",
        _millions(part.macs),
    )


def _by(size: Size | None) -> str:
    return "" if size is None else f"{size[0]}x{size[1]}"


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"
