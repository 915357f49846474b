"""Parameter groups, the schedule, the moving average, and state by name."""

import math

import pytest
import torch

import swindow
from swindow.errors import CheckpointError, ConfigError
from swindow.optim import OptimConfig, Optimizer, moving_average, schedule

OFF = torch.amp.GradScaler("cpu", enabled=False)
TINY = {"dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window": 4, "drop_path": 0.0}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return swindow.build("swin_nano", num_classes=3, in_channels=1, **TINY)


def learn(model, optimizer, steps):
    images, targets = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])
    for _ in range(steps):
        model.head.loss(model.outputs(images), targets)["cross_entropy"].backward()
        optimizer.collect(OFF)
        optimizer.step(OFF)


def names(optimizer, groups):
    return {optimizer.names[id(parameter)] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(model, name):
    groups = list(Optimizer(model, OptimConfig(name=name)).groups())
    places = [span(parameter) for group in groups for parameter in group["params"]]
    assert len(places) == len(set(places))
    assert sum(size for _, size in places) == sum(parameter.numel() for parameter in model.parameters())
    assert {place for place, _ in places} >= {span(parameter)[0] for parameter in model.parameters()}


def span(tensor):
    """Where a tensor's values lie in memory, and how many they are."""
    return tensor.data_ptr(), tensor.numel()


def test_norms_biases_and_bias_tables_do_not_decay(model):
    optimizer = Optimizer(model, OptimConfig(weight_decay=0.1))
    free = names(optimizer, [group for group in optimizer.groups() if group["weight_decay"] == 0])
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.endswith(".bias") or ".norm" in name or "position_bias.table" in name
    }
    assert free == expected


def test_muon_takes_the_matrices_between_layers_and_nothing_else(model):
    optimizer = Optimizer(model, OptimConfig(name="muon"))
    assert isinstance(optimizer.parts[0], torch.optim.Muon)
    plain = ("attn.proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")
    expected = {name for name, _ in model.named_parameters() if name.endswith(plain)}
    queries = [name for name, _ in model.named_parameters() if name.endswith("qkv.weight")]
    expected |= {f"{name}.{letter}" for name in queries for letter in "qkv"}
    assert names(optimizer, optimizer.parts[0].param_groups) == expected


def test_muon_moves_queries_keys_and_values_as_three_matrices(model):
    optimizer = Optimizer(model, OptimConfig(name="muon", muon_lr=0.1))
    weight = model.backbone.stages[0].blocks[0].attn.qkv.weight
    alone = [torch.nn.Parameter(third.clone()) for third in weight.detach().chunk(3)]
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    model.head.loss(model.outputs(images), torch.tensor([0, 1, 2, 0]))["cross_entropy"].backward()
    for third, gradient in zip(alone, weight.grad.chunk(3), strict=True):
        third.grad = gradient.clone()
    torch.optim.Muon(alone, lr=0.1, weight_decay=0.05, adjust_lr_fn="original").step()
    optimizer.collect(OFF)
    optimizer.step(OFF)
    assert torch.equal(weight.detach(), torch.cat(alone).detach())
    assert weight.grad is None


def test_layer_decay_falls_towards_the_input(model):
    optimizer = Optimizer(model, OptimConfig(lr=1.0, layer_decay=0.5))
    rates = {
        optimizer.names[id(parameter)]: group["peak"] for group in optimizer.groups() for parameter in group["params"]
    }
    assert rates["head.linear.weight"] == 1.0
    assert rates["backbone.stages.1.blocks.1.mlp.fc1.weight"] == 0.5
    assert rates["backbone.stages.1.blocks.0.mlp.fc1.weight"] == 0.25
    assert (
        rates["backbone.stages.0.merge.reduction.weight"] == rates["backbone.stages.0.blocks.0.norm1.weight"] == 0.125
    )
    assert rates["backbone.patch_embed.proj.weight"] == 0.0625


def test_the_schedule_warms_up_and_falls_to_its_final_share():
    config = OptimConfig(warmup=0.1, final=0.2)
    rates = [schedule(step, 100, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.11
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert 0.2 < rates[99] < 0.201


def test_linear_and_constant_schedules():
    assert schedule(50, 100, OptimConfig(warmup=0.0, decay="linear")) == pytest.approx(0.5)
    assert schedule(99, 100, OptimConfig(warmup=0.0, decay="none")) == 1.0


def test_steps_of_a_tenth_come_at_their_share_of_the_run():
    config = OptimConfig(warmup=0.0, decay="step", milestones=(27 / 36, 33 / 36))
    assert [schedule(epoch, 36, config) for epoch in (0, 26, 27, 32, 33, 35)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize("wrong", [(0.6, 0.5), (0.0, 0.5), (0.5, 1.0)])
def test_milestones_rise_within_the_run(wrong):
    with pytest.raises(ConfigError, match="rising shares"):
        OptimConfig(decay="step", milestones=wrong)


def test_steps_want_milestones_and_other_schedules_leave_them_alone(model):
    with pytest.raises(ConfigError, match="milestones are empty"):
        Optimizer(model, OptimConfig(decay="step"))
    assert schedule(90, 100, OptimConfig(decay="none", warmup=0.0, milestones=(0.5,))) == 1.0


def test_the_backbone_can_have_a_rate_of_its_own(model):
    optimizer = Optimizer(model, OptimConfig(lr=1.0, backbone_share=0.1))
    rates = {optimizer.names[id(p)]: group["peak"] for group in optimizer.groups() for p in group["params"]}
    assert {name.split(".")[0]: rate for name, rate in rates.items()} == pytest.approx({"backbone": 0.1, "head": 1.0})
    assert len(set(rates.values())) == 2


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_by_name_restores_the_very_same_steps(model, name):
    config = OptimConfig(name=name, lr=1e-2)
    optimizer = Optimizer(model, config)
    learn(model, optimizer, 2)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value.clone() for key, value in optimizer.state().items()}
    learn(model, optimizer, 2)
    expected = {key: value.clone() for key, value in model.state_dict().items()}

    model.load_state_dict(weights)
    again = Optimizer(model, config)
    again.make_room(state)
    for key, value in again.state().items():
        value.copy_(state[key])
    learn(model, again, 2)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_state_of_another_model_is_refused(model):
    with pytest.raises(CheckpointError, match="names elsewhere"):
        Optimizer(model, OptimConfig()).make_room(["elsewhere.weight/exp_avg"])


def test_clipping_scales_to_the_norm_and_reports_the_old_one(model):
    optimizer = Optimizer(model, OptimConfig(clip=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = optimizer.collect(OFF)
    after = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert float(before) == pytest.approx(math.sqrt(sum(parameter.numel() for parameter in model.parameters())))
    assert after == pytest.approx(0.5, rel=1e-4)


def test_the_moving_average_forgets_the_start_and_then_keeps_its_share(model):
    average = moving_average(model, decay=0.5)
    follower = average.module.head.linear.bias
    expected = None
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        with torch.no_grad():
            model.head.linear.bias.fill_(value)
        average.update_parameters(model)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else kept * expected + (1 - kept) * value
        assert torch.allclose(follower, torch.full_like(follower, expected))


@pytest.mark.parametrize(
    "wrong", [{"accumulate": 0}, {"warmup": 1.0}, {"ema": -0.1}, {"lr": -1.0}, {"layer_decay": 0.0}, {"clip": -1.0}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
        OptimConfig(**wrong)
