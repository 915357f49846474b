"""Counts against the published numbers, an independent formula, and what torch sees when the model runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from swindow.backbones import VARIANTS
from swindow.counting import count, stage_table
from swindow.heads.upernet import ConvNorm
from swindow.model import Model, build, use_backend
from tiny_segmenters import HEADS, segmenter

Tiny = Callable[..., Model]

PUBLISHED = {
    # name: parameters, GMACs of Microsoft and of torchvision (large is not theirs), millions of activations (timm)
    "swin_tiny": (28_288_354, 4.494, 4.491, 17.06),
    "swin_small": (49_606_258, 8.747, 8.741, 27.47),
    "swin_base": (87_768_224, 15.438, 15.431, 36.63),
    "swin_large": (196_532_476, 34.487, None, 54.94),
}


def on_meta(name: str, **fields: int) -> Model:
    """Shapes without memory."""
    with torch.device("meta"):
        return build(name, **fields).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    parameters, microsoft, torchvision, activations = PUBLISHED[name]
    counts = count(on_meta(name), 224)
    assert counts.parameters == parameters
    assert round(counts.macs / 1e9, 3) == microsoft
    assert torchvision is None or round(counts.product_macs / 1e9, 3) == torchvision
    assert counts.activations / 1e6 == pytest.approx(activations, abs=0.006)


def microsoft_flops(dim: int, depths: tuple[int, ...], window: int, size: int, classes: int = 1000) -> int:
    """The sum of every `flops()` in Microsoft's repository, for sizes that the windows divide."""
    patches = size // 4
    total = patches**2 * dim * 3 * 16 + patches**2 * dim
    for stage, depth in enumerate(depths):
        side, channels = patches // 2**stage, dim * 2**stage
        tokens, seen = side**2, window**2
        attention = seen * channels * 3 * channels + 2 * seen * seen * channels + seen * channels * channels
        total += depth * (2 * tokens * channels + tokens // seen * attention + 2 * tokens * channels * channels * 4)
        if stage < len(depths) - 1:
            total += tokens * channels + tokens // 4 * 4 * channels * 2 * channels
    last = dim * 2 ** (len(depths) - 1)
    return total + last * patches**2 // 2 ** len(depths) + last * classes


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("window", "size"), [(7, 224), (12, 384), (8, 256), (7, 448)])
def test_macs_are_microsoft_s_to_the_last_digit(name: str, window: int, size: int) -> None:
    model = on_meta(name, window=window)
    config = model.config.backbone
    assert count(model, size).macs == microsoft_flops(config.dim, config.depths, window, size)


def test_the_formula_above_gives_the_sums_that_microsoft_s_code_prints() -> None:
    assert microsoft_flops(96, (2, 2, 6, 2), 7, 224) == 4_494_405_120
    assert microsoft_flops(128, (2, 2, 18, 2), 12, 384) == 47_105_253_376


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("size", [(32, 32), (33, 50), (8, 70), (1, 1), (7, 9)])
def test_product_macs_are_what_torch_counts_at_any_size(tiny: Tiny, size: tuple[int, int], backend: str) -> None:
    with torch.device("meta"):
        model = tiny(in_channels=2, mlp_ratio=3.0)
        use_backend(model, backend)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 2, *size))
    assert counter.get_total_flops() == 2 * count(model, size).product_macs


@pytest.mark.parametrize("name", ["swin_tiny", "swin_small", "swin_base"])
def test_product_macs_of_the_published_models_are_what_torch_counts(name: str) -> None:
    model = on_meta(name)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * count(model, 224).product_macs


@pytest.mark.parametrize("size", [(32, 32), (21, 38)])
def test_norm_macs_are_the_values_that_norms_read(tiny: Tiny, size: tuple[int, int]) -> None:
    model, read = tiny(), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, out, name=name: read.update({name: inputs[0].numel()}))
    model(torch.randn(1, 3, *size))
    del read["backbone.norms.1"]  # of which Microsoft counts another number
    counts = count(model, size)
    assert sum(part.cost.norms for part in counts.parts[:-1]) == sum(read.values())


