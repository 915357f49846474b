"""One training step, and all the state that moves with it."""

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from swindow.data.augment import AugmentConfig, mix_batch
from swindow.data.loading import Batch, sample_seed
from swindow.devices import Precision, autocast
from swindow.errors import ConfigError, TrainingDiverged
from swindow.model import Model
from swindow.objectives import Supervised
from swindow.objects import Targets
from swindow.optim import OptimConfig, Optimizer, moving_average, schedule
from swindow.preprocess import Preprocess
from swindow.run_folder import SavedState

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


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one step measured, still on the device."""

    losses: dict[str, Tensor]
    gradient_norm: Tensor
    right: Tensor
    """Right answers, of `counted`: of images, of labelled pixels, or of places where objects are looked for."""
    counted: Tensor
    images: int


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
    ) -> None:
        self.model, self.optim, self.augment = model, optim, augment
        self.total, self.seed, self.device, self.precision = total, seed, device, precision
        self.objective = Supervised()
        self.optimizer = Optimizer(model, optim)
        self.average = moving_average(model, optim.ema) if optim.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.position = Position()

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

        Every draw (dropout, stochastic depth, mixup) is a function of the seed and the step's number, so that there is
        no generator state to save.

        Raises:
            TrainingDiverged: a loss or the gradient is not finite; the weights are those before the step.
        """
        position = self.position
        torch.manual_seed(sample_seed(self.seed, position.step, STEP_STREAM))
        self.model.train()
        self.optimizer.set_rate(self.rate)
        total: dict[str, Tensor] = {}
        right, counted = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            images, targets = self.prepare(batch, number)
            with autocast(self.device, self.precision):
                judged = self.objective(self.model, images, targets)
            loss = torch.stack(list(judged.losses.values())).sum()
            self._refuse_nonfinite(judged.losses)
            self.scaler.scale(loss / len(batches)).backward()
            for name, value in judged.losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(batches)
            answers = self.model.head.right(judged.outputs, targets)
            right, counted = right + answers[0], counted + answers[1]
        norm = self._apply_gradients()
        position.step += 1
        position.batch += len(batches)
        return StepReport(total, norm, right, counted, sum(len(batch.labels) for batch in batches))

    def prepare(self, batch: Batch, number: int = 0) -> tuple[Tensor, Any]:
        """Normalised images and targets on the device, mixed when the settings say so; `number` counts in a step."""
        images = self.pixels.normalize(batch.images.to(self.device, non_blocking=True))
        if batch.frames is not None:
            targets = Targets(batch.labels, batch.frames).to(self.device, non_blocking=True)
            return batch.frames.cleared(images), targets
        targets = batch.labels.to(self.device, non_blocking=True)
        if not self.augment.mixes:
            return images, targets
        shares = F.one_hot(targets, self.model.head.config.num_classes).to(images.dtype)
        seed = sample_seed(self.seed, self.position.step, STEP_STREAM + 1 + number)
        return mix_batch(images, shares, self.augment, seed)

    def as_seen(self, batch: Batch) -> tuple[Tensor, Any]:
        """A batch as the model gets it, back in pixels, ``B C H W`` uint8, and its targets."""
        images, targets = self.prepare(batch)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.pixels.mean, self.pixels.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).cpu(), targets.to("cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the usable weights that an exact resume needs."""
        tensors = {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        if self.average is not None:
            tensors |= {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
            tensors["average/count"] = self.average.n_averaged
        return tensors

    def facts(self) -> dict[str, Any]:
        """The part of the state that is plain values."""
        return {**dataclasses.asdict(self.position), "total": self.total, "scaler": self.scaler.state_dict()}

    def take_up(self, saved: SavedState) -> None:
        """Go on from what `tensors` and `facts` returned and the usable weights that were saved beside them."""
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "model": {}, "average": {}}
        for name, tensor in saved.tensors.items():
            kind, rest = name.split("/", 1)
            parts[kind][rest] = tensor
        self.usable.load_state_dict(saved.weights)
        if self.average is not None:
            self.model.load_state_dict(parts["model"])
            self.average.n_averaged.copy_(parts["average"]["count"])
        self.optimizer.load(parts["optimizer"])
        self.scaler.load_state_dict(saved.facts["scaler"])
        self.position = Position(**{field.name: saved.facts[field.name] for field in dataclasses.fields(Position)})

    def _refuse_nonfinite(self, values: dict[str, Tensor]) -> None:
        wrong = [name for name, value in values.items() if not torch.isfinite(value).all()]
        if wrong:
            raise TrainingDiverged(
                f"step {self.position.step}: {', '.join(wrong)} is not finite; the last save is intact. "
                "Start anew with a lower optim.lr, with optim.clip 1.0 or with precision fp32"
            )

    def _apply_gradients(self) -> Tensor:
        """Collect, step, average; a non-finite gradient never reaches the optimiser."""
        norm = self.optimizer.collect(self.scaler)
        if self.scaler.is_enabled() and not torch.isfinite(norm):
            self.optimizer.forget()  # fp16 overflowed: all parts skip the step, and the scale is lowered
            self.scaler.update()
            return norm
        self._refuse_nonfinite({"the gradient": norm})
        self.optimizer.step(self.scaler)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm
