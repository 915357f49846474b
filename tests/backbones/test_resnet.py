"""Norms that never change and stages that do not learn, as detectors have them."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import swindow
from swindow.backbones.resnet import FrozenNorm, ResNetConfig
from swindow.errors import ConfigError
from swindow.optimizing import optimize
from tiny_segmenters import stirred

TINY = {"depths": (1, 1), "width": 8, "block": "basic"}


def test_a_frozen_norm_is_torchvision_s():
    ours, theirs = FrozenNorm(6), FrozenBatchNorm2d(6)
    state = {name: torch.rand(6) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), state)
    assert not list(ours.parameters())


def test_a_frozen_backbone_is_one_with_batch_norms_in_eval_mode():
    batch = stirred(swindow.build("resnet_18", num_classes=3, **TINY)).eval()
    frozen = swindow.build("resnet_18", num_classes=3, **TINY, norm="frozen").train()
    frozen.load_state_dict({k: v for k, v in batch.state_dict().items() if "num_batches" not in k})
    x = torch.randn(2, 3, 32, 40)
    torch.testing.assert_close(frozen(x), batch(x))


@pytest.mark.parametrize(("stages", "learning"), [(0, {"patch_embed", "stages.0", "stages.1"}), (1, {"stages.1"})])
def test_stages_that_do_not_learn(stages, learning):
    body = swindow.backbone("resnet_18", **TINY, frozen_stages=stages).body
    found = {
        ".".join(name.split(".")[: 1 + name.startswith("stages")])
        for name, p in body.named_parameters()
        if p.requires_grad
    }
    assert found == learning


def test_published_counts_of_the_backbone_of_detr():
    with torch.device("meta"):
        body = swindow.backbone("resnet_50", norm="frozen", frozen_stages=1).body
    assert sum(p.numel() for p in body.parameters()) == 23_454_912  # 25,557,032 without norms and classifier
    assert sum(p.numel() for p in body.parameters() if not p.requires_grad) == 222_400


def test_more_frozen_stages_than_there_are():
    with pytest.raises(ConfigError, match="frozen_stages is 3; there are 2 stages"):
        ResNetConfig(depths=(1, 1), frozen_stages=3)


@pytest.mark.parametrize("eps", [1e-5, 0.0, 0.1])
def test_optimize_folds_frozen_norms(eps):
    model = swindow.build("resnet_18", num_classes=3, **TINY, norm="frozen", norm_eps=eps).eval()
    for module in model.modules():
        if isinstance(module, FrozenNorm):
            module.load_state_dict({name: torch.rand_like(buffer) + 0.5 for name, buffer in module.named_buffers()})
    x = torch.randn(1, 3, 32, 32)
    fast = optimize(model, size=32)
    torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, (FrozenNorm, nn.BatchNorm2d)) for module in fast.modules())
