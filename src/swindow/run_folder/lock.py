"""One writer at a time in a run's folder, on one machine and across machines that share it."""

import contextlib
import errno
import importlib
import os
import socket
import weakref
from pathlib import Path
from types import ModuleType

from swindow.errors import ConfigError

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
UNSUPPORTED = {"ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENOLCK", "EINVAL"}
"""What file systems say that have no locks."""


class Lock:
    """A lock of the operating system on ``.lock``, which ends with the process that holds it, however that ends.

    The file names host and process for whoever is refused. Where a file system has no locks, the being there of another
    file is the lock, and it is taken over when its process is gone from this host.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.named = folder / f"{NAME}-owner"
        self.by_name = False
        self.handle: int | None = None
        self.held = False

    def take(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: another process has it; the message names it.
        """
        while not self.held:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                locks = _lock(handle)
            except BlockingIOError:
                os.close(handle)
                raise self._refusal() from None
            if not locks:
                os.close(handle)
                self._take_by_name()
            elif not self._is_current(handle):
                os.close(handle)  # whoever had it has just removed the file; there is a new one, or none
            else:
                os.ftruncate(handle, 0)
                os.write(handle, _mine().encode())
                self.handle, self.held = handle, True
                _OPEN.add(self)

    def release(self) -> None:
        """Let another process have it; nothing if this one does not."""
        if not self.held:
            return
        self.held = False
        with contextlib.suppress(OSError):  # the folder may have been moved or taken away meanwhile
            (self.named if self.by_name else self.path).unlink()
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def forget(self) -> None:
        """Close the file in a process that was forked from the holder, without letting go of the lock."""
        if self.handle is not None:
            os.close(self.handle)
        self.handle, self.held = None, False

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def _take_by_name(self) -> None:
        try:
            with self.named.open("x", encoding="utf-8") as file:
                file.write(_mine())
        except FileExistsError:
            self._take_over()
        self.held = self.by_name = True

    def _take_over(self) -> None:
        """Take the lock of a process that is gone; of several that find it gone, one."""
        guard = self.named.with_name(f"{NAME}-takeover")
        try:
            guard.touch(exist_ok=False)
        except FileExistsError:
            raise self._refusal(guard) from None
        try:
            host, process = _read(self.named)
            if host != socket.gethostname() or (process != str(os.getpid()) and _alive(process)):
                raise self._refusal(self.named)
            self.named.write_text(_mine(), encoding="utf-8")
        finally:
            guard.unlink()

    def _refusal(self, stale: Path | None = None) -> ConfigError:
        host, process = _read(self.named if stale else self.path)
        holder = f"process {process} on {host}" if process else "another process"
        end = f"delete {stale} if it is gone" if stale else "give another --out"
        return ConfigError(f"{self.path.parent} is in use by {holder}; wait until it ends, or {end}")


_OPEN: weakref.WeakSet[Lock] = weakref.WeakSet()


def _lock(handle: int) -> bool:
    """Lock an open file; False where the file system has no locks.

    Raises:
        BlockingIOError: somebody has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) in UNSUPPORTED:
            return False
        raise
    return True


def _forget_all() -> None:
    """A lock of this kind lives as long as any copy of its file does, and workers that load images outlive us a little:
    they must not keep it."""
    for lock in list(_OPEN):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _read(path: Path) -> tuple[str, str]:
    """Host and process of a lock's file; empty while it is being written."""
    try:
        host, _, process = path.read_text(encoding="utf-8").partition(" ")
    except OSError:
        return "", ""
    return host, process


def _mine() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
