"""The floor: the matrix products that a model makes, each at its own shape, and nothing else.

Recorded like `swindow.counting` counts, on a twin without memory; then made of fresh noise and run one after another.
No model of these products can be faster than they are, unless it finds a faster product.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from swindow.bench.timing import Run, interleave, spread
from swindow.bench.work import Work, dtype_of
from swindow.errors import ConfigError
from swindow.model import Model, ModelConfig, set_backend
from swindow.ops.linear import linear

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product or convolution, for a whole batch."""

    kind: Literal["linear", "convolution", "attention"]
    """Attention stands for every product of two activations: of experts too."""
    left: Shape
    """Activations: ``M K``, ``G M K``, or images."""
    right: Shape
    """A weight ``N K`` or ``O I …``, or activations ``G K N``."""
    bias: bool = False
    settings: tuple[Any, ...] = ()
    """A convolution's stride, padding, dilation and groups."""
    macs: int
    """Multiply-accumulates."""
    values: int
    """Values read and written, attention's logits and weights left out: a fused kernel keeps those to itself."""


def products(config: ModelConfig, work: Work) -> tuple[Product, ...]:
    """Every product of a forward pass, in order."""
    with torch.device("meta"):
        twin = Model(config).eval()
        images = torch.empty(work.batch, work.channels, *work.size)
    set_backend(twin, "reference")
    book = _Book()
    with torch.no_grad(), book:
        twin(images)
    return _without_logits(book.products)


def replay(found: Sequence[Product], work: Work, *, only_linear: bool = False) -> tuple[Run, str]:
    """A run of these products alone, and how they are made.

    For inference on a CPU with oneDNN, weights are laid out for its kernels beforehand (prepacked). Elsewhere, and for
    training, whose weights change, a linear layer is made in the faster of two ways, as rows or as a map; training
    makes each product with the gradients of both of its operands, and takes no step.
    """
    device, dtype = torch.device(work.device), dtype_of(work, amp=False)
    packed = work.mode == "infer" and device.type == "cpu" and torch.backends.mkldnn.is_available()
    chosen = [product for product in found if product.kind == "linear" or not only_linear]
    noise = _Noise(device, dtype)
    calls = [_CALLS[product.kind](product, work, noise, packed) for product in chosen]

    def run() -> None:
        with torch.set_grad_enabled(work.mode == "train"), torch.autocast(device.type, enabled=False):
            for call in calls:
                call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    what = "linear layers" if only_linear else "all products"
    return run, f"{what}, {'prepacked' if packed else 'not prepacked'}"


class _Book(TorchDispatchMode):
    """Writes down the products that come by."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            macs = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
            self.products.append(_product(func.overloadpacket.__name__, args, out, macs))
        return out


def _product(name: str, args: Any, out: Tensor, macs: int) -> Product:
    """What an operator of aten is to us; a bias's reading is not worth counting."""
    settings: tuple[Any, ...] = ()
    match name:
        case "mm" | "addmm":
            left, right = args[-2:]
            kind, shape, bias = "linear", tuple(right.shape[::-1]), name == "addmm"
        case "bmm" | "baddbmm":
            left, right = args[-2:]
            kind, shape, bias = "attention", tuple(right.shape), False
        case "convolution" if not args[6]:  # transposed
            left, right = args[:2]
            kind, shape, bias = "convolution", tuple(right.shape), args[2] is not None
            settings = (tuple(args[3]), tuple(args[4]), tuple(args[5]), args[8])
        case _:
            raise ConfigError(f"the floor cannot replay {name}; teach it in swindow/bench/products.py")
    values = left.numel() + right.numel() + out.numel()
    return Product(
        kind=kind,  # type: ignore[arg-type]  # one of the three above
        left=tuple(left.shape),
        right=shape,
        bias=bias,
        settings=settings,
        macs=macs,
        values=values,
    )


