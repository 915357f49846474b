"""Bar: numbers that are not finite never reach the weights, and never a file."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from chaos import ours
from chaos.lanes import Lanes, Result
from chaos.trial import seeded, trial
from swindow.learner import Learner
from swindow.settings import TrainConfig

PER_RUN = 4
PLACES = ("loss", "gradient", "image")
DIVERGING = 1e20
"""A learning rate at which any training ends."""


def non_finite(config: TrainConfig, lanes: Lanes, *, count: int, diverging: int, seed: int) -> Result:
    """`count` values that are NaN or infinite, in the loss, in one element of one gradient, in one value of an image;
    and `diverging` runs with an absurd learning rate.

    Passes if every such step is counted and moves nothing, no file ever holds a value that is not finite, and runs that
    are stopped and gone on with end in the state of those that were not.
    """
    runs = [(seed * 1000 + number, min(PER_RUN, count - PER_RUN * number)) for number in range(-(-count // PER_RUN))]

    def work(item: tuple[int, int], place: Path) -> Result:
        plan = _plan(seeded(item[0]), item[1])
        training = ours.training(config, lambda: _inject(plan))
        with trial(training, place) as whole, trial(training, place) as parts:
            want = whole.finish()
            code, said, _ = parts.go(extra={"max_steps": plan[len(plan) // 2][0] + 1})
            state = parts.finish() if code == 0 else f"exit {code}: {said[-1500:]}"
            skipped = json.loads((whole.run / "result.json").read_text())["skipped_steps"]
            wrong = [*_not_finite_in(whole.run), *_not_finite_in(parts.run)]
            same = want == state and not want.startswith("exit")
            told = sum("not finite" in line for line in said.splitlines())
            return {
                "plan": plan,
                "skipped": skipped,
                "told": told,
                "same": same,
                "wrong": wrong,
                "state": state[-1500:],
            }

    def diverge(number: int, place: Path) -> Result:
        with trial(ours.training(config), place) as one:
            code, said, _ = one.go(extra={"optim": {"lr": DIVERGING, "warmup": 0.0}, "seed": number})
            return {"exit": code, "wrong": _not_finite_in(one.run), "said": said[-600:], "loud": "not finite" in said}

    done = lanes.map(work, runs)
    ended = lanes.map(diverge, range(diverging))
    bad = [one for one in done if one["wrong"] or not one["same"] or one["skipped"] != len(one["plan"])]
    bad += [
        one for one in ended if one["wrong"] or one["exit"] in (0, 70) or "Traceback" in one["said"] or not one["loud"]
    ]
    return {
        "bar": "non-finite",
        "injections": sum(len(one["plan"]) for one in done),
        "counted": sum(one["skipped"] for one in done),
        "runs_that_diverged": len(ended),
        "stopped_with_a_message": sum(one["exit"] != 0 and one["loud"] for one in ended),
        "tensors_not_finite_in_files": sum(len(one["wrong"]) for one in [*done, *ended]),
        "stopped_and_gone_on_with_to_the_same_state": sum(one["same"] for one in done),
        "passed": not bad,
        "failures": bad[:3],
    }


Plan = list[tuple[int, str, float]]


def _plan(chance: random.Random, count: int) -> Plan:
    """Steps, no two of them neighbours, and what happens in each."""
    steps = sorted(chance.sample(range(ours.STEPS // 2), count))
    values = (math.nan, math.inf, -math.inf)
    return [(2 * step + chance.randrange(2), chance.choice(PLACES), chance.choice(values)) for step in steps]


def _inject(plan: Plan) -> None:
    """Put the values of a plan into the steps of the training in this process."""
    due = {step: (place, value) for step, place, value in plan}
    step = Learner.step
    prepare = Learner.prepare

    def stepping(learner: Learner, batches: Any) -> Any:
        place, value = due.get(learner.position.step, ("", 0.0))
        with _broken(learner, place, value):
            return step(learner, batches)

    def preparing(learner: Learner, batch: Any, number: int, **others: Any) -> Any:
        images, targets = prepare(learner, batch, number, **others)
        place, value = due.get(learner.position.step, ("", 0.0))
        if place == "image":
            images[0, 0, 0, 0] = value
        return images, targets

    Learner.step, Learner.prepare = stepping, preparing  # type: ignore[method-assign, assignment]


class _broken:  # noqa: N801 - used as a function
    """Within, a loss or a gradient has one value that is not finite."""

    def __init__(self, learner: Any, place: str, value: float) -> None:
        self.handles: list[Any] = []
        if place == "gradient":
            parameter = next(one for one in learner.model.parameters() if one.requires_grad)
            self.handles.append(parameter.register_hook(lambda gradient: _with(gradient, value)))
        if place == "loss":
            self.handles.append(learner.objective.register_forward_hook(lambda *call: _lost(call[-1], value)))

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def _with(gradient: torch.Tensor, value: float) -> torch.Tensor:
    changed = gradient.clone()
    changed.view(-1)[0] = value
    return changed


def _lost(judged: Any, value: float) -> Any:
    return judged._replace(losses={name: loss * value for name, loss in judged.losses.items()})


def _not_finite_in(run: Path) -> list[str]:
    """Names of tensors, of all files of a run, with values that are not finite."""
    found = []
    for path in run.rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        found += [f"{path.name} {name}" for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    return found
