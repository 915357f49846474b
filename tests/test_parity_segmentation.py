"""The same weights in transformers' UPerNet, backbone and both heads, give the same logits, losses and statistics."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from swindow.model import Model, build
from swindow.shapes import IGNORE

pytestmark = pytest.mark.parity

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}
VOID = 255
"""Their label of pixels that do not count."""
STAGES = ["stage1", "stage2", "stage3", "stage4"]
TINY: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}

NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^backbone\.swin\.", "backbone."),
    (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (r"^backbone\.embeddings\.norm\.", "backbone.patch_embed.norm."),
    (r"^backbone\.hidden_states_norms\.stage(\d)\.", lambda m: f"backbone.norms.{int(m[1]) - 1}."),
    (r"^backbone\.encoder\.layers\.(\d)\.downsample\.", r"backbone.stages.\1.merge."),
    (r"^backbone\.encoder\.layers\.(\d)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:relative_position_bias\.)?relative_position_bias_table$", ".attn.position_bias.table"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"^decode_head\.psp_modules\.(\d)\.1\.", r"head.pooled.\1."),
    (r"^decode_head\.lateral_convs\.", "head.laterals."),
    (r"^decode_head\.fpn_convs\.", "head.smooths."),
    (r"^decode_head\.fpn_bottleneck\.", "head.fuse."),
    (r"^decode_head\.", "head."),
    (r"^auxiliary_head\.convs\.0\.", "head.auxiliary.conv."),
    (r"^auxiliary_head\.", "head.auxiliary."),
    (r"\.batch_norm\.", ".norm."),
]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their state under our names; queries, keys and values in one, the norm that their backbone does not use left."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        ours[name] = value
    for name in [name for name in ours if ".q_proj." in name]:
        parts = [ours.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        ours[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return {name: value for name, value in ours.items() if not name.startswith("backbone.layernorm.")}


def pair(backbone: SwinConfig, *, classes: int = 5, width: int = 16, **fields: Any) -> tuple[Model, nn.Module]:
    """Ours and theirs with the same weights, drawn so that none is zero or one, norms' statistics too."""
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=width,
        num_labels=classes,
        auxiliary_in_channels=4 * backbone.embed_dim,
        auxiliary_channels=width // 2,
    )
    torch.manual_seed(0)
    theirs = UperNetForSemanticSegmentation(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            spread = 0.3 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, spread)
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    ours = build(
        "upernet_swin_tiny",
        num_classes=classes,
        dim=backbone.embed_dim,
        depths=tuple(backbone.depths),
        num_heads=tuple(backbone.num_heads),
        window=backbone.window_size,
        small_maps="pad_shift",  # what their backbones do, as opposed to their classifiers
        drop_path=0.0,
        decoder_width=width,
        auxiliary_width=width // 2,
        head_dropout=0.0,  # theirs has none
        **fields,
    )
    ours.load_state_dict(renamed(theirs.state_dict()))
    return ours.eval(), theirs.eval()


def tiny() -> tuple[Model, nn.Module]:
    return pair(SwinConfig(**TINY, image_size=64, out_features=STAGES, drop_path_rate=0.0))


# Whole windows and whole cells to pool; padded windows, odd grids and uneven cells; maps within one window.
@pytest.mark.parametrize("size", [(192, 128), (100, 76), (52, 36)], ids=str)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_logits(size: tuple[int, int], dtype: torch.dtype) -> None:
    ours, theirs = (model.to(dtype) for model in tiny())
    images = torch.randn(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        expected = theirs(images).logits
        found = ours(images)
    assert found.shape == (2, 5, *size)
    assert expected.std() > 0.1  # a comparison of noughts proves nothing
    assert (found - expected).abs().max() <= CLOSE[dtype]


def test_a_training_step() -> None:
    """The sum of both classifiers' losses, every gradient, and where the batch norms' statistics move."""
    ours, theirs = (model.double().train() for model in tiny())
    images = torch.randn(2, 3, 100, 76, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 100, 76))
    labels[:, 10:30, 5:50] = IGNORE
    losses = ours.head.loss(ours.outputs(images), labels)
    expected = theirs(images, labels=labels.where(labels != IGNORE, torch.tensor(VOID))).loss
    assert list(losses) == ["cross_entropy", "auxiliary"]
    found = torch.stack(list(losses.values())).sum()
    assert abs(found.item() - expected.item()) <= 1e-6  # losses are taken in fp32
    found.backward()
    expected.backward()
    gradients = renamed({name: x.grad for name, x in theirs.named_parameters() if x.grad is not None})
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[name]).abs().max()
        assert error <= 1e-5 * gradients[name].abs().max() + 1e-9, name
    state = renamed(theirs.state_dict())
    for name, buffer in ours.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, state[name], rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(512, 512), (300, 428)], ids=str)
def test_logits_at_full_size(size: tuple[int, int]) -> None:
    config = SwinConfig(depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=STAGES)
    ours, theirs = pair(config, classes=150, width=512)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs(images).logits
        assert expected.std() > 0.1
        assert (ours(images) - expected).abs().max() <= 1e-4
