"""A copy of a model for inference alone: what does not depend on the images is computed once and kept."""

import copy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swindow.backbones.swin_v2 import QkvLinear
from swindow.backbones.windowed import WindowAttention
from swindow.layers import Linear

Frozen = TypeVar("Frozen", bound=nn.Module)


class Constant(nn.Module):
    """Gives the same tensor at every call; moves and casts like a parameter, and is none."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Float[Tensor, "..."]:
        return self.value

    def extra_repr(self) -> str:
        return f"{tuple(self.value.shape)}"


@torch.no_grad()  # not inference mode, whose tensors no compiler with autograd takes
def frozen(model: Frozen) -> Frozen:
    """A deep copy of `model` in eval mode that computes the same outputs as it does without gradients, to the bit.

    Position biases (V1's gathered from tables, V2's and Swin-MoE's made by networks), V2's scales of logits and its
    biases of queries and values become constants, of the model's own dtype: cast the copy, and not the model, to have
    them computed in the wider one. They take ``N T T`` values a block, which a table does not. The copy's state dict
    is another than the model's; the model stays as it is, and what is later done to it does not reach the copy.
    """
    done = copy.deepcopy(model).eval()
    for module in list(done.modules()):
        if isinstance(module, WindowAttention):
            _fold(module)
    return done.eval().requires_grad_(False)


def _fold(attention: WindowAttention) -> None:
    if attention.position_bias is not None:
        attention.position_bias = Constant(attention.position_bias().contiguous())
    if attention.logit_scale is not None:
        attention.logit_scale = Constant(attention.logit_scale())
    if isinstance(attention.qkv, QkvLinear):
        attention.qkv = _plain(attention.qkv)


def _plain(qkv: QkvLinear) -> Linear:
    """The same layer, its bias in one piece."""
    with torch.device("meta"):  # its weight is taken over, not drawn
        layer = Linear(qkv.in_features, qkv.out_features)
    layer.weight = qkv.weight
    layer.bias = nn.Parameter(torch.cat([qkv.q_bias, torch.zeros_like(qkv.q_bias), qkv.v_bias]))
    return layer
