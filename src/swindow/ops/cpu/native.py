"""Our kernels for the CPU: compiled on first use by the machine's own C++ compiler, for the machine's own processor.

The sources in `csrc` need nothing but a compiler with OpenMP: no headers of torch, so a build takes seconds, and what
it makes does not depend on torch's version. It is kept in the user's cache, under a name that stands for the sources,
the compiler and the processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from swindow.errors import BackendUnavailable

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("g++", "c++")
PROCESSORS = ("x86_64", "AMD64")


def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        BackendUnavailable: there is no compiler here, or none that can build them; the message says why.
    """
    built = _built()
    if isinstance(built, str):
        raise BackendUnavailable(f"our CPU kernels cannot run here: {built}")
    return built


def refusal() -> str | None:
    """Why the kernels cannot run here, or None where they can; builds them if nobody has."""
    built = _built()
    return built if isinstance(built, str) else None


@functools.cache
def _built() -> ctypes.CDLL | str:
    """The library, or why there is none; settled once in a process."""
    if platform.system() != "Linux" or platform.machine() not in PROCESSORS:
        return f"they are made for x86-64 processors under Linux, and this is {platform.machine()}, {platform.system()}"
    command, why = _compiler()
    if why is not None:
        return why
    try:
        return _compiled(command)
    except subprocess.CalledProcessError as error:
        return f"{command[0]} could not build them: {_last_line(error.stderr)}"
    except OSError as error:
        return str(error)


def _compiler() -> tuple[list[str], str | None]:
    """The command that compiles, `CXX` if that is set, as everywhere; or why there is none."""
    asked = os.environ.get("CXX")
    if asked:
        command = shlex.split(asked)
        return command, None if shutil.which(command[0]) else f"CXX is {asked!r}, and there is no such program"
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        return [], f"no C++ compiler was found ({', '.join(COMPILERS)}); install one, such as Debian's g++"
    return [found], None


def _compiled(compiler: list[str]) -> ctypes.CDLL:
    """The library, built unless an equal one was and is whole."""
    sources = sorted(SOURCES.iterdir())
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603
    facts = [*compiler, version, *FLAGS, _processor(), *(path.name + path.read_text() for path in sources)]
    name = f"kernels-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}.so"
    cache = _cache()
    if cache is not None and _is_whole(cache / name):
        return ctypes.CDLL(str(cache / name))
    keep = cache is not None and os.access(cache, os.W_OK)
    # Built beside its place and moved there at once: several processes may be building at the same time. Loaded before
    # that, so that what cannot be loaded is not kept.
    with tempfile.TemporaryDirectory(dir=cache if keep else None, prefix="swindow-") as folder:
        built = Path(folder) / name
        units = [str(path) for path in sources if path.suffix == ".cpp"]
        subprocess.run([*compiler, *FLAGS, *units, "-o", str(built)], check=True, capture_output=True, text=True)  # noqa: S603
        library = ctypes.CDLL(str(built))
        if cache is not None and keep:
            _digest_of(built).write_text(_hash(built))
            built.replace(cache / name)
            _digest_of(built).replace(_digest_of(cache / name))
        return library  # which stays loaded when its file is gone


def _cache() -> Path | None:
    """The user's cache (`XDG_CACHE_HOME`, or ~/.cache), unless somebody else could have put something there."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swindow"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return None
    return folder if about.st_uid == os.getuid() and not about.st_mode & 0o022 else None


def _is_whole(library: Path) -> bool:
    """Whether a build is there as it was written: loading half of one would end the process."""
    digest = _digest_of(library)
    return library.is_file() and digest.is_file() and digest.read_text() == _hash(library)


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _processor() -> str:
    """What the processor can do, as Linux says: a home folder may be shared by different machines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return errors[0] if errors else "it said nothing"
