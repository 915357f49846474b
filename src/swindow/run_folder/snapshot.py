"""A run's state at one moment, as it is about to be written: at once, or behind the run's back from copies."""

import dataclasses
import json
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from swindow.checkpoints.own import card_text
from swindow.checkpoints.streaming import size_of
from swindow.distributed import Ranks, whole
from swindow.model import Model
from swindow.run_folder.machine import versions
from swindow.run_folder.saved import USABLE


@runtime_checkable
class Savable(Protocol):
    """What a run saves: the model to use, and all that an exact resume needs besides."""

    @property
    def usable(self) -> Model: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def facts(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What is to be written of one step. Weights to use are whole, and only in the first process."""

    step: int
    card: str
    facts: str
    usable: dict[str, Tensor]
    training: dict[str, Tensor]
    """All else that this process has; of what is cut up, its piece."""
    layout: dict[str, Tensor]
    """The same by what it is a piece of, for its shape alone."""

    @property
    def is_sharded(self) -> bool:
        return any(isinstance(tensor, DTensor) for tensor in self.layout.values())

    @property
    def size(self) -> int:
        """Bytes that this process writes."""
        return size_of(self.usable) + size_of(self.training)


class Copies:
    """Buffers in the processor's memory for all that is saved, made at the first save and used again at each later one.

    Where tensors are on a GPU the buffers are pinned, so that copies to them run at the bus's full speed.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def of(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies that stay as they are until the next call that names them."""
        for name, tensor in tensors.items():
            buffer = self.buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                self.buffers[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
                )
            self.buffers[name].copy_(tensor, non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return {name: self.buffers[name] for name in tensors}


def take(state: Savable, ranks: Ranks, origin: dict[str, Any], copies: Copies | None) -> Snapshot:
    """The state as it is now; with `copies`, as it stays while the run goes on. All processes must ask."""
    tensors = {name: tensor.detach() for name, tensor in state.tensors().items()}
    layout = {name: tensor for name, tensor in tensors.items() if not name.startswith(USABLE)}
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    mine = {name: _piece(tensor) for name, tensor in layout.items()} if sharded or ranks.is_first else {}
    for name in [name for name in tensors if name not in layout]:
        full = whole(tensors[name])  # put together by all, one after the other, and kept by one
        if ranks.is_first:
            mine[name] = full.cpu() if sharded else full
    if copies is not None:
        mine = copies.of(mine)
    facts = state.facts()
    return Snapshot(
        step=facts["step"],
        card=card_text(state.usable),
        facts=json.dumps(_described(facts) | {"origin": origin | {"processes": ranks.world, "versions": versions()}}),
        usable={name.removeprefix(USABLE): tensor for name, tensor in mine.items() if name.startswith(USABLE)},
        training={name: tensor for name, tensor in mine.items() if name in layout},
        layout=layout,
    )


def _piece(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _described(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts, and what follows from them, for people and programs that read state.json without this library."""
    place = {name: facts[name] for name in ("seed", "epoch", "batch") if name in facts}
    draws = {
        "seed": facts.get("seed"),
        "sample": "sample_seed(seed, epoch, index)",
        "step": "sample_seed(seed, step, 2**40 + 2**20 * process)",
    }
    schedule = {name: facts[name] for name in ("step", "total") if name in facts}
    return {**facts, "sampler": place, "random": draws, "schedule": schedule}