def _without_logits(found: list[Product]) -> tuple[Product, ...]:
    """Two products in a row, the second on what the first put out, are attention: that matrix need not be in memory."""
    found = list(found)
    for number, (first, second) in enumerate(itertools.pairwise(found)):
        if first.kind == second.kind == "attention" and second.left == _out(first):
            logits = math.prod(second.left)
            found[number] = dataclasses.replace(found[number], values=found[number].values - logits)
            found[number + 1] = dataclasses.replace(second, values=second.values - logits)
    return tuple(found)


def _out(product: Product) -> Shape:
    return (*product.left[:-1], product.right[-1])


class _Noise:
    """Operands of random values: activations of one shape share their memory, weights do not, as in a model."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.activations: dict[Shape, Tensor] = {}

    def __call__(self, *shape: int, gradient: bool = False) -> Tensor:
        if shape not in self.activations:
            self.activations[shape] = self.weight(*shape)
        return self.activations[shape].detach().requires_grad_(gradient)

    def weight(self, *shape: int, gradient: bool = False) -> Tensor:
        """Fresh memory."""
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_(gradient)


Call = Callable[[], object]


def _linear(product: Product, work: Work, noise: _Noise, packed: bool) -> Call:
    training = work.mode == "train"
    (rows, _), (outputs, inputs) = product.left, product.right
    weight = noise.weight(outputs, inputs, gradient=training)
    bias = noise.weight(outputs) if product.bias else None
    x = noise(rows, inputs)
    if packed:
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, ready, bias, "none", [], "")
    shapes = [(rows, inputs), *([_as_map(rows, work.batch, inputs)] if rows % work.batch == 0 else [])]
    views = (x.view(shape).requires_grad_(training) for shape in shapes)
    return _fastest([_rows_or_map(view, weight, bias, training) for view in views])


def _as_map(rows: int, batch: int, inputs: int) -> Shape:
    """Rows as a ``B H W I`` map, as square as can be: `linear` knows a faster way for maps on some processors."""
    tokens = rows // batch
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    return (batch, height, tokens // height, inputs)


def _rows_or_map(x: Tensor, weight: Tensor, bias: Tensor | None, training: bool) -> Call:
    return _with_gradients(lambda: linear(x, weight, bias), (x, weight), training)


def _fastest(calls: Sequence[Call]) -> Call:
    """Of several ways to the same product the one with the least median."""
    samples = interleave(dict(enumerate(calls)), rounds=3, warmup=1)
    return min(zip(calls, samples.values(), strict=True), key=lambda pair: spread(pair[1]).median)[0]


def _convolution(product: Product, work: Work, noise: _Noise, packed: bool) -> Call:
    training = work.mode == "train"
    stride, padding, dilation, groups = product.settings
    x, weight = noise(*product.left), noise.weight(*product.right, gradient=training)
    bias = noise.weight(product.right[0]) if product.bias else None
    if packed and len(product.left) == 4:
        settings = (list(padding), list(stride), list(dilation), groups)
        ready = torch.ops.mkldnn._reorder_convolution_weight(weight, *settings, list(x.shape))
        return lambda: torch.ops.mkldnn._convolution_pointwise(x, ready, bias, *settings, "none", [], "")
    convolve = F.conv2d if len(product.left) == 4 else F.conv1d
    inputs = (x.requires_grad_(training), weight) if product.left[1] != work.channels else (weight,)
    return _with_gradients(lambda: convolve(x, weight, bias, stride, padding, dilation, groups), inputs, training)


def _attention(product: Product, work: Work, noise: _Noise, packed: bool) -> Call:
    training = work.mode == "train"
    left, right = (noise(*shape, gradient=training) for shape in (product.left, product.right))
    return _with_gradients(lambda: torch.bmm(left, right), (left, right), training)


def _with_gradients(forward: Callable[[], Tensor], inputs: Sequence[Tensor], training: bool) -> Call:
    if not training:
        return forward
    with torch.enable_grad():
        gradient = torch.ones_like(forward()).mul_(0.5)
    return lambda: torch.autograd.grad(forward(), inputs, gradient)


_CALLS: dict[str, Callable[[Product, Work, _Noise, bool], Call]] = {
    "linear": _linear,
    "convolution": _convolution,
    "attention": _attention,
}
