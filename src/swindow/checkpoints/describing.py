"""Which model a file's weights are: from what was said, from files beside it, from its tensors, and from its name.

Whatever had to be assumed is written down, to be said aloud.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import torch

from swindow.backbones import VARIANTS, BackboneConfig
from swindow.backbones.geometry import windows_of_stages
from swindow.backbones.hybrid import HybridConfig
from swindow.backbones.resnet import ResNetConfig
from swindow.backbones.swin import SwinConfig
from swindow.backbones.swin_mlp import SwinMlpConfig
from swindow.backbones.swin_v2 import SwinV2Config
from swindow.backbones.vit import ViTConfig
from swindow.checkpoints.decoders import head_kind, head_of
from swindow.checkpoints.detectors import DETECTORS
from swindow.checkpoints.evidence import Evidence, Fields
from swindow.checkpoints.facts import MOST_TOKENS
from swindow.checkpoints.layouts import Format, Reading
from swindow.checkpoints.rules import FlatPositions
from swindow.checkpoints.tables import State, needed
from swindow.config import typed
from swindow.errors import CheckpointError, ConfigError
from swindow.heads import HeadConfig
from swindow.model import MODELS, ModelConfig
from swindow.ops.windows import Size, relative_position_index


def describe(reading: Reading, form: Format, evidence: Evidence) -> ModelConfig:
    """The model that these weights are of.

    Raises:
        CheckpointError: parts that every model of the kind has are missing.
        ConfigError: what was said contradicts the tensors.
    """
    state, kind = reading.state, _kind(reading.state)
    if kind not in form.kinds:
        raise CheckpointError(f"the tensors are a {kind}'s, and {form.about} hold {' or '.join(form.kinds)} only")
    make = _KINDS[kind]
    cls = get_type_hints(make)["return"]
    evidence = dataclasses.replace(evidence, said=_own(cls, evidence.said), known=_own(cls, evidence.known))
    table = state.get(FlatPositions.name)
    if table is not None and table.shape[0] > 1:  # on its grid, which tells the size
        patch = needed(state, "backbone.patch_embed.proj.weight").shape[2]
        evidence.known["image_size"] = _simplest((table.shape[0] * patch, table.shape[1] * patch))
    elif (side := _masked_side(reading)) is not None:
        evidence.known.setdefault("image_size", side)
    backbone = make(reading, form, evidence)
    head = head_of(state, backbone, form, evidence)
    return ModelConfig(name=_name(backbone, head), in_channels=_in_channels(state), backbone=backbone, head=head)


def _own(cls: type, fields: Fields) -> Fields:
    """Those that are fields of this class, of the right types, and all others as they are."""
    own = {field.name for field in dataclasses.fields(cls)}
    return fields | typed(cls, {name: value for name, value in fields.items() if name in own})


def _in_channels(state: State) -> int:
    """Of the first convolution."""
    first = ("trunk.patch_embed.unit.conv.weight", "unit.conv.weight", "proj.weight")
    kernels = [state[f"backbone.patch_embed.{name}"] for name in first if f"backbone.patch_embed.{name}" in state]
    if not kernels:
        raise CheckpointError("the file has no patch embedding; it is not a whole model")
    return int(kernels[0].shape[1])


def _swin(reading: Reading, form: Format, evidence: Evidence) -> SwinConfig:
    state = reading.state
    _check_eps(evidence)
    tables = [state.get(f"backbone.stages.{i}.blocks.0.attn.position_bias.table") for i in range(len(_depths(state)))]
    windows, heads = _common(state), tuple(0 if table is None else table.shape[1] for table in tables)
    biased = tables[0] is not None
    if biased:
        window = tuple(_window_of(table.shape[0], evidence) for table in tables if table is not None)
    else:
        window = (evidence.field("window", 7, "weights without a position bias do not tell it"),) * len(tables)
        heads = _heads_of_32(state, evidence)
    return SwinConfig(
        **windows,
        num_heads=heads,
        window=_simplest(window),
        image_size=_image_size(evidence, state, *_usual_size(window, state)),
        small_maps=form.small_maps if form.small_maps != "shrink" else "pad",  # windows are known as they were built
        relative_bias=biased,
        absolute_position="backbone.absolute_position.table" in state,
        qkv_bias="backbone.stages.0.blocks.0.attn.qkv.bias" in state,
        drop_path=evidence.known.get("drop_path", 0.1),
    )


def _swin_v2(reading: Reading, form: Format, evidence: Evidence) -> SwinV2Config:
    state = reading.state
    _check_eps(evidence)
    depths = _depths(state)
    scales = [needed(state, f"backbone.stages.{i}.blocks.0.attn.logit_scale.log") for i in range(len(depths))]
    stored = [_stored_window(reading, stage) for stage in range(len(depths))]
    if all(stored) and "window" not in evidence.said:
        window: Any = tuple(stored)
    else:
        window = evidence.field("window", 8, "V2's tensors do not tell it")
    side = max(max(pair) for pair in windows_of_stages(window, None, len(depths)))
    usual = (32 * side if side > 8 else 256, "the usual size for it")
    image_size = _image_size(evidence, state, *(_CROP if head_kind(state) == "upernet" else usual))
    pretrained = evidence.field("pretrained_window", 0, "as if trained at its own window")
    return SwinV2Config(
        **_common(state),
        num_heads=tuple(scale.numel() for scale in scales),
        window=_simplest(window),
        pretrained_window=_simplest(pretrained[-len(depths) :] if isinstance(pretrained, tuple) else pretrained),
        image_size=image_size,
        small_maps=form.small_maps,
        absolute_position="backbone.absolute_position.table" in state,
        qkv_bias="backbone.stages.0.blocks.0.attn.qkv.q_bias" in state,
        extra_norm_every=_extra_norm_every(state),
        drop_path=evidence.known.get("drop_path", 0.1),
    )


def _check_eps(evidence: Evidence) -> None:
    """Refuse norms that add something else to the variance than every published Swin."""
    eps = evidence.known.get("norm_eps", 1e-5)
    if eps != 1e-5:
        raise ConfigError(f"layer_norm_eps is {eps}; a Swin's norms have 1e-5 here, so its outputs would differ")


def _extra_norm_every(state: State) -> int:
    """After how many blocks the first extra norm comes; 0 if there is none."""
    found = [re.match(r"backbone\.stages\.\d+\.blocks\.(\d+)\.norm3\.", name) for name in state]
    return min((int(match[1]) + 1 for match in found if match), default=0)


def _swin_mlp(reading: Reading, form: Format, evidence: Evidence) -> SwinMlpConfig:
    """A spatial weight has heads x places rows and a column for each place."""
    shapes = [
        needed(reading.state, f"backbone.stages.{i}.blocks.0.spatial_mlp.weight").shape
        for i in range(len(_depths(reading.state)))
    ]
    windows = tuple(math.isqrt(shape[1]) for shape in shapes)
    return SwinMlpConfig(
        **_common(reading.state),
        num_heads=tuple(shape[0] // shape[1] for shape in shapes),
        window=_simplest(windows),
        image_size=evidence.field("image_size", *_usual_size(windows, reading.state)),
        absolute_position="backbone.absolute_position.table" in reading.state,
        drop_path=evidence.known.get("drop_path", 0.1),
    )


def _vit(reading: Reading, form: Format, evidence: Evidence) -> ViTConfig:
    return ViTConfig(**_of_encoder(reading.state, form, evidence, stride=1))


def _hybrid(reading: Reading, form: Format, evidence: Evidence) -> HybridConfig:
    found: dict[int, int] = {}
    for name in reading.state:
        match = re.match(r"backbone\.patch_embed\.trunk\.stages\.(\d+)\.blocks\.(\d+)\.", name)
        if match:
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    width = needed(reading.state, "backbone.patch_embed.trunk.patch_embed.unit.conv.weight").shape[0]
    trunk = ResNetConfig(depths=tuple(found[stage] for stage in sorted(found)), width=width, norm="group")
    return HybridConfig(**_of_encoder(reading.state, form, evidence, stride=trunk.strides[-1]), trunk=trunk)


def _resnet(reading: Reading, form: Format, evidence: Evidence) -> ResNetConfig:
    """Norms that count batches are batch norms, which learn; those that do not are frozen, as detectors have them."""
    state = reading.state
    frozen = "backbone.patch_embed.unit.norm.num_batches_tracked" not in state
    if form.name == "openmmlab" and re.search("caffe", evidence.stem, re.IGNORECASE):
        raise CheckpointError(
            f"{evidence.stem}: a ResNet of style 'caffe' has its strides elsewhere and reads blue, green and red; take "
            "the weights of style 'pytorch'"
        )
    eps = 1e-5 if form.norm_eps is None else form.norm_eps
    if frozen and form.norm_eps is None:
        eps = evidence.field("norm_eps", eps, "as torchvision builds them; 0 where training started from its COCO_V1")
    return ResNetConfig(
        depths=_depths(state),
        block="bottleneck" if "backbone.stages.0.blocks.0.units.2.conv.weight" in state else "basic",
        width=needed(state, "backbone.patch_embed.unit.conv.weight").shape[0],
        norm="frozen" if frozen else "batch",
        frozen_stages=1 if frozen else 0,
        norm_eps=eps,
    )


def _of_encoder(state: State, form: Format, evidence: Evidence, *, stride: int) -> Fields:
    """Fields of a ViT whose patches are cut from maps of this stride."""
    kernel = needed(state, "backbone.patch_embed.proj.weight")
    places, dim = needed(state, "backbone.position_embedding").shape[1:]
    tokens = [name in state for name in ("backbone.class_token", "backbone.distillation_token")]
    side = math.isqrt(places - sum(tokens))
    known = evidence.said.get("image_size") or evidence.known.get("image_size")
    if side**2 != places - sum(tokens) and not isinstance(known, tuple):
        raise ConfigError(f"{places - sum(tokens)} places are no square grid; say which: image_size=(height, width)")
    pool = "token" if tokens[0] else "mean"
    pool = "mean_norm" if "head.norm.weight" in state else "tokens" if "head.distilled.weight" in state else pool
    usual = 1e-12 if form.name == "huggingface" else 1e-6
    return {
        "dim": dim,
        "depths": _depths(state),
        "num_heads": evidence.field("num_heads", 16 if dim == 1280 else max(dim // 64, 1), "64 channels a head"),
        "patch": kernel.shape[2],
        "image_size": side * kernel.shape[2] * stride if side**2 == places - sum(tokens) else known,
        "class_token": tokens[0],
        "distillation_token": tokens[1],
        "pool": pool,
        "qkv_bias": "backbone.stages.0.blocks.0.attn.qkv.bias" in state,
        "mlp_ratio": _mlp_ratio(state),
        "norm_eps": evidence.field("norm_eps", usual, f"as all of {form.name}'s have"),
        "drop_path": evidence.known.get("drop_path", 0.0),
    }


_KINDS: Mapping[str, Callable[[Reading, Format, Evidence], BackboneConfig]] = {
    "swin": _swin,
    "swin_v2": _swin_v2,
    "swin_mlp": _swin_mlp,
    "vit": _vit,
    "hybrid": _hybrid,
    "resnet": _resnet,
}


def _kind(state: State) -> str:
    """The family that has tensors of these names."""
    if any(name.startswith("backbone.patch_embed.trunk.") for name in state):
        return "hybrid"
    if "backbone.patch_embed.unit.conv.weight" in state:
        return "resnet"
    if "backbone.position_embedding" in state:
        return "vit"
    if any(".spatial_mlp." in name for name in state):
        return "swin_mlp"
    return "swin_v2" if any(name.endswith("logit_scale.log") for name in state) else "swin"


def _common(state: State) -> Fields:
    """Fields that windowed families share and that tensors tell."""
    kernel = needed(state, "backbone.patch_embed.proj.weight")
    return {"dim": kernel.shape[0], "patch": kernel.shape[2], "depths": _depths(state), "mlp_ratio": _mlp_ratio(state)}


def _depths(state: State) -> tuple[int, ...]:
    """Blocks per stage, counted by their names."""
    found: dict[int, int] = {}
    for name in state:
        match = re.match(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", name)
        if match:
            stage, block = int(match[1]), int(match[2])
            found[stage] = max(found.get(stage, 0), block + 1)
    if not found or sorted(found) != list(range(len(found))):
        raise CheckpointError(f"the file holds blocks of stages {sorted(found)}; whole stages are missing")
    return tuple(found[stage] for stage in range(len(found)))


def _mlp_ratio(state: State) -> float:
    """The least ratio that gives every stage its hidden channels, which are rounded down in each."""
    stages = range(len(_depths(state)))
    shapes = [needed(state, f"backbone.stages.{stage}.blocks.0.mlp.fc1.weight").shape for stage in stages]
    ratio = max(hidden / dim for hidden, dim in shapes)
    # A quotient times its divisor can fall short of the dividend by the last bit.
    return ratio if all(int(ratio * dim) >= hidden for hidden, dim in shapes) else math.nextafter(ratio, math.inf)


def _window_of(rows: int, evidence: Evidence) -> int | tuple[int, int]:
    """The window that a bias table of so many rows is for, taken to be square unless said otherwise."""
    side = math.isqrt(rows)
    if side**2 == rows and side % 2:
        return (side + 1) // 2
    said = evidence.said.get("window") or evidence.known.get("window")
    pairs = [entry for entry in (said if isinstance(said, tuple) else ()) if isinstance(entry, tuple)]
    fitting = [pair for pair in pairs if (2 * pair[0] - 1) * (2 * pair[1] - 1) == rows]
    if not fitting:
        raise ConfigError(
            f"a bias table of {rows} rows is for no square window; say which: window=((h, w), …) per stage"
        )
    return fitting[0]


def _heads_of_32(state: State, evidence: Evidence) -> tuple[int, ...]:
    dims = [state["backbone.patch_embed.proj.weight"].shape[0] * 2**stage for stage in range(len(_depths(state)))]
    return tuple(evidence.field("num_heads", tuple(max(dim // 32, 1) for dim in dims), "32 channels a head"))


def _stored_window(reading: Reading, stage: int) -> int | Size | None:
    """The window whose index a stage's first block has stored."""
    index = reading.buffers.get(f"backbone.stages.{stage}.blocks.0.attn.relative_position_index")
    tokens = 0 if index is None else math.isqrt(index.numel())
    for height in range(1, min(tokens, MOST_TOKENS**2) + 1):
        width = tokens // height
        if height * width == tokens and index is not None and index.numel() == tokens**2:
            own = relative_position_index((height, width)).flatten()
            if torch.equal(own, index.flatten().to(own.dtype)):
                return height if height == width else (height, width)
    return None


