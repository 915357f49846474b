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
from swindow.data.shards.cache import CachedStore
from swindow.data.shards.encoded import TarImages
from swindow.data.shards.order import WindowedOrder
from swindow.data.shards.packing import PackConfig, pack
from swindow.data.shards.parquets import Columns, read_group
from swindow.data.shards.stores import LocalStore, RemoteStore
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


@pytest.mark.parametrize("name", ["../x.tar", "a/../../x.tar", "..\\x.tar", "/etc/x.tar", "C:\\x.tar"])
def test_a_name_that_leads_out_of_the_cache_is_refused(tmp_path: Path, name: str) -> None:
    store = CachedStore(RemoteStore("memory://b"), tmp_path / "cache", {name: (3, "")})
    with pytest.raises(DataError, match="names a place outside of the cache; rename it"):
        store.read(name)
    assert "outside of the cache" in str(store.ranges([(name, 0, 3)])[0])
    assert not list(tmp_path.iterdir())


def test_rows_of_a_tar_that_claims_too_much_are_errors_and_the_others_stand(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"onetwo")
    images = TarImages(
        store=LocalStore(str(tmp_path)),
        shards=("x.tar",),
        sums={"x.tar": (6, "")},
        shard=np.zeros(3, int),
        offset=np.asarray([0, 0, 3]),
        size=np.asarray([3, 64 * 2**30, 3]),
        keys=["a", "b", "c"],
    )
    one, large, two = images.read([0, 1, 2])
    assert (one, two) == (b"one", b"two")
    assert "x.tar/b: 68,719,476,736 bytes are no image" in str(large)
    assert [type(found) for found in images.read([1])] == [DataError]


def test_row_groups_that_fail_for_a_moment_are_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": [b"one", b"two"]}), tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    MemoryFileSystem().pipe_file(f"/{tmp_path.name}/x.parquet", content)
    store = RemoteStore(f"memory://{tmp_path.name}", attempts=3, first_wait=0.001)
    tries: list[Any] = []
    whole, errors = parquet.ParquetFile, [TimeoutError(), ConnectionResetError("reset by peer")]

    def opened(*given: Any, **how: Any) -> Any:
        tries.append(given)
        if errors:
            raise errors.pop()
        return whole(*given, **how)

    monkeypatch.setattr(parquet, "ParquetFile", opened)
    assert read_group(store, "x.parquet", 0, Columns("image", "", "label", None)) == [b"one", b"two"]
    assert len(tries) == 3
    errors += [OSError("Corrupt snappy compressed data.")]
    with pytest.raises(DataError, match=r"cannot be read as Parquet \(Corrupt"):
        read_group(store, "x.parquet", 0, Columns("image", "", "label", None))
    assert len(tries) == 4
    errors += [TimeoutError("slow")] * 3
    with pytest.raises(DataError, match=r"cannot be read after 3 attempts \(slow\)"):
        read_group(store, "x.parquet", 0, Columns("image", "", "label", None))


def test_writers_of_the_same_file_do_not_meet_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"new")
    store = LocalStore(str(tmp_path / "out"))
    store.put(tmp_path / "in", "a/x")
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["x"]
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "none", "a/x")
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["x"]
    assert store.read("a/x") == b"new"


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
