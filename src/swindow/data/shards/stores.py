"""Bytes of files below one place: a folder, or any URL that fsspec knows (``s3://bucket/prefix``).

Where a store is and how to log in is read from the environment, as the libraries themselves do: for ``s3://``
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the rest of ``AWS_*``, or ``~/.aws``; for all of fsspec
``FSSPEC_S3_…`` and its configuration files. Nothing of that is ever written to a run.
"""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

from swindow.errors import DataError, require
from swindow.images import name_of

ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds; doubled after each attempt: five take 7.5 s of waiting in all
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PASSING_NAMES = frozenset({"HTTPClientError", "ClientConnectionError", "ClientPayloadError", "FSTimeoutError"})

Answer = TypeVar("Answer")


@runtime_checkable
class Ranges(Protocol):
    """Bytes by their place in files."""

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | DataError]:
        """Bytes from (name, start, end) each, asked for together; an error in the place of each that failed."""

    def place(self, name: str) -> str:
        """How messages call a file."""


@runtime_checkable
class Store(Protocol):
    """Files below one place, by their names relative to it (with forward slashes)."""

    root: str

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by name, sorted."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | DataError]:
        """Bytes from (name, start, end) each, asked for together; an error in the place of each that failed."""

    def open(self, name: str) -> BinaryIO:
        """A file to read and seek in."""

    def put(self, local: Path, name: str) -> None:
        """Copy a file of this machine here, whole or not at all."""

    def remove(self, name: str) -> None:
        """Delete one file."""

    def place(self, name: str) -> str:
        """How messages call a file."""


def is_url(source: str | Path) -> bool:
    """Whether a source is a URL rather than a path; ``file://`` counts."""
    return "://" in str(source)


def store_at(source: str | Path) -> Store:
    """The store at a folder or URL; nothing is read yet.

    Raises:
        MissingExtra: a URL, and fsspec or its part for that protocol is not installed.
    """
    text = str(source)
    if not is_url(text) or text.startswith("file://"):
        return LocalStore(text.removeprefix("file://"))
    return RemoteStore(text)


