"""Swin-MoE: routing against a loop over tokens, counts against Microsoft's, who meets whom in a batch, training."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.backbones import swin_moe
from swindow.backbones.experts import importance_loss, route, switch_loss
from swindow.backbones.swin_moe import VARIANTS, ExpertMlp, NetworkBias, SwinMoeConfig
from swindow.config import from_dict, to_dict
from swindow.counting import count
from swindow.errors import ConfigError, ShapeError
from swindow.heads import ClassifierConfig
from swindow.model import Model, ModelConfig

TINY = SwinMoeConfig(
    dim=8,
    depths=(1, 2),
    num_heads=(1, 2),
    window=4,
    patch=2,
    image_size=16,
    drop_path=0.0,
    routed=((0,), (1,)),
    experts=3,
)


def model_of(config: SwinMoeConfig = TINY, **fields: Any) -> Model:
    """In eval mode, with five classes, and weights large enough for routers to have opinions."""
    config = dataclasses.replace(config, **{"init_std": 0.3} | fields)
    return ModelConfig(name="moe", backbone=config, head=ClassifierConfig(num_classes=5)).build().eval()


def mlp_of(dim: int = 4, **fields: Any) -> ExpertMlp:
    """In eval mode and fp64, every parameter drawn anew."""
    mlp = ExpertMlp(dim, dataclasses.replace(TINY, mlp_ratio=2.0, **fields)).double().eval()
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    return mlp


def answers_by_hand(tokens: Tensor, mlp: ExpertMlp, room: float) -> Tensor:
    """One token after the other: choices in turn, in order of priority, until an expert is full."""
    config, experts = mlp.config, mlp.experts
    scores = mlp.router(tokens).softmax(1)
    wishes = [sorted(range(config.experts), key=lambda e, row=row: -row[e])[: config.top] for row in scores.tolist()]
    order = range(len(tokens))
    if config.prioritized:
        order = sorted(order, key=lambda token: -max(scores[token].tolist()))  # type: ignore[assignment]
    taken, answers = [0] * config.experts, torch.zeros_like(tokens)
    for rank in range(config.top):
        for token in order:
            expert = wishes[token][rank]
            if taken[expert] >= room:
                continue
            taken[expert] += 1
            gate = scores[token, expert]
            if config.normalized_gates and config.top > 1:
                gate = gate / sum(scores[token, other] for other in wishes[token])
            hidden = F.gelu(experts.fc1_weight[expert] @ tokens[token] + experts.fc1_bias[expert, 0])
            answer = experts.fc2_weight[expert].T @ hidden
            if experts.fc2_bias is not None:
                answer = answer + experts.fc2_bias[expert, 0]
            answers[token] += gate * answer
    return answers


@settings(max_examples=100)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    experts=st.integers(2, 5),
    top=st.integers(1, 3),
    capacity=st.none() | st.floats(0.1, 3.0),
    flags=st.tuples(*[st.booleans()] * 3),
    router=st.sampled_from(["linear", "cosine"]),
)
def test_answers_are_those_of_a_loop_over_tokens(
    shape: tuple[int, int, int], experts: int, top: int, capacity: float | None, flags: tuple[bool, ...], router: str
) -> None:
    prioritized, normalized, bias = flags
    top = min(top, experts)
    mlp = mlp_of(
        experts=experts,
        top=top,
        eval_capacity=capacity,
        prioritized=prioritized,
        normalized_gates=normalized,
        output_bias=bias,
        router=router,
    )
    x = torch.randn(*shape, 4, dtype=torch.float64)
    share = math.ceil(math.prod(shape) / experts)
    room = math.inf if capacity is None else top * int(capacity * share)
    with torch.no_grad():
        expected = answers_by_hand(x.flatten(0, 2), mlp, room).view_as(x)
        torch.testing.assert_close(mlp(x), expected, atol=1e-12, rtol=1e-12)


def test_tokens_that_come_too_late_pass_by_on_the_residual() -> None:
    """All tokens are the same, so all want the same expert, which takes int(1.0 * 12 / 3) of them."""
    mlp = mlp_of(eval_capacity=1.0, prioritized=False)
    x = torch.randn(4, dtype=torch.float64).expand(1, 3, 4, 4)
    answered = mlp(x).flatten(0, 2).ne(0).all(1)
    assert answered.tolist() == [True] * 4 + [False] * 8
    block = model_of(eval_capacity=1.0, prioritized=False).backbone.stages[0].blocks[0]
    block.attn.register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
    images = torch.randn(8).expand(1, 3, 4, 8)
    assert (block(images) == images).all(-1).flatten().tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("balance", ["switch", "importance"])
@pytest.mark.parametrize("top", [1, 2])
def test_balance_losses_come_back_with_the_maps(balance: str, top: int) -> None:
    """The sum over blocks of the loss of each one's own scores, times the weight; in eval there is no noise."""
    model, seen = model_of(balance=balance, top=top, balance_weight=0.2, window=(4, 2)), []
    for block in (model.backbone.stages[0].blocks[0], model.backbone.stages[1].blocks[1]):
        block.mlp.router.register_forward_hook(lambda module, inputs, out: seen.append(out))
    images = torch.randn(2, 3, 16, 12)
    maps, losses = model.backbone.maps_and_losses(images)  # type: ignore[operator]
    one = [
        switch_loss(logits.softmax(1), logits.topk(top).indices)
        if balance == "switch"
        else importance_loss(logits, logits.topk(top).values[:, -1:], 1 / 3)
        for logits in seen
    ]
    assert len(one) == 2
    assert list(losses) == ["expert_balance"]
    torch.testing.assert_close(losses["expert_balance"], 0.2 * (one[0] + one[1]))
    assert all(torch.equal(x, y) for x, y in zip(maps, model.backbone(images), strict=True))


