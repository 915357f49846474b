"""What lies beside weights or inside their file, and says which model they are, its pixels and its classes."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from swindow.checkpoints.detector_facts import (
    detr_config,
    detr_fields,
    detr_preprocess,
    detr_preprocessor,
    is_detr,
    usual_for_objects,
)
from swindow.config import from_dict, to_dict
from swindow.errors import ConfigError
from swindow.heads import DetrConfig, UperNetConfig
from swindow.model import Model
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

RESAMPLING: Mapping[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a config tells of a model."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its backbone's config."""
    preprocess: Preprocess | None = None
    """How its pixels are prepared."""
    classes: tuple[str, ...] | None = None
    """Names of its classes."""
    colours: tuple[tuple[int, int, int], ...] | None = None
    """Their colours, in red, green and blue."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """Fields that a config may tell, with their types: what is of another type is not believed but refused."""

    image_size: int | tuple[int, int] | None = None
    window: int | None = None
    pretrained_window: tuple[int, ...] | None = None
    num_heads: int | tuple[int, ...] | None = None
    norm_eps: float | None = None
    drop_path: float | None = None
    pools: tuple[int, ...] | None = None
    auxiliary: float | None = None
    transformer_heads: int | None = None
    head_dropout: float | None = None

    def __post_init__(self) -> None:
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size or 1,)
        if not all(1 <= side <= MOST_PIXELS for side in sides):
            raise ConfigError(f"image_size is {self.image_size}; sides of 1 to {MOST_PIXELS} pixels are read")
        windows = (1 if self.window is None else self.window, *(self.pretrained_window or ()))
        if not (windows[0] and all(0 <= side <= MOST_TOKENS for side in windows)):
            raise ConfigError(f"windows are {windows}; sides of 1 to {MOST_TOKENS} tokens are read")


MOST_PIXELS, MOST_TOKENS = 1 << 16, 64
"""Above these a file asks for more memory than its weights are worth; published are 384 and 24."""


def facts_of(config: Mapping[str, Any] | None, preprocessor: Mapping[str, Any] | None) -> Facts:
    """The facts in a Hugging Face ``config.json``, transformers' or timm's, and a ``preprocessor_config.json``.

    Raises:
        ConfigError: values that cannot be, or an activation that is not the one that these models have.
    """
    try:
        facts = _facts(config or {}, preprocessor)
        preprocess = facts.preprocess and from_dict(Preprocess, to_dict(facts.preprocess))
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the config beside the weights is not as transformers or timm write it ({what})") from error
    told = from_dict(Told, facts.fields)
    fields = {field.name: getattr(told, field.name) for field in dataclasses.fields(Told)}
    kept = {name: value for name, value in fields.items() if value is not None}
    return dataclasses.replace(facts, fields=kept, preprocess=preprocess)


def _facts(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> Facts:
    if "pretrained_cfg" in config or "architecture" in config:
        return _timm(config)
    if is_detr(config):
        pixels = detr_preprocess(preprocessor) if preprocessor else None
        return Facts(fields=detr_fields(config), preprocess=pixels, classes=_labels(config.get("id2label")))
    dense = "backbone_config" in config
    about = config["backbone_config"] if dense else config
    if about.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"hidden_act {about['hidden_act']!r}: these models have exact GELU; the weights need another")
    fields = {
        "image_size": about.get("image_size"),
        "window": about.get("window_size"),
        "pretrained_window": about.get("pretrained_window_sizes"),
        "num_heads": about.get("num_attention_heads"),
        "norm_eps": about.get("layer_norm_eps"),
        "drop_path": about.get("drop_path_rate"),
        "pools": config.get("pool_scales"),
        "auxiliary": config.get("auxiliary_loss_weight"),
    }
    return Facts(
        fields=fields,
        preprocess=_processor(preprocessor, fields["image_size"], dense) if preprocessor else None,
        classes=_labels(config.get("id2label")),
    )


def facts_of_meta(meta: Mapping[str, Any]) -> Facts:
    """The facts in what OpenMMLab's programs write beside a state dict: names and colours of classes."""
    palette = meta.get("palette")
    return Facts(
        classes=tuple(meta["classes"]) if "classes" in meta else None,
        colours=None if palette is None else tuple((red, green, blue) for red, green, blue in palette),
    )