class LocalStore:
    """A folder of this machine."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below; hidden ones left out."""
        found = {}
        for here, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(here, name)
                if not name.startswith(".") and path.is_file():
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        """A whole file."""
        try:
            return Path(self.root, name).read_bytes()
        except OSError as error:
            raise _unreadable(self.place(name), error) from error

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | DataError]:
        """Each file is opened once."""
        streams: dict[str, int] = {}
        found: list[bytes | DataError] = []
        try:
            for name, start, end in wanted:
                try:
                    if name not in streams:
                        streams[name] = os.open(Path(self.root, name), os.O_RDONLY)
                    found.append(_whole(os.pread(streams[name], end - start, start), end - start))
                except (OSError, EOFError) as error:
                    found.append(_unreadable(self.place(name), error))
        finally:
            for stream in streams.values():
                os.close(stream)
        return found

    def open(self, name: str) -> BinaryIO:
        """A file to read and seek in."""
        try:
            return Path(self.root, name).open("rb")
        except OSError as error:
            raise _unreadable(self.place(name), error) from error

    def put(self, local: Path, name: str) -> None:
        """By a new file, of a name that nobody else writes, that then takes its name."""
        target = Path(self.root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            with local.open("rb") as source, part.open("wb") as copy:
                while piece := source.read(2**22):
                    copy.write(piece)
                copy.flush()
                os.fsync(copy.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Delete one file."""
        Path(self.root, name).unlink()

    def place(self, name: str) -> str:
        """Its path."""
        return name_of(f"{self.root}/{name}" if name else self.root)


class RemoteStore:
    """Anything that fsspec reads. Connections belong to the process that opened them: each process opens its own."""

    def __init__(self, root: str, *, attempts: int = ATTEMPTS, first_wait: float = FIRST_WAIT) -> None:
        self.root, self.attempts, self.first_wait = root.rstrip("/"), attempts, first_wait
        self._opened: tuple[int, Any, str] | None = None
        require("fsspec", extra="shards")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below the prefix."""
        files, prefix = self.files()
        found = self._try(lambda: files.find(prefix, detail=True), self.root)
        names = {str(path).removeprefix(prefix).lstrip("/"): facts for path, facts in found.items()}
        return {name: int(facts.get("size") or 0) for name, facts in sorted(names.items()) if name}

    def read(self, name: str) -> bytes:
        """A whole object."""
        files, prefix = self.files()
        return self._try(lambda: files.cat_file(f"{prefix}/{name}"), self.place(name))

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | DataError]:
        """Asked for together; those that fail for a moment are asked for again."""
        files, prefix = self.files()
        found: list[Any] = [None] * len(wanted)
        left = list(range(len(wanted)))
        for attempt in range(1, self.attempts + 1):
            asked = [wanted[place] for place in left]
            starts, ends = [start for _, start, _ in asked], [end for _, _, end in asked]
            try:
                got = files.cat_ranges([f"{prefix}/{name}" for name, _, _ in asked], starts, ends, on_error="return")
            except Exception as error:  # noqa: BLE001 - some file systems raise whatever on_error says
                got = [error] * len(asked)
            for place, answer in zip(left, got, strict=True):
                found[place] = _checked(answer, wanted[place])
            left = [place for place in left if isinstance(found[place], Exception) and is_passing(found[place])]
            if not left:
                break
            if attempt < self.attempts:
                time.sleep(self.first_wait * 2 ** (attempt - 1))
        tried = f" after {self.attempts} attempts"
        return [
            _unreadable(self.place(wanted[place][0]), answer, tried if place in left else "")
            if isinstance(answer, Exception)
            else answer
            for place, answer in enumerate(found)
        ]

    def open(self, name: str) -> Any:
        """A file to read and seek in, of a type of the store's own; what is read is kept in blocks."""
        files, prefix = self.files()
        return self._try(lambda: files.open(f"{prefix}/{name}", "rb"), self.place(name))

    def put(self, local: Path, name: str) -> None:
        """Object stores show an object when all of it is there."""
        files, prefix = self.files()
        self._try(lambda: files.put_file(str(local), f"{prefix}/{name}"), self.place(name))

    def remove(self, name: str) -> None:
        """Delete one object."""
        files, prefix = self.files()
        self._try(lambda: files.rm_file(f"{prefix}/{name}"), self.place(name))

    def place(self, name: str) -> str:
        """Its URL."""
        return name_of(f"{self.root}/{name}" if name else self.root)

    def retried(self, act: Callable[[], Answer], place: str) -> Answer:
        """`act`, again where it fails for a moment.

        Raises:
            DataError: it fails for good, or `attempts` times.
        """
        return self._try(act, place)

    def files(self) -> tuple[Any, str]:
        """The file system of fsspec, and what the names begin with there.

        Raises:
            MissingExtra: fsspec is not installed.
            DataError: it does not know such URLs, or what it needs for them is not installed.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            core = require("fsspec.core", extra="shards")
            try:
                files, prefix = core.url_to_fs(self.root, skip_instance_cache=True)
            except ImportError as error:
                protocol = self.root.split("://")[0]
                hint = "pip install 'swindow[s3]'" if protocol == "s3" else f"what fsspec needs for {protocol}://"
                raise DataError(f"{name_of(self.root)}: {error}; install it: {hint}") from error
            except ValueError as error:
                raise DataError(f"{name_of(self.root)}: {error}; give a URL that fsspec knows") from error
            self._opened = (os.getpid(), files, str(prefix).rstrip("/"))
        return self._opened[1:]

    def _try(self, act: Callable[[], Answer], place: str) -> Answer:
        for attempt in range(1, self.attempts + 1):
            try:
                return act()
            except Exception as error:  # every library below has errors of its own; all mean the same here
                if not is_passing(error):
                    raise _unreadable(place, error) from error
                if attempt == self.attempts:
                    raise _unreadable(place, error, f" after {attempt} attempts") from error
            time.sleep(self.first_wait * 2 ** (attempt - 1))
        raise AssertionError("attempts is at least 1")


def is_passing(error: BaseException) -> bool:
    """Whether an error may be gone in a second: the network's, not those of names, rights or settings."""
    if isinstance(error, _LASTING):
        return False
    return isinstance(error, OSError | EOFError) or any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def _checked(answer: Any, wanted: tuple[str, int, int]) -> bytes | Exception:
    if isinstance(answer, Exception):
        return answer
    try:
        return _whole(bytes(answer), wanted[2] - wanted[1])
    except EOFError as error:
        return error


def _whole(found: bytes, promised: int) -> bytes:
    if len(found) != promised:
        raise EOFError(f"{promised:,} bytes were to come and {len(found):,} came; the file is shorter than its index")
    return found


def _unreadable(place: str, error: BaseException, tried: str = "") -> DataError:
    words = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    advice = "check its name, the network and the credentials" if "://" in place else "check the path"
    return DataError(f"{place}: cannot be read{tried} ({words}); {advice}")
