"""Who takes part: our models and other libraries' models of the same shape, each as it is or in another way.

A contender is written as its source and, after colons, the ways it runs: ``swin_tiny``, ``swin_tiny:checkpoint``,
``timm``, ``timm:compile``, ``timm:amp:compile``, ``openvino``, ``my_engine.py:build``.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from swindow.bench.answers import check
from swindow.bench.engines import ENGINES
from swindow.bench.peers import PEERS
from swindow.bench.timing import Run
from swindow.bench.work import Network, Work, dtype_of, runner
from swindow.devices import DTYPES
from swindow.errors import ConfigError, UnknownName
from swindow.model import Model, ModelConfig

THEIRS = (*PEERS, *ENGINES)
COMPILED = {"compile": "default", "reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune"}
SWITCHES = (
    "checkpoint_blocks",
    "set_grad_checkpointing",
    "gradient_checkpointing_enable",
)  # ours, timm's, transformers'
WAYS = ("amp", "checkpoint", "optimize", *COMPILED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Somebody who takes part."""

    source: str
    """Our model's name, one of `THEIRS`, or FILE.py:callable."""
    ways: tuple[str, ...] = ()
    """Of `WAYS`: amp is autocast over fp32 weights; checkpoint computes activations again in the backward pass;
    optimize is `swindow.optimize`; the others are modes of `torch.compile`."""

    @property
    def name(self) -> str:
        """As it is written."""
        return ":".join((self.source, *self.ways))

    @property
    def ours(self) -> bool:
        """Whether it is a model of ours."""
        return self.source not in THEIRS and ".py:" not in self.source

    @property
    def engine(self) -> bool:
        """Whether it is an inference engine on a peer's graph."""
        return self.source in ENGINES

    @property
    def trains(self) -> bool:
        """Whether it takes steps of training, too: engines and what `optimize` makes do not."""
        return not self.engine and "optimize" not in self.ways

    @property
    def compiled(self) -> bool:
        """Whether `torch.compile` is at work."""
        return any(way in COMPILED for way in self.ways)


def contender(text: str) -> Contender:
    """The contender that `text` names.

    Raises:
        UnknownName: there is no such way to run.
        ConfigError: there is no such file.
    """
    file, mark, rest = text.rpartition(".py:")
    first, *ways = rest.split(":")
    for way in ways:
        if way not in WAYS:
            raise UnknownName("way to run", way, WAYS)
    if mark and not Path(f"{file}.py").is_file():
        raise ConfigError(f"{file}.py: no such file; a peer of your own is FILE.py:callable")
    return Contender(source=file + mark + first, ways=tuple(ways))


def network(someone: Contender, config: ModelConfig, work: Work) -> Network:
    """Their network for this work, freshly initialised, on its device and in its dtype, ready to run.

    Raises:
        MissingExtra: their library is not installed.
        ConfigError: they have no model of this shape, or cannot run in this way; an engine gives other answers.
    """
    if someone.engine and someone.ways:
        raise ConfigError(f"{someone.source} runs in one way")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = _build(someone.source, config, work)
    if isinstance(found, nn.Module):
        found = found.to(work.device, _weights(someone, work)).train(work.mode == "train")
    for way in someone.ways:
        if way != "amp":
            found = _taken(found, way, work)
    return found


def entry(someone: Contender, found: Network, work: Work) -> Run:
    """One call of the returned is one batch of the work."""
    amp = "amp" in someone.ways
    # Engines, and what `optimize` returns, take what the model took, and cast by themselves.
    whole = someone.engine or "optimize" in someone.ways
    images = torch.float32 if whole else dtype_of(work, amp=amp)
    return runner(found, work, amp=amp, images=images)


def verify(someone: Contender, found: Network, config: ModelConfig, work: Work) -> None:
    """That what `optimize` made of our model still answers as the model does. Engines are checked as they are built.

    Raises:
        ConfigError: it does not.
    """
    if "optimize" in someone.ways:
        plain = network(dataclasses.replace(someone, ways=()), config, dataclasses.replace(work, dtype="fp32"))
        check(found, plain, work)


def parameters(found: Network) -> int | None:
    """Learned values, where they can be seen: not in an engine, nor where weights have been packed."""
    from swindow.optimizing import Optimized

    if isinstance(found, Optimized) or not isinstance(found, nn.Module):
        return None
    return sum(x.numel() for x in found.parameters())


def imported(text: str) -> Callable[[Work], Network]:
    """The function in FILE.py:callable.

    Raises:
        ConfigError: there is nothing to call of that name in it.
    """
    file, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ConfigError(f"{file} has no function {name!r}; it takes a Work and returns what maps images to logits")
    return getattr(module, name)


def _build(source: str, config: ModelConfig, work: Work) -> Network:
    if ".py:" in source:
        return imported(source)(work)
    if source in ENGINES:
        return ENGINES[source](config, work)
    if source in PEERS:
        return PEERS[source](config, work)
    return Model(config)


def _weights(someone: Contender, work: Work) -> torch.dtype:
    return torch.float32 if "optimize" in someone.ways else dtype_of(work, amp="amp" in someone.ways)


def _taken(found: Network, way: str, work: Work) -> Network:
    """A network run in another way."""
    if way in COMPILED:
        return torch.compile(found, mode=COMPILED[way])
    if way == "optimize":
        return _optimized(found, work)
    for owner in (found, getattr(found, "backbone", None), getattr(found, "body", None)):
        for switch in SWITCHES:
            if hasattr(owner, switch):
                getattr(owner, switch)()
                return found
    raise ConfigError("it has no switch for activation checkpointing")


def _optimized(found: Network, work: Work) -> Network:
    from swindow.optimizing import optimize

    if not isinstance(found, Model) or work.mode == "train":
        raise ConfigError("optimize is for inference with our models")
    return optimize(found, size=work.size, dtype=DTYPES[work.dtype], batch=work.batch)
