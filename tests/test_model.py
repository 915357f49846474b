"""The model: what it is built from, and that nothing but weights and pixels decides what it says."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from swindow.backbones import VARIANTS
from swindow.errors import ConfigError, UnknownName
from swindow.model import MODELS, Model, ModelConfig, backbone, build, model_config, models, use_backend
from swindow.ops import reference, sdpa

Tiny = Callable[..., Model]


def test_the_logits_are_the_head_on_the_backbone(tiny: Tiny) -> None:
    model, images = tiny(), torch.randn(2, 3, 16, 12)
    last = model.backbone.stage_maps(images)[-1]
    normed = nn.functional.layer_norm(
        last, last.shape[-1:], model.backbone.norms["1"].weight, model.backbone.norms["1"].bias
    )
    expected = model.head.linear(normed.mean((1, 2)))
    torch.testing.assert_close(model(images), expected)
    assert torch.equal(model.outputs(images).logits, model(images))


@pytest.mark.parametrize("size", [(16, 16), (13, 21)])
def test_a_batch_is_its_images_one_by_one(tiny: Tiny, size: tuple[int, int]) -> None:
    model, images = tiny().double(), torch.randn(3, 3, *size, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-13, rtol=0)


def test_eval_is_deterministic_and_training_is_not(tiny: Tiny) -> None:
    model, images = tiny(drop_path=0.5, dropout=0.2, head_dropout=0.2), torch.randn(4, 3, 16, 16)
    assert torch.equal(model(images), model(images))
    plain = tiny()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(images), plain(images))
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_any_number_of_channels_and_each_counts(tiny: Tiny, channels: int) -> None:
    images = torch.randn(2, channels, 10, 10, requires_grad=True)
    tiny(in_channels=channels)(images).square().sum().backward()
    assert (images.grad.abs().sum((0, 2, 3)) > 0).all()  # type: ignore[union-attr]


def test_fields_go_to_the_backbone_and_the_head(tiny: Tiny) -> None:
    model = build("swin_tiny", num_classes=7, dim=12, depths=[1, 1, 1, 2], window=3, label_smoothing=0.1)
    config = model.config
    assert (config.name, config.in_channels, config.head.num_classes) == ("swin_tiny", 3, 7)
    assert (config.backbone.dim, config.backbone.depths, config.backbone.window) == (12, (1, 1, 1, 2), 3)
    assert config.head.label_smoothing == 0.1
    assert config.backbone.num_heads == VARIANTS["swin_tiny"].num_heads
    assert len(list(model.backbone.blocks())) == 5


def test_a_config_alone_rebuilds_the_model(tiny: Tiny) -> None:
    model = tiny(num_classes=2, in_channels=1)
    twin = model.config.build().eval()
    twin.load_state_dict(model.state_dict())
    images = torch.randn(1, 1, 8, 8)
    assert torch.equal(twin(images), model(images))


def test_models_are_listed_by_shell_pattern() -> None:
    assert models() == sorted([*VARIANTS, *MODELS])
    assert models("*n?no") == [
        "cascade_mask_rcnn_swin_nano",
        "detr_swin_nano",
        "mask_rcnn_swin_nano",
        "retinanet_swin_nano",
        "simmim_swin_nano",
        "swin_nano",
        "unet_swin_nano",
        "upernet_swin_nano",
    ]
    assert models("nothing*") == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build("swin_tinny"), "unknown model 'swin_tinny'; did you mean swin_tiny"),
        (lambda: backbone("swn_base"), "unknown model 'swn_base'; did you mean swin_base"),
        (lambda: build("xyzzy"), "unknown model 'xyzzy'; there are: "),
        (lambda: build("swin_tiny", windows=4), "unknown field 'windows'; did you mean window"),
        (
            lambda: build("swin_tiny", label_smoothin=0.1),
            "unknown field 'label_smoothin'; did you mean label_smoothing",
        ),
        (lambda: backbone("swin_tiny", num_classes=4), "unknown field 'num_classes'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_ones(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        make()


def test_an_image_without_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="in_channels is 0; an image has at least 1"):
        model_config("swin_tiny", in_channels=0)


def test_use_backend_reaches_every_attention_and_changes_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, calls = tiny(), torch.randn(2, 3, 16, 16), {"reference": 0, "sdpa": 0}

    def counted(module: object, name: str) -> None:
        true = module.window_attention  # type: ignore[attr-defined]

        def call(*args: object, **kwargs: object) -> Tensor:
            calls[name] += 1
            return true(*args, **kwargs)

        monkeypatch.setattr(module, "window_attention", call)

    counted(reference, "reference")
    counted(sdpa, "sdpa")
    logits = {}
    for name in calls:
        use_backend(model, name)  # type: ignore[arg-type]
        logits[name] = model(images)
        assert calls[name] == 4
    torch.testing.assert_close(logits["reference"], logits["sdpa"], atol=1e-6, rtol=0)


def test_an_unknown_backend_is_refused(tiny: Tiny) -> None:
    unchecked = getattr(use_backend, "__wrapped__", use_backend)
    with pytest.raises(
        UnknownName, match="unknown attention backend 'flash'; there are: auto, cpu, reference, sdpa, triton"
    ):
        unchecked(tiny(), "flash")


def test_the_model_learns(tiny: Tiny) -> None:
    """Eight images of noise by heart: gradients point downhill through every part."""
    model, images, labels = tiny().train(), torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = sum(model.head.loss(model.outputs(images), labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == labels).all()


def test_config_is_a_description_and_not_the_model() -> None:
    config = model_config("swin_micro", num_classes=3)
    assert isinstance(config, ModelConfig)
    assert config == model_config("swin_micro", num_classes=3)
    assert hash(config) == hash(model_config("swin_micro", num_classes=3))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits and every gradient."""
    model.zero_grad()
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]


