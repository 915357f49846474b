"""Two processes are taught what one is taught, each with a teacher of its own, and share one folder of answers."""

from collections.abc import Iterator

import pytest
import torch

from company import Company
from swindow.objectives import Teacher
from teaching import taught


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    two = Company(2)
    yield two
    two.end()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["soft", "features"])
def test_two_processes_are_taught_what_one_is(company, strategy, kind):
    alone = taught(kind=kind)
    assert any(name.startswith("objective/hints.projections") for name in alone) == (kind == "features")
    for together in company.ask(taught, strategy, kind=kind):
        assert together.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-7)  # teachers answer in fp32


def test_one_reads_what_two_were_told(company, tmp_path, monkeypatch):
    company.ask(taught, "ddp", kind="soft", cache=str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.answers"))) == 2  # a file for each process
    monkeypatch.setattr(Teacher, "model", None)
    taught(kind="soft", cache=str(tmp_path))
