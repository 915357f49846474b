"""A model for inference on an NVIDIA GPU: frozen, cast, compiled, and for small batches captured as a CUDA graph."""

import collections
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.backbones.windowed import WindowAttention
from swindow.devices import DTYPES
from swindow.errors import ConfigError
from swindow.layers import PatchEmbed
from swindow.model import Model
from swindow.ops.attention import Backend, choose
from swindow.ops.windows import Size
from swindow.optimizing.freezing import frozen
from swindow.shapes import Images

GRAPHED = 64 * 224 * 224
"""Up to so many pixels a batch, a GPU waits for launches rather than for arithmetic, and they are captured."""

_WARMUP = 3
_MANY_SHAPES = 64  # dynamo gives up after 8 versions of one function, and all our models share theirs
_TUNED = {"max_autotune_gemm": True, "epilogue_fusion": True}

Run = Callable[[Tensor], Tensor]


def optimize_for_gpu(
    model: Model,
    *,
    size: Size,
    dtype: torch.dtype,
    batch: int,
    device: torch.device,
    attention: Backend = "auto",
    tuned: bool = False,
) -> tuple[nn.Module, list[str]]:
    """What computes `model`'s logits fastest on `device`, and what was done, in sentences. The model stays as it is.

    It is called like the model, with fp32 images, and answers in the model's own dtype, for images of any number and
    size; `batch` images of `size` pixels are what it is compiled for.

    Args:
        attention: the backend of windows whose own is ``auto``.
        tuned: have inductor try its own matrix products, which take GELU along, beside cuBLAS's; minutes, once.

    Raises:
        ConfigError: no CUDA device, or a dtype that is none of fp32, bf16, fp16.
    """
    if device.type != "cuda":
        raise ConfigError(f"device {device} is not a GPU; optimize the model for the CPU instead")
    ready, did = prepared(model, dtype=dtype, device=device, attention=attention)
    small = batch * size[0] * size[1] <= GRAPHED
    images = torch.randn(batch, model.config.in_channels, *size, device=device)
    images = images.to(dtype) if small else images  # what a graph reads is cast while it is copied there
    compiled = Compiled(ready, images, options=_TUNED if tuned else None)
    shape, how = f"{batch} of {size[0]}x{size[1]}", ", matrix products tuned" if tuned else ""
    did.append(f"compiled by inductor for batches of {shape}{how}; another shape compiles when it first comes")
    if not small:
        return compiled, did
    did.append(f"captured as a CUDA graph for batches of {shape}, one launch each; other shapes run compiled")
    return Captured(compiled, images), did


def prepared(
    model: Model, *, dtype: torch.dtype, device: torch.device, attention: Backend = "auto"
) -> tuple["Cast", list[str]]:
    """What can be done ahead on any device: freezing, casting, attention's backends, patches; and sentences."""
    if dtype not in DTYPES.values():
        raise ConfigError(f"dtype {dtype} is not one of {', '.join(map(str, DTYPES.values()))}")
    answers = next(model.parameters()).dtype
    copy = frozen(model)  # before the cast: constants are computed in the wider dtype
    name = str(dtype).removeprefix("torch.")
    did = ["frozen: position biases, scales and their like are computed once and kept"]
    for module in list(copy.modules()):
        if isinstance(module, PatchEmbed):
            module.proj = PatchProduct(module.proj).eval()  # type: ignore[assignment]  # called in the same way
            did.append("patches embedded by a matrix product in place of a convolution")
    copy = copy.to(device, dtype)
    if dtype != answers:
        did.append(f"weights and arithmetic in {name}, sums in float32")
    backends = collections.Counter(
        _settle(module, attention, dtype, device) for module in copy.modules() if isinstance(module, WindowAttention)
    )
    did += [f"window attention by {backend} in {blocks} blocks" for backend, blocks in sorted(backends.items())]
    return Cast(copy, dtype, answers), did


class Cast(nn.Module):
    """A network that computes in `dtype` and answers in `answers`; a compiler folds the casts into their neighbours."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, answers: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype, self.answers = network, dtype, answers

    def forward(self, images: Images) -> Tensor:
        return self.network(images.to(self.dtype)).to(self.answers)


class Compiled(nn.Module):
    """A network compiled for images of one shape, and, when others come, again with sizes left open."""

    def __init__(
        self, network: nn.Module, images: Tensor, *, backend: str = "inductor", options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = images.shape
        settings: dict[str, Any] = {"fullgraph": True, "backend": backend, "options": options}
        self.fixed: Run = torch.compile(network.forward, dynamic=False, **settings)
        self.free: Run = torch.compile(network.forward, dynamic=True, **settings)
        self(images)  # compile now, and not at the first image

    def forward(self, images: Images) -> Tensor:
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=_MANY_SHAPES):
            return (self.fixed if images.shape == self.shape else self.free)(images)


class Captured(nn.Module):
    """A network whose run on images of one shape is replayed as a CUDA graph; other shapes run as they did.

    A graph is a list of launches at fixed addresses: images are copied to where it reads them, and its answer from
    where the next replay would overwrite it. Replays are for one stream at a time.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = network
        self.held: tuple[Tensor, ...] = (images.clone(),)  # in a tuple, where nn.Module sees no buffer to move
        self.graph = torch.cuda.CUDAGraph()
        current, aside = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
        aside.wait_stream(current)
        with torch.no_grad(), torch.cuda.device(images.device):
            with torch.cuda.stream(aside):  # libraries allocate and choose at first runs, which a graph must not hold
                for _ in range(_WARMUP):
                    network(self.held[0])
            current.wait_stream(aside)
            with torch.cuda.graph(self.graph):
                answer = network(self.held[0])
        self.held += (answer,)

    @torch.no_grad()
    def forward(self, images: Images) -> Tensor:
        read, answer = self.held
        if images.shape != read.shape or images.device != read.device:
            return self.network(images)
        read.copy_(images)  # casts on the way
        self.graph.replay()
        return answer.clone()

    def _apply(self, *arguments: Any, **settings: Any) -> "Captured":
        raise ConfigError("a captured graph can be neither moved nor cast; optimize the model again")


class PatchProduct(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product; its output lies channels last.

    With three input channels cuDNN has no fast kernel, and transposes images and maps besides.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.patch: Size = (convolution.kernel_size[0], convolution.kernel_size[1])
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)
        self.bias = convolution.bias

    def forward(self, images: Images) -> Float[Tensor, "B D H W"]:
        (high, wide), (height, width) = self.patch, images.shape[2:]
        x = images.unflatten(3, (width // wide, wide)).unflatten(2, (height // high, high))  # B C H h W w
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3)  # B H W Chw
        return nn.functional.linear(x, self.weight, self.bias).permute(0, 3, 1, 2)


def _settle(module: WindowAttention, wanted: Backend, dtype: torch.dtype, device: torch.device) -> str:
    """Fix what ``auto`` would choose, so that it can be told; what was asked for by name stays."""
    module.backend = wanted if module.backend == "auto" else module.backend
    if module.backend == "auto":
        window, dim = module.window, module.proj.in_features
        heads, bias = module.num_heads, module.position_bias
        sample = torch.empty(
            1, 2 * window[0], 2 * window[1], 3, heads, dim // heads, dtype=dtype, device=device
        )  # a map larger than its window, as most are
        module.backend = choose(sample, None if bias is None else bias(), window, gradients=False)
    return module.backend
