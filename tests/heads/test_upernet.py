"""UPerNet's decoder, unit by unit; `tests/test_parity_segmentation.py` compares the whole with transformers'."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swindow
from swindow.errors import ConfigError, ShapeError
from swindow.heads.segment import SegmenterOutputs
from swindow.heads.upernet import ConvNorm, UperNet, UperNetConfig
from swindow.shapes import IGNORE
from tiny_segmenters import segmenter, stirred


def head(**fields: Any) -> UperNet:
    shape = {"num_classes": 3, "decoder_width": 6, "auxiliary_width": 4, "pools": (1, 2)}
    return UperNetConfig(**(shape | fields)).build((4, 8), (4, 8)).eval()


def pyramid(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 6, 8, 4), torch.randn(batch, 3, 4, 8)


def test_state_dict_keys() -> None:
    unit = ("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    units = ("pooled.0", "pooled.1", "bottleneck", "laterals.0", "smooths.0", "fuse")
    expected = [f"{name}.{part}" for name in units for part in (*unit, "norm.num_batches_tracked")]
    expected += ["classifier.weight", "classifier.bias"]
    expected += [f"auxiliary.conv.{part}" for part in (*unit, "norm.num_batches_tracked")]
    expected += ["auxiliary.classifier.weight", "auxiliary.classifier.bias"]
    assert list(head().state_dict()) == expected
    assert not [name for name in head(auxiliary=0.0).state_dict() if name.startswith("auxiliary")]


def test_a_unit_is_a_convolution_a_norm_and_a_relu() -> None:
    for norm in ("batch", "group"):
        unit = ConvNorm(4, 6, 3, norm).eval()  # type: ignore[arg-type]  # one of the two
        nn.init.normal_(unit.norm.weight)  # type: ignore[arg-type]
        x, small = torch.randn(2, 3, 5, 7), torch.randn(2, 1, 2, 3)
        wide = torch.cat([x, F.interpolate(small, (5, 7), mode="bilinear")], dim=1)
        expected = F.relu(unit.norm(F.conv2d(wide, unit.conv.weight, padding=1)))
        torch.testing.assert_close(unit(x, small), expected, rtol=1e-4, atol=1e-5)
        unit.as_published = True
        torch.testing.assert_close(unit(x, small), expected, rtol=1e-5, atol=1e-6)
        assert (expected == 0).any()


def test_the_whole_of_it_by_hand() -> None:
    """Pooled context, laterals, sums from the top down, smoothing, fusing, classes (sections 3.1 and 3.2)."""
    upernet, (fine, coarse) = stirred(head()), (x.permute(0, 3, 1, 2) for x in pyramid())  # type: ignore[arg-type]
    with torch.no_grad():
        found = upernet((fine.permute(0, 2, 3, 1), coarse.permute(0, 2, 3, 1)))
        pooled = [unit(F.adaptive_avg_pool2d(coarse, side)) for side, unit in zip((1, 2), upernet.pooled, strict=True)]
        pooled = [F.interpolate(x, (3, 4), mode="bilinear") for x in pooled]
        top = upernet.bottleneck(torch.cat([coarse, *pooled], dim=1))
        up = F.interpolate(top, (6, 8), mode="bilinear")
        smooth = upernet.smooths[0](upernet.laterals[0](fine) + up)
        logits = upernet.classifier(upernet.fuse(torch.cat([smooth, up], dim=1)))
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    assert found.auxiliary is None


def test_the_auxiliary_classifier_learns_on_the_map_before_the_last_and_answers_nothing() -> None:
    upernet, maps = stirred(head(head_dropout=0.0)).train(), pyramid()  # type: ignore[arg-type]
    outputs = upernet(maps)
    early = upernet.auxiliary.classifier(upernet.auxiliary.conv(maps[0].permute(0, 3, 1, 2)))  # type: ignore[union-attr]
    torch.testing.assert_close(outputs.auxiliary, early)
    labels = torch.randint(0, 3, (2, 24, 32))
    losses = upernet.loss(outputs, labels)
    assert list(losses) == ["cross_entropy", "auxiliary"]
    for name, logits, weight in (("cross_entropy", outputs.logits, 1.0), ("auxiliary", early, 0.4)):
        whole = F.interpolate(logits, (24, 32), mode="bilinear")
        torch.testing.assert_close(losses[name], weight * F.cross_entropy(whole, labels))
    alone = outputs._replace(auxiliary=None)
    torch.testing.assert_close(upernet.decode(outputs, (24, 32)), upernet.decode(alone, (24, 32)))


def test_a_batch_without_labels_costs_nothing() -> None:
    upernet = head(dice=0.5, lovasz=0.5, focal=0.5).train()
    losses = upernet.loss(upernet(pyramid()), torch.full((2, 24, 32), IGNORE))
    assert all(loss.item() == 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all((parameter.grad == 0).all() for parameter in upernet.parameters())


def test_logits_are_enlarged_bilinearly_to_the_image() -> None:
    logits = torch.randn(1, 3, 4, 5)
    found = head().decode(SegmenterOutputs(logits), (15, 20))
    torch.testing.assert_close(found, F.interpolate(logits, (15, 20), mode="bilinear"))


def test_batch_norm_over_a_single_value_is_refused() -> None:
    with pytest.raises(ShapeError, match="one image in a batch, pooled to one cell; give a batch of 2 or more"):
        head().train()(pyramid(1))
    head(pools=(2,)).train()(pyramid(1))


@pytest.mark.parametrize(("width", "groups"), [(512, 32), (64, 32), (48, 24), (10, 5), (7, 1), (2, 1)])
def test_groups_have_two_channels_or_more_and_divide_them(width: int, groups: int) -> None:
    upernet = head(decoder_norm="group", decoder_width=width)
    assert upernet.fuse.norm.num_groups == groups
    assert torch.isfinite(upernet.train()(pyramid(1)).logits).all()


def test_dropout_drops_whole_channels_in_training_only() -> None:
    upernet = head(head_dropout=0.5)
    maps = pyramid()
    assert torch.equal(upernet(maps).logits, upernet(maps).logits)
    seen: list[Tensor] = []
    upernet.train().classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    upernet(maps)
    whole = (seen[0] == 0).flatten(2).all(-1)
    assert whole.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_width": 0}, "decoder_width 0, auxiliary_width 256 and every entry of pools .* must be at least 1"),
        ({"pools": (1, 0)}, r"every entry of pools \(1, 0\) must be at least 1"),
        ({"head_dropout": 1.0}, r"head_dropout 1.0 must lie in \[0, 1\)"),
        ({"auxiliary": -0.1}, "auxiliary -0.1 not be below 0"),
    ],
)
def test_decoders_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UperNetConfig(**fields)


def test_fields_of_head_and_backbone_do_not_share_names() -> None:
    """`build` and `swindow train --fields` give a field to whoever has it."""
    model = swindow.build("upernet_resnet_18", width=8, decoder_width=16, depths=(1, 1), num_classes=2)
    assert (model.config.backbone.width, model.config.head.decoder_width) == (8, 16)
    for name in ("upernet_swin_tiny", "upernet_resnet_18", "upernet_vit_tiny", "unet_swin_tiny", "unet_resnet_18"):
        config = swindow.model.model_config(name)
        assert not set(vars(config.backbone)) & set(vars(config.head))


def test_units_start_as_published() -> None:
    model = segmenter("upernet", num_classes=150)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (model.head.classifier.bias == 0).all()
