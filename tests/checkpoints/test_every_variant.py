"""At full size: every variant that timm, torchvision and transformers offer, in ours, and ours in theirs."""

import gc
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from swindow.checkpoints.containers import Container
from swindow.checkpoints.facts import Facts, facts_of
from swindow.checkpoints.fitting import fit
from swindow.checkpoints.formats import format_named
from swindow.checkpoints.hub import NAMED
from swindow.checkpoints.loading import _theirs
from swindow.model import Model
from vit_peers import scramble

pytestmark = [pytest.mark.parity, pytest.mark.slow]

TORCHVISION = [f"swin_{size}" for size in "tsb"] + [f"swin_v2_{size}" for size in "tsb"]
TORCHVISION += ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"]
TRANSFORMERS = [("Swin", 7, 224), ("Swin", 12, 384), ("Swinv2", 8, 256), ("Swinv2", 16, 256)]


def timm_names() -> list[str]:
    """Every architecture that weights are published for, `swinv2_cr_*` aside, which is another network."""
    return sorted({entry.source.split("/")[1].split(".")[0] for entry in NAMED.values() if entry.format == "timm"})


def ours_of(state: dict[str, torch.Tensor], name: str, config: dict[str, Any] | None, **fields: Any) -> Model:
    container = Container(path=Path(name), tensors=state, config=config)
    opened = _theirs(container, fields, facts_of(config, None) if config else Facts())
    model = opened.card.model.build()
    fitted, _ = fit(opened.weights, model.state_dict(), opened.card.model.backbone, name=name)
    model.load_state_dict(fitted)
    return model.eval()


@torch.no_grad()
def compare(theirs: nn.Module, size: int, name: str, form: str, config: dict[str, Any] | None, **fields: Any) -> None:
    """Same logits and, where they have stages, the same maps; and back: the same state dict to the byte."""
    scramble(theirs.eval())
    state = theirs.state_dict()
    model = ours_of(state, name, config, **fields)
    images = torch.randn(1, 3, size, size)
    maps: list[torch.Tensor] = []
    stages = list(theirs.layers) if hasattr(theirs, "layers") and form == "timm" else []
    hooks = [stage.register_forward_hook(lambda _, __, out: maps.append(out)) for stage in stages]
    expected = theirs(images)
    found = model(images)
    assert (expected - expected[:, :1]).abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    for mine, other in zip(model.backbone.stage_maps(images) if maps else [], maps, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1)
    for hook in hooks:
        hook.remove()
    back = format_named(form, model.config.backbone.kind).write(model.state_dict(), model.config.backbone)
    assert set(back) == set(state)
    skip = ("qkv.bias",) if form == "torchvision" and "v2" in name else ()  # its keys' bias is never used
    assert [key for key in state if not key.endswith(skip or ("\0",)) and not torch.equal(back[key], state[key])] == []
    theirs.load_state_dict(back, strict=True)
    assert (theirs(images) - found).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", timm_names())
def test_timm(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False)
    about = theirs.pretrained_cfg
    heads = {"num_heads": theirs.blocks[0].attn.num_heads} if hasattr(theirs, "blocks") else {}
    config = {"architecture": name, "pretrained_cfg": {"input_size": about["input_size"]}}
    compare(theirs, about["input_size"][1], name, "timm", config, **heads)
    gc.collect()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    size = 256 if "v2" in name else 224
    fields: dict[str, Any] = {"window": 8, "image_size": 256} if "v2" in name else {}
    compare(get_model(name, weights=None), size, name, "torchvision", None, **fields)
    gc.collect()


@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (2, 2, 18, 2)])
@pytest.mark.parametrize(("kind", "window", "size"), TRANSFORMERS)
def test_transformers(kind: str, window: int, size: int, depths: tuple[int, ...]) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        image_size=size, window_size=window, depths=list(depths), num_labels=10, embed_dim=96, num_heads=[3, 6, 12, 24]
    )
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    scramble(theirs)
    model = ours_of(theirs.state_dict(), kind, config.to_dict())
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        out = theirs(images, output_hidden_states=True)
        found = model(images)
        assert (out.logits - out.logits[:, :1]).abs().max() > 0.1
        assert (found - out.logits).abs().max() <= 1e-5 * out.logits.abs().max().clamp(min=1)
    gc.collect()
