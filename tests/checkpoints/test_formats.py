"""Everybody's weights in our models and ours in theirs: the same numbers out, every parameter to the byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from original_swin import Original, openmmlab, same
from swindow.checkpoints import convert, load, save
from swindow.checkpoints.formats import FORMATS
from swindow.errors import CheckpointError
from swindow.model import Model, build
from vit_peers import scramble

PYRAMID: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 3), "num_classes": 7}
ENCODER: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48}


class Peer(NamedTuple):
    """A tiny model of another library, and what its bare file does not tell."""

    make: Callable[[], nn.Module]
    form: str
    size: int
    fields: dict[str, Any] = {}  # noqa: RUF012 - never changed


def of_timm(name: str, **changes: Any) -> Callable[[], nn.Module]:
    import timm

    return lambda: timm.create_model(name, **changes)


def of_torchvision(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    later = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    shape = {"patch_size": [4, 4], "window_size": [4, 4], **PYRAMID, **({} if version == 1 else later)}
    return swin.SwinTransformer(**{k: list(v) if isinstance(v, tuple) else v for k, v in shape.items()})


def vit_of_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, 4, 3, 24, 48, num_classes=7)


def of_transformers(kind: str, **changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        model = {
            "Swin": "SwinForImageClassification",
            "Swinv2": "Swinv2ForImageClassification",
            "ViT": "ViTForImageClassification",
            "DeiT": "DeiTForImageClassificationWithTeacher",
        }[kind]
        config = getattr(transformers, f"{kind}Config")(num_labels=7, image_size=64, **changes)
        return getattr(transformers, model)(config)

    return make


WINDOWED: dict[str, Any] = {
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 12,
    "depths": [2, 2, 2],
    "num_heads": [1, 2, 3],
}
PEERS = {
    "timm swin": Peer(of_timm("swin_tiny_patch4_window7_224", img_size=112, **PYRAMID), "timm", 112),
    "timm s3": Peer(
        of_timm("swin_s3_tiny_224", img_size=112, window_size=(4, 7, 14), **PYRAMID), "timm", 112, {"image_size": 112}
    ),
    "timm swin_v2": Peer(of_timm("swinv2_tiny_window8_256", img_size=128, **PYRAMID), "timm", 128, {"image_size": 128}),
    "timm swin_v2 12to16": Peer(
        of_timm(
            "swinv2_base_window12to16_192to256", img_size=128, **PYRAMID | {"pretrained_window_sizes": (12, 12, 6)}
        ),
        "timm",
        128,
        {"window": 16, "image_size": 128, "pretrained_window": (12, 12, 6)},
    ),
    "timm vit": Peer(of_timm("vit_tiny_patch16_224", depth=4, num_classes=7, img_size=64), "timm", 64),
    "timm vit, mean": Peer(
        of_timm("vit_tiny_patch16_224", depth=4, num_classes=7, img_size=64, global_pool="avg"), "timm", 64
    ),
    "timm deit": Peer(of_timm("deit_tiny_patch16_224", depth=3, num_classes=7, img_size=64), "timm", 64),
    "timm deit, distilled": Peer(
        of_timm("deit_tiny_distilled_patch16_224", depth=4, num_classes=7, img_size=64), "timm", 64
    ),
    "timm hybrid": Peer(of_timm("vit_small_r26_s32_224", depth=4, num_classes=7, img_size=64), "timm", 64),
    "torchvision swin": Peer(lambda: of_torchvision(1), "torchvision", 64),
    "torchvision swin_v2": Peer(lambda: of_torchvision(2), "torchvision", 64, {"image_size": 64}),
    "torchvision vit": Peer(vit_of_torchvision, "torchvision", 64, {"num_heads": 3}),
    "transformers swin": Peer(of_transformers("Swin", **WINDOWED), "huggingface", 64),
    "transformers swin, absolute": Peer(
        of_transformers("Swin", use_absolute_embeddings=True, qkv_bias=False, **WINDOWED), "huggingface", 64
    ),
    "transformers swin_v2": Peer(
        of_transformers("Swinv2", pretrained_window_sizes=[3, 3, 2], **WINDOWED), "huggingface", 64
    ),
    "transformers vit": Peer(of_transformers("ViT", patch_size=16, **ENCODER), "huggingface", 64),
    "transformers deit": Peer(of_transformers("DeiT", patch_size=16, **ENCODER), "huggingface", 64),
}


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(images)
    return getattr(out, "logits", out)


def written(model: nn.Module, folder: Path) -> Path:
    """The file or folder that its own library would leave."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / "saved")
        return folder / "saved"
    torch.save(model.state_dict(), folder / "saved.pth")
    return folder / "saved.pth"


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    torch.manual_seed(0)
    return PEERS[request.param]


@pytest.fixture
def theirs(peer: Peer) -> nn.Module:
    model = peer.make()
    scramble(model)
    return model.eval()


