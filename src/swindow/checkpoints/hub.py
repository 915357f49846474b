"""Published weights by name: what each is, and where its file lies once it is here.

Files come from the Hugging Face hub (extra ``hub``), with its cache and its offline mode, or, for torchvision's own, by
torchvision into torch's cache. What a name means is in the table at the foot.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from swindow import classes
from swindow.backbones import VARIANTS
from swindow.checkpoints.detector_facts import usual_for_objects
from swindow.errors import CheckpointError, UnknownName, require
from swindow.model import MODELS
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

ListOfClasses = Literal["imagenet1k", "imagenet21k", "imagenet22k", "coco_by_id", "coco_from_1"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedWeights:
    """One published checkpoint, and what its tensors do not tell."""

    name: str
    """``variant.tag``: the tag says who trained it on what; ``ft`` is fine-tuned."""
    variant: str
    """The variant or composition whose shape it has, `fields` apart."""
    fields: Mapping[str, Any]
    """Fields of the backbone's config that tensors do not tell, or that are not the variant's."""
    source: str
    """Repository on the hub; or torchvision's name for the weights."""
    file: str
    """Name of the file there."""
    beside: tuple[str, ...] = ()
    """Names of other files there that tell what its tensors do not."""
    format: Literal["timm", "torchvision", "huggingface"]
    """Whose layout the file has."""
    licence: str
    """Identifier of the licence that the weights are under."""
    sha256: str | None = None
    """SHA-256 of the file or its first digits, where published beforehand; the hub tells its own at download."""
    classes: ListOfClasses | None
    """The list in `swindow.classes` that the head is for; None: it has no head, or a file beside it names them."""
    preprocess: Preprocess
    """How its pixels are prepared."""
    accuracy: tuple[float, float] | None = None
    """Top-1 and top-5 in percent on ImageNet-1k's validation images, as measured by timm or torchvision."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the head's classes, in its order."""
        return None if self.classes is None else classes.class_names(self.classes)


class Resolved(NamedTuple):
    """A file that is here, and what it is."""

    path: Path
    entry: NamedWeights


def resolve(name: str, *, cache_dir: str | Path | None = None) -> Resolved:
    """The file of these weights, downloaded unless it is in the cache, and checked against its published SHA-256.

    Args:
        cache_dir: where files are kept; None is the hub's own cache (torch's, for torchvision's files).

    Raises:
        UnknownName: no weights of this name.
        MissingExtra: the hub's client is not installed.
        CheckpointError: the file cannot be had, and why; or it is damaged.
    """
    if name not in NAMED:
        raise UnknownName("published weights", name, NAMED)
    entry = NAMED[name]
    fetch = _from_torchvision if entry.format == "torchvision" else _from_hub
    path = fetch(entry, cache_dir)
    _check(path, entry.sha256 or _hash_of_blob(path))
    return Resolved(path, entry)


def _from_hub(entry: NamedWeights, cache_dir: str | Path | None) -> Path:
    hub, errors, constants = (require(f"huggingface_hub{part}", extra="hub") for part in ("", ".errors", ".constants"))
    cache = cache_dir or constants.HF_HUB_CACHE
    try:
        for name in entry.beside:
            hub.hf_hub_download(entry.source, name, cache_dir=cache)
        return Path(hub.hf_hub_download(entry.source, entry.file, cache_dir=cache))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{entry.name}: {entry.source} gives its files only to those who accepted its terms; accept them on the "
            "hub and log in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        why = "offline mode is on" if constants.HF_HUB_OFFLINE else "no connection to the hub"
        raise _not_to_be_had(entry, why, f"that machine's cache into {cache}") from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise CheckpointError(
            f"{entry.name}: the hub has no {entry.file} in {entry.source} (any more); get the file from elsewhere and "
            "use swindow.load(path)"
        ) from error
    except (OSError, errors.HTTPError) as error:  # of whichever HTTP library this version of the client has
        raise _not_to_be_had(entry, _one_line(error), f"that machine's cache into {cache}") from error


