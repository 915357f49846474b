"""What a run folder is given to save in tests: a tiny model and the tensors and facts that a learner has."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

import swindow
from swindow.model import Model


@dataclasses.dataclass
class State:
    """A run's state at a step: each tensor is a function of the step, so that one can tell which was saved."""

    usable: Model
    step: int
    others: dict[str, Tensor]
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        return {f"usable/{name}": tensor for name, tensor in self.usable.state_dict().items()} | self.others

    def facts(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": 0, "batch": self.step, "seed": 7, "total": 99, "scaler": {}} | self.more

    def at(self, step: int, **more: Any) -> "State":
        """The same run at another step."""
        with torch.no_grad():
            for tensor in self.tensors().values():
                tensor.fill_(step)
        self.step, self.more = step, more
        return self


def tiny_state(step: int = 1) -> State:
    """A model of a few thousand weights, with moments, counters and odd types beside it."""
    model = swindow.build("swin_nano", num_classes=3, in_channels=1, dim=8, depths=(1, 1), num_heads=(1, 2), window=4)
    model.classes = ("a", "b", "c")
    others = {
        "optimizer/head.linear.weight/exp_avg": torch.zeros(3, 16),
        "optimizer/head.linear.weight/step": torch.tensor(0.0),
        "average/count": torch.tensor(0),
        "objective/projection": torch.zeros(2, 3, dtype=torch.bfloat16),
        "model/empty": torch.zeros(0, 4),
    }
    return State(model, step, others).at(step)


def saved_step(tensors: dict[str, Tensor]) -> int:
    """The step that all of these were saved at."""
    steps = {float(value) for tensor in tensors.values() if tensor.numel() for value in (tensor.min(), tensor.max())}
    assert len(steps) == 1, f"values of several steps: {sorted(steps)}"
    return int(steps.pop())
