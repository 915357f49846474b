"""Which head a file's weights are of, by its tensors under our names, and what of it they do not tell."""

from swindow.backbones import BackboneConfig
from swindow.checkpoints.detectors import DETECTORS, MARKS, detector_of
from swindow.checkpoints.evidence import Evidence, Fields
from swindow.checkpoints.layouts import Format
from swindow.checkpoints.tables import State, needed, parts
from swindow.config import typed
from swindow.errors import CheckpointError, ConfigError
from swindow.heads import ClassifierConfig, HeadConfig, SimMimConfig, UNetConfig, UperNetConfig

_POOLS = (1, 2, 3, 6)


def head_kind(state: State) -> str:
    """The head that has tensors of these names; a backbone alone counts as a classifier's."""
    kinds = {"head.fuse.conv.weight": "upernet", "head.expands.0.linear.weight": "unet", "head.mask_token": "simmim"}
    kinds |= MARKS
    return next((kind for name, kind in kinds.items() if name in state), "classifier")


def head_of(state: State, backbone: BackboneConfig, form: Format, evidence: Evidence) -> HeadConfig:
    """The head that these weights are of.

    Raises:
        CheckpointError: parts that every head of the kind has are missing.
        ConfigError: its pooled maps are as many as in no published one, and nobody said which.
    """
    kind = head_kind(state)
    if kind == "upernet":
        return _upernet(state, evidence)
    if kind == "unet":
        return _unet(state)
    if kind == "simmim":
        return _simmim(state, backbone, evidence)
    if kind in DETECTORS:
        return detector_of(kind, state, form, evidence)
    weight = state.get("head.linear.weight")
    return ClassifierConfig(
        num_classes=0 if weight is None else weight.shape[0], pool=getattr(backbone, "pool", "mean")
    )


def _simmim(state: State, backbone: BackboneConfig, evidence: Evidence) -> SimMimConfig:
    """Which cells were hidden, and whether pixels were normalised, is the training's; no tensor tells."""
    channels, rest = divmod(needed(state, "head.decoder.weight").shape[0], backbone.strides[-1] ** 2)
    if rest or not channels:
        raise CheckpointError(f"the file's decoder does not paint whole cells of {backbone.strides[-1]} pixels a side")
    side = 47 if backbone.kind == "swin_v2" else 0
    return SimMimConfig(
        in_channels=channels,
        mask_patch=evidence.field("mask_patch", 32, "as published"),
        norm_target=evidence.field("norm_target", side, "as its family is published"),
    )


def _upernet(state: State, evidence: Evidence) -> UperNetConfig:
    early = state.get("head.auxiliary.conv.conv.weight")
    fields: Fields = {} if early is None else {"auxiliary_width": early.shape[0]}
    return UperNetConfig(
        num_classes=_classes(state),
        decoder_width=state["head.fuse.conv.weight"].shape[0],
        pools=_pools(parts(state, "head.pooled"), evidence),
        auxiliary=0.0 if early is None else evidence.known.get("auxiliary", 0.4),
        **fields,
    )


def _pools(count: int, evidence: Evidence) -> tuple[int, ...]:
    """The sides of so many pooled maps, of which tensors tell only the number."""
    if "pools" in evidence.said:
        evidence.said |= typed(UperNetConfig, {"pools": evidence.said["pools"]})
    if count == len(_POOLS):
        return tuple(evidence.field("pools", _POOLS, "as in every published one"))
    known = evidence.said.get("pools") or evidence.known.get("pools") or ()
    if len(known) != count:
        raise ConfigError(
            f"the file pools {count} maps, and their sides are not known; say them: pools=({count} sides)"
        )
    return tuple(known)


def _unet(state: State) -> UNetConfig:
    depths = tuple(parts(state, f"head.stages.{i}.blocks") for i in range(parts(state, "head.stages")))
    if 0 in depths or not depths:
        raise CheckpointError(f"the file's decoder has {depths} blocks on its sizes; whole stages are missing")
    return UNetConfig(num_classes=_classes(state), decoder_depths=depths)


def _classes(state: State) -> int:
    return int(needed(state, "head.classifier.weight").shape[0])