def test_without_experts_there_is_no_loss_and_swin_s_blocks_remain() -> None:
    model = model_of(routed=())
    assert model.backbone.maps_and_losses(torch.randn(1, 3, 16, 16))[1] == {}  # type: ignore[operator]
    assert not any(isinstance(module, ExpertMlp) for module in model.modules())


def test_training_on_the_balance_loss_spreads_tokens() -> None:
    mlp = ExpertMlp(4, dataclasses.replace(TINY, experts=4, gate_noise=0.0)).train()
    nn.init.normal_(mlp.router.weight)  # type: ignore[arg-type]
    x = torch.randn(4, 8, 8, 4) + 1.0  # tokens that lean to one side, and so to some experts
    history = []
    for _ in range(200):
        losses: list[Tensor] = []
        mlp(x, losses)
        (gradient,) = torch.autograd.grad(losses[0], mlp.router.weight)  # type: ignore[arg-type]
        mlp.router.weight.data -= 0.1 * gradient  # type: ignore[operator, union-attr]
        history.append(losses[0].item())
    assert history[0] > 1.2
    assert history[-1] < 1.02


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The scores that tokens were routed by, one entry for each forward of experts."""
    seen: list[Tensor] = []

    def watched(scores: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(scores)
        return route(scores, *rest, **more)

    monkeypatch.setattr(swin_moe, "route", watched)
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("router", ["linear", "cosine"])
def test_routing_keeps_fp32_under_autocast_and_in_half_precision(
    router: str, dtype: torch.dtype, routed: list[Tensor]
) -> None:
    mlp, x = ExpertMlp(8, dataclasses.replace(TINY, router=router)).eval(), torch.randn(2, 4, 4, 8)
    mlp(x)
    with torch.autocast("cpu", dtype):
        assert mlp(x).dtype == torch.float32
    torch.testing.assert_close(routed[1], routed[0])
    assert mlp.to(dtype)(x.to(dtype)).dtype == dtype
    assert routed[2].dtype == torch.float32


def test_experts_that_get_tokens_get_gradients_and_no_others() -> None:
    mlp, x = mlp_of(experts=6, top=1, eval_capacity=None), torch.randn(1, 2, 3, 4, dtype=torch.float64)
    chosen = set(mlp.router(x.flatten(0, 2)).argmax(1).tolist())
    assert 1 < len(chosen) < 6
    mlp(x).square().sum().backward()
    for name, parameter in mlp.experts.named_parameters():
        assert {e for e, gradient in enumerate(parameter.grad) if gradient.any()} == chosen, name  # type: ignore[arg-type]
    assert mlp.router.weight.grad.any()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("top", [1, 2])
def test_gradients_are_those_of_the_function(top: int) -> None:
    mlp = mlp_of(top=top, normalized_gates=top > 1, eval_capacity=0.8)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


def test_without_a_limit_the_images_of_a_batch_do_not_meet() -> None:
    model, images = model_of(top=2), torch.randn(3, 3, 18, 14)
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]))


def test_with_a_limit_they_do() -> None:
    """The same image twice: its tokens fill the experts once, and there is no room for them again."""
    model, image = model_of(eval_capacity=1.0, prioritized=False), torch.randn(1, 3, 16, 16)
    first, second = model(image.repeat(2, 1, 1, 1))
    assert (first - second).abs().max() > 1e-3


def test_training_has_a_limit_and_noise_and_evaluation_neither() -> None:
    mlp, seen = mlp_of(capacity=0.5, gate_noise=2.0), []
    mlp.experts.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
    x = torch.randn(1, 4, 6, 4, dtype=torch.float64)
    assert torch.equal(mlp(x), mlp(x))
    mlp.train()
    assert not torch.equal(mlp(x), mlp(x))
    fullest = mlp.router(x.flatten(0, 2)).argmax(1).bincount().max().item()
    assert seen == [fullest, fullest, 4, 4]


def test_noise_has_the_deviation_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, routed: list[Tensor]) -> None:
    mlp = mlp_of(gate_noise=1.5, balance="importance").train()
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    x, losses = torch.randn(1, 4, 4, 4, dtype=torch.float64), []
    mlp(x, losses)
    logits = mlp.router(x.flatten(0, 2))
    torch.testing.assert_close(routed[0], (logits + 0.5).softmax(1))
    torch.testing.assert_close(losses[0], importance_loss(logits, logits.amax(1, keepdim=True) + 0.5, 0.5))


@pytest.mark.parametrize("window", [(3, 2), (1, 4), (4, 4)])
def test_position_biases_are_a_network_of_log_offsets(window: tuple[int, int]) -> None:
    """Swin V2, equation 4, of offsets that are 8 from edge to edge of the window."""
    bias = NetworkBias(window, 2)
    places = [(row, column) for row in range(window[0]) for column in range(window[1])]
    result = bias()
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            offsets = [8 * (q - k) / max(side - 1, 1) for q, k, side in zip(query, key, window, strict=True)]
            logs = torch.tensor([math.copysign(math.log2(1 + abs(x)) / 3, x) for x in offsets])
            torch.testing.assert_close(result[:, i, j], bias.mlp(logs))


def parameters_of(config: SwinMoeConfig, classes: int = 1000) -> int:
    total = 3 * 16 * config.dim + 3 * config.dim
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        c = config.dim * 2**stage
        routed = len(config.routed[stage]) if config.routed else 0
        router = c * config.experts if config.router == "linear" else c * 256 + 256 + 256 * config.experts + 1
        attention = 4 * c + 4 * c * c + 4 * c + 2 * 512 + 512 + 512 * heads
        total += depth * attention + (depth - routed) * (8 * c * c + 4 * c)
        total += routed * (config.experts * (8 * c * c + 4 * c) + router)
        total += 8 * c + 8 * c * c if stage < 3 else 2 * c + c * classes + classes
    return total


def microsoft_flops(config: SwinMoeConfig, size: int, factor: float, classes: int = 1000) -> float:
    """The sum of every `flops()` in Microsoft's models/swin_transformer_moe.py, which leaves out the routers."""
    patches = size // 4
    total = patches**2 * config.dim * 3 * 16 + patches**2 * config.dim
    for stage, depth in enumerate(config.depths):
        side, c = patches // 2**stage, config.dim * 2**stage
        seen = min(12, side) ** 2
        for index in range(depth):
            routed = bool(config.routed) and index in config.routed[stage]
            total += 2 * c * side**2 + side**2 * (4 * c * c + 2 * seen * c)
            total += 8 * side**2 * c * c * (factor * config.top if routed else 1)  # type: ignore[assignment]
        total += side**2 * c + side**2 // 4 * 8 * c * c if stage < 3 else 0
    last = config.dim * 8
    return total + last * patches**2 // 16 + last * classes


