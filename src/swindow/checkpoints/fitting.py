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
from swindow.heads import ClassifierConfig, HeadConfig, UNetConfig
from swindow.model import ModelConfig
from swindow.ops import resample
from swindow.ops.windows import Size

STAGED = re.compile(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
DECODER = re.compile(r"head\.stages\.(\d+)\.blocks\.(\d+)\.")
CLASSIFIERS = re.compile(r"head\.((auxiliary\.)?classifier|boxes\.\d+\.logits|masks\.\d+\.logits|classes\.last)\.")
CLASS_BOXES = re.compile(r"head\.boxes\.\d+\.deltas\.")  # of each class its own, unless a head is class-agnostic
TABLE = re.compile(r"(backbone|head)\.stages\.(\d+)\.blocks\.\d+\.attn\.position_bias\.table")
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
    weights: Weights,
    wanted: Mapping[str, Tensor],
    config: Any,
    head: HeadConfig | None = None,
    *,
    name: str,
    reset_head: bool = False,
) -> tuple[State, LoadReport]:
    """A state dict with the names and shapes of `wanted`, made of `weights`, and what was done.

    Args:
        wanted: the model's own state, which gives what is reset; names as in a `Model`.
        config: the model's backbone.
        head: the model's head; None for a backbone alone.
        name: what to call the model in the report.
        reset_head: leave what names the classes as the model has it, and what of the head does not fit.

    Raises:
        CheckpointError: something is missing, unexpected or of a shape that no rule fits; all of it is named.
    """
    weights = dataclasses.replace(weights, state=_grouped(weights.state, config))
    target = Target(config, head, weights.config.head.kind if reset_head else None)
    mirrored = mirror(weights.state, wanted, target, weights.config) if target.starts_anew else {}
    state: State = {}
    found: dict[str, list[str]] = {part: [] for part in ("resized", "reset", "mirrored", "missing", "misshapen")}
    for key, own in wanted.items():
        given = None if target.resets(key) else weights.state.get(key)
        fitted = None if given is None else _fitted((key, key), given, own, weights.config, target)
        if fitted is not None:
            state[key] = fitted
            if given is not None and fitted is not given:
                found["resized"].append(f"{key} from {_shape(given)} to {_shape(own)}")
        elif key in mirrored:
            source, state[key] = mirrored[key]
            found["mirrored"].append(f"{key} from {source}")
        else:
            state[key] = own
            if given is None and _may_be_fresh(key, weights.state, wanted, target):
                found["reset"].append(key)
            elif given is None:
                found["missing"].append(key)
            elif target.may_reset(key):
                found["reset"].append(f"{key}, which is {_shape(given)} in the file and {_shape(own)} here")
            else:
                found["misshapen"].append(f"{key} is {_shape(given)}, the model's is {_shape(own)}")
    left = [key for key in weights.state if key not in wanted]
    spare = [key for key in left if _is_spare(key, target)]
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
        remedy = _REMEDY if not reset_head and any("head." in problem for problem in report.problems) else ""
        raise CheckpointError(f"{weights.path}: does not fit this {name}: {shortened(report.problems, 40)}{remedy}")
    return state, report


_REMEDY = ' (other classes or another task: head="reset" starts that of the head anew which does not fit)'


@dataclasses.dataclass(frozen=True)
class Target:
    """The model that weights are fitted to, and how much of its head may start anew."""

    config: Any
    """Its backbone."""
    head: HeadConfig | None
    """Its head; None for a backbone alone."""
    source: str | None
    """The kind of the file's head where this one's may start anew, else None."""

    @property
    def starts_anew(self) -> bool:
        """Whether the head is of another kind than the file's, and may be: then none of it comes from there."""
        return self.head is not None and self.source not in (None, self.head.kind)

    def may_reset(self, key: str) -> bool:
        """Whether the model's own may stay where the file has nothing that fits."""
        return self.source is not None and key.startswith("head.")

    def resets(self, key: str) -> bool:
        """Whether the model's own stays whatever the file has: all that is between its features and its classes."""
        if not self.may_reset(key):
            return False
        if self.starts_anew or isinstance(self.head, ClassifierConfig) or CLASSIFIERS.match(key) is not None:
            return True
        return CLASS_BOXES.match(key) is not None and not getattr(self.head, "class_agnostic", False)

    def drops(self, key: str) -> bool:
        """Whether a block of the file is beyond what a U-Net's shorter encoder has: Swin-Unet takes the first ones."""
        match = STAGED.match(key)
        if match is None or not self.starts_anew or not isinstance(self.head, UNetConfig):
            return False
        stage, block = int(match[1]), int(match[2])
        return stage < len(self.config.depths) and block >= self.config.depths[stage]