def _image_size(evidence: Evidence, state: State, usual: Any, why: str) -> Any:
    """The size that a model is made for; of a detector nothing depends on it but a table of absolute positions."""
    if head_kind(state) not in DETECTORS or FlatPositions.name in state:
        return evidence.field("image_size", usual, why)
    return evidence.said.get("image_size") or evidence.known.get("image_size") or usual


def _usual_size(window: Any, state: State) -> tuple[int, str]:
    """The published image size for windows of this size, what the last stages' grid is a multiple of; and why it."""
    if head_kind(state) == "upernet":
        return _CROP
    side = window[0] if isinstance(window[0], int) else max(window[0])
    patch = state["backbone.patch_embed.proj.weight"].shape[2]
    published = {7: 224, 8: 256, 12: 384, 14: 224, 16: 256, 24: 384}
    size = published.get(side, side * 2 ** len(_depths(state)) * 2) * patch // 4
    return size, "what windows of this size are published for"


_CROP = (512, "the crop that published ones are trained on")


def _masked_side(reading: Reading) -> int | None:
    """The image size that a Swin-Unet's stored masks are for: it takes no other, and its images are square."""
    if head_kind(reading.state) != "unet":
        return None
    patch = needed(reading.state, "backbone.patch_embed.proj.weight").shape[2]
    for name, mask in reading.buffers.items():
        match = re.fullmatch(r"backbone\.stages\.(\d+)\.blocks\.\d+\.attn_mask", name)
        if match and mask.ndim == 3 and int(match[1]) < MOST_TOKENS:
            windows, tokens = math.isqrt(mask.shape[0]), math.isqrt(mask.shape[1])
            if (windows**2, tokens**2) == (mask.shape[0], mask.shape[1]) == (mask.shape[0], mask.shape[2]):
                return int(windows * tokens * patch * 2 ** int(match[1]))
    return None


def _simplest(window: Any) -> Any:
    """One side for all stages, where all have the same."""
    alike = isinstance(window, tuple) and len(set(window)) == 1 and isinstance(window[0], int)
    return window[0] if alike else window


def _name(config: BackboneConfig, head: HeadConfig) -> str:
    """The name of the variant or composition that this is, or else of the one that it is nearest to."""
    if head.kind == "classifier":
        return max(VARIANTS, key=lambda name: _likeness(VARIANTS[name], config))
    named = {name: parts.backbone for name, parts in MODELS.items() if parts.head.kind == head.kind}
    return max(named, key=lambda name: _likeness(named[name], config))


def _likeness(other: BackboneConfig, config: BackboneConfig) -> tuple[int, ...]:
    fields = (
        *("dim", "depths", "num_heads", "window", "patch", "distillation_token", "image_size", "pretrained_window"),
        *("block", "width", "norm"),
    )
    return (other.kind == config.kind, *(getattr(other, f, None) == getattr(config, f, None) for f in fields))
