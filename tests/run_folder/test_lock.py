"""One run at a time in a folder: whoever comes second is refused, and nobody's death blocks it."""

import multiprocessing
import os
import signal
import socket

import pytest

from swindow.errors import ConfigError
from swindow.run_folder import lock as locks
from swindow.run_folder.lock import Lock

RACES = 20


def dead_process():
    """The number of a process that is gone."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def in_child(action):
    """Fork, and return the child's number and a pipe to which it writes one byte when `action` is done."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os.write(writing, b"+")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path):
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.take()
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"):
        second.take()
    first.release()
    second.take()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_the_death_of_the_holder_frees_the_folder(tmp_path):
    child, pipe = in_child(Lock(tmp_path).take)
    assert os.read(pipe, 1) == b"+"
    with pytest.raises(ConfigError, match=f"in use by process {child} "):
        Lock(tmp_path).take()
    end(child)
    Lock(tmp_path).take()


def test_a_forked_worker_that_outlives_the_holder_does_not_keep_the_folder(tmp_path):
    held = Lock(tmp_path)
    held.take()
    child, pipe = in_child(lambda: None)
    try:
        assert os.read(pipe, 1) == b"+"
        with pytest.raises(ConfigError):  # the fork has not let go of it either
            Lock(tmp_path).take()
        os.close(held.handle)  # as the holder's death would
        Lock(tmp_path).take()
    finally:
        end(child)
        held.handle, held.held = None, False


def contender(folder, start, winners, by_name):
    if by_name:
        locks.fcntl = None
    mine = Lock(folder)
    start.wait()
    try:
        mine.take()
    except ConfigError:
        winners.put(None)
    else:
        winners.put(os.getpid())
    start.wait()  # nobody lets go before all have tried
    mine.release()


@pytest.mark.parametrize("by_name", [False, True], ids=["locked", "by name"])
def test_of_starters_at_once_one_wins(tmp_path, by_name):
    context = multiprocessing.get_context("fork")
    for race in range(RACES):
        folder = tmp_path / str(race)
        folder.mkdir()
        stale = f"{socket.gethostname()} {dead_process()}"  # as a run that was killed leaves it
        (folder / (".lock-owner" if by_name else ".lock")).write_text(stale)
        start, winners = context.Barrier(2), context.SimpleQueue()
        rivals = [context.Process(target=contender, args=(folder, start, winners, by_name)) for _ in range(2)]
        for rival in rivals:
            rival.start()
        won = [winners.get() for _ in rivals]
        for rival in rivals:
            rival.join()
        assert sum(winner is not None for winner in won) == 1, won


def test_without_locks_a_file_is_the_lock_and_outlives_only_a_living_process(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / ".lock-owner").write_text(f"{socket.gethostname()} {os.getppid()}")
    with pytest.raises(
        ConfigError, match=rf"in use by process {os.getppid()} on .* delete .*\.lock-owner if it is gone"
    ):
        Lock(tmp_path).take()
    (tmp_path / ".lock-owner").write_text("another-machine 1")
    with pytest.raises(ConfigError, match="in use by process 1 on another-machine"):
        Lock(tmp_path).take()
    (tmp_path / ".lock-owner").write_text(f"{socket.gethostname()} {dead_process()}")
    mine = Lock(tmp_path)
    mine.take()
    mine.release()
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"])
