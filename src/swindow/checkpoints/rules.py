"""What a name alone cannot translate: tensors that others cut, join, order or shape differently.

A rule takes a state dict under our names, as a table of names gave it, to one that is ours in full, and back.
"""

import math
import re
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from swindow.checkpoints.tables import State
from swindow.errors import CheckpointError

MERGES = re.compile(r"backbone\.stages\.\d+\.merge\.(reduction|norm)\.(weight|bias)")


@runtime_checkable
class Rule(Protocol):
    """One difference between a format and ours; `write` is the inverse of `read`."""

    def read(self, state: State) -> State:
        """A state dict as others have it, in our form."""
        ...

    def write(self, state: State) -> State:
        """A state dict of ours in the others' form."""
        ...


class LastNorm:
    """Ours is named after its stage; a classifier's has no number: ``backbone.norms.last``."""

    def read(self, state: State) -> State:
        return {_moved(name, ".norms.last.", f".norms.{_last(state)}."): tensor for name, tensor in _once(state)}

    def write(self, state: State) -> State:
        return {_moved(name, f".norms.{_last(state)}.", ".norms.last."): tensor for name, tensor in state.items()}


class SpareNorm:
    """A backbone in transformers has the classifier's last norm too, and does not use it; ours has none."""

    def read(self, state: State) -> State:
        return {name: x for name, x in state.items() if not name.startswith("backbone.norms.last.")}

    def write(self, state: State) -> State:
        return state


class SeparateProjections:
    """Queries, keys and values as three layers, ``….query``, ``….key`` and ``….value`` in place of ``….qkv``."""

    def read(self, state: State) -> State:
        new = {name: tensor for name, tensor in state.items() if not re.search(r"\.(query|key|value)\.\w+$", name)}
        for name in [name for name in state if ".query." in name]:
            stem, kind = name.split(".query.")
            parts = [state.get(f"{stem}.{part}.{kind}") for part in ("query", "key", "value")]
            query, key, value = parts
            if query is None or value is None or (key is None and kind == "weight"):
                raise CheckpointError(f"{name} has no matching key or value in the file; it is incomplete")
            if key is None:  # V2 has no bias on keys
                new |= {f"{stem}.qkv.q_bias": query, f"{stem}.qkv.v_bias": value}
            else:
                new[f"{stem}.qkv.{kind}"] = torch.cat([query, key, value])
        return new

    def write(self, state: State) -> State:
        new: State = {}
        for name, tensor in state.items():
            stem, _, kind = name.rpartition(".qkv.")
            if not stem:
                new[name] = tensor
            elif kind in ("q_bias", "v_bias"):
                new[f"{stem}.{'query' if kind == 'q_bias' else 'value'}.bias"] = tensor
            else:
                thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
                new |= {f"{stem}.{part}.{kind}": third.contiguous() for part, third in thirds}
        return new


