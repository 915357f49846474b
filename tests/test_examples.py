"""The short examples run and say what they promise; the long one, examples/demo.py, is `make demo`."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_feature_maps(capsys):
    runpy.run_path(str(EXAMPLES / "feature_maps.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "stride 2: 96 channels on a 25x39 grid",
        "stride 4: 192 channels on a 13x20 grid",
    ]


def test_own_loop(capsys):
    runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert losses[-1] < 0.5 * losses[0]


def test_all_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 50, path
