"""One training step: what learns beside a model learns too, and what is not finite moves nothing."""

import dataclasses

import pytest
import torch
from torch import nn

from conftest import tiny
from swindow.data.augment import AugmentConfig
from swindow.data.loading import Batch
from swindow.distributed import Plan, Ranks
from swindow.errors import ConfigError, TrainingDiverged
from swindow.learner import Learner
from swindow.meter import Meter
from swindow.model import build
from swindow.objectives import Judged, Objective, Supervised
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess


class Beside(Objective):
    """A loss that a parameter beside the model has a part in."""

    def __init__(self, model):
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(()))
        self.moments = []

    def prepare(self, images, targets, moment):
        self.moments.append(moment)
        return targets * 1

    def forward(self, images, targets):
        judged = Supervised(self.model)(images, targets)
        return judged._replace(losses={name: loss * self.scale for name, loss in judged.losses.items()})


def learner(objective=Supervised, **changes):
    model = tiny(in_channels=3)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    how = {"total": 10, "seed": 0, "device": torch.device("cpu"), "precision": "fp32"} | changes
    optim = how.pop("optim", OptimConfig(lr=1e-2, warmup=0.0))
    return Learner(model, optim, AugmentConfig(), objective=objective(model), **how)


def batch(number=0, value=None):
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor([0, 1, 2, 3]), torch.arange(4) + 4 * number, [])


def weights(learner):
    return {name: tensor.clone() for name, tensor in learner.tensors().items()}


def test_what_learns_beside_the_model_moves_and_is_saved_apart_from_it():
    one = learner(Beside)
    one.step([batch()])
    tensors = one.tensors()
    assert float(tensors["objective/scale"]) != 1
    assert "optimizer/objective.scale/exp_avg" in tensors
    assert not any("scale" in name for name in tensors if name.startswith("usable/"))


def test_an_objective_is_told_which_samples_of_which_step_it_prepares():
    one = learner(Beside)
    one.step([batch(0), batch(1)])
    one.step([batch(2)])
    assert [(moment.step, moment.indices.tolist()) for moment in one.objective.moments] == [
        (0, [0, 1, 2, 3]),
        (0, [4, 5, 6, 7]),
        (1, [8, 9, 10, 11]),
    ]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_gradient_that_is_not_finite_moves_nothing(ema):
    one = learner(optim=OptimConfig(lr=1e-2, warmup=0.0, ema=ema))
    one.step([batch(0)])
    before = weights(one)
    handle = next(one.model.parameters()).register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.inf)
    )
    report = one.step([batch(1)])
    handle.remove()
    assert report.wrong == "the gradient"
    assert (one.position.step, one.position.skipped, one.position.in_a_row) == (2, 1, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.tensors().items())
    assert one.step([batch(2)]).wrong == ""
    assert (one.position.skipped, one.position.in_a_row) == (1, 0)


def test_three_in_a_row_put_the_position_back_to_the_last_good_step():
    one = learner()
    one.step([batch(0)])
    good = dataclasses.replace(one.position)
    next(one.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    one.step([batch(1)])
    one.step([batch(2)])
    with pytest.raises(TrainingDiverged, match=r"step 4: the gradient is not finite, .* step 1, the last good one"):
        one.step([batch(3)])
    assert one.position == good


def test_a_model_in_fp64_learns_in_fp64():
    one = learner()
    one.model.double()
    again = Learner(one.model, one.optim, one.augment, total=10, seed=0, device=torch.device("cpu"), precision="fp32")
    report = again.step([batch()])
    assert report.losses["cross_entropy"].dtype == torch.float64
    assert report.gradient_norm.dtype == torch.float64


@pytest.mark.parametrize(("name", "precision", "said"), [("muon", "fp32", "muon"), ("adamw", "fp16", "fp16")])
def test_what_sharding_does_not_go_with_is_refused(name, precision, said):
    with pytest.raises(ConfigError, match=said):
        learner(optim=OptimConfig(name=name), precision=precision, ranks=Ranks(0, 2), plan=Plan(strategy="fsdp"))


def test_an_objective_has_to_say_what_it_minimises():
    with pytest.raises(NotImplementedError):
        Objective(tiny())(torch.zeros(1, 3, 16, 16), None)


def test_losses_by_name_are_what_is_minimised():
    one = learner(Beside)
    judged = one.objective(*one.prepare(batch()))
    assert isinstance(judged, Judged)
    assert set(judged.losses) == {"cross_entropy"}
    assert int(judged.counted) == 4


def test_a_step_that_is_not_finite_leaves_batch_norms_as_they_were():
    model = build("resnet_18", width=8, num_classes=4)
    model.preprocess = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    how = {"total": 10, "seed": 0, "device": torch.device("cpu"), "precision": "fp32"}
    one = Learner(model, OptimConfig(lr=1e-2, warmup=0.0), AugmentConfig(), **how)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    seen = Batch(images, torch.tensor([0, 1, 2, 3]), torch.arange(4), [])
    one.step([seen])
    before = weights(one)
    handle = model.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.nan,))
    assert one.step([seen]).wrong == "cross_entropy"
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.tensors().items())


def test_the_last_good_step_is_known_to_who_goes_on_from_a_bad_one():
    one = learner()
    one.step([batch(0)])
    assert "good" not in one.facts()
    handle = next(one.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    one.step([batch(1)])
    handle.remove()
    assert one.facts()["good"]["step"] == 1


def test_figures_are_means_of_what_is_finite():
    meter = Meter(torch.device("cpu"))
    one = learner()
    meter.add(one.step([batch(0)]))
    good = meter.read(keep=True)
    handle = next(one.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    meter.add(one.step([batch(1)]))
    handle.remove()
    found = meter.read()
    assert found["gradient_norm"] == pytest.approx(good["gradient_norm"])
    assert torch.isfinite(torch.tensor(found["loss"]))


def test_where_nothing_is_finite_there_is_no_figure_and_the_bar_says_so():
    one = learner()
    next(one.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    meter = Meter(torch.device("cpu"))
    report = one.step([batch(0)])
    meter.add(dataclasses.replace(report, losses={"cross_entropy": torch.tensor(torch.nan)}))
    assert meter.read(keep=True).keys().isdisjoint({"loss", "gradient_norm"})
    assert meter.shown()["loss"] == "not finite"
