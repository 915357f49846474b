"""Swin Transformers: train on your own images with one command, evaluate, predict, explain.

Names load on first use, so that ``import swindow`` costs little more than nothing.
"""

import importlib
from typing import Any

from swindow._version import __version__

_HOMES = {
    "Predictor": "predict",
    "TrainConfig": "settings",
    "backbone": "model",
    "build": "model",
    "configure": "recipes",
    "convert": "checkpoints",
    "evaluate": "evaluation",
    "explain": "explanation",
    "load": "checkpoints",
    "load_weights": "checkpoints",
    "models": "model",
    "optimize": "optimizing",
    "save": "checkpoints",
    "train": "training",
    "use_backend": "model",
}

__all__ = [
    "Predictor",
    "TrainConfig",
    "__version__",
    "backbone",
    "build",
    "configure",
    "convert",
    "evaluate",
    "explain",
    "load",
    "load_weights",
    "models",
    "optimize",
    "save",
    "train",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swindow' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"swindow.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
