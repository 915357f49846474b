"""Several processes learn what one alone learns: DDP and FSDP2 over gloo, two processes on the CPU."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import learning_together
from company import Company
from learning_together import OPTIM, collectives, diverged, in_small_pieces, learned
from swindow import distributed
from swindow.distributed import ALONE, Plan, Ranks, joined, parallelize
from swindow.errors import ConfigError
from tiny_families import tiny_of

BOTH = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
ACCUMULATE = dataclasses.replace(OPTIM, accumulate=2)


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    two = Company(2)
    yield two
    two.end()


def assert_same(course, other, *, within=1e-10):
    assert course.losses == pytest.approx(other.losses, rel=0, abs=within)
    assert course.norms == pytest.approx(other.norms, rel=0, abs=within)
    assert course.weights.keys() == other.weights.keys()
    for name, weight in course.weights.items():
        torch.testing.assert_close(weight, other.weights[name], rtol=0, atol=within)


@BOTH
@pytest.mark.parametrize("optim", [OPTIM, ACCUMULATE], ids=["every batch a step", "two batches a step"])
def test_two_processes_learn_what_one_learns(company, strategy, optim):
    alone = learned(optim=optim)
    assert alone.losses[-1] < 0.9 * alone.losses[0], "nothing is learned: the courses could not differ"
    for course in company.ask(learned, strategy, optim=optim):
        assert_same(course, alone)


def test_muon_learns_the_same_in_copies(company):
    optim = dataclasses.replace(OPTIM, name="muon", muon_lr=0.005)
    alone = learned(optim=optim)
    first, second = company.ask(learned, "ddp", optim=optim)
    assert_same(first, second, within=0)
    # Its Newton-Schulz iterations are in bf16, so that the last bit of a gradient may move a weight by 2^-8 of a step.
    assert first.losses == pytest.approx(alone.losses, rel=1e-2)
    assert first.norms[0] == pytest.approx(alone.norms[0], rel=1e-12)


@BOTH
def test_accumulated_batches_exchange_gradients_once(company, strategy):
    name = {"ddp": "allreduce", "fsdp": "reduce_scatter"}[strategy]
    one, four = (
        company.ask(collectives, strategy, optim=dataclasses.replace(OPTIM, accumulate=count))[0][name]
        for count in (1, 4)
    )
    assert one == four > 0


@BOTH
def test_checkpointed_blocks_learn_the_same_and_take_no_pieces_in_company(company, strategy):
    plain = learned()
    for course in company.ask(in_small_pieces, strategy, checkpointed=True):
        assert_same(course, plain)


@BOTH
def test_frozen_parameters_stay_and_the_others_learn_the_same(company, strategy):
    frozen = ("backbone.patches", "backbone.stages.0.blocks.1")
    alone = learned(steps=5, frozen=frozen)
    before = tiny_weights()
    stayed = [name for name, weight in alone.weights.items() if torch.equal(weight, before[name])]
    assert any(name.startswith("backbone.stages.0.blocks.1") for name in stayed)
    for course in company.ask(learned, strategy, steps=5, frozen=frozen):
        assert_same(course, alone)


def tiny_weights():
    torch.manual_seed(0)
    return tiny_of("swin").double().state_dict()


def test_blocks_gathered_in_bf16_learn_nearly_the_same(company):
    alone = learned(double=False)
    course, _ = company.ask(learned, "fsdp", double=False, plan={"gather": "bf16"})
    assert course.losses != alone.losses
    assert course.losses == pytest.approx(alone.losses, rel=0.02)
    assert {weight.dtype for weight in course.weights.values() if weight.is_floating_point()} == {torch.float32}


def test_blocks_that_stay_together_learn_the_same(company):
    course, _ = company.ask(learned, "fsdp", steps=5, plan={"regather": False})
    assert_same(course, learned(steps=5))


@BOTH
@pytest.mark.parametrize("kind", ["upernet", "unet", "swin_moe", "resnet", "mask_rcnn", "detr", "deit, distilled"])
def test_every_task_learns_together(company, strategy, kind):
    """Losses are normalised in each process, so these need not be those of one; both halves of the group agree."""
    first, second = company.ask(learned, strategy, kind=kind, steps=4, double=kind in ("upernet", "unet"))
    assert first.losses == second.losses
    assert first.norms == second.norms
    assert all(norm > 0 for norm in first.norms)
    for name, weight in first.weights.items():
        if "running" not in name:
            torch.testing.assert_close(weight, second.weights[name], rtol=0, atol=0)


@BOTH
def test_a_loss_that_is_no_number_in_one_process_skips_the_step_in_all(company, strategy):
    alone = learned(steps=4, bad={0: (2,)})
    first, second = company.ask(learned, strategy, steps=4, bad={1: (2,)})
    assert first.wrong == second.wrong == alone.wrong == ["", "", "cross_entropy", ""]
    for course in (first, second):
        assert course.weights.keys() == alone.weights.keys()
        for name, weight in course.weights.items():
            torch.testing.assert_close(weight, alone.weights[name], rtol=0, atol=1e-10)


@BOTH
def test_three_in_a_row_stop_all_at_the_last_good_step(company, strategy):
    first, second = company.ask(diverged, strategy, bad={1: (2, 4, 5, 6)})
    assert first == second
    assert first[0].startswith("step 7: ")
    assert first[1:] == (4, 1)


@pytest.mark.slow
@pytest.mark.compiled
@BOTH
def test_compiled_blocks_learn_the_same(company, strategy):
    course, _ = company.ask(learned, strategy, steps=3, compiled=True)
    assert_same(course, learned(steps=3))


@pytest.mark.parametrize(
    ("kind", "sync", "found"),
    [("cuda", True, {"SyncBatchNorm"}), ("cuda", False, {"BatchNorm2d"}), ("cpu", True, {"BatchNorm2d"})],
)
def test_batch_norms_are_shared_on_gpus(monkeypatch, kind, sync, found):
    monkeypatch.setattr(distributed, "_shard", lambda *_: None)  # there need be no GPU, and no second process
    model = tiny_of("resnet")
    plan = Plan(strategy="fsdp", sync_norm=sync)
    parallelize(model, plan, Ranks(0, 2, 0), device=torch.device(kind), blocks=())
    assert learning_together.norms_of(model) == found


def test_one_process_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined() as ranks:
        assert ranks == ALONE
        assert ranks.everyones("x") == ["x"]
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="WORLD_SIZE, MASTER_ADDR, MASTER_PORT not: start processes with torchrun"):
        joined().__enter__()