def _from_torchvision(entry: NamedWeights, cache_dir: str | Path | None) -> Path:
    from torchvision.models import get_weight

    folder = Path(cache_dir or Path(torch.hub.get_dir()) / "checkpoints")
    path = folder / entry.file
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(get_weight(entry.source).url, str(path))
        except OSError as error:
            raise _not_to_be_had(entry, _one_line(error), f"it to {path}") from error
    return path


def _not_to_be_had(entry: NamedWeights, why: str, place: str) -> CheckpointError:
    return CheckpointError(
        f"{entry.name}: {entry.file} of {entry.source} is not in the cache and cannot be downloaded ({why}); download "
        f"it on another machine, then use swindow.load(path) or copy {place}"
    )


def _check(path: Path, published: str | None) -> None:
    if published is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(published):
        raise CheckpointError(
            f"{path}: its SHA-256 is {found[:8]}…, the published one is {published[:8]}…; delete the file "
            f"{path.resolve()} and load again"
        )


def _hash_of_blob(path: Path) -> str | None:
    """The hub's client keeps a large file under the SHA-256 that the hub told, and links to it."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# What the tensors of each kind do not tell.
_UNTOLD = {
    "swin": ("image_size", "window", "drop_path"),
    "swin_v2": ("image_size", "window", "pretrained_window", "drop_path"),
    "vit": ("image_size", "num_heads", "norm_eps", "drop_path"),
    "hybrid": ("image_size", "num_heads", "norm_eps", "drop_path"),
}
# Shapes that are published and no variant: the variant, and what is different.
_NO_VARIANT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vit_small_32": ("vit_small", {"patch": 32}),
    "vit_small_32_384": ("vit_small_384", {"patch": 32}),
    "vit_base_8": ("vit_base", {"patch": 8}),
}
_LISTS: Mapping[str, ListOfClasses] = {"in1k": "imagenet1k", "in21k": "imagenet21k", "in22k": "imagenet22k"}


def _entry(
    name: str,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    crop_ratio: float | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    **facts: Any,
) -> NamedWeights:
    shape, tag = name.split(".")
    variant, different = _NO_VARIANT.get(shape, (shape, {}))
    config: Any = VARIANTS[variant]
    side = config.image_size
    return NamedWeights(
        name=name,
        variant=variant,
        fields={field: getattr(config, field) for field in _UNTOLD[config.kind]} | different,
        classes=None if tag == "orig_in21k" else _LISTS[tag.rsplit("_", 1)[1]],
        preprocess=Preprocess(
            size=(side, side),
            mean=mean,
            std=std,
            crop_ratio=crop_ratio or (0.9 if side < 384 else 1.0),
            interpolation=interpolation,
        ),
        **facts,
    )


def _of_timm(table: str, **facts: Any) -> Iterator[NamedWeights]:
    """Rows of: name, architecture in timm, top-1 and top-5 where the head is for ImageNet-1k."""
    for row in table.strip().splitlines():
        name, architecture, *accuracy = row.split()
        yield _entry(
            name,
            source=f"timm/{architecture}.{name.split('.')[1]}",
            file="model.safetensors",
            format="timm",
            accuracy=_pair(accuracy),
            **facts,
        )


def _of_torchvision(table: str, **facts: Any) -> Iterator[NamedWeights]:
    """Rows of: name, torchvision's name, file, side in pixels before the crop, top-1 and top-5."""
    for row in table.strip().splitlines():
        name, source, file, whole, *accuracy = row.split()
        yield _entry(
            name,
            source=f"{source}.IMAGENET1K_V1",
            file=file,
            format="torchvision",
            licence="bsd-3-clause",
            sha256=file.split("-")[1].removesuffix(".pth"),
            accuracy=_pair(accuracy),
            crop_ratio=(256 if "_v2_" in name else 224) / int(whole),
            **facts,
        )


def _of_openmmlab(table: str, **facts: Any) -> Iterator[NamedWeights]:
    """Rows of: name, repository, file. Pixels are prepared as mmsegmentation does, whose weights they are."""
    for row in table.strip().splitlines():
        name, source, file = row.split()
        variant = name.split(".")[0]
        config: Any = MODELS[variant].backbone
        yield NamedWeights(
            name=name,
            variant=variant,
            fields={"image_size": config.image_size, "window": config.window, "drop_path": 0.3},
            source=f"openmmlab/{source}",
            file=file,
            beside=("config.json",),
            format="huggingface",
            classes=None,
            preprocess=Preprocess(
                size=(512, 512), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="short", interpolation="bilinear"
            ),
            **facts,
        )


