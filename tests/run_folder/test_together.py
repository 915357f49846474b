"""Saved states of several processes: any layout is read in any other to the bit, and one's error is everyone's."""

import json
import os
from collections.abc import Iterator

import pytest
import safetensors

from company import Company
from saving_together import fails, filled_in, only_the_first_writes, refused, saved_in
from swindow.run_folder.lock import Lock

LAYOUTS = ["alone", "ddp", "fsdp"]


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    two = Company(2)
    yield two
    two.end()


def asked(company, layout, function, *given, **named):
    """One answer, the same of all processes; of this one where the layout is alone."""
    if layout == "alone":
        return function(*given, layout, **named)
    first, second = company.ask(function, *given, layout, **named)
    assert first == second
    return first


@pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind"])
@pytest.mark.parametrize("before", LAYOUTS)
def test_what_one_layout_saves_all_layouts_read_to_the_bit(company, tmp_path, before, behind):
    folder = str(tmp_path / "run")
    names = (
        saved_in(folder, before, 5, behind=behind)
        if before == "alone"
        else company.ask(saved_in, folder, before, 5, behind=behind)[0]
    )
    parts = [name for name in names if name.startswith("training")]
    wanted = ["training-00001-of-00002.safetensors", "training-00002-of-00002.safetensors"]
    assert parts == (wanted if before == "fsdp" else ["training.safetensors"])
    for after in LAYOUTS:
        assert asked(company, after, filled_in, folder) == 5


def test_two_processes_then_one_then_two(company, tmp_path):
    folder = str(tmp_path / "run")
    for step, layout in enumerate(["fsdp", "alone", "fsdp", "ddp", "fsdp"], start=1):
        if layout == "alone":
            saved_in(folder, layout, step)
        else:
            company.ask(saved_in, folder, layout, step)
        assert asked(company, LAYOUTS[step % 3], filled_in, folder) == step


def test_pieces_are_written_once_and_as_torch_reads_them(company, tmp_path):
    folder = tmp_path / "run"
    company.ask(saved_in, str(folder), "fsdp", 3)
    rows = {}
    for path in sorted((folder / "steps" / "step-00000003").glob("training-*")):
        with safetensors.safe_open(path, framework="pt") as reader:
            offsets = json.loads(reader.metadata()["DCP_SHARDING_INFO"])
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                rows.setdefault(name, []).append((offsets[name]["saved_offsets"], reader.get_slice(name).get_shape()))
    assert rows["optimizer/odd/exp_avg"] == [([0, 0], [3, 3]), ([3, 0], [2, 3])]
    assert rows["optimizer/one row/exp_avg"] == [([0, 0], [1, 4])]
    assert rows["average/count"] == [([], [])]


@pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("kind", "says"), [("nan", "optimizer/odd/exp_avg holds values"), ("disk", "No space left on device")]
)
def test_an_error_of_one_process_is_everyone_s_and_nobody_waits(company, tmp_path, rank, kind, says, behind):
    heard = company.ask(fails, str(tmp_path / "run"), rank, kind, behind)
    assert all(says in line for line in heard), heard
    assert [path.name for path in (tmp_path / "run" / "steps").iterdir()] == ["step-00000008"]


def test_a_folder_in_use_is_refused_to_all(company, tmp_path):
    held = Lock(tmp_path)
    held.take()
    for said in company.ask(refused, str(tmp_path)):
        assert said.startswith("ConfigError: ")
        assert f"in use by process {os.getpid()}" in said
    held.release()


def test_the_first_process_alone_holds_the_lock_and_writes(company, tmp_path):
    assert company.ask(only_the_first_writes, str(tmp_path)) == [[True], [False]]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == ['{"kind": "train", "step": 1}']
    assert json.loads((tmp_path / "result.json").read_text()) == {"rank": 0}
    assert (tmp_path / "best" / "model.safetensors").exists()
