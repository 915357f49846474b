"""Optimisers, the learning-rate schedule and the moving average, as a function of the step alone.

Nothing here keeps a hidden clock: the rate of a step is `schedule(step)`, so a resumed run needs no scheduler state.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from swindow.errors import CheckpointError, ConfigError
from swindow.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights move."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """adamw or sgd for every parameter, or muon for the matrices inside the blocks and adamw for the rest."""
    lr: float = 1e-3
    """Peak learning rate of AdamW or SGD."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, decoupled, and of SGD; never on norms, biases and position bias tables."""
    momentum: float = 0.9
    """Momentum of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging of gradients and of their squares."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon, in units of a spectral step (Jordan et al. 2024)."""
    muon_weight_decay: float = 0.05
    """Decoupled weight decay of Muon."""
    muon_steps: int = 5
    """Newton-Schulz iterations that make Muon's update orthogonal; fewer are cheaper and rougher."""
    warmup: float = 0.05
    """Share of the run over which the rate grows linearly."""
    warmup_from: float = 0.0
    """Rate at the first step of the warm-up, as a share of the peak."""
    decay: Literal["cosine", "linear", "poly", "step", "none"] = "cosine"
    """How the rate falls after the warm-up; poly is what is left of the way to the power of 0.9, step a tenth at each
    of the milestones."""
    milestones: tuple[float, ...] = ()
    """Shares of the run, rising, after which the rate is a tenth of what it was (decay step only)."""
    final: float = 0.0
    """Rate at the end, as a share of the peak."""
    layer_decay: float = 1.0
    """Rate of each layer as a share of the next one's; below 1 it spares the early layers when fine-tuning."""
    backbone_share: float = 1.0
    """Rate of the whole backbone as a share of the head's."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    lr_images: int = 0
    """Images of a step that the peak rates are meant for: with more or fewer of them they grow or shrink in proportion
    (Goyal et al. 2017, arXiv 1706.02677). 0 leaves them as they are."""
    ema: float = 0.0
    """Share of the old average kept at each step of the moving average of weights; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"optim.accumulate is {self.accumulate}; a step needs at least 1 batch")
        if self.lr_images < 0:
            raise ConfigError(f"optim.lr_images is {self.lr_images}; give a number of images, or 0")
        for name in ("warmup", "warmup_from", "final", "ema", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("lr", "muon_lr", "weight_decay", "muon_weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it cannot be negative")
        for name in ("layer_decay", "backbone_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must lie in (0, 1]")
        if not all(0 < first < second < 1 for first, second in itertools.pairwise((*self.milestones, 1 - 1e-9))):
            raise ConfigError(f"optim.milestones {self.milestones} are not rising shares of the run within (0, 1)")


def for_images(config: OptimConfig, batch: int) -> OptimConfig:
    """`config` with the peak rates of steps that learn from ``batch * accumulate`` images, by its `lr_images`."""
    if not config.lr_images:
        return config
    share = batch * config.accumulate / config.lr_images
    return dataclasses.replace(config, lr=config.lr * share, muon_lr=config.muon_lr * share)


class Optimizer:
    """One or two torch optimisers that step as one, with rates set from outside and state by parameter name.

    To Muon, qkv's weight is three matrices: its update is orthogonal per matrix, and queries, keys and values have
    nothing to be orthogonal about. The three are parameters of their own that share the weight's memory.
    """

    def __init__(self, model: Model, config: OptimConfig, others: Mapping[str, nn.Parameter] | None = None) -> None:
        """`others` learn beside the model's parameters, at the head's rate.

        Raises:
            ConfigError: a decay by steps without milestones.
        """
        if config.decay == "step" and not config.milestones:
            raise ConfigError(
                "optim.decay is step and optim.milestones are empty; give shares of the run, such as 0.75 0.92"
            )
        self.config = config
        self.thirds: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        self.names: dict[int, str] = {}
        muon, rest = self._groups(model, config)
        rest += self._beside(others or {}, config)
        self.parts: list[torch.optim.Optimizer] = []
        if muon:
            self.parts.append(
                torch.optim.Muon(
                    muon,
                    lr=config.muon_lr,
                    weight_decay=config.muon_weight_decay,
                    ns_steps=config.muon_steps,
                    adjust_lr_fn="original",
                )
            )
        if config.name == "sgd":
            self.parts.append(torch.optim.SGD(rest, lr=config.lr, momentum=config.momentum))
        else:
            self.parts.append(torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True))
        for group in self.groups():
            group["peak"] = group["lr"]

    def groups(self) -> Iterator[dict[str, Any]]:
        """Every parameter group of every part."""
        for part in self.parts:
            yield from part.param_groups

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Move the weights and forget the gradients; `collect` comes first."""
        for part in self.parts:
            scaler.step(part)
        self.forget()

    def forget(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        for whole, _ in self.thirds:
            whole.grad = None

    def collect(self, scaler: torch.amp.GradScaler) -> Tensor:
        """Unscale the gradients and scale them down to the configured norm, if any; return the norm they had."""
        for whole, thirds in self.thirds:
            if whole.grad is not None:
                for third, gradient in zip(thirds, whole.grad.chunk(3), strict=True):
                    third.grad = gradient
        for part in self.parts:
            scaler.unscale_(part)
        parameters = [parameter for group in self.groups() for parameter in group["params"]]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.config.clip and torch.isfinite(norm):
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)
        return norm

    def set_rate(self, share: float) -> None:
        """Set every group's rate to `share` of its peak."""
        for group in self.groups():
            group["lr"] = group["peak"] * share

    def state(self) -> dict[str, Tensor]:
        """All state as tensors, named ``parameter/quantity``."""
        return {
            f"{self.names[id(parameter)]}/{key}": torch.as_tensor(value)
            for part in self.parts
            for parameter, state in part.state.items()
            for key, value in state.items()
        }

    def make_room(self, entries: Iterable[str]) -> None:
        """Have state tensors under these names, which `state` returned, to be filled; of each the first value is 0.

        Raises:
            CheckpointError: the state is of another model.
        """
        homes = {
            self.names[id(parameter)]: (part, parameter)
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
        }
        for entry in entries:
            name, key = entry.rsplit("/", 1)
            if name not in homes:
                raise CheckpointError(f"the optimiser state names {name}, which this model does not have")
            part, parameter = homes[name]
            # AdamW counts the steps of each parameter; all else that these optimisers keep is shaped as it.
            blank = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
            part.state[parameter][key] = blank.detach()

    def _beside(self, others: Mapping[str, nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
        """Parameter groups of what is not the model's, by whether they decay."""
        groups: dict[float, dict[str, Any]] = {}
        for name, parameter in others.items():
            decay = config.weight_decay if _decays(name, parameter) else 0.0
            groups.setdefault(decay, {"params": [], "lr": config.lr, "weight_decay": decay})["params"].append(parameter)
            self.names[id(parameter)] = f"objective.{name}"
        return list(groups.values())

    def _groups(self, model: Model, config: OptimConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Parameter groups for Muon and for all others, split by weight decay and by the layer's share of the rate."""
        muon: dict[float, dict[str, Any]] = {}
        rest: dict[tuple[float, float], dict[str, Any]] = {}
        layers = _layer_numbers(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            share = config.layer_decay ** (max(layers.values()) - layers[name])
            share *= config.backbone_share if name.startswith("backbone.") else 1.0
            if config.name == "muon" and _is_hidden_matrix(name, parameter):
                group = muon.setdefault(share, {"params": [], "lr": config.muon_lr * share})
                group["params"] += self._matrices(name, parameter)
            else:
                decay = config.weight_decay if _decays(name, parameter) else 0.0
                fresh: dict[str, Any] = {"params": [], "lr": config.lr * share, "weight_decay": decay}
                rest.setdefault((share, decay), fresh)["params"].append(parameter)
                self.names[id(parameter)] = name
        return list(muon.values()), list(rest.values())

    def _matrices(self, name: str, parameter: nn.Parameter) -> list[nn.Parameter]:
        if not name.endswith("qkv.weight"):
            self.names[id(parameter)] = name
            return [parameter]
        thirds = [nn.Parameter(third) for third in parameter.detach().chunk(3)]
        self.names |= {id(third): f"{name}.{letter}" for third, letter in zip(thirds, "qkv", strict=True)}
        self.thirds.append((parameter, thirds))
        return thirds


def schedule(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate of `step` in [0, total) as a share of the peak: linear warm-up, then the configured decay."""
    warmup = int(config.warmup * total)
    if step < warmup and config.warmup_from:
        return config.warmup_from + (1 - config.warmup_from) * step / warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - warmup, 1)
    match config.decay:
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            share = 1 - progress
        case "poly":
            share = (1 - progress) ** 0.9
        case "step":
            share = 0.1 ** sum(step >= milestone * total for milestone in config.milestones)
        case "none":
            share = 1.0
    return config.final + (1 - config.final) * share


def moving_average(model: Model, decay: float) -> AveragedModel:
    """A copy of `model` that follows it: each step keeps `decay` of the average, less in the first steps.

    The share kept after n updates is min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten.
    """

    @torch.no_grad()
    def update(averages: Iterable[Tensor], currents: Iterable[Tensor], count: Tensor | int) -> None:
        kept = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(list(averages), list(currents), 1 - kept)

    return AveragedModel(model, multi_avg_fn=update)


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Muon is for the matrices between layers; embeddings, tables and the head are AdamW's (Jordan et al. 2024)."""
    inside = ".stages." in name or ".blocks." in name
    return parameter.ndim == 2 and inside and "position" not in name and "router" not in name


def _decays(name: str, parameter: Tensor) -> bool:
    """Weights of layers decay; norms, biases, tables, tokens, scales and cosine routers do not (Swin, section 4.1)."""
    spared = ("position", "token", "logit_scale", "router.projection", "router.directions")
    return parameter.ndim > 1 and not name.endswith("bias") and not any(word in name for word in spared)


def _layer_numbers(model: Model) -> dict[str, int]:
    """0 for what comes before the blocks, then one number per block; a merge counts with the stage that it ends."""
    blocks = list(model.backbone.blocks())
    inside = {id(parameter): number for number, block in enumerate(blocks, start=1) for parameter in block.parameters()}
    numbers, latest = {}, 0
    for name, parameter in model.named_parameters():
        latest = inside.get(id(parameter), latest)
        is_end = name.startswith(("backbone.norms.", "head."))
        numbers[name] = len(blocks) + 1 if is_end else latest
    return numbers