class ProductOutputs(TorchDispatchMode):
    """Adds up the sizes of what matrix products and convolutions put out."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")
    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.PRODUCTS:
            self.values += out.numel()
        return out


@pytest.mark.parametrize("size", [(32, 32), (21, 38), (1, 1)])
def test_activations_are_the_outputs_of_products(tiny: Tiny, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = tiny()
        use_backend(model, "reference")
        with ProductOutputs() as seen:
            model(torch.empty(1, 3, *size))
    assert seen.values == count(model, size).activations


def test_parts_are_the_whole_model(tiny: Tiny) -> None:
    model = tiny()
    counts = count(model, (21, 38))
    assert counts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [part.name for part in counts.parts] == ["patches", "stage 1", "stage 2", "head"]
    assert [part.grid for part in counts.parts] == [(11, 19), (11, 19), (6, 10), (6, 10)]
    assert [part.channels for part in counts.parts] == [8, 8, 16, 5]
    assert [part.shift for part in counts.parts[1:3]] == [(2, 2), (2, 2)]
    assert sum(part.macs for part in counts.parts) == counts.macs


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_every_variant_are_all_of_them(name: str) -> None:
    model = on_meta(name)
    size = getattr(model.config.backbone, "image_size", 224)
    assert count(model, size).parameters == sum(parameter.numel() for parameter in model.parameters())


# GMACs and parameters of published papers and repositories, as reference/swin-family.md, section 5b, lists them.
OTHERS = {
    "swin_base_384": (87_903_584, 47.105),
    "swin_large_384": (196_735_516, 103.952),
    "swin_v2_tiny_w8": (28_347_154, 5.926),
    "swin_v2_tiny_w16": (28_347_154, 6.605),
    "swin_v2_small_w8": (49_728_418, 11.515),
    "swin_v2_small_w16": (49_728_418, 12.647),
    "swin_v2_base_w8": (87_918_816, 20.286),
    "swin_v2_base_w16": (87_918_816, 21.796),
    "swin_v2_base_w12": (87_918_816, 11.761),
    "swin_v2_base_w12to24": (87_918_816, 54.748),
    "swin_v2_large_w12to16": (196_739_932, 47.491),
    "swin_v2_large_w12to24": (196_739_932, 115.417),
    "deit_tiny": (5_717_416, 1.254),
    "deit_small": (22_050_664, 4.599),
    "deit_base": (86_567_656, 17.564),
    "deit_base_384": (86_859_496, 55.484),
    "deit_base_distilled": (87_338_192, None),
    "vit_large_384": (304_715_752, 191.066),
    "vit_base_32": (88_224_232, 4.409),
    "vit_huge_14": (632_045_800, 167.295),
}


@pytest.mark.parametrize("name", OTHERS)
def test_published_counts_of_the_other_families(name: str) -> None:
    parameters, macs = OTHERS[name]
    model = on_meta(name)
    counts = count(model, model.config.backbone.image_size)
    assert counts.parameters == parameters
    assert macs is None or round(counts.macs / 1e9, 3) == macs


def test_a_vit_s_stages_lie_on_the_grid_of_its_patches() -> None:
    parts = count(on_meta("deit_tiny_distilled"), (224, 160)).parts
    assert [part.grid for part in parts] == [(14, 10)] * 6
    assert [part.heads for part in parts[1:5]] == [3] * 4


# G MACs of one image of this height and width (Swin paper, table 3).
SEGMENTERS = {
    "upernet_swin_tiny": ((512, 2048), 945),
    "upernet_swin_small": ((512, 2048), 1038),
    "upernet_swin_base": ((512, 2048), 1188),
    "upernet_resnet_101": ((512, 2048), 1029),
}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_published_counts_of_segmenters(name: str) -> None:
    size, published = SEGMENTERS[name]
    assert count(on_meta(name), size).macs / 1e9 == pytest.approx(published, rel=0.006)


def test_published_count_of_a_larger_crop() -> None:
    assert count(on_meta("upernet_swin_base"), (640, 2560)).macs / 1e9 == pytest.approx(1841, rel=0.006)


@pytest.mark.parametrize(("head", "family"), [(head, family) for head in HEADS for family in ("swin", "vit", "resnet")])
@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
def test_product_macs_of_segmenters_are_what_torch_counts(head: str, family: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = segmenter(head, family)
        for module in model.modules():
            if isinstance(module, ConvNorm):
                module.as_published = True
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size))
    counts = count(model, size)
    assert counter.get_total_flops() == 2 * counts.product_macs
    assert counts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.macs for part in counts.parts) == counts.macs


# Millions of parameters and G MACs at 1280x800, of the Swin paper's detection repository and of mmdetection's ResNets.
DETECTORS = {
    "mask_rcnn_swin_tiny": (48, 267),
    "mask_rcnn_swin_small": (69, 359),
    "cascade_mask_rcnn_swin_tiny": (86, 745),
    "cascade_mask_rcnn_swin_small": (107, 838),
    "cascade_mask_rcnn_swin_base": (145, 982),
    "mask_rcnn_resnet_50": (44, 260),
    "cascade_mask_rcnn_resnet_50": (82, 739),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_published_counts_of_detectors(name: str) -> None:
    parameters, macs = DETECTORS[name]
    counts = count(on_meta(name), (800, 1280))
    assert round(counts.parameters / 1e6) == parameters
    assert counts.macs / 1e9 == pytest.approx(macs, rel=0.008)


def test_detr_s_published_count_is_of_larger_pictures() -> None:
    model = on_meta("detr_resnet50")
    assert count(model, (800, 1066)).macs / 1e9 == pytest.approx(81.25, abs=0.01)
    assert count(model, (800, 1128)).macs / 1e9 == pytest.approx(86, rel=0.002)


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn", "retinanet", "detr"])
@pytest.mark.parametrize("family", ["swin_micro", "resnet_18", "deit_tiny"])
def test_product_macs_of_detectors_are_what_torch_counts(head: str, family: str) -> None:
    model = on_meta(f"{head}_{family}")
    if hasattr(model.config.backbone, "window"):
        use_backend(model, "reference")
    with FlopCounterMode(display=False) as counter:
        model.head.rehearse(model.outputs(torch.empty(1, 3, 64, 96, device="meta")))
    counts = count(model, (64, 96))
    assert counter.get_total_flops() == 2 * counts.product_macs
    assert counts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.macs for part in counts.parts) == counts.macs


def test_what_runs_is_less_than_what_is_published() -> None:
    with torch.device("meta"):
        model = build("upernet_swin_tiny").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 512, 512))
    assert counter.get_total_flops() < 2 * 0.65 * count(model, 512).product_macs


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "upernet_swin_tiny",
            [
                "stage 4    16x16       768       2     24     7x7    3x3  14,183,856    4,345.8 M",
                "pooling    16x16       512                                14,554,112    3,341.7 M",
                "pyramid  128x128       512                                 7,428,096   52,165.6 M",
                "head     128x128       150                                10,441,836  155,888.5 M",
                "sum                                                       59,941,862  236,438.2 M",
            ],
        ),
        (
            "swin_unet",
            [
                "stage 4        7x7       768       2     24     7x7    0x0  14,183,856    701.2 M",
                "decoder 1    14x14       384       2     12     7x7    3x3   5,028,696    824.4 M",
                "decoder 2    28x28       192       2      6     7x7    3x3   1,260,972    839.5 M",
                "decoder 3    56x56        96       2      3     7x7    3x3     317,142    869.8 M",
                "head       224x224         9                                   150,240    510.9 M",
                "sum                                                         27,168,900  6,120.7 M",
            ],
        ),
    ],
)
def test_the_stage_table_shows_the_decoder(name: str, lines: list[str]) -> None:
    size = 512 if name.startswith("upernet") else 224
    assert stage_table(count(on_meta(name), size)).splitlines()[-len(lines) :] == lines


def test_counting_neither_runs_nor_changes_the_model(tiny: Tiny) -> None:
    model = tiny()
    model.forward = None  # type: ignore[assignment, method-assign]
    assert count(model, 16) == count(model, (16, 16))


def test_the_stage_table_is_one_to_read() -> None:
    lines = stage_table(count(on_meta("swin_tiny"), 224)).splitlines()
    assert lines == [
        "part      grid  channels  blocks  heads  window  shift  parameters       MACs",
        "patches  56x56        96                                     4,896     14.8 M",
        "stage 1  56x56        96       2      3     7x7    3x3     299,190    811.9 M",
        "stage 2  28x28       192       2      6     7x7    3x3   1,188,204    781.7 M",
        "stage 3  14x14       384       6     12     7x7    3x3  11,841,672  2,183.9 M",
        "stage 4    7x7       768       2     24     7x7    0x0  14,183,856    701.2 M",
        "head       7x7      1000                                   770,536      0.9 M",
        "sum                                                     28,288,354  4,494.4 M",
    ]
