"""How one source lays out a model in a file: a `Format`, which reads and writes by its table and its rules."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from swindow.backbones.geometry import SmallMaps, windows_of_stages
from swindow.checkpoints.buffers import BUFFERS, cuts
from swindow.checkpoints.rules import Rule
from swindow.checkpoints.tables import State, Table, renamed
from swindow.errors import CheckpointError

OTHER_PARTS = re.compile(
    r"(\w+\.)?(embeddings\.|encoder\.)?mask_token$|decoder\.|data_preprocessor\.|(vit|deit|swin|swinv2)\.pooler\.|pooler\."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How one source names, shapes and accompanies the tensors of a model."""

    name: str
    about: str
    """Whose it is, for people."""
    kinds: tuple[str, ...]
    """Families that it can hold."""
    heads: tuple[str, ...] = ("classifier",)
    """Heads that it can hold them with."""
    table: Table
    rules: tuple[Rule, ...] = ()
    """Applied in this order when reading, backwards when writing."""
    marks: tuple[str, ...]
    """Patterns of names, each of which some tensor has, by which the format is known."""
    unlike: tuple[str, ...] = ()
    """Patterns that no tensor has."""
    outer: str = ""
    """Before every name; optional when reading."""
    prefix: str = ""
    """Before every name of the backbone when others' parts lie beside it in the file."""
    inner: Callable[[Any], str] | None = None
    """For a backbone's config: what stands before all names but the head's; optional when reading."""
    small_maps: SmallMaps = "pad"
    """What the published class does where a map is no larger than the window."""
    convention: Literal["openmmlab", "torchvision"] = "openmmlab"
    """Whose details its detectors have, where two sets of them are published."""
    norm_eps: float | None = 1e-5
    """What a ResNet's norms add to the variance there; None where its files differ and do not tell."""
    buffers: Callable[[Any], State] | None = None
    """What the published class stores besides parameters, under our names."""
    headless: bool = False
    """Holds a backbone alone: a classifier stays behind."""
    one_window: bool = False
    """Holds only models whose stages have the same square window."""
    allowed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Fields of a backbone's or a head's config that its class leaves no choice or little choice in."""
    objection: Callable[[Any, Any], str | None] | None = None
    """For a backbone's and a head's config: what else its class cannot build of them."""
    entry: str | None = None
    """The key under which a pickled file holds the state dict."""
    with_meta: bool = False
    """A pickled file has classes and colours beside it, as OpenMMLab's programs expect."""

    def matches(self, names: Iterable[str]) -> bool:
        """Whether these are the names of a file in this format."""
        names = [name.removeprefix(self.outer) for name in names]
        return all(_any(mark, names) for mark in self.marks) and not any(_any(mark, names) for mark in self.unlike)

    def read(self, tensors: Mapping[str, Tensor]) -> "Reading":
        """Their tensors under our names and in our shapes."""
        state, unknown = renamed(tensors, lambda name: self.table.to_ours(self._bare(name)))
        buffers = {name: x for name, x in state.items() if BUFFERS.search(name)}
        state = {name: x for name, x in state.items() if name not in buffers}
        for rule in self.rules:
            state = rule.read(state)
        dropped = tuple(name for name in unknown if self._is_beside(name))
        return Reading(state, buffers, dropped, tuple(name for name in unknown if name not in dropped))

    def write(self, state: State, config: Any, head: Any = None) -> State:
        """Our tensors as their class would have stored them, of a model with these configs of backbone and head.

        Raises:
            CheckpointError: this format cannot express the model.
        """
        refusal = self.refusal(config, head)
        if refusal is not None:
            raise CheckpointError(f"{self.name} {refusal}; choose another format")
        new = {name: x for name, x in state.items() if not (self.headless and name.startswith("head."))}
        for rule in reversed(self.rules):
            new = rule.write(new)
        new |= self.buffers(config) if self.buffers is not None else {}
        found, unknown = renamed(new, self.table.to_theirs)
        if unknown:
            raise CheckpointError(f"{self.name} has no place for {', '.join(unknown[:5])}; choose another format")
        before = self.prefix + (self.inner(config) if self.inner is not None else "")
        heads = {self.table.to_theirs(name) for name in new if name.startswith("head.")}
        return {f"{self.outer}{'' if name in heads else before}{name}": x for name, x in found.items()}

    def differs_on_small_maps(self, config: Any) -> bool:
        """Whether their class treats maps no larger than a window in another way, at the model's own image size."""
        if not hasattr(config, "windows"):
            return False
        theirs = dataclasses.replace(config, small_maps=self.small_maps)
        return [cut.shift_at(*grid) + cut.window for _, cut, grid in cuts(config)] != [
            cut.shift_at(*grid) + cut.window for _, cut, grid in cuts(theirs)
        ]

    def _is_beside(self, name: str) -> bool:
        """Whether a name that is not in the table is nothing to miss: a buffer, or another part of their program.

        A file that is known by its decoder has no other parts: what is unknown in it is of a decoder that we lack.
        """
        outside = self.prefix != "" and not name.startswith(self.prefix) and "classifier" in self.heads
        return outside or BUFFERS.search(name) is not None or OTHER_PARTS.match(name) is not None

    def _bare(self, name: str) -> str:
        """A name of theirs without what may stand before it."""
        name = name.removeprefix(self.outer).removeprefix(self.prefix)
        return re.sub(r"^(swin|swinv2|vit|deit)\.", "", name) if self.inner is not None else name

    def refusal(self, config: Any, head: Any) -> str | None:
        """Why this format cannot express a model with these configs of backbone and head, behind its name."""
        for field, values in self.allowed.items():
            given = getattr(config, field, getattr(head, field, values[0]))
            if given not in values:
                return f"has {field} {' or '.join(map(repr, values))}; this model has {given!r}"
        if self.one_window and hasattr(config, "windows"):
            asked = windows_of_stages(config.window, None, len(config.depths))
            trained = getattr(config, "pretrained_windows", ())
            if len({side for window in asked for side in window}) > 1 or any(h != w for h, w in trained):
                return f"has one square window for all stages; this model has {asked}"
        return self.objection(config, head) if self.objection is not None else None


@dataclasses.dataclass(frozen=True)
class Reading:
    """A file's tensors in our terms."""

    state: State
    buffers: State
    """Stored by others, computed by us; they may tell what parameters cannot."""
    dropped: tuple[str, ...]
    """Names of other buffers, and of other parts of their programs."""
    unknown: tuple[str, ...]
    """Names that are not of this model: other parts, or a mistake."""


def _any(mark: str, names: list[str]) -> bool:
    pattern = re.compile(mark)
    return any(pattern.fullmatch(name) for name in names)
