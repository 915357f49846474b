"""Our pyramid backbones as models of timm: for feature maps, and with a classifier."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from swindow.backbones import VARIANTS
from swindow.checkpoints import load_weights
from swindow.checkpoints.hub import NAMED, resolve
from swindow.errors import ConfigError, need
from swindow.heads import Classifier as Head
from swindow.heads import ClassifierConfig
from swindow.model import MapBackbone, Model, backbone, build
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD
from swindow.shapes import Images

need("timm", extra="interop")
import timm.models._factory as factory  # noqa: E402
from timm.models import FeatureInfo, is_model, register_model  # noqa: E402

__all__ = ["Classifier", "Features", "register"]

OWNER = "swindow"
THEIR_NAMES = {"drop_path_rate": "drop_path", "drop_rate": "head_dropout", "img_size": "image_size"}


def register() -> list[str]:
    """Let timm build our pyramid backbones: ``timm.create_model("swindow/swin_tiny", features_only=True)``.

    timm keeps names with a slash for the hub and asks nobody else, so the function that reads names is wrapped;
    ``swindow_swin_tiny`` is the same model by a name that needs no wrapping. Returns the latter names. `create_model`
    takes timm's `in_chans`, `num_classes`, `out_indices`, `img_size`, `drop_path_rate`, `drop_rate`, and any field of
    the backbone's config; with ``pretrained=True`` the name's tag says which weights: ``swindow/swin_tiny.ms_in1k``.
    """
    names = {f"{OWNER}_{name}": name for name, config in VARIANTS.items() if _is_pyramid(config.strides)}
    for theirs, ours in names.items():
        if not is_model(theirs):
            register_model(_entrypoint(theirs, ours))
    del __all__[3:]  # where timm notes what it registers; the module has no such names
    if not hasattr(factory.parse_model_name, "swindow"):
        setattr(factory, "parse_model_name", _with_slash(factory.parse_model_name))  # noqa: B010 - of another type
    return sorted(names)


class Features(nn.Module):
    """A list of ``B C H W`` maps, and `feature_info` about them."""

    def __init__(self, body: MapBackbone) -> None:
        super().__init__()
        self.body = body
        config = body.body.config
        about = [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{number}"}
            for number, (channels, stride) in enumerate(zip(config.channels, config.strides, strict=True))
        ]
        self.feature_info = FeatureInfo(about, body.body.out_stages)

    def forward(self, x: Images) -> list[Float[Tensor, "B _ _ _"]]:
        return self.body(x)


class Classifier(nn.Module):
    """A model of ours with the methods that timm's training and evaluation call."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.head()
        self.num_features = self.head_hidden_size = model.backbone.channels[-1]
        config: Any = model.config.backbone
        size = getattr(config, "image_size", 224)
        self.pretrained_cfg = {
            "architecture": f"{OWNER}_{model.config.name}",
            "num_classes": self.num_classes,
            "input_size": (model.config.in_channels, *(size if isinstance(size, tuple) else (size, size))),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
        }

    @property
    def num_classes(self) -> int:
        """How many logits there are; 0 for features."""
        return self.model.head.config.num_classes

    def head(self) -> Head:
        """The model's classifier.

        Raises:
            ConfigError: it has another head.
        """
        if not isinstance(self.model.head, Head):
            raise ConfigError(f"{self.model.config.name} is no classifier, which is what timm trains")
        return self.model.head

    def forward(self, x: Images) -> Float[Tensor, "B K"]:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Images) -> Float[Tensor, "B H W D"]:
        """The last map, normed, before it is pooled."""
        return self.model.backbone(x)[-1]

    def forward_head(self, x: Float[Tensor, "B H W D"], pre_logits: bool = False) -> Float[Tensor, "B K"]:
        """Logits; or with `pre_logits`, or without classes, what they are computed from."""
        head = self.head()
        return head.dropout(head.pooled((x,))) if pre_logits else head.decode(head((x,)))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head().linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in place of the old one; 0 classes give features."""
        if global_pool not in (None, "avg"):
            raise ConfigError(f"global_pool {global_pool!r}: these models average over the map; give 'avg' or nothing")
        head = dataclasses.replace(self.head().config, num_classes=num_classes)
        self.model.config = dataclasses.replace(self.model.config, head=head)
        self.model.head = head.build(self.model.backbone.channels).to(next(self.parameters()).device)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training."""
        self.model.backbone.checkpoint_blocks(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters that optimisers leave as large as they are: position biases and scales of attention."""
        return {name for name, _ in self.named_parameters() if "position" in name or "logit_scale" in name}


def _is_pyramid(strides: Sequence[int]) -> bool:
    """Whether every stage's map is coarser than the one before it."""
    return all(fine < coarse for fine, coarse in itertools.pairwise(strides))


def _entrypoint(theirs: str, ours: str) -> Callable[..., nn.Module]:
    """The function by which timm builds one model."""

    def create(
        pretrained: bool = False,
        pretrained_cfg: str | None = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: str | None = None,
        *,
        features_only: bool = False,
        out_indices: int | Sequence[int] | None = None,
        in_chans: int = 3,
        num_classes: int = ClassifierConfig.num_classes,
        **fields: Any,
    ) -> nn.Module:
        fields = {THEIR_NAMES.get(name, name): value for name, value in fields.items()}
        made: Features | Classifier
        if features_only:
            stages = _stages(out_indices, len(VARIANTS[ours].strides))
            made = Features(backbone(ours, out_stages=stages, in_channels=in_chans, **fields))
        else:
            made = Classifier(build(ours, in_channels=in_chans, num_classes=num_classes, **fields))
        if pretrained:
            _load(made, ours, pretrained_cfg, cache_dir)
        return made

    create.__name__ = theirs
    return create


def _stages(indices: int | Sequence[int] | None, number: int) -> tuple[int, ...]:
    """timm's `out_indices` as stages: the last so many, or numbers, from the end where negative; None is all."""
    if indices is None or isinstance(indices, int):
        return tuple(range(number - (number if indices is None else indices), number))
    return tuple(index + number if index < 0 else index for index in indices)


def _load(made: Features | Classifier, name: str, tag: str | None, cache_dir: str | None) -> None:
    """Published weights, with a fresh classifier where theirs is for another number of classes."""
    known = [full for full in NAMED if full.split(".")[0] == name]
    if f"{name}.{tag}" not in known:
        allowed = ", ".join(f"{OWNER}/{full}" for full in known) or "none are published for it"
        raise ConfigError(f"{OWNER}/{name}: pretrained=True needs a tag that says which weights: {allowed}")
    path, entry = resolve(f"{name}.{tag}", cache_dir=cache_dir)
    if isinstance(made, Features):
        load_weights(made.body, path, say=None, **entry.fields)
        return
    same = made.num_classes == len(entry.class_names or ())
    load_weights(made.model, path, head="strict" if same else "reset", say=None, **entry.fields)


def _with_slash(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, but ``swindow/NAME`` is our NAME in timm's registry."""

    def parse_model_name(model_name: str) -> Any:
        owner, slash, ours = model_name.partition("/")
        return (None, f"{OWNER}_{ours}") if (owner, slash) == (OWNER, "/") else read(model_name)

    parse_model_name.swindow = True  # type: ignore[attr-defined]
    return parse_model_name
