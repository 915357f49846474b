"""At full size: every variant that timm, torchvision and transformers offer, in ours, and ours in theirs."""

import gc
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from swindow.checkpoints.containers import Container
from swindow.checkpoints.converting import save_as
from swindow.checkpoints.facts import Facts, facts_of
from swindow.checkpoints.fitting import fit
from swindow.checkpoints.formats import format_named
from swindow.checkpoints.hub import NAMED
from swindow.checkpoints.loading import _theirs
from swindow.model import Model
from vit_peers import assert_close, scramble

pytestmark = [pytest.mark.parity, pytest.mark.slow]

TORCHVISION = [f"swin_{size}" for size in "tsb"] + [f"swin_v2_{size}" for size in "tsb"]
TORCHVISION += ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"]
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
}
TRANSFORMERS = [("Swin", shape, 7, 224) for shape in SHAPES] + [("Swin", shape, 12, 384) for shape in ("base", "large")]
TRANSFORMERS += [("Swinv2", shape, window, 256) for shape in ("tiny", "small", "base") for window in (8, 16)]


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
def compare(theirs: nn.Module, model: Model, size: int) -> None:
    """Same logits and, of pyramids, the same maps before they are merged; in fp32 and, of pyramids, in fp64."""
    stages = stages_of(theirs)
    for dtype, close in [(torch.float32, 1e-5), (torch.float64, 1e-10)][: 2 if stages else 1]:
        theirs, model = theirs.to(dtype), model.to(dtype)
        images, maps = torch.randn(1, 3, size, size, dtype=dtype), list[torch.Tensor]()
        hooks = [stage.register_forward_hook(lambda _, __, out, maps=maps: maps.append(first(out))) for stage in stages]
        out = theirs(images)
        expected = getattr(out, "logits", out)
        assert (expected - expected[:, :1]).abs().max() > 0.1
        assert_close(model(images), expected, close)
        for found, other in zip(model.backbone.stage_maps(images) if stages else [], maps, strict=True):
            assert_close(found.flatten(1, 2), other.flatten(1, -2), close)
        for hook in hooks:
            hook.remove()


def stages_of(theirs: nn.Module) -> list[nn.Module]:
    """The parts of a pyramid whose outputs are its maps; nothing for a ViT."""
    if hasattr(theirs, "layers"):
        return list(theirs.layers)
    if hasattr(theirs, "features"):
        return list(theirs.features[1::2])
    body = getattr(theirs, "swin", getattr(theirs, "swinv2", None))
    return [] if body is None else [stage.blocks[-1] for stage in body.encoder.layers]


def first(out: Any) -> torch.Tensor:
    """What a part puts out, alone or before other things."""
    return out[0] if isinstance(out, tuple) else out


def there_and_back(theirs: nn.Module, model: Model, form: str) -> None:
    """Our weights are their state dict to the byte, and load strictly."""
    state, config = theirs.state_dict(), model.config.backbone
    back = format_named(form, config.kind).write(model.state_dict(), config)
    unused = ("qkv.bias",) if form == "torchvision" and config.kind == "swin_v2" else ()  # its keys' third
    assert set(back) == set(state)
    assert [key for key in state if not (key.endswith(unused) or torch.equal(back[key], state[key]))] == []
    theirs.load_state_dict(back, strict=True)


@pytest.mark.parametrize("name", timm_names())
def test_timm(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False)
    about = theirs.pretrained_cfg
    heads = {"num_heads": theirs.blocks[0].attn.num_heads} if hasattr(theirs, "blocks") else {}
    config = {"architecture": name, "pretrained_cfg": {"input_size": about["input_size"]}}
    scramble(theirs.eval())
    model = ours_of(theirs.state_dict(), name, config, **heads)
    there_and_back(theirs, model, "timm")
    compare(theirs, model, about["input_size"][1])
    gc.collect()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    size = 256 if "v2" in name else 224
    fields: dict[str, Any] = {"window": 8, "image_size": 256} if "v2" in name else {}
    theirs = get_model(name, weights=None).eval()
    scramble(theirs)
    model = ours_of(theirs.state_dict(), name, None, **fields)
    there_and_back(theirs, model, "torchvision")
    compare(theirs, model, size)
    gc.collect()


@pytest.mark.parametrize(("kind", "shape", "window", "size"), TRANSFORMERS)
def test_transformers(kind: str, shape: str, window: int, size: int, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(image_size=size, window_size=window, num_labels=10, **SHAPES[shape])
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    scramble(theirs)
    model = ours_of(theirs.state_dict(), kind, config.to_dict())
    compare(theirs, model, size)
    save_as(model.float(), tmp_path / "back", "huggingface")
    again = type(theirs).from_pretrained(tmp_path / "back").eval()
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in theirs.float().state_dict().items())
    gc.collect()
