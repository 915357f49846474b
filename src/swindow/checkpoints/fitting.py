"""Weights made for one size of a model, in a model of another: every tensor fits, or nothing is touched."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from swindow.checkpoints.reports import LoadReport, shortened
from swindow.checkpoints.tables import State
from swindow.errors import CheckpointError
from swindow.model import ModelConfig
from swindow.ops import resample

STAGED = re.compile(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
OUTPUT_NORM = re.compile(r"backbone\.norms\.(\d+)\.\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors under our names, and all that is known of the model that they are of."""

    path: Path
    format: str
    state: State
    config: ModelConfig
    dropped: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fit(
    weights: Weights, wanted: Mapping[str, Tensor], config: Any, *, name: str, reset_head: bool = False
) -> tuple[State, LoadReport]:
    """A state dict with the names and shapes of `wanted`, made of `weights`, and what was done.

    Args:
        wanted: the model's own state, which gives what is reset; names as in a `Model`.
        config: the model's backbone.
        name: what to call the model in the report.
        reset_head: leave the head as the model has it.

    Raises:
        CheckpointError: something is missing, unexpected or of a shape that no rule fits; all of it is named.
    """
    weights = dataclasses.replace(weights, state=_grouped(weights.state, config))
    state: State = {}
    found: dict[str, list[str]] = {"resized": [], "reset": [], "missing": [], "misshapen": []}
    for key, own in wanted.items():
        given = weights.state.get(key)
        if key.startswith("head.") and reset_head:
            state[key] = own
            found["reset"].append(key)
        elif given is None:
            state[key] = own
            found["reset" if _is_extra_norm(key, weights.state, wanted) else "missing"].append(key)
        elif given.shape == own.shape:
            state[key] = given
        else:
            resized = _resized(key, given, own, weights.config.backbone, config)
            if resized is None:
                found["misshapen"].append(f"{key} is {_shape(given)}, the model's is {_shape(own)}{_remedy(key)}")
            else:
                state[key] = resized
                found["resized"].append(f"{key} from {_shape(given)} to {_shape(own)}")
    left = [key for key in weights.state if key not in wanted]
    spare = [key for key in left if key.startswith("head.") and (reset_head or not _has_head(wanted))]
    spare += [key for key in left if OUTPUT_NORM.fullmatch(key)]
    report = LoadReport(
        path=weights.path,
        format=weights.format,
        model=name,
        loaded=len(wanted) - sum(map(len, found.values())),
        dropped=(*weights.dropped, *spare),
        unexpected=(*(key for key in left if key not in spare), *weights.unknown),
        assumed=weights.assumed,
        notes=weights.notes,
        **{key: tuple(value) for key, value in found.items()},
    )
    if report.problems:
        raise CheckpointError(f"{weights.path}: does not fit this {name}: {shortened(report.problems, 40)}")
    return state, report


def _grouped(state: State, config: Any) -> State:
    """A ViT's blocks in the stages of this one: they group a row that others' files keep whole."""
    places = sorted({(int(m[1]), int(m[2])) for m in map(STAGED.match, state) if m})
    wanted = [(stage, block) for stage, depth in enumerate(config.depths) for block in range(depth)]
    if config.kind not in ("vit", "hybrid") or len(places) != len(wanted) or places == wanted:
        return state
    moved = {
        f"stages.{a}.blocks.{b}.": f"stages.{c}.blocks.{d}." for (a, b), (c, d) in zip(places, wanted, strict=True)
    }
    moved[f"norms.{places[-1][0]}."] = f"norms.{wanted[-1][0]}."

    def renamed(match: re.Match[str]) -> str:
        return f"backbone.{moved.get(match[1], match[1])}"

    return {
        re.sub(r"^backbone\.(stages\.\d+\.blocks\.\d+\.|norms\.\d+\.)", renamed, name): x for name, x in state.items()
    }


def _resized(key: str, given: Tensor, own: Tensor, old: Any, new: Any) -> Tensor | None:
    """`given` at the size of `own`, where that has a meaning."""
    if given.ndim != own.ndim:
        return None
    table = re.fullmatch(r"backbone\.stages\.(\d+)\.blocks\.\d+\.attn\.position_bias\.table", key)
    if table and given.shape[1] == own.shape[1]:
        stage = int(table[1])
        return resample.bias_table(given, old.windows[stage], new.windows[stage])
    if key == "backbone.absolute_position.table" and given.shape[2] == own.shape[2]:
        return resample.place_table(given, (own.shape[0], own.shape[1]))
    if key == "backbone.position_embedding" and _alike_but(given, own, 1) and old.num_prefix == new.num_prefix:
        return resample.sequence_table(given, old.grid, new.grid, prefix=new.num_prefix)
    if _reads_images(key, new) and _alike_but(given, own, 1):
        return resample.input_channels(given, own.shape[1])
    return None


def _reads_images(key: str, config: Any) -> bool:
    """Whether this is the kernel of the first convolution, which a hybrid has in its trunk."""
    stem = "backbone.patch_embed.trunk.patch_embed" if hasattr(config, "trunk") else "backbone.patch_embed"
    return key in (f"{stem}.proj.weight", f"{stem}.unit.conv.weight")


def _alike_but(a: Tensor, b: Tensor, axis: int) -> bool:
    return a.ndim == b.ndim and all(a.shape[i] == b.shape[i] for i in range(a.ndim) if i != axis)


def _is_extra_norm(key: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """A norm of one of several stages, which the file's model did not put out: a classifier has the last one's only."""
    match = OUTPUT_NORM.fullmatch(key)
    if match is None or _normed_stages(given) & {match[1]}:
        return False
    return bool(_normed_stages(given) & _normed_stages(wanted))


def _normed_stages(state: Mapping[str, Tensor]) -> set[str]:
    return {match[1] for match in map(OUTPUT_NORM.fullmatch, state) if match}


def _has_head(wanted: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("head.") for key in wanted)


def _remedy(key: str) -> str:
    return ' (other classes: head="reset" starts the head anew)' if key.startswith("head.") else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
