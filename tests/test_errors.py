"""Messages that say what to do, and one tree to catch them by."""

import pickle
import sys
from typing import Any

import pytest

from swindow import errors
from swindow.errors import MissingExtra, SwindowError, UnknownName, require

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def test_everything_is_a_swindow_error_and_stands_in_the_tree() -> None:
    assert len(CLASSES) >= 9
    for cls in CLASSES:
        assert issubclass(cls, SwindowError)
        assert cls.__name__ in errors.__doc__  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("ConfigError", ValueError),
        ("UnknownName", ValueError),
        ("ShapeError", ValueError),
        ("MissingExtra", ImportError),
    ],
)
def test_they_are_also_what_python_would_raise(name: str, parent: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), parent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tinny", "unknown model 'swin_tinny'; did you mean swin_tiny?"),
        ("bass", "unknown model 'bass'; there are: swin_base, swin_small, swin_tiny"),
        ("swin_smal", "unknown model 'swin_smal'; did you mean swin_small or swin_base?"),
    ],
)
def test_an_unknown_name_offers_the_nearest_or_all(name: str, message: str) -> None:
    assert str(UnknownName("model", name, ["swin_tiny", "swin_small", "swin_base"])) == message


@pytest.mark.parametrize(
    "error",
    [UnknownName("model", "a", ("b", "c")), *[cls("what; what to do") for cls in CLASSES if cls is not UnknownName]],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_process_borders(error: Exception) -> None:
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, as data workers send them
    assert type(twin) is type(error)
    assert str(twin) == str(error)


def test_require_imports() -> None:
    assert require("json", extra="train") is sys.modules["json"]
    assert require("xml.dom", extra="train") is sys.modules["xml.dom"]


@pytest.mark.parametrize("module", ["no_such_module", "no_such_module.inside", "json.no_such_module"])
def test_a_missing_extra_says_how_to_install_it(module: str) -> None:
    with pytest.raises(MissingExtra, match=r"is not installed; run: pip install 'swindow\[train\]'") as caught:
        require(module, extra="train")
    assert str(caught.value).startswith(module)


def test_a_broken_dependency_is_not_called_missing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "installed_but_broken.py").write_text("import a_module_that_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_it_needs") as caught:
        require("installed_but_broken", extra="train")
    assert not isinstance(caught.value, MissingExtra)
