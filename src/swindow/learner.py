"""One training step, and all the state that moves with it."""

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swindow.data.augment import AugmentConfig, mix_batch
from swindow.data.loading import Batch, sample_seed
from swindow.devices import Precision, autocast
from swindow.distributed import ALONE, Plan, Ranks, exchanging, is_sharded, parallelize, whole
from swindow.errors import ConfigError, TrainingDiverged
from swindow.model import Model
from swindow.objectives import Moment, Objective, Supervised
from swindow.objects import Targets
from swindow.optim import OptimConfig, Optimizer, moving_average, schedule
from swindow.preprocess import Preprocess
from swindow.run_folder import Saved

MOST_SKIPPED = 3
"""Steps in a row without a finite gradient after which a run stops."""
OVERFLOW = "the scaled gradient"
"""What is not finite where fp16 overflows, which lowers the scale and says nothing against the run."""
STEP_STREAM = 2**40  # above every sample index: the draws of a step never meet those of a sample


@dataclasses.dataclass
class Position:
    """Where a run stands; all of it is saved and none of it is guessed on resume."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches of `epoch` that are behind us."""
    seconds: float = 0.0
    best: float = -1.0
    """Highest validation score so far."""
    judged: int = -1
    """Step of the latest evaluation."""
    waited: int = 0
    """Evaluations since then."""
    bad: int = 0
    """Unreadable images skipped so far."""
    skipped: int = 0
    """Steps so far whose loss or gradient was not finite, and which therefore moved nothing."""
    in_a_row: int = 0
    """How many of them came last, one after the other."""


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one step measured, still on the device."""

    losses: dict[str, Tensor]
    gradient_norm: Tensor
    right: Tensor
    """Right answers, of `counted`: of images, of labelled pixels, or of places where objects are looked for."""
    counted: Tensor
    images: int
    wrong: str = ""
    """Which losses, or the gradient, were not finite: the step moved nothing."""


class Learner:
    """A model, its optimiser, its moving average and its position: `step` moves them all, `state` is all of them."""

    def __init__(
        self,
        model: Model,
        optim: OptimConfig,
        augment: AugmentConfig,
        *,
        total: int,
        seed: int,
        device: torch.device,
        precision: Precision,
        objective: Objective | None = None,
        ranks: Ranks = ALONE,
        plan: Plan = Plan(),
    ) -> None:
        """`objective` is `Supervised` unless given, and made of `model`, which is on `device`.

        Raises:
            ConfigError: a plan that this optimiser or precision does not go with.
        """
        self.model, self.optim, self.augment = model, optim, augment
        self.total, self.seed, self.device, self.precision = total, seed, device, precision
        self.objective = (objective or Supervised(model)).to(device)
        self.ranks, self.plan = ranks, plan
        self.average = moving_average(model, optim.ema) if optim.ema else None
        _refuse_unfit(plan, ranks, optim, precision)
        averages = () if self.average is None else (self.average.module,)
        self.spread = parallelize(
            self.objective, plan, ranks, device=device, blocks=list(model.blocks()), others=averages
        )
        # What batch norms keep of what they have seen moves in the forward pass, before anybody knows of the gradient.
        norms = [module for module in self.objective.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.optimizer = Optimizer(model, optim, self.objective.own())
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.position = Position()
        self.good = Position()

    @property
    def pixels(self) -> Preprocess:
        """How images become the model's input."""
        if self.model.preprocess is None:
            raise ConfigError("the model has no preprocessing; set model.preprocess before training it")
        return self.model.preprocess

    @property
    def usable(self) -> Model:
        """The model to judge and to keep: the average where there is one."""
        return self.model if self.average is None else cast(Model, self.average.module)

    @property
    def rate(self) -> float:
        """Learning rate of the next step, as a share of the peak."""
        return schedule(self.position.step, self.total, self.optim)

    def step(self, batches: list[Batch]) -> StepReport:
        """Take one optimiser step on the mean gradient of `batches`.

        Every draw (dropout, stochastic depth, mixup) is a function of the seed, the step's number and the process, so
        that there is no generator state to save. Where a loss or the gradient is not finite, nothing moves, and the
        report says what it was.

        Raises:
            TrainingDiverged: that happened three times in a row; weights and position are those of the last good step.
        """
        position = self.position
        torch.manual_seed(sample_seed(self.seed, position.step, STEP_STREAM + 2**20 * self.ranks.rank))
        self.objective.train()
        self.optimizer.set_rate(self.rate)
        total: dict[str, Tensor] = {}
        before = [buffer.clone() for buffer in self.statistics]
        right, counted = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            images, targets = self.prepare(batch, number)
            with exchanging(self.spread, number + 1 == len(batches)):
                with autocast(self.device, self.precision):
                    judged = self.spread(images, targets)
                loss = torch.stack(list(judged.losses.values())).sum()
                self.scaler.scale(loss / len(batches)).backward()
            for name, value in judged.losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(batches)
            right, counted = right + judged.right, counted + judged.counted
        norm, wrong = self._apply_gradients(total, before)
        position.step += 1
        position.batch += len(batches)
        self._count(wrong)
        return StepReport(total, norm, right, counted, sum(len(batch.labels) for batch in batches), wrong)

    def prepare(self, batch: Batch, number: int = 0, *, train: bool = True) -> tuple[Tensor, Any]:
        """Normalised images and targets on the device, mixed when the settings say so; `number` counts in a step.

        With `train` False the targets are those of the data, without what the objective adds.
        """
        images, targets = self._mixed(batch, number)
        moment = Moment(self.seed, self.position.epoch, self.position.step, batch.indices.numpy(), train)
        with torch.no_grad(), autocast(self.device, self.precision):
            return images, self.objective.prepare(images, targets, moment)

    def _mixed(self, batch: Batch, number: int) -> tuple[Tensor, Any]:
        images = self.pixels.normalize(batch.images.to(self.device, non_blocking=True)).to(self.dtype)
        if batch.frames is not None:
            targets = Targets(batch.labels, batch.frames).to(self.device, non_blocking=True)
            return batch.frames.cleared(images), targets
        targets = batch.labels.to(self.device, non_blocking=True)
        if not self.augment.mixes:
            return images, targets
        shares = F.one_hot(targets, self.model.head.config.num_classes).to(images.dtype)
        place = number * self.ranks.world + self.ranks.rank
        seed = sample_seed(self.seed, self.position.step, STEP_STREAM + 1 + place)
        return mix_batch(images, shares, self.augment, seed)

    def as_seen(self, batch: Batch) -> tuple[Tensor, Any]:
        """A batch as the model gets it, back in pixels, ``B C H W`` uint8, and its targets."""
        images, targets = self._mixed(batch, 0)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.pixels.mean, self.pixels.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu(), targets.to("cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, by kind and name; cut up where the model is.

        ``usable/`` are the weights to use; ``model/`` those that learn, where an average is used instead.
        """
        tensors = {f"usable/{name}": tensor for name, tensor in self.usable.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors |= {f"objective/{name}": parameter.detach() for name, parameter in self.objective.own().items()}
        if self.average is not None:
            tensors |= {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
            tensors["average/count"] = self.average.n_averaged
        return tensors

    def facts(self) -> dict[str, Any]:
        """The part of the state that is plain values."""
        state: dict[str, Any] = {"total": self.total, "seed": self.seed, "scaler": self.scaler.state_dict()}
        if self.position.in_a_row:
            state["good"] = {name: x for name, x in dataclasses.asdict(self.good).items() if name != "seconds"}
        return {**dataclasses.asdict(self.position), **state}

    def take_up(self, saved: Saved) -> None:
        """Go on from a saved state, whichever number of processes left it, and however they were spread.

        Raises:
            CheckpointError: it is of another model or optimiser.
        """
        self.optimizer.make_room(
            name.removeprefix("optimizer/") for name in saved.names if name.startswith("optimizer/")
        )
        saved.fill(self.tensors())
        self.scaler.load_state_dict(saved.facts["scaler"])
        self.position = Position(**{field.name: saved.facts[field.name] for field in dataclasses.fields(Position)})
        self.good = dataclasses.replace(self.position, **saved.facts.get("good", {}))

    def judged(self) -> Model:
        """The usable model in one piece, to judge and to keep; every process must ask. Not to be trained.

        Statistics of batch norms that no process shares are the first one's, everywhere.
        """
        learned = {name for name, _ in self.usable.named_parameters()}
        self.ranks.share(tensor for name, tensor in self.usable.state_dict().items() if name not in learned)
        if not is_sharded(self.usable):
            return self.usable
        model = self.usable.config.build().to(self.device, self.dtype)
        model.load_state_dict({name: whole(tensor) for name, tensor in self.usable.state_dict().items()})
        model.preprocess, model.classes, model.colours = self.pixels, self.model.classes, self.model.colours
        return model

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in: fp32, or fp64 where a program has made them so."""
        return next(self.model.parameters()).dtype

    def _count(self, wrong: str) -> None:
        """Count a skipped step, or note that this one was good."""
        position = self.position
        if not wrong:
            position.in_a_row = 0
            self.good = dataclasses.replace(position)
            return
        position.skipped += 1
        if wrong == OVERFLOW:  # half of the scale will do, or half of that: nothing is wrong with the run
            return
        position.in_a_row += 1
        if position.in_a_row >= MOST_SKIPPED:
            step, self.position = position.step, dataclasses.replace(self.good)
            raise TrainingDiverged(
                f"step {step}: {wrong} is not finite, for the {MOST_SKIPPED}rd time in a row; step {self.good.step}, "
                "the last good one, is kept. Start anew with a lower optim.lr, optim.clip 1.0 or precision fp32"
            )

    def _apply_gradients(self, losses: dict[str, Tensor], before: list[Tensor]) -> tuple[Tensor, str]:
        """Collect, step, average: the gradient's norm, and what was not finite; that never reaches the optimiser."""
        norm = whole(self.optimizer.collect(self.scaler)).to(self.device)
        finite = torch.stack([*losses.values(), norm]).isfinite().all()
        if not self.ranks.highest(int(not finite)):
            self.optimizer.step(self.scaler)
            self.scaler.update()
            if self.average is not None:
                self.average.update_parameters(self.model)
            return norm, ""
        self.optimizer.forget()
        for buffer, old in zip(self.statistics, before, strict=True):
            buffer.copy_(old)
        overflowed = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        self.scaler.update()  # fp16 overflowed: the scale is lowered until it does not
        return norm, OVERFLOW if overflowed else self._names_of_wrong(losses, norm)

    def _names_of_wrong(self, losses: dict[str, Tensor], norm: Tensor) -> str:
        """Which losses were not finite, in whichever process; the gradient, where all of them were."""
        mine = [name for name, value in losses.items() if not value.isfinite().all()]
        names = [name for named in self.ranks.everyones(mine) for name in named]
        return ", ".join(dict.fromkeys(names)) or "the gradient"


def _refuse_unfit(plan: Plan, ranks: Ranks, optim: OptimConfig, precision: Precision) -> None:
    if ranks.world == 1 or plan.strategy != "fsdp":
        return
    if optim.name == "muon":
        raise ConfigError("optim.name muon needs whole matrices, and fsdp cuts them up; use adamw, or ddp")
    if precision == "fp16":
        raise ConfigError("precision fp16 scales losses, which fsdp does not go with; use bf16, or ddp")