def _detectors(table: str) -> Iterator[NamedWeights]:
    """Rows of: name, torchvision's name or a repository on the hub, file. Names of classes are COCO's by number."""
    for row in table.strip().splitlines():
        name, source, file = row.split()
        hub = "/" in source
        yield NamedWeights(
            name=name,
            variant=name.split(".")[0],
            fields={"transformer_heads": 8} if hub else {},
            source=source if hub else f"{source}.COCO_V1",
            file=file,
            format="huggingface" if hub else "torchvision",
            licence="apache-2.0" if hub else "bsd-3-clause",
            sha256=None if hub else file.rpartition("-")[2].removesuffix(".pth"),
            classes="coco_from_1" if name.startswith("mask_rcnn") else "coco_by_id",
            preprocess=usual_for_objects(3),
        )


def _pair(accuracy: list[str]) -> tuple[float, float] | None:
    return (float(accuracy[0]), float(accuracy[1])) if accuracy else None


_MICROSOFT = """
swin_tiny.ms_in1k                       swin_tiny_patch4_window7_224        81.388 95.540
swin_tiny.ms_in22k                      swin_tiny_patch4_window7_224
swin_tiny.ms_in22k_ft_in1k              swin_tiny_patch4_window7_224        80.966 96.020
swin_small.ms_in1k                      swin_small_patch4_window7_224       83.228 96.326
swin_small.ms_in22k                     swin_small_patch4_window7_224
swin_small.ms_in22k_ft_in1k             swin_small_patch4_window7_224       83.330 96.996
swin_base.ms_in1k                       swin_base_patch4_window7_224        83.604 96.450
swin_base.ms_in22k                      swin_base_patch4_window7_224
swin_base.ms_in22k_ft_in1k              swin_base_patch4_window7_224        85.276 97.566
swin_base_384.ms_in1k                   swin_base_patch4_window12_384       84.478 96.886
swin_base_384.ms_in22k                  swin_base_patch4_window12_384
swin_base_384.ms_in22k_ft_in1k          swin_base_patch4_window12_384       86.442 98.068
swin_large.ms_in22k                     swin_large_patch4_window7_224
swin_large.ms_in22k_ft_in1k             swin_large_patch4_window7_224       86.320 97.890
swin_large_384.ms_in22k                 swin_large_patch4_window12_384
swin_large_384.ms_in22k_ft_in1k         swin_large_patch4_window12_384      87.142 98.228
swin_s3_tiny.ms_in1k                    swin_s3_tiny_224                    82.128 95.958
swin_s3_small.ms_in1k                   swin_s3_small_224                   83.778 96.460
swin_s3_base.ms_in1k                    swin_s3_base_224                    83.920 96.650
swin_v2_tiny_w8.ms_in1k                 swinv2_tiny_window8_256             81.824 95.988
swin_v2_tiny_w16.ms_in1k                swinv2_tiny_window16_256            82.828 96.222
swin_v2_small_w8.ms_in1k                swinv2_small_window8_256            83.844 96.650
swin_v2_small_w16.ms_in1k               swinv2_small_window16_256           84.216 96.874
swin_v2_base_w8.ms_in1k                 swinv2_base_window8_256             84.246 96.902
swin_v2_base_w12.ms_in22k               swinv2_base_window12_192
swin_v2_base_w12to16.ms_in22k_ft_in1k   swinv2_base_window12to16_192to256   86.270 97.906
swin_v2_base_w12to24.ms_in22k_ft_in1k   swinv2_base_window12to24_192to384   87.142 98.228
swin_v2_base_w16.ms_in1k                swinv2_base_window16_256            84.608 97.064
swin_v2_large_w12.ms_in22k              swinv2_large_window12_192
swin_v2_large_w12to16.ms_in22k_ft_in1k  swinv2_large_window12to16_192to256  86.934 98.106
swin_v2_large_w12to24.ms_in22k_ft_in1k  swinv2_large_window12to24_192to384  87.474 98.264
"""
_FACEBOOK = """
deit_tiny.fb_in1k                deit_tiny_patch16_224             72.190 91.100
deit_tiny_distilled.fb_in1k      deit_tiny_distilled_patch16_224   74.538 91.898
deit_small.fb_in1k               deit_small_patch16_224            79.856 95.056
deit_small_distilled.fb_in1k     deit_small_distilled_patch16_224  81.204 95.378
deit_base.fb_in1k                deit_base_patch16_224             81.980 95.740
deit_base_384.fb_in1k            deit_base_patch16_384             83.108 96.376
deit_base_distilled.fb_in1k      deit_base_distilled_patch16_224   83.384 96.492
deit_base_distilled_384.fb_in1k  deit_base_distilled_patch16_384   85.438 97.332
"""
_GOOGLE = """
vit_tiny.augreg_in21k                         vit_tiny_patch16_224
vit_tiny.augreg_in21k_ft_in1k                 vit_tiny_patch16_224   75.452 92.858
vit_tiny_384.augreg_in21k_ft_in1k             vit_tiny_patch16_384   78.438 94.542
vit_small.augreg_in1k                         vit_small_patch16_224  78.842 94.280
vit_small.augreg_in21k                        vit_small_patch16_224
vit_small.augreg_in21k_ft_in1k                vit_small_patch16_224  81.402 96.150
vit_small_32.augreg_in21k                     vit_small_patch32_224
vit_small_32.augreg_in21k_ft_in1k             vit_small_patch32_224  76.010 93.266
vit_small_384.augreg_in1k                     vit_small_patch16_384  81.130 95.590
vit_small_384.augreg_in21k_ft_in1k            vit_small_patch16_384  83.814 97.106
vit_small_32_384.augreg_in21k_ft_in1k         vit_small_patch32_384  80.476 95.594
vit_base.augreg2_in21k_ft_in1k                vit_base_patch16_224   85.108 97.530
vit_base.augreg_in1k                          vit_base_patch16_224   79.154 94.108
vit_base.augreg_in21k                         vit_base_patch16_224
vit_base.augreg_in21k_ft_in1k                 vit_base_patch16_224   84.534 97.300
vit_base.orig_in21k                           vit_base_patch16_224
vit_base.orig_in21k_ft_in1k                   vit_base_patch16_224   81.782 96.122
vit_base.sam_in1k                             vit_base_patch16_224   80.246 94.764
vit_base_8.augreg2_in21k_ft_in1k              vit_base_patch8_224    86.252 97.840
vit_base_8.augreg_in21k                       vit_base_patch8_224
vit_base_8.augreg_in21k_ft_in1k               vit_base_patch8_224    85.838 97.776
vit_base_32.augreg_in1k                       vit_base_patch32_224   74.908 91.770
vit_base_32.augreg_in21k                      vit_base_patch32_224
vit_base_32.augreg_in21k_ft_in1k              vit_base_patch32_224   80.732 95.574
vit_base_32.orig_in21k                        vit_base_patch32_224
vit_base_32.sam_in1k                          vit_base_patch32_224   73.704 91.012
vit_base_384.augreg_in1k                      vit_base_patch16_384   81.102 95.334
vit_base_384.augreg_in21k_ft_in1k             vit_base_patch16_384   86.010 97.998
vit_base_384.orig_in21k_ft_in1k               vit_base_patch16_384   84.212 97.210
vit_base_32_384.augreg_in1k                   vit_base_patch32_384   78.750 94.238
vit_base_32_384.augreg_in21k_ft_in1k          vit_base_patch32_384   83.358 96.828
vit_large.augreg_in21k                        vit_large_patch16_224
vit_large.augreg_in21k_ft_in1k                vit_large_patch16_224  85.856 97.822
vit_large.orig_in21k                          vit_large_patch16_224
vit_large_32.orig_in21k                       vit_large_patch32_224
vit_large_384.augreg_in21k_ft_in1k            vit_large_patch16_384  87.096 98.302
vit_large_32_384.orig_in21k_ft_in1k           vit_large_patch32_384  81.508 96.086
vit_huge_14.orig_in21k                        vit_huge_patch14_224
hybrid_small_r26_32.augreg_in21k              vit_small_r26_s32_224
hybrid_small_r26_32.augreg_in21k_ft_in1k      vit_small_r26_s32_224  81.856 96.038
hybrid_small_r26_32_384.augreg_in21k_ft_in1k  vit_small_r26_s32_384  84.066 97.310
hybrid_base_r50_16.orig_in21k                 vit_base_r50_s16_224
hybrid_base_r50_16_384.orig_in21k_ft_in1k     vit_base_r50_s16_384   84.988 97.296
hybrid_large_r50_32.augreg_in21k              vit_large_r50_s32_224
hybrid_large_r50_32.augreg_in21k_ft_in1k      vit_large_r50_s32_224  84.434 97.152
hybrid_large_r50_32_384.augreg_in21k_ft_in1k  vit_large_r50_s32_384  86.188 97.928
"""
_TORCHVISION_SWIN = """
swin_tiny.tv_in1k          Swin_T_Weights     swin_t-704ceda3.pth     232  81.474 95.776
swin_small.tv_in1k         Swin_S_Weights     swin_s-5e29d889.pth     246  83.196 96.360
swin_base.tv_in1k          Swin_B_Weights     swin_b-68c6b09e.pth     238  83.582 96.640
swin_v2_tiny_w8.tv_in1k    Swin_V2_T_Weights  swin_v2_t-b137f0e2.pth  260  82.072 96.132
swin_v2_small_w8.tv_in1k   Swin_V2_S_Weights  swin_v2_s-637d8ceb.pth  260  83.712 96.816
swin_v2_base_w8.tv_in1k    Swin_V2_B_Weights  swin_v2_b-781e5279.pth  272  84.112 96.864
"""
_TORCHVISION_VIT = """
vit_base.tv_in1k           ViT_B_16_Weights   vit_b_16-c867db91.pth   256  81.072 95.318
vit_base_32.tv_in1k        ViT_B_32_Weights   vit_b_32-d86f8d99.pth   256  75.912 92.466
vit_large.tv_in1k          ViT_L_16_Weights   vit_l_16-852ce7e3.pth   242  79.662 94.638
vit_large_32.tv_in1k       ViT_L_32_Weights   vit_l_32-c7638314.pth   256  76.972 93.070
"""
# mmsegmentation's UPerNets as transformers has them: base and large are those pretrained on ImageNet-22k at 384 pixels.
_OPENMMLAB = """
upernet_swin_tiny.mmseg_ade20k       upernet-swin-tiny   pytorch_model.bin
upernet_swin_small.mmseg_ade20k      upernet-swin-small  model.safetensors
upernet_swin_base_384.mmseg_ade20k   upernet-swin-base   model.safetensors
upernet_swin_large_384.mmseg_ade20k  upernet-swin-large  model.safetensors
"""
_DETECTORS = """
mask_rcnn_resnet_50.tv_coco        MaskRCNN_ResNet50_FPN_Weights      maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth
mask_rcnn_resnet_50.tv_coco_boxes  FasterRCNN_ResNet50_FPN_Weights    fasterrcnn_resnet50_fpn_coco-258fb6c6.pth
retinanet_resnet_50.tv_coco        RetinaNet_ResNet50_FPN_Weights     retinanet_resnet50_fpn_coco-eeacb38b.pth
retinanet_resnet_50.tv_coco_v2     RetinaNet_ResNet50_FPN_V2_Weights  retinanet_resnet50_fpn_v2_coco-5905b1c5.pth
detr_resnet50.fb_coco              facebook/detr-resnet-50            model.safetensors
detr_resnet101.fb_coco             facebook/detr-resnet-101           model.safetensors
"""
_HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

NAMED: Mapping[str, NamedWeights] = {
    entry.name: entry
    for entry in (
        *_of_timm(_MICROSOFT, licence="mit"),
        *_of_timm(_FACEBOOK, licence="apache-2.0"),
        *_of_timm(_GOOGLE, licence="apache-2.0", **_HALVES),
        *_of_torchvision(_TORCHVISION_SWIN),
        *_of_torchvision(_TORCHVISION_VIT, interpolation="bilinear"),
        *_of_openmmlab(_OPENMMLAB, licence="mit"),
        *_detectors(_DETECTORS),
    )
}