def openmmlab_meta(model: Model) -> dict[str, Any]:
    """The ``meta`` that these programs expect, in capitals for 0.x and in an entry of its own for 1.x."""
    about = {
        "classes": model.classes,
        "palette": None if model.colours is None else [list(colour) for colour in model.colours],
    }
    given = {name: value for name, value in about.items() if value is not None}
    return {name.upper(): value for name, value in given.items()} | ({"dataset_meta": given} if given else {})


def huggingface_config(model: Model) -> dict[str, Any]:
    """The ``config.json`` with which transformers' class for this model is built again."""
    config: Any = model.config.backbone
    head = model.config.head
    names = model.classes or tuple(f"LABEL_{index}" for index in range(head.num_classes))
    labels = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if isinstance(head, DetrConfig):
        return labels | detr_config(config, head, model.config.in_channels)
    body = {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_channels": model.config.in_channels,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "drop_path_rate": config.drop_path,
        **_HUGGINGFACE[config.kind](config),
    }
    return labels | (_upernet(head, body) if isinstance(head, UperNetConfig) else body)


def _upernet(head: UperNetConfig, body: dict[str, Any]) -> dict[str, Any]:
    """UperNet's config around that of its backbone, whose maps all come out."""
    stages = [f"stage{number + 1}" for number in range(len(body["depths"]))]
    inner = {name: value for name, value in body.items() if name != "architectures"}
    return {
        "model_type": "upernet",
        "architectures": ["UperNetForSemanticSegmentation"],
        "backbone_config": inner | {"out_features": stages},
        "hidden_size": head.decoder_width,
        "pool_scales": list(head.pools),
        "use_auxiliary_head": head.auxiliary > 0,
        "auxiliary_loss_weight": head.auxiliary,
        "auxiliary_channels": head.auxiliary_width,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
    }


def preprocessor_config(preprocess: Preprocess, *, task: str = "classify") -> dict[str, Any] | None:
    """The ``preprocessor_config.json`` that prepares pixels in the same way, as far as transformers can say it.

    None where it cannot: for a segmenter or a detector that puts a border around pictures, cuts them or enlarges them
    all alike.
    """
    if task == "detect":
        return detr_preprocessor(preprocess)
    if task == "segment":
        can = preprocess.fit in ("native", "short", "squash") and preprocess.zoom == 1
        return _of_segmenter(preprocess) if can else None
    height, width = preprocess.size
    whole = {"height": round(height / preprocess.crop_ratio), "width": round(width / preprocess.crop_ratio)}
    cropped = preprocess.fit == "crop"
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(whole.values())} if cropped else {"height": height, "width": width},
        "do_center_crop": cropped,
        "crop_size": {"height": height, "width": width},
        "resample": 3 if preprocess.interpolation == "bicubic" else 2,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _of_segmenter(preprocess: Preprocess) -> dict[str, Any]:
    height, width = preprocess.size
    stretched = {"height": height, "width": width}
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": preprocess.fit != "native",
        "size": {"shortest_edge": min(preprocess.size)} if preprocess.fit == "short" else stretched,
        "resample": 3 if preprocess.interpolation == "bicubic" else 2,
        "do_rescale": True,
        "do_normalize": True,
        "do_reduce_labels": False,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _windowed(config: Any) -> dict[str, Any]:
    (side, *_), *_ = config.windows
    return {
        "embed_dim": config.dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window if isinstance(config.window, int) else side,
        "use_absolute_embeddings": config.absolute_position,
        "layer_norm_eps": 1e-5,
    }


def _swin(config: Any) -> dict[str, Any]:
    return {"model_type": "swin", "architectures": ["SwinForImageClassification"], **_windowed(config)}


def _swin_v2(config: Any) -> dict[str, Any]:
    old = [
        0 if window == now else window[0] for window, now in zip(config.pretrained_windows, config.windows, strict=True)
    ]
    about = {"model_type": "swinv2", "architectures": ["Swinv2ForImageClassification"], "pretrained_window_sizes": old}
    return about | _windowed(config)


