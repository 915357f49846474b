"""A model is a backbone and a head, with the facts about its pixels and classes that travel with the weights."""

import dataclasses
import fnmatch
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor, nn

from swindow.backbones import VARIANTS, Backbone, BackboneConfig, SwinMoe
from swindow.config import typed
from swindow.errors import ConfigError, UnknownName
from swindow.heads import ClassifierConfig, HeadConfig
from swindow.ops.attention import Backend
from swindow.preprocess import Preprocess
from swindow.shapes import Images


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All that is needed to build a model again."""

    name: str
    """The variant that it started from; its fields may differ from the table's."""
    in_channels: int = 3
    """Image channels."""
    backbone: BackboneConfig
    """The backbone's shape."""
    head: HeadConfig
    """The head's shape and loss."""

    def __post_init__(self) -> None:
        if self.in_channels < 1:
            raise ConfigError(f"in_channels is {self.in_channels}; an image has at least 1")

    def build(self) -> "Model":
        """The model that this describes, freshly initialised."""
        return Model(self)


class Model(nn.Module):
    """Images ``B C h w`` to what a user expects of the task; `outputs` gives the head's own tensors, for losses.

    `preprocess` and `classes` are None until training or loading sets them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        last = len(config.backbone.channels) - 1
        tokens = {"prefix": True} if config.head.pool in ("token", "tokens") else {}
        self.backbone = config.backbone.build(in_channels=config.in_channels, out_stages=(last,), **tokens)
        self.head = config.head.build(self.backbone.channels)
        self.preprocess: Preprocess | None = None
        self.classes: tuple[str, ...] | None = None

    def forward(self, images: Images) -> Tensor:
        return self.head.decode(self.outputs(images))

    def outputs(self, images: Images) -> Any:
        """The head's `Outputs`, a NamedTuple of tensors."""
        return self.head(self.backbone(images))

    def outputs_and_losses(self, images: Images) -> tuple[Any, dict[str, Tensor]]:
        """The head's `Outputs`, and losses by name that the backbone itself asks for: those that balance experts."""
        if not isinstance(self.backbone, SwinMoe):
            return self.outputs(images), {}
        maps, losses = self.backbone.maps_and_losses(images)
        return self.head(maps), losses


class MapBackbone(nn.Module):
    """A backbone as dense heads elsewhere expect it: a list of ``B C H W`` maps, with `.channels` and `.strides`."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body
        self.channels: tuple[int, ...] = body.channels
        self.strides: tuple[int, ...] = body.strides

    def forward(self, images: Images) -> list[Float[Tensor, "B _ _ _"]]:
        return [x.permute(0, 3, 1, 2).contiguous() for x in self.body(images)]


def build(name: str, *, num_classes: int = 1000, in_channels: int = 3, **fields: Any) -> Model:
    """A freshly initialised model by its name, any field of its backbone or head changed by keyword.

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
    return sorted(fnmatch.filter(VARIANTS, pattern))


def model_config(name: str, *, num_classes: int = 1000, in_channels: int = 3, **fields: Any) -> ModelConfig:
    """The configuration that `build` builds."""
    variant = _variant(name)
    head = ClassifierConfig(num_classes=num_classes, pool=getattr(variant, "pool", "mean"))
    _checked(fields, variant, head)
    return ModelConfig(
        name=name,
        in_channels=in_channels,
        backbone=dataclasses.replace(variant, **_belonging(fields, variant)),
        head=dataclasses.replace(head, **_belonging(fields, head)),
    )


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


def _variant(name: str) -> BackboneConfig:
    if name not in VARIANTS:
        raise UnknownName("model", name, VARIANTS)
    return VARIANTS[name]


def _checked(fields: dict[str, Any], *configs: Any) -> dict[str, Any]:
    allowed = [field.name for config in configs for field in dataclasses.fields(config)]
    for name in fields:
        if name not in allowed:
            raise UnknownName("field", name, allowed)
    return _belonging(fields, configs[0])


def _belonging(fields: dict[str, Any], config: Any) -> dict[str, Any]:
    own = {field.name for field in dataclasses.fields(config)}
    return typed(type(config), {name: value for name, value in fields.items() if name in own})
