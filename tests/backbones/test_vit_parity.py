"""ViT and DeiT with the weights of timm's, torchvision's and transformers' classes give the same numbers."""

from typing import Any

import pytest
import torch
from torch import nn

from swindow.backbones.vit import VARIANTS, ViTConfig
from swindow.checkpoints.names import VIT_HUGGINGFACE, VIT_TIMM, VIT_TORCHVISION
from vit_peers import HUGGINGFACE_RULES, assert_same, same_weights, theirs_of

pytestmark = pytest.mark.parity

TINY: dict[str, Any] = {"dim": 24, "depths": (1, 1, 1, 1), "num_heads": 3, "patch": 8, "image_size": 32}
DISTILLED: dict[str, Any] = {"distillation_token": True, "pool": "tokens"}


SIZES = [(32, 32), (64, 64), (40, 64), (8, 8), (8, 72)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("fields", "theirs"),
    [
        ({}, {}),
        ({"qkv_bias": False, "mlp_ratio": 3.0}, {"qkv_bias": False, "mlp_ratio": 3.0}),
        ({"image_size": (32, 56)}, {"img_size": (32, 56)}),
        ({"pool": "mean_norm"}, {"global_pool": "avg"}),
        ({"pool": "mean"}, {"global_pool": "avg", "fc_norm": False}),
        ({"pool": "mean_norm", "class_token": False}, {"global_pool": "avg", "class_token": False}),
        (DISTILLED, {}),
    ],
)
def test_timm_at_any_multiple_of_the_patch(fields: dict[str, Any], theirs: dict[str, Any], dtype: torch.dtype) -> None:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if fields.get("distillation_token") else VisionTransformer
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
    peer = kind(**(shape | theirs), dynamic_img_size=True)
    ours = same_weights(ViTConfig(**(TINY | fields)), peer, VIT_TIMM).to(dtype)
    for size in SIZES:
        assert_same(ours, peer.to(dtype), torch.randn(2, 3, *size, dtype=dtype))
    peer.load_state_dict(theirs_of(ours.state_dict(), VIT_TIMM), strict=True)


def test_torchvision_at_its_own_size() -> None:
    from torchvision.models import VisionTransformer

    peer = VisionTransformer(32, 8, num_layers=4, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=7)
    ours = same_weights(ViTConfig(**TINY), peer, VIT_TORCHVISION)
    assert_same(ours, peer, torch.randn(2, 3, 32, 32))
    peer.load_state_dict(theirs_of(ours.state_dict(), VIT_TORCHVISION), strict=True)


@pytest.mark.parametrize(
    ("kind", "inner", "fields"),
    [
        ("ViTForImageClassification", "vit.", {}),
        ("DeiTForImageClassification", "deit.", {"distillation_token": True}),
        ("DeiTForImageClassificationWithTeacher", "deit.", DISTILLED),
    ],
)
def test_hugging_face_at_its_own_size(kind: str, inner: str, fields: dict[str, Any], tmp_path: Any) -> None:
    """Under the names that it gives weights in files; those in memory are others since version 5."""
    transformers = pytest.importorskip("transformers")
    import safetensors.torch

    config = (transformers.ViTConfig if inner == "vit." else transformers.DeiTConfig)(
        image_size=32,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
        num_labels=7,
    )
    peer = getattr(transformers, kind)(config).eval()
    wrapped = _Logits(peer, inner)
    ours = same_weights(ViTConfig(**(TINY | fields), norm_eps=1e-12), wrapped, VIT_HUGGINGFACE, HUGGINGFACE_RULES)
    assert_same(ours, wrapped, torch.randn(2, 3, 32, 32))

    peer.save_pretrained(tmp_path)
    written = theirs_of(ours.state_dict(), VIT_HUGGINGFACE, HUGGINGFACE_RULES)
    theirs = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name.removeprefix(inner) for name in theirs} == set(written)
    assert all(torch.equal(tensor, written[name.removeprefix(inner)]) for name, tensor in theirs.items())


class _Logits(nn.Module):
    """A model of transformers that gives logits, its tensors without the prefix of its encoder."""

    def __init__(self, model: nn.Module, inner: str) -> None:
        super().__init__()
        self.model, self.inner = model, inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits

    def state_dict(self, *args: Any, **fields: Any) -> dict[str, Any]:
        return {name.removeprefix(self.inner): tensor for name, tensor in self.model.state_dict().items()}


FULL_SIZE = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_tiny_384": "vit_tiny_patch16_384",
    "vit_small": "vit_small_patch16_224",
    "vit_small_384": "vit_small_patch16_384",
    "vit_base": "vit_base_patch16_224",
    "vit_base_384": "vit_base_patch16_384",
    "vit_base_32": "vit_base_patch32_224",
    "vit_base_32_384": "vit_base_patch32_384",
    "vit_large": "vit_large_patch16_224",
    "vit_large_384": "vit_large_patch16_384",
    "vit_large_32": "vit_large_patch32_224",
    "vit_large_32_384": "vit_large_patch32_384",
    "vit_huge_14": "vit_huge_patch14_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_tiny_distilled": "deit_tiny_distilled_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_small_distilled": "deit_small_distilled_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit_base_distilled": "deit_base_distilled_patch16_224",
    "deit_base_384": "deit_base_patch16_384",
    "deit_base_distilled_384": "deit_base_distilled_patch16_384",
}


def test_every_variant_has_a_peer_but_the_one_that_nobody_offers() -> None:
    assert VARIANTS.keys() - FULL_SIZE.keys() == {"vit_huge"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_timm_at_full_size(name: str) -> None:
    import timm

    peer = timm.create_model(FULL_SIZE[name], pretrained=False, num_classes=7, dynamic_img_size=True)
    ours = same_weights(VARIANTS[name], peer, VIT_TIMM)
    native, patch = VARIANTS[name].image_size, VARIANTS[name].patch
    for size in ((native, native), (5 * patch, 8 * patch)):
        assert_same(ours, peer, torch.randn(1, 3, *size))
    if name != "vit_huge_14":  # two of it in fp64 take ten gigabytes
        assert_same(ours.double(), peer.double(), torch.randn(1, 3, 5 * patch, 8 * patch).double())
