"""Storage that fails now and then, for good, or half-way; and the order that goes from shard to shard."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'swindow[shards]'")

from fsspec.implementations.memory import MemoryFileSystem

from swindow.data import open_data
from swindow.data.labelled import Images
from swindow.data.shards.order import WindowedOrder
from swindow.data.shards.packing import PackConfig, pack
from swindow.data.shards.stores import RemoteStore
from swindow.errors import DataError
from swindow.progress import Silent


@pytest.fixture
def place(tmp_path: Path, classes: Any) -> str:
    classes(tmp_path / "in", {"ant": 10, "bee": 10})
    where = f"memory://{tmp_path.name}"
    pack(open_data(tmp_path / "in", for_training=False), where, PackConfig(shard_mb=0.02), progress=Silent())
    return where


def flaky(monkeypatch: pytest.MonkeyPatch, errors: list[Any]) -> list[str]:
    """Each call for a range fails as the next of `errors` says, as long as there are some."""
    whole, calls = MemoryFileSystem.cat_file, []

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        calls.append(path)
        error = errors.pop(0) if errors else None
        if isinstance(error, Exception):
            raise error
        data = whole(self, path, start, end, **more)
        return data[:error] if error else data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return calls


def quick(images: Images) -> Images:
    store = images.encoded.store  # type: ignore[union-attr]
    store.first_wait = 0.001
    return images


def test_what_fails_for_a_moment_is_asked_for_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = quick(open_data(place).split("train"))
    before = images.sources([0, 9, 4])
    errors = [OSError("reset by peer"), TimeoutError("slow"), 3, EOFError("half")]
    calls = flaky(monkeypatch, errors)
    assert images.sources([0, 9, 4]) == before
    assert errors == []
    assert len(calls) > 4


def test_what_fails_five_times_is_an_error_with_shard_and_reason(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = quick(open_data(place).split("train"))
    calls = flaky(monkeypatch, [ConnectionResetError("reset by peer")] * 99)
    with pytest.raises(DataError, match=r"memory://.*train-\d+\.tar/.*after 5 attempts \(reset by peer\)"):
        images.read(0)
    assert len(calls) == 5


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("not yours"), ValueError("no")])
def test_what_will_not_pass_is_told_at_once(place: str, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    images = quick(open_data(place).split("train"))
    calls = flaky(monkeypatch, [error] * 99)
    with pytest.raises(DataError, match=str(error)):
        images.read(0)
    assert len(calls) == 1


def test_a_store_goes_to_another_process_without_its_connection(place: str) -> None:
    store = RemoteStore(place)
    assert store.sizes()
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own bytes
    assert copy._opened is None
    assert copy.sizes() == store.sizes()


def test_a_url_that_fsspec_does_not_know_is_an_error() -> None:
    with pytest.raises(DataError, match="nowhere://x"):
        open_data("nowhere://x")
    with pytest.raises(DataError, match="pack the data"):
        open_data("memory://empty-place")


def test_an_epoch_is_a_permutation_that_stays_within_windows() -> None:
    blocks = np.repeat(np.arange(40), 25)
    order = WindowedOrder(blocks=blocks, window=100)
    first = order(3, 0)
    assert sorted(first.tolist()) == list(range(1000))
    assert (order(3, 0) == first).all()
    assert not (order(3, 1) == first).all()
    assert not (order(4, 0) == first).all()
    for start in range(0, 1000, 100):
        assert len(set(blocks[first[start : start + 100]].tolist())) == 4
    assert len({tuple(sorted(set(blocks[order(3, epoch)[:100]].tolist()))) for epoch in range(5)}) == 5


def test_row_groups_in_memory_are_bounded() -> None:
    blocks = np.repeat(np.arange(40), 25)
    order = WindowedOrder(blocks=blocks, window=1000, heavy=np.full(40, 10), most=30)(0, 0)
    for start in range(0, 975, 75):
        assert len(set(blocks[order[start : start + 75]].tolist())) == 3
