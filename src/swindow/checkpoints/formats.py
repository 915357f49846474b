"""Whose files we read and write: one `Format` for each, a table of names and the rules that names cannot express.

Where the published classes disagree on maps smaller than a window, the format says which policy its weights knew.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from swindow.backbones.geometry import SmallMaps, Windowing, windows_of_stages
from swindow.checkpoints.names import (
    DENSE,
    HUGGINGFACE,
    HYBRID_TIMM,
    MICROSOFT,
    OPENMMLAB,
    TIMM,
    TORCHVISION,
    VIT_HUGGINGFACE,
    VIT_TIMM,
    VIT_TORCHVISION,
)
from swindow.checkpoints.rules import (
    FlatBlocks,
    FlatPositions,
    FullBias,
    LastNorm,
    PairedHeads,
    Rule,
    ScaleColumns,
    SeparateProjections,
    UnfoldedMerge,
)
from swindow.checkpoints.tables import State, Table, renamed
from swindow.errors import CheckpointError, UnknownName
from swindow.ops.windows import count, region_mask, relative_position_index

OTHER_PARTS = re.compile(
    r"(\w+\.)?(embeddings\.|encoder\.)?mask_token$|decoder\.|(vit|deit|swin|swinv2)\.pooler\.|pooler\."
)
BUFFERS = re.compile(r"relative_position_index|relative_coords_table|attn_mask|\.k_bias$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How one source names, shapes and accompanies the tensors of a model."""

    name: str
    about: str
    """Whose it is, for people."""
    kinds: tuple[str, ...]
    """Families that it can hold."""
    table: Table
    rules: tuple[Rule, ...] = ()
    """Applied in this order when reading, backwards when writing."""
    marks: tuple[str, ...]
    """Patterns of names, each of which some tensor has, by which the format is known."""
    unlike: tuple[str, ...] = ()
    """Patterns that no tensor has."""
    prefix: str = ""
    """Before every name of the model when others' parts lie beside it in the file."""
    inner: Callable[[Any], str] | None = None
    """For a backbone's config: what stands before all names but the head's; optional when reading."""
    small_maps: SmallMaps = "pad"
    """What the published class does where a map is no larger than the window."""
    buffers: Callable[[Any], State] | None = None
    """What the published class stores besides parameters, under our names."""
    headless: bool = False
    """Holds a backbone alone: a classifier stays behind."""
    one_window: bool = False
    """Holds only models whose stages have the same square window."""
    allowed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Fields of a backbone's config that its class leaves no choice or little choice in."""
    entry: str | None = None
    """The key under which a pickled file holds the state dict."""

    def matches(self, names: Iterable[str]) -> bool:
        """Whether these are the names of a file in this format."""
        names = list(names)
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

    def write(self, state: State, config: Any) -> State:
        """Our tensors as their class would have stored them.

        Raises:
            CheckpointError: this format cannot express the model.
        """
        self._refuse(config)
        new = {name: x for name, x in state.items() if not (self.headless and name.startswith("head."))}
        for rule in reversed(self.rules):
            new = rule.write(new)
        new |= self.buffers(config) if self.buffers is not None else {}
        found, unknown = renamed(new, self.table.to_theirs)
        if unknown:
            raise CheckpointError(f"{self.name} has no place for {', '.join(unknown[:5])}; choose another format")
        before = self.prefix + (self.inner(config) if self.inner is not None else "")
        heads = {self.table.to_theirs(name) for name in new if name.startswith("head.")}
        return {name if name in heads else f"{before}{name}": x for name, x in found.items()}

    def _is_beside(self, name: str) -> bool:
        """Whether a name that is not in the table is nothing to miss: a buffer, or another part of their program."""
        outside = self.prefix != "" and not name.startswith(self.prefix)
        return outside or BUFFERS.search(name) is not None or OTHER_PARTS.match(name) is not None

    def _bare(self, name: str) -> str:
        """A name of theirs without what may stand before it."""
        name = name.removeprefix(self.prefix)
        return re.sub(r"^(swin|swinv2|vit|deit)\.", "", name) if self.inner is not None else name

    def _refuse(self, config: Any) -> None:
        for field, values in self.allowed.items():
            given = getattr(config, field, values[0])
            if given not in values:
                some = " or ".join(map(repr, values))
                raise CheckpointError(
                    f"{self.name} has {field} {some}; this model has {given!r}; choose another format"
                )
        if self.one_window and hasattr(config, "windows"):
            asked = windows_of_stages(config.window, None, len(config.depths))
            trained = getattr(config, "pretrained_windows", ())
            if len({side for window in asked for side in window}) > 1 or any(h != w for h, w in trained):
                raise CheckpointError(f"{self.name} has one square window for all stages; this model has {asked}")

    def differs_on_small_maps(self, config: Any) -> bool:
        """Whether their class treats maps no larger than a window in another way, at the model's own image size."""
        if not hasattr(config, "windows"):
            return False
        theirs = dataclasses.replace(config, small_maps=self.small_maps)
        return [cut.shift_at(*grid) + cut.window for _, cut, grid in _cuts(config)] != [
            cut.shift_at(*grid) + cut.window for _, cut, grid in _cuts(theirs)
        ]


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


