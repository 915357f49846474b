"""What every test gets: one thread, a fixed seed, the same hypothesis cases on every run, tiny models."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from swindow.model import Model, build

# The same cases everywhere, nothing remembered on disk, no clock: what passes once passes always.
settings.register_profile(
    "swindow", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("swindow")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # tiny tensors, and a worker per core


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    hooked = config.getoption("jaxtyping_packages", default=None)
    for item in items:
        if hooked and "compiled" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="runs without --jaxtyping-packages: see `make test`"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


def tiny(*, num_classes: int = 5, in_channels: int = 3, **fields: Any) -> Model:
    """Two small stages, windows of 4 tokens on patches of 2 pixels: 16x16 pixels make two windows a side, then one."""
    shape = {"dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2, "drop_path": 0.0}
    return build("swin_micro", num_classes=num_classes, in_channels=in_channels, **(shape | fields)).eval()


@pytest.fixture(name="tiny")
def tiny_fixture() -> Any:
    """The function above: ``tiny(drop_path=0.5)`` builds a model in eval mode."""
    return tiny
