"""The part of YAML in which YOLO's data sets are described: keys with a word, a list or a table of names each."""

import re
from collections.abc import Iterator
from pathlib import Path

from swindow.errors import DataError
from swindow.images import name_of

Yaml = str | list[str] | dict[str, str]

_QUOTED = re.compile(r"""'((?:[^']|'')*)'|"((?:[^"\\]|\\["\\])*)\"""")
_COMMENT = re.compile(r"""((?:[^'"#]|'[^']*'|"(?:[^"\\]|\\.)*"|(?<=\S)#)*)(#.*)?""")


def is_description(path: Path) -> bool:
    """Whether a file has the keys that every description of YOLO's has; other tools call their files so too."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    return all(re.search(rf"^['\"]?({keys})['\"]?\s*:", text, re.MULTILINE) for keys in ("names", "train|val|test"))


def read_yaml(path: Path) -> dict[str, Yaml]:
    """The keys of a file; words as they are, without quotes.

    Raises:
        DataError: it cannot be read, or says more than such descriptions do: tables in tables, references, tags.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name_of(path)}: cannot be read as YAML ({error}); save it as UTF-8") from error
    found: dict[str, Yaml] = {}
    key, script = "", False
    for number, line in _whole_lines(text):
        if script and line[0] in " \t":  # such as how to download it
            continue
        script = line.endswith((": |", ": >", ": |-", ": >-"))
        try:
            key = _add(found, key, line.rstrip("|>-") if script else line)
        except ValueError as error:
            raise DataError(
                f"{name_of(path)}, line {number}: {line.strip()[:60]!r} {error}; write key: value, or names as a list"
            ) from error
    return found


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that says something, comments left out; a list in brackets as one line."""
    begun, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        plain = _uncommented(line)
        if begun:
            begun += f" {plain.strip()}"
        elif plain.strip() not in ("", "---", "..."):
            begun, first = plain, number
        opened = re.match(r"[^\s'\"#-][^'\"#]*?:\s*([\[{])", begun)
        if begun and (opened is None or begun.endswith({"[": "]", "{": "}"}[opened[1]])):
            yield first, begun
            begun = ""
    if begun:
        yield first, begun


def _add(found: dict[str, Yaml], key: str, line: str) -> str:
    """Take one line in; the key that lines below it belong to."""
    inner = line.strip()
    if line[0] not in " \t-":
        key, value = _split(inner)
        if key in found:
            raise ValueError("is there twice")
        found[key] = _value(value)
        return key
    if key and not isinstance(found[key], str) and found[key] != [] and inner[:1] in "[{":
        raise ValueError("is a list within a list")
    there = found.get(key)
    if there is None:
        raise ValueError("belongs to no key")
    if inner.startswith("- ") or inner == "-":
        if there == "":
            there = found[key] = []
        if not isinstance(there, list):
            raise ValueError("is an item where none is due")
        there.append(_word(inner[1:].strip()))
        return key
    name, value = _split(inner)
    if there == "":
        there = found[key] = {}
    if not isinstance(there, dict) or name in there:
        raise ValueError("is a name where none is due")
    there[name] = _word(value)
    return key


def _split(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"""('[^']*'|"[^"]*"|[^:\s][^:]*?)\s*:(?:\s+(.*))?""", text)
    if found is None:
        raise ValueError("has no key")
    return _word(found[1]), (found[2] or "").strip()


def _value(text: str) -> Yaml:
    if text.startswith("["):
        return [_word(item) for item in _items(text, "[]")]
    if text.startswith("{"):
        return {key: _word(value) for key, value in map(_split, _items(text, "{}"))}
    return _word(text)


def _items(text: str, brackets: str) -> list[str]:
    """What stands between commas; quoted words may hold some."""
    if not text.endswith(brackets[1]):
        raise ValueError(f"has no {brackets[1]} at its end")
    parts = re.findall(r"""((?:'[^']*'|"(?:[^"\\]|\\.)*"|[^,'"]|(?<=\w)['"])+)""", text[1:-1])
    return [part.strip() for part in parts if part.strip()]


def _word(text: str) -> str:
    """A word without its quotes."""
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        return quoted[1].replace("''", "'") if quoted[1] is not None else re.sub(r"\\(.)", r"\1", quoted[2])
    if text[:1] in tuple("&*!|>{[%@`'\""):
        raise ValueError("says more than such descriptions do")
    return text


def _uncommented(line: str) -> str:
    found = _COMMENT.fullmatch(line)
    return (found[1] if found is not None else line).rstrip()
