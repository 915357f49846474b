"""Our backbones in Hugging Face transformers: what `AutoBackbone` builds for UperNet, MaskFormer and others."""

from typing import Any

import torch
from torch import nn

from swindow.backbones import VARIANTS, BackboneConfig
from swindow.config import merge
from swindow.errors import CheckpointError, ConfigError, UnknownName, need
from swindow.model import MapBackbone
from swindow.shapes import Images

need("transformers", extra="interop")
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin  # noqa: E402
from transformers.modeling_outputs import BackboneOutput  # noqa: E402
from transformers.utils.generic import can_return_tuple  # noqa: E402


def register() -> None:
    """Let ``AutoConfig`` and ``AutoBackbone`` know `SwindowConfig`, also inside the files of models that contain it."""
    AutoConfig.register(SwindowConfig.model_type, SwindowConfig, exist_ok=True)
    AutoBackbone.register(SwindowConfig, SwindowBackbone, exist_ok=True)


class SwindowConfig(BackboneConfigMixin, PreTrainedConfig):
    """A backbone by its name, as in `swindow.backbone`, and which of its stages ``stage1``, ``stage2``, … come out.

    The last stage does unless `out_features` (names) or `out_indices` (numbers from 0) say otherwise.
    """

    model_type = "swindow"
    __no_type_check__ = True  # transformers rewrites __init__ behind our shape checks, which do not know its keywords

    variant: str = "swin_tiny"
    """Name of the variant."""
    fields: dict[str, Any] | None = None
    """Fields of its config that are different."""
    num_channels: int = 3
    """Image channels."""
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"stage{number}" for number in range(1, len(self.backbone.channels) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def backbone(self) -> BackboneConfig:
        """The backbone's shape in our own terms.

        Raises:
            UnknownName: no such variant, or no such field.
        """
        if self.variant not in VARIANTS:
            raise UnknownName("model", self.variant, VARIANTS)
        return merge(VARIANTS[self.variant], self.fields or {})


class SwindowBackbone(BackboneMixin, PreTrainedModel):
    """``pixel_values`` to `BackboneOutput` with ``feature_maps``: a ``B C H W`` map for each of `out_features`."""

    config_class = SwindowConfig
    main_input_name = "pixel_values"
    base_model_prefix = "body"

    def __init__(self, config: SwindowConfig) -> None:
        super().__init__(config)
        shape = config.backbone
        self.num_features = list(shape.channels)
        self.body = self._built()
        self._fresh = not any(parameter.is_meta for parameter in self.body.parameters())
        self._constants = _constants(self.body if self._fresh else self._built("cpu"))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Images,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """The maps.

        Raises:
            ConfigError: hidden states or attentions are asked for.
        """
        if output_hidden_states or output_attentions:
            raise ConfigError(
                "this backbone gives feature maps only; leave out output_hidden_states and output_attentions, and name "
                "the stages that you need in out_features"
            )
        return BackboneOutput(feature_maps=tuple(self.body(pixel_values)))

    def _built(self, device: str | None = None) -> MapBackbone:
        with torch.device(device or torch.get_default_device()):
            stages = tuple(self.stage_names.index(name) for name in self.out_features)
            return MapBackbone(self.config.backbone.build(in_channels=self.config.num_channels, out_stages=stages))

    def _init_weights(self, module: nn.Module) -> None:
        """What no file gave: constants as they were built, and parameters, which are ours where all are fresh.

        `from_pretrained` builds on no device, fills in what the file holds and calls this for all modules with more.
        """
        for name, constant in self._constants.items():
            self.body.get_buffer(name).copy_(constant)
        if self._fresh:
            return
        super()._init_weights(module)
        known = isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d))
        for name, parameter in module.named_parameters(recurse=False):
            if not known and not getattr(parameter, "_is_hf_initialized", False):
                raise CheckpointError(f"the file lacks {name} of a {type(module).__name__}; it is of another backbone")


def _constants(body: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are computed when built, and that no file holds."""
    stored = body.state_dict()
    return {name: buffer.clone() for name, buffer in body.named_buffers() if name not in stored}