def format_named(name: str, kind: str) -> Format:
    """The format of this name that holds this family.

    Raises:
        UnknownName: there is no such format.
        CheckpointError: there is, and it holds other families.
    """
    named = [entry for entry in FORMATS if entry.name == name]
    if not named:
        raise UnknownName("format", name, sorted({entry.name for entry in FORMATS} | {"swindow"}))
    fitting = [entry for entry in named if kind in entry.kinds]
    if not fitting:
        kinds = ", ".join(kind for entry in named for kind in entry.kinds)
        raise CheckpointError(f"the {name} format cannot hold a {kind}; it holds {kinds}")
    return fitting[0]


def recognise(names: Iterable[str]) -> Format | None:
    """The format that these names of tensors are from; None when they are from none that we know."""
    names = tuple(names)
    return next((entry for entry in FORMATS if entry.matches(names)), None)


def _any(mark: str, names: list[str]) -> bool:
    pattern = re.compile(mark)
    return any(pattern.fullmatch(name) for name in names)


# -- buffers -----------------------------------------------------------------------------------------------------------


def _indices(config: Any) -> State:
    """The row of the bias table for each pair of a window's tokens, in every block."""
    return {
        f"{block}.attn.relative_position_index": relative_position_index(cut.window) for block, cut, _ in _cuts(config)
    }


def _flat_indices(config: Any) -> State:
    return {name: index.flatten() for name, index in _indices(config).items()} | _coordinates(config)


def _indices_and_coordinates(config: Any) -> State:
    return _indices(config) | _coordinates(config)


def _original_buffers(config: Any) -> State:
    """Indices, V2's coordinates, and the masks of shifted blocks at the size that the model is made for."""
    masks = {}
    for block, cut, grid in _cuts(config):
        shift = cut.shift_at(*grid)
        if any(shift):
            padded = (count(grid[0], cut.window[0]) * cut.window[0], count(grid[1], cut.window[1]) * cut.window[1])
            seen = region_mask(padded, cut.window, shift)
            masks[f"{block}.attn_mask"] = torch.zeros(seen.shape).masked_fill_(~seen, -100.0)
    return _indices_and_coordinates(config) | masks


def _coordinates(config: Any) -> State:
    """V2: the offsets of a window's tokens on the logarithmic scale, ``1 2h-1 2w-1 2``, in every block."""
    if config.kind != "swin_v2":
        return {}
    from swindow.backbones.swin_v2 import log_spaced_offsets

    names = {}
    for block, cut, _ in _cuts(config):
        stage = int(block.split(".")[2])
        offsets = log_spaced_offsets(cut.window, config.pretrained_windows[stage])
        names[f"{block}.attn.relative_coords_table"] = offsets[None]
    return names


def _cuts(config: Any) -> Iterable[tuple[str, Windowing, tuple[int, int]]]:
    """Every block's path, its windows, and the grid that it has at the size that the model is made for."""
    for stage, grid in enumerate(config.grids):
        for index, cut in enumerate(config.windowings(stage)):
            yield f"backbone.stages.{stage}.blocks.{index}", cut, grid


# -- formats, the most particular first --------------------------------------------------------------------------------

_PYRAMIDS = ("swin", "swin_v2")
_AS_PUBLISHED: Mapping[str, tuple[Any, ...]] = {"shifted": (True,), "relative_bias": (True,)}
_WITH_CLASS_TOKEN: Mapping[str, tuple[Any, ...]] = {"class_token": (True,), "pool": ("token", "tokens")}
_FIRST = r"layers\.0\.blocks\.0\.norm1\.weight"