def routers_macs(config: SwinMoeConfig, size: int) -> int:
    total = 0
    for stage, blocks in enumerate(config.routed):
        tokens, c = (size // 4 // 2**stage) ** 2, config.dim * 2**stage
        each = c * config.experts if config.router == "linear" else (c + config.experts) * 256
        total += len(blocks) * tokens * each
    return total


def on_meta(config: SwinMoeConfig) -> Model:
    with torch.device("meta"):
        return ModelConfig(name="moe", backbone=config, head=ClassifierConfig()).build()


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_microsoft_s_and_the_routers(name: str) -> None:
    """At a size where every stage's tokens are a multiple of 128 experts, so that capacities are whole numbers."""
    config = VARIANTS[name]
    counts = count(on_meta(dataclasses.replace(config, image_size=1536, eval_capacity=1.5)), 1536)
    assert counts.parameters == parameters_of(config)
    assert counts.macs == microsoft_flops(config, 1536, 1.5) + routers_macs(config, 1536)


def test_the_published_configurations() -> None:
    assert len(VARIANTS) == 13
    for name, config in VARIANTS.items():
        assert (config.window, config.image_size, config.windows[3]) == (12, 192, (6, 6))
        assert (config.capacity, config.balance_weight, config.output_bias) == (1.25, 0.01, False)
        assert config.num_heads[0] * 32 == config.dim == (96 if "small" in name else 128)
        assert config.top == (2 if name.endswith("top2") else 1)
        assert config.router == ("cosine" if "cosine" in name else "linear")
        if not name.endswith("dense"):
            assert config.routed == ((), (), (1, 3, 5, 7, 9, 11, 13, 15, 17), (1,))
            assert f"_e{config.experts}" in name


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_learns(name: str) -> None:
    """With the balance loss, which reaches the routers; of the experts some part."""
    config = VARIANTS[name]
    depths, routed = (1, 1, 2, 2), ((), (), (1,), (1,)) if config.routed else ()
    fields = {"dim": config.num_heads[0], "depths": depths, "routed": routed, "drop_path": 0.0, "init_std": 0.3}
    model = model_of(config, **fields).train()
    images = torch.randn(2, 3, 72, 60)
    maps, losses = model.backbone.maps_and_losses(images)  # type: ignore[operator]
    (model.head(maps).logits.square().sum() + sum(losses.values())).backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_the_names_of_the_weights_are_pinned() -> None:
    for router, own in (
        ("linear", ["router.weight"]),
        ("cosine", ["router.directions", "router.logit_scale", "router.projection.weight", "router.projection.bias"]),
    ):
        state = model_of(router=router).state_dict()
        start = "backbone.stages.0.blocks.0.mlp."
        experts = [f"experts.{layer}_{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
        assert [name.removeprefix(start) for name in state if name.startswith(start)] == [*own, *experts]
        assert state[f"{start}experts.fc1_weight"].shape == state[f"{start}experts.fc2_weight"].shape == (3, 32, 8)
    start = "backbone.stages.0.blocks.0.attn.position_bias."
    names = [f"{start}mlp.{key}" for key in ("0.weight", "0.bias", "2.weight")]
    assert [name for name in state if name.startswith(start)] == names
    assert not any(name.endswith("fc2.bias") or "fc2_bias" in name for name in model_of(output_bias=False).state_dict())


def test_initialisation() -> None:
    body = dataclasses.replace(TINY, dim=32, init_std=0.005).build(in_channels=3, out_stages=(1,))
    for name, parameter in body.stages.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.005, rel=0.2), name


@settings(max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 5))
def test_any_size_is_the_size_padded_to_whole_patches(height: int, width: int, channels: int) -> None:
    body = TINY.build(in_channels=channels, out_stages=(0, 1)).eval()
    images = torch.randn(1, channels, height, width)
    whole = F.pad(images, (0, -width % 2, 0, -height % 2))
    for stage, (x, expected) in enumerate(zip(body(images), body(whole), strict=True)):
        grid = (-(-whole.shape[2] // 2 // 2**stage), -(-whole.shape[3] // 2 // 2**stage))
        assert x.shape == (1, *grid, 8 * 2**stage)
        assert torch.isfinite(x).all()
        assert torch.equal(x, expected)


def outcome(model: Any, images: Tensor) -> list[Tensor]:
    """Maps, losses and every gradient of a training step."""
    model.zero_grad()
    torch.manual_seed(7)
    (x,), losses = model(images)
    (x.square().mean() + losses["expert_balance"]).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return [x.detach(), losses["expert_balance"].detach(), *gradients]


class Judged(nn.Module):
    """`maps_and_losses` as a forward: what a wrapper for compilation or several processes needs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Any:
        return self.body.maps_and_losses(images)  # type: ignore[operator]


def same(model: nn.Module, other: nn.Module, images: Tensor) -> bool:
    pairs = list(zip(outcome(model, images), outcome(other, images), strict=True))
    assert len(pairs) > 50
    return all(torch.equal(one, two) for one, two in pairs)


NOISY: dict[str, Any] = {"drop_path": 0.5, "dropout": 0.1, "expert_dropout": 0.2, "top": 2, "balance": "importance"}


def test_checkpointing_changes_nothing_to_the_bit() -> None:
    model = Judged(model_of(**NOISY).backbone).train()
    other = copy.deepcopy(model)
    other.body.checkpoint_blocks()  # type: ignore[operator]
    calls: list[int] = []
    for block in other.body.blocks():  # type: ignore[operator]
        block.attn.proj.register_forward_hook(lambda *_: calls.append(1))
    assert same(model, other, torch.randn(3, 3, 16, 20))
    assert len(calls) == 2 * 3


def test_data_parallel_training_gives_the_same_gradients(tmp_path: Path) -> None:
    """One process of one: that every parameter takes part in every step is what it asks for."""
    model, images = Judged(model_of(**NOISY).backbone).train(), torch.randn(3, 3, 16, 20)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        for _ in range(2):
            assert same(model, parallel, images)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("training", [False, True])
def test_a_forward_changes_no_attribute(training: bool) -> None:
    def attributes() -> list[str]:
        return [repr(sorted({**vars(module), "_modules": None}.items())) for module in model.modules()]

    model = model_of(drop_path=0.3).train(training)
    before, weights = attributes(), copy.deepcopy(model.state_dict())
    for shape in ((2, 3, 24, 20), (1, 3, 4, 3)):
        model(torch.randn(shape))
        model.backbone.maps_and_losses(torch.randn(shape))  # type: ignore[operator]
    assert attributes() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


ONE_BLOCK: dict[str, Any] = {"depths": (1,), "num_heads": (1,), "routed": ((0,),), "gate_noise": 1e-9}


@pytest.mark.compiled
@pytest.mark.parametrize("fields", [{}, {"router": "cosine", "top": 2, "balance": "importance", "capacity": None}])
def test_compiling_changes_nothing(fields: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model, images = Judged(model_of(**ONE_BLOCK, **fields).backbone), torch.randn(2, 3, 16, 12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        model.train(training)
        for eager, fused in zip(outcome(model, images), outcome(compiled, images), strict=True):
            torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiling_every_block_by_itself_changes_nothing() -> None:
    torch._dynamo.reset()
    model, images = Judged(model_of(**ONE_BLOCK).backbone).train(), torch.randn(2, 3, 16, 12)
    eager = outcome(model, images)
    for block in model.body.blocks():  # type: ignore[operator]
        block.compile(fullgraph=True, backend="aot_eager")
    for one, other in zip(eager, outcome(model, images), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


def test_a_configuration_survives_a_file() -> None:
    for config in VARIANTS.values():
        assert from_dict(SwinMoeConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": (2,)}, "must name the same stages"),
        ({"routed": ((0,),)}, r"routed names 1 stages of 2; give each one a tuple"),
        ({"routed": ((1,), ())}, r"routed \(1,\): a stage of 1 blocks has the numbers 0 to 0"),
        ({"routed": ((-1,), ())}, "a stage of 1 blocks has the numbers 0 to 0"),
        ({"experts": 1}, "experts 1 and top 1: give at least 2 experts, and ask for 1 to all"),
        ({"top": 4}, "experts 3 and top 4"),
        ({"top": 0}, "experts 3 and top 0"),
        ({"capacity": 0.0}, "capacity 0.0 and eval_capacity None must be above 0, or none"),
        ({"eval_capacity": -1.0}, "must be above 0, or none"),
        ({"gate_noise": -1.0}, "gate_noise, balance_weight and init_std cannot be negative"),
        ({"gate_noise": 0.0, "balance": "importance"}, "balance 'importance' measures load by the noise"),
        ({"expert_dropout": 1.0}, "must lie in"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **fields)


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="images have 1 channels and the model takes 3"):
        model_of()(torch.randn(1, 1, 16, 16))
