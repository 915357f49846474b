"""What names alone cannot translate of a detector: rules as in `rules`, for `detector_formats`."""

import re

import torch

from swindow.checkpoints.tables import State
from swindow.errors import CheckpointError

_COUNTER = re.compile(r"backbone\..+\.num_batches_tracked")


class UncountedNorms:
    """A backbone's batch norms count batches there although their statistics stand still, as those of ours do."""

    def read(self, state: State) -> State:
        return {name: x for name, x in state.items() if not _COUNTER.fullmatch(name)}

    def write(self, state: State) -> State:
        return state


class JoinedProjections:
    """Queries, keys and values as one layer, ``….joined``, in place of ``….q``, ``….k`` and ``….v``."""

    def read(self, state: State) -> State:
        new: State = {}
        for name, tensor in state.items():
            stem, _, kind = name.rpartition(".joined.")
            if not stem:
                new[name] = tensor
                continue
            if tensor.shape[0] % 3:
                raise CheckpointError(
                    f"{name} has {tensor.shape[0]} rows, not as many for queries, keys and values; the file is unusable"
                )
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            new |= {f"{stem}.{part}.{kind}": third.contiguous() for part, third in thirds}
        return new

    def write(self, state: State) -> State:
        new: State = {}
        for name, tensor in state.items():
            match = re.fullmatch(r"(head\.transformer\..+)\.([qkv])\.(\w+)", name)
            if match is None:
                new[name] = tensor
            elif match[2] == "q":
                thirds = [state[f"{match[1]}.{part}.{match[3]}"] for part in "qkv"]
                new[f"{match[1]}.joined.{match[3]}"] = torch.cat(thirds)
        return new


class BackgroundFirst:
    """torchvision's background is the first class, with deltas and a mask that nothing reads; ours is the last logit.

    What nothing reads is left out when reading, and is zeros when writing.
    """

    def read(self, state: State) -> State:
        new = dict(state)
        for name, spare in self._named(state):
            new[name] = torch.cat([state[name][1:], state[name][:1]]) if spare == 0 else state[name][spare:].clone()
        return new

    def write(self, state: State) -> State:
        new = dict(state)
        for name, spare in self._named(state):
            tensor = state[name]
            new[name] = (
                torch.cat([tensor[-1:], tensor[:-1]])
                if spare == 0
                else torch.cat([tensor.new_zeros(spare, *tensor.shape[1:]), tensor])
            )
        return new

    def _named(self, state: State) -> list[tuple[str, int]]:
        """The tensors that have a row for each class, and how many rows of background nothing reads."""
        spares = {"head.boxes.0.logits": 0, "head.boxes.0.deltas": 4, "head.masks.0.logits": 1}
        return [(name, spares[name.rpartition(".")[0]]) for name in state if name.rpartition(".")[0] in spares]
