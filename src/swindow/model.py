"""A model is a backbone and a head, with the facts about its pixels and classes that travel with the weights."""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn

from swindow.backbones import VARIANTS, Backbone, BackboneConfig, SwinConfig, SwinMoe, SwinV2Config, resnet
from swindow.backbones.windowed import Stage
from swindow.config import typed
from swindow.errors import ConfigError, UnknownName
from swindow.heads import (
    CascadeMaskRcnnConfig,
    ClassifierConfig,
    DetrConfig,
    HeadConfig,
    MaskRcnnConfig,
    RetinaNetConfig,
    SimMim,
    SimMimConfig,
    UNetConfig,
    UperNetConfig,
)
from swindow.objects import Frames, whole_frames
from swindow.ops.attention import Backend
from swindow.preprocess import Preprocess
from swindow.shapes import Images, Pyramid

Cells = Bool[Tensor, "B R S"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All that is needed to build a model again."""

    name: str
    """The variant or composition that it started from; its fields may differ from the table's."""
    in_channels: int = 3
    """Image channels."""
    backbone: BackboneConfig
    """The backbone's shape."""
    head: HeadConfig
    """The head's shape and loss."""

    def __post_init__(self) -> None:
        if self.in_channels < 1:
            raise ConfigError(f"in_channels is {self.in_channels}; an image has at least 1")
        painted = getattr(self.head, "in_channels", self.in_channels)
        if painted != self.in_channels:
            raise ConfigError(
                f"the head paints {painted} channels and images have {self.in_channels}; both are one number"
            )

    def build(self) -> "Model":
        """The model that this describes, freshly initialised."""
        return Model(self)


class Model(nn.Module):
    """Images ``B C h w`` to what a user expects of the task; `outputs` gives the head's own tensors, for losses.

    That is logits ``B K`` of a classifier, ``B K h w`` of a segmenter, one for every pixel, of a detector the
    `Detections` of each image, and of a model that is pretrained without labels the image ``B C h w`` as it paints it,
    parts of it `hidden` or none. `preprocess`, `classes` and `colours` (red, green and blue of each class, for
    pictures) are None until training or loading sets them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        stages = config.head.stages(len(config.backbone.channels))
        asked = {name: True for name in (_extras(config),) if name}
        self.backbone = config.backbone.build(in_channels=config.in_channels, out_stages=stages, **asked)
        self.head = config.head.build(self.backbone.channels, self.backbone.strides, config.backbone)
        self.preprocess: Preprocess | None = None
        self.classes: tuple[str, ...] | None = None
        self.colours: tuple[tuple[int, int, int], ...] | None = None

    @property
    def task(self) -> str:
        """What it is for: ``classify``, ``segment``, ``detect`` or ``pretrain``."""
        return self.config.head.task

    def forward(self, images: Images, frames: Frames | None = None, hidden: Cells | None = None) -> Any:
        return self.head.decode(self.outputs(images, frames, hidden), (images.shape[2], images.shape[3]))

    def outputs(self, images: Images, frames: Frames | None = None, hidden: Cells | None = None) -> Any:
        """The head's `Outputs`, a NamedTuple of tensors; of a detector `frames` says where in a batch pictures lie.

        Of a model that is pretrained, `hidden` says which cells of each image are hidden from it.
        """
        if hidden is None:
            return self._asked(self.backbone(images), images, frames)
        if not isinstance(self.head, SimMim):
            raise ConfigError(f"hidden is for models that are pretrained, and {self.config.name} is to {self.task}")
        return self._asked(self.backbone(images, self.head.hidden(hidden)), images, frames)

    def blocks(self) -> Iterator[nn.Module]:
        """Every block of the backbone, then of the head: the unit of checkpointing, compilation and sharding."""
        yield from self.backbone.blocks()
        for stage in self._stages_of_head():
            yield from stage.blocks

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """In training, keep only the blocks' inputs and compute the rest again in the backward pass."""
        self.backbone.checkpoint_blocks(enabled)
        for stage in self._stages_of_head():
            stage.checkpointing = enabled

    def _stages_of_head(self) -> list[Stage]:
        return [module for module in self.head.modules() if isinstance(module, Stage)]

    def outputs_and_losses(self, images: Images, frames: Frames | None = None) -> tuple[Any, dict[str, Tensor]]:
        """The head's `Outputs`, and losses by name that the backbone itself asks for: those that balance experts."""
        if not isinstance(self.backbone, SwinMoe):
            return self.outputs(images, frames), {}
        maps, losses = self.backbone.maps_and_losses(images)
        return self._asked(maps, images, frames), losses

    def _asked(self, maps: Pyramid, images: Images, frames: Frames | None) -> Any:
        if self.task != "detect":
            if frames is not None:
                raise ConfigError(f"frames are for detectors, and {self.config.name} is to {self.task}; leave them out")
            return self.head(maps)
        return self.head(maps, whole_frames(images) if frames is None else frames)


class MapBackbone(nn.Module):
    """A backbone as dense heads elsewhere expect it: a list of ``B C H W`` maps, with `.channels` and `.strides`."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body
        self.channels: tuple[int, ...] = body.channels
        self.strides: tuple[int, ...] = body.strides

    def forward(self, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
        return [x.permute(0, 3, 1, 2).contiguous() for x in self.body(images)]


class Composition(NamedTuple):
    """A backbone's shape and a head's."""

    backbone: BackboneConfig
    head: HeadConfig


_FOUR_TWOS: dict[str, Any] = {"depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24), "dim": 96, "drop_path": 0.2}

_MIRRORED = 0.2 * 5 / 7
"""The decoder's blocks have the rates of the encoder's, whose last two have no counterpart (Swin-Unet's code)."""


def _decoder(backbone: BackboneConfig) -> UNetConfig:
    """A U-Net decoder for a backbone: two blocks on each size that it joins."""
    return UNetConfig(decoder_depths=(2,) * (len(backbone.channels) - 1))


def _painter(backbone: Any) -> SimMimConfig:
    """Cells of about 32 pixels, of whole patches: 28 for patches of 14."""
    return SimMimConfig(mask_patch=max(32 // backbone.patch, 1) * backbone.patch)


PAINTED = ("swin", "swin_v2", "vit")
"""Families whose patches a token can stand for, one by one."""

_R50, _R101 = (
    dataclasses.replace(resnet.VARIANTS[name], norm="frozen", frozen_stages=1) for name in ("resnet_50", "resnet_101")
)
"""As detectors start from ImageNet's weights: norms as they are, the first stage, too."""

MODELS: dict[str, Composition] = {
    **{f"upernet_{name}": Composition(variant, UperNetConfig()) for name, variant in VARIANTS.items()},
    **{f"unet_{name}": Composition(variant, _decoder(variant)) for name, variant in VARIANTS.items()},
    **{f"mask_rcnn_{name}": Composition(variant, MaskRcnnConfig()) for name, variant in VARIANTS.items()},
    **{
        f"cascade_mask_rcnn_{name}": Composition(variant, CascadeMaskRcnnConfig()) for name, variant in VARIANTS.items()
    },
    **{f"retinanet_{name}": Composition(variant, RetinaNetConfig()) for name, variant in VARIANTS.items()},
    **{f"detr_{name}": Composition(variant, DetrConfig()) for name, variant in VARIANTS.items()},
    **{
        f"simmim_{name}": Composition(variant, _painter(variant))
        for name, variant in VARIANTS.items()
        if variant.kind in PAINTED
    },
    "detr_resnet50": Composition(_R50, DetrConfig(num_classes=91)),
    "detr_resnet101": Composition(_R101, DetrConfig(num_classes=91)),
    "swin_unet": Composition(SwinConfig(**_FOUR_TWOS), UNetConfig(decoder_drop_path=_MIRRORED)),
    "swin_unet_v2": Composition(SwinV2Config(**_FOUR_TWOS), UNetConfig(decoder_drop_path=_MIRRORED)),
}
"""Backbones with another head than a classifier, by name: any variant after ``upernet_`` or ``unet_`` (segmenters),
``mask_rcnn_``, ``cascade_mask_rcnn_``, ``retinanet_`` or ``detr_`` (detectors); Swin-Unet and DETR as published; any
Swin, Swin V2, ViT or DeiT after ``simmim_``, to be pretrained without labels."""


def build(name: str, *, num_classes: int | None = None, in_channels: int = 3, **fields: Any) -> Model:
    """A freshly initialised model by its name, any field of its backbone or head changed by keyword.

    Without `num_classes` a classifier has 1,000 classes, a UPerNet 150, a U-Net 9 and a detector 80 (a published DETR
    91, as many as COCO has numbers); what is pretrained has none.

    Raises:
        UnknownName: no such model, or no such field.
        ConfigError: a value that cannot be.
    """
    return model_config(name, num_classes=num_classes, in_channels=in_channels, **fields).build()


def backbone(
    name: str, *, out_stages: tuple[int, ...] | None = None, in_channels: int = 3, **fields: Any
) -> MapBackbone:
    """A freshly initialised backbone by its name that gives one NCHW map for each of `out_stages`, each normed.

    None stands for every stage, which is (0, 1, 2, 3) for the published models.

    Raises:
        UnknownName: no such model, or no such field.
        ConfigError: a value that cannot be, or stages that the backbone does not have.
    """
    config = dataclasses.replace(_variant(name), **_checked(fields, _variant(name)))
    stages = range(len(config.channels)) if out_stages is None else out_stages
    return MapBackbone(config.build(in_channels=in_channels, out_stages=tuple(stages)))


def models(pattern: str = "*") -> list[str]:
    """Names that `build` takes and that match a shell pattern, sorted."""
    return sorted(fnmatch.filter([*VARIANTS, *MODELS], pattern))


def model_config(name: str, *, num_classes: int | None = None, in_channels: int = 3, **fields: Any) -> ModelConfig:
    """The configuration that `build` builds."""
    variant, head = composition(name)
    if isinstance(head, SimMimConfig):
        if num_classes is not None:
            raise ConfigError(f"{name} is pretrained without labels: it has no classes; leave num_classes out")
        head = dataclasses.replace(head, in_channels=in_channels)
    elif num_classes is not None:
        head = dataclasses.replace(head, num_classes=num_classes)
    _checked(fields, variant, head)
    return ModelConfig(
        name=name,
        in_channels=in_channels,
        backbone=dataclasses.replace(variant, **_belonging(fields, variant)),
        head=dataclasses.replace(head, **_belonging(fields, head)),
    )


def composition(name: str) -> Composition:
    """The backbone and the head that go by this name; a backbone's own name is that of its classifier.

    Raises:
        UnknownName: no such model.
        ConfigError: a backbone that cannot be pretrained.
    """
    if name in VARIANTS:
        return Composition(VARIANTS[name], ClassifierConfig(pool=getattr(VARIANTS[name], "pool", "mean")))
    if name not in MODELS:
        body = name.removeprefix("simmim_")
        if body != name and body in VARIANTS:
            raise ConfigError(
                f"{name}: a {VARIANTS[body].kind} cannot be pretrained by hiding patches, only {', '.join(PAINTED)}; "
                "choose a backbone of one of these: swindow models 'simmim_*' lists them"
            )
        raise UnknownName("model", name, [*VARIANTS, *MODELS])
    return MODELS[name]


def use_backend(model: nn.Module, name: Backend) -> None:
    """Have every attention of `model` use one backend, or ``auto`` to choose by device, dtype and shape.

    Raises:
        UnknownName: no such backend.
        ConfigError: nothing in it attends.
    """
    if name not in get_args(Backend):
        raise UnknownName("attention backend", name, get_args(Backend))
    if not set_backend(model, name):
        raise ConfigError(f"{type(model).__name__} has no attention whose backend could be chosen")


def set_backend(model: nn.Module, name: Backend) -> int:
    """`use_backend`, where there may be no attention; how many there are."""
    attentions = [module for module in model.modules() if hasattr(module, "backend")]
    for module in attentions:
        setattr(module, "backend", name)  # noqa: B010 - nn.Module's own types know no such attribute
    return len(attentions)


def _extras(config: ModelConfig) -> str:
    """What a head reads besides the maps of stages, as the name of an argument of its backbone's `build`."""
    if isinstance(config.head, ClassifierConfig):
        return "prefix" if config.head.pool in ("token", "tokens") else ""
    return "entries" if isinstance(config.head, UNetConfig) and config.backbone.kind in _WITH_ENTRIES else ""


_WITH_ENTRIES = ("swin", "swin_v2", "swin_mlp")


def _variant(name: str) -> BackboneConfig:
    if name not in VARIANTS:
        raise UnknownName("model", name, VARIANTS)
    return VARIANTS[name]


def _checked(fields: dict[str, Any], *configs: Any) -> dict[str, Any]:
    allowed = [name for config in configs for name in field_names(config)]
    for name in fields:
        if name not in allowed:
            raise UnknownName("field", name, allowed)
    return _belonging(fields, configs[0])


def field_names(config: Any) -> list[str]:
    """Names of a config's fields, and of those of configs within it, as in ``regions.scales``."""
    names = [field.name for field in dataclasses.fields(config)]
    inner = {name: getattr(config, name) for name in names}
    parts = {name: value for name, value in inner.items() if dataclasses.is_dataclass(value)}
    return names + [f"{name}.{deeper}" for name, part in parts.items() for deeper in field_names(part)]


def _belonging(fields: dict[str, Any], config: Any) -> dict[str, Any]:
    """Those values that are for fields of `config`, each of its type; a dotted name is for one within a field."""
    own = {field.name for field in dataclasses.fields(config)}
    found = typed(type(config), {name: value for name, value in fields.items() if name in own})
    for part in dict.fromkeys(name.partition(".")[0] for name in fields if "." in name):
        if part in own:
            inner = found.get(part, getattr(config, part))
            deeper = {name.removeprefix(f"{part}."): x for name, x in fields.items() if name.startswith(f"{part}.")}
            found[part] = dataclasses.replace(inner, **_belonging(deeper, inner))
    return found