FORMATS = (
    Format(
        name="torchvision",
        about="torchvision's swin_t, swin_s, swin_b and swin_v2_*",
        kinds=_PYRAMIDS,
        table=TORCHVISION,
        rules=(FullBias(), ScaleColumns(), LastNorm()),
        marks=(r"features\.0\.0\.weight", r"features\.1\.0\.attn\.qkv\.weight"),
        buffers=_flat_indices,
        one_window=True,
        allowed={**_AS_PUBLISHED, "qkv_bias": (True,), "extra_norm_every": (0,)},
    ),
    Format(
        name="openmmlab",
        about="OpenMMLab's detection and segmentation models, and mmpretrain's",
        kinds=_PYRAMIDS,
        table=OPENMMLAB,
        rules=(UnfoldedMerge(), ScaleColumns()),
        marks=(r"backbone\.stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight",),
        prefix="backbone.",
        small_maps="pad_shift",
        buffers=_indices_and_coordinates,
        one_window=True,
        entry="state_dict",
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="huggingface",
        about="transformers' Swin and Swinv2",
        kinds=_PYRAMIDS,
        table=HUGGINGFACE,
        rules=(SeparateProjections(), ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(r"(swin\.|swinv2\.)?encoder\.layers\.0\.blocks\.0\.layernorm_before\.weight",),
        small_maps="shrink",
        inner=lambda config: {"swin": "swin.", "swin_v2": "swinv2."}[config.kind],
        one_window=True,
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="microsoft_simmim",
        about="the encoder of Microsoft's SimMIM pretraining",
        kinds=_PYRAMIDS,
        headless=True,
        table=MICROSOFT,
        rules=(ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(rf"encoder\.{_FIRST}",),
        prefix="encoder.",
        small_maps="shrink",
        buffers=_original_buffers,
        entry="model",
        allowed={"shifted": (True,)},
    ),
    Format(
        name="microsoft_dense",
        about="the backbone of Microsoft's detection and segmentation forks",
        kinds=_PYRAMIDS,
        headless=True,
        table=DENSE,
        rules=(ScaleColumns(), FlatPositions(as_map=True)),
        marks=(rf"backbone\.{_FIRST}",),
        prefix="backbone.",
        small_maps="pad_shift",
        buffers=_indices_and_coordinates,
        entry="state_dict",
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="microsoft",
        about="Microsoft's SwinMLP",
        kinds=("swin_mlp",),
        table=MICROSOFT,
        rules=(FlatPositions(), LastNorm()),
        marks=(_FIRST, r"layers\.0\.blocks\.0\.spatial_mlp\.weight"),
        small_maps="shrink",
        entry="model",
        allowed={"shifted": (True,)},
    ),
    Format(
        name="timm",
        about="timm's swin_*, swinv2_* and swin_s3_* since 0.9",
        kinds=_PYRAMIDS,
        table=TIMM,
        rules=(ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(_FIRST,),
        unlike=(r"layers\.0\.downsample\..+", r"head\.weight"),
        small_maps="shrink",
        allowed={**_AS_PUBLISHED, "absolute_position": (False,), "extra_norm_every": (0,)},
    ),
    Format(
        name="microsoft",
        about="Microsoft's own classification files, and timm's before 0.9",
        kinds=_PYRAMIDS,
        table=MICROSOFT,
        rules=(ScaleColumns(), FlatPositions(), LastNorm()),
        marks=(_FIRST,),
        small_maps="shrink",
        buffers=_original_buffers,
        entry="model",
        allowed=_AS_PUBLISHED,
    ),
    Format(
        name="torchvision",
        about="torchvision's vit_*",
        kinds=("vit",),
        table=VIT_TORCHVISION,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight"),
        allowed={**_WITH_CLASS_TOKEN, "qkv_bias": (True,)},
    ),
    Format(
        name="huggingface",
        about="transformers' ViT and DeiT",
        kinds=("vit",),
        table=VIT_HUGGINGFACE,
        rules=(SeparateProjections(), PairedHeads(), FlatBlocks(), LastNorm()),
        marks=(r"(vit\.|deit\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight",),
        inner=lambda config: "deit." if config.distillation_token else "vit.",
        allowed=_WITH_CLASS_TOKEN,
    ),
    Format(
        name="timm",
        about="timm's hybrids, vit_*_r*",
        kinds=("hybrid",),
        table=HYBRID_TIMM,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"pos_embed", r"patch_embed\.backbone\.stem\.conv\.weight"),
    ),
    Format(
        name="timm",
        about="timm's vit_* and deit_*",
        kinds=("vit",),
        table=VIT_TIMM,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"pos_embed", r"blocks\.0\.attn\.qkv\.weight"),
    ),
    Format(
        name="facebook",
        about="facebook's DeiT, whose names are timm's",
        kinds=("vit",),
        table=VIT_TIMM,
        rules=(FlatBlocks(), LastNorm()),
        marks=(r"pos_embed", r"blocks\.0\.attn\.qkv\.weight"),
        entry="model",
        allowed=_WITH_CLASS_TOKEN,
    ),
)
