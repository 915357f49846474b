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
    compiler = next(
        (path for name in (os.environ.get("CXX"), *COMPILERS) if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        return f"no C++ compiler was found ({', '.join(COMPILERS)}); install one, such as Debian's g++"
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except subprocess.CalledProcessError as error:
        return f"{compiler} could not build them: {_last_line(error.stderr)}"
    except OSError as error:
        return str(error)


def _compiled(compiler: str) -> Path:
    """The library's file, built unless an equal one was."""
    sources = sorted(SOURCES.iterdir())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603
    facts = [version, *FLAGS, _processor(), *(path.name + path.read_text() for path in sources)]
    name = f"kernels-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}.so"
    cache = _cache()
    if (cache / name).exists():
        return cache / name
    # Built beside its place and moved there at once: several processes may be building at the same time.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / name
        units = [str(path) for path in sources if path.suffix == ".cpp"]
        command = [compiler, *FLAGS, *units, "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        built.replace(cache / name)
    return cache / name


def _cache() -> Path:
    """A folder to keep builds in: the user's cache, or where that cannot be written a temporary one."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "swindow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="swindow-"))
    return Path(tempfile.mkdtemp(prefix="swindow-"))


def _processor() -> str:
    """What the processor can do, as Linux says: a home folder may be shared by different machines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return errors[0] if errors else "it said nothing"
