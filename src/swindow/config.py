"""Frozen dataclasses to plain dicts and TOML, and back, strictly.

A dataclass with a ``kind`` class variable carries it along as a tag, which picks the class in a union of such. An
unknown key, a missing key or a value of the wrong type is a `ConfigError` that names its path. TOML has no null: None
is written ``"@none"``, and only that spelling reads as None.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from swindow.errors import ConfigError, UnknownName

NONE = "@none"
Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass tree as dicts, lists and plain values; None stays None."""
    values = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"kind": config.kind, **values} if hasattr(type(config), "kind") else values


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build `cls` from a dict that has exactly its fields (those with a default may be left out).

    Raises:
        ConfigError: an unknown or missing field, or a value of the wrong type; the message gives the path.
    """
    from cattrs.v import format_exception, transform_error  # cattrs takes 40 ms; `import swindow` does not need it

    def reason(error: BaseException, kind: Any) -> str:
        return str(error) if isinstance(error, ConfigError) else format_exception(error, kind)

    _refuse_unknown(cls, values, "")
    try:
        return _converter().structure(dict(values), cls)
    except ConfigError:
        raise
    except Exception as error:
        reasons = transform_error(error, path="config", format_exception=reason)
        raise ConfigError(f"invalid settings: {'; '.join(reasons)}") from error


def merge(config: Config, partial: Mapping[str, Any]) -> Config:
    """`config` with the (nested) values of `partial` put in place of its own."""
    return from_dict(type(config), _merged(to_dict(config), partial))


def typed(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for some fields of a dataclass, each of its field's type, lists made tuples.

    Raises:
        UnknownName: no such field.
        ConfigError: a value of another type.
    """
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise UnknownName("field", name, types)
        try:
            found[name] = value if dataclasses.is_dataclass(value) else _converter().structure(value, types[name])
        except Exception as error:  # whatever cattrs raises, the value is of another type
            raise ConfigError(f"{name} is {value!r}, which is not {_name(types[name])}") from error
    return found


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def dumps(config: Any) -> str:
    """A dataclass tree as TOML text."""
    import tomli_w

    return tomli_w.dumps(_spell_none(to_dict(config)))


def loads(text: str, *, source: str = "TOML") -> dict[str, Any]:
    """TOML text as a dict, ``"@none"`` read as None.

    Raises:
        ConfigError: the text is not TOML; `source` says whose text it was.
    """
    try:
        return _read_none(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """The (possibly partial) settings in a TOML file.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this configuration file ({error})") from error
    return loads(text, source=str(path))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and _same_kind(before, value):
            result[key] = _merged(before, value)
        else:
            result[key] = value
    return result


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` speaks of the class that `old` is; another class has other fields and starts from its defaults."""
    return new.get("kind") in (None, old.get("kind"))


def _spell_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spell_none(item) for item in value]
    if value == NONE:
        raise ConfigError(f"the text {NONE!r} is how None is written in TOML and cannot be a value; use another text")
    return NONE if value is None else value


def _read_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _read_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_none(item) for item in value]
    return None if value == NONE else value


def _refuse_unknown(cls: Any, values: Any, path: str) -> None:
    """Unknown keys, with the nearest known one; cattrs would name them without a suggestion."""
    if not dataclasses.is_dataclass(cls) or not isinstance(values, Mapping):
        return
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key == "kind" and hasattr(cls, "kind"):
            continue
        if key not in fields:
            raise UnknownName("setting", f"{path}{key}", [f"{path}{name}" for name in fields])
        _refuse_unknown(_dataclass_in(fields[key], value), value, f"{path}{key}.")


def _dataclass_in(annotation: Any, value: Any) -> Any:
    """The dataclass that `value` is for, where the annotation offers one or several."""
    tag = value.get("kind") if isinstance(value, Mapping) else None
    options = [member for member in _members(annotation) if dataclasses.is_dataclass(member)]
    return next((option for option in options if tag is None or getattr(option, "kind", None) == tag), None)


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = isinstance(annotation, UnionType) or get_origin(annotation) is Union
    return get_args(annotation) if is_union else (annotation,)


def _converter() -> Any:
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook_func(_is_plain_union, _one_of)
    converter.register_structure_hook_func(_is_tagged, _by_tag)
    return converter


def _is_tagged(annotation: Any) -> bool:
    """A dataclass with a `kind`, or a union of such (None may be among them)."""
    members = [member for member in _members(annotation) if member is not type(None)]
    return all(dataclasses.is_dataclass(member) and hasattr(member, "kind") for member in members)


def _by_tag(value: Any, annotation: Any) -> Any:
    """The dataclass that the tag names; the tag may be left out where there is no choice."""
    from cattrs.gen import make_dict_structure_fn

    if value is None and type(None) in _members(annotation):
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} is not a table")
    options = {member.kind: member for member in _members(annotation) if member is not type(None)}
    tag = value.get("kind", next(iter(options)) if len(options) == 1 else None)
    if tag not in options:
        raise UnknownName("kind", str(tag), options)
    build = make_dict_structure_fn(options[tag], _converter(), _cattrs_forbid_extra_keys=True)
    return build({key: item for key, item in value.items() if key != "kind"}, options[tag])


def _exactly(value: Any, kind: type) -> Any:
    """No silent conversion: ``"3"`` is not 3, 1 is not True; an int may stand for a float."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{value!r} is not {'an' if kind is int else 'a'} {kind.__name__}")
    return value


def _is_plain_union(annotation: Any) -> bool:
    """A union of plain values and tuples of them, such as ``int | tuple[int, int] | None``, not known to cattrs."""
    if len(_members(annotation)) < 2:
        return False
    plain = (bool, int, float, str, type(None), Any)
    return all(member in plain or get_origin(member) in (tuple, Literal) for member in get_args(annotation))


def _one_of(value: Any, annotation: Any) -> Any:
    converter = _converter()
    for member in get_args(annotation):
        if member is type(None):
            if value is None:
                return None
            continue
        if get_origin(member) is tuple and not isinstance(value, (list, tuple)):
            continue
        try:
            return converter.structure(value, member)
        except Exception:  # noqa: BLE001, S112 - the next member may fit; when none does, the error below names all
            continue
    raise ConfigError(f"{value!r} is not {annotation}")