def quietly(path: Path, **fields: Any) -> tuple[Model, str]:
    said: list[str] = []
    return load(path, say=said.append, **fields), said[0]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_their_weights_give_their_logits(
    peer: Peer, theirs: nn.Module, dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    model, report = quietly(written(theirs, tmp_path), **peer.fields)
    assert f"{peer.form} format" in report
    images = torch.randn(2, 3, peer.size, peer.size, dtype=dtype)
    expected = logits_of(theirs.to(dtype), images)
    assert (expected - expected[:, :1]).abs().max() > 0.1  # a comparison of noughts proves nothing
    found = logits_of(model.to(dtype), images)
    assert (found - expected).abs().max() <= close * expected.abs().max().clamp(min=1)


def test_our_weights_load_strictly_in_their_class_and_come_back(peer: Peer, theirs: nn.Module, tmp_path: Path) -> None:
    model, _ = quietly(written(theirs, tmp_path), **peer.fields)
    scramble(model)
    own = save(model, tmp_path / "own.safetensors")
    target = tmp_path / ("out" if peer.form == "huggingface" else "out.safetensors")
    convert(own, target, to=peer.form)
    if peer.form == "huggingface":
        again = type(theirs).from_pretrained(target).eval()
    else:
        again = peer.make().eval()
        again.load_state_dict(safetensors.torch.load_file(target), strict=True)
    images = torch.randn(2, 3, peer.size, peer.size)
    expected = logits_of(model, images)
    assert (logits_of(again, images) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    back = load(target)
    assert back.config.backbone == model.config.backbone
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in back.state_dict().items())


# -- classes that are no dependency ------------------------------------------------------------------------------------

TINY: dict[str, Any] = {"dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 3), "num_classes": 7, "image_size": 64}
ORIGINALS = {
    "microsoft": ({}, {}),
    "microsoft_simmim": ({}, {}),
    "microsoft_dense": ({"small_maps": "pad_shift"}, {"shift_small": True}),
    "openmmlab": ({"small_maps": "pad_shift"}, {"shift_small": True, "names": openmmlab, "unfold": True}),
}


def bare(form: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without what stands before its names, the last norm under the classifier's name."""
    prefix = next(entry.prefix for entry in FORMATS if entry.name == form)
    return {name.removeprefix(prefix).replace("norm2.weight", "norm2.weight"): x for name, x in tensors.items()}


@pytest.mark.parametrize("form", ORIGINALS)
@pytest.mark.parametrize("version", ["swin_tiny", "swin_v2_tiny_w8"])
@pytest.mark.parametrize("size", [(64, 64), (60, 36), (8, 52)])
def test_published_names_and_equations_give_our_maps(
    form: str, version: str, size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fields, options = ORIGINALS[form]
    model = build(version, **TINY | {"window": 4, "small_maps": "pad"} | fields).eval()
    scramble(model)
    path = save(model, tmp_path / "own")
    target = convert(path, tmp_path / "theirs.pth", to=form)
    content = torch.load(target, weights_only=True)
    (entry,) = content
    assert entry == next(entry.entry for entry in FORMATS if entry.name == form)
    oracle = Original(
        bare(form, content[entry]),
        depths=(2, 2, 2),
        heads=(1, 2, 3),
        windows=(4, 4, 4),
        names=options.get("names", same),
        unfold=options.get("unfold", False),
        shift_small=options.get("shift_small", False),
    )
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    ours = model.double()
    with torch.no_grad():
        for found, expected in zip(ours.backbone.stage_maps(images), oracle.maps(images), strict=True):
            assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)
        if form == "microsoft":
            expected = oracle.logits(images)
            assert (ours(images) - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


def test_windows_that_shrink_are_the_original_s(tmp_path: Path) -> None:
    """At its image size a stage's window is its map, if that is smaller, and unshifted (the original's rule)."""
    torch.manual_seed(0)
    shape = TINY | {"depths": (2, 2, 2), "window": 7, "image_size": 48, "small_maps": "shrink"}
    model = build("swin_tiny", **shape).eval().double()
    scramble(model)
    assert model.config.backbone.windows == ((7, 7), (6, 6), (3, 3))
    target = convert(save(model.float(), tmp_path / "own"), tmp_path / "theirs.pth", to="microsoft")
    state = torch.load(target, weights_only=True)["model"]
    assert sorted(name for name in state if "attn_mask" in name) == ["layers.0.blocks.1.attn_mask"]
    oracle = Original(state, depths=(2, 2, 2), heads=(1, 2, 3), windows=(7, 6, 3))
    images = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = oracle.logits(images)
        assert (model.double()(images) - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.filterwarnings("ignore::swindow.checkpoints.AssumedWarning")
@pytest.mark.parametrize("form", sorted({entry.name for entry in FORMATS if "classifier" in entry.heads}))
def test_there_and_back_is_the_identity_to_the_byte(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kinds = {kind for entry in FORMATS if entry.name == form and "classifier" in entry.heads for kind in entry.kinds}
    names = {"swin": "swin_tiny", "swin_v2": "swin_v2_tiny_w8", "vit": "deit_tiny_distilled", "hybrid": None}
    names["swin_mlp"] = "swin_mlp_tiny_c24"
    for kind in sorted(kinds):
        if names[kind] is None:
            continue  # needs its trunk: among the peers above
        small = TINY | {"window": 4} if kind.startswith("swin") else {"dim": 24, "num_classes": 7, "image_size": 32}
        model = build(names[kind], **small)
        scramble(model)
        own = save(model, tmp_path / kind)
        if form == "torchvision" and kind == "vit":
            with pytest.raises(CheckpointError, match=r"no place for backbone\.distillation_token"):
                convert(own, tmp_path / f"{kind}.pth", to=form)
            continue
        there = convert(own, tmp_path / f"{kind}.pth", to=form)
        said = {"window": 4, "image_size": 64} if kind.startswith("swin") else {}
        said |= {"pretrained_window": 0} if kind == "swin_v2" else {}
        back, _ = quietly(there, **said)
        state = back.state_dict()
        headless = form in ("microsoft_dense", "microsoft_simmim")
        for name, x in model.state_dict().items():
            if not (headless and name.startswith("head.")):
                assert torch.equal(state[name], x), name