class FullBias:
    """V2 with a bias for keys too, which is never used: the third of torchvision's ``qkv.bias`` that stays zero."""

    def read(self, state: State) -> State:
        new: State = {}
        for name, tensor in state.items():
            stem, _, kind = name.rpartition(".qkv.")
            if kind == "bias" and f"{stem}.logit_scale.log" in state:
                query, _, value = tensor.chunk(3)
                new |= {f"{stem}.qkv.q_bias": query.clone(), f"{stem}.qkv.v_bias": value.clone()}
            else:
                new[name] = tensor
        return new

    def write(self, state: State) -> State:
        new: State = {}
        for name, tensor in state.items():
            if name.endswith(".qkv.q_bias"):
                value = state[name.replace("q_bias", "v_bias")]
                new[name.replace("q_bias", "bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
            elif not name.endswith(".qkv.v_bias"):
                new[name] = tensor
        return new


class UnfoldedMerge:
    """OpenMMLab gathers a merge's 2x2 cells by unfolding: channel-major, and row-major in the cell; ours is neither.

    In ours, channels lie behind the places of a cell, and those go column by column.
    """

    def read(self, state: State) -> State:
        return {name: self._ours(x) if MERGES.fullmatch(name) and wide(state, name) else x for name, x in state.items()}

    def write(self, state: State) -> State:
        return {
            name: self._theirs(x) if MERGES.fullmatch(name) and wide(state, name) else x for name, x in state.items()
        }

    def _ours(self, x: Tensor) -> Tensor:
        cells = x.unflatten(-1, (-1, 4)).transpose(-1, -2)
        return cells[..., [0, 2, 1, 3], :].flatten(-2).contiguous()

    def _theirs(self, x: Tensor) -> Tensor:
        cells = x.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
        return cells.transpose(-1, -2).flatten(-2).contiguous()


class FlatPositions:
    """An absolute position table as ``1 L C``, or ``1 C H W`` with `as_map`; ours is ``H W C``.

    One of L places that are no square stays as it is until the image size is known: then `placed`.
    """

    name = "backbone.absolute_position.table"

    def __init__(self, *, as_map: bool = False) -> None:
        self.as_map = as_map

    def read(self, state: State) -> State:
        if self.name not in state:
            return state
        table = state[self.name]
        if table.ndim == 4:
            return {**state, self.name: table[0].permute(1, 2, 0).contiguous()}
        side = math.isqrt(table.shape[1])
        return {**state, self.name: table[0].unflatten(0, (side, side))} if side**2 == table.shape[1] else state

    def write(self, state: State) -> State:
        if self.name not in state:
            return state
        table = state[self.name]
        flat = table.permute(2, 0, 1)[None] if self.as_map else table.flatten(0, 1)[None]
        return {**state, self.name: flat.contiguous()}


def placed(state: State, grid: tuple[int, int]) -> State:
    """With a flat table of absolute positions, if there is one left, on its grid.

    Raises:
        CheckpointError: the grid has another number of places.
    """
    table = state.get(FlatPositions.name)
    if table is None or table.shape[0] != 1 or table.shape[:2] == grid:
        return state
    if table.shape[1] != grid[0] * grid[1]:
        raise CheckpointError(
            f"{table.shape[1]} places of absolute position are no square map, nor one of {grid[0]}x{grid[1]}; "
            "give image_size=(height, width)"
        )
    return {**state, FlatPositions.name: table[0].unflatten(0, grid)}


class ScaleColumns:
    """V2's logit scales as ``N 1 1``; ours are ``N``."""

    def read(self, state: State) -> State:
        return {name: x.flatten() if name.endswith(".logit_scale.log") else x for name, x in state.items()}

    def write(self, state: State) -> State:
        return {name: x[:, None, None] if name.endswith(".logit_scale.log") else x for name, x in state.items()}


class FlatBlocks:
    """A ViT's blocks in one row, ``backbone.blocks.{i}``; ours are in stages, four if that can be."""

    def read(self, state: State) -> State:
        found = re.compile(r"backbone\.blocks\.(\d+)\.")
        depth = 1 + max((int(match[1]) for match in map(found.match, state) if match), default=-1)
        each = depth // 4 if depth % 4 == 0 else max(depth, 1)

        def staged(match: re.Match[str]) -> str:
            stage, block = divmod(int(match[1]), each)
            return f"backbone.stages.{stage}.blocks.{block}."

        return {found.sub(staged, name): x for name, x in state.items()}

    def write(self, state: State) -> State:
        found = re.compile(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
        places = sorted({(int(m[1]), int(m[2])) for m in map(found.match, state) if m})
        flat = {place: index for index, place in enumerate(places)}
        return {
            found.sub(lambda m: f"backbone.blocks.{flat[int(m[1]), int(m[2])]}.", name): x for name, x in state.items()
        }


def restaged(state: State, depths: tuple[int, ...]) -> State:
    """A ViT's blocks in stages of other depths: the same blocks in the same order."""
    places = iter([(stage, block) for stage, depth in enumerate(depths) for block in range(depth)])
    flat = FlatBlocks().write(LastNorm().write(state))
    found = re.compile(r"backbone\.blocks\.(\d+)\.")
    numbers = sorted({int(match[1]) for match in map(found.match, flat) if match})
    stems = {n: "backbone.stages.{}.blocks.{}.".format(*place) for n, place in zip(numbers, places, strict=False)}
    return LastNorm().read({found.sub(lambda m: stems.get(int(m[1]), m[0]), name): x for name, x in flat.items()})


class TokenOfEncoder:
    """SimMIM's mask token lies in its encoder, ``1 1 D``; ours is the head's, ``D``, and our backbone has none."""

    theirs, ours = "backbone.mask_token", "head.mask_token"

    def read(self, state: State) -> State:
        return {self.ours if name == self.theirs else name: self._read(name, x) for name, x in state.items()}

    def write(self, state: State) -> State:
        return {
            self.theirs if name == self.ours else name: x[None, None] if name == self.ours else x
            for name, x in state.items()
        }

    def _read(self, name: str, x: Tensor) -> Tensor:
        return x.flatten() if name == self.theirs else x


class PairedHeads:
    """A classifier that has another beside it goes by another name, ``head.paired``."""

    def read(self, state: State) -> State:
        return {name.replace("head.paired.", "head.linear."): x for name, x in state.items()}

    def write(self, state: State) -> State:
        if "head.distilled.weight" not in state:
            return state
        return {name.replace("head.linear.", "head.paired."): x for name, x in state.items()}


def wide(state: State, name: str) -> bool:
    """Whether a merge's tensor runs over the 4C channels of the joined cell; V2's norm has the 2C reduced ones."""
    stem = name.rpartition(".merge.")[0]
    return state[name].shape[-1] == state[f"{stem}.merge.reduction.weight"].shape[-1]


def _once(state: State) -> list[tuple[str, Tensor]]:
    """All but the norm without a number where the same stage has one with it, which is what a backbone puts out."""
    numbered = f"backbone.norms.{_last(state)}."
    double = any(name.startswith(numbered) for name in state)
    return [(name, x) for name, x in state.items() if not (double and name.startswith("backbone.norms.last."))]


def _last(state: State) -> int:
    return max((int(name.split(".")[2]) for name in state if name.startswith("backbone.stages.")), default=0)


def _moved(name: str, old: str, new: str) -> str:
    return name.replace(old, new) if name.startswith("backbone.norms.") else name