def _vit(config: Any) -> dict[str, Any]:
    heads = "WithTeacher" if config.pool == "tokens" else ""
    deit = {"model_type": "deit", "architectures": [f"DeiTForImageClassification{heads}"]}
    vit = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    return (deit if config.distillation_token else vit) | {
        "hidden_size": config.dim,
        "num_hidden_layers": sum(config.depths),
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.mlp_ratio * config.dim),
        "layer_norm_eps": config.norm_eps,
    }


_HUGGINGFACE: Mapping[str, Callable[[Any], dict[str, Any]]] = {"swin": _swin, "swin_v2": _swin_v2, "vit": _vit}


def usual_preprocess(image_size: int | tuple[int, int], channels: int) -> Preprocess:
    """What published models of this size expect: ImageNet's statistics, 0.9 of the picture, all of it from 384 on."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    return Preprocess(size=size, mean=mean, std=std, crop_ratio=0.9 if max(size) < 384 else 1.0)


def usual_for_maps(head: str, image_size: int | tuple[int, int], channels: int) -> Preprocess:
    """What published segmenters and detectors with this head are evaluated with.

    Detectors: ImageNet's statistics, 800 pixels by 1,333 at most. UPerNet: ImageNet's statistics, the short side made
    512 pixels. Swin-Unet: pictures stretched to the image size, values in 0..1 as they are.
    """
    if head not in ("upernet", "unet"):
        return usual_for_objects(channels)
    if head == "upernet":
        usual = usual_preprocess(512, channels)
        return Preprocess(size=usual.size, mean=usual.mean, std=usual.std, fit="short", interpolation="bilinear")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return Preprocess(size=size, mean=(0.0,) * channels, std=(1.0,) * channels, fit="squash")


def _timm(config: Mapping[str, Any]) -> Facts:
    """timm's: the architecture's name holds the window, the rest is in ``pretrained_cfg``."""
    about = config.get("pretrained_cfg") or {}
    fields: dict[str, Any] = {}
    size = about.get("input_size")
    if size:
        fields["image_size"] = size[1] if size[1] == size[2] else (size[1], size[2])
    window = re.search(r"window(\d+)(?:to(\d+))?", config.get("architecture", ""))
    if window:
        fields["window"] = int(window[2] or window[1])
    if window and window[2]:
        old = int(window[1])
        fields["pretrained_window"] = (old, old, old, old // 2)
    return Facts(
        fields=fields, preprocess=_of_timm(about) if size and about.get("mean") else None, classes=_names(config)
    )


def _of_timm(about: Mapping[str, Any]) -> Preprocess:
    return Preprocess(
        size=(about["input_size"][1], about["input_size"][2]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        crop_ratio=about.get("crop_pct") or 0.875,
        interpolation="bilinear" if about.get("interpolation") == "bilinear" else "bicubic",
    )


def _processor(about: Mapping[str, Any], image_size: Any, dense: bool = False) -> Preprocess | None:
    """transformers': the whole picture stretched to the size, unless it crops the centre; of a segmenter as it says."""
    size = about.get("crop_size") if about.get("do_center_crop") else about.get("size")
    sides = size or image_size
    if isinstance(sides, Mapping):
        sides = (sides["height"], sides["width"]) if "height" in sides else sides.get("shortest_edge")
    if sides is None or about.get("image_mean") is None:
        return None
    cropped = bool(about.get("do_center_crop"))
    longest = about.get("size")
    whole = longest.get("height", longest.get("shortest_edge")) if isinstance(longest, Mapping) else longest
    size = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if dense:
        short = isinstance(longest, Mapping) and "shortest_edge" in longest
        return Preprocess(
            size=size,
            mean=tuple(about["image_mean"]),
            std=tuple(about["image_std"]),
            fit="native" if about.get("do_resize") is False else "short" if short else "squash",
            interpolation=RESAMPLING.get(about.get("resample", 2), "bilinear"),
        )
    return Preprocess(
        size=size,
        mean=tuple(about["image_mean"]),
        std=tuple(about["image_std"]),
        fit="crop" if cropped else "squash",
        crop_ratio=min(size[0] / whole, 1.0) if cropped and whole else 1.0,
        interpolation=RESAMPLING.get(about.get("resample", 3), "bicubic"),
    )


def _labels(id2label: Any) -> tuple[str, ...] | None:
    """Class names in order; the placeholders that transformers writes where there are none count as none."""
    if not id2label:
        return None
    names = tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names")
    return tuple(map(str, names)) if names else None
