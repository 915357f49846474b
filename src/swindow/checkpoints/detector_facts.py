"""What transformers writes beside a DETR's weights, read and written; and how published detectors prepare pixels."""

from collections.abc import Mapping
from typing import Any, Literal

from swindow.errors import ConfigError
from swindow.heads import DetrConfig
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

SHORT, LONG = 800, 1333
"""How long published detectors make a picture's short side, unless the long one becomes longer than this."""


def usual_for_objects(channels: int) -> Preprocess:
    """What published detectors are evaluated with: ImageNet's statistics, 800 pixels by 1,333 at most."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    return Preprocess(size=(SHORT, LONG), mean=mean, std=std, fit="within", interpolation="bilinear")


def is_detr(config: Mapping[str, Any]) -> bool:
    """Whether this is the ``config.json`` of transformers' DETR."""
    return config.get("model_type") == "detr"


def detr_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configs that it tells and tensors do not.

    Raises:
        ConfigError: it is of a DETR that no head or backbone here is like.
    """
    body = config.get("backbone_config") or {}
    wrong = {
        "dilation": config.get("dilation") or body.get("output_stride"),
        "position_embedding_type": config.get("position_embedding_type", "sine") != "sine",
        "activation_function": config.get("activation_function", "relu") != "relu",
        "hidden_act": body.get("hidden_act", "relu") != "relu",
        "downsample_in_bottleneck": body.get("downsample_in_bottleneck"),
        "downsample_in_first_stage": body.get("downsample_in_first_stage"),
    }
    found = [name for name, differs in wrong.items() if differs]
    if found:
        values = ", ".join(f"{name} {config.get(name, body.get(name))!r}" for name in found)
        raise ConfigError(
            f"its config says {values}; a DETR here has strides in its last stage (no DC5), sine positions, ReLUs and "
            "torchvision's ResNet: take the weights of such a model"
        )
    heads = {config.get(f"{part}_attention_heads", 8) for part in ("encoder", "decoder")}
    if len(heads) > 1:
        raise ConfigError(f"its config says {heads} heads in encoder and decoder; a DETR here has as many in both")
    return {"transformer_heads": heads.pop(), "head_dropout": config.get("dropout")}


def detr_preprocess(about: Mapping[str, Any]) -> Preprocess | None:
    """How its ``preprocessor_config.json`` prepares pixels; None where it tells no size or no mean."""
    given = about.get("size")
    size = (
        given if isinstance(given, Mapping) else {"shortest_edge": given, "longest_edge": about.get("max_size", LONG)}
    )
    short, long = size.get("shortest_edge"), size.get("longest_edge")
    if about.get("image_mean") is None or not (short or "height" in size):
        return None
    fit: Literal["native", "squash", "within", "short"] = "within" if long else "short"
    sides = (int(short or 0), int(long or short or 0))
    if "height" in size:
        fit, sides = "squash", (int(size["height"]), int(size["width"]))
    return Preprocess(
        size=sides,
        mean=tuple(about["image_mean"]),
        std=tuple(about["image_std"]),
        fit="native" if about.get("do_resize") is False else fit,
        interpolation="bicubic" if about.get("resample", 2) == 3 else "bilinear",
    )


def detr_preprocessor(preprocess: Preprocess) -> dict[str, Any] | None:
    """The same as transformers writes it; None where it has no words for it."""
    if preprocess.fit not in ("native", "within", "squash", "short") or preprocess.zoom != 1:
        return None
    first, second = preprocess.size
    sizes: dict[str, dict[str, int]] = {
        "within": {"shortest_edge": min(first, second), "longest_edge": max(first, second)},
        "short": {"shortest_edge": min(first, second)},
    }
    return {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_detection",
        "do_resize": preprocess.fit != "native",
        "size": sizes.get(preprocess.fit, {"height": first, "width": second}),
        "resample": 3 if preprocess.interpolation == "bicubic" else 2,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def detr_config(backbone: Any, head: DetrConfig, in_channels: int) -> dict[str, Any]:
    """The ``config.json`` with which transformers' class for this model is built again, but for the labels."""
    kind = "Segmentation" if head.masks else "ObjectDetection"
    stages = [f"stage{number + 1}" for number in range(len(backbone.depths))]
    return {
        "model_type": "detr",
        "architectures": [f"DetrFor{kind}"],
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "num_channels": in_channels,
            "embedding_size": backbone.width,
            "hidden_sizes": list(backbone.channels),
            "depths": list(backbone.depths),
            "layer_type": backbone.block,
            "hidden_act": "relu",
            "out_features": stages if head.masks else stages[-1:],
        },
        "num_channels": in_channels,
        "num_queries": head.num_queries,
        "d_model": head.transformer_width,
        "encoder_layers": head.encoder_layers,
        "decoder_layers": head.decoder_layers,
        "encoder_attention_heads": head.transformer_heads,
        "decoder_attention_heads": head.transformer_heads,
        "encoder_ffn_dim": head.feed_forward,
        "decoder_ffn_dim": head.feed_forward,
        "dropout": head.head_dropout,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "dilation": False,
    }