def mirror(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], target: Target, source: ModelConfig
) -> dict[str, tuple[str, Tensor]]:
    """For tensors of a U-Net's decoder the names and tensors of the encoder's blocks on the same size.

    As Swin-Unet starts from an ImageNet Swin: a block is taken whole or, where it is not of the same make, not at all.
    """
    if not isinstance(target.head, UNetConfig):
        return {}
    blocks: dict[str, dict[str, str]] = {}
    for key in wanted:
        match = DECODER.match(key)
        if match:
            path = f"backbone.stages.{_size_of(target.head, int(match[1]))}.blocks.{match[2]}."
            blocks.setdefault(path, {})[key] = path + key[match.end() :]
    found: dict[str, tuple[str, Tensor]] = {}
    for path, names in blocks.items():
        alike = {name for name in state if name.startswith(path)} == {*names.values()}
        fitted = {
            key: _fitted((name, key), state[name], wanted[key], source, target) for key, name in names.items() if alike
        }
        if all(x is not None for x in fitted.values()):
            found |= {key: (names[key], x) for key, x in fitted.items() if x is not None}
    return found


def _size_of(head: UNetConfig, stage: int) -> int:
    """The encoder's stage whose maps have the size that a stage of the decoder works on."""
    return len(head.decoder_depths) - 1 - stage


def _fitted(keys: tuple[str, str], given: Tensor, own: Tensor, old: ModelConfig, target: Target) -> Tensor | None:
    """`given` itself where it has the shape of `own`, or resampled to it, where that has a meaning.

    The keys are those that a tensor has in the file and in the model.
    """
    return given if given.shape == own.shape else _resized(keys, given, own, old, target)


def _may_be_fresh(key: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], target: Target) -> bool:
    """Whether nothing is amiss when the file has no such tensor."""
    # A batch norm's count of batches is used by none of ours, and old files lack it.
    return target.may_reset(key) or _is_extra_norm(key, given, wanted) or key.endswith(".num_batches_tracked")


def _is_spare(key: str, target: Target) -> bool:
    """Whether a tensor of the file may stay behind."""
    head = key.startswith("head.") and (target.head is None or target.source is not None)
    return head or OUTPUT_NORM.fullmatch(key) is not None or target.drops(key)


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


def _resized(keys: tuple[str, str], given: Tensor, own: Tensor, source: ModelConfig, target: Target) -> Tensor | None:
    """`given` at the size of `own`, where that has a meaning."""
    old: Any = source.backbone
    theirs, key, new = *keys, target.config
    if given.ndim != own.ndim:
        return None
    windows = _window_at(theirs, old, source.head), _window_at(key, new, target.head)
    if windows[0] is not None and windows[1] is not None and given.shape[1] == own.shape[1]:
        return resample.bias_table(given, windows[0], windows[1])
    if key == "backbone.absolute_position.table" and given.shape[2] == own.shape[2]:
        return resample.place_table(given, (own.shape[0], own.shape[1]))
    if key == "backbone.position_embedding" and _alike_but(given, own, 1) and old.num_prefix == new.num_prefix:
        return resample.sequence_table(given, old.grid, new.grid, prefix=new.num_prefix)
    if _reads_images(key, new) and _alike_but(given, own, 1):
        return resample.input_channels(given, own.shape[1])
    return None


def _window_at(key: str, backbone: Any, head: HeadConfig | None) -> Size | None:
    """The windows that a bias table of this name is for, in the encoder or the decoder; None where there are none."""
    match, windows = TABLE.fullmatch(key), getattr(backbone, "windows", ())
    stage = -1 if match is None else int(match[2])
    if match is not None and match[1] == "head":
        if not isinstance(head, UNetConfig):
            return None
        if head.decoder_window is not None:
            return head.decoder_window, head.decoder_window
        if backbone.kind not in ("swin", "swin_v2") or head.decoder_block not in ("auto", backbone.kind):
            return 7, 7
        stage = _size_of(head, stage)
    return windows[stage] if 0 <= stage < len(windows) else None


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


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
