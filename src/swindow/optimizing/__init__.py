"""A model made ready for inference on the machine that it is on."""

from typing import Any

import torch
from torch import nn

from swindow.devices import DTYPES
from swindow.errors import ConfigError, UnknownName
from swindow.model import Model
from swindow.objects import Frames
from swindow.shapes import Images

__all__ = ["Optimized", "optimize"]

USUAL = 224


class Optimized(nn.Module):
    """What `optimize` made: called like the model, with images in any dtype, it answers in the model's own.

    For inference only: no gradients, and neither training, moving, casting nor saving. It keeps weights of its own;
    what is later done to the model does not reach it.
    """

    def __init__(self, network: nn.Module, did: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.did = did
        """What was done, a sentence each."""
        super().train(False)

    @torch.no_grad()
    def forward(self, images: Images, frames: Frames | None = None) -> Any:
        return self.network(images) if frames is None else self.network(images, frames)

    def train(self, mode: bool = True) -> "Optimized":
        """Nothing: it stays as it is, in a model that is trained too."""
        return self

    def state_dict(self, *arguments: Any, **settings: Any) -> Any:
        """Nothing.

        Raises:
            ConfigError: packed weights are this machine's.
        """
        raise _not_again("saved")

    def __deepcopy__(self, memo: Any) -> "Optimized":
        raise _not_again("copied")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise _not_again("saved")

    def _apply(self, *arguments: Any, **settings: Any) -> "Optimized":
        raise _not_again("moved or cast")

    def extra_repr(self) -> str:
        return "\n".join(self.did)


def _not_again(what: str) -> ConfigError:
    return ConfigError(f"an optimized model cannot be {what}; optimize the model again")


def optimize(
    model: nn.Module,
    *,
    size: int | tuple[int, ...] | None = None,
    dtype: torch.dtype | str | None = None,
    batch: int = 1,
) -> Optimized:
    """`model` for inference alone, as fast as the machine that it is on allows; the model stays as it is.

    On a CPU, weights are packed for its vector units and whole branches of blocks run as single kernels, from norm to
    residual, where our kernels can be built; elsewhere layers run through oneDNN with GELU folded in. On a GPU it is
    compiled, and for small batches captured as a CUDA graph. `Optimized.did` says which. Of a detector, for a CPU only,
    the backbone is made fast; it is called as the detector is.

    Args:
        size: height and width of the images in pixels that it will mostly see; None is what the model is made for.
            Others run too.
        dtype: what to compute in: float32, bfloat16, float16 or "fp32", "bf16", "fp16"; None is the weights' own.
        batch: how many images it will mostly see at a time. Others run too.

    Raises:
        ConfigError: something else than a model of ours, or a size, dtype or batch that cannot be.
    """
    if not isinstance(model, Model):
        raise ConfigError(f"optimize takes a model of swindow, and was given {type(model).__name__}")
    kind = _dtype(dtype, model)
    made_for = getattr(model.config.backbone, "image_size", USUAL) if size is None else size
    sides = (made_for, made_for) if isinstance(made_for, int) else made_for
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ConfigError(f"size is {size}; give a number of pixels, or (height, width)")
    height, width = sides
    if batch < 1 or min(height, width) < 1:
        raise ConfigError(f"batch {batch} of {height}x{width} pixels: all must be at least 1")
    device = next(model.parameters()).device
    if device.type == "cuda" and model.task == "detect":
        raise ConfigError(
            f"{model.config.name} finds objects, and on a GPU optimize takes models that do not; use it as it is"
        )
    if device.type == "cuda":
        from swindow.optimizing.gpu import optimize_for_gpu

        network, did = optimize_for_gpu(model, size=(height, width), dtype=kind, batch=batch, device=device)
    elif device.type == "cpu":
        from swindow.optimizing.cpu import optimize_for_cpu

        network, did = optimize_for_cpu(model, size=(height, width), dtype=kind, batch=batch)
    else:
        raise ConfigError(f"the model is on {device}; optimize knows cpu and cuda, move it to one of them")
    return Optimized(network.eval(), tuple(did))


def _dtype(given: torch.dtype | str | None, model: Model) -> torch.dtype:
    if given is None:
        given = next(model.parameters()).dtype
    if isinstance(given, str):
        if given not in DTYPES:
            raise UnknownName("dtype", given, DTYPES)
        given = DTYPES[given]
    if given not in DTYPES.values():
        raise ConfigError(f"dtype is {given}; optimize computes in {', '.join(map(str, DTYPES.values()))}")
    return given
