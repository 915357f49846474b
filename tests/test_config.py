"""Dataclasses to TOML and back: nothing lost, nothing guessed, every mistake named by its path."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swindow.backbones import VARIANTS
from swindow.config import dumps, from_dict, loads, merge, read_toml, to_dict
from swindow.errors import ConfigError, UnknownName
from swindow.model import ModelConfig, model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast:
    kind: ClassVar[str] = "fast"
    rate: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow:
    kind: ClassVar[str] = "slow"
    rate: float = 0.01
    patience: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    mode: Fast | Slow = dataclasses.field(default_factory=Fast)
    extra: Slow | None = None
    inner: Inner = dataclasses.field(default_factory=lambda: Inner(width=1))
    count: int | None = None
    size: int | tuple[int, int] | None = None
    colour: Literal["red", "green"] = "red"
    on: bool = False
    note: str | None = ""
    values: dict[str, int | float | bool | str] = dataclasses.field(default_factory=dict)


texts = st.text(max_size=8).filter(lambda text: text != "@none")
numbers = st.floats(allow_nan=False, allow_infinity=False)
outers = st.builds(
    Outer,
    mode=st.one_of(st.builds(Fast, rate=numbers), st.builds(Slow, rate=numbers, patience=st.integers(-9, 9))),
    extra=st.none() | st.builds(Slow),
    inner=st.builds(Inner, width=st.integers(-(2**60), 2**60), names=st.lists(texts, max_size=3).map(tuple)),
    count=st.none() | st.integers(-9, 9),
    size=st.none() | st.integers(0, 9) | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    colour=st.sampled_from(["red", "green"]),
    on=st.booleans(),
    note=st.none() | texts,
    values=st.dictionaries(
        st.text("ab_", min_size=1, max_size=3), st.integers(0, 9) | st.booleans() | texts, max_size=3
    ),
)


@given(config=outers)
def test_every_config_comes_back_from_its_toml(config: Outer) -> None:
    text = dumps(config)
    assert from_dict(Outer, loads(text)) == config
    assert from_dict(Outer, to_dict(config)) == config
    tomllib.loads(text)  # any reader of TOML can read it


@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_s_config_comes_back(name: str) -> None:
    window = {"window": 5} if hasattr(VARIANTS[name], "window") else {}
    config = model_config(name, num_classes=21, in_channels=4, label_smoothing=0.1, **window)
    twin = from_dict(ModelConfig, loads(dumps(config)))
    assert twin == config
    assert isinstance(twin.backbone.depths, tuple)


def test_none_has_a_spelling_and_no_other_text_reads_as_none() -> None:
    assert 'note = "@none"' in dumps(Outer(note=None))
    assert from_dict(Outer, loads('note = "@none"')).note is None
    assert from_dict(Outer, loads('note = "none"')).note == "none"
    with pytest.raises(ConfigError, match="the text '@none' is how None is written in TOML and cannot be a value"):
        dumps(Outer(note="@none"))


def test_the_tag_picks_the_class() -> None:
    assert to_dict(Outer(mode=Slow()))["mode"] == {"kind": "slow", "rate": 0.01, "patience": 3}
    assert from_dict(Outer, {"mode": {"kind": "slow", "patience": 5}}).mode == Slow(patience=5)
    assert from_dict(Outer, {"extra": {"rate": 2.0}}).extra == Slow(rate=2.0)  # no choice, no tag needed


def test_an_int_may_stand_for_a_float() -> None:
    rate = from_dict(Outer, {"mode": {"kind": "fast", "rate": 1}}).mode.rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": 3}, "unknown setting 'counts'; did you mean count"),
        ({"inner": {"width": 1, "nmaes": []}}, "unknown setting 'inner.nmaes'; did you mean inner.names"),
        ({"mode": {"kind": "slow", "patienc": 1}}, "unknown setting 'mode.patienc'; did you mean mode.patience"),
        ({"mode": {"kind": "fats"}}, "unknown kind 'fats'; did you mean fast"),
        ({"mode": {"rate": 1.0}}, "unknown kind 'None'; there are: fast, slow"),
    ],
)
def test_unknown_names_are_refused_with_their_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"count": "3"}, r"'3' is not .*count"),
        ({"count": True}, r"True is not .*count"),
        ({"count": 3.0}, r"3\.0 is not .*count"),
        ({"on": 1}, r"1 is not a bool.*on"),
        ({"colour": "blue"}, "blue.*colour"),
        ({"size": [1, 2, 3]}, r"\[1, 2, 3\] is not .*size"),
        ({"inner": {}}, "width"),
        ({"inner": {"width": "wide"}}, r"'wide' is not an int.*inner\.width"),
        ({"inner": {"width": 1, "names": [1]}}, r"1 is not a str.*names"),
        ({"inner": 3}, "inner"),
        ({"extra": 3}, "3 is not a table.*extra"),
        ({"mode": {"kind": "slow", "patience": None}}, "None is not an int.*patience"),
        ({"values": {"x": None}}, r"None is not int \| float.*values\['x'\]"),
    ],
)
def test_values_of_the_wrong_type_are_refused_with_their_path(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        from_dict(Outer, values)
    assert not isinstance(caught.value, UnknownName)
    assert "\n" not in str(caught.value)


def test_a_config_s_own_complaint_comes_through() -> None:
    values = to_dict(model_config("swin_tiny"))
    values["backbone"]["window"] = 0
    with pytest.raises(ConfigError, match=r"every entry must be a side or .* of at least 1 @ config\.backbone"):
        from_dict(ModelConfig, values)


def test_merging_changes_what_is_named_and_nothing_else() -> None:
    config = Outer(mode=Slow(patience=7), inner=Inner(width=2, names=("a",)), values={"a": 1})
    merged = merge(config, {"inner": {"width": 3}, "mode": {"rate": 0.5}, "values": {"b": 2}, "count": 4})
    expected = dataclasses.replace(
        config, inner=Inner(width=3, names=("a",)), mode=Slow(patience=7, rate=0.5), values={"a": 1, "b": 2}, count=4
    )
    assert merged == expected
    assert merge(config, {}) == config
    assert merge(merged, {"count": None}).count is None


def test_merging_another_kind_starts_from_that_kind_s_defaults() -> None:
    config = Outer(mode=Slow(patience=7, rate=0.5))
    assert merge(config, {"mode": {"kind": "fast"}}).mode == Fast()
    assert merge(config, {"mode": {"kind": "slow"}}).mode == Slow(patience=7, rate=0.5)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text('count = "@none"\n[inner]\nwidth = 4\n', encoding="utf-8")
    assert read_toml(path) == {"count": None, "inner": {"width": 4}}
    path.write_text("count = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"part\.toml: not valid TOML: .*line 1"):
        read_toml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"part\.toml: cannot read this configuration file"):
        read_toml(path)
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot read this configuration file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot read this configuration file"):
        read_toml(tmp_path)
