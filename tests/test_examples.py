"""The short examples run and say what they promise; the long ones are `make demo`, `demo-segment` and `demo-detect`."""

import re
import runpy
from pathlib import Path

import numpy as np

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


def test_timm_backbone(capsys):
    runpy.run_path(str(EXAMPLES / "timm_backbone.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "stride 8: 192 channels on a 16x12 grid",
        "stride 16: 384 channels on a 8x6 grid",
        "stride 32: 768 channels on a 4x3 grid",
        "the class that was taught: 2",
    ]


def test_transformers_backbone(capsys):
    runpy.run_path(str(EXAMPLES / "transformers_backbone.py"), run_name="__main__")
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"loss [01]\.\d{3} on maps of \[24, 48, 96, 192\] channels", first)
    assert second == "saved and loaded: the same answers"


def test_torchvision_detection(capsys):
    runpy.run_path(str(EXAMPLES / "torchvision_detection.py"), run_name="__main__")
    found = re.search(r"best box \[(\d+), (\d+), (\d+), (\d+)\], score (\S+)$", capsys.readouterr().out.strip())
    left, top, right, bottom = map(int, found.groups()[:4])
    overlap = max(0, min(right, 100) - max(left, 40)) * max(0, min(bottom, 70) - max(top, 30))
    union = (right - left) * (bottom - top) + 60 * 40 - overlap
    assert overlap / union > 0.5
    assert float(found[5]) > 0.5


def test_painted_towns_are_the_same_every_time_and_their_masks_belong_to_them(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    demo = runpy.run_path(str(EXAMPLES / "demo_segment.py"))
    pairs = [demo["paint_town"](np.random.default_rng(number)) for number in (3, 3, 4)]
    (image, mask), again, other = [tuple(np.asarray(picture) for picture in pair) for pair in pairs]
    assert all(np.array_equal(*both) for both in zip((image, mask), again, strict=True))
    assert not np.array_equal(image, other[0])
    assert image.shape == (*mask.shape, 3)
    assert set(np.unique(mask)) == set(range(len(demo["CLASSES"])))
    means = np.stack([image[mask == label].mean(0) for label in np.unique(mask)])
    apart = np.linalg.norm(means[:, None] - means, axis=-1)[~np.eye(len(means), dtype=bool)]
    assert apart.min() > 20  # each class has a colour of its own, where its mask says


def test_all_are_short():
    painters = {EXAMPLES / "demo_segment.py", EXAMPLES / "demo_detect.py"}  # of their own data
    for path in set(EXAMPLES.glob("*.py")) - painters:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 50, path


def test_painted_desks_are_the_same_every_time_and_their_outlines_lie_on_things(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    demo = runpy.run_path(str(EXAMPLES / "demo_detect.py"))
    (picture, things), (again, _), (other, _) = [
        demo["paint_desk"](np.random.default_rng(number)) for number in (3, 3, 4)
    ]
    assert np.array_equal(picture, again)
    assert not np.array_equal(picture, other)
    assert things
    boxes = [(outline.min(0), outline.max(0)) for _, outline in things]
    for first, (low, high) in enumerate(boxes):
        assert (low >= 0).all()
        assert (high <= picture.width).all()
        assert all((high < lower).any() or (low > higher).any() or first == second or _apart(things, first, second)
                   for second, (lower, higher) in enumerate(boxes))  # fmt: skip


def _apart(things, first, second):
    """Whether the outlines' nearest points are some pixels away from one another, though their boxes overlap."""
    a, b = things[first][1], things[second][1]
    return np.linalg.norm(a[:, None] - b[None], axis=-1).min() > 0.5
