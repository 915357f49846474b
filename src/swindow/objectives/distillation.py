"""Learning from a teacher besides the labels: knowledge distillation (Hinton et al. 2015; DeiT, section 4)."""

import dataclasses

from swindow.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from its teacher."""

    temperature: float = 3.0
    """What logits are divided by before soft labels are made of them."""
    alpha: float = 0.5
    """The teacher's share of the loss; the labels have the rest."""
    cache: str = ""
    """A folder in which the teacher's answers are kept, to be read again by later runs; empty asks it every time."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"distillation.temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"distillation.alpha is {self.alpha}; it must lie in [0, 1]")
