"""The public names, what importing costs, and the floors that a linter keeps."""

import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import swindow

ROOT = Path(__file__).parents[1]
PROMISED = {
    "Predictor",
    "backbone",
    "build",
    "evaluate",
    "explain",
    "load",
    "models",
    "optimize",
    "save",
    "train",
    "use_backend",
}


def python(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints; its warnings are errors too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_sorted_short_and_holds_what_was_promised() -> None:
    assert swindow.__all__ == sorted(swindow.__all__)
    assert len(set(swindow.__all__) - {"__version__"}) <= 15
    assert set(swindow.__all__) >= PROMISED
    assert dir(swindow) == swindow.__all__


def test_all_is_what_is_exported() -> None:
    for name in swindow.__all__:
        assert not isinstance(getattr(swindow, name), ModuleType), name
    ours = {name for name, value in vars(swindow).items() if getattr(value, "__module__", "").startswith("swindow")}
    assert {name for name in ours if not name.startswith("_")} == set(swindow.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'swindow' has no attribute 'buildd'"):
        swindow.buildd  # noqa: B018


def test_no_module_is_called_like_a_public_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(swindow.__path__)}
    assert modules & set(swindow.__all__) == set()


CALL_EVERYTHING = """
import importlib, pkgutil, sys
from pathlib import Path
import numpy, PIL.Image
import swindow

for module in pkgutil.walk_packages(swindow.__path__, "swindow."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

called = {"__version__"}
def call(name, *args, **kwargs):
    called.add(name)
    return getattr(swindow, name)(*args, **kwargs)

folder, noise = Path(sys.argv[1]), numpy.random.default_rng(0)
for kind in ("bright", "dark"):
    (folder / "data" / kind).mkdir(parents=True)
    for index in range(8):
        pixels = noise.integers(0, 100, (20, 20, 3)) + (150 if kind == "bright" else 0)
        PIL.Image.fromarray(pixels.astype("uint8")).save(folder / "data" / kind / f"{index}.png")
photo = folder / "data" / "dark" / "0.png"

shape = {"dim": 6, "window": 2}
assert "swin_nano" in call("models")
assert call("backbone", "swin_nano", **shape).channels == (6, 12)
model = call("build", "swin_nano", num_classes=2, **shape)
call("use_backend", model, "sdpa")
assert call("optimize", model).did
assert call("save", model, folder / "saved").exists()
assert call("load", folder / "saved").config == model.config
assert call("convert", folder / "saved", folder / "timm.pth", to="timm").exists()
assert call("load_weights", model, folder / "saved", say=None).problems == []
config = call("configure", str(folder / "data"), model="swin_nano", fields=shape, epochs=1, size=16, batch=4,
              out=str(folder / "run"), device="cpu", workers=0)
assert isinstance(config, getattr(swindow, "TrainConfig"))
assert call("TrainConfig", data="x").data == "x"
run = call("train", config)
assert (folder / "run" / "result.json").exists()
assert 0 <= call("evaluate", folder / "run").accuracy <= 1
assert call("Predictor", folder / "run")(photo).classes == ("bright", "dark")
assert call("explain", folder / "run", photo, out=folder / "explained")
assert called == set(swindow.__all__), set(swindow.__all__) - called
"""


def test_every_public_name_can_be_called_after_importing_every_module(tmp_path: Path) -> None:
    python(CALL_EVERYTHING, tmp_path)


HEAVY = ["torch", "torchvision", "tyro", "matplotlib", "sklearn", "pyarrow", "torchmetrics", "tensorboard", "timm"]
PRINT_HEAVY = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import swindow", ""),
        ("import swindow.cli", ""),
        ("from swindow import Predictor, build, load; build('swin_nano', dim=6)", "torch"),
    ],
)
def test_importing_takes_in_no_more_than_it_needs(code: str, loaded: str) -> None:
    assert python(f"{code}\n{PRINT_HEAVY}").strip() == loaded


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The import linter on a copy of the package."""
    program = Path(sys.executable).with_name("lint-imports")
    environment = {"PYTHONPATH": str(folder / "src"), "PATH": "", "COLUMNS": "200"}
    command = [str(program), "--config", str(folder / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_floors_only_look_down(copied: Path) -> None:
    done = lint_imports(copied)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("backbones/swin.py", "from swindow.heads import classify", "swindow.backbones.swin -> swindow.heads"),
        ("ops/windows.py", "import swindow.layers", "swindow.ops.windows -> swindow.layers"),
        ("model.py", "import tyro", "swindow.model -> tyro"),
        ("training.py", "def late():\n    import timm", "swindow.training -> timm"),
        ("newcomer.py", "", "newcomer"),
    ],
)
def test_a_planted_import_is_reported(copied: Path, file: str, line: str, complaint: str) -> None:
    path = copied / "src" / "swindow" / file
    with path.open("a") as module:
        module.write(f"\n{line}\n")
    done = lint_imports(copied)
    assert done.returncode == 1
    assert complaint in done.stdout
