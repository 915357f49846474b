"""Which image files a person means by a list of files, folders and patterns."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from swindow.data.folders import is_litter
from swindow.data.inventory import natural_key
from swindow.errors import DataError
from swindow.images import IMAGE_SUFFIXES, name_of


def find_images(inputs: Sequence[str | Path], suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The images that files, folders and patterns name: each once, in the order given, folders in natural order.

    A folder gives all images below it, a pattern those it matches (``**`` crosses folders); both go by suffix and leave
    hidden files out. A file is taken whatever it is called: that it is missing or no image is for its reader to say.

    Raises:
        DataError: a folder or pattern without images, or nothing at all that exists.
    """
    found: dict[str, str] = {}
    for given in inputs:
        for path in _expanded(str(given), tuple(suffixes)):
            found.setdefault(same_place(path), path)
    paths = [Path(path) for path in found.values()]
    if not any(path.exists() for path in paths):
        named = f"{', '.join(name_of(path) for path in paths[:3])} not found" if paths else "nothing was named"
        raise DataError(f"no images: {named}; give image files, folders or patterns")
    return paths


def same_place(path: str | Path) -> str:
    """A text that is equal for two spellings of a path; links to one file stay different."""
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links


def _expanded(given: str, suffixes: tuple[str, ...]) -> list[str]:
    """The paths that one input stands for."""
    if Path(given).is_dir():
        paths = _below(given)
    elif Path(given).exists() or not glob.has_magic(given):
        return [given]
    else:
        matches = glob.glob(given, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        paths = [path for match in matches for path in (_below(match) if Path(match).is_dir() else [match])]
    images = [path for path in paths if path.lower().endswith(suffixes)]
    if not images:
        raise DataError(f"{name_of(given)}: no images; their names must end in {' '.join(sorted(suffixes))}")
    return sorted(images, key=_natural)


def _below(folder: str) -> list[str]:
    """Files in a folder and the folders below it; linked folders are left out, since they may lead back."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{name_of(error.filename)}: this folder cannot be read ({error.strerror})") from error

    paths = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_litter(name)]
        paths += [str(Path(place, name)) for name in files if not is_litter(name)]
    return paths


def _natural(path: str) -> list[tuple[list[int | str], str]]:
    """image2 before image10, folder by folder."""
    return [natural_key(part) for part in Path(path).parts]