def assert_compiles_to_the_same(model: Model) -> None:
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, fullgraph=True)
    for eager, fused in zip(outcome(model, images), outcome(compiled, images), strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-4)


def assert_one_graph_serves_many_sizes(model: Model, backend: str) -> None:
    """The graph holds for all sizes that need the same shifts: here both. With padding: tests/test_compile.py."""
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        first = torch.randn(2, 3, 32, 48)
        torch.testing.assert_close(compiled(first), model(first), atol=1e-5, rtol=1e-4)
        with torch.compiler.set_stance("fail_on_recompile"):
            for shape in ((2, 3, 48, 64), (3, 3, 64, 32)):
                images = torch.randn(shape)
                torch.testing.assert_close(compiled(images), model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.compiled
@pytest.mark.usefixtures("fresh_compiler")
def test_compiling_a_stage_changes_nothing(tiny: Tiny) -> None:
    assert_compiles_to_the_same(tiny(depths=(2,), num_heads=(2,)))


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiling_changes_nothing(tiny: Tiny) -> None:
    assert_compiles_to_the_same(tiny(depths=(2, 2)))


@pytest.mark.compiled
@pytest.mark.usefixtures("fresh_compiler")
def test_one_graph_serves_many_sizes(tiny: Tiny) -> None:
    assert_one_graph_serves_many_sizes(tiny(depths=(2, 1)), "eager")  # the graph alone: compiling it takes minutes


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_one_compilation_serves_many_sizes(tiny: Tiny) -> None:
    assert_one_graph_serves_many_sizes(tiny(depths=(2, 1)), "inductor")


@pytest.mark.compiled
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("padded", [False, True])
def test_compiling_at_a_size_with_or_without_padding(tiny: Tiny, padded: bool) -> None:
    model, images = tiny(depths=(2, 1)), torch.randn(2, 3, *((13, 18) if padded else (16, 16)))
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), expected)


@pytest.mark.compiled
@pytest.mark.usefixtures("fresh_compiler")
def test_an_exported_graph_serves_every_size_in_a_range_that_torch_can_prove(tiny: Tiny) -> None:
    """Sides of 16 times a number, named; for any other size see tests/test_compile.py."""
    model = tiny(depths=(2, 1))
    height, width = (16 * torch.export.Dim(name, min=2, max=8) for name in ("rows", "columns"))
    sizes = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    program = torch.export.export(model, (torch.randn(2, 3, 48, 64),), dynamic_shapes=sizes).module()
    for shape in ((2, 3, 48, 64), (1, 3, 32, 128), (3, 3, 64, 32)):
        images = torch.randn(shape)
        torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-4)
