"""SimMIM's head: its loss against sums in a loop, its models against transformers', and nothing hidden leaks."""

import math

import pytest
import torch
from torch import Tensor, nn

from swindow.checkpoints.formats import recognise
from swindow.checkpoints.rules import restaged
from swindow.errors import ConfigError, ShapeError
from swindow.heads import Covered, SimMimConfig, SimMimOutputs
from swindow.heads.simmim import local_statistics
from swindow.model import MODELS, Model, build, model_config, models
from vit_peers import scramble

WINDOWS = {"dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "patch": 4, "image_size": 32}
ENCODER = {"dim": 12, "depths": (1, 1), "num_heads": 2, "patch": 4, "image_size": 32}
FAMILIES = {
    "simmim_swin_tiny": WINDOWS,
    "simmim_swin_v2_tiny_w8": WINDOWS,
    "simmim_vit_tiny": ENCODER,
    "simmim_deit_tiny_distilled": ENCODER,
}


def painter(name: str = "simmim_swin_tiny", **fields: object) -> Model:
    torch.manual_seed(0)
    return build(name, **({"mask_patch": 8, "drop_path": 0.0} | FAMILIES[name] | fields))


def some_cells(count: int, rows: int, columns: int) -> Tensor:
    cells = torch.rand(count, rows, columns) < 0.5
    cells[:, 0, 0], cells[:, 0, 1] = True, False
    return cells


# -- the loss ----------------------------------------------------------------------------------------------------------


def normed_by_hand(image: Tensor, side: int) -> Tensor:
    """Each pixel less the mean of the square around it, by its deviation, in loops."""
    channels, height, width = image.shape
    found = torch.empty_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                top, left = max(y - side // 2, 0), max(x - side // 2, 0)
                square = image[c, top : y + side // 2 + 1, left : x + side // 2 + 1]
                found[c, y, x] = (image[c, y, x] - square.mean()) / math.sqrt(square.var() + 1e-6)
    return found


@pytest.mark.parametrize("side", [0, 5])
def test_the_loss_is_the_published_sum_pixel_by_pixel(side: int) -> None:
    torch.manual_seed(1)
    head = painter(norm_target=side).double().head
    images, painting = torch.randn(2, 3, 16, 24).double(), torch.randn(2, 3, 16, 24).double()
    cells = some_cells(2, 2, 3)
    total, count = 0.0, 0
    for b in range(2):
        wanted = normed_by_hand(images[b], side) if side else images[b]
        for y in range(16):
            for x in range(24):
                if cells[b, y // 8, x // 8]:
                    count += 1
                    total += sum(abs(float(wanted[c, y, x] - painting[b, c, y, x])) for c in range(3))
    expected = total / (count + 1e-5) / 3
    losses = head.loss(SimMimOutputs(painting), Covered(images, cells))
    assert list(losses) == ["l1"]
    assert float(losses["l1"]) == pytest.approx(expected, rel=1e-12)


def test_errors_are_those_of_each_image_and_of_a_flat_painting() -> None:
    head = painter().double().head
    images, painting = torch.randn(2, 3, 16, 16).double(), torch.randn(2, 3, 16, 16).double()
    cells = some_cells(2, 2, 2)
    error, flat, squares = head.errors(SimMimOutputs(painting), Covered(images, cells))
    mask = head.pixels(cells)
    for b in range(2):
        hidden, seen = images[b][:, mask[b]], images[b][:, ~mask[b]]
        assert torch.allclose(error[b], (hidden - painting[b][:, mask[b]]).abs().mean())
        assert torch.allclose(flat[b], (hidden - seen.mean(1, keepdim=True)).abs().mean())
        assert torch.allclose(squares[b], (hidden - painting[b][:, mask[b]]).square().mean(1))
    right, counted = head.right(SimMimOutputs(painting), Covered(images, cells))
    assert torch.allclose(right / counted, 1 - error.sum() / flat.sum())
    perfect, all_of_it = head.right(SimMimOutputs(images), Covered(images, cells))
    assert perfect == all_of_it


def test_a_painting_of_normed_pixels_comes_back_as_an_image() -> None:
    head, images = painter(norm_target=5).head, torch.randn(1, 3, 16, 16)
    mean, deviation = local_statistics(images, 5)
    back = head.as_images(SimMimOutputs((images - mean) / deviation), images)
    assert torch.allclose(back, images, atol=1e-5)


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_hidden_cannot_be_seen(name: str) -> None:
    """Other pixels under the mask, infinite ones too, change not one bit of the painting; seen ones do."""
    model = painter(name).eval()
    images, cells = torch.randn(2, 3, 32, 32), some_cells(2, 4, 4)
    hidden = model.head.pixels(cells)[:, None]
    with torch.no_grad():
        painting = model(images, hidden=cells)
        others = torch.where(hidden, torch.full_like(images, torch.inf), images)
        assert torch.equal(model(others, hidden=cells), painting)
        assert not torch.equal(model(torch.where(hidden, images, images + 1), hidden=cells), painting)
    images.requires_grad_()
    model(images, hidden=cells).square().sum().backward()
    assert not (images.grad * hidden).any()
    assert (images.grad * ~hidden).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_learns_and_the_backbone_is_an_ordinary_one(name: str) -> None:
    model = painter(name).train()
    images, cells = torch.randn(2, 3, 32, 32), some_cells(2, 4, 4)
    sum(model.head.loss(model.outputs(images, hidden=cells), Covered(images, cells)).values()).backward()
    assert [n for n, parameter in model.named_parameters() if parameter.grad is None] == []
    ordinary = build(name.removeprefix("simmim_"), num_classes=5, **FAMILIES[name])
    assert ordinary.backbone.state_dict().keys() == model.backbone.state_dict().keys()


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 56)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_painting_has_the_size_of_the_image(name: str, size: tuple[int, int]) -> None:
    model = painter(name).eval()
    cells = some_cells(1, size[0] // 8, size[1] // 8)
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size), hidden=cells).shape == (1, 3, *size)
        assert model(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_every_swin_and_vit_has_a_painter_and_no_other() -> None:
    from swindow.backbones import VARIANTS

    painters = {name.removeprefix("simmim_") for name in models("simmim_*")}
    assert painters == {name for name, variant in VARIANTS.items() if variant.kind in ("swin", "swin_v2", "vit")}
    for name in painters:
        patch, side = VARIANTS[name].patch, MODELS[f"simmim_{name}"].head.mask_patch
        assert side % patch == 0
        assert 28 <= side <= 32, name
    with pytest.raises(ConfigError, match="a resnet cannot be pretrained by hiding patches, only swin, swin_v2, vit"):
        build("simmim_resnet_50")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_patch": 6}, "mask_patch 6 is no multiple of the model's patch 4"),
        ({"mask_ratio": 1.0}, r"mask_ratio is 1.0; a share that leaves something to see lies in \(0, 1\)"),
        ({"norm_target": 4}, "norm_target is 4; give an odd side"),
        ({"num_classes": 3}, "it has no classes; leave num_classes out"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        painter(**fields)


def test_channels_are_the_images_own() -> None:
    config = model_config("simmim_swin_tiny", in_channels=2)
    assert isinstance(config.head, SimMimConfig)
    assert config.head.in_channels == 2
    assert painter(in_channels=1).eval()(torch.randn(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_cells_of_another_number_are_refused() -> None:
    model = painter()
    with pytest.raises(ShapeError, match="images, rows and columns must be as many"):
        model(torch.randn(1, 3, 32, 32), hidden=some_cells(1, 3, 4))
    images = torch.randn(1, 3, 32, 32)
    outputs, covered = model.outputs(images), Covered(images, some_cells(1, 3, 4))
    with pytest.raises(ShapeError, match="a row and a column of cells for every 8 pixels"):
        model.head.loss(outputs, covered)
    with pytest.raises(ConfigError, match="hidden is for models that are pretrained, and swin_tiny is to classify"):
        build("swin_tiny", **WINDOWS)(torch.randn(1, 3, 32, 32), hidden=some_cells(1, 4, 4))


# -- transformers' classes ---------------------------------------------------------------------------------------------


def peer_of(name: str) -> nn.Module:
    import transformers

    pyramid = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2]}
    pyramid |= {"window_size": 4, "encoder_stride": 8, "drop_path_rate": 0.0}
    if name == "simmim_vit_tiny":
        config = transformers.ViTConfig(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
            patch_size=4, encoder_stride=4, hidden_dropout_prob=0.0,
        )  # fmt: skip
        return transformers.ViTForMaskedImageModeling(config)
    if name == "simmim_swin_tiny":
        return transformers.SwinForMaskedImageModeling(transformers.SwinConfig(**pyramid))
    return transformers.Swinv2ForMaskedImageModeling(transformers.Swinv2Config(**pyramid))


def same_weights(ours: Model, theirs: nn.Module) -> None:
    """Give `ours` the weights of `theirs`, all of them."""
    scramble(theirs)
    state = theirs.state_dict()
    form = recognise(state)
    assert form is not None
    reading = form.read(state)
    assert reading.unknown == ()
    (token,) = (x for name, x in state.items() if name.endswith("mask_token"))
    own = dict(reading.state)
    if ours.config.backbone.kind == "vit":
        own = restaged(own, ours.config.backbone.depths)
    own |= {"head.mask_token": token.flatten(), "head.decoder.weight": state["decoder.0.weight"]}
    own["head.decoder.bias"] = state["decoder.0.bias"]
    ours.load_state_dict(own)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["simmim_swin_tiny", "simmim_swin_v2_tiny_w8", "simmim_vit_tiny"])
def test_transformers_paint_the_same_with_the_same_loss(name: str) -> None:
    torch.manual_seed(0)
    theirs = peer_of(name).eval()
    fields = {"norm_eps": 1e-12} if name == "simmim_vit_tiny" else {}
    ours = painter(name, **fields).eval()
    same_weights(ours, theirs)
    images, cells = torch.randn(2, 3, 32, 32), some_cells(2, 4, 4)
    masked = ours.head.hidden(cells).patches.flatten(1)
    with torch.no_grad():
        expected = theirs(images, bool_masked_pos=masked)
        outputs = ours.outputs(images, hidden=cells)
        found = ours.head.loss(outputs, Covered(images, cells))["l1"]
    scale = expected.reconstruction.abs().max().clamp(min=1)
    assert (outputs.painting - expected.reconstruction).abs().max() <= 1e-5 * scale
    assert float(found) == pytest.approx(float(expected.loss), abs=1e-5)
